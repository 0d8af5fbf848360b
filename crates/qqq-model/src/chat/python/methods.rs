//! Methods of `str`, `list`, `tuple` and `dict`, by name. Those that change their object are refused, as
//! the sandbox does.

use std::sync::Arc;

use minijinja::value::Value;

use super::chars::casefold;
use super::objects::{View, ViewKind};
use super::ops::equal;
use super::repr::to_repr;
use super::value::{
    Args, Dict, Py, Result, as_int, as_size, check_size, fail, iterate, py, text, tuple, type_name,
};
use super::{format, split, strings};

/// Methods of `str`.
const STR: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const LIST: &[&str] = &["copy", "count", "index"];
const TUPLE: &[&str] = &["count", "index"];
const DICT: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];
/// What the sandbox refuses.
const LIST_CHANGES: &[&str] = &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const DICT_CHANGES: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
/// Attributes of numbers, none of which is worth having.
const NUMBER: &[&str] = &[
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "denominator",
    "from_bytes",
    "fromhex",
    "hex",
    "imag",
    "is_integer",
    "numerator",
    "real",
    "to_bytes",
];

/// What an attribute of a value of Python's own types is.
pub enum Found {
    /// A method that can be called.
    Method,
    /// A method that the sandbox refuses.
    Refused,
    /// Something that is not supported.
    Unsupported,
    /// Its type has no such attribute.
    Nothing,
}

/// Looks for an attribute.
pub fn lookup(value: &Value, name: &str) -> Found {
    let (methods, refused): (&[&str], &[&str]) = match py(value) {
        Py::Str(_) => (STR, &[]),
        Py::List(_) => (LIST, LIST_CHANGES),
        Py::Tuple(_) => (TUPLE, &[]),
        Py::Dict(_) => (DICT, DICT_CHANGES),
        Py::Bool(_) | Py::Int(_) | Py::Float(_) if NUMBER.contains(&name) => return Found::Unsupported,
        _ => return Found::Nothing,
    };
    if methods.contains(&name) {
        Found::Method
    } else if refused.contains(&name) {
        Found::Refused
    } else {
        Found::Nothing
    }
}

/// Calls a method that [`lookup`] has found.
///
/// # Errors
/// Arguments that the method does not take.
pub fn call(value: &Value, name: &str, args: Args) -> Result<Value> {
    match py(value) {
        Py::Str(text) => {
            let with_text = args.positional.iter().any(|v| matches!(py(v), Py::Str(_)));
            if value.is_safe() && (with_text || matches!(name, "format" | "join")) {
                return fail(format!("the method {name} of an escaped string (Markup) is not supported"));
            }
            let result = str_method(text, name, args)?;
            Ok(match result.as_str() {
                Some(text) if value.is_safe() => Value::from_safe_string(text.to_owned()),
                _ => result,
            })
        }
        Py::List(items) | Py::Tuple(items) => {
            list_method(items, name, args, matches!(py(value), Py::Tuple(_)))
        }
        Py::Dict(_) => dict_method(value, name, args),
        _ => fail(format!("'{}' object has no method {name}", type_name(value))),
    }
}

fn optional_int(value: Option<&Value>, function: &str) -> Result<Option<i128>> {
    match value {
        None => Ok(None),
        Some(v) if v.is_none() => Ok(None),
        Some(v) => match as_int(v) {
            Some(n) => Ok(Some(n)),
            None => fail(format!("{function}: an integer is required, not {}", type_name(v))),
        },
    }
}

fn texts(items: Vec<String>) -> Value {
    Value::from(items.into_iter().map(Value::from).collect::<Vec<_>>())
}

fn str_method(s: &str, name: &str, args: Args) -> Result<Value> {
    if let Some(answer) = strings::is(s, name) {
        args.positional_only(name, 0, 0)?;
        return Ok(Value::from(answer));
    }
    Ok(match name {
        "upper" | "lower" | "capitalize" | "title" | "swapcase" | "casefold" => {
            args.positional_only(name, 0, 0)?;
            Value::from(match name {
                "upper" => s.to_uppercase(),
                "lower" => s.to_lowercase(),
                "capitalize" => strings::capitalize(s),
                "title" => strings::title(s),
                "swapcase" => strings::swapcase(s),
                _ => casefold(s),
            })
        }
        "strip" | "lstrip" | "rstrip" => {
            let args = args.positional_only(name, 0, 1)?;
            let chars = args.first().filter(|v| !v.is_none()).map(|v| text(v, name)).transpose()?;
            Value::from(split::strip(s, chars, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let [separator, limit] = args.bind(name, ["sep", "maxsplit"], 0)?;
            let separator = separator.as_ref().filter(|v| !v.is_none()).map(|v| text(v, name)).transpose()?;
            if separator == Some("") {
                return fail("empty separator");
            }
            let limit = match limit {
                Some(v) => as_int(&v).map_or_else(|| fail(format!("{name}: maxsplit is no integer")), Ok)?,
                None => -1,
            };
            texts(split::split(s, separator, limit, name == "rsplit"))
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"], 0)?;
            let lines = split::lines(s, keep.is_some_and(|v| v.is_true()));
            texts(lines.into_iter().map(str::to_owned).collect())
        }
        "partition" | "rpartition" => {
            let args = args.positional_only(name, 1, 1)?;
            let separator = text(&args[0], name)?;
            if separator.is_empty() {
                return fail("empty separator");
            }
            tuple(split::partition(s, separator, name == "rpartition").into_iter().map(Value::from).collect())
        }
        "removeprefix" | "removesuffix" => {
            let args = args.positional_only(name, 1, 1)?;
            let part = text(&args[0], name)?;
            let rest = if name == "removeprefix" { s.strip_prefix(part) } else { s.strip_suffix(part) };
            Value::from(rest.unwrap_or(s))
        }
        "replace" => {
            let args = args.positional_only(name, 2, 3)?;
            let limit =
                args.get(2).map(|v| as_int(v).map_or_else(|| fail("replace: count is no integer"), Ok));
            let limit = limit.transpose()?.unwrap_or(-1);
            Value::from(strings::replace(s, text(&args[0], name)?, text(&args[1], name)?, limit)?)
        }
        "ljust" | "rjust" | "center" => {
            let args = args.positional_only(name, 1, 2)?;
            let fill = args.get(1).map_or(Ok(" "), |v| text(v, name))?;
            let mut chars = fill.chars();
            let (Some(fill), None) = (chars.next(), chars.next()) else {
                return fail("The fill character must be exactly one character long");
            };
            let side: fn(usize, usize) -> usize = match name {
                "ljust" => |_, _| 0,
                "rjust" => |room, _| room,
                _ => strings::center,
            };
            Value::from(strings::pad(s, as_size(&args[0])?, fill, side)?)
        }
        "zfill" => Value::from(strings::zfill(s, as_size(&args.positional_only(name, 1, 1)?[0])?)?),
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"], 0)?;
            Value::from(strings::expandtabs(s, size.as_ref().map_or(Ok(8), as_size)?)?)
        }
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
            let args = args.positional_only(name, 1, 3)?;
            let start = optional_int(args.get(1), name)?;
            let part = strings::part(s, start, optional_int(args.get(2), name)?);
            if name.ends_with("with") {
                return ends(part, name, &args[0]);
            }
            let needle = text(&args[0], name)?;
            if name == "count" {
                return Ok(Value::from(strings::count(part, needle)));
            }
            match strings::find(part, needle, name.starts_with('r')) {
                Some(at) => Value::from(at),
                None if name.ends_with("find") => Value::from(-1),
                None => return fail("substring not found"),
            }
        }
        "join" => {
            let args = args.positional_only(name, 1, 1)?;
            if !matches!(py(&args[0]), Py::Undefined) && iterate_check(&args[0]) {
                return fail("can only join an iterable");
            }
            let mut out = String::new();
            for (i, item) in iterate(&args[0])?.iter().enumerate() {
                if i > 0 {
                    out += s;
                }
                match py(item) {
                    Py::Str(text) => out += text,
                    _ => {
                        return fail(format!(
                            "sequence item {i}: expected str instance, {} found",
                            type_name(item)
                        ));
                    }
                }
                check_size(out.len())?;
            }
            Value::from(out)
        }
        "format" => Value::from(format::format(s, &args)?),
        "format_map" => {
            let map = args.positional_only(name, 1, 1)?;
            let Py::Dict(dict) = py(&map[0]) else { return fail("format_map: expected a mapping") };
            let named = dict.entries.iter().filter_map(|(k, v)| Some((k.as_str()?.to_owned(), v.clone())));
            Value::from(format::format(s, &Args { positional: Vec::new(), named: named.collect() })?)
        }
        _ => return fail(format!("the method {name} of str is not supported")),
    })
}

fn iterate_check(value: &Value) -> bool {
    matches!(py(value), Py::None | Py::Bool(_) | Py::Int(_) | Py::Float(_))
}

fn ends(part: Option<(usize, &str)>, name: &str, what: &Value) -> Result<Value> {
    let parts = match py(what) {
        Py::Tuple(items) => items.to_vec(),
        _ => vec![what.clone()],
    };
    for end in &parts {
        let Py::Str(end) = py(end) else {
            return fail(format!("{name} first arg must be str or a tuple of str, not {}", type_name(what)));
        };
        let found = part
            .is_some_and(|(_, t)| if name == "startswith" { t.starts_with(end) } else { t.ends_with(end) });
        if found {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn list_method(items: &[Value], name: &str, args: Args, is_tuple: bool) -> Result<Value> {
    match name {
        "copy" if !is_tuple => {
            args.positional_only(name, 0, 0)?;
            Ok(Value::from(items.to_vec()))
        }
        "count" => {
            let args = args.positional_only(name, 1, 1)?;
            Ok(Value::from(items.iter().filter(|v| equal(v, &args[0])).count()))
        }
        _ => {
            let args = args.positional_only(name, 1, 3)?;
            let len = items.len() as i128;
            let bound = |i: usize, default: i128| -> Result<usize> {
                let at = optional_int(args.get(i), name)?.unwrap_or(default);
                let at = if at < 0 { (at + len).max(0) } else { at };
                Ok(usize::try_from(at.min(len)).unwrap_or_default())
            };
            let (start, end) = (bound(1, 0)?, bound(2, len)?);
            match (start..end).find(|&i| equal(&items[i], &args[0])) {
                Some(at) => Ok(Value::from(at)),
                None => fail(format!("{} is not in list", to_repr(&args[0])?)),
            }
        }
    }
}

fn dict_method(value: &Value, name: &str, args: Args) -> Result<Value> {
    let Some(dict) = value.downcast_object::<Dict>() else { return fail("no dictionary") };
    let view = |kind, args: Args, dict: Arc<Dict>| {
        args.positional_only(name, 0, 0)?;
        Ok(Value::from_object(View { kind, dict }))
    };
    match name {
        "items" => view(ViewKind::Items, args, dict),
        "keys" => view(ViewKind::Keys, args, dict),
        "values" => view(ViewKind::Values, args, dict),
        "copy" => {
            args.positional_only(name, 0, 0)?;
            Ok(Value::from_object(Dict::clone(&dict)))
        }
        "get" => {
            let args = args.positional_only(name, 1, 2)?;
            let found = dict.get(&args[0])?.cloned();
            Ok(found.unwrap_or_else(|| args.get(1).cloned().unwrap_or_else(|| Value::from(()))))
        }
        _ => from_keys(args),
    }
}

/// `dict.fromkeys`.
///
/// # Errors
/// Keys that are not hashable.
pub fn from_keys(args: Args) -> Result<Value> {
    let args = args.positional_only("fromkeys", 1, 2)?;
    let value = args.get(1).cloned().unwrap_or_else(|| Value::from(()));
    let mut dict = Dict::default();
    for key in iterate(&args[0])? {
        dict.insert(key, value.clone())?;
    }
    Ok(Value::from_object(dict))
}

/// `range(...)`, as long as the sandbox lets it be.
///
/// # Errors
/// Arguments that are no integers, a step of 0, more than 100,000 items.
pub fn range(args: Args) -> Result<Value> {
    let args = args.positional_only("range", 1, 3)?;
    let mut numbers = Vec::new();
    for arg in &args {
        match as_int(arg).filter(|n| n.abs() < 1 << 62) {
            Some(n) => numbers.push(n),
            None => return fail(format!("'{}' object cannot be interpreted as an integer", type_name(arg))),
        }
    }
    let (start, stop) = if numbers.len() == 1 { (0, numbers[0]) } else { (numbers[0], numbers[1]) };
    let step = numbers.get(2).copied().unwrap_or(1);
    if step == 0 {
        return fail("range() arg 3 must not be zero");
    }
    let range = super::objects::Range { start, stop, step };
    if range.len() > 100_000 {
        return fail("Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
    }
    Ok(Value::from_object(range))
}
