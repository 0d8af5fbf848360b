//! Whole quantizations and transformations of small random models.

mod auto;
mod changed;
mod correction;
mod head;
mod numbers;
mod pipeline;
mod precision;
mod quality;
mod recipes;
mod simulated;
mod tiny;
mod transform;
