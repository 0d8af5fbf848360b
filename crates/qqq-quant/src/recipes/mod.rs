//! Methods of other papers, each a file that reads as its paper's algorithm does.
//!
//! [`simulated`] has what those share whose arithmetic no kernel here runs.

mod factor;
pub mod llm_int8;
pub mod quik;
pub mod quip;
pub mod simulated;
pub mod spqr;
