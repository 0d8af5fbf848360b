//! Filters of texts.

use minijinja::value::Value;

use super::{need_str, soft_str, truth, wrong_type};
use crate::chat::python::chars::{is_space, is_word};
use crate::chat::python::value::{
    Args, Py, Result, as_int, as_size, check_size, fail, iterate, py, text, tuple, undefined,
};
use crate::chat::python::{ops, percent, repr, split, strings};

pub(super) fn call(name: &str, value: &Value, args: Args) -> Result<Value> {
    let keep = |text: String| if value.is_safe() { Value::from_safe_string(text) } else { Value::from(text) };
    match name {
        "capitalize" | "lower" | "upper" | "title" | "string" => {
            args.positional_only(name, 0, 0)?;
            let s = soft_str(value)?;
            Ok(match name {
                "capitalize" => keep(strings::capitalize(&s)),
                "lower" => keep(s.to_lowercase()),
                "upper" => keep(s.to_uppercase()),
                "title" => Value::from(title(&s)),
                _ => keep(s),
            })
        }
        "center" => {
            let [width] = args.bind(name, ["width"], 0)?;
            let width = width.as_ref().map_or(Ok(80), as_size)?;
            Ok(keep(strings::pad(&soft_str(value)?, width, ' ', strings::center)?))
        }
        "e" | "escape" | "forceescape" => {
            args.positional_only(name, 0, 0)?;
            if value.is_safe() && name != "forceescape" {
                return Ok(value.clone());
            }
            Ok(Value::from_safe_string(escape(&soft_str(value)?)))
        }
        "safe" => {
            args.positional_only(name, 0, 0)?;
            Ok(Value::from_safe_string(soft_str(value)?))
        }
        "format" => {
            if !args.positional.is_empty() && !args.named.is_empty() {
                return fail("can't handle positional and keyword arguments at the same time");
            }
            if value.is_safe() {
                return fail("the filter format of an escaped string (Markup) is not supported");
            }
            let values = if args.named.is_empty() {
                tuple(args.positional)
            } else {
                let pairs: Vec<Value> = args.named.into_iter().flat_map(|(n, v)| [n.into(), v]).collect();
                ops::dict(&pairs)?
            };
            percent::format(&soft_str(value)?, &values).map(Value::from)
        }
        "indent" => {
            let [width, first, blank] = args.bind(name, ["width", "first", "blank"], 0)?;
            let indention = match width.as_ref().map(py) {
                None => " ".repeat(4),
                Some(Py::Str(text)) => text.to_owned(),
                Some(_) => " ".repeat(as_size(&width.unwrap_or_default())?),
            };
            Ok(keep(indent(need_str(value, name)?, &indention, truth(first), truth(blank))?))
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"], 2)?;
            let part = |v: Option<Value>| v.as_ref().map_or(Ok(String::new()), repr::to_str);
            let count = match count.filter(|c| !c.is_none()) {
                Some(c) => as_int(&c).map_or_else(|| fail("replace: count is no integer"), Ok)?,
                None => -1,
            };
            strings::replace(&soft_str(value)?, &part(old)?, &part(new)?, count).map(Value::from)
        }
        "striptags" => {
            args.positional_only(name, 0, 0)?;
            strip_tags(&soft_str(value)?).map(Value::from)
        }
        "trim" => {
            let [chars] = args.bind(name, ["chars"], 0)?;
            let chars = chars.as_ref().filter(|v| !v.is_none()).map(|v| text(v, name)).transpose()?;
            let s = soft_str(value)?;
            Ok(keep(split::strip(&s, chars, true, true).to_owned()))
        }
        "truncate" => {
            let [length, kill, end, leeway] = args.bind(name, ["length", "killwords", "end", "leeway"], 0)?;
            let number = |v: Option<Value>, default: i128| match v.filter(|v| !v.is_none()) {
                None => Ok(default),
                Some(v) => as_int(&v).map_or_else(|| fail("truncate: an argument is no integer"), Ok),
            };
            let end = end.as_ref().map_or(Ok("..."), |e| text(e, name))?.to_owned();
            truncate(value, number(length, 255)?, truth(kill), &end, number(leeway, 5)?)
        }
        "urlencode" => {
            args.positional_only(name, 0, 0)?;
            url_encode(value).map(Value::from)
        }
        "wordcount" => {
            args.positional_only(name, 0, 0)?;
            let s = soft_str(value)?;
            Ok(Value::from(s.split(|c| !is_word(c)).filter(|w| !w.is_empty()).count()))
        }
        "wordwrap" => super::wrap::call(need_str(value, name)?, args).map(Value::from),
        _ => {
            let [autospace] = args.bind(name, ["autospace"], 0)?;
            xml_attributes(value, autospace.is_none_or(|v| v.is_true())).map(Value::from)
        }
    }
}

/// HTML's special characters as markupsafe escapes them.
pub fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&#34;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

/// Jinja2's own `title`: words begin after whitespace, hyphens and opening brackets.
fn title(text: &str) -> String {
    let begins = |c: char| is_space(c) || "-({[<".contains(c);
    let mut out = String::new();
    let mut word = String::new();
    let flush = |out: &mut String, word: &mut String| {
        if let Some(first) = word.chars().next() {
            out.extend(first.to_uppercase());
            *out += &word[first.len_utf8()..].to_lowercase();
            word.clear();
        }
    };
    for c in text.chars() {
        if begins(c) {
            flush(&mut out, &mut word);
            out.push(c);
        } else {
            word.push(c);
        }
    }
    flush(&mut out, &mut word);
    out
}

fn indent(text: &str, indention: &str, first: bool, blank: bool) -> Result<String> {
    let text = format!("{text}\n");
    let lines = split::lines(&text, false);
    check_size(text.len().saturating_add(lines.len().saturating_mul(indention.len())))?;
    let mut out = if first { indention.to_owned() } else { String::new() };
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out += indention;
            }
        }
        out += line;
    }
    Ok(out)
}

fn truncate(value: &Value, length: i128, kill_words: bool, end: &str, leeway: i128) -> Result<Value> {
    let end_length = end.chars().count() as i128;
    if length < end_length {
        return fail(format!("expected length >= {end_length}, got {length}"));
    }
    if leeway < 0 {
        return fail(format!("expected leeway >= 0, got {leeway}"));
    }
    let s = match py(value) {
        Py::Undefined => return Ok(value.clone()),
        Py::Str(s) => s,
        _ => return wrong_type("truncate", value),
    };
    if s.chars().count() as i128 <= length + leeway {
        return Ok(value.clone());
    }
    let head: String = s.chars().take(usize::try_from(length - end_length).unwrap_or_default()).collect();
    let head =
        if kill_words { head.as_str() } else { head.rsplit_once(' ').map_or(head.as_str(), |(h, _)| h) };
    Ok(Value::from(format!("{head}{end}")))
}

fn quote(text: &str, query: bool) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(b)),
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            b => out += &format!("%{b:02X}"),
        }
    }
    out
}

fn url_encode(value: &Value) -> Result<String> {
    let items = match py(value) {
        Py::Dict(dict) => dict.entries.clone(),
        Py::Str(text) => return Ok(quote(text, false)),
        Py::None | Py::Bool(_) | Py::Int(_) | Py::Float(_) => return Ok(quote(&soft_str(value)?, false)),
        _ => {
            let mut pairs = Vec::new();
            for pair in iterate(value)? {
                let [key, value] = <[Value; 2]>::try_from(iterate(&pair)?)
                    .or_else(|_| fail("urlencode: the items must be pairs"))?;
                pairs.push((key, value));
            }
            pairs
        }
    };
    let mut parts = Vec::new();
    for (key, value) in &items {
        parts.push(format!("{}={}", quote(&soft_str(key)?, true), quote(&soft_str(value)?, true)));
    }
    Ok(parts.join("&"))
}

fn xml_attributes(value: &Value, autospace: bool) -> Result<String> {
    let dict = match py(value) {
        Py::Dict(dict) => dict,
        Py::Undefined => return undefined("the filter xmlattr"),
        _ => return wrong_type("xmlattr", value),
    };
    let mut parts = Vec::new();
    for (key, value) in &dict.entries {
        if value.is_none() || value.is_undefined() {
            continue;
        }
        let name = text(key, "xmlattr")?;
        if name.contains([' ', '\t', '\n', '\r', '\x0b', '\x0c', '/', '>', '=']) {
            return fail(format!("Invalid character in attribute name: {}", repr::string(name)));
        }
        let escaped = |v: &Value| soft_str(v).map(|s| if v.is_safe() { s } else { escape(&s) });
        parts.push(format!("{}=\"{}\"", escaped(key)?, escaped(value)?));
    }
    let space = if autospace && !parts.is_empty() { " " } else { "" };
    Ok(space.to_owned() + &parts.join(" "))
}

/// Without comments and tags, whitespace joined, entities as characters.
fn strip_tags(text: &str) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (begin, end) = if rest[start..].starts_with("<!--") { (4, "-->") } else { (1, ">") };
        let Some(length) = rest[start + begin..].find(end) else { break };
        out += &rest[..start];
        rest = &rest[start + begin + length + end.len()..];
    }
    let text = out + rest;
    let words: Vec<&str> = text.split(is_space).filter(|w| !w.is_empty()).collect();
    unescape(&words.join(" "))
}

fn unescape(text: &str) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out += &rest[..at];
        rest = &rest[at..];
        let known =
            [("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&#39;", "'")];
        if let Some((entity, c)) = known.into_iter().find(|(entity, _)| rest.starts_with(entity)) {
            out += c;
            rest = &rest[entity.len()..];
        } else if rest[1..].starts_with(|c: char| c == '#' || c.is_ascii_alphabetic()) {
            return fail("striptags of a text with other HTML entities than the basic ones is not supported");
        } else {
            out.push('&');
            rest = &rest[1..];
        }
    }
    Ok(out + rest)
}

/// `pprint.pformat`, for what fits in one line of 80 columns: dictionaries are sorted by key.
pub(super) fn pprint(value: &Value) -> Result<String> {
    fn sorted(value: &Value, depth: usize) -> Result<Value> {
        if depth > 100 {
            return fail("pprint of lists nested more than 100 deep is not supported");
        }
        let all = |items: &[Value]| items.iter().map(|v| sorted(v, depth + 1)).collect::<Result<Vec<_>>>();
        Ok(match py(value) {
            Py::List(items) => Value::from(all(items)?),
            Py::Tuple(items) => tuple(all(items)?),
            Py::Dict(dict) => {
                let mut entries = dict.entries.clone();
                ops::sort(&mut entries, false)?;
                let mut flat = Vec::new();
                for (key, value) in &entries {
                    flat.extend([key.clone(), sorted(value, depth + 1)?]);
                }
                ops::dict(&flat)?
            }
            _ => value.clone(),
        })
    }
    let text = repr::to_repr(&sorted(value, 0)?)?;
    if text.chars().count() > 80 {
        return fail("pprint of a value that does not fit in 80 columns is not supported");
    }
    Ok(text)
}
