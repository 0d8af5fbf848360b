//! Jinja2's tests (`is ...`), by name.

use minijinja::value::Value;

use super::filters;
use super::python::objects::{BoundMethod, Function, Joiner, Macro, Range, View};
use super::python::ops::{binary, compare, equal};
use super::python::repr::to_str;
use super::python::strings;
use super::python::value::{Args, Py, Result, as_float, as_int, fail, py, undefined};

/// Names of all tests.
const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Whether a value passes a test.
///
/// # Errors
/// The test does not exist, or fails.
pub fn call(name: &str, value: &Value, args: Args) -> Result<bool> {
    if !NAMES.contains(&name) {
        return fail(format!("No test named '{name}'."));
    }
    let operands = usize::from(matches!(
        name,
        "divisibleby"
            | "sameas"
            | "in"
            | "=="
            | "eq"
            | "equalto"
            | "!="
            | "ne"
            | ">"
            | "gt"
            | "greaterthan"
            | "ge"
            | ">="
            | "<"
            | "lt"
            | "lessthan"
            | "<="
            | "le"
    ));
    let args = match (name, args.named.first()) {
        ("divisibleby", Some((n, v))) if n == "num" && args.positional.is_empty() => vec![v.clone()],
        ("in", Some((n, v))) if n == "seq" && args.positional.is_empty() => vec![v.clone()],
        ("sameas", Some((n, v))) if n == "other" && args.positional.is_empty() => vec![v.clone()],
        _ => args.positional_only(name, operands, operands)?,
    };
    let modulo = |by: &Value, rest: i64| {
        if matches!(py(value), Py::Str(_)) {
            return fail(format!("the test {name} does not take a string"));
        }
        Ok(equal(&binary(value, "%", by)?, &Value::from(rest)))
    };
    Ok(match name {
        "odd" => modulo(&Value::from(2), 1)?,
        "even" => modulo(&Value::from(2), 0)?,
        "divisibleby" => modulo(&args[0], 0)?,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" => value.as_str().is_some_and(|n| filters::NAMES.contains(&n)),
        "test" => value.as_str().is_some_and(|n| NAMES.contains(&n)),
        "none" => value.is_none(),
        "boolean" => matches!(py(value), Py::Bool(_)),
        "false" => matches!(py(value), Py::Bool(false)),
        "true" => matches!(py(value), Py::Bool(true)),
        "integer" => matches!(py(value), Py::Int(_)),
        "float" => matches!(py(value), Py::Float(_)),
        "lower" => strings::is(&to_str(value)?, "islower").unwrap_or(false),
        "upper" => strings::is(&to_str(value)?, "isupper").unwrap_or(false),
        "string" => matches!(py(value), Py::Str(_)),
        "mapping" => matches!(py(value), Py::Dict(_)),
        "number" => as_float(value).is_some(),
        "sequence" => {
            // `Undefined` has a length, and asking it for `__getitem__` is no error.
            matches!(py(value), Py::Undefined | Py::Str(_) | Py::List(_) | Py::Tuple(_) | Py::Dict(_))
                || value.downcast_object_ref::<Range>().is_some()
        }
        "iterable" => match py(value) {
            Py::None | Py::Bool(_) | Py::Int(_) | Py::Float(_) => false,
            Py::Other => is_iterable_object(value),
            _ => true,
        },
        "callable" => is_callable(value),
        "sameas" => same(value, &args[0])?,
        "escaped" => value.is_safe(),
        "in" => compare(value, "in", &args[0])?,
        "==" | "eq" | "equalto" => equal(value, &args[0]),
        "!=" | "ne" => !equal(value, &args[0]),
        ">" | "gt" | "greaterthan" => compare(value, ">", &args[0])?,
        ">=" | "ge" => compare(value, ">=", &args[0])?,
        "<" | "lt" | "lessthan" => compare(value, "<", &args[0])?,
        _ => compare(value, "<=", &args[0])?,
    })
}

fn is_iterable_object(value: &Value) -> bool {
    // A generator is, and must not be used up by asking.
    value.downcast_object_ref::<super::python::objects::Generator>().is_some()
        || value.downcast_object_ref::<View>().is_some()
        || value.downcast_object_ref::<Range>().is_some()
        || super::engine::is_loop(value)
}

fn is_callable(value: &Value) -> bool {
    value.is_undefined()
        || value.downcast_object_ref::<Function>().is_some()
        || value.downcast_object_ref::<BoundMethod>().is_some()
        || value.downcast_object_ref::<Macro>().is_some()
        || value.downcast_object_ref::<Joiner>().is_some()
        || super::engine::is_loop(value)
}

/// `a is b`, where that does not depend on how Python keeps its objects.
fn same(a: &Value, b: &Value) -> Result<bool> {
    match (py(a), py(b)) {
        (Py::None, Py::None) => Ok(true),
        (Py::Bool(a), Py::Bool(b)) => Ok(a == b),
        (Py::Undefined, _) | (_, Py::Undefined) => undefined("the test sameas"),
        (Py::Str(x), Py::Str(y)) if x == y => fail("`is sameas` of two equal strings is not supported"),
        (Py::Float(_), Py::Float(_)) if equal(a, b) => fail("`is sameas` of two floats is not supported"),
        (Py::Int(x), Py::Int(y)) if x == y && as_int(a).is_none_or(|n| !(-5..=256).contains(&n)) => {
            fail("`is sameas` of two integers is not supported")
        }
        (Py::Int(x), Py::Int(y)) => Ok(x == y),
        (Py::List(x), Py::List(y)) | (Py::Tuple(x), Py::Tuple(y)) => Ok(std::ptr::eq(x, y)),
        (Py::Dict(x), Py::Dict(y)) => Ok(std::ptr::eq(x, y)),
        (Py::Other, Py::Other) => Ok(equal(a, b)),
        _ => Ok(false),
    }
}
