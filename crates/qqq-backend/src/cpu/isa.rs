//! Instruction sets of the integer kernels.

/// A code path of the W4A8 kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// AVX2 without VNNI.
    Avx2,
    /// AVX2 with AVX-VNNI.
    AvxVnni,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// NEON with the dot-product extension.
    NeonDot,
}
