//! Whole numbers on the command line. Where users of other tools write -1 it means what it means there; everything else
//! that is no number says what to write.

use qqq_quant::Budget;

/// How many cores there are, for `--threads -1`.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A number from `least` on; `needed` says so.
fn from(text: &str, least: usize, needed: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n >= least => Ok(n),
        Err(e) if *e.kind() == std::num::IntErrorKind::PosOverflow => Err(format!("at most {}", usize::MAX)),
        _ => Err(needed.to_owned()),
    }
}

/// 1 or more.
pub fn count(text: &str) -> Result<usize, String> {
    from(text, 1, "a whole number from 1 on is needed")
}

/// 0 or more.
pub fn whole(text: &str) -> Result<usize, String> {
    from(text, 0, "a whole number from 0 on is needed")
}

/// New tokens: 1 or more, or -1 (`usize::MAX`), as llama.cpp has it: until the model ends, or its context is full.
pub fn new_tokens(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(usize::MAX),
        _ => from(
            text,
            1,
            "a whole number from 1 on is needed, or -1: until the model ends or its context is full",
        ),
    }
}

/// Windows: 1 or more, or -1 (`usize::MAX`) for all.
pub fn limit(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(usize::MAX),
        _ => from(text, 1, "a whole number from 1 on is needed, or -1 for all windows"),
    }
}

/// Questions at most: 1 or more; -1 is all.
pub fn questions(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(usize::MAX),
        _ => from(text, 1, "a whole number from 1 on is needed, or -1 for all questions"),
    }
}

/// The likeliest tokens: 1 or more; -1 and 0 (here 0) are all.
pub fn top_k(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(0),
        _ => from(text, 0, "a whole number from 1 on is needed, or 0 or -1 for all tokens"),
    }
}

/// Threads: 1 or more, or -1 for all cores.
pub fn threads(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(cores()),
        _ => from(text, 1, "a whole number from 1 on is needed, or -1 for all cores"),
    }
}

/// An amount of memory in bytes: a number with a unit, decimal (kB, MB, GB, TB) or binary (KiB, MiB, GiB, TiB).
pub fn bytes(text: &str) -> Result<u64, String> {
    const NEEDED: &str = "a size is needed, such as 12GB, 800MB or 11.5GiB";
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        _ => return Err(NEEDED.into()),
    };
    match number.trim().parse::<f64>() {
        Ok(n) if n > 0.0 && n.is_finite() && n * factor < 1e18 => Ok((n * factor) as u64),
        _ => Err(NEEDED.into()),
    }
}

/// A budget: a number alone is bits per weight, one with a unit the size of a checkpoint.
pub fn budget(text: &str) -> Result<Budget, String> {
    const NEEDED: &str = "bits per weight are needed, such as 4.8, or a size with its unit, such as 900MB";
    match text.parse::<f64>() {
        Ok(bits) if bits > 0.0 && bits.is_finite() => Ok(Budget::BitsPerWeight(bits)),
        Ok(_) => Err(NEEDED.into()),
        Err(_) => bytes(text).map(Budget::Bytes).map_err(|_| NEEDED.into()),
    }
}

/// A limit of the KL divergence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaxKld(
    /// In nats per token; `None`: there is none.
    pub Option<f64>,
);

impl MaxKld {
    /// A number above 0, or "off".
    ///
    /// # Errors
    /// Anything else, with what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(nats) if nats > 0.0 && nats.is_finite() => Ok(Self(Some(nats))),
            Err(_) if text == "off" => Ok(Self(None)),
            _ => Err("a number of nats above 0 is needed, or \"off\" for no limit".into()),
        }
    }
}

/// A seed that was given, or is to be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// The number that was given.
    Given(u64),
    /// -1: one that is drawn and told.
    Random,
}

impl Seed {
    /// From 0 on, or -1 for a random one.
    ///
    /// # Errors
    /// Anything else, with what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "-1" => Ok(Self::Random),
            _ => match text.parse() {
                Ok(seed) => Ok(Self::Given(seed)),
                Err(_) => {
                    Err(format!("a whole number from 0 to {} is needed, or -1 for a random one", u64::MAX))
                }
            },
        }
    }

    /// The seed, and whether it was drawn: 32 bits, which every reader of JSON takes as they are.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn value(self) -> anyhow::Result<(u64, bool)> {
        match self {
            Self::Given(seed) => Ok((seed, false)),
            Self::Random => {
                let seed = getrandom::u32()
                    .map_err(|e| anyhow::anyhow!("--seed -1: the system gives no random number: {e}"))?;
                Ok((seed.into(), true))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("12GB"), Ok(12_000_000_000));
        assert_eq!(bytes("1.5 GiB"), Ok(1_610_612_736));
        assert_eq!(bytes("800m"), Ok(800_000_000));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["", "GB", "-1GB", "0", "12 apples", "1e40GB", "nan", "inf"] {
            assert!(bytes(wrong).unwrap_err().contains("12GB"), "{wrong}");
        }
    }

    #[test]
    fn minus_one_is_what_it_is_elsewhere() {
        assert_eq!(new_tokens("-1"), Ok(usize::MAX));
        assert_eq!(limit("-1"), Ok(usize::MAX));
        assert_eq!((top_k("-1"), top_k("0"), top_k("40")), (Ok(0), Ok(0), Ok(40)));
        assert!(threads("-1").unwrap() >= 1);
        assert_eq!((Seed::parse("-1"), Seed::parse("7")), (Ok(Seed::Random), Ok(Seed::Given(7))));
    }

    #[test]
    fn other_numbers_are_refused_with_what_to_write() {
        for (parse, says) in [
            (count as fn(&str) -> Result<usize, String>, "from 1 on"),
            (whole, "from 0 on"),
            (new_tokens, "-1: until the model ends"),
            (limit, "-1 for all windows"),
            (top_k, "0 or -1 for all tokens"),
            (threads, "-1 for all cores"),
        ] {
            for bad in ["-2", "1.5", "", "x", "1e3", "0x10"] {
                assert!(parse(bad).unwrap_err().contains(says), "{bad}");
            }
            assert!(parse("99999999999999999999").unwrap_err().contains("at most"));
        }
        for bad in ["-2", "x", "18446744073709551616"] {
            assert!(Seed::parse(bad).unwrap_err().contains("-1 for a random one"), "{bad}");
        }
        assert_eq!(count("0").is_err(), whole("0").is_ok());
    }

    #[test]
    fn seeds_are_drawn_anew() {
        assert_eq!(Seed::Given(3).value().unwrap(), (3, false));
        let drawn: Vec<u64> = (0..4).map(|_| Seed::Random.value().unwrap().0).collect();
        assert!(drawn.iter().any(|s| *s != drawn[0]), "{drawn:?}");
        assert!(Seed::Random.value().unwrap().1);
    }
}
