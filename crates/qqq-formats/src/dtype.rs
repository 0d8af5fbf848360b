//! Element types of tensors on disk.

use std::fmt;

/// Element type of a tensor as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE binary32, 4 bytes.
    F32,
    /// IEEE binary16, 2 bytes.
    F16,
    /// bfloat16: the upper 2 bytes of binary32.
    BF16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
    /// A block-quantized GGUF type, by its name (`Q4_1`, `Q6_K`, ...).
    Gguf(&'static str),
    /// Another type of the safetensors format (`BOOL`, `F8_E4M3`, ...), by its name: such tensors can be
    /// listed and their bytes read, but nothing here computes with them.
    Other(&'static str),
}

impl DType {
    /// Bytes of an element; `None` for types that are not made of whole, separately stored elements, or
    /// whose width is of no concern here.
    pub fn size(self) -> Option<usize> {
        match self {
            DType::F32 | DType::I32 => Some(4),
            DType::F16 | DType::BF16 => Some(2),
            DType::I8 | DType::U8 => Some(1),
            DType::I64 => Some(8),
            DType::Gguf(_) | DType::Other(_) => None,
        }
    }

    /// The type's name as safetensors and GGUF spell it.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I8 => "I8",
            DType::U8 => "U8",
            DType::I32 => "I32",
            DType::I64 => "I64",
            DType::Gguf(name) | DType::Other(name) => name,
        }
    }

    /// The safetensors spelling of a type's name, the reverse of [`DType::name`] for the types that
    /// safetensors and this crate share.
    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Self {
        use safetensors::Dtype;
        match dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::I8 => DType::I8,
            Dtype::U8 => DType::U8,
            Dtype::I32 => DType::I32,
            Dtype::I64 => DType::I64,
            Dtype::BOOL => DType::Other("BOOL"),
            Dtype::F8_E4M3 => DType::Other("F8_E4M3"),
            Dtype::F8_E5M2 => DType::Other("F8_E5M2"),
            Dtype::F8_E8M0 => DType::Other("F8_E8M0"),
            Dtype::I16 => DType::Other("I16"),
            Dtype::U16 => DType::Other("U16"),
            Dtype::U32 => DType::Other("U32"),
            Dtype::U64 => DType::Other("U64"),
            Dtype::F64 => DType::Other("F64"),
            _ => DType::Other("a type unknown to qqq"),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
