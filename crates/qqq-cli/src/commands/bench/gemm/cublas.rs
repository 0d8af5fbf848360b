//! cuBLAS in float16, to compare with.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig, sys};
use cudarc::driver::{CudaSlice, CudaStream};
use half::f16;
use qqq_cuda::{CudaError, Result, error::driver};

use super::{data, timing};

/// A float16 product by cuBLASLt, as its own heuristic runs it.
pub(super) struct Cublas {
    blas: CudaBlasLT,
    stream: Arc<CudaStream>,
    weights: Vec<CudaSlice<f16>>,
    shape: (usize, usize),
}

impl Cublas {
    /// `None` where the library is not installed.
    pub(super) fn new(stream: &Arc<CudaStream>, n: usize, k: usize, copies: usize) -> Result<Option<Self>> {
        // SAFETY: this only tries to open the library.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let blas = CudaBlasLT::new(stream.clone()).map_err(refused)?;
        let values: Vec<f16> = (0..1 << 20).map(|i| f16::from_f32(data::normal(21, i) * 0.02)).collect();
        let weights = (0..copies)
            .map(|_| {
                let host: Vec<f16> = values.iter().copied().cycle().take(n * k).collect();
                stream.clone_htod(&host).map_err(driver("copying float16 weights"))
            })
            .collect::<Result<_>>()?;
        Ok(Some(Self { blas, stream: stream.clone(), weights, shape: (n, k) }))
    }

    /// Microseconds of a product with `m` tokens.
    pub(super) fn microseconds(&self, m: usize) -> Result<f64> {
        let (n, k) = self.shape;
        let failed = || driver("copying float16 activations");
        let host: Vec<f16> = (0..m * k).map(|i| f16::from_f32(data::normal(22, i))).collect();
        let x = self.stream.clone_htod(&host).map_err(failed())?;
        let mut y = self.stream.alloc_zeros::<f16>(m * n).map_err(failed())?;
        // Column-major: Y^T (n x m) = W (n x k, stored as its transpose) X^T (k x m).
        let config = || MatmulConfig {
            transa: true,
            transb: false,
            transc: false,
            m: n as u64,
            n: m as u64,
            k: k as u64,
            alpha: 1.0,
            lda: k as i64,
            ldb: k as i64,
            beta: 0.0,
            ldc: n as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        timing::microseconds(&self.stream, self.weights.len(), |i| {
            let weights = &self.weights[i % self.weights.len()];
            // A function that the library lacks is a panic of its loader.
            let run = catch_unwind(AssertUnwindSafe(|| {
                // SAFETY: the matrices have the sizes of the configuration.
                unsafe { self.blas.matmul(config(), weights, &x, &mut y, None, None) }
            }));
            run.map_err(|_| CudaError::Device(String::from("the installed cuBLASLt lacks a function")))?
                .map_err(refused)
        })
    }
}

fn refused(error: impl std::fmt::Display) -> CudaError {
    CudaError::Device(format!("cuBLASLt: {error}"))
}
