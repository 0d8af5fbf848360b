//! Objects that templates meet: generators, ranges, views of dictionaries, namespaces, bound methods,
//! macros, `joiner` and `cycler`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};
use minijinja::{Error, State};

use super::value::{Args, Dict, Result, fail, int, tuple};
use crate::chat::engine::call_method;

/// A generator: its items are taken once. What made it has run to its end or to its first error, which
/// whoever reads that far gets.
#[derive(Debug)]
pub struct Generator(Mutex<(std::collections::VecDeque<Value>, Option<Error>)>);

impl Generator {
    /// A generator of what an iterator gives.
    pub fn of(items: impl Iterator<Item = Result<Value>>) -> Value {
        let mut taken = std::collections::VecDeque::new();
        let mut error = None;
        for item in items {
            match item {
                Ok(value) => taken.push_back(value),
                Err(e) => {
                    error = Some(e);
                    break;
                }
            }
        }
        Value::from_object(Generator(Mutex::new((taken, error))))
    }

    /// All items that are left.
    pub fn take(&self) -> (Vec<Value>, Option<Error>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let items = std::mem::take(&mut state.0);
        (items.into(), state.1.take())
    }

    /// The next item.
    pub fn next(&self) -> Result<Option<Value>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0.pop_front() {
            Some(value) => Ok(Some(value)),
            None => state.1.take().map_or(Ok(None), Err),
        }
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// `range(start, stop, step)`.
#[derive(Debug)]
pub struct Range {
    /// First item, if the range is not empty.
    pub start: i128,
    /// Where it ends; no item.
    pub stop: i128,
    /// From item to item.
    pub step: i128,
}

impl Range {
    /// Number of items.
    pub fn len(&self) -> usize {
        let span = if self.step > 0 { self.stop - self.start } else { self.start - self.stop };
        usize::try_from((span + self.step.abs() - 1).max(0) / self.step.abs()).unwrap_or(usize::MAX)
    }

    /// Its items, from the first to the last.
    pub fn items(&self) -> Vec<Value> {
        (0..self.len()).map(|i| int(self.start + i as i128 * self.step)).collect()
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.len() > 0
    }
}

/// What a view of a dictionary shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ViewKind {
    /// What `dict.keys()` gives.
    Keys,
    /// What `dict.values()` gives.
    Values,
    /// What `dict.items()` gives: tuples of a key and a value.
    Items,
}

impl ViewKind {
    /// Python's name of the type.
    pub fn type_name(self) -> &'static str {
        match self {
            ViewKind::Keys => "dict_keys",
            ViewKind::Values => "dict_values",
            ViewKind::Items => "dict_items",
        }
    }
}

/// A view of a dictionary.
#[derive(Debug)]
pub struct View {
    /// Which part of it.
    pub kind: ViewKind,
    /// The dictionary that is looked at.
    pub dict: Arc<Dict>,
}

impl View {
    /// What the view shows.
    pub fn items(&self) -> Vec<Value> {
        let item = |(key, value): &(Value, Value)| match self.kind {
            ViewKind::Keys => key.clone(),
            ViewKind::Values => value.clone(),
            ViewKind::Items => tuple(vec![key.clone(), value.clone()]),
        };
        self.dict.entries.iter().map(item).collect()
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        !self.dict.entries.is_empty()
    }
}

/// What `groupby` makes: a tuple whose items have the names `grouper` and `list`.
#[derive(Debug)]
pub struct GroupTuple(pub [Value; 2]);

impl Object for GroupTuple {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(2)
    }
}

/// `namespace(...)`: the one thing whose attributes a template may set.
#[derive(Debug, Default)]
pub struct Namespace(Mutex<Dict>);

impl Namespace {
    /// A namespace with attributes.
    ///
    /// # Errors
    /// A name begins with an underscore.
    pub fn new(attributes: Dict) -> Result<Self> {
        for (name, _) in &attributes.entries {
            check_name(name)?;
        }
        Ok(Namespace(Mutex::new(attributes)))
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// The name begins with an underscore.
    pub fn set(&self, name: &str, value: Value) -> Result<()> {
        check_name(&Value::from(name))?;
        let replaced = {
            let mut dict = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let old = dict.get_str(name).cloned();
            dict.insert(name.into(), value)?;
            old
        };
        drop(replaced); // outside of the lock: it may be deep
        Ok(())
    }

    /// The value of an attribute that was set.
    pub fn get(&self, name: &Value) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).ok().flatten().cloned()
    }

    /// All attributes that were set, by name.
    pub fn attributes(&self) -> Dict {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn check_name(name: &Value) -> Result<()> {
    match name.as_str() {
        Some(name) if name.starts_with('_') => {
            fail(format!("the attribute {name} of a namespace begins with an underscore"))
        }
        _ => Ok(()),
    }
}

impl Object for Namespace {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// A method of a value that is not called yet.
#[derive(Debug)]
pub struct BoundMethod {
    /// The value whose method it is.
    pub receiver: Value,
    /// The method's name.
    pub name: String,
}

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value> {
        call_method(state, &self.receiver, &self.name, args)
    }
}

/// The value of a macro's parameter that was not given, until its default is.
#[derive(Debug)]
pub struct Missing;

impl Object for Missing {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// A macro: binds arguments and calls the engine's own.
#[derive(Debug)]
pub struct Macro {
    /// The engine's macro, all of whose parameters are given.
    pub inner: Value,
    /// Name in the template.
    pub name: String,
    /// Names of the parameters.
    pub parameters: Vec<String>,
    /// How many of the parameters, the last ones, have a default.
    pub defaults: usize,
    /// Which of `varargs`, `kwargs` and `caller` its body uses.
    pub extras: Vec<String>,
}

impl Object for Macro {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value> {
        let Args { mut positional, named } = Args::new(args)?;
        let n = self.parameters.len();
        let name = &self.name;
        let uses = |extra: &str| self.extras.iter().any(|e| e == extra);
        let varargs = if positional.len() > n { positional.split_off(n) } else { Vec::new() };
        if !varargs.is_empty() && !uses("varargs") {
            return fail(format!("macro '{name}' takes not more than {n} argument(s)"));
        }
        let mut values: Vec<Option<Value>> = positional.into_iter().map(Some).collect();
        values.resize(n, None);
        let mut kwargs = Dict::default();
        let mut caller = None;
        for (key, value) in named {
            match self.parameters.iter().position(|p| *p == key) {
                Some(i) if values[i].is_some() => {
                    return fail(format!("macro '{name}' got multiple values for argument '{key}'"));
                }
                Some(i) => values[i] = Some(value),
                None if key == "caller" && uses("caller") => caller = Some(value),
                None => kwargs.insert(key.into(), value)?,
            }
        }
        if let (false, Some((key, _))) = (uses("kwargs"), kwargs.entries.first()) {
            return fail(format!("macro '{name}' takes no keyword argument '{key}'"));
        }
        let first_default = n - self.defaults;
        let missing = |i| if i < first_default { Value::UNDEFINED } else { Value::from_object(Missing) };
        let mut all: Vec<Value> =
            values.into_iter().enumerate().map(|(i, v)| v.unwrap_or_else(|| missing(i))).collect();
        for extra in &self.extras {
            all.push(match extra.as_str() {
                "varargs" => tuple(varargs.clone()),
                "kwargs" => Value::from_object(kwargs.clone()),
                _ => caller.clone().unwrap_or(Value::UNDEFINED),
            });
        }
        self.inner.call(state, &all)
    }
}

/// `joiner(separator)`: nothing the first time, then the separator.
#[derive(Debug)]
pub struct Joiner {
    /// What stands between.
    pub separator: Value,
    /// Whether it was called before.
    pub used: std::sync::atomic::AtomicBool,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _state: &mut State<'_, '_>, args: &[Value]) -> Result<Value> {
        if !args.is_empty() {
            return fail("a joiner takes no arguments");
        }
        let used = self.used.swap(true, std::sync::atomic::Ordering::Relaxed);
        Ok(if used { self.separator.clone() } else { Value::from("") })
    }
}

/// `cycler(a, b, ...)`.
#[derive(Debug)]
pub struct Cycler {
    /// What it goes through.
    pub items: Vec<Value>,
    /// Where it is.
    pub at: std::sync::atomic::AtomicUsize,
}

impl Cycler {
    /// The item it is at.
    pub fn current(&self) -> Value {
        self.items[self.at.load(std::sync::atomic::Ordering::Relaxed)].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call_method(
        self: &Arc<Self>,
        _state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value> {
        if !args.is_empty() {
            return fail(format!("cycler.{method}() takes no arguments"));
        }
        let current = self.current();
        let at = self.at.load(std::sync::atomic::Ordering::Relaxed);
        match method {
            "next" => self.at.store((at + 1) % self.items.len(), std::sync::atomic::Ordering::Relaxed),
            "reset" => {
                self.at.store(0, std::sync::atomic::Ordering::Relaxed);
                return Ok(Value::from(()));
            }
            _ => return fail(format!("a cycler has no method {method}")),
        }
        Ok(current)
    }
}

/// A function of the engine or of the template's globals.
pub struct Function {
    /// The name by which templates call it.
    pub name: &'static str,
    /// What it does.
    pub call: fn(&mut State<'_, '_>, &[Value]) -> Result<Value>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Object for Function {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value> {
        (self.call)(state, args)
    }
}
