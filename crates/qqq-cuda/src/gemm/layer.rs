//! A linear layer on a GPU.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaSlice, DevicePtr, sys};

use super::{
    Activation, GemmKernel, GemmOperands, GemmTypes, OutputType, PackedWeights, Plan, SumOrder, TunedKey,
    plan,
};
use crate::device::Device;
use crate::error::driver;
use crate::{Arch, CudaError, Result};

/// Weights of a linear layer in device memory, with the kernels for the numbers of tokens that it has met.
#[derive(Debug)]
pub struct GemmLayer {
    device: Arc<Device>,
    types: GemmTypes,
    order: SumOrder,
    out_features: usize,
    in_features: usize,
    chunks: CudaSlice<u8>,
    channel_scale: CudaSlice<f32>,
    bias: Option<CudaSlice<f32>>,
    kernels: Mutex<HashMap<usize, Arc<Prepared>>>,
}

/// A kernel with its workspace.
#[derive(Debug)]
struct Prepared {
    kernel: GemmKernel,
    partials: Option<CudaSlice<u8>>,
    counters: Option<CudaSlice<u8>>,
}

impl GemmLayer {
    /// Copies a layer to the device. `bias` has length `N`. Sums are added in the order that is fastest; see
    /// [`with_order`](Self::with_order).
    ///
    /// # Errors
    /// [`CudaError::Driver`], for want of memory for instance; [`CudaError::Shape`] for a bias of another length;
    /// [`CudaError::Types`] for 16-bit activations and an output that is not of their type.
    pub fn new(
        device: &Arc<Device>,
        weights: &PackedWeights,
        bias: Option<&[f32]>,
        output: OutputType,
    ) -> Result<Self> {
        if let Some(b) = bias.filter(|b| b.len() != weights.out_features) {
            return Err(CudaError::Shape(format!(
                "a bias of {} values for {} output channels",
                b.len(),
                weights.out_features
            )));
        }
        let stream = device.stream();
        let failed = || driver("copying weights to the GPU");
        let layer = Self {
            device: device.clone(),
            types: GemmTypes::new(weights.kind, weights.activation, output)?,
            order: SumOrder::Free,
            out_features: weights.out_features,
            in_features: weights.in_features,
            chunks: stream.clone_htod(&weights.chunks).map_err(failed())?,
            channel_scale: stream.clone_htod(&weights.channel_scale).map_err(failed())?,
            bias: bias.map(|b| stream.clone_htod(b)).transpose().map_err(failed())?,
            kernels: Mutex::default(),
        };
        // Launches on other streams may follow at once.
        stream.synchronize().map_err(failed())?;
        Ok(layer)
    }

    /// The same layer with this order of sums: [`SumOrder::Fixed`] makes its plans batch-invariant.
    #[must_use]
    pub fn with_order(self, order: SumOrder) -> Self {
        Self { order, kernels: Mutex::default(), ..self }
    }

    /// The plan for `m` tokens, by the kernels of an architecture: the device's own, or Ampere's, which run everywhere. What
    /// was tuned on this model of GPU, else what the heuristic says.
    pub fn plan(&self, m: usize, arch: Arch) -> Plan {
        self.tuned_plan(m, arch).unwrap_or_else(|| self.heuristic_plan(m, arch))
    }

    /// The plan that was tuned for `m` tokens, if any.
    pub fn tuned_plan(&self, m: usize, arch: Arch) -> Option<Plan> {
        // Tuning looks for speed, in whatever order.
        let any = self.order == SumOrder::Free || self.types.activation() == Activation::Int8;
        any.then(|| self.device.tuned().plan(&self.tuned_key(arch), m)).flatten()
    }

    /// Under what tuned plans of this layer are kept.
    pub fn tuned_key(&self, arch: Arch) -> TunedKey {
        TunedKey { arch, types: self.types, n: self.out_features, k: self.in_features }
    }

    /// The heuristic's plan for `m` tokens.
    pub fn heuristic_plan(&self, m: usize, arch: Arch) -> Plan {
        let shape = (m, self.out_features, self.in_features);
        plan(self.types, arch, shape, self.device.multiprocessors(), self.order)
    }

    /// Compiles and loads what `m` tokens need, so that a launch does neither that nor allocates. `chosen` replaces the
    /// plan.
    ///
    /// # Errors
    /// See [`GemmKernel::new`]; [`CudaError::Types`] for a plan for other operands.
    pub fn prepare(&self, m: usize, chosen: Option<Plan>) -> Result<Plan> {
        let plan = match chosen {
            Some(plan) => plan,
            None => self.plan(m, self.device.arch()?),
        };
        if *plan.config.types() != self.types {
            return Err(CudaError::Types(format!(
                "a plan for {} cannot run a layer of {}",
                plan.config.types(),
                self.types
            )));
        }
        let kernel = GemmKernel::new(&self.device, plan)?;
        let (partials, counters) = kernel.workspace_bytes(m, self.out_features, self.in_features);
        let stream = self.device.stream();
        let zeros = |bytes: usize| {
            (bytes > 0)
                .then(|| stream.alloc_zeros::<u8>(bytes))
                .transpose()
                .map_err(driver("allocating the workspace of a product"))
        };
        let prepared = Prepared { kernel, partials: zeros(partials)?, counters: zeros(counters)? };
        stream.synchronize().map_err(driver("allocating the workspace of a product"))?;
        self.lock().insert(m, Arc::new(prepared));
        Ok(plan)
    }

    /// Launches `y = x W^T + bias` for `m` tokens on `stream`: `x` is `m x K` of the type that the weights were packed for,
    /// `token_scale` `m` float32 (ignored, and may be 0, where activations are no int8), `y` `m x N` of the layer's output
    /// type. See [`GemmKernel::launch`] for `overlap`. Launches of one layer must not run at the same
    /// time on two streams.
    ///
    /// # Errors
    /// [`CudaError::Driver`]; what [`prepare`](Self::prepare) reports when that was not called for `m`.
    ///
    /// # Safety
    /// The addresses must be device memory of these sizes, valid until the launch has run.
    pub unsafe fn launch(
        &self,
        stream: sys::CUstream,
        (x, token_scale, y): (u64, u64, u64),
        m: usize,
        overlap: bool,
    ) -> Result<()> {
        let known = self.lock().get(&m).cloned();
        let prepared = match known {
            Some(p) => p,
            None => {
                self.prepare(m, None)?;
                self.lock()[&m].clone()
            }
        };
        let own = self.device.stream();
        let address = |s: &CudaSlice<u8>| s.device_ptr(own).0;
        let operands = GemmOperands {
            x,
            token_scale,
            y,
            weights: address(&self.chunks),
            channel_scale: self.channel_scale.device_ptr(own).0,
            bias: self.bias.as_ref().map_or(0, |b| b.device_ptr(own).0),
            m,
            n: self.out_features,
            k: self.in_features,
        };
        let workspace =
            (prepared.partials.as_ref().map_or(0, address), prepared.counters.as_ref().map_or(0, address));
        // SAFETY: weights and workspace were allocated for this shape; the caller vouches for the rest.
        unsafe { prepared.kernel.launch(stream, &operands, workspace, overlap) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Arc<Prepared>>> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
