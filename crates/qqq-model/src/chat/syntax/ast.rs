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
    /// A variable.
    Name(String),
    /// `name.attribute` as the target of `set`.
    NamespaceRef(String, String),
    /// A string.
    Str(String),
    /// An integer.
    Int(i128),
    /// A float.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// `none`.
    None,
    /// `(a, b)`.
    Tuple(Vec<Expr>),
    /// `[a, b]`.
    List(Vec<Expr>),
    /// `{a: b}`.
    Dict(Vec<(Expr, Expr)>),
    /// `a.b`.
    Attribute(Box<Expr>, String),
    /// `a[b]`.
    Item(Box<Expr>, Box<Expr>),
    /// `a[b:c:d]`.
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    /// `f(...)`.
    Call(Box<Expr>, Args),
    /// `a|name(...)`; without `a` in filter blocks.
    Filter(Option<Box<Expr>>, String, Args),
    /// `a is name(...)`.
    Test(Box<Expr>, String, Args),
    /// `not a`.
    Not(Box<Expr>),
    /// `-a`, or `+a` if false.
    Sign(bool, Box<Expr>),
    /// Arithmetic.
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
    /// By position.
    pub positional: Vec<Expr>,
    /// By name.
    pub named: Vec<(String, Expr)>,
    /// `*args`.
    pub star: Option<Box<Expr>>,
    /// `**kwargs`.
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
    /// Text.
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
    /// `with`.
    With(Vec<(Expr, Expr)>, Vec<Statement>),
    /// `macro`.
    Macro(String, Signature, Vec<Statement>),
    /// `call(...) f(...)`.
    CallBlock(Signature, Expr, Vec<Statement>),
    /// `filter`.
    FilterBlock(Expr, Vec<Statement>),
    /// `block`.
    Block(String, Vec<Statement>),
    /// A body with a scope of its own: `generation`, `autoescape false`.
    Scope(Vec<Statement>),
    /// `break`.
    Break,
    /// `continue`.
    Continue,
    /// A tag that always fails when it is reached, by its name: there is nowhere to load templates from.
    Unavailable(&'static str),
}

/// A loop.
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
