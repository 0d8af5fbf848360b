//! The language: Jinja2's lexer and grammar, and the translation to what the engine runs.

pub mod ast;
pub mod expressions;
pub mod lexer;
pub mod parser;
pub mod translate;
mod write;

/// A template that Jinja2 would not compile, or that uses what cannot be rendered as it does.
#[derive(Debug)]
pub struct SyntaxError {
    /// Line of the template, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl std::fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (line {} of the template)", self.message, self.line)
    }
}
