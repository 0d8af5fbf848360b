//! Jinja2's statements, with the extensions that transformers adds: loop controls and `generation`.

use super::SyntaxError;
use super::ast::{Expr, For, Kind, Statement, StatementKind};
use super::lexer::{Token, tokenize};

type Result<T> = std::result::Result<T, SyntaxError>;

/// Expressions and blocks inside of each other: far beyond any template, well within the stack.
const MAX_DEPTH: usize = 60;

/// Reads a template.
///
/// # Errors
/// It is not valid Jinja.
pub fn parse(source: &str) -> Result<Vec<Statement>> {
    let mut parser = Parser { tokens: tokenize(source)?, at: 0, depth: 0, open: Vec::new() };
    parser.body(&[])
}

pub(super) struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
    /// Tags that are open, for messages.
    open: Vec<String>,
}

impl Parser {
    pub(super) fn line(&self) -> usize {
        self.tokens[self.at].0
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(SyntaxError { line: self.line(), message: message.into() })
    }

    pub(super) fn peek(&self) -> &Token {
        self.peek_at(0)
    }

    pub(super) fn peek_at(&self, n: usize) -> &Token {
        &self.tokens[(self.at + n).min(self.tokens.len() - 1)].1
    }

    pub(super) fn peek_name(&self, n: usize, name: &str) -> bool {
        matches!(self.peek_at(n), Token::Name(found) if found == name)
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.peek_name(0, name);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn name(&mut self) -> Result<String> {
        match self.peek().clone() {
            Token::Name(name) => {
                self.next();
                Ok(name)
            }
            other => self.fail(format!("expected a name, got '{other}'")),
        }
    }

    pub(super) fn expect(&mut self, op: &'static str) -> Result<()> {
        self.expect_token(&Token::Op(op))
    }

    fn expect_token(&mut self, token: &Token) -> Result<()> {
        if self.peek() != token {
            return self.fail(format!("expected '{token}', got '{}'", self.peek()));
        }
        self.next();
        Ok(())
    }

    fn expect_name(&mut self, name: &str) -> Result<()> {
        if !self.skip_name(name) {
            return self.fail(format!("expected '{name}', got '{}'", self.peek()));
        }
        Ok(())
    }

    /// Runs a part of the parser one level deeper.
    pub(super) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return self.fail(format!("more than {MAX_DEPTH} expressions or blocks inside of each other"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Statements up to the tag that is one of `end`, which stays the current token.
    fn body(&mut self, end: &[&str]) -> Result<Vec<Statement>> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::Data(text) => body.push(Statement { line, kind: StatementKind::Data(text) }),
                Token::VariableBegin => {
                    let value = self.tuple(false, &[])?;
                    self.expect_token(&Token::VariableEnd)?;
                    body.push(Statement { line, kind: StatementKind::Print(value) });
                }
                Token::BlockBegin => {
                    if end.iter().any(|name| self.peek_name(0, name)) {
                        return Ok(body);
                    }
                    let statements = self.nested(Self::statement)?;
                    body.extend(statements.into_iter().map(|kind| Statement { line, kind }));
                    self.expect_token(&Token::BlockEnd)?;
                }
                _ if end.is_empty() => return Ok(body),
                _ => {
                    let open = self.open.last().map_or("", |tag| tag);
                    let expected = end.join(" or ");
                    return self.fail(format!("the tag {open} is not closed: expected {expected}"));
                }
            }
        }
    }

    /// The body of a tag, from the end of its first half to the name of the second, which is returned.
    fn block(&mut self, end: &[&str]) -> Result<(Vec<Statement>, String)> {
        if *self.peek() == Token::Op(":") {
            self.next();
        }
        self.expect_token(&Token::BlockEnd)?;
        let body = self.body(end)?;
        let name = self.name()?;
        Ok((body, name))
    }

    fn statement(&mut self) -> Result<Vec<StatementKind>> {
        let tag = self.name()?;
        self.open.push(tag.clone());
        let kind = match tag.as_str() {
            "for" => self.for_loop()?,
            "if" => self.if_chain()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.name()?;
                let signature = self.signature()?;
                StatementKind::Macro(name, signature, self.block(&["endmacro"])?.0)
            }
            "call" => {
                let parameters = if *self.peek() == Token::Op("(") { self.signature()? } else { Vec::new() };
                let call = self.expression()?;
                if !matches!(call.kind, Kind::Call(..)) {
                    return self.fail("expected a call after the tag call");
                }
                StatementKind::CallBlock(parameters, call, self.block(&["endcall"])?.0)
            }
            "filter" => {
                let first = self.one_filter(None)?;
                let filters = self.filter(Some(first.clone()))?.unwrap_or(first);
                StatementKind::FilterBlock(filters, self.block(&["endfilter"])?.0)
            }
            "block" => {
                let name = self.name()?;
                let _scoped = self.skip_name("scoped");
                if self.skip_name("required") {
                    return self.fail("required blocks are not supported");
                }
                let body = self.block(&["endblock"])?.0;
                self.skip_name(&name);
                StatementKind::Block(name, body)
            }
            "generation" => StatementKind::Scope(self.block(&["endgeneration"])?.0),
            "autoescape" => {
                let value = self.expression()?;
                if !matches!(value.kind, Kind::Bool(false)) {
                    return self.fail("autoescape is supported with `false` only: prompts are not HTML");
                }
                StatementKind::Scope(self.block(&["endautoescape"])?.0)
            }
            "print" => {
                let mut values = Vec::new();
                while *self.peek() != Token::BlockEnd {
                    if !values.is_empty() {
                        self.expect(",")?;
                    }
                    values.push(StatementKind::Print(self.expression()?));
                }
                self.open.pop();
                return Ok(values);
            }
            "break" => StatementKind::Break,
            "continue" => StatementKind::Continue,
            "include" | "import" | "from" | "extends" => {
                while !matches!(self.peek(), Token::BlockEnd | Token::Eof) {
                    self.next();
                }
                StatementKind::Unavailable(match tag.as_str() {
                    "include" => "include",
                    "extends" => "extends",
                    _ => "import",
                })
            }
            _ => {
                self.open.pop();
                let inside = self.open.last().map(|open| format!(" inside of the tag {open}"));
                return self.fail(format!("encountered unknown tag '{tag}'{}", inside.unwrap_or_default()));
            }
        };
        self.open.pop();
        Ok(vec![kind])
    }

    fn for_loop(&mut self) -> Result<StatementKind> {
        let target = self.target(false, &["in"])?;
        self.expect_name("in")?;
        let iterable = self.tuple_without_condition(&["recursive"])?;
        let condition = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        let (body, end) = self.block(&["endfor", "else"])?;
        let otherwise = if end == "else" { self.block(&["endfor"])?.0 } else { Vec::new() };
        let node = For { target, iterable, condition, recursive, body, otherwise };
        Ok(StatementKind::For(Box::new(node)))
    }

    fn if_chain(&mut self) -> Result<StatementKind> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple_without_condition(&[])?;
            let (body, end) = self.block(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            match end.as_str() {
                "elif" => {}
                "else" => return Ok(StatementKind::If(branches, self.block(&["endif"])?.0)),
                _ => return Ok(StatementKind::If(branches, Vec::new())),
            }
        }
    }

    fn set(&mut self) -> Result<StatementKind> {
        let target = self.target(true, &[])?;
        if *self.peek() == Token::Op("=") {
            self.next();
            return Ok(StatementKind::Set(target, self.tuple(false, &[])?));
        }
        let filters = self.filter(None)?;
        Ok(StatementKind::SetBlock(target, filters, self.block(&["endset"])?.0))
    }

    fn with(&mut self) -> Result<StatementKind> {
        let mut values: Vec<(Expr, Expr)> = Vec::new();
        while !matches!(self.peek(), Token::BlockEnd | Token::Eof | Token::Op(":")) {
            if !values.is_empty() {
                self.expect(",")?;
            }
            let target = self.target(false, &[])?;
            self.expect("=")?;
            values.push((target, self.expression()?));
        }
        Ok(StatementKind::With(values, self.block(&["endwith"])?.0))
    }

    /// What is assigned to: names, tuples of them, attributes of namespaces.
    fn target(&mut self, with_namespace: bool, end: &[&str]) -> Result<Expr> {
        let target = self.nested(|p| p.tuple_of(false, end, |p| p.primary(with_namespace)))?;
        self.check_target(&target)?;
        Ok(target)
    }

    fn check_target(&self, target: &Expr) -> Result<()> {
        match &target.kind {
            Kind::Name(_) | Kind::NamespaceRef(..) => Ok(()),
            Kind::Tuple(items) if !items.is_empty() => items.iter().try_for_each(|t| self.check_target(t)),
            _ => self.fail("cannot assign to this expression"),
        }
    }
}
