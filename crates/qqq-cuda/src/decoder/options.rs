//! What a backend is told when it is made.

use std::fmt;
use std::str::FromStr;

/// How quantized layers are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// What the checkpoint was made for, as each layer's scheme says: mostly 4-bit weights and int8 activations.
    #[default]
    W4A8,
    /// 4-bit weights, 16-bit activations; 8-bit weights are an error.
    W4A16,
    /// int8 weights with a scale a channel, int8 activations, those of 4 bits among them.
    W8A8,
    /// 16-bit weights and activations.
    Half,
}

impl Arithmetic {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::W4A8, Self::W4A16, Self::W8A8, Self::Half];

    /// What users call it: `w4a8`, `w4a16`, `w8a8`, `fp16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::W4A8 => "w4a8",
            Self::W4A16 => "w4a16",
            Self::W8A8 => "w8a8",
            Self::Half => "fp16",
        }
    }
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arithmetic {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            format!("arithmetic is one of {}, not {name:?}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// What a [`CudaBackend`](super::CudaBackend) is told when it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Bytes of the device's memory that work may take that is planned ahead, as calibration is; `None`: what is free.
    pub memory_limit: Option<u64>,
    /// How quantized layers are computed: their weights are made for it when they are loaded.
    pub arithmetic: Arithmetic,
    /// Whether plans of products are [tried](crate::gemm::trials) when layers are loaded. It changes no result.
    pub trials: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for arithmetic in Arithmetic::ALL {
            assert_eq!(arithmetic.name().parse(), Ok(arithmetic));
        }
        assert!("w8a16".parse::<Arithmetic>().unwrap_err().contains("w4a8, w4a16, w8a8, fp16"));
    }
}
