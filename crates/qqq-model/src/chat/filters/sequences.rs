//! Filters of sequences and dictionaries.

use std::collections::HashSet;

use minijinja::value::Value;

use super::{Getter, folded, getters, key, truth, wrong_type};
use crate::chat::python::objects::{Generator, GroupTuple, Range, View};
use crate::chat::python::ops::{equal, ordered, sort};
use crate::chat::python::value::{
    Args, Dict, Py, Result, as_int, fail, iterate, py, tuple, type_name, undefined,
};

pub(super) fn call(name: &str, value: &Value, args: Args) -> Result<Value> {
    match name {
        "batch" => {
            let [size, fill] = args.bind(name, ["linecount", "fill_with"], 1)?;
            let size = size.as_ref().and_then(as_int);
            let Some(size) = size.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0) else {
                return fail("batch: the size must be a positive integer");
            };
            let items = iterate(value)?;
            let row = |row: &[Value]| {
                let mut row = row.to_vec();
                if let Some(fill) = fill.as_ref().filter(|f| !f.is_none()) {
                    row.resize(size.min(100_000), fill.clone());
                }
                Ok(Value::from(row))
            };
            Ok(Generator::of(items.chunks(size).map(row)))
        }
        "slice" => {
            let [count, fill] = args.bind(name, ["slices", "fill_with"], 1)?;
            let count = count.as_ref().and_then(as_int).and_then(|n| usize::try_from(n).ok());
            let Some(count) = count.filter(|n| (1..=100_000).contains(n)) else {
                return fail("slice: the number of slices must be an integer from 1 to 100000");
            };
            let items = iterate(value)?;
            let (each, extra) = (items.len() / count, items.len() % count);
            let row = |i: usize| {
                let start = i * each + i.min(extra);
                let mut row = items[start..start + each + usize::from(i < extra)].to_vec();
                if let Some(fill) = fill.as_ref().filter(|f| !f.is_none() && i >= extra) {
                    row.push(fill.clone());
                }
                Ok(Value::from(row))
            };
            Ok(Generator::of((0..count).map(row)))
        }
        "dictsort" => {
            let [sensitive, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"], 0)?;
            let by_value = match by.as_ref().map_or(Some("key"), |b| b.as_str()) {
                Some("key") => false,
                Some("value") => true,
                _ => return fail("You can only sort by either \"key\" or \"value\""),
            };
            let sensitive = truth(sensitive);
            let dict = match py(value) {
                Py::Dict(dict) => dict,
                Py::Undefined => return undefined("the filter dictsort"),
                _ => return wrong_type(name, value),
            };
            let mut items: Vec<(Value, Value)> = dict
                .entries
                .iter()
                .map(|(k, v)| {
                    let by = if by_value { v } else { k };
                    (folded(by.clone(), sensitive), tuple(vec![k.clone(), v.clone()]))
                })
                .collect();
            sort(&mut items, truth(reverse))?;
            Ok(Value::from(items.into_iter().map(|(_, item)| item).collect::<Vec<_>>()))
        }
        "first" => {
            args.positional_only(name, 0, 0)?;
            if let Some(generator) = value.downcast_object_ref::<Generator>() {
                return Ok(generator.next()?.unwrap_or(Value::UNDEFINED));
            }
            Ok(iterate(value)?.into_iter().next().unwrap_or(Value::UNDEFINED))
        }
        "last" => {
            args.positional_only(name, 0, 0)?;
            Ok(reversible(value)?.pop().unwrap_or(Value::UNDEFINED))
        }
        "reverse" => {
            args.positional_only(name, 0, 0)?;
            if let Py::Str(text) = py(value) {
                return Ok(Value::from(text.chars().rev().collect::<String>()));
            }
            // What cannot be iterated backwards becomes a list.
            match reversible(value) {
                Ok(items) => Ok(Generator::of(items.into_iter().rev().map(Ok))),
                Err(_) => {
                    let mut items = iterate(value)?;
                    items.reverse();
                    Ok(Value::from(items))
                }
            }
        }
        "max" | "min" => {
            let [sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
            let (sensitive, getter) = (truth(sensitive), Getter::new(attribute.as_ref(), None)?);
            let mut best: Option<(Value, Value)> = None;
            for item in iterate(value)? {
                let key = folded(getter.get(&item)?, sensitive);
                let better = match &best {
                    None => true,
                    Some((b, _)) => ordered(&key, if name == "max" { ">" } else { "<" }, b)?,
                };
                if better {
                    best = Some((key, item));
                }
            }
            Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
        }
        "sort" => {
            let [reverse, sensitive, attribute] =
                args.bind(name, ["reverse", "case_sensitive", "attribute"], 0)?;
            let (sensitive, getters) = (truth(sensitive), getters(attribute.as_ref())?);
            let mut items = Vec::new();
            for item in iterate(value)? {
                let mut keys = Vec::new();
                for getter in &getters {
                    keys.push(folded(getter.get(&item)?, sensitive));
                }
                items.push((Value::from(keys), item));
            }
            sort(&mut items, truth(reverse))?;
            Ok(Value::from(items.into_iter().map(|(_, item)| item).collect::<Vec<_>>()))
        }
        "unique" => {
            let [sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
            let (sensitive, getter) = (truth(sensitive), Getter::new(attribute.as_ref(), None)?);
            let mut seen = HashSet::new();
            let items = iterate(value)?.into_iter().filter_map(|item| {
                let key = getter.get(&item).and_then(|v| key(&folded(v, sensitive)));
                match key {
                    Ok(key) => seen.insert(key).then_some(Ok(item)),
                    Err(e) => Some(Err(e)),
                }
            });
            Ok(Generator::of(items))
        }
        _ => group_by(value, args),
    }
}

/// The items of what `reversed` takes.
fn reversible(value: &Value) -> Result<Vec<Value>> {
    let sequence = matches!(py(value), Py::Undefined | Py::Str(_) | Py::List(_) | Py::Tuple(_) | Py::Dict(_))
        || value.downcast_object_ref::<Range>().is_some()
        || value.downcast_object_ref::<View>().is_some();
    if !sequence {
        return fail(format!("'{}' object is not reversible", type_name(value)));
    }
    iterate(value)
}

fn group_by(value: &Value, args: Args) -> Result<Value> {
    let [attribute, default, sensitive] =
        args.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
    let (sensitive, getter) = (truth(sensitive), Getter::new(attribute.as_ref(), default)?);
    let mut items = Vec::new();
    for item in iterate(value)? {
        items.push((folded(getter.get(&item)?, sensitive), item));
    }
    sort(&mut items, false)?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in items {
        match groups.last_mut() {
            Some((last, group)) if equal(last, &key) => group.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let mut out = Vec::new();
    for (key, group) in groups {
        // The name of a group is the first item's, not the folded one.
        let grouper = if sensitive { key } else { getter.get(&group[0])? };
        out.push(Value::from_object(GroupTuple([grouper, Value::from(group)])));
    }
    Ok(Value::from(out))
}

/// A dictionary of what `dict(...)` is called with.
///
/// # Errors
/// Items that are no pairs, keys that are not hashable.
pub fn dict(args: Args) -> Result<Dict> {
    let mut dict = Dict::default();
    if args.positional.len() > 1 {
        return fail("dict expected at most 1 argument");
    }
    if let Some(first) = args.positional.first() {
        match py(first) {
            Py::Dict(other) => dict = other.clone(),
            _ => {
                for pair in iterate(first)? {
                    let [key, value] = <[Value; 2]>::try_from(iterate(&pair)?)
                        .or_else(|_| fail("dictionary update sequence element does not have length 2"))?;
                    dict.insert(key, value)?;
                }
            }
        }
    }
    for (name, value) in args.named {
        dict.insert(name.into(), value)?;
    }
    Ok(dict)
}
