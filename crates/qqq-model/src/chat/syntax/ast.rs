//! A template as a tree.

/// An expression and its line.
#[derive(Clone, Debug)]
pub struct Expr {
    /// Line of the template, from 1.
    pub line: usize,
    /// What it is.
    pub kind: Kind,
}

/// Kinds of expressions.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A variable, looked up when the template runs.
    Name(String),
    /// `name.attribute` as the target of `set`.
    NamespaceRef(String, String),
    /// A string, its escapes undone.
    Str(String),
    /// An integer; Python's have no end, so larger ones are an error.
    Int(i128),
    /// A number with a point or an exponent.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// The constant `none`.
    None,
    /// A tuple, `(a, b)`.
    Tuple(Vec<Expr>),
    /// A list, `[a, b]`.
    List(Vec<Expr>),
    /// `{a: b}`.
    Dict(Vec<(Expr, Expr)>),
    /// An attribute, or an item where there is none: `a.b`.
    Attribute(Box<Expr>, String),
    /// An item, or an attribute where there is none: `a[b]`.
    Item(Box<Expr>, Box<Expr>),
    /// A slice, `a[b:c:d]`, of which each part may be missing.
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    /// A call, `f(...)`.
    Call(Box<Expr>, Args),
    /// `a|name(...)`; without `a` in filter blocks.
    Filter(Option<Box<Expr>>, String, Args),
    /// `a is name(...)`.
    Test(Box<Expr>, String, Args),
    /// The opposite of a value's truth, `not a`.
    Not(Box<Expr>),
    /// `-a`, or `+a` if false.
    Sign(bool, Box<Expr>),
    /// An arithmetic operator between two values; it is named as it is written.
    Binary(Box<Expr>, &'static str, Box<Expr>),
    /// `a ~ b ~ c`.
    Concat(Vec<Expr>),
    /// `a < b <= c`, with `in` and `not in`.
    Compare(Box<Expr>, Vec<(&'static str, Expr)>),
    /// `a and b` if true, `a or b` if false.
    Logic(bool, Box<Expr>, Box<Expr>),
    /// `a if b else c`: condition, then, else.
    Condition(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}

/// Arguments of a call.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// Arguments by position, in their order.
    pub positional: Vec<Expr>,
    /// Arguments by name, in the order of the call.
    pub named: Vec<(String, Expr)>,
    /// Items that become more positional arguments, `*args`.
    pub star: Option<Box<Expr>>,
    /// A dictionary that becomes more named arguments, `**kwargs`.
    pub double_star: Option<Box<Expr>>,
}

/// Parameters of a macro, with the values they have if they are not given.
pub type Signature = Vec<(String, Option<Expr>)>;

/// A statement and its line.
#[derive(Debug)]
pub struct Statement {
    /// Line of the template, from 1.
    pub line: usize,
    /// What it is.
    pub kind: StatementKind,
}

/// Kinds of statements.
#[derive(Debug)]
pub enum StatementKind {
    /// Text outside of tags, which is written as it is.
    Data(String),
    /// `{{ a }}`.
    Print(Expr),
    /// `for`: target, iterable, condition, recursive, body, else.
    For(Box<For>),
    /// `if` and its `elif`s, and the else.
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    /// `set target = value`.
    Set(Expr, Expr),
    /// `set target | filters` with a body.
    SetBlock(Expr, Option<Expr>, Vec<Statement>),
    /// `with`: names and values of a scope of its own.
    With(Vec<(Expr, Expr)>, Vec<Statement>),
    /// `macro`: name, parameters, and what a call writes.
    Macro(String, Signature, Vec<Statement>),
    /// `call(...) f(...)`.
    CallBlock(Signature, Expr, Vec<Statement>),
    /// `filter`: what the body writes goes through a filter.
    FilterBlock(Expr, Vec<Statement>),
    /// `block`: a named part, which is a scope of its own.
    Block(String, Vec<Statement>),
    /// A body with a scope of its own: `generation`, `autoescape false`.
    Scope(Vec<Statement>),
    /// `break`: the innermost loop ends.
    Break,
    /// `continue`: the innermost loop goes on with its next item.
    Continue,
    /// A tag that always fails when it is reached, by its name: there is nowhere to load templates from.
    Unavailable(&'static str),
}

/// A `for` loop, with its condition and what runs where it has no items.
#[derive(Debug)]
pub struct For {
    /// Names that items are bound to.
    pub target: Expr,
    /// What is iterated over.
    pub iterable: Expr,
    /// Which items are taken.
    pub condition: Option<Expr>,
    /// Whether `loop(...)` may be called.
    pub recursive: bool,
    /// For each item.
    pub body: Vec<Statement>,
    /// If there was no item.
    pub otherwise: Vec<Statement>,
}
