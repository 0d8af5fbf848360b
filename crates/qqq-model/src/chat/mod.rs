//! Chat templates: Jinja as transformers renders it, byte for byte, or an error that says what is missing.
//!
//! A template goes three steps. `syntax` reads it as Jinja2 does (its lexer with `trim_blocks` and
//! `lstrip_blocks`, its grammar, the tag `generation`, loop controls) and writes it anew for minijinja, which
//! runs loops, conditions, scopes and macros. Whatever touches a value is a call into `engine`, which does as
//! Python does: the types, methods, operators and formats of `python`, Jinja2's `filters` and its tests
//! (`checks`), within the limits of Jinja2's immutable sandbox.

mod checks;
mod engine;
mod filters;
mod python;
mod syntax;
mod template;

pub use python::{chars::is_space, strings::capitalize};
pub use template::{ChatTemplate, Message};
