//! Kernels as text.

use sha2::{Digest, Sha256};

use super::Arch;

/// The files of `kernels/`, by the names under which sources include them.
pub const HEADERS: &[(&str, &str)] = &[
    ("activations.cuh", include_str!("../kernels/activations.cuh")),
    ("attention.cuh", include_str!("../kernels/attention.cuh")),
    ("calibrate.cuh", include_str!("../kernels/calibrate.cuh")),
    ("ceilings.cuh", include_str!("../kernels/ceilings.cuh")),
    ("convert.cuh", include_str!("../kernels/convert.cuh")),
    ("correct.cuh", include_str!("../kernels/correct.cuh")),
    ("decoder_rows.cuh", include_str!("../kernels/decoder_rows.cuh")),
    ("decoder_steps.cuh", include_str!("../kernels/decoder_steps.cuh")),
    ("dequantize.cuh", include_str!("../kernels/dequantize.cuh")),
    ("dequantize16.cuh", include_str!("../kernels/dequantize16.cuh")),
    ("draws.cuh", include_str!("../kernels/draws.cuh")),
    ("factor.cuh", include_str!("../kernels/factor.cuh")),
    ("head.cuh", include_str!("../kernels/head.cuh")),
    ("operands.cuh", include_str!("../kernels/operands.cuh")),
    ("prepack.cuh", include_str!("../kernels/prepack.cuh")),
    ("ptx.cuh", include_str!("../kernels/ptx.cuh")),
    ("ptx_arithmetic.cuh", include_str!("../kernels/ptx_arithmetic.cuh")),
    ("quantize_activations.cuh", include_str!("../kernels/quantize_activations.cuh")),
    ("schedule.cuh", include_str!("../kernels/schedule.cuh")),
    ("simulated.cuh", include_str!("../kernels/simulated.cuh")),
    ("sm80_config.cuh", include_str!("../kernels/sm80_config.cuh")),
    ("sm80_epilogue.cuh", include_str!("../kernels/sm80_epilogue.cuh")),
    ("sm80_gemm.cuh", include_str!("../kernels/sm80_gemm.cuh")),
    ("sm90_config.cuh", include_str!("../kernels/sm90_config.cuh")),
    ("sm90_epilogue.cuh", include_str!("../kernels/sm90_epilogue.cuh")),
    ("sm90_gemm.cuh", include_str!("../kernels/sm90_gemm.cuh")),
    ("smooth.cuh", include_str!("../kernels/smooth.cuh")),
    ("solve.cuh", include_str!("../kernels/solve.cuh")),
    ("wgmma.cuh", include_str!("../kernels/wgmma.cuh")),
    ("wgmma_attention.cuh", include_str!("../kernels/wgmma_attention.cuh")),
    ("wgmma_ptx.cuh", include_str!("../kernels/wgmma_ptx.cuh")),
];

/// Options of every compilation, besides the architecture. The log states registers and spills.
pub const OPTIONS: &[&str] = &["-std=c++17", "-default-device", "--ptxas-options=-v"];

/// Identifies headers and options, in hexadecimal: what was measured of kernels holds for these.
pub fn revision() -> String {
    let mut hash = Sha256::new();
    add_common(&mut hash);
    hexadecimal(&hash.finalize()[..8])
}

/// A translation unit: includes a file of [`HEADERS`] and instantiates a kernel of it, named [`Source::function`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Says which instance it is; unique among sources.
    pub name: String,
    /// CUDA C++ of the kernel's own file; headers come from those that are built in.
    pub text: String,
}

impl Source {
    /// A source whose text is made with the kernel's name.
    pub fn new(name: impl Into<String>, text: impl FnOnce(&str) -> String) -> Self {
        let mut source = Self { name: name.into(), text: String::new() };
        source.text = text(&source.function());
        source
    }

    /// The kernel's name, as profilers show it.
    pub fn function(&self) -> String {
        format!("qqq_{}", self.name)
    }

    /// Identifies what is compiled: text, headers, options and architecture, in hexadecimal. Not the compiler's
    /// version: any version's code is right, and a cached kernel must be found without looking for a compiler.
    pub fn key(&self, arch: Arch) -> String {
        let mut hash = Sha256::new();
        add(&mut hash, &arch.to_string());
        add_common(&mut hash);
        add(&mut hash, &self.text);
        hexadecimal(&hash.finalize())
    }
}

fn add(hash: &mut Sha256, part: &str) {
    hash.update((part.len() as u64).to_le_bytes());
    hash.update(part);
}

/// What all kernels have in common.
fn add_common(hash: &mut Sha256) {
    OPTIONS.iter().for_each(|o| add(hash, o));
    HEADERS.iter().for_each(|(name, text)| {
        add(hash, name);
        add(hash, text);
    });
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_kernel_file_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
        let mut files: Vec<_> =
            folder.read_dir().unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, HEADERS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }

    #[test]
    fn keys_tell_sources_and_architectures_apart() {
        let source = |text: &str| Source { name: String::from("k"), text: text.to_owned() };
        let key = source("a").key(Arch::Sm90a);
        assert_eq!(key, source("a").key(Arch::Sm90a));
        assert_eq!(key.len(), 64);
        assert_ne!(key, source("b").key(Arch::Sm90a));
        assert_ne!(key, source("a").key(Arch::Sm80));
    }
}
