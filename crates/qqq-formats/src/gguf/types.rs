//! Element types of GGUF tensors.

/// A tensor type of GGUF, as llama.cpp numbers it.
///
/// Quantized types store blocks of [`GgmlType::block`] consecutive elements of a row in
/// [`GgmlType::block_bytes`] bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType {
    id: u32,
    name: &'static str,
    block: usize,
    block_bytes: usize,
}

const fn t(id: u32, name: &'static str, block: usize, block_bytes: usize) -> GgmlType {
    GgmlType { id, name, block, block_bytes }
}

/// All types whose size is known; those without a dequantizer can be listed, not read.
const TYPES: [GgmlType; 33] = [
    t(0, "F32", 1, 4),
    t(1, "F16", 1, 2),
    t(2, "Q4_0", 32, 18),
    t(3, "Q4_1", 32, 20),
    t(6, "Q5_0", 32, 22),
    t(7, "Q5_1", 32, 24),
    t(8, "Q8_0", 32, 34),
    t(9, "Q8_1", 32, 36),
    t(10, "Q2_K", 256, 84),
    t(11, "Q3_K", 256, 110),
    t(12, "Q4_K", 256, 144),
    t(13, "Q5_K", 256, 176),
    t(14, "Q6_K", 256, 210),
    t(15, "Q8_K", 256, 292),
    t(16, "IQ2_XXS", 256, 66),
    t(17, "IQ2_XS", 256, 74),
    t(18, "IQ3_XXS", 256, 98),
    t(19, "IQ1_S", 256, 50),
    t(20, "IQ4_NL", 32, 18),
    t(21, "IQ3_S", 256, 110),
    t(22, "IQ2_S", 256, 82),
    t(23, "IQ4_XS", 256, 136),
    t(24, "I8", 1, 1),
    t(25, "I16", 1, 2),
    t(26, "I32", 1, 4),
    t(27, "I64", 1, 8),
    t(28, "F64", 1, 8),
    t(29, "IQ1_M", 256, 56),
    t(30, "BF16", 1, 2),
    t(34, "TQ1_0", 256, 54),
    t(35, "TQ2_0", 256, 66),
    t(39, "MXFP4", 32, 17),
    t(40, "NVFP4", 64, 36),
];

/// What [`GgmlType::dequantize`] can read, for messages.
pub(super) const READABLE: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K and Q8_K";

impl GgmlType {
    /// The type of a number in a file, `None` if it is unknown.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.into_iter().find(|t| t.id == id)
    }

    /// The type of a name (`Q4_K`).
    pub fn from_name(name: &str) -> Option<Self> {
        TYPES.into_iter().find(|t| t.name == name)
    }

    /// Its name in llama.cpp (`Q4_K`).
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Elements in a block.
    pub fn block(self) -> usize {
        self.block
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.block_bytes
    }

    /// Bytes of a row of `elements`, `None` when they are no whole number of blocks or overflow.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block) {
            return None;
        }
        (elements / self.block).checked_mul(self.block_bytes)
    }

    /// The corresponding element type of [`crate::DType`].
    pub fn dtype(self) -> crate::DType {
        use crate::DType;
        match self.name {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            "I8" => DType::I8,
            "I32" => DType::I32,
            "I64" => DType::I64,
            name => DType::Gguf(name),
        }
    }
}
