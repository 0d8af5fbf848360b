//! Filters of numbers.

use minijinja::value::Value;

use super::{Getter, truth, wrong_type};
use crate::chat::python::numbers::{parse_float, parse_int, round};
use crate::chat::python::value::{Args, Py, Result, as_float, as_int, fail, int, iterate, py, undefined};
use crate::chat::python::{numbers, ops};

pub(super) fn call(name: &str, value: &Value, args: Args) -> Result<Value> {
    if value.is_undefined() && matches!(name, "abs" | "round") {
        return undefined(&format!("the filter {name}"));
    }
    match name {
        "abs" => {
            args.positional_only(name, 0, 0)?;
            match py(value) {
                Py::Float(x) => Ok(Value::from(x.abs())),
                Py::Bool(_) | Py::Int(_) => Ok(int(as_int(value).unwrap_or_default().abs())),
                _ => wrong_type(name, value),
            }
        }
        "int" => {
            let [default, base] = args.bind(name, ["default", "base"], 0)?;
            let default = default.unwrap_or_else(|| Value::from(0));
            let base = base.as_ref().map_or(Some(10), as_int).and_then(|b| u32::try_from(b).ok());
            let Some(base) = base.filter(|b| *b == 0 || (2..=36).contains(b)) else {
                return fail("int() base must be >= 2 and <= 36, or 0");
            };
            to_int(value, base, default)
        }
        "float" => {
            let [default] = args.bind(name, ["default"], 0)?;
            let default = default.unwrap_or_else(|| Value::from(0.0));
            Ok(match py(value) {
                Py::Undefined => return undefined("float()"),
                Py::Str(text) => parse_float(text).map_or(default, Value::from),
                _ => as_float(value).map_or(default, Value::from),
            })
        }
        "round" => {
            let [precision, method] = args.bind(name, ["precision", "method"], 0)?;
            let precision = precision.as_ref().map_or(Some(0), as_int);
            let Some(precision) = precision else { return fail("round: the precision is no integer") };
            let method =
                method.as_ref().map_or(Some("common"), |m| m.as_str()).unwrap_or_default().to_owned();
            rounded(value, precision, &method)
        }
        "sum" => {
            let [attribute, start] = args.bind(name, ["attribute", "start"], 0)?;
            let getter = Getter::new(attribute.as_ref(), None)?;
            let mut total = start.unwrap_or_else(|| Value::from(0));
            if matches!(py(&total), Py::Str(_)) {
                return fail("sum() can't sum strings [use ''.join(seq) instead]");
            }
            for item in iterate(value)? {
                total = ops::binary(&total, "+", &getter.get(&item)?)?;
            }
            Ok(total)
        }
        _ => {
            let [binary] = args.bind(name, ["binary"], 0)?;
            let bytes = match py(value) {
                Py::Undefined => return undefined("float()"),
                Py::Str(text) => parse_float(text),
                _ => as_float(value),
            };
            match bytes {
                Some(bytes) => Ok(Value::from(file_size(bytes, truth(binary)))),
                None => wrong_type(name, value),
            }
        }
    }
}

fn to_int(value: &Value, base: u32, default: Value) -> Result<Value> {
    let from_float = |x: f64, default: Value| -> Result<Value> {
        if !x.is_finite() {
            return Ok(default);
        }
        if x.abs() >= 1e38 {
            return fail("integers of more than 128 bits are not supported");
        }
        Ok(int(x.trunc() as i128))
    };
    match py(value) {
        Py::Undefined => undefined("int()"),
        Py::Str(text) => match (parse_int(text, base), parse_float(text)) {
            (Some(n), _) => Ok(int(n)),
            (None, Some(x)) => from_float(x, default),
            _ => Ok(default),
        },
        Py::Float(x) => from_float(x, default),
        _ => Ok(as_int(value).map_or(default, int)),
    }
}

fn rounded(value: &Value, precision: i128, method: &str) -> Result<Value> {
    if !matches!(method, "common" | "ceil" | "floor") {
        return fail("method must be common, ceil or floor");
    }
    if method == "common" {
        return match (py(value), as_int(value)) {
            (Py::Float(x), _) => Ok(Value::from(round(x, precision))),
            (_, Some(n)) if precision >= 0 => Ok(int(n)),
            (_, Some(n)) => {
                let power = u32::try_from(-precision).ok().and_then(|p| 10i128.checked_pow(p));
                let Some(power) = power else { return Ok(int(0)) };
                let (down, rest) = (n.div_euclid(power), n.rem_euclid(power));
                let up = rest * 2 > power || (rest * 2 == power && down % 2 != 0);
                Ok(int((down + i128::from(up)) * power))
            }
            _ => wrong_type("round", value),
        };
    }
    let Some(x) = as_float(value) else { return wrong_type("round", value) };
    let power = 10f64.powi(i32::try_from(precision).unwrap_or(i32::MAX));
    let scaled = x * power;
    if !scaled.is_finite() {
        return fail("cannot convert float infinity or NaN to integer");
    }
    let whole = if method == "ceil" { scaled.ceil() } else { scaled.floor() };
    // An integer divided by one: never -0.
    Ok(Value::from(whole / power + 0.0))
}

fn file_size(bytes: f64, binary: bool) -> String {
    let (base, prefixes): (f64, [&str; 8]) = if binary {
        (1024.0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"])
    } else {
        (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"])
    };
    if bytes == 1.0 {
        return "1 Byte".into();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc() as i128);
    }
    let last = prefixes.len() - 1;
    let unit = |i: usize| base.powi(i as i32 + 2);
    let i = (0..last).find(|&i| bytes < unit(i)).unwrap_or(last);
    format!("{} {}", numbers::float_digits(base * bytes / unit(i), 'f', 1, false), prefixes[i])
}
