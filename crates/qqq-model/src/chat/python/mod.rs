//! Python's values: what its types do that templates see.

pub mod chars;
pub mod format;
pub mod json;
pub mod methods;
pub mod numbers;
pub mod objects;
pub mod ops;
pub mod percent;
pub mod repr;
pub mod split;
pub mod strftime;
pub mod strings;
pub mod tables;
pub mod value;
