//! Jinja2's filters, by name.

pub mod numbers;
pub mod select;
pub mod sequences;
pub mod text;
pub mod wrap;

use minijinja::value::Value;

use crate::chat::engine;
use crate::chat::python::objects::Generator;
use crate::chat::python::value::{
    Args, Key, Py, Result, fail, int, iterate, length, py, text as str_of, type_name, undefined,
};
use crate::chat::python::{json, repr};

/// Names of all filters of Jinja2: what the test `filter` knows.
pub const NAMES: [&str; 54] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "items",
    "map",
    "min",
    "max",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
    "tojson",
];

/// Calls a filter.
///
/// # Errors
/// It does not exist, is not supported, or fails.
pub fn call(name: &str, value: &Value, args: Args) -> Result<Value> {
    match name {
        "abs" | "float" | "int" | "round" | "sum" | "filesizeformat" => numbers::call(name, value, args),
        "batch" | "dictsort" | "first" | "groupby" | "last" | "max" | "min" | "reverse" | "slice"
        | "sort" | "unique" => sequences::call(name, value, args),
        "map" | "reject" | "rejectattr" | "select" | "selectattr" => select::call(name, value, args),
        "attr" => {
            let [attribute] = args.bind(name, ["name"], 1)?;
            engine::attr_filter(value, &attribute.unwrap_or_default())
        }
        "count" | "length" => {
            args.positional_only(name, 0, 0)?;
            Ok(Value::from(length(value)?))
        }
        "d" | "default" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"], 0)?;
            let empty = boolean.is_some_and(|b| b.is_true()) && !value.is_true();
            Ok(if value.is_undefined() || empty {
                default.unwrap_or_else(|| "".into())
            } else {
                value.clone()
            })
        }
        "items" => {
            args.positional_only(name, 0, 0)?;
            match py(value) {
                Py::Undefined => Ok(Generator::of(std::iter::empty())),
                Py::Dict(_) => {
                    let view = crate::chat::python::methods::call(value, "items", Args::default())?;
                    Ok(Generator::of(iterate(&view)?.into_iter().map(Ok)))
                }
                // A generator: it fails when its first item is asked for.
                _ => Ok(Generator::of(std::iter::once(fail("Can only get item pairs from a mapping.")))),
            }
        }
        "join" => {
            let [separator, attribute] = args.bind(name, ["d", "attribute"], 0)?;
            let separator = separator.as_ref().map_or(Ok(String::new()), repr::to_str)?;
            let getter = Getter::new(attribute.as_ref(), None)?;
            let mut out = String::new();
            for (i, item) in iterate(value)?.iter().enumerate() {
                if i > 0 {
                    out += &separator;
                }
                out += &repr::to_str(&getter.get(item)?)?;
                crate::chat::python::value::check_size(out.len())?;
            }
            Ok(Value::from(out))
        }
        "list" => {
            args.positional_only(name, 0, 0)?;
            Ok(Value::from(iterate(value)?))
        }
        "pprint" => {
            args.positional_only(name, 0, 0)?;
            text::pprint(value).map(Value::from)
        }
        "random" | "urlize" => fail(format!("the filter {name} is not supported")),
        "tojson" => json::tojson(value, args),
        _ if NAMES.contains(&name) => text::call(name, value, args),
        _ => fail(format!("No filter named '{name}'.")),
    }
}

/// Gets an attribute of items, by a path such as `a.b.0`, or the items themselves.
pub struct Getter {
    path: Vec<Value>,
    default: Option<Value>,
}

impl Getter {
    /// A getter for an attribute, if there is one.
    ///
    /// # Errors
    /// The attribute is neither a string nor an integer.
    pub fn new(attribute: Option<&Value>, default: Option<Value>) -> Result<Self> {
        let path = match attribute {
            None => Vec::new(),
            Some(a) if a.is_none() => Vec::new(),
            Some(a) => match py(a) {
                Py::Str(path) => path
                    .split('.')
                    .map(|part| match part.parse() {
                        Ok(n) if part.bytes().all(|b| b.is_ascii_digit()) => int(n),
                        _ => Value::from(part),
                    })
                    .collect(),
                _ => vec![a.clone()],
            },
        };
        Ok(Getter { path, default: default.filter(|d| !d.is_none()) })
    }

    /// What an item has there.
    ///
    /// # Errors
    /// Something of an undefined value is asked for.
    pub fn get(&self, item: &Value) -> Result<Value> {
        let mut value = item.clone();
        for part in &self.path {
            value = engine::item(&value, part)?;
            if let (true, Some(default)) = (value.is_undefined(), &self.default) {
                value = default.clone();
            }
        }
        Ok(value)
    }
}

/// What is compared when case does not matter.
fn folded(value: Value, case_sensitive: bool) -> Value {
    match py(&value) {
        Py::Str(text) if !case_sensitive => Value::from(text.to_lowercase()),
        _ => value,
    }
}

/// Getters of `a,b`: several attributes that are compared one after the other.
fn getters(attribute: Option<&Value>) -> Result<Vec<Getter>> {
    match attribute.and_then(|a| a.as_str()) {
        Some(paths) => paths.split(',').map(|p| Getter::new(Some(&Value::from(p)), None)).collect(),
        None => Ok(vec![Getter::new(attribute, None)?]),
    }
}

fn truth(value: Option<Value>) -> bool {
    value.is_some_and(|v| v.is_true())
}

/// The text of a value, as `soft_str` has it.
fn soft_str(value: &Value) -> Result<String> {
    repr::to_str(value)
}

/// A hashable value as a key.
fn key(value: &Value) -> Result<Key> {
    Key::new(value)
}

/// A `str` that a filter needs.
fn need_str<'a>(value: &'a Value, filter: &str) -> Result<&'a str> {
    if value.is_undefined() {
        return undefined(&format!("the filter {filter}"));
    }
    str_of(value, filter)
}

/// An error for a value of another type than a filter takes.
fn wrong_type<T>(filter: &str, value: &Value) -> Result<T> {
    fail(format!("the filter {filter} does not take a value of type {}", type_name(value)))
}
