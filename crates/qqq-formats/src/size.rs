//! Sizes as people read them.

/// Bytes in decimal units, one way for everything that is printed: `98.4 MB`.
pub fn bytes(n: u64) -> String {
    let exact = n as f64;
    match exact {
        n if n < 1e3 => format!("{n} B"),
        n if n < 1e6 => format!("{:.1} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n if n < 1e12 => format!("{:.2} GB", n / 1e9),
        n if n < 1e15 => format!("{:.2} TB", n / 1e12),
        n => format!("{:.0} PB", n / 1e15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_decimal() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (131_072, "131.1 kB"),
            (98_362_432, "98.4 MB"),
            (1 << 30, "1.07 GB"),
            (2_500_000_000_000, "2.50 TB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }
}
