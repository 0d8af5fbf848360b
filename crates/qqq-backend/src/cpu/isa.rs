//! Instruction sets of the integer kernels.

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;

use crate::{BackendError, Result};

/// A code path of the integer kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, for processors that have none of the others.
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

impl Isa {
    /// Every path, slowest first.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::NeonDot, Isa::Avx512Vnni];

    /// Whether this machine can run the path.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The paths that this machine can run, slowest first.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest path of this machine.
    pub fn best() -> Isa {
        Self::ALL.into_iter().rfind(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    /// The path named by the environment variable `QQQ_ISA`, else [`best`](Self::best).
    ///
    /// # Errors
    /// `QQQ_ISA` names no path, or one that this machine cannot run.
    pub fn selected() -> Result<Isa> {
        Self::asked(std::env::var_os("QQQ_ISA"))
    }

    fn asked(variable: Option<OsString>) -> Result<Isa> {
        match variable {
            // What is set to nothing counts as not set.
            Some(name) if !name.is_empty() => {
                let isa = name.to_string_lossy().parse::<Isa>().and_then(Isa::checked);
                isa.map_err(|e| BackendError::Unavailable(format!("QQQ_ISA: {e}")))
            }
            _ => Ok(Self::best()),
        }
    }

    /// This path, if the machine can run it.
    ///
    /// # Errors
    /// It cannot.
    pub fn checked(self) -> Result<Isa> {
        if self.is_available() {
            return Ok(self);
        }
        Err(BackendError::Unavailable(format!(
            "this machine cannot run the {self} kernels: it has {}",
            names(&Self::available())
        )))
    }

    /// The name, as `QQQ_ISA` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::NeonDot => "neon-dot",
        }
    }
}

fn names(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Isa> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            BackendError::Unavailable(format!(
                "no kernels are named \"{name}\": the names are {}",
                names(&Self::ALL)
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse::<Isa>().unwrap(), isa);
        }
        assert!("avx3".parse::<Isa>().unwrap_err().to_string().contains("avx512-vnni"));
    }

    #[test]
    fn the_variable_is_named_in_its_errors() {
        let asked = |name: &str| Isa::asked(Some(name.into())).map_err(|e| e.to_string());
        assert_eq!(asked(""), Ok(Isa::best()));
        assert_eq!(asked("portable"), Ok(Isa::Portable));
        let foreign = if cfg!(target_arch = "x86_64") { Isa::NeonDot } else { Isa::Avx512Vnni };
        for bad in ["avx3", foreign.name(), " avx2"] {
            let error = asked(bad).unwrap_err();
            assert!(error.starts_with("QQQ_ISA: ") && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn the_best_path_is_available_and_foreign_ones_are_refused() {
        assert!(Isa::available().contains(&Isa::best()));
        assert!(Isa::available().contains(&Isa::Portable));
        let foreign = if cfg!(target_arch = "x86_64") { Isa::NeonDot } else { Isa::Avx512Vnni };
        let error = foreign.checked().unwrap_err().to_string();
        assert!(error.contains(foreign.name()) && error.contains("portable"), "{error}");
    }
}
