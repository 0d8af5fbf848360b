//! From Jinja2's tree to a template that minijinja runs as Jinja2 runs the original.
//!
//! minijinja does the control flow, scopes and macros. Whatever touches a value (operators,
//! attributes, methods, filters, tests, loops over something) becomes a call of a function of
//! [`crate::chat::engine`] that does as Python does: their names begin with `_qqq_`, which a
//! template's own names may not. Text becomes string literals, so that no whitespace rule is applied
//! twice. Tags keep their lines, for messages.

use super::SyntaxError;
use super::ast::{Expr, For, Kind, Signature, Statement, StatementKind};
use super::parser::parse;
use super::write::{PREFIX, expression, expression_inside, mangled, quoted, unsupported};

type Result<T> = std::result::Result<T, SyntaxError>;

/// Translates a template.
///
/// # Errors
/// It is not valid Jinja, or uses what cannot be rendered as Jinja2 does.
pub fn translate(source: &str) -> Result<String> {
    let statements = parse(source)?;
    let mut writer = Translator { out: String::new(), line: 1, temporaries: 0, depth: 0, loops: 0 };
    writer.body(&statements)?;
    Ok(writer.out)
}

struct Translator {
    out: String,
    line: usize,
    temporaries: usize,
    /// Scopes that are open (loops, macros, ...): blocks stand outside of all of them.
    depth: usize,
    /// Loops that are open in this macro: what `break` and `continue` may leave.
    loops: usize,
}

impl Translator {
    fn body(&mut self, statements: &[Statement]) -> Result<()> {
        statements.iter().try_for_each(|s| self.statement(s))
    }

    /// A body with a scope of its own.
    fn scope(&mut self, statements: &[Statement]) -> Result<()> {
        self.depth += 1;
        self.out += "{% with _qqq_scope = none %}";
        self.body(statements)?;
        self.out += "{% endwith %}";
        self.depth -= 1;
        Ok(())
    }

    /// Begins a tag on a line of the original.
    fn tag(&mut self, line: usize, begin: &str) {
        self.out += begin;
        while self.line < line {
            self.out.push('\n');
            self.line += 1;
        }
        self.out.push(' ');
    }

    fn temporary(&mut self) -> String {
        self.temporaries += 1;
        format!("{PREFIX}t{}", self.temporaries)
    }

    fn statement(&mut self, statement: &Statement) -> Result<()> {
        let line = statement.line;
        match &statement.kind {
            StatementKind::Data(text) => {
                self.out += "{{ ";
                self.out += &quoted(text);
                self.out += " }}";
            }
            StatementKind::Print(value) => {
                self.tag(line, "{{");
                let value = expression(value)?;
                self.out += &value;
                self.out += " }}";
            }
            StatementKind::For(node) => self.for_loop(line, node)?,
            StatementKind::If(branches, otherwise) => {
                for (i, (condition, body)) in branches.iter().enumerate() {
                    self.tag(condition.line, "{%");
                    let condition = expression(condition)?;
                    self.out += &format!("{} {condition} %}}", if i == 0 { "if" } else { "elif" });
                    self.body(body)?;
                }
                self.out += "{% else %}";
                self.body(otherwise)?;
                self.out += "{% endif %}";
            }
            StatementKind::Set(target, value) => {
                let value = expression(value)?;
                self.assign(line, target, &value)?;
            }
            StatementKind::SetBlock(target, filters, body) => {
                let captured = self.capture(line, body)?;
                let value = filters.as_ref().map_or(Ok(captured.clone()), |f| filtered(f, &captured))?;
                self.assign(line, target, &value)?;
            }
            StatementKind::With(values, body) => self.with(line, values, body)?,
            StatementKind::Macro(name, signature, body) => self.define(line, name, signature, body)?,
            StatementKind::CallBlock(signature, call, body) => {
                let Kind::Call(callee, args) = &call.kind else {
                    return Err(unsupported(line, "this call block"));
                };
                let caller = self.temporary();
                self.define(line, &caller, signature, body)?;
                let mut args = args.clone();
                if args.named.iter().any(|(name, _)| name == "caller") {
                    return Err(unsupported(line, "an argument named caller in a call block"));
                }
                let value = Expr { line, kind: Kind::Name(caller) };
                args.named.push(("caller".into(), value));
                let call = Expr { line, kind: Kind::Call(callee.clone(), args) };
                self.tag(line, "{{");
                let call = expression_inside(&call)?;
                self.out += &call;
                self.out += " }}";
            }
            StatementKind::FilterBlock(filters, body) => {
                let captured = self.capture(line, body)?;
                let value = filtered(filters, &captured)?;
                self.tag(line, "{{");
                self.out += &value;
                self.out += " }}";
            }
            StatementKind::Block(name, body) => {
                if self.depth > 0 {
                    return Err(unsupported(line, "a block inside of a loop, macro or scope"));
                }
                self.tag(line, "{%");
                self.out += &format!("block {} %}}", mangled(name, line)?);
                self.scope(body)?;
                self.out += "{% endblock %}";
            }
            StatementKind::Scope(body) => self.scope(body)?,
            StatementKind::Break | StatementKind::Continue if self.loops == 0 => {
                return Err(SyntaxError { line, message: "break or continue outside of a loop".into() });
            }
            StatementKind::Break => self.out += "{% break %}",
            StatementKind::Continue => self.out += "{% continue %}",
            StatementKind::Unavailable(tag) => {
                self.tag(line, "{{");
                self.out += &format!("_qqq_unavailable({}) }}}}", quoted(tag));
            }
        }
        Ok(())
    }

    fn for_loop(&mut self, line: usize, node: &For) -> Result<()> {
        let For { target, iterable, condition, recursive, body, otherwise } = node;
        let iterable = iterated(&expression(iterable)?, target);
        let target = pattern(target)?;
        self.tag(line, "{%");
        self.out += &format!("for {target} in {iterable}");
        if let Some(condition) = condition {
            let condition = expression(condition)?;
            self.out += &format!(" if {condition}");
        }
        self.out += if *recursive { " recursive %}" } else { " %}" };
        self.depth += 1;
        self.loops += 1;
        self.body(body)?;
        self.loops -= 1;
        self.depth -= 1;
        if !otherwise.is_empty() {
            self.out += "{% else %}";
            self.scope(otherwise)?;
        }
        self.out += "{% endfor %}";
        Ok(())
    }

    /// Renders a body into a variable, whose name is returned.
    fn capture(&mut self, line: usize, body: &[Statement]) -> Result<String> {
        let name = self.temporary();
        self.tag(line, "{%");
        self.out += &format!("set {name} %}}");
        // Leaving a loop from within would leave the capture open.
        let loops = std::mem::take(&mut self.loops);
        self.scope(body)?;
        self.loops = loops;
        self.out += "{% endset %}";
        Ok(name)
    }

    fn assign(&mut self, line: usize, target: &Expr, value: &str) -> Result<()> {
        match &target.kind {
            Kind::Name(name) => {
                self.tag(line, "{%");
                self.out += &format!("set {} = {value} %}}", mangled(name, line)?);
            }
            Kind::NamespaceRef(name, attribute) => {
                let nothing = self.temporary();
                self.tag(line, "{%");
                let name = mangled(name, line)?;
                let attribute = quoted(attribute);
                self.out += &format!("set {nothing} = _qqq_setattr({name}, {attribute}, {value}) %}}");
            }
            Kind::Tuple(items) => {
                let all = self.temporary();
                self.tag(line, "{%");
                self.out += &format!("set {all} = _qqq_unpack({value}, {}) %}}", items.len());
                for (i, item) in items.iter().enumerate() {
                    self.assign(line, item, &format!("_qqq_item({all}, {i})"))?;
                }
            }
            _ => return Err(unsupported(line, "assigning to this expression")),
        }
        Ok(())
    }

    /// All values are computed before the first name is bound.
    fn with(&mut self, line: usize, values: &[(Expr, Expr)], body: &[Statement]) -> Result<()> {
        self.tag(line, "{%");
        self.out += "with _qqq_scope = none";
        let mut temporaries = Vec::new();
        for (_, value) in values {
            let name = self.temporary();
            let value = expression(value)?;
            self.out += &format!(", {name} = {value}");
            temporaries.push(name);
        }
        self.out += " %}";
        self.depth += 1;
        for ((target, _), name) in values.iter().zip(&temporaries) {
            self.assign(line, target, name)?;
        }
        self.body(body)?;
        self.depth -= 1;
        self.out += "{% endwith %}";
        Ok(())
    }

    /// A macro: minijinja's own, whose parameters are all given, behind an object that binds arguments
    /// as Python does (`varargs`, `kwargs` and `caller` only where the body has these names).
    fn define(&mut self, line: usize, name: &str, signature: &Signature, body: &[Statement]) -> Result<()> {
        let inner = self.temporary();
        let mut parameters = Vec::new();
        for (parameter, _) in signature {
            if matches!(parameter.as_str(), "loop" | "varargs" | "kwargs" | "caller") {
                return Err(unsupported(line, &format!("a macro's parameter named {parameter}")));
            }
            parameters.push(mangled(parameter, line)?);
        }
        let names: Vec<String> = signature.iter().map(|(n, _)| quoted(n)).collect();
        self.tag(line, "{%");
        let start = self.out.len();
        self.out += "MACRO";
        for ((_, default), parameter) in signature.iter().zip(&parameters) {
            if let Some(default) = default {
                let value = expression(default)?;
                self.tag(default.line, "{%");
                self.out += &format!(
                    "if _qqq_missing({parameter}) %}}{{% set {parameter} = {value} %}}{{% endif %}}"
                );
            }
        }
        self.depth += 1;
        let loops = std::mem::take(&mut self.loops);
        self.body(body)?;
        self.loops = loops;
        self.depth -= 1;
        let uses = |extra: &str| mentions(&self.out[start..], extra);
        let extras: Vec<&str> = ["varargs", "kwargs", "caller"].into_iter().filter(|e| uses(e)).collect();
        let all: Vec<&str> = parameters.iter().map(String::as_str).chain(extras.iter().copied()).collect();
        // The caller goes by another name: minijinja treats it specially.
        let all = all.join(", ").replace("caller", "_qqq_caller");
        let head = format!("macro {inner}({all}) %}}");
        self.out.replace_range(start..start + "MACRO".len(), &head);
        let body = self.out[start..].to_owned();
        self.out.truncate(start);
        self.out += &body;
        let extras: Vec<String> = extras.iter().map(|e| quoted(e)).collect();
        self.out += &format!(
            "{{% endmacro %}}{{% set {} = _qqq_macro({inner}, {}, [{}], {}, [{}]) %}}",
            mangled(name, line).or_else(|e| if name.starts_with(PREFIX) {
                Ok(name.into())
            } else {
                Err(e)
            })?,
            quoted(name),
            names.join(", "),
            signature.iter().filter(|(_, default)| default.is_some()).count(),
            extras.join(", "),
        );
        Ok(())
    }
}

/// Whether translated text has a name as a variable.
fn mentions(text: &str, name: &str) -> bool {
    let name = if name == "caller" { "_qqq_caller" } else { name };
    let word = |c: Option<char>| c.is_some_and(|c| c == '_' || c.is_alphanumeric());
    let mut quoted = false;
    let mut escaped = false;
    text.char_indices().any(|(i, c)| {
        let inside = quoted;
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = c == '\\' && !escaped;
        !inside
            && text[i..].starts_with(name)
            && !word(text[..i].chars().next_back())
            && !word(text[i + name.len()..].chars().next())
            && !text[i + name.len()..].starts_with('=')
    })
}

/// Names that items are bound to.
fn pattern(target: &Expr) -> Result<String> {
    match &target.kind {
        Kind::Name(name) if name == "loop" => Err(unsupported(target.line, "a loop variable named loop")),
        Kind::Name(name) => mangled(name, target.line),
        Kind::Tuple(items) => {
            let items = items.iter().map(pattern).collect::<Result<Vec<_>>>()?;
            Ok(format!("({},)", items.join(", ")))
        }
        _ => Err(unsupported(target.line, "assigning to this expression")),
    }
}

/// The items of a value, unpacked as the target needs it.
fn iterated(value: &str, target: &Expr) -> String {
    fn shape(target: &Expr) -> String {
        match &target.kind {
            Kind::Tuple(items) => format!("[{}]", items.iter().map(shape).collect::<Vec<_>>().join(", ")),
            _ => "0".into(),
        }
    }
    format!("_qqq_iter({value}, {})", shape(target))
}

/// Filters without a value, put on a variable.
fn filtered(filters: &Expr, name: &str) -> Result<String> {
    fn fill(filter: &Expr, name: &str) -> Expr {
        let kind = match &filter.kind {
            Kind::Filter(None, filter, args) => Kind::Filter(
                Some(Box::new(Expr {
                    line: args.positional.first().map_or(0, |a| a.line),
                    kind: Kind::Name(name.into()),
                })),
                filter.clone(),
                args.clone(),
            ),
            Kind::Filter(Some(inner), filter, args) => {
                Kind::Filter(Some(Box::new(fill(inner, name))), filter.clone(), args.clone())
            }
            other => other.clone(),
        };
        Expr { line: filter.line, kind }
    }
    expression_inside(&fill(filters, name))
}
