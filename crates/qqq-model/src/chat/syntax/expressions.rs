//! Jinja2's expressions, by recursive descent: the same precedences, the same things refused.

use super::SyntaxError;
use super::ast::{Args, Expr, Kind, Signature};
use super::lexer::Token;
use super::parser::Parser;

type Result<T> = std::result::Result<T, SyntaxError>;

impl Parser {
    fn expr(line: usize, kind: Kind) -> Expr {
        Expr { line, kind }
    }

    /// An expression, `a if b else c` included.
    pub(super) fn expression(&mut self) -> Result<Expr> {
        self.nested(Self::condition)
    }

    fn condition(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut value = self.logic(false)?;
        while self.skip_name("if") {
            let condition = self.logic(false)?;
            let otherwise =
                if self.skip_name("else") { Some(Box::new(self.nested(Self::condition)?)) } else { None };
            value = Self::expr(line, Kind::Condition(Box::new(condition), Box::new(value), otherwise));
        }
        Ok(value)
    }

    /// `or`, and `and` inside of it.
    fn logic(&mut self, and: bool) -> Result<Expr> {
        let line = self.line();
        let mut left = if and { self.not()? } else { self.logic(true)? };
        while self.skip_name(if and { "and" } else { "or" }) {
            let right = if and { self.not()? } else { self.logic(true)? };
            left = Self::expr(line, Kind::Logic(and, Box::new(left), Box::new(right)));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        let line = self.line();
        if self.skip_name("not") {
            let value = self.nested(Self::not)?;
            return Ok(Self::expr(line, Kind::Not(Box::new(value))));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.binary(0)?;
        let mut rest = Vec::new();
        loop {
            let op = match self.peek() {
                Token::Op(op @ ("==" | "!=" | "<" | "<=" | ">" | ">=")) => op,
                Token::Name(name) if name == "in" => "in",
                Token::Name(name) if name == "not" && self.peek_name(1, "in") => {
                    self.next();
                    "not in"
                }
                _ => break,
            };
            self.next();
            rest.push((op, self.binary(0)?));
        }
        Ok(if rest.is_empty() { first } else { Self::expr(line, Kind::Compare(Box::new(first), rest)) })
    }

    /// `+ -`, `~`, `* / // %`, `**`: levels 0 to 3, all of them left-associative.
    fn binary(&mut self, level: usize) -> Result<Expr> {
        const LEVELS: [&[&str]; 4] = [&["+", "-"], &["~"], &["*", "/", "//", "%"], &["**"]];
        let Some(operators) = LEVELS.get(level) else {
            return self.unary(true);
        };
        let line = self.line();
        let mut left = self.binary(level + 1)?;
        loop {
            let op = match self.peek() {
                Token::Op(op) if operators.contains(op) => *op,
                _ => return Ok(left),
            };
            self.next();
            let right = self.binary(level + 1)?;
            left = match left.kind {
                Kind::Concat(mut parts) if op == "~" => {
                    parts.push(right);
                    Self::expr(line, Kind::Concat(parts))
                }
                _ if op == "~" => Self::expr(line, Kind::Concat(vec![left, right])),
                _ => Self::expr(line, Kind::Binary(Box::new(left), op, Box::new(right))),
            };
        }
    }

    fn unary(&mut self, with_filter: bool) -> Result<Expr> {
        let line = self.line();
        let node = match self.peek() {
            Token::Op(op @ ("-" | "+")) => {
                let minus = *op == "-";
                self.next();
                let value = self.nested(|p| p.unary(false))?;
                Self::expr(line, Kind::Sign(minus, Box::new(value)))
            }
            _ => self.primary(false)?,
        };
        let node = self.postfix(node)?;
        if with_filter { self.filters_and_tests(node) } else { Ok(node) }
    }

    /// A name, a literal, or something in brackets.
    pub(super) fn primary(&mut self, with_namespace: bool) -> Result<Expr> {
        let line = self.line();
        let token = self.peek().clone();
        let kind = match token {
            Token::Name(name) => {
                self.next();
                match name.as_str() {
                    "true" | "True" => Kind::Bool(true),
                    "false" | "False" => Kind::Bool(false),
                    "none" | "None" => Kind::None,
                    _ if with_namespace && *self.peek() == Token::Op(".") => {
                        self.next();
                        Kind::NamespaceRef(name, self.name()?)
                    }
                    _ => Kind::Name(name),
                }
            }
            Token::Str(mut text) => {
                self.next();
                while let Token::Str(more) = self.peek() {
                    text += more;
                    self.next();
                }
                Kind::Str(text)
            }
            Token::Int(n) => {
                self.next();
                Kind::Int(n)
            }
            Token::Float(x) => {
                self.next();
                Kind::Float(x)
            }
            Token::Op("(") => {
                self.next();
                let value = self.tuple(true, &[])?;
                self.expect(")")?;
                return Ok(value);
            }
            Token::Op("[") => {
                self.next();
                let mut items = Vec::new();
                while *self.peek() != Token::Op("]") {
                    if !items.is_empty() {
                        self.expect(",")?;
                    }
                    if *self.peek() == Token::Op("]") {
                        break;
                    }
                    items.push(self.expression()?);
                }
                self.expect("]")?;
                Kind::List(items)
            }
            Token::Op("{") => {
                self.next();
                let mut items = Vec::new();
                while *self.peek() != Token::Op("}") {
                    if !items.is_empty() {
                        self.expect(",")?;
                    }
                    if *self.peek() == Token::Op("}") {
                        break;
                    }
                    let key = self.expression()?;
                    self.expect(":")?;
                    items.push((key, self.expression()?));
                }
                self.expect("}")?;
                Kind::Dict(items)
            }
            other => return self.fail(format!("unexpected '{other}'")),
        };
        Ok(Self::expr(line, kind))
    }

    /// An expression, or several with commas between them as a tuple. It ends at one of `end` (names)
    /// as well as where brackets or tags end.
    pub(super) fn tuple(&mut self, parentheses: bool, end: &[&str]) -> Result<Expr> {
        self.nested(|p| p.tuple_of(parentheses, end, Self::expression))
    }

    /// Like [`Self::tuple`], without `a if b else c`.
    pub(super) fn tuple_without_condition(&mut self, end: &[&str]) -> Result<Expr> {
        self.nested(|p| p.tuple_of(false, end, |p| p.logic(false)))
    }

    pub(super) fn tuple_of(
        &mut self,
        parentheses: bool,
        end: &[&str],
        item: impl Fn(&mut Self) -> Result<Expr>,
    ) -> Result<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect(",")?;
            }
            let ended = match self.peek() {
                Token::VariableEnd | Token::BlockEnd | Token::Op(")") => true,
                Token::Name(name) => end.contains(&name.as_str()),
                _ => false,
            };
            if ended {
                break;
            }
            items.push(item(self)?);
            if *self.peek() != Token::Op(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            if let Some(only) = items.pop() {
                return Ok(only);
            }
            if !parentheses {
                return self.fail(format!("expected an expression, got '{}'", self.peek()));
            }
        }
        Ok(Self::expr(line, Kind::Tuple(items)))
    }

    fn postfix(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            node = match self.peek() {
                Token::Op(".") => {
                    self.next();
                    match self.next() {
                        Token::Name(name) => Self::expr(line, Kind::Attribute(Box::new(node), name)),
                        Token::Int(n) => {
                            let index = Self::expr(line, Kind::Int(n));
                            Self::expr(line, Kind::Item(Box::new(node), Box::new(index)))
                        }
                        other => return self.fail(format!("expected a name or number, got '{other}'")),
                    }
                }
                Token::Op("[") => {
                    self.next();
                    self.subscript(node, line)?
                }
                Token::Op("(") => {
                    let args = self.arguments()?;
                    Self::expr(line, Kind::Call(Box::new(node), args))
                }
                _ => return Ok(node),
            };
        }
    }

    fn subscript(&mut self, node: Expr, line: usize) -> Result<Expr> {
        let node = Box::new(node);
        let end = |p: &Self| matches!(p.peek(), Token::Op("]" | ","));
        let colon = |p: &Self| *p.peek() == Token::Op(":");
        let first = if colon(self) { None } else { Some(Box::new(self.expression()?)) };
        if !colon(self) {
            let Some(index) = first else { return self.fail("expected a subscript") };
            if *self.peek() == Token::Op(",") {
                let mut items = vec![*index];
                while *self.peek() == Token::Op(",") {
                    self.next();
                    if *self.peek() == Token::Op("]") {
                        break;
                    }
                    items.push(self.expression()?);
                }
                self.expect("]")?;
                let key = Box::new(Self::expr(line, Kind::Tuple(items)));
                return Ok(Self::expr(line, Kind::Item(node, key)));
            }
            self.expect("]")?;
            return Ok(Self::expr(line, Kind::Item(node, index)));
        }
        self.next();
        let stop = if end(self) || colon(self) { None } else { Some(Box::new(self.expression()?)) };
        let mut step = None;
        if colon(self) {
            self.next();
            step = if end(self) { None } else { Some(Box::new(self.expression()?)) };
        }
        self.expect("]")?;
        Ok(Self::expr(line, Kind::Slice(node, [first, stop, step])))
    }

    fn filters_and_tests(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            node = match self.peek() {
                Token::Op("|") => self.filter(Some(node))?.unwrap_or_else(|| Self::expr(line, Kind::None)),
                Token::Name(name) if name == "is" => self.test(node)?,
                Token::Op("(") => {
                    let args = self.arguments()?;
                    Self::expr(line, Kind::Call(Box::new(node), args))
                }
                _ => return Ok(node),
            };
        }
    }

    /// Filters after a value, or after nothing.
    pub(super) fn filter(&mut self, mut node: Option<Expr>) -> Result<Option<Expr>> {
        while *self.peek() == Token::Op("|") {
            self.next();
            node = Some(self.one_filter(node)?);
        }
        Ok(node)
    }

    /// A filter from its name on.
    pub(super) fn one_filter(&mut self, node: Option<Expr>) -> Result<Expr> {
        let line = self.line();
        let name = self.dotted_name()?;
        let args = if *self.peek() == Token::Op("(") { self.arguments()? } else { Args::default() };
        Ok(Self::expr(line, Kind::Filter(node.map(Box::new), name, args)))
    }

    fn dotted_name(&mut self) -> Result<String> {
        let mut name = self.name()?;
        while *self.peek() == Token::Op(".") {
            self.next();
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name)
    }

    fn test(&mut self, node: Expr) -> Result<Expr> {
        let line = self.line();
        self.next();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let args = match self.peek() {
            Token::Op("(") => self.arguments()?,
            Token::Name(next) if matches!(next.as_str(), "else" | "or" | "and") => Args::default(),
            Token::Name(next) if next == "is" => {
                return self.fail("tests cannot be chained with `is`");
            }
            Token::Name(_) | Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{") => {
                let value = self.primary(false)?;
                Args { positional: vec![self.postfix(value)?], ..Args::default() }
            }
            _ => Args::default(),
        };
        let test = Self::expr(line, Kind::Test(Box::new(node), name, args));
        Ok(if negated { Self::expr(line, Kind::Not(Box::new(test))) } else { test })
    }

    /// Arguments in parentheses.
    fn arguments(&mut self) -> Result<Args> {
        self.expect("(")?;
        let mut args = Args::default();
        let mut first = true;
        while *self.peek() != Token::Op(")") {
            if !first {
                self.expect(",")?;
                if *self.peek() == Token::Op(")") {
                    break;
                }
            }
            first = false;
            let (starred, double) = (args.star.is_some(), args.double_star.is_some());
            let named = matches!(self.peek(), Token::Name(_)) && *self.peek_at(1) == Token::Op("=");
            let allowed = match self.peek() {
                Token::Op("*") => !starred && !double,
                Token::Op("**") => !double,
                _ if named => !double,
                _ => !starred && !double && args.named.is_empty(),
            };
            if !allowed {
                return self.fail("invalid syntax for function call expression");
            }
            match self.peek() {
                Token::Op("*") => {
                    self.next();
                    args.star = Some(Box::new(self.expression()?));
                }
                Token::Op("**") => {
                    self.next();
                    args.double_star = Some(Box::new(self.expression()?));
                }
                _ if named => {
                    let name = self.name()?;
                    self.next();
                    if args.named.iter().any(|(n, _)| *n == name) {
                        return self.fail(format!("the argument {name} is given twice"));
                    }
                    args.named.push((name, self.expression()?));
                }
                _ => args.positional.push(self.expression()?),
            }
        }
        self.expect(")")?;
        Ok(args)
    }

    /// Parameters of a macro or call block in parentheses.
    pub(super) fn signature(&mut self) -> Result<Signature> {
        self.expect("(")?;
        let mut parameters = Signature::new();
        while *self.peek() != Token::Op(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
            }
            let name = self.name()?;
            let default = if *self.peek() == Token::Op("=") {
                self.next();
                Some(self.expression()?)
            } else if parameters.last().is_some_and(|(_, d)| d.is_some()) {
                return self.fail("a parameter without a default follows one that has it");
            } else {
                None
            };
            if parameters.iter().any(|(n, _)| *n == name) {
                return self.fail(format!("the parameter {name} is there twice"));
            }
            parameters.push((name, default));
        }
        self.expect(")")?;
        Ok(parameters)
    }
}
