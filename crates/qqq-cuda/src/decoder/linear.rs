//! Linear layers.

use std::sync::OnceLock;

use qqq_backend::{BackendError, InputKind};
use qqq_formats::{LinearWeight, WeightData};

use super::CudaBackend;
use super::blas::{Operands, Product};
use super::memory::{Buffer, CudaInput, CudaTensor, Elements};
use super::shortlist::Shortlist;
use crate::gemm::{DeviceWeights, GemmPlans, GemmSpec, GemmTypes, WeightKind};
use crate::{CudaError, DType, Device, KernelType, Result};

/// Most tokens that a product's kernels are prepared for; more are multiplied in pieces.
const MOST_TOKENS: usize = 8192;

/// A linear layer on a device.
#[derive(Debug)]
pub struct CudaLinear {
    pub(super) n: usize,
    pub(super) k: usize,
    weights: Weights,
    /// Type of the output.
    pub(super) output: DType,
    /// Of an output head: made when its largest outputs are first asked for, if there is room.
    shortlist: OnceLock<Option<Shortlist>>,
}

#[derive(Debug)]
enum Weights {
    /// 4-bit weights, int8 activations.
    W4A8 { weights: DeviceWeights, plans: GemmPlans },
    /// 16-bit weights and activations; a bias has the type of the output.
    Half { values: std::sync::Arc<Buffer>, bias: Option<Buffer> },
}

impl CudaLinear {
    /// # Errors
    /// A shape that no kernel takes; what the device refuses.
    pub(super) fn new(backend: &CudaBackend, weight: LinearWeight, bias: Option<Vec<f32>>) -> Result<Self> {
        let half = backend.half();
        match weight {
            LinearWeight::Float { out_features, in_features, data } => {
                Self::float(backend, (out_features, in_features), data, bias.as_deref(), half)
            }
            LinearWeight::Quantized(weight) => {
                let weights = DeviceWeights::prepacked(backend.device(), &weight, bias.as_deref())?;
                let (n, k) = (weight.out_features, weight.in_features);
                let spec = GemmSpec::new(GemmTypes::int8(WeightKind::of(&weight.scales), half), (n, k));
                let plans = GemmPlans::new(backend.planner(), &spec, MOST_TOKENS)?;
                backend.reserve_workspace(plans.workspace_bytes())?;
                Ok(Self {
                    n,
                    k,
                    weights: Weights::W4A8 { weights, plans },
                    output: half,
                    shortlist: OnceLock::new(),
                })
            }
        }
    }

    /// 16-bit weights, whose products are of type `output`.
    pub(super) fn float(
        backend: &CudaBackend,
        (n, k): (usize, usize),
        data: WeightData,
        bias: Option<&[f32]>,
        output: DType,
    ) -> Result<Self> {
        if n.checked_mul(k) != Some(data.len()) {
            return Err(CudaError::Shape(format!("{} values for a weight of {n} x {k}", data.len())));
        }
        // Known before the weights are copied.
        backend.blas()?;
        let values = half_values(backend.device(), data, backend.half())?;
        Self::sharing(backend, (n, k), std::sync::Arc::new(values), bias, output)
    }

    /// The same with weights that lie on the device.
    pub(super) fn sharing(
        backend: &CudaBackend,
        (n, k): (usize, usize),
        values: std::sync::Arc<Buffer>,
        bias: Option<&[f32]>,
        output: DType,
    ) -> Result<Self> {
        if !k.is_multiple_of(8) {
            return Err(CudaError::Shape(format!(
                "{k} input channels: 16-bit layers on the GPU take multiples of 8; use the CPU"
            )));
        }
        let bias = match bias {
            Some(b) if b.len() != n => {
                return Err(CudaError::Shape(format!(
                    "a bias of {} values for {n} output channels",
                    b.len()
                )));
            }
            Some(b) if output == DType::F32 => Some(Buffer::of(backend.device(), b)?),
            Some(b) => Some(half_values(backend.device(), WeightData::F32(b.to_vec()), output)?),
            None => None,
        };
        Ok(Self { n, k, weights: Weights::Half { values, bias }, output, shortlist: OnceLock::new() })
    }

    pub(super) fn input_kind(&self) -> InputKind {
        match self.weights {
            Weights::W4A8 { .. } => InputKind::Int8,
            Weights::Half { .. } => InputKind::Float,
        }
    }

    /// Address of the 16-bit weights of an output head, and the copy of them by which its largest outputs are found; `None`
    /// where there is none.
    pub(super) fn shortlist(&self, backend: &CudaBackend) -> Result<Option<(u64, &Shortlist)>> {
        let Weights::Half { values, bias: None } = &self.weights else { return Ok(None) };
        if self.output != DType::F32 {
            return Ok(None);
        }
        let made = match self.shortlist.get() {
            Some(made) => made,
            None => {
                let made = Shortlist::where_it_pays(backend, values.address(), (self.n, self.k))?;
                self.shortlist.get_or_init(|| made)
            }
        };
        Ok(made.as_ref().map(|shortlist| (values.address(), shortlist)))
    }

    /// `x W^T + bias`.
    pub(super) fn multiply(
        &self,
        backend: &CudaBackend,
        x: &CudaInput,
        out: &mut CudaTensor,
    ) -> Result<(), BackendError> {
        let (m, n, k) = (x.rows, self.n, self.k);
        if x.cols != k {
            return Err(BackendError::Shape(format!(
                "{} channels for a linear layer that takes {k}",
                x.cols
            )));
        }
        let elements = if self.input_kind() == InputKind::Int8 { Elements::Int8 } else { Elements::Half };
        if x.elements != elements {
            return Err(BackendError::Shape(format!(
                "a linear layer that takes {elements:?} was given {:?}",
                x.elements
            )));
        }
        out.reshape(m, n, self.output)?;
        match &self.weights {
            Weights::W4A8 { weights, plans } => {
                let device = backend.device();
                let stream = device.stream().cu_stream();
                for first in (0..m).step_by(MOST_TOKENS) {
                    let rows = MOST_TOKENS.min(m - first);
                    let x_at = x.buffer.address() + (first * k) as u64;
                    let scales = x.scales.address() + 4 * first as u64;
                    let y = out.address() + (first * n * self.output.bytes()) as u64;
                    let operands = weights.operands(device, (x_at, scales, y), rows);
                    backend.with_workspace(|workspace| {
                        // SAFETY: input and output have these sizes, and launches are in the stream's order, which is that
                        // of the workspace's uses.
                        unsafe { plans.launch(stream, &operands, workspace, false) }
                    })?;
                }
            }
            Weights::Half { values, bias } => {
                let product = Product::linear((m, n, k), x.half, self.output, bias.is_some());
                let operands = Operands {
                    a: values.address(),
                    b: x.buffer.address(),
                    c: out.address(),
                    d: out.address(),
                    bias: bias.as_ref().map_or(0, Buffer::address),
                    alpha: 1.0,
                    beta: 0.0,
                };
                if m > 0 {
                    // SAFETY: the operands have these sizes.
                    unsafe { backend.blas()?.launch(&product, &operands) }?;
                }
            }
        }
        Ok(())
    }
}

/// Values on the device in the 16-bit type.
pub(super) fn half_values(device: &Device, data: WeightData, half: DType) -> Result<Buffer> {
    let buffer = match (data, half) {
        (WeightData::F16(v), DType::F16) => Buffer::of(device, &v)?,
        (WeightData::BF16(v), DType::BF16) => Buffer::of(device, &v)?,
        (data, half) => {
            let bits: Vec<u16> = data.into_f32().into_iter().map(|v| half.encode(v)).collect();
            Buffer::of(device, &bits)?
        }
    };
    // The host's memory is freed next.
    device.stream().synchronize().map_err(crate::error::driver("copying weights to the GPU"))?;
    Ok(buffer)
}
