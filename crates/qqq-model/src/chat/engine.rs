//! The engine's environment: limits, how values are printed, and the functions that translated templates
//! call for whatever touches a value.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, State, UndefinedBehavior};

use super::checks;
use super::filters;
use super::python::methods::{self, Found};
use super::python::objects::{BoundMethod, Cycler, Function, GroupTuple, Joiner, Macro, Missing, Namespace};
use super::python::ops;
use super::python::repr::to_str;
use super::python::strftime::strftime;
use super::python::value::{
    Args, Dict, Py, Result, as_int, check_size, fail, iterate, py, text, tuple, type_name, undefined,
};
use super::syntax::translate::translate;

/// Steps that one rendering may take: a conversation of ten thousand messages takes some millions.
const FUEL: u64 = 20_000_000;
/// The template's stack, of which only what is used takes memory.
const STACK: usize = 256 << 20;
/// Name of the template in its environment.
const NAME: &str = "chat_template";
/// What is nested may cost, at some ten a macro: the most that minijinja has without growing the stack.
const RECURSION: usize = 500;

type Native = fn(&mut State<'_, '_>, &[Value]) -> Result<Value>;

/// Functions of translated templates.
const INTERNAL: [(&str, Native); 21] = [
    ("_qqq_apply", apply),
    ("_qqq_attr", |_, a| attribute(&a[0], name(&a[1]))),
    ("_qqq_call", |state, a| call(state, &a[0], name(&a[1]), &a[2..])),
    ("_qqq_compare", |_, a| ops::compare(&a[0], name(&a[1]), &a[2]).map(Value::from)),
    ("_qqq_concat", |_, a| ops::concat(list(&a[0]))),
    ("_qqq_dict", |_, a| ops::dict(list(&a[0]))),
    ("_qqq_filter", |_, a| filters::call(name(&a[0]), &a[1], Args::new(&a[2..])?)),
    ("_qqq_float", |_, a| Ok(Value::from(name(&a[0]).parse().unwrap_or(f64::NAN)))),
    ("_qqq_item", |_, a| item(&a[0], &a[1])),
    ("_qqq_iter", |_, a| unpacked_items(&a[0], &a[1])),
    ("_qqq_macro", |_, a| new_macro(a)),
    ("_qqq_math", |_, a| math(list(&a[0]))),
    ("_qqq_method", |state, a| call_method(state, &a[0], name(&a[1]), &a[2..])),
    ("_qqq_missing", |_, a| Ok(Value::from(a[0].downcast_object_ref::<Missing>().is_some()))),
    ("_qqq_setattr", |_, a| set_attribute(&a[0], name(&a[1]), &a[2])),
    ("_qqq_sign", |_, a| ops::sign(a[0].is_true(), &a[1])),
    ("_qqq_slice", |_, a| ops::slice(&a[0], [&a[1], &a[2], &a[3]])),
    ("_qqq_test", |_, a| checks::call(name(&a[0]), &a[1], Args::new(&a[2..])?).map(Value::from)),
    ("_qqq_tuple", |_, a| Ok(tuple(list(&a[0]).to_vec()))),
    ("_qqq_unavailable", |_, a| fail(format!("{}: there are no other templates to load", name(&a[0])))),
    ("_qqq_unpack", |_, a| unpack(&a[0], as_int(&a[1]).unwrap_or(0) as usize)),
];

/// Functions of templates: Jinja2's globals and those that transformers adds.
const GLOBALS: [(&str, Native); 8] = [
    ("cycler", |_, a| {
        let items = Args::new(a)?.positional_only("cycler", 0, usize::MAX)?;
        if items.is_empty() {
            return fail("at least one item has to be provided");
        }
        Ok(Value::from_object(Cycler { items, at: AtomicUsize::new(0) }))
    }),
    ("dict", |_, a| filters::sequences::dict(Args::new(a)?).map(Value::from_object)),
    ("joiner", |_, a| {
        let [separator] = Args::new(a)?.bind("joiner", ["sep"], 0)?;
        let separator = separator.unwrap_or_else(|| ", ".into());
        Ok(Value::from_object(Joiner { separator, used: AtomicBool::new(false) }))
    }),
    ("lipsum", |_, _| fail("lipsum is not supported: it makes another text each time")),
    ("namespace", |_, a| Namespace::new(filters::sequences::dict(Args::new(a)?)?).map(Value::from_object)),
    ("raise_exception", |_, a| {
        let [message] = Args::new(a)?.bind("raise_exception", ["message"], 1)?;
        fail(to_str(&message.unwrap_or_default())?)
    }),
    ("range", |_, a| methods::range(Args::new(a)?)),
    ("strftime_now", |_, a| {
        let [format] = Args::new(a)?.bind("strftime_now", ["format"], 1)?;
        let now = chrono::Local::now().naive_local();
        strftime(&now, text(&format.unwrap_or_default(), "strftime_now")?).map(Value::from)
    }),
];

/// An environment without templates.
fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.set_formatter(|out, _, value| {
        let text = to_str(value)?;
        out.write_str(&text).map_err(minijinja::Error::from)
    });
    for (name, call) in INTERNAL.into_iter().chain(GLOBALS) {
        environment.add_global(name, Value::from_object(Function { name, call }));
    }
    environment
}

/// A string constant of the translated template.
fn name(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The items of a list of the translated template: calls may have few arguments only.
fn list(value: &Value) -> &[Value] {
    match py(value) {
        Py::List(items) => items,
        _ => &[],
    }
}

/// `value.name`: an attribute of the object, or else an item.
///
/// # Errors
/// The value is undefined, or the attribute is one that is not supported.
pub fn attribute(value: &Value, name: &str) -> Result<Value> {
    if value.is_undefined() {
        return undefined(&format!("the attribute '{name}'"));
    }
    match own_attribute(value, name)? {
        Some(found) => Ok(found),
        None => Ok(ops::subscript(value, &Value::from(name))?.unwrap_or(Value::UNDEFINED)),
    }
}

/// `value[key]`: an item, or else an attribute of that name.
///
/// # Errors
/// The value is undefined, or the attribute is one that is not supported.
pub fn item(value: &Value, key: &Value) -> Result<Value> {
    if let Some(found) = ops::subscript(value, key)? {
        return Ok(found);
    }
    match py(key) {
        Py::Str(name) => Ok(own_attribute(value, name)?.unwrap_or(Value::UNDEFINED)),
        _ => Ok(Value::UNDEFINED),
    }
}

/// What an object has as an attribute. What the sandbox hides is undefined.
fn own_attribute(value: &Value, name: &str) -> Result<Option<Value>> {
    if let Some(namespace) = value.downcast_object_ref::<Namespace>() {
        return Ok(namespace.get(&Value::from(name)));
    }
    if let Some(GroupTuple([grouper, list])) = value.downcast_object_ref::<GroupTuple>() {
        match name {
            "grouper" => return Ok(Some(grouper.clone())),
            "list" => return Ok(Some(list.clone())),
            _ => {}
        }
    }
    match methods::lookup(value, name) {
        Found::Method => {
            let bound = BoundMethod { receiver: value.clone(), name: name.to_owned() };
            return Ok(Some(Value::from_object(bound)));
        }
        Found::Refused => return Ok(Some(Value::UNDEFINED)),
        Found::Unsupported => {
            return fail(format!("the attribute {name} of {} is not supported", type_name(value)));
        }
        Found::Nothing => {}
    }
    if !matches!(py(value), Py::Other) {
        return Ok(None);
    }
    if let Some(cycler) = value.downcast_object_ref::<Cycler>() {
        return match name {
            "current" => Ok(Some(cycler.current())),
            "items" => Ok(Some(tuple(cycler.items.clone()))),
            "next" | "reset" => {
                Ok(Some(Value::from_object(BoundMethod { receiver: value.clone(), name: name.to_owned() })))
            }
            _ => Ok(None),
        };
    }
    if let Some(macro_) = value.downcast_object_ref::<Macro>() {
        let uses = |extra: &str| Value::from(macro_.extras.iter().any(|e| e == extra));
        return Ok(match name {
            "name" => Some(macro_.name.as_str().into()),
            "arguments" => Some(tuple(macro_.parameters.iter().map(|p| p.as_str().into()).collect())),
            "catch_kwargs" => Some(uses("kwargs")),
            "catch_varargs" => Some(uses("varargs")),
            "caller" => Some(uses("caller")),
            _ => None,
        });
    }
    if is_loop(value) {
        if matches!(name, "cycle" | "changed") {
            let bound = BoundMethod { receiver: value.clone(), name: name.to_owned() };
            return Ok(Some(Value::from_object(bound)));
        }
        return Ok(value.get_attr(name).ok().filter(|v| !v.is_undefined()));
    }
    // Ranges, generators and functions have attributes that no template needs.
    match value.downcast_object_ref::<Function>() {
        Some(f) if f.name == "dict" && name == "fromkeys" => {
            Ok(Some(Value::from_object(BoundMethod { receiver: value.clone(), name: name.to_owned() })))
        }
        _ => Ok(None),
    }
}

/// Compiles a template.
///
/// # Errors
/// It is not valid Jinja, or uses what cannot be rendered as Jinja2 does: what, and in which line.
pub fn compile(source: &str) -> std::result::Result<Environment<'static>, String> {
    let translated = translate(source).map_err(|e| e.to_string())?;
    let mut environment = environment();
    environment.add_template_owned(NAME, translated).map_err(|e| describe(&e))?;
    Ok(environment)
}

/// Renders the template of an environment with variables.
///
/// # Errors
/// The template fails or refuses: why, and in which line.
pub fn render(
    environment: &Environment<'static>,
    variables: Vec<(String, Value)>,
) -> std::result::Result<String, String> {
    let run = move || {
        let context = Value::from_object(Dict::from_pairs(variables));
        environment.get_template(NAME).and_then(|t| t.render(context)).map_err(|e| describe(&e))
    };
    // Macros call each other on the stack, and lists that are nested deeply are freed on it.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK);
        match thread.spawn_scoped(scope, run) {
            Ok(handle) => handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(e) => Err(format!("no thread to render in: {e}")),
        }
    })
}

/// An error with its causes and the template's line.
fn describe(e: &minijinja::Error) -> String {
    let mut text = match e.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {FUEL} steps; does a loop end?"),
        kind => e.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    if let Some(line) = e.line() {
        text.push_str(&format!(" (line {line} of the template)"));
    }
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// The filter `attr`: only attributes, no items.
///
/// # Errors
/// As [`attribute`].
pub fn attr_filter(value: &Value, name: &Value) -> Result<Value> {
    if value.is_undefined() {
        return undefined("the filter attr");
    }
    Ok(own_attribute(value, text(name, "attr")?)?.unwrap_or(Value::UNDEFINED))
}

/// Whether a value is the variable `loop` of a loop.
pub fn is_loop(value: &Value) -> bool {
    matches!(py(value), Py::Other)
        && value.as_object().is_some_and(|o| o.repr() == minijinja::value::ObjectRepr::Map)
        && value.get_attr("revindex0").is_ok_and(|v| !v.is_undefined())
}

fn call(state: &mut State<'_, '_>, function: &Value, name: &str, args: &[Value]) -> Result<Value> {
    if function.is_undefined() {
        return Err(minijinja::Error::new(ErrorKind::UndefinedError, format!("'{name}' is undefined")));
    }
    if function.as_object().is_none() {
        return fail(format!("'{}' object is not callable", type_name(function)));
    }
    function.call(state, args)
}

/// `value.method(...)`.
///
/// # Errors
/// There is no such method, the sandbox refuses it, or it fails.
pub fn call_method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    if value.is_undefined() {
        return undefined(&format!("the method '{name}'"));
    }
    match methods::lookup(value, name) {
        Found::Method => return methods::call(value, name, Args::new(args)?),
        Found::Refused => {
            let kind = type_name(value);
            return fail(format!(
                "access to attribute '{name}' of '{kind}' object is unsafe: it would change it"
            ));
        }
        Found::Unsupported | Found::Nothing => {}
    }
    if is_loop(value) && matches!(name, "cycle" | "changed") {
        if name == "cycle" && args.is_empty() {
            return fail("no items for cycling given");
        }
        return value.call_method(state, name, args);
    }
    if value.downcast_object_ref::<Cycler>().is_some() && matches!(name, "next" | "reset") {
        return value.call_method(state, name, args);
    }
    if value.downcast_object_ref::<Function>().is_some_and(|f| f.name == "dict") && name == "fromkeys" {
        return methods::from_keys(Args::new(args)?);
    }
    let function = attribute(value, name)?;
    if function.is_undefined() {
        let kind = type_name(value);
        return fail(format!("'{kind} object' has no attribute '{name}'"));
    }
    call(state, &function, name, args)
}

/// A call with `*args` and `**kwargs`: function, arguments, more of them, named ones, more of them.
fn apply(state: &mut State<'_, '_>, a: &[Value]) -> Result<Value> {
    let mut args = Args { positional: iterate(&a[1])?, named: Vec::new() };
    if !a[2].is_none() {
        args.positional.extend(iterate(&a[2])?);
    }
    for named in [&a[3], &a[4]] {
        match py(named) {
            Py::None => {}
            Py::Dict(dict) => {
                for (key, value) in &dict.entries {
                    let Py::Str(key) = py(key) else { return fail("keywords must be strings") };
                    if args.named.iter().any(|(n, _)| n == key) {
                        return fail(format!("got multiple values for keyword argument '{key}'"));
                    }
                    args.named.push((key.to_owned(), value.clone()));
                }
            }
            _ => return fail(format!("argument after ** must be a mapping, not {}", type_name(named))),
        }
    }
    a[0].call(state, &args.into_values())
}

/// `a + b - c ...`, from the left.
fn math(a: &[Value]) -> Result<Value> {
    let mut left = a[0].clone();
    for pair in a[1..].chunks_exact(2) {
        left = ops::binary(&left, name(&pair[0]), &pair[1])?;
    }
    Ok(left)
}

fn new_macro(a: &[Value]) -> Result<Value> {
    let names = |v: &Value| iterate(v).map(|all| all.iter().map(|n| name(n).to_owned()).collect());
    Ok(Value::from_object(Macro {
        inner: a[0].clone(),
        name: name(&a[1]).to_owned(),
        parameters: names(&a[2])?,
        defaults: as_int(&a[3]).unwrap_or(0) as usize,
        extras: names(&a[4])?,
    }))
}

fn set_attribute(namespace: &Value, name: &str, value: &Value) -> Result<Value> {
    match namespace.downcast_object_ref::<Namespace>() {
        Some(namespace) => namespace.set(name, value.clone())?,
        None => return fail("cannot assign attribute on non-namespace object"),
    }
    Ok(Value::from(()))
}

/// A tuple of `n` items of a value.
fn unpack(value: &Value, n: usize) -> Result<Value> {
    let items = iterate(value)?;
    match items.len() {
        got if got < n => fail(format!("not enough values to unpack (expected {n}, got {got})")),
        got if got > n => fail(format!("too many values to unpack (expected {n})")),
        _ => Ok(tuple(items)),
    }
}

/// The items of a loop, each unpacked as the loop's target is: 0 for a name, a list for a tuple.
fn unpacked_items(value: &Value, shape: &Value) -> Result<Value> {
    fn fit(item: Value, shape: &Value) -> Result<Value> {
        let Py::List(shapes) = py(shape) else { return Ok(item) };
        let nested = shapes.iter().any(|s| matches!(py(s), Py::List(_)));
        let unpacked = unpack(&item, shapes.len())?;
        if !nested {
            let sequence = matches!(py(&item), Py::List(_) | Py::Tuple(_));
            return Ok(if sequence { item } else { unpacked });
        }
        let parts = iterate(&unpacked)?.into_iter().zip(shapes);
        Ok(tuple(parts.map(|(part, shape)| fit(part, shape)).collect::<Result<_>>()?))
    }
    let items = iterate(value)?;
    check_size(items.len())?;
    Ok(Value::from(items.into_iter().map(|i| fit(i, shape)).collect::<Result<Vec<_>>>()?))
}
