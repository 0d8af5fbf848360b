//! Whole quantizations and transformations of small random models.

mod numbers;
mod pipeline;
mod tiny;
mod transform;
