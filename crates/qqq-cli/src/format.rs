//! Numbers as people read them.

pub use qqq_formats::size::bytes;

/// A large count: `135 M`.
pub fn count(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n < 1e4 => format!("{n}"),
        n if n < 1e6 => format!("{:.1} k", n / 1e3),
        n if n < 1e9 => format!("{:.1} M", n / 1e6),
        n => format!("{:.2} G", n / 1e9),
    }
}

/// Seconds: `4.2 s`, `3:07`, `1:02:30`.
pub fn seconds(s: f64) -> String {
    if !s.is_finite() || s < 0.0 {
        return "?".into();
    }
    if s < 60.0 {
        return format!("{s:.1} s");
    }
    let whole = s.round() as u64;
    let (h, m, s) = (whole / 3600, whole / 60 % 60, whole % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

/// `value ± error`, with the digits that the error leaves sensible.
pub fn estimate(value: f64, error: Option<f64>, unicode: bool) -> String {
    let Some(error) = error else { return significant(value, 5) };
    let digits = if error > 0.0 { (1.0 - error.log10().floor()).clamp(0.0, 8.0) as usize } else { 4 };
    let sign = if unicode { "±" } else { "+-" };
    format!("{value:.digits$} {sign} {error:.digits$}")
}

/// With a number of significant digits.
pub fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-5..7).contains(&magnitude) {
        return format!("{value:.*e}", (digits - 1).max(0) as usize);
    }
    format!("{value:.*}", (digits - 1 - magnitude).max(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(count(134_515_008), "134.5 M");
        assert_eq!(seconds(4.23), "4.2 s");
        assert_eq!(seconds(187.0), "3:07");
        assert_eq!(seconds(3750.4), "1:02:30");
        assert_eq!(seconds(f64::NAN), "?");
    }

    #[test]
    fn digits() {
        assert_eq!(estimate(19.60812, Some(0.1234), true), "19.61 ± 0.12");
        assert_eq!(estimate(0.012345, Some(0.00012), false), "0.01235 +- 0.00012");
        assert_eq!(estimate(19.60812, None, true), "19.608");
        assert_eq!(significant(0.000123456, 3), "0.000123");
        assert_eq!(significant(1.5e-9, 3), "1.50e-9");
        assert_eq!(significant(123456.0, 3), "123456");
    }
}
