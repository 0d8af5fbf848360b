//! The CPU backend on an instruction set that the machine may lack.

use qqq_backend::cpu::{CpuBackend, FloatIsa};
use qqq_testing::Missing;

/// The backend on this instruction set.
pub fn on_isa(isa: FloatIsa) -> Result<CpuBackend, Missing> {
    CpuBackend::with_float_isa(isa).map_err(|e| Missing::Machine(e.to_string()))
}
