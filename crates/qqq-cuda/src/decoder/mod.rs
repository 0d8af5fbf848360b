//! A decoder's operations on a GPU.
//!
//! The residual stream and logits are float32; what lies between is of one 16-bit type, and the inputs of quantized layers
//! are int8. Keys and values are kept in the 16-bit type. Everything runs on one stream, in the order of the calls.

mod attending;
pub mod attention;
mod backend;
mod batch;
mod blas;
pub mod calibrate;
pub mod head;
mod int8_head;
mod kv_pool;
mod linear;
mod logits;
mod memory;
mod options;
pub mod rows;
mod shortlist;
pub mod simulated;
mod simulated_linear;
pub mod steps;

use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::{CudaSlice, DevicePtr};
use qqq_backend::HeadLayout;
use qqq_formats::ModelConfig;

use self::attention::{AttentionConfig, AttentionKernel};
use self::blas::Blas;
use self::calibrate::kernels::CalibrationKernel;
use self::head::HeadKernel;
use self::memory::Buffer;
use self::rows::RowConfig;
use self::shortlist::ShortlistScratch;
use self::simulated::SimulatedKernel;
use self::simulated_linear::SimulatedScratch;
use self::steps::StepKernel;
use crate::device::Kernel;
use crate::dtype::HALVES;
use crate::error::driver;
use crate::gemm::prepack::Direction;
use crate::gemm::{GemmPlans, GemmSpec, Planner, PrepackKernel, WeightKind};
use crate::{CudaError, DType, Device, Result};

pub use backend::{CudaEmbedding, CudaRope, CudaStep};
pub use batch::CudaBatch;
pub use kv_pool::CudaKvPool;
pub use linear::CudaLinear;
pub use logits::CudaPicks;
pub use memory::{CudaInput, CudaTensor, CudaVector};
pub use options::{Arithmetic, CudaOptions};

/// A GPU as a [`Backend`](qqq_backend::Backend). Clones share a stream: while one of them records a step, no other thread may
/// use any.
#[derive(Clone, Debug)]
pub struct CudaBackend {
    shared: Arc<Shared>,
}

/// A product, for whatever number of tokens, or for one.
type PlannedShape = (GemmSpec, Option<usize>);

#[derive(Debug)]
struct Shared {
    device: Arc<Device>,
    half: DType,
    planner: Planner,
    options: CudaOptions,
    blas: OnceLock<Blas>,
    rows: Mutex<HashMap<RowConfig, Arc<Kernel>>>,
    attention: Mutex<HashMap<(AttentionConfig, AttentionKernel), Arc<Kernel>>>,
    steps: Mutex<HashMap<StepKernel, Arc<Kernel>>>,
    heads: Mutex<HashMap<HeadKernel, Arc<Kernel>>>,
    calibration: Mutex<HashMap<CalibrationKernel, Arc<Kernel>>>,
    prepack: Mutex<HashMap<WeightKind, PrepackKernel>>,
    /// Products of shapes that have come up: the blocks of a model are alike.
    plans: Mutex<HashMap<PlannedShape, Arc<GemmPlans>>>,
    /// int8 inputs in 16 bits.
    widened: Mutex<Buffer>,
    /// Of products: zero between two of them.
    workspace: Mutex<Option<CudaSlice<u8>>>,
    /// Parts of attention's results, then their statistics.
    parts: Mutex<(Buffer, Buffer)>,
    /// Of the search for the largest logits.
    shortlist: Mutex<ShortlistScratch>,
    simulated: Mutex<HashMap<SimulatedKernel, Arc<Kernel>>>,
    simulated_scratch: Mutex<SimulatedScratch>,
}

impl CudaBackend {
    /// On a device. `half` is the type of activations, keys and values: F16 or BF16. F16 has three digits more, but no
    /// numbers beyond 65,504.
    ///
    /// # Errors
    /// [`CudaError::Types`] for another type; [`CudaError::Device`] when there are no kernels for this GPU.
    pub fn new(device: &Arc<Device>, half: DType) -> Result<Self> {
        Self::with_options(device, half, CudaOptions::default())
    }

    /// As [`new`](Self::new), with options.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(device: &Arc<Device>, half: DType, options: CudaOptions) -> Result<Self> {
        if !HALVES.contains(&half) {
            return Err(CudaError::Types(format!("activations of {half} on a GPU: F16 or BF16")));
        }
        device.keep_freed_memory()?;
        let shared = Shared {
            device: device.clone(),
            half,
            planner: Planner::new(device)?,
            options,
            blas: OnceLock::new(),
            rows: Mutex::default(),
            attention: Mutex::default(),
            steps: Mutex::default(),
            heads: Mutex::default(),
            calibration: Mutex::default(),
            prepack: Mutex::default(),
            plans: Mutex::default(),
            widened: Mutex::new(Buffer::new(device, 0)?),
            workspace: Mutex::default(),
            parts: Mutex::new((Buffer::new(device, 0)?, Buffer::new(device, 0)?)),
            shortlist: Mutex::new(ShortlistScratch::new(device)?),
            simulated: Mutex::default(),
            simulated_scratch: Mutex::new(SimulatedScratch::new(device)?),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// That there are kernels for a model of this configuration, before anything of it is read.
    ///
    /// # Errors
    /// [`CudaError::Shape`], with the reason.
    pub fn check(config: &ModelConfig) -> Result<()> {
        AttentionConfig::check(&HeadLayout {
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
        })?;
        for (what, width) in [
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("all query heads", config.num_heads * config.head_dim),
        ] {
            if !width.is_multiple_of(16) || width > rows::MAX_COLUMNS {
                return Err(CudaError::Shape(format!(
                    "{what} of {width}: the GPU kernels take multiples of 16 up to {}",
                    rows::MAX_COLUMNS
                )));
            }
        }
        Ok(())
    }

    /// The GPU whose stream all operations go to.
    pub fn device(&self) -> &Arc<Device> {
        &self.shared.device
    }

    /// Type of activations, keys and values.
    pub fn half(&self) -> DType {
        self.shared.half
    }

    fn planner(&self) -> &Planner {
        &self.shared.planner
    }

    /// cuBLASLt, opened when the first layer needs it.
    fn blas(&self) -> Result<&Blas> {
        if let Some(blas) = self.shared.blas.get() {
            return Ok(blas);
        }
        let opened = Blas::new(self.device())?;
        Ok(self.shared.blas.get_or_init(|| opened))
    }

    /// Room for the workspace of products.
    fn reserve_workspace(&self, bytes: usize) -> Result<()> {
        let mut workspace = self.shared.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        if workspace.as_ref().is_none_or(|w| w.len() < bytes) {
            *workspace = None;
            let stream = self.device().stream();
            let fresh = stream.alloc_zeros(bytes).map_err(driver("allocating a workspace for products"))?;
            *workspace = Some(fresh);
        }
        Ok(())
    }

    /// Runs `job` with the address and the bytes of the workspace.
    fn with_workspace(&self, job: impl FnOnce((u64, usize)) -> Result<()>) -> Result<()> {
        let workspace = self.shared.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let place = workspace.as_ref().map_or((0, 0), |w| (w.device_ptr(self.device().stream()).0, w.len()));
        job(place)
    }

    fn row_kernel(&self, config: RowConfig) -> Result<Arc<Kernel>> {
        cached(&self.shared.rows, config, || self.device().kernel(&config.source(), 0))
    }

    fn prepack_kernel(&self, kind: WeightKind) -> Result<PrepackKernel> {
        cached(&self.shared.prepack, kind, || PrepackKernel::new(self.device(), kind, Direction::Pack))
    }

    /// The products of a shape, and room for what they need; `plan` makes what is not there yet.
    fn plans(&self, shape: PlannedShape, plan: impl FnOnce() -> Result<GemmPlans>) -> Result<Arc<GemmPlans>> {
        let plans = cached(&self.shared.plans, shape, || Ok(Arc::new(plan()?)))?;
        self.reserve_workspace(plans.workspace_bytes())?;
        Ok(plans)
    }

    fn attention_kernel(&self, config: AttentionConfig, kernel: AttentionKernel) -> Result<Arc<Kernel>> {
        let shared_bytes = if kernel == AttentionKernel::Tiles { config.shared_bytes() } else { 0 };
        cached(&self.shared.attention, (config, kernel), || {
            self.device().kernel(&config.source(kernel), shared_bytes)
        })
    }

    /// Launches a kernel of single elements, heads or rows.
    ///
    /// # Safety
    /// The parameters must be those of the kernel, and what they point to device memory of the sizes given.
    unsafe fn launch_step<T>(&self, step: StepKernel, units: usize, mut parameters: T) -> Result<()> {
        if units == 0 {
            return Ok(());
        }
        let kernel = cached(&self.shared.steps, step, || self.device().kernel(&step.source(), 0))?;
        let shape = (step.ctas(units), step.threads(), 0);
        // SAFETY: the caller's promise.
        unsafe { self.launch(&kernel, shape, &mut parameters) }
    }

    /// Launches a kernel of the output head for `rows` of its input and `columns` of it.
    ///
    /// # Safety
    /// As [`launch_step`](Self::launch_step).
    unsafe fn launch_head<T>(
        &self,
        head: HeadKernel,
        (rows, columns): (usize, usize),
        mut parameters: T,
    ) -> Result<()> {
        let kernel = cached(&self.shared.heads, head, || self.device().kernel(&head.source(), 0))?;
        let shape = (head.ctas(rows, columns), head.threads(), 0);
        // SAFETY: the caller's promise.
        unsafe { self.launch(&kernel, shape, &mut parameters) }
    }

    /// Launches a kernel of one parameter that waits for the launch before it (`overlap_launches` in `convert.cuh`).
    ///
    /// # Safety
    /// As [`launch_step`](Self::launch_step).
    unsafe fn launch<T>(
        &self,
        kernel: &Kernel,
        shape: (usize, usize, usize),
        parameters: &mut T,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_with(kernel, shape, self.overlaps(), parameters) }
    }

    /// Launches a kernel of one parameter; with `overlap` it may begin before the launch before it ends.
    ///
    /// # Safety
    /// As [`launch_step`](Self::launch_step); with `overlap` the kernel waits by itself.
    unsafe fn launch_with<T>(
        &self,
        kernel: &Kernel,
        shape: (usize, usize, usize),
        overlap: bool,
        parameters: &mut T,
    ) -> Result<()> {
        let stream = self.device().stream().cu_stream();
        let parameters: *mut c_void = (&raw mut *parameters).cast();
        // SAFETY: the caller's promise.
        unsafe { kernel.launch(stream, shape, 1, overlap, &mut [parameters]) }
    }

    /// Whether launches may begin before those before them end: from Hopper on.
    fn overlaps(&self) -> bool {
        self.device().capability().0 >= 9
    }
}

fn cached<K: Eq + Hash, V: Clone>(
    kernels: &Mutex<HashMap<K, V>>,
    key: K,
    load: impl FnOnce() -> Result<V>,
) -> Result<V> {
    let mut kernels = kernels.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kernel) = kernels.get(&key) {
        return Ok(kernel.clone());
    }
    let kernel = load()?;
    kernels.insert(key, kernel.clone());
    Ok(kernel)
}
