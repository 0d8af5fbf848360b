//! Numbers as people read them, and paths as shells do.

use std::path::Path;

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

/// So many threads.
pub fn threads(n: usize) -> String {
    format!("{n} thread{}", if n == 1 { "" } else { "s" })
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

/// Seconds that are not known well: `under a minute`, `about 7 minutes`, `about 3.5 hours`.
pub fn about(seconds: f64) -> String {
    match seconds {
        s if s < 45.0 => "under a minute".into(),
        s if s < 90.0 => "about a minute".into(),
        s if s < 5400.0 => format!("about {:.0} minutes", s / 60.0),
        s => format!("about {:.1} hours", s / 3600.0),
    }
}

/// Digits after the standard error's first one that are printed. Two recipes are compared on the same text, where most of
/// the error is common to both: they differ by far less than it says.
const BEYOND_ERROR: i32 = 4;
/// Significant digits where there is no standard error.
const WITHOUT_ERROR: i32 = 7;

/// `value ± error`, both down to the fourth decimal place after that of the standard error's first significant digit:
/// `21.65342 ± 0.48123`. Without an error: seven significant digits.
pub fn estimate(value: f64, error: Option<f64>) -> String {
    match error {
        Some(error) if error > 0.0 && error.is_finite() => {
            // A float has 17 digits at most.
            let places = (BEYOND_ERROR - exponent(error)).clamp(0, 17) as usize;
            format!("{value:.places$} ± {error:.places$}")
        }
        // All windows agree.
        Some(error) => format!("{} ± {error}", significant(value, WITHOUT_ERROR)),
        None => significant(value, WITHOUT_ERROR),
    }
}

/// The power of ten of the first significant digit.
fn exponent(value: f64) -> i32 {
    // Exact, unlike a logarithm: 0.001 has -3.
    let text = format!("{value:e}");
    text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0)
}

/// A path as a word of a shell's command line, to be copied from what is printed.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    // A dash would begin an option.
    let text = if text.starts_with('-') { format!("./{text}") } else { text };
    match shlex::try_quote(&text) {
        Ok(word) => word.into_owned(),
        // A zero byte, which no path has.
        Err(_) => text,
    }
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
        assert_eq!(about(30.0), "under a minute");
        assert_eq!(about(80.0), "about a minute");
        assert_eq!(about(400.0), "about 7 minutes");
        assert_eq!(about(12_600.0), "about 3.5 hours");
    }

    #[test]
    fn digits() {
        assert_eq!(significant(0.000123456, 3), "0.000123");
        assert_eq!(significant(1.5e-9, 3), "1.50e-9");
        assert_eq!(significant(123456.0, 3), "123456");
    }

    #[test]
    fn estimates_end_four_places_after_the_errors_first_digit() {
        for (value, error, text) in [
            (21.653_421_9, 0.481_234_5, "21.65342 ± 0.48123"),
            (0.012_345_678_9, 0.000_123_456, "0.01234568 ± 0.00012346"),
            (19.5, 0.001, "19.5000000 ± 0.0010000"),
            (1_234.567_89, 12.345_67, "1234.568 ± 12.346"),
            (123_456.7, 34_567.8, "123457 ± 34568"),
            (9.9e9, 2.5e6, "9900000000 ± 2500000"),
            (5.0, 9.999_99, "5.0000 ± 10.0000"),
            (2.0, 0.0, "2.000000 ± 0"),
        ] {
            assert_eq!(estimate(value, Some(error)), text);
        }
        assert_eq!(estimate(19.608_123_45, None), "19.60812");
        // Recipes whose difference is a fiftieth of the error can be told apart.
        assert_ne!(estimate(21.65, Some(0.5)), estimate(21.66, Some(0.5)));
    }

    #[test]
    fn paths_are_words_of_a_shell() {
        for (path, word) in [
            ("out", "out"),
            ("/tmp/qwen-w4a8", "/tmp/qwen-w4a8"),
            ("my model", "'my model'"),
            ("$HOME/x", "'$HOME/x'"),
            ("-rf", "./-rf"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(Path::new(path)), word);
        }
        // Whatever it is, a shell reads it back.
        for path in ["it's", "a\"b", "a\nb", "*;&|", "~", "é ü"] {
            assert_eq!(shlex::split(&shell_word(Path::new(path))).unwrap(), [path]);
        }
    }
}
