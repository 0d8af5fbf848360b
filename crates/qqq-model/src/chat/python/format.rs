//! `str.format` and format specifications.

use minijinja::value::Value;

use super::numbers::{float_digits, grouped};
use super::repr::{self, to_repr, to_str};
use super::value::{Args, Py, Result, as_float, as_int, check_size, fail, int, py, type_name, undefined};
use crate::chat::engine::{attribute, item};

/// `format.format(*args, **kwargs)`.
///
/// # Errors
/// Fields without a value, specifications that a type does not take.
pub fn format(format: &str, args: &Args) -> Result<String> {
    let mut formatter = Formatter { args, next: 0, numbered: None };
    formatter.run(format, 3)
}

struct Formatter<'a> {
    args: &'a Args,
    next: usize,
    /// Whether fields are numbered by hand.
    numbered: Option<bool>,
}

impl Formatter<'_> {
    fn run(&mut self, format: &str, depth: usize) -> Result<String> {
        if depth == 0 {
            return fail("Max string recursion exceeded");
        }
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            out += &rest[..at];
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out += brace;
                rest = after;
                continue;
            }
            if brace == "}" {
                return fail("Single '}' encountered in format string");
            }
            let (mut open, mut bracket) = (1, false);
            let end = rest.char_indices().find(|&(_, c)| {
                match c {
                    '[' if open == 1 => bracket = true,
                    ']' => bracket = false,
                    '{' if !bracket => open += 1,
                    '}' if !bracket => open -= 1,
                    _ => {}
                }
                open == 0
            });
            let Some((end, _)) = end else { return fail("expected '}' before end of string") };
            let field = &rest[..end];
            rest = &rest[end + 1..];
            out += &self.field(field, depth)?;
            check_size(out.len())?;
        }
        Ok(out + rest)
    }

    fn field(&mut self, field: &str, depth: usize) -> Result<String> {
        let mut bracket = false;
        let split = field.char_indices().find(|&(_, c)| {
            bracket = c == '[' || (bracket && c != ']');
            !bracket && matches!(c, '!' | ':')
        });
        let (name, tail) = split.map_or((field, ""), |(i, _)| field.split_at(i));
        let (conversion, spec) = match tail.strip_prefix('!') {
            Some(tail) => {
                let mut chars = tail.chars();
                let conversion = chars.next();
                match chars.as_str() {
                    "" => (conversion, ""),
                    rest if rest.starts_with(':') => (conversion, &rest[1..]),
                    _ => return fail("expected ':' after conversion specifier"),
                }
            }
            None => (None, tail.strip_prefix(':').unwrap_or("")),
        };
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some('s') => Value::from(to_str(&value)?),
            Some('r') => Value::from(to_repr(&value)?),
            Some('a') => Value::from(repr::ascii(&to_repr(&value)?)),
            Some(other) => return fail(format!("Unknown conversion specifier {other}")),
        };
        let spec = self.run(spec, depth - 1)?;
        format_value(&value, &spec)
    }

    /// The value of `0.name[key]`.
    fn value(&mut self, name: &str) -> Result<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let by_hand = first.bytes().all(|b| b.is_ascii_digit());
        let mut value = if by_hand {
            if *self.numbered.get_or_insert(!first.is_empty()) == first.is_empty() {
                return fail(
                    "cannot switch between manual field specification and automatic field numbering",
                );
            }
            let index = if first.is_empty() { self.next } else { first.parse().unwrap_or(usize::MAX) };
            self.next += usize::from(first.is_empty());
            match self.args.positional.get(index) {
                Some(value) => value.clone(),
                None => {
                    return fail(format!("Replacement index {index} out of range for positional args tuple"));
                }
            }
        } else {
            match self.args.named.iter().find(|(n, _)| n == first) {
                Some((_, value)) => value.clone(),
                None => return fail(format!("KeyError: '{first}'")),
            }
        };
        while !rest.is_empty() {
            if let Some(tail) = rest.strip_prefix('.') {
                let end = tail.find(['.', '[']).unwrap_or(tail.len());
                value = attribute(&value, &tail[..end])?;
                rest = &tail[end..];
            } else {
                let Some(end) = rest.find(']').filter(|_| rest.starts_with('[')) else {
                    return fail("Only '.' or '[' may follow ']' in format field specifier");
                };
                let key = &rest[1..end];
                let key = key.parse().map_or_else(|_| Value::from(key), int);
                value = item(&value, &key)?;
                rest = &rest[end + 1..];
            }
        }
        Ok(value)
    }
}

#[derive(Debug)]
struct Spec {
    fill: char,
    align: Option<char>,
    sign: char,
    alternate: bool,
    width: usize,
    group: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

fn parse(spec: &str, of: &str) -> Result<Spec> {
    let mut chars: Vec<char> = spec.chars().collect();
    let is_align = |c: Option<&char>| c.copied().filter(|c| "<>=^".contains(*c));
    let mut parsed = Spec {
        fill: ' ',
        align: None,
        sign: '-',
        alternate: false,
        width: 0,
        group: None,
        precision: None,
        kind: None,
    };
    let filled = is_align(chars.get(1));
    if let Some(align) = filled {
        (parsed.fill, parsed.align) = (chars[0], Some(align));
        chars.drain(..2);
    } else if let Some(align) = is_align(chars.first()) {
        parsed.align = Some(align);
        chars.remove(0);
    }
    let mut at = chars.into_iter().peekable();
    if let Some(sign) = at.next_if(|c| "+- ".contains(*c)) {
        parsed.sign = sign;
    }
    if at.next_if_eq(&'z').is_some() {
        return fail("the option z in a format specifier is not supported");
    }
    parsed.alternate = at.next_if_eq(&'#').is_some();
    if filled.is_none() && at.next_if_eq(&'0').is_some() {
        // Before a width: zeros after the sign; strings are padded at their end.
        parsed.fill = '0';
        parsed.align = parsed.align.or(if of == "str" { None } else { Some('=') });
    }
    let number = |at: &mut std::iter::Peekable<std::vec::IntoIter<char>>| -> Result<Option<usize>> {
        let mut digits = String::new();
        while let Some(d) = at.next_if(char::is_ascii_digit) {
            digits.push(d);
        }
        if digits.is_empty() {
            return Ok(None);
        }
        digits
            .parse()
            .map_or_else(|_| fail("Too many decimal digits in format string"), |n| check_size(n).map(Some))
    };
    parsed.width = number(&mut at)?.unwrap_or(0);
    parsed.group = at.next_if(|c| ",_".contains(*c));
    if at.next_if_eq(&'.').is_some() {
        parsed.precision = match number(&mut at)? {
            None => return fail("Format specifier missing precision"),
            some => some,
        };
    }
    parsed.kind = at.next();
    if at.next().is_some() {
        return fail(format!("Invalid format specifier '{spec}' for object of type '{of}'"));
    }
    Ok(parsed)
}

/// `format(value, spec)`.
///
/// # Errors
/// A specification that the value's type does not take.
pub fn format_value(value: &Value, spec: &str) -> Result<String> {
    let kind = type_name(value);
    if spec.is_empty() {
        return to_str(value);
    }
    let spec_of = || parse(spec, kind);
    match py(value) {
        Py::Str(text) => string(text, &spec_of()?),
        Py::Float(x) => float(x, &spec_of()?),
        Py::Bool(_) | Py::Int(_) => {
            let spec = spec_of()?;
            let n = as_int(value).unwrap_or_default();
            // Without a type, `bool` is an `int` as well.
            if spec.kind.is_some_and(|c| "eEfFgG%".contains(c)) {
                float(n as f64, &spec)
            } else {
                integer(n, &spec)
            }
        }
        Py::Undefined => undefined("a format specification"),
        _ if as_float(value).is_none() => {
            fail(format!("unsupported format string passed to {kind}.__format__"))
        }
        _ => fail("unsupported format string"),
    }
}

fn string(text: &str, spec: &Spec) -> Result<String> {
    if spec.kind.is_some_and(|c| c != 's') {
        return fail(format!("Unknown format code '{}' for object of type 'str'", spec.kind.unwrap_or(' ')));
    }
    if spec.sign != '-' || spec.alternate || spec.group.is_some() || spec.align == Some('=') {
        return fail("this option is not allowed in string format specifier");
    }
    let text: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
    Ok(padded(spec, '<', "", &text))
}

fn padded(spec: &Spec, default: char, head: &str, body: &str) -> String {
    let room = spec.width.saturating_sub(head.chars().count() + body.chars().count());
    let fill = |n: usize| spec.fill.to_string().repeat(n);
    match spec.align.unwrap_or(default) {
        '<' => format!("{head}{body}{}", fill(room)),
        '^' => format!("{}{head}{body}{}", fill(room / 2), fill(room - room / 2)),
        '=' => format!("{head}{}{body}", fill(room)),
        _ => format!("{}{head}{body}", fill(room)),
    }
}

/// Digits with their groups; zeros that fill the width are grouped as well.
fn with_groups(spec: &Spec, digits: &str, size: usize, head: usize, tail: usize) -> String {
    let Some(separator) = spec.group else { return digits.to_owned() };
    let mut digits = digits.to_owned();
    if spec.fill == '0' && spec.align == Some('=') {
        let long = |digits: &str| head + tail + digits.len() + (digits.len() - 1) / size < spec.width;
        while long(&digits) {
            digits.insert(0, '0');
        }
    }
    grouped(&digits, separator, size)
}

fn sign(spec: &Spec, negative: bool) -> &'static str {
    match (negative, spec.sign) {
        (true, _) => "-",
        (_, '+') => "+",
        (_, ' ') => " ",
        _ => "",
    }
}

fn integer(n: i128, spec: &Spec) -> Result<String> {
    if spec.precision.is_some() {
        return fail("Precision not allowed in integer format specifier");
    }
    let size = n.unsigned_abs();
    let (prefix, digits) = match spec.kind.unwrap_or('d') {
        'd' | 'n' => ("", size.to_string()),
        'b' => ("0b", format!("{size:b}")),
        'o' => ("0o", format!("{size:o}")),
        'x' => ("0x", format!("{size:x}")),
        'X' => ("0X", format!("{size:X}")),
        'c' if spec.sign != '-' => return fail("Sign not allowed with integer format specifier 'c'"),
        'c' => match u32::try_from(n).ok().and_then(char::from_u32) {
            Some(c) => return Ok(padded(spec, '<', "", &c.to_string())),
            None => return fail("%c arg not in range(0x110000)"),
        },
        other => return fail(format!("Unknown format code '{other}' for object of type 'int'")),
    };
    let decimal = matches!(spec.kind, None | Some('d'));
    if spec.group == Some(',') && !decimal {
        return fail(format!("Cannot specify ',' with '{}'.", spec.kind.unwrap_or('d')));
    }
    if spec.group.is_some() && spec.kind == Some('n') {
        return fail("Cannot specify a separator with 'n'.");
    }
    let head = format!("{}{}", sign(spec, n < 0), if spec.alternate { prefix } else { "" });
    let digits = with_groups(spec, &digits, if decimal { 3 } else { 4 }, head.len(), 0);
    Ok(padded(spec, '>', &head, &digits))
}

fn float(x: f64, spec: &Spec) -> Result<String> {
    let negative = x.is_sign_negative() && !x.is_nan();
    let digits = match (spec.kind, spec.precision) {
        (Some('e' | 'E' | 'f' | 'F' | 'g' | 'G'), precision) => {
            float_digits(x, spec.kind.unwrap_or('g'), precision.unwrap_or(6), spec.alternate)
        }
        (Some('n'), precision) => float_digits(x, 'g', precision.unwrap_or(6), spec.alternate),
        (Some('%'), precision) => float_digits(x * 100.0, 'f', precision.unwrap_or(6), spec.alternate) + "%",
        (None, None) => repr::float(x.abs()),
        (None, Some(precision)) => {
            // Like g, with at least one digit after the point, and an exponent one digit earlier.
            let precision = precision.max(1);
            let scientific = format!("{:.*e}", precision - 1, x.abs());
            let exponent: i64 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
            let text = float_digits(x, 'g', precision, spec.alternate);
            if !x.is_finite() || text.contains(['.', 'e']) {
                text
            } else if exponent >= precision as i64 - 1 {
                let text = float_digits(x, 'e', precision - 1, spec.alternate);
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "+00"));
                let mantissa = if mantissa.contains('.') {
                    mantissa.trim_end_matches('0').trim_end_matches('.')
                } else {
                    mantissa
                };
                format!("{mantissa}e{exponent}")
            } else {
                text + ".0"
            }
        }
        (Some(other), _) => return fail(format!("Unknown format code '{other}' for object of type 'float'")),
    };
    let whole = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (whole, tail) = digits.split_at(whole);
    let head = sign(spec, negative);
    let body = if whole.is_empty() {
        tail.to_owned()
    } else {
        with_groups(spec, whole, 3, head.len(), tail.len()) + tail
    };
    Ok(padded(spec, '>', head, &body))
}
