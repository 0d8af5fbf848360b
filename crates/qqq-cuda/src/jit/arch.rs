//! Architectures that kernels are compiled for.

use std::fmt;
use std::str::FromStr;

/// A target of NVRTC. Machine code runs on GPUs of the same major version whose minor version is not lower; of an `a`
/// target, on exactly that version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// Compute capability 8.0: A100, A30.
    Sm80,
    /// RTX 30, A10, A40.
    Sm86,
    /// RTX 40, L4, L40S.
    Sm89,
    /// H100, H200, with its own instructions (wgmma).
    Sm90a,
    /// Compute capability 10.0: B200.
    Sm100,
    /// RTX 50, RTX PRO 6000.
    Sm120,
}

impl Arch {
    /// All of them, oldest first.
    pub const ALL: [Arch; 6] = [Arch::Sm80, Arch::Sm86, Arch::Sm89, Arch::Sm90a, Arch::Sm100, Arch::Sm120];

    /// The best target for a GPU of this compute capability; `None` before 8.0 and for versions that none of them
    /// serves.
    pub fn for_capability(major: u32, minor: u32) -> Option<Arch> {
        match (major, minor) {
            (8, 0..=5) => Some(Arch::Sm80),
            (8, 6..=8) => Some(Arch::Sm86),
            (8, _) => Some(Arch::Sm89),
            (9, 0) => Some(Arch::Sm90a),
            (10, _) => Some(Arch::Sm100),
            (12, _) => Some(Arch::Sm120),
            _ => None,
        }
    }

    /// Shared memory that a CTA may have, in bytes.
    pub fn shared_bytes(self) -> usize {
        1024 * match self {
            Arch::Sm80 => 163,
            Arch::Sm86 | Arch::Sm89 | Arch::Sm120 => 99,
            Arch::Sm90a | Arch::Sm100 => 227,
        }
    }

    /// The number in its name.
    pub fn number(self) -> u32 {
        match self {
            Arch::Sm80 => 80,
            Arch::Sm86 => 86,
            Arch::Sm89 => 89,
            Arch::Sm90a => 90,
            Arch::Sm100 => 100,
            Arch::Sm120 => 120,
        }
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Arch::ALL.into_iter().find(|a| a.to_string() == s).ok_or_else(|| {
            let all: Vec<_> = Arch::ALL.iter().map(Arch::to_string).collect();
            format!("{s:?} is no architecture that kernels exist for: {}", all.join(", "))
        })
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.number(), if *self == Arch::Sm90a { "a" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_gpus() {
        let arch = |major, minor| Arch::for_capability(major, minor).map(|a| a.to_string());
        assert_eq!(arch(7, 5), None);
        assert_eq!(arch(8, 0).as_deref(), Some("sm_80"));
        assert_eq!(arch(8, 7).as_deref(), Some("sm_86"));
        assert_eq!(arch(8, 9).as_deref(), Some("sm_89"));
        assert_eq!(arch(9, 0).as_deref(), Some("sm_90a"));
        assert_eq!(arch(10, 3).as_deref(), Some("sm_100"));
        assert_eq!(arch(12, 1).as_deref(), Some("sm_120"));
        assert_eq!(arch(11, 0), None);
    }

    #[test]
    fn names() {
        for arch in Arch::ALL {
            assert_eq!(arch.to_string().parse(), Ok(arch));
        }
        assert!("sm_90".parse::<Arch>().unwrap_err().contains("sm_90a, sm_100"));
    }
}
