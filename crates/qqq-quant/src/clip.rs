//! Choice of scales.
