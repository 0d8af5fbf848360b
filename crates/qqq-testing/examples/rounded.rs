//! Rounds a float model to nearest, for tests in other languages:
//!
//!     cargo run -p qqq-testing --example rounded -- MODEL OUT SCHEME [PART=SCHEME ...]
//!
//! SCHEME is `W4A8 g64`, `W8A8`, `W4A16 g128` and the like, or `float`. Layers whose names contain PART have one of their own; the first
//! part that fits counts.

use std::path::Path;

use qqq_testing::{scheme_named, write_rounded};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, others, parts @ ..] = arguments.as_slice() else {
        panic!("usage: rounded MODEL OUT SCHEME [PART=SCHEME ...]");
    };
    let parts: Vec<_> = parts
        .iter()
        .map(|part| part.split_once('=').unwrap_or_else(|| panic!("{part:?} is not PART=SCHEME")))
        .map(|(part, scheme)| (part, scheme_named(scheme)))
        .collect();
    let others = scheme_named(others);
    write_rounded(Path::new(model), Path::new(out), &|module| {
        parts.iter().find(|(part, _)| module.contains(part)).map_or(others, |(_, scheme)| *scheme)
    });
}
