//! The filters that take another filter or test: `map`, `select` and its kin.

use minijinja::value::Value;

use super::Getter;
use crate::chat::checks;
use crate::chat::python::objects::Generator;
use crate::chat::python::value::{Args, Result, fail, iterate, text};

pub(super) fn call(name: &str, value: &Value, args: Args) -> Result<Value> {
    // As in a Python generator, arguments are looked at when the first item is asked for.
    if !value.is_true() {
        return Ok(Generator::of(std::iter::empty()));
    }
    let prepared = if name == "map" { prepare_map(args) } else { prepare_select(name, args) };
    let (items, apply) = match (iterate(value), prepared) {
        (Ok(items), Ok(apply)) => (items, apply),
        (_, Err(e)) | (Err(e), _) => return Ok(Generator::of(std::iter::once(Err(e)))),
    };
    Ok(Generator::of(items.iter().filter_map(|item| apply(item).transpose())))
}

/// What an item becomes, if it stays.
type Apply = Box<dyn Fn(&Value) -> Result<Option<Value>>>;

fn prepare_map(mut args: Args) -> Result<Apply> {
    if args.positional.is_empty() && args.named.iter().any(|(n, _)| n == "attribute") {
        let [attribute, default] = args.bind("map", ["attribute", "default"], 0)?;
        let getter = Getter::new(attribute.as_ref(), default)?;
        return Ok(Box::new(move |item| getter.get(item).map(Some)));
    }
    if args.positional.is_empty() {
        return fail("map requires a filter argument");
    }
    let filter = text(&args.positional.remove(0), "map")?.to_owned();
    Ok(Box::new(move |item| super::call(&filter, item, args.clone()).map(Some)))
}

fn prepare_select(name: &str, mut args: Args) -> Result<Apply> {
    let keep = name.starts_with("select");
    let mut getter = Getter::new(None, None)?;
    if name.ends_with("attr") {
        if args.positional.is_empty() {
            return fail("Missing parameter for attribute name");
        }
        getter = Getter::new(Some(&args.positional.remove(0)), None)?;
    }
    if args.positional.is_empty() {
        return Ok(Box::new(move |item| Ok((getter.get(item)?.is_true() == keep).then(|| item.clone()))));
    }
    let test = text(&args.positional.remove(0), name)?.to_owned();
    Ok(Box::new(move |item| {
        let holds = checks::call(&test, &getter.get(item)?, args.clone())?;
        Ok((holds == keep).then(|| item.clone()))
    }))
}
