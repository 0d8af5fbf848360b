//! Products of floats, by cuBLASLt.

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

/// Types of a product's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Number {
    F16,
    BF16,
    F32,
    /// float32 in memory, of which products read the first 19 bits.
    TF32,
    F64,
}

impl From<DType> for Number {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Number::F16,
            DType::BF16 => Number::BF16,
            _ => Number::F32,
        }
    }
}

/// A matrix in the library's words: column-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Matrix {
    pub(super) number: Number,
    /// Elements between two columns.
    pub(super) pitch: usize,
    /// Whether its transpose is multiplied.
    pub(super) transposed: bool,
}

impl Matrix {
    /// Multiplied as it is.
    pub(super) fn new(number: Number, pitch: usize) -> Self {
        Self { number, pitch, transposed: false }
    }

    /// Multiplied as its transpose.
    pub(super) fn transposed(number: Number, pitch: usize) -> Self {
        Self { number, pitch, transposed: true }
    }
}

/// `D = alpha A B + beta C`, `m x n`, over `k`; sums in float32, or float64 where D has that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: Matrix,
    pub(super) b: Matrix,
    /// C, of the type of D.
    pub(super) c: Matrix,
    pub(super) d: Matrix,
    /// Whether one value a row of D is added, of D's type.
    pub(super) bias: bool,
}

impl Product {
    /// `y = x W^T + bias`: `x` is `m x k`, `W` `n x k`, both of the 16-bit type, `y` `m x n`, all row-major. The weights come
    /// first: what is row-major is the library's transpose.
    pub(super) fn linear((m, n, k): (usize, usize, usize), half: DType, output: DType, bias: bool) -> Self {
        let y = Matrix::new(output.into(), n);
        let (w, x) = (Matrix::transposed(half.into(), k), Matrix::new(half.into(), k));
        Self { m: n, n: m, k, a: w, b: x, c: y, d: y, bias }
    }
}

/// Addresses of a product's operands, and the factors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) c: u64,
    pub(super) d: u64,
    pub(super) bias: u64,
    pub(super) alpha: f64,
    pub(super) beta: f64,
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
        let single = [o.alpha as f32, o.beta as f32];
        let double = [o.alpha, o.beta];
        let factors: [*const c_void; 2] = match product.d.number {
            Number::F64 => [0, 1].map(|i| (&raw const double[i]).cast()),
            _ => [0, 1].map(|i| (&raw const single[i]).cast()),
        };
        p.set_bias(o.bias)?;
        // SAFETY: the description is that of the operands, which the caller vouches for; the rest lives until the call returns.
        unsafe {
            result::matmul(
                self.handle,
                p.operation,
                factors[0],
                factors[1],
                o.a as *const c_void,
                p.a,
                o.b as *const c_void,
                p.b,
                o.c as *const c_void,
                p.c,
                o.d as *mut c_void,
                p.d,
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
                result::get_matmul_algo_heuristic(self.handle, p.operation, p.a, p.b, p.c, p.d, preference)
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

/// A product in the library's handles.
struct Description {
    operation: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
}

impl Description {
    fn new(product: &Product) -> Result<Self> {
        let Product { m, n, k, a, b, c, d, bias } = *product;
        let type_of = |number| match number {
            Number::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Number::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            Number::F32 | Number::TF32 => sys::cudaDataType_t::CUDA_R_32F,
            Number::F64 => sys::cudaDataType_t::CUDA_R_64F,
        };
        let layout = |matrix: Matrix, rows: usize, cols: usize| {
            let (rows, cols) = if matrix.transposed { (cols, rows) } else { (rows, cols) };
            result::create_matrix_layout(
                type_of(matrix.number),
                rows as u64,
                cols as u64,
                matrix.pitch as i64,
            )
            .map_err(refused)
        };
        let (compute, scale) = match (a.number, d.number) {
            (_, Number::F64) => {
                (sys::cublasComputeType_t::CUBLAS_COMPUTE_64F, sys::cudaDataType_t::CUDA_R_64F)
            }
            (Number::TF32, _) => {
                (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32, sys::cudaDataType_t::CUDA_R_32F)
            }
            _ => (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F),
        };
        let operation = result::create_matmul_desc(compute, scale).map_err(refused)?;
        let made = Self {
            operation,
            a: layout(a, m, k)?,
            b: layout(b, k, n)?,
            c: layout(c, m, n)?,
            d: layout(d, m, n)?,
        };
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        for (matrix, attribute) in
            [(a, Attribute::CUBLASLT_MATMUL_DESC_TRANSA), (b, Attribute::CUBLASLT_MATMUL_DESC_TRANSB)]
        {
            made.set(attribute, &i32::from(matrix.transposed))?;
        }
        if bias {
            made.set(
                Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            )?;
            made.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type_of(d.number))?;
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
                result::destroy_matrix_layout(self.a),
                result::destroy_matrix_layout(self.b),
                result::destroy_matrix_layout(self.c),
                result::destroy_matrix_layout(self.d),
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
