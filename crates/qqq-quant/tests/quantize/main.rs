//! Whole quantizations and transformations of small random models.

mod pipeline;
mod tiny;
mod transform;
