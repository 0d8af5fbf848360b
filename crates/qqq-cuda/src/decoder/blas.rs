//! Products of 16-bit weights, by cuBLASLt.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};
use cudarc::driver::CudaStream;

use super::memory::Buffer;
use crate::{CudaError, DType, Device, Result};

/// What a product may use for itself.
const WORKSPACE_BYTES: usize = 32 << 20;

/// The library on a device's stream.
#[derive(Debug)]
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: Buffer,
    /// What the library's heuristic chose.
    algorithms: Mutex<HashMap<Product, sys::cublasLtMatmulAlgo_t>>,
}

// SAFETY: the library's handle may be used from any thread; the workspace is used in the stream's order.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// `y = x W^T + bias`: `x` is `m x k`, `W` `n x k`, both of the 16-bit type, `y` `m x n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) half: DType,
    /// F32, or the 16-bit type.
    pub(super) output: DType,
    /// Whether there is a bias, of the output's type.
    pub(super) bias: bool,
}

/// Addresses of a product's operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) weights: u64,
    pub(super) bias: u64,
    pub(super) y: u64,
}

impl Blas {
    /// # Errors
    /// [`CudaError::Device`] where the library is not installed, or refuses.
    pub(super) fn new(device: &Device) -> Result<Self> {
        // SAFETY: this only tries to open the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::Device(String::from(
                "16-bit layers on the GPU are multiplied by cuBLASLt, whose library (libcublasLt.so) is not found: install the \
                 CUDA toolkit, or `pip install nvidia-cublas` and add its lib folder to LD_LIBRARY_PATH, or use the CPU",
            )));
        }
        device.context().bind_to_thread().map_err(crate::error::driver("opening cuBLASLt"))?;
        let handle = result::create_handle().map_err(refused)?;
        let workspace = Buffer::new(device, WORKSPACE_BYTES)?;
        Ok(Self { handle, stream: device.stream().clone(), workspace, algorithms: Mutex::default() })
    }

    /// Launches a product on the device's stream.
    ///
    /// # Errors
    /// What the library refuses.
    ///
    /// # Safety
    /// The operands must be device memory of the product's sizes.
    pub(super) unsafe fn launch(&self, product: &Product, o: &Operands) -> Result<()> {
        let p = Description::new(product)?;
        self.stream.context().bind_to_thread().map_err(crate::error::driver("a product by cuBLASLt"))?;
        let algorithm = self.algorithm(product, &p, o)?;
        let (one, zero) = (1.0f32, 0.0f32);
        p.set_bias(o.bias)?;
        // SAFETY: the description is that of the operands, which the caller vouches for; the rest lives until the call returns.
        unsafe {
            result::matmul(
                self.handle,
                p.operation,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                o.weights as *const c_void,
                p.weights,
                o.x as *const c_void,
                p.x,
                o.y as *const c_void,
                p.y,
                o.y as *mut c_void,
                p.y,
                &raw const algorithm,
                self.workspace.address() as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(refused)
    }

    fn algorithm(
        &self,
        product: &Product,
        p: &Description,
        o: &Operands,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let lock = || self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = lock().get(product) {
            return Ok(*algorithm);
        }
        p.set_bias(o.bias)?;
        let preference = result::create_matmul_pref().map_err(refused)?;
        let bytes = WORKSPACE_BYTES;
        // SAFETY: all handles are live; the attribute is a size.
        let found = unsafe {
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of::<usize>(),
            )
            .and_then(|()| {
                result::get_matmul_algo_heuristic(
                    self.handle,
                    p.operation,
                    p.weights,
                    p.x,
                    p.y,
                    p.y,
                    preference,
                )
            })
        };
        // SAFETY: created above.
        unsafe { result::destroy_matmul_pref(preference) }.map_err(refused)?;
        let algorithm = found.map_err(refused)?.algo;
        lock().insert(*product, algorithm);
        Ok(algorithm)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and used by nobody afterwards.
        if let Err(error) = unsafe { result::destroy_handle(self.handle) } {
            tracing::warn!("closing cuBLASLt: {error}");
        }
    }
}

/// A product in the library's words: column-major, `y^T (n x m) = W (n x k, stored as its transpose) x^T (k x m)`.
struct Description {
    operation: sys::cublasLtMatmulDesc_t,
    weights: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
}

impl Description {
    fn new(product: &Product) -> Result<Self> {
        let Product { m, n, k, half, output, bias } = *product;
        let type_of = |dtype| match dtype {
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            _ => sys::cudaDataType_t::CUDA_R_32F,
        };
        let layout = |dtype, rows: usize, cols: usize| {
            result::create_matrix_layout(type_of(dtype), rows as u64, cols as u64, rows as i64)
                .map_err(refused)
        };
        let operation = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        )
        .map_err(refused)?;
        let (weights, x, y) = (layout(half, k, n)?, layout(half, k, m)?, layout(output, n, m)?);
        let made = Self { operation, weights, x, y };
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let transposed = 1i32;
        made.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &transposed)?;
        if bias {
            made.set(
                Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            )?;
            made.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type_of(output))?;
        }
        Ok(made)
    }

    fn set_bias(&self, address: u64) -> Result<()> {
        if address == 0 {
            return Ok(());
        }
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the description lives; the value has its attribute's type.
        unsafe {
            result::set_matmul_desc_attribute(
                self.operation,
                attribute,
                (&raw const *value).cast(),
                size_of::<T>(),
            )
        }
        .map_err(refused)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and used by nobody afterwards.
        let all = unsafe {
            [
                result::destroy_matmul_desc(self.operation),
                result::destroy_matrix_layout(self.weights),
                result::destroy_matrix_layout(self.x),
                result::destroy_matrix_layout(self.y),
            ]
        };
        for error in all.into_iter().filter_map(|r| r.err()) {
            tracing::warn!("a description of cuBLASLt's: {error}");
        }
    }
}

fn refused(error: result::CublasError) -> CudaError {
    CudaError::Device(format!("cuBLASLt: {error}"))
}
