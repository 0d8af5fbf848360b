//! `json.dumps`, as transformers' `tojson` calls it.

use minijinja::value::Value;

use super::ops;
use super::repr;
use super::value::{Args, Dict, Py, Result, as_int, fail, py, text, type_name};

/// How deep lists may be nested.
const MAX_DEPTH: usize = 500;

struct Style {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
///
/// # Errors
/// A value that JSON does not have.
pub fn tojson(value: &Value, args: Args) -> Result<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort] = args.bind("tojson", names, 0)?;
    let truth = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let indent = match indent.filter(|v| !v.is_none()) {
        None => None,
        Some(v) => Some(match (py(&v), as_int(&v)) {
            (Py::Str(text), _) => text.to_owned(),
            (_, Some(n)) => {
                " ".repeat(super::value::check_size(usize::try_from(n.max(0)).unwrap_or(usize::MAX))?)
            }
            _ => return fail(format!("tojson: indent is a {}", type_name(&v))),
        }),
    };
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(pair) = separators.filter(|v| !v.is_none()) {
        match py(&pair) {
            Py::List([i, k]) | Py::Tuple([i, k]) => {
                item = text(i, "tojson")?.to_owned();
                key = text(k, "tojson")?.to_owned();
            }
            _ => return fail("tojson: separators are a pair of strings"),
        }
    }
    let style = Style { ascii: truth(ascii), indent, item, key, sort: truth(sort) };
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from(out))
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return fail(format!("tojson: lists nested more than {MAX_DEPTH} deep"));
        }
        match py(value) {
            Py::None => *out += "null",
            Py::Bool(b) => *out += if b { "true" } else { "false" },
            Py::Int(n) => *out += &n.to_string(),
            Py::Float(x) => *out += &float(x),
            Py::Str(text) => self.string(out, text),
            Py::List(items) | Py::Tuple(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(out, i, depth);
                    self.write(out, item, depth + 1)?;
                }
                self.close(out, items.is_empty(), depth, ']');
            }
            Py::Dict(dict) => {
                out.push('{');
                for (i, (key, value)) in self.entries(dict)?.iter().enumerate() {
                    self.separate(out, i, depth);
                    match py(key) {
                        Py::Str(text) => self.string(out, text),
                        Py::None => *out += "\"null\"",
                        Py::Bool(b) => *out += if b { "\"true\"" } else { "\"false\"" },
                        Py::Int(n) => *out += &format!("\"{n}\""),
                        Py::Float(x) => *out += &format!("\"{}\"", float(x)),
                        _ => {
                            let kind = type_name(key);
                            return fail(format!("keys must be str, int, float, bool or None, not {kind}"));
                        }
                    }
                    *out += &self.key;
                    self.write(out, value, depth + 1)?;
                }
                self.close(out, dict.entries.is_empty(), depth, '}');
            }
            _ => return fail(format!("Object of type {} is not JSON serializable", type_name(value))),
        }
        Ok(())
    }

    fn entries(&self, dict: &Dict) -> Result<Vec<(Value, Value)>> {
        let mut entries = dict.entries.clone();
        if self.sort {
            ops::sort(&mut entries, false)?;
        }
        Ok(entries)
    }

    fn separate(&self, out: &mut String, i: usize, depth: usize) {
        if i > 0 {
            *out += &self.item;
        }
        self.newline(out, depth + 1);
    }

    fn close(&self, out: &mut String, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.newline(out, depth);
        }
        out.push(bracket);
    }

    fn newline(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                *out += indent;
            }
        }
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => *out += "\\\"",
                '\\' => *out += "\\\\",
                '\n' => *out += "\\n",
                '\r' => *out += "\\r",
                '\t' => *out += "\\t",
                '\x08' => *out += "\\b",
                '\x0c' => *out += "\\f",
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        *out += &format!("\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn float(x: f64) -> String {
    match x {
        x if x.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        x => repr::float(x),
    }
}
