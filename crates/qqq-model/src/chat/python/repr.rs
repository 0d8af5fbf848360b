//! `str` and `repr` of values.

use minijinja::value::Value;

use super::chars::is_printable;
use super::objects::{Cycler, Macro, Namespace, Range, View};
use super::value::{Py, Result, fail, py, type_name};

/// How deep lists may be nested to be shown.
const MAX_DEPTH: usize = 500;

/// `str(value)`: what is printed.
///
/// # Errors
/// A value whose text has an address in it, another at each run.
pub fn to_str(value: &Value) -> Result<String> {
    match py(value) {
        Py::Undefined => Ok(String::new()),
        Py::Str(text) => Ok(text.to_owned()),
        _ => to_repr(value),
    }
}

/// `repr(value)`.
///
/// # Errors
/// A value whose text has an address in it, another at each run.
pub fn to_repr(value: &Value) -> Result<String> {
    let mut out = String::new();
    write(&mut out, value, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return fail(format!("lists nested more than {MAX_DEPTH} deep cannot be printed"));
    }
    let list = |out: &mut String, items: &[Value], begin: &str, end: &str| -> Result<()> {
        *out += begin;
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                *out += ", ";
            }
            write(out, item, depth + 1)?;
        }
        *out += end;
        Ok(())
    };
    match py(value) {
        Py::Undefined => *out += "Undefined",
        Py::None => *out += "None",
        Py::Bool(b) => *out += if b { "True" } else { "False" },
        Py::Int(n) => *out += &n.to_string(),
        Py::Float(x) => *out += &float(x),
        Py::Str(text) if value.is_safe() => *out += &format!("Markup({})", string(text)),
        Py::Str(text) => *out += &string(text),
        Py::List(items) => list(out, items, "[", "]")?,
        Py::Tuple(items) => list(out, items, "(", if items.len() == 1 { ",)" } else { ")" })?,
        Py::Dict(dict) => mapping(out, &dict.entries, depth)?,
        Py::Other => other(out, value, depth)?,
    }
    Ok(())
}

fn mapping(out: &mut String, entries: &[(Value, Value)], depth: usize) -> Result<()> {
    out.push('{');
    for (i, (key, value)) in entries.iter().enumerate() {
        if i > 0 {
            *out += ", ";
        }
        write(out, key, depth + 1)?;
        *out += ": ";
        write(out, value, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

fn other(out: &mut String, value: &Value, depth: usize) -> Result<()> {
    if let Some(Range { start, stop, step }) = value.downcast_object_ref::<Range>() {
        *out += &if *step == 1 {
            format!("range({start}, {stop})")
        } else {
            format!("range({start}, {stop}, {step})")
        };
    } else if let Some(view) = value.downcast_object_ref::<View>() {
        *out += view.kind.type_name();
        out.push('(');
        write(out, &Value::from(view.items()), depth)?;
        out.push(')');
    } else if let Some(namespace) = value.downcast_object_ref::<Namespace>() {
        *out += "<Namespace ";
        mapping(out, &namespace.attributes().entries, depth)?;
        out.push('>');
    } else if let Some(macro_) = value.downcast_object_ref::<Macro>() {
        *out += &format!("<Macro {}>", string(&macro_.name));
    } else if let (Ok(index), Ok(length)) = (value.get_attr("index"), value.get_attr("length"))
        && let (Py::Int(index), Py::Int(length)) = (py(&index), py(&length))
    {
        *out += &format!("<LoopContext {index}/{length}>");
    } else {
        let what = if value.downcast_object_ref::<Cycler>().is_some() { "cycler" } else { type_name(value) };
        return fail(format!("printing a {what} is not supported: its text has an address in it"));
    }
    Ok(())
}

/// `repr` of a string.
pub fn string(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => escape(&mut out, c),
        }
    }
    out.push(quote);
    out
}

/// `\x`, `\u` or `\U` and the code of a character.
fn escape(out: &mut String, c: char) {
    *out += &match u32::from(c) {
        n @ 0..=0xff => format!("\\x{n:02x}"),
        n @ 0x100..=0xffff => format!("\\u{n:04x}"),
        n => format!("\\U{n:08x}"),
    };
}

/// `ascii` of a text that is a `repr`.
pub fn ascii(repr: &str) -> String {
    let mut out = String::new();
    for c in repr.chars() {
        if c.is_ascii() { out.push(c) } else { escape(&mut out, c) }
    }
    out
}

/// `repr` of a float: the shortest digits that read back as it, with an exponent below 1e-4 and from 1e16.
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{x:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let text = format!("{x}");
        return if text.contains('.') { text } else { text + ".0" };
    }
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}
