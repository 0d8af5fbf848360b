//! Numbers from text and to text, as `int`, `float` and format specifications have them.

use super::chars::{decimal, is_space};

/// `int(text, base)`; `None` where Python raises `ValueError`, or beyond 128 bits.
pub fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.get(..2).map(str::to_ascii_lowercase);
    let prefixed = match lower.as_deref() {
        Some("0b") if matches!(base, 0 | 2) => Some(2),
        Some("0o") if matches!(base, 0 | 8) => Some(8),
        Some("0x") if matches!(base, 0 | 16) => Some(16),
        _ => None,
    };
    // An underscore may stand between digits and after a prefix.
    let mut previous_digit = prefixed.is_some();
    let digits = if prefixed.is_some() { &digits[2..] } else { digits };
    let radix = prefixed.unwrap_or(if base == 0 { 10 } else { base });
    let mut value = 0i128;
    let mut any = false;
    for c in digits.chars() {
        if c == '_' {
            if !previous_digit {
                return None;
            }
            previous_digit = false;
            continue;
        }
        let digit = decimal(c).or_else(|| c.to_digit(36)).filter(|d| *d < radix)?;
        value = value.checked_mul(radix.into())?.checked_add(digit.into())?;
        (previous_digit, any) = (true, true);
    }
    let leading_zero = base == 0 && prefixed.is_none() && digits.starts_with('0') && value != 0;
    (any && previous_digit && !leading_zero).then_some(if negative { -value } else { value })
}

/// `float(text)`; `None` where Python raises `ValueError`.
pub fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let ascii: String =
        text.chars().map(|c| decimal(c).and_then(|d| char::from_digit(d, 10)).unwrap_or(c)).collect();
    let bytes = ascii.as_bytes();
    for (i, b) in bytes.iter().enumerate() {
        let digit = |j: Option<usize>| j.and_then(|j| bytes.get(j)).is_some_and(u8::is_ascii_digit);
        if *b == b'_' && !(digit(i.checked_sub(1)) && digit(Some(i + 1))) {
            return None;
        }
    }
    let plain = ascii.replace('_', "");
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(&plain).to_ascii_lowercase();
    let named = matches!(unsigned.as_str(), "inf" | "infinity" | "nan");
    if !named && unsigned.bytes().any(|b| !(b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'+' | b'-'))) {
        return None;
    }
    plain.parse().ok()
}

/// Digits of the size of a float for the types `e`, `f` and `g` of format specifications (or `r`, the
/// shortest that read back), without a sign; `alternate` is the flag `#`.
pub fn float_digits(x: f64, kind: char, precision: usize, alternate: bool) -> String {
    let x = x.abs();
    let upper = kind.is_ascii_uppercase();
    let text = if x.is_nan() {
        "nan".into()
    } else if x.is_infinite() {
        "inf".into()
    } else {
        match kind.to_ascii_lowercase() {
            'e' => exponential(&format!("{x:.precision$e}"), alternate),
            'g' => general(x, precision.max(1), alternate),
            _ => {
                let text = format!("{x:.precision$}");
                if alternate && precision == 0 { text + "." } else { text }
            }
        }
    };
    if upper { text.to_uppercase() } else { text }
}

/// Rust's `1.5e7` as C's `1.5e+07`.
fn exponential(text: &str, alternate: bool) -> String {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let point = if alternate && !mantissa.contains('.') { "." } else { "" };
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}{point}e{sign}{:02}", exponent.abs())
}

fn general(x: f64, precision: usize, alternate: bool) -> String {
    let scientific = format!("{x:.*e}", precision - 1);
    let exponent: i64 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or_default();
    let strip = |text: &str| {
        if alternate || !text.contains('.') {
            text.to_owned()
        } else {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    };
    if exponent < -4 || exponent >= precision as i64 {
        let (mantissa, _) = scientific.split_once('e').unwrap_or((&scientific, ""));
        return exponential(&format!("{}e{exponent}", strip(mantissa)), alternate);
    }
    let decimals = usize::try_from(precision as i64 - 1 - exponent).unwrap_or_default();
    let text = format!("{x:.decimals$}");
    if alternate && !text.contains('.') { text + "." } else { strip(&text) }
}

/// `round(x, digits)`: half to even of the exact value.
pub fn round(x: f64, digits: i128) -> f64 {
    if !x.is_finite() || digits > 323 {
        return x;
    }
    match usize::try_from(digits) {
        Ok(digits) => format!("{x:.digits$}").parse().unwrap_or(x),
        Err(_) if digits < -308 => 0f64.copysign(x),
        Err(_) => {
            let power = 10f64.powi(-(digits as i32));
            (x / power).round_ties_even() * power
        }
    }
}

/// Puts separators between groups of digits.
pub fn grouped(digits: &str, separator: char, size: usize) -> String {
    let count = digits.len();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (count - i).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(c);
    }
    out
}
