//! The engine's values seen as Python's, and arguments bound as Python binds them.

use std::collections::HashMap;
use std::sync::Arc;

use minijinja::value::{Enumerator, Kwargs, Object, Tuple, Value};
use minijinja::{Error, ErrorKind};

use super::objects::{BoundMethod, Function, Generator, GroupTuple, Joiner, Namespace, Range, View};

/// What a function of the engine returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Texts and lists that one operation may make, in bytes and items.
pub const MAX_SIZE: usize = 100_000_000;

/// An error with a message.
pub fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidOperation, message.into()))
}

/// A value by its Python type.
pub enum Py<'a> {
    /// Jinja2's `Undefined`: a name or attribute that is not there.
    Undefined,
    /// Python's `None`, the only value of its type.
    None,
    /// Python's `bool`, which is also an integer.
    Bool(bool),
    /// `int`, as far as 128 bits go.
    Int(i128),
    /// Python's `float`, IEEE binary64.
    Float(f64),
    /// `str` (or `Markup`).
    Str(&'a str),
    /// Python's `list`, which templates can change.
    List(&'a [Value]),
    /// Python's `tuple`, which is a key of dictionaries as well.
    Tuple(&'a [Value]),
    /// Python's `dict`, in the order of insertion.
    Dict(&'a Dict),
    /// Functions, loops and other objects of the engine.
    Other,
}

/// Looks at a value.
pub fn py(value: &Value) -> Py<'_> {
    if value.is_undefined() {
        return Py::Undefined;
    }
    if value.is_none() {
        return Py::None;
    }
    if let Some(text) = value.as_str() {
        return Py::Str(text);
    }
    if let Some(list) = value.downcast_object_ref::<Vec<Value>>() {
        return Py::List(list);
    }
    if let Some(tuple) = value.downcast_object_ref::<Tuple>() {
        return Py::Tuple(tuple);
    }
    if let Some(tuple) = value.downcast_object_ref::<GroupTuple>() {
        return Py::Tuple(&tuple.0);
    }
    if let Some(dict) = value.downcast_object_ref::<Dict>() {
        return Py::Dict(dict);
    }
    match value.kind() {
        minijinja::value::ValueKind::Bool => Py::Bool(value.is_true()),
        minijinja::value::ValueKind::Number if value.is_integer() => {
            i128::try_from(value.clone()).map_or(Py::Other, Py::Int)
        }
        minijinja::value::ValueKind::Number => f64::try_from(value.clone()).map_or(Py::Other, Py::Float),
        _ => Py::Other,
    }
}

/// The name of a value's type, as Python's messages have it.
pub fn type_name(value: &Value) -> &'static str {
    match py(value) {
        Py::Undefined => "Undefined",
        Py::None => "NoneType",
        Py::Bool(_) => "bool",
        Py::Int(_) => "int",
        Py::Float(_) => "float",
        Py::Str(_) => "str",
        Py::List(_) => "list",
        Py::Tuple(_) => "tuple",
        Py::Dict(_) => "dict",
        Py::Other if value.downcast_object_ref::<Generator>().is_some() => "generator",
        Py::Other if value.downcast_object_ref::<Range>().is_some() => "range",
        Py::Other if value.downcast_object_ref::<BoundMethod>().is_some() => "method",
        Py::Other if value.downcast_object_ref::<Function>().is_some() => "function",
        Py::Other if value.downcast_object_ref::<Joiner>().is_some() => "joiner",
        Py::Other if value.downcast_object_ref::<Namespace>().is_some() => "Namespace",
        Py::Other => value.downcast_object_ref::<View>().map_or("object", |v| v.kind.type_name()),
    }
}

/// `int` (or `bool`) as a number.
pub fn as_int(value: &Value) -> Option<i128> {
    match py(value) {
        Py::Bool(b) => Some(b.into()),
        Py::Int(n) => Some(n),
        _ => None,
    }
}

/// `int` or `float` (or `bool`) as a float.
pub fn as_float(value: &Value) -> Option<f64> {
    match py(value) {
        Py::Float(x) => Some(x),
        _ => as_int(value).map(|n| n as f64),
    }
}

/// A number of something, from an `int`.
pub fn as_size(value: &Value) -> Result<usize> {
    match as_int(value) {
        Some(n) => check_size(usize::try_from(n.max(0)).unwrap_or(usize::MAX)),
        None => fail(format!("'{}' object cannot be interpreted as an integer", type_name(value))),
    }
}

/// Refuses sizes that no prompt needs.
pub fn check_size(size: usize) -> Result<usize> {
    if size > MAX_SIZE { fail(format!("a text or list of {size} items is too long")) } else { Ok(size) }
}

/// An error for what `Undefined` cannot do.
pub fn undefined<T>(what: &str) -> Result<T> {
    Err(Error::new(ErrorKind::UndefinedError, format!("cannot use {what} of an undefined value")))
}

/// The items of a value, as `iter` gives them.
pub fn iterate(value: &Value) -> Result<Vec<Value>> {
    match py(value) {
        Py::Undefined => Ok(Vec::new()),
        Py::Str(text) => Ok(text.chars().map(Value::from).collect()),
        Py::List(items) | Py::Tuple(items) => Ok(items.to_vec()),
        Py::Dict(dict) => Ok(dict.entries.iter().map(|(k, _)| k.clone()).collect()),
        _ => {
            if let Some(generator) = value.downcast_object_ref::<Generator>() {
                let (items, error) = generator.take();
                return error.map_or(Ok(items), Err);
            }
            if let Some(range) = value.downcast_object_ref::<Range>() {
                return Ok(range.items());
            }
            if let Some(view) = value.downcast_object_ref::<View>() {
                return Ok(view.items());
            }
            fail(format!("'{}' object is not iterable", type_name(value)))
        }
    }
}

/// Python's `len`; an error for what has none.
pub fn length(value: &Value) -> Result<usize> {
    match py(value) {
        Py::Undefined => Ok(0),
        Py::Str(text) => Ok(text.chars().count()),
        Py::List(items) | Py::Tuple(items) => Ok(items.len()),
        Py::Dict(dict) => Ok(dict.entries.len()),
        _ => {
            if let Some(range) = value.downcast_object_ref::<Range>() {
                return Ok(range.len());
            }
            if let Some(view) = value.downcast_object_ref::<View>() {
                return Ok(view.dict.entries.len());
            }
            fail(format!("object of type '{}' has no len()", type_name(value)))
        }
    }
}

/// An integer, a short one where it fits.
pub fn int(n: i128) -> Value {
    i64::try_from(n).map_or_else(|_| Value::from(n), Value::from)
}

/// A Python tuple of these items.
pub fn tuple(items: Vec<Value>) -> Value {
    Value::from(Tuple::from(items))
}

/// A key of a dictionary: what is equal in Python is equal here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Python's `None`, the only value of its type.
    None,
    /// Jinja2's `Undefined`: a name or attribute that is not there.
    Undefined,
    /// `bool`, `int`, and `float`s that are whole.
    Int(i128),
    /// Other floats, by their bits.
    Float(u64),
    /// A string, compared by its characters.
    Str(Arc<str>),
    /// A tuple of what can be keys itself.
    Tuple(Vec<Key>),
}

impl Key {
    /// The key that a value is.
    ///
    /// # Errors
    /// The value is not hashable.
    pub fn new(value: &Value) -> Result<Self> {
        Ok(match py(value) {
            Py::None => Key::None,
            Py::Undefined => Key::Undefined,
            Py::Bool(b) => Key::Int(b.into()),
            Py::Int(n) => Key::Int(n),
            Py::Float(x) if x.fract() == 0.0 && x.abs() < 1e30 => Key::Int(x as i128),
            Py::Float(x) => Key::Float(x.to_bits()),
            Py::Str(text) => Key::Str(text.into()),
            Py::Tuple(items) => Key::Tuple(items.iter().map(Key::new).collect::<Result<_>>()?),
            _ => return fail(format!("unhashable type: '{}'", type_name(value))),
        })
    }
}

/// A dictionary in the order of insertion.
#[derive(Clone, Debug, Default)]
pub struct Dict {
    /// Keys and values.
    pub entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
}

impl Dict {
    /// Adds a value, or replaces the one that the key has.
    ///
    /// # Errors
    /// The key is not hashable.
    pub fn insert(&mut self, key: Value, value: Value) -> Result<()> {
        match self.index.entry(Key::new(&key)?) {
            std::collections::hash_map::Entry::Occupied(at) => self.entries[*at.get()].1 = value,
            std::collections::hash_map::Entry::Vacant(at) => {
                at.insert(self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The key is not hashable.
    pub fn get(&self, key: &Value) -> Result<Option<&Value>> {
        Ok(self.index.get(&Key::new(key)?).map(|&i| &self.entries[i].1))
    }

    /// The value of a key that is a string.
    pub fn get_str(&self, key: &str) -> Option<&Value> {
        self.index.get(&Key::Str(key.into())).map(|&i| &self.entries[i].1)
    }

    /// A dictionary of what JSON has as an object.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, Value)>) -> Self {
        let mut dict = Dict::default();
        for (key, value) in pairs {
            match dict.index.entry(Key::Str(key.as_str().into())) {
                std::collections::hash_map::Entry::Occupied(at) => dict.entries[*at.get()].1 = value,
                std::collections::hash_map::Entry::Vacant(at) => {
                    at.insert(dict.entries.len());
                    dict.entries.push((Value::from(key), value));
                }
            }
        }
        dict
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get(key).ok().flatten().cloned()
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.get_str(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.entries.iter().map(|(k, _)| k.clone()).collect())
    }
}

/// Arguments of a call.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// Arguments by position, in their order.
    pub positional: Vec<Value>,
    /// Arguments by name, in the order of the call.
    pub named: Vec<(String, Value)>,
}

impl Args {
    /// Arguments as the engine passes them: the named ones are the last value.
    pub fn new(values: &[Value]) -> Result<Self> {
        let Some((last, rest)) = values.split_last() else { return Ok(Args::default()) };
        if !last.is_kwargs() {
            return Ok(Args { positional: values.to_vec(), named: Vec::new() });
        }
        let kwargs = Kwargs::try_from(last.clone())?;
        let mut named = Vec::new();
        for name in kwargs.args() {
            named.push((name.to_owned(), kwargs.peek::<Value>(name)?));
        }
        Ok(Args { positional: rest.to_vec(), named })
    }

    /// Arguments as the engine wants them.
    pub fn into_values(self) -> Vec<Value> {
        let mut values = self.positional;
        if !self.named.is_empty() {
            values.push(self.named.into_iter().collect::<Kwargs>().into());
        }
        values
    }

    /// Binds to parameters by name; the first `required` must be given.
    pub fn bind<const N: usize>(
        mut self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            let given = self.positional.len();
            return fail(format!("{function}() takes at most {N} arguments ({given} given)"));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional.drain(..)) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|n| *n == name) {
                Some(i) if bound[i].is_none() => bound[i] = Some(value),
                Some(_) => return fail(format!("{function}() got multiple values for argument '{name}'")),
                None => return fail(format!("{function}() got an unexpected keyword argument '{name}'")),
            }
        }
        match (0..required).find(|&i| bound[i].is_none()) {
            Some(i) => fail(format!("{function}() is missing the argument '{}'", names[i])),
            None => Ok(bound),
        }
    }

    /// Only positional arguments, `min..=max` of them.
    pub fn positional_only(self, function: &str, min: usize, max: usize) -> Result<Vec<Value>> {
        if let Some((name, _)) = self.named.first() {
            return fail(format!("{function}() takes no keyword argument '{name}'"));
        }
        let n = self.positional.len();
        if n < min || n > max {
            return fail(format!("{function}() takes {min} to {max} arguments ({n} given)"));
        }
        Ok(self.positional)
    }
}

/// A `str` argument.
pub fn text<'a>(value: &'a Value, function: &str) -> Result<&'a str> {
    match py(value) {
        Py::Str(text) => Ok(text),
        _ => fail(format!("{function}: expected str, got {}", type_name(value))),
    }
}

/// JSON as Python's `json.loads` gives it.
pub fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::from(s.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        serde_json::Value::Object(map) => {
            let pairs = map.iter().map(|(k, v)| (k.clone(), from_json(v)));
            Value::from_object(Dict::from_pairs(pairs))
        }
    }
}
