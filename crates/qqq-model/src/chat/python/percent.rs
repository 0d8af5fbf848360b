//! `text % values`: printf-style formatting.

use minijinja::value::Value;

use super::numbers::float_digits;
use super::repr::{ascii, to_repr, to_str};
use super::value::{Py, Result, as_float, as_int, as_size, check_size, fail, py, type_name, undefined};

#[derive(Default)]
struct Spec {
    left: bool,
    plus: bool,
    space: bool,
    zero: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// Where the values come from, one after the other.
struct Source<'a> {
    values: &'a Value,
    next: usize,
}

impl Source<'_> {
    fn take(&mut self) -> Result<Value> {
        let value = match py(self.values) {
            Py::Tuple(items) => items.get(self.next).cloned(),
            _ if self.next == 0 => Some(self.values.clone()),
            _ => None,
        };
        self.next += 1;
        value.map_or_else(|| fail("not enough arguments for format string"), Ok)
    }
}

/// `format % values`.
///
/// # Errors
/// Too many or too few values, ones of another type, an unknown conversion.
pub fn format(format: &str, values: &Value) -> Result<String> {
    let mut source = Source { values, next: 0 };
    let mut by_name = false;
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let (mut key, mut depth) = (String::new(), 1);
            for c in chars.by_ref() {
                depth += i32::from(c == '(') - i32::from(c == ')');
                if depth == 0 {
                    break;
                }
                key.push(c);
            }
            if depth > 0 {
                return fail("incomplete format key");
            }
            let Py::Dict(dict) = py(values) else { return fail("format requires a mapping") };
            let Some(value) = dict.get_str(&key) else { return fail(format!("KeyError: '{key}'")) };
            named = Some(value.clone());
            by_name = true;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| "-+ 0#".contains(*c)) {
            match flag {
                '-' => spec.left = true,
                '+' => spec.plus = true,
                ' ' => spec.space = true,
                '0' => spec.zero = true,
                _ => spec.alternate = true,
            }
        }
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>, source: &mut Source<'_>| {
            if chars.next_if_eq(&'*').is_some() {
                let value = source.take()?;
                return as_int(&value).map_or_else(|| fail("* wants int"), |n| Ok(Some(n)));
            }
            let mut digits = String::new();
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                digits.push(d);
            }
            Ok(digits.parse::<i128>().ok().or((!digits.is_empty()).then_some(i128::MAX)))
        };
        let width = number(&mut chars, &mut source)?.unwrap_or(0);
        spec.left |= width < 0;
        spec.width = check_size(usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX))?;
        if chars.next_if_eq(&'.').is_some() {
            let precision = number(&mut chars, &mut source)?.unwrap_or(0).max(0);
            spec.precision = Some(check_size(usize::try_from(precision).unwrap_or(usize::MAX))?);
        }
        chars.next_if(|c| "hlL".contains(*c));
        let Some(kind) = chars.next() else { return fail("incomplete format") };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = named.map_or_else(|| source.take(), Ok)?;
        convert(&mut out, &spec, kind, &value)?;
        check_size(out.len())?;
    }
    let all_used = match py(values) {
        Py::Tuple(items) => source.next >= items.len(),
        // A mapping or a list may be left alone.
        Py::Dict(_) | Py::List(_) => true,
        _ => source.next > 0,
    };
    if !by_name && !all_used {
        return fail("not all arguments converted during string formatting");
    }
    Ok(out)
}

fn convert(out: &mut String, spec: &Spec, kind: char, value: &Value) -> Result<()> {
    if value.is_undefined() && !matches!(kind, 's' | 'r' | 'a') {
        return undefined(&format!("%{kind}"));
    }
    let cut = |text: String| match spec.precision {
        Some(n) => text.chars().take(n).collect(),
        None => text,
    };
    let (sign, prefix, body) = match kind {
        's' => (None, "", cut(to_str(value)?)),
        'r' => (None, "", cut(to_repr(value)?)),
        'a' => (None, "", cut(ascii(&to_repr(value)?))),
        'c' => (None, "", cut(character(value)?)),
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' => {
            let n = match (py(value), as_int(value)) {
                (_, Some(n)) => n,
                (Py::Float(x), _) if matches!(kind, 'd' | 'i' | 'u') && x.is_finite() => x.trunc() as i128,
                _ if matches!(kind, 'd' | 'i' | 'u') => {
                    return fail(format!(
                        "%{kind} format: a real number is required, not {}",
                        type_name(value)
                    ));
                }
                _ => {
                    return fail(format!("%{kind} format: an integer is required, not {}", type_name(value)));
                }
            };
            let size = n.unsigned_abs();
            let (prefix, digits) = match kind {
                'o' => ("0o", format!("{size:o}")),
                'x' => ("0x", format!("{size:x}")),
                'X' => ("0X", format!("{size:X}")),
                _ => ("", size.to_string()),
            };
            let zeros = spec.precision.map_or(0, |p| p.saturating_sub(digits.len()));
            (Some(n < 0), if spec.alternate { prefix } else { "" }, "0".repeat(zeros) + &digits)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(x) = as_float(value) else {
                return fail(format!("must be real number, not {}", type_name(value)));
            };
            let digits = float_digits(x, kind, spec.precision.unwrap_or(6), spec.alternate);
            (Some(x.is_sign_negative() && !x.is_nan()), "", digits)
        }
        _ => return fail(format!("unsupported format character '{kind}' ({:#x})", u32::from(kind))),
    };
    let sign_text = match sign {
        Some(true) => "-",
        Some(false) if spec.plus => "+",
        Some(false) if spec.space => " ",
        _ => "",
    };
    let length = sign_text.len() + prefix.len() + body.chars().count();
    let fill = spec.width.saturating_sub(length);
    if spec.left {
        *out += &format!("{sign_text}{prefix}{body}{}", " ".repeat(fill));
    } else if spec.zero && sign.is_some() {
        *out += &format!("{sign_text}{prefix}{}{body}", "0".repeat(fill));
    } else {
        *out += &format!("{}{sign_text}{prefix}{body}", " ".repeat(fill));
    }
    Ok(())
}

fn character(value: &Value) -> Result<String> {
    if let Py::Str(text) = py(value)
        && text.chars().count() == 1
    {
        return Ok(text.to_owned());
    }
    if as_int(value).is_some() {
        let c = u32::try_from(as_size(value)?).ok().and_then(char::from_u32);
        return c.map_or_else(|| fail("%c arg not in range(0x110000)"), |c| Ok(c.to_string()));
    }
    fail("%c requires int or char")
}
