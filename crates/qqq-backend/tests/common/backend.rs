//! The CPU backend on an instruction set that the machine may lack.

use qqq_backend::cpu::{CpuBackend, SimdLevel};
use qqq_testing::Missing;

/// The backend of this level.
pub fn of_level(level: SimdLevel) -> Result<CpuBackend, Missing> {
    CpuBackend::with_simd_level(level).map_err(|e| Missing::Machine(e.to_string()))
}
