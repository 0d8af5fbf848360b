//! Linear layers.

use std::sync::{Arc, OnceLock};

use qqq_backend::{BackendError, InputKind, pool::parallel_chunks_mut};
use qqq_formats::{CodeBits, LinearWeight, QuantizedWeight, Scales, WeightData};

use super::CudaBackend;
use super::blas::{Operands, Product};
use super::int8_head::Int8Head;
use super::memory::{Buffer, CudaInput, CudaTensor, Elements};
use super::options::Arithmetic;
use super::shortlist::Shortlist;
use super::simulated_linear::SimulatedLayer;
use crate::gemm::{DeviceWeights, GemmPlans, GemmSpec, GemmTypes, PackedWeights, WeightKind, check_shape};
use crate::{CudaError, DType, Device, KernelType, Result};

/// Most tokens that a product's kernels are prepared for; more are multiplied in pieces.
const MOST_TOKENS: usize = 8192;

/// Values that a thread makes 16-bit at a time.
const ENCODED: usize = 1 << 16;

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
    /// Weights of 4 or 8 bits, multiplied by our own kernels.
    Integer {
        weights: DeviceWeights,
        types: GemmTypes,
        /// Of weights that stay as they are, which a product may read before what was launched before it has ended. Others are
        /// multiplied with few numbers of tokens, for each of which a plan is made when it comes up.
        plans: Option<Arc<GemmPlans>>,
    },
    /// 16-bit weights and activations; a bias has the type of the output.
    Half { values: Arc<Buffer>, bias: Option<Buffer> },
    /// What a method would compute, with 16-bit inputs.
    Simulated(SimulatedLayer),
    /// int8 weights of an output head.
    Head(Int8Head),
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
            LinearWeight::Quantized(weight) => Self::quantized(backend, &weight, bias.as_deref()),
            LinearWeight::WeightOnly { weight, .. } => Self::weight_only(backend, &weight, bias.as_deref()),
            LinearWeight::Simulated(weight) => {
                let (n, k) = (weight.out_features, weight.in_features);
                let layer = SimulatedLayer::new(backend, weight, bias.as_deref())?;
                Ok(Self {
                    n,
                    k,
                    weights: Weights::Simulated(layer),
                    output: half,
                    shortlist: OnceLock::new(),
                })
            }
        }
    }

    /// Weights for int8 activations, made for the backend's arithmetic.
    pub(super) fn quantized(
        backend: &CudaBackend,
        weight: &QuantizedWeight,
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        let (device, half) = (backend.device(), backend.half());
        let (n, k) = (weight.out_features, weight.in_features);
        let (weights, types) = match (backend.shared.options.arithmetic, weight.bits) {
            (Arithmetic::W4A8, _) | (Arithmetic::W8A8, CodeBits::Eight) => {
                let weights = DeviceWeights::prepacked(device, weight, bias)?;
                (weights, GemmTypes::int8(WeightKind::of(weight), half))
            }
            (Arithmetic::W8A8, CodeBits::Four) => {
                let (codes, scales) = int8(weight);
                let packed = PackedWeights::from_int8(&codes, &scales, k)?;
                (DeviceWeights::new(device, &packed, bias)?, GemmTypes::int8(packed.kind, half))
            }
            (Arithmetic::W4A16, CodeBits::Four) => return Self::with_half_activations(backend, weight, bias),
            (Arithmetic::W4A16, CodeBits::Eight) => return Err(no_w8a16()),
            (Arithmetic::Half, _) => {
                let values = Buffer::of(device, &half_bits_of(weight, half))?;
                return Self::sharing(backend, (n, k), Arc::new(values), bias, half);
            }
        };
        Self::integer(backend, (n, k), weights, types)
    }

    /// Weights of an output head, whose products are float32: for int8 activations those of kernels of its own.
    pub(super) fn head(backend: &CudaBackend, weight: LinearWeight) -> Result<Self> {
        let (arithmetic, half) = (backend.shared.options.arithmetic, backend.half());
        match weight {
            LinearWeight::Float { out_features, in_features, data } => {
                Self::float(backend, (out_features, in_features), data, None, DType::F32)
            }
            LinearWeight::Quantized(weight) => {
                let (n, k) = (weight.out_features, weight.in_features);
                match arithmetic {
                    Arithmetic::W4A8 | Arithmetic::W8A8 => {
                        let weights = Weights::Head(Int8Head::new(backend.device(), &weight)?);
                        Ok(Self { n, k, weights, output: DType::F32, shortlist: OnceLock::new() })
                    }
                    Arithmetic::Half => {
                        let values = Buffer::of(backend.device(), &half_bits_of(&weight, half))?;
                        Self::sharing(backend, (n, k), Arc::new(values), None, DType::F32)
                    }
                    Arithmetic::W4A16 => Self::quantized(backend, &weight, None),
                }
            }
            weight => Self::new(backend, weight, None),
        }
    }

    /// Weights for 16-bit activations, made for the backend's arithmetic.
    fn weight_only(backend: &CudaBackend, weight: &QuantizedWeight, bias: Option<&[f32]>) -> Result<Self> {
        let (n, k, half) = (weight.out_features, weight.in_features, backend.half());
        match (backend.shared.options.arithmetic, weight.bits) {
            (Arithmetic::W4A8 | Arithmetic::W4A16, CodeBits::Four) => {
                Self::with_half_activations(backend, weight, bias)
            }
            (Arithmetic::W8A8, _) => Self::quantized(backend, &weight.for_integers(), bias),
            (Arithmetic::W4A16, CodeBits::Eight) => Err(no_w8a16()),
            // There is no kernel that takes 8-bit weights apart for 16-bit activations.
            (Arithmetic::W4A8, CodeBits::Eight) | (Arithmetic::Half, _) => {
                weight.check("weight").map_err(|e| CudaError::Shape(e.to_string()))?;
                let bits = half_bits((n, k), half, |row| weight.row_values(row));
                let values = Buffer::of(backend.device(), &bits)?;
                Self::sharing(backend, (n, k), Arc::new(values), bias, half)
            }
        }
    }

    /// 4-bit weights times 16-bit activations.
    fn with_half_activations(
        backend: &CudaBackend,
        weight: &QuantizedWeight,
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        let half = backend.half();
        let packed = PackedWeights::for_activation(weight, half)?;
        let types = GemmTypes::new(packed.kind, half, half)?;
        let weights = DeviceWeights::new(backend.device(), &packed, bias)?;
        Self::integer(backend, (weight.out_features, weight.in_features), weights, types)
    }

    /// Weights that our own kernels multiply.
    fn integer(
        backend: &CudaBackend,
        (n, k): (usize, usize),
        weights: DeviceWeights,
        types: GemmTypes,
    ) -> Result<Self> {
        let spec = GemmSpec::new(types, (n, k));
        let plans = backend.plans((spec, None), || {
            if backend.shared.options.trials {
                backend.planner().try_plans(&spec, MOST_TOKENS)?;
            }
            GemmPlans::new(backend.planner(), &spec, MOST_TOKENS)
        })?;
        let weights = Weights::Integer { weights, types, plans: Some(plans) };
        Ok(Self { n, k, weights, output: backend.half(), shortlist: OnceLock::new() })
    }

    /// Weights of a kind that are still to be [prepacked](Self::prepack).
    pub(super) fn unfilled(
        backend: &CudaBackend,
        kind: WeightKind,
        (n, k): (usize, usize),
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        check_shape(n, k)?;
        let weights = DeviceWeights::unfilled(backend.device(), kind, (n, k), bias)?;
        let types = GemmTypes::int8(kind, backend.half());
        let weights = Weights::Integer { weights, types, plans: None };
        Ok(Self { n, k, weights, output: backend.half(), shortlist: OnceLock::new() })
    }

    /// Whether these are weights of a kind and shape, for int8 activations.
    pub(super) fn is_of(&self, kind: WeightKind, (n, k): (usize, usize)) -> bool {
        let wanted = GemmTypes::int8(kind, self.output);
        (self.n, self.k) == (n, k)
            && matches!(&self.weights, Weights::Integer { types, plans: None, .. } if *types == wanted)
    }

    /// Replaces the weights by others of their kind that lie in the neutral form on the device: codes, multiples of the
    /// channels' scales where there are groups, and these.
    ///
    /// # Safety
    /// As [`DeviceWeights::prepack`].
    pub(super) unsafe fn prepack(&self, backend: &CudaBackend, neutral: (u64, u64, u64)) -> Result<()> {
        let Weights::Integer { types, weights, plans: None } = &self.weights else {
            return Err(CudaError::Types("weights that stay as they are cannot be prepacked again".into()));
        };
        let kernel = backend.prepack_kernel(types.weights())?;
        // SAFETY: the caller's promise.
        unsafe { weights.prepack(backend.device(), &kernel, neutral) }
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
        Self::sharing(backend, (n, k), Arc::new(values), bias, output)
    }

    /// The same with weights that lie on the device.
    pub(super) fn sharing(
        backend: &CudaBackend,
        (n, k): (usize, usize),
        values: Arc<Buffer>,
        bias: Option<&[f32]>,
        output: DType,
    ) -> Result<Self> {
        check_half_width(k)?;
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
            Weights::Integer { types, .. } if types.activation() == DType::I8 => InputKind::Int8,
            Weights::Head(_) => InputKind::Int8,
            Weights::Integer { .. } | Weights::Half { .. } | Weights::Simulated(_) => InputKind::Float,
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
            Weights::Integer { weights, types, plans } => {
                let (spec, most) = (GemmSpec::new(*types, (n, k)), m.min(MOST_TOKENS));
                let (plans, settled) = match plans {
                    Some(plans) => (plans.clone(), true),
                    None if m == 0 => return Ok(()),
                    None => (backend.plans((spec, Some(most)), || one_plan(backend, &spec, most))?, false),
                };
                let device = backend.device();
                let stream = device.stream().cu_stream();
                for first in (0..m).step_by(MOST_TOKENS) {
                    let rows = MOST_TOKENS.min(m - first);
                    let x_at = x.buffer.address() + (first * k * types.activation().bytes()) as u64;
                    let scales = if types.activation() == DType::I8 {
                        x.scales.address() + 4 * first as u64
                    } else {
                        0
                    };
                    let y = out.address() + (first * n * self.output.bytes()) as u64;
                    let operands = weights.operands(device, (x_at, scales, y), rows);
                    backend.with_workspace(|workspace| {
                        // SAFETY: input and output have these sizes, and launches are in the stream's order, which is that
                        // of the workspace's uses; weights were written, and waited for, when they were loaded.
                        unsafe { plans.launch(stream, &operands, workspace, settled && backend.overlaps()) }
                    })?;
                }
            }
            Weights::Head(head) => head.multiply(backend, x, out)?,
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
            Weights::Simulated(layer) => {
                if m > 0 {
                    layer.multiply(backend, x, out)?;
                }
            }
        }
        Ok(())
    }
}

/// The plan for a number of tokens, which serves fewer as well: its kernel alone is compiled.
fn one_plan(backend: &CudaBackend, spec: &GemmSpec, tokens: usize) -> Result<GemmPlans> {
    let plan = backend.planner().plan(spec, tokens);
    GemmPlans::of_plan(backend.device(), plan, (spec.n, spec.k), tokens)
}

/// That there are products for 16-bit weights of so many input channels.
pub(super) fn check_half_width(k: usize) -> Result<()> {
    if k.is_multiple_of(8) {
        return Ok(());
    }
    Err(CudaError::Shape(format!(
        "{k} input channels: 16-bit layers on the GPU take multiples of 8; use the CPU"
    )))
}

/// Values on the device in the 16-bit type.
pub(super) fn half_values(device: &Device, data: WeightData, half: DType) -> Result<Buffer> {
    let buffer = match (data, half) {
        (WeightData::F16(v), DType::F16) => Buffer::of(device, &v)?,
        (WeightData::BF16(v), DType::BF16) => Buffer::of(device, &v)?,
        (data, half) => {
            let values = data.into_f32();
            let mut bits = vec![0u16; values.len()];
            parallel_chunks_mut(&mut bits, ENCODED, |piece, bits| {
                bits.iter_mut().zip(&values[piece * ENCODED..]).for_each(|(b, v)| *b = half.encode(*v));
            });
            Buffer::of(device, &bits)?
        }
    };
    // The host's memory is freed next.
    device.stream().synchronize().map_err(crate::error::driver("copying weights to the GPU"))?;
    Ok(buffer)
}

/// The weights that codes for int8 activations stand for, as bits of a 16-bit type.
fn half_bits_of(weight: &QuantizedWeight, half: DType) -> Vec<u16> {
    let (n, k, scales) = (weight.out_features, weight.in_features, weight.channel_scales());
    let codes = weight.int8_weights();
    half_bits((n, k), half, |row| {
        codes[row * k..(row + 1) * k].iter().map(move |c| f32::from(*c) * scales[row])
    })
}

/// Rows of an `N x K` weight as bits of a 16-bit type.
fn half_bits<I: Iterator<Item = f32>>(
    (n, k): (usize, usize),
    half: DType,
    row: impl Fn(usize) -> I + Sync,
) -> Vec<u16> {
    let mut bits = vec![0u16; n * k];
    parallel_chunks_mut(&mut bits, k, |i, bits| {
        bits.iter_mut().zip(row(i)).for_each(|(b, v)| *b = half.encode(v));
    });
    bits
}

/// What was asked of 8-bit weights.
fn no_w8a16() -> CudaError {
    CudaError::Types(
        "w4a16 was asked for, but layers of this checkpoint have 8-bit weights, which no kernel multiplies with 16-bit \
         activations; compare with fp16, which makes them 16-bit"
            .into(),
    )
}

/// The int8 weights that 4-bit ones stand for, with a scale a channel; without groups 16 times the code, so that they use
/// the range as int8 weights do.
fn int8(weight: &QuantizedWeight) -> (Vec<i8>, Vec<f32>) {
    let scales = weight.channel_scales();
    match weight.scales {
        Scales::PerChannel(_) => {
            (weight.codes.iter().map(|c| 16 * c).collect(), scales.iter().map(|s| s / 16.0).collect())
        }
        Scales::PerGroup { .. } => (weight.int8_weights(), scales.to_vec()),
    }
}
