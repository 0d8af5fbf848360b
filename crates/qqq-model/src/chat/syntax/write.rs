//! Expressions, as minijinja source: all but names, `and`, `or`, `not` and `if` are calls of the engine's functions.

use super::SyntaxError;
use super::ast::{Args, Expr, Kind};

type Result<T> = std::result::Result<T, SyntaxError>;

/// What names of the engine's functions begin with.
pub const PREFIX: &str = "_qqq_";

pub(super) fn unsupported(line: usize, what: &str) -> SyntaxError {
    SyntaxError { line, message: format!("{what} is not supported") }
}

/// A string literal.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A variable's name for minijinja, which knows only ASCII.
pub(super) fn mangled(name: &str, line: usize) -> Result<String> {
    if name.starts_with(PREFIX) {
        return Err(SyntaxError { line, message: format!("names that begin with {PREFIX} are reserved") });
    }
    Ok(match name {
        "caller" => "_qqq_caller".into(),
        "self" | "super" => return Err(unsupported(line, &format!("the name {name}"))),
        _ if name.is_ascii() => name.into(),
        _ => {
            let code: Vec<String> = name.chars().map(|c| format!("{:x}", u32::from(c))).collect();
            format!("{PREFIX}u{}", code.join("_"))
        }
    })
}

/// An expression of the template.
pub(super) fn expression(expr: &Expr) -> Result<String> {
    Writer { trusted: false }.write(expr)
}

/// An expression that has names of ours in it.
pub(super) fn expression_inside(expr: &Expr) -> Result<String> {
    Writer { trusted: true }.write(expr)
}

struct Writer {
    trusted: bool,
}

impl Writer {
    fn all(&self, items: &[Expr]) -> Result<Vec<String>> {
        items.iter().map(|e| self.write(e)).collect()
    }

    fn write(&self, expr: &Expr) -> Result<String> {
        let line = expr.line;
        Ok(match &expr.kind {
            Kind::Name(name) if self.trusted && name.starts_with(PREFIX) => name.clone(),
            Kind::Name(name) => mangled(name, line)?,
            Kind::NamespaceRef(..) => return Err(unsupported(line, "this expression")),
            Kind::Str(text) => quoted(text),
            Kind::Int(n) => n.to_string(),
            Kind::Float(x) => format!("_qqq_float(\"{x:e}\")"),
            Kind::Bool(value) => value.to_string(),
            Kind::None => "none".into(),
            Kind::Tuple(items) => format!("_qqq_tuple([{}])", self.all(items)?.join(", ")),
            Kind::List(items) => format!("[{}]", self.all(items)?.join(", ")),
            Kind::Dict(items) => {
                let mut parts = Vec::new();
                for (key, value) in items {
                    parts.push(self.write(key)?);
                    parts.push(self.write(value)?);
                }
                format!("_qqq_dict([{}])", parts.join(", "))
            }
            Kind::Attribute(value, name) => format!("_qqq_attr({}, {})", self.write(value)?, quoted(name)),
            Kind::Item(value, key) => format!("_qqq_item({}, {})", self.write(value)?, self.write(key)?),
            Kind::Slice(value, bounds) => {
                let mut parts = vec![self.write(value)?];
                for bound in bounds {
                    parts.push(bound.as_ref().map_or(Ok("none".into()), |b| self.write(b))?);
                }
                format!("_qqq_slice({})", parts.join(", "))
            }
            Kind::Call(callee, args) => self.call(line, callee, args)?,
            Kind::Filter(value, name, args) => {
                let Some(value) = value else { return Err(unsupported(line, "a filter of nothing")) };
                self.invoke("_qqq_filter", &[quoted(name), self.write(value)?], args)?
            }
            Kind::Test(value, name, args) => {
                self.invoke("_qqq_test", &[quoted(name), self.write(value)?], args)?
            }
            Kind::Not(value) => format!("(not {})", self.write(value)?),
            Kind::Sign(minus, value) => {
                format!("_qqq_sign({minus}, {})", self.write(value)?)
            }
            Kind::Binary(..) => {
                let (mut parts, mut left) = (Vec::new(), expr);
                while let Kind::Binary(a, op, b) = &left.kind {
                    parts.push(self.write(b)?);
                    parts.push(quoted(op));
                    left = a;
                }
                parts.push(self.write(left)?);
                parts.reverse();
                format!("_qqq_math([{}])", parts.join(", "))
            }
            Kind::Concat(parts) => format!("_qqq_concat([{}])", self.all(parts)?.join(", ")),
            Kind::Compare(first, rest) => {
                let mut left = self.write(first)?;
                let mut parts = Vec::new();
                for (i, (op, right)) in rest.iter().enumerate() {
                    // In a chain an operand between two operators is written twice.
                    if i + 1 < rest.len() && !is_pure(right) {
                        return Err(unsupported(line, "a call inside of a chain of comparisons"));
                    }
                    let right = self.write(right)?;
                    parts.push(format!("_qqq_compare({left}, {}, {right})", quoted(op)));
                    left = right;
                }
                format!("({})", parts.join(" and "))
            }
            Kind::Logic(and, ..) => {
                let (mut parts, mut left) = (Vec::new(), expr);
                while let Kind::Logic(kind, a, b) = &left.kind {
                    if kind != and {
                        break;
                    }
                    parts.push(self.write(b)?);
                    left = a;
                }
                parts.push(self.write(left)?);
                parts.reverse();
                format!("({})", parts.join(if *and { " and " } else { " or " }))
            }
            Kind::Condition(condition, value, otherwise) => {
                let otherwise = match otherwise {
                    Some(e) => self.write(e)?,
                    None => "_qqq_undefined".into(),
                };
                format!("({} if {} else {otherwise})", self.write(value)?, self.write(condition)?)
            }
        })
    }

    fn call(&self, line: usize, callee: &Expr, args: &Args) -> Result<String> {
        match &callee.kind {
            Kind::Name(name) if name == "loop" && args.positional.len() == 1 && args.named.is_empty() => {
                let items = self.write(&args.positional[0])?;
                Ok(format!("loop(_qqq_iter({items}, 0))"))
            }
            Kind::Name(name) if name == "loop" || name == "super" => {
                Err(unsupported(line, &format!("this call of {name}")))
            }
            Kind::Name(name) => self.invoke("_qqq_call", &[self.write(callee)?, quoted(name)], args),
            Kind::Attribute(value, name) => {
                self.invoke("_qqq_method", &[self.write(value)?, quoted(name)], args)
            }
            _ => self.invoke("_qqq_call", &[self.write(callee)?, "\"this expression\"".into()], args),
        }
    }

    fn invoke(&self, function: &str, first: &[String], args: &Args) -> Result<String> {
        let mut parts = first.to_vec();
        parts.extend(self.all(&args.positional)?);
        let mut named = Vec::new();
        for (name, value) in &args.named {
            named.push((name, self.write(value)?));
        }
        if args.star.is_none() && args.double_star.is_none() && named.iter().all(|(n, _)| n.is_ascii()) {
            parts.extend(named.iter().map(|(n, v)| format!("{n}={v}")));
            return Ok(format!("{function}({})", parts.join(", ")));
        }
        let optional = |e: &Option<Box<Expr>>| e.as_ref().map_or(Ok("none".into()), |e| self.write(e));
        let pairs: Vec<String> = named.iter().map(|(n, v)| format!("{}, {v}", quoted(n))).collect();
        Ok(format!(
            "_qqq_apply({function}, [{}], {}, _qqq_dict([{}]), {})",
            parts.join(", "),
            optional(&args.star)?,
            pairs.join(", "),
            optional(&args.double_star)?
        ))
    }
}

/// Whether evaluating an expression twice is the same as once.
fn is_pure(expr: &Expr) -> bool {
    match &expr.kind {
        Kind::Name(_) | Kind::Str(_) | Kind::Int(_) | Kind::Float(_) | Kind::Bool(_) | Kind::None => true,
        Kind::Attribute(value, _) | Kind::Sign(_, value) | Kind::Not(value) => is_pure(value),
        Kind::Item(a, b) | Kind::Binary(a, _, b) | Kind::Logic(_, a, b) => is_pure(a) && is_pure(b),
        Kind::Filter(Some(value), _, args) => is_pure(value) && args.positional.iter().all(is_pure),
        Kind::Tuple(items) | Kind::List(items) | Kind::Concat(items) => items.iter().all(is_pure),
        _ => false,
    }
}
