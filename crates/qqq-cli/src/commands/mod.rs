//! The commands, one file (or folder) each.

pub mod bench;
pub mod chat;
pub mod compare;
pub mod completions;
pub mod convert;
pub mod demo;
pub mod doctor;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod kernels;
pub mod man;
pub mod quantize;
pub mod recipe;
pub mod rerun;
pub mod synth;
