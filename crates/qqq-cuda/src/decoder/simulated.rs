//! What layers do whose arithmetic is simulated, beside their products: instances of `simulated.cuh`.

use qqq_backend::cpu::integer::quantize_row;
use qqq_formats::{SimulatedWeight, WeightData, simulated::Arithmetic};

use crate::dtype::HALVES;
use crate::{CudaError, DType, KernelType, Result, Source};

/// A kernel of `simulated.cuh`, for inputs of a 16-bit type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SimulatedKernel {
    /// Which columns are outliers.
    Mark(DType),
    /// Rows as codes, or as they are.
    Code(DType),
    /// The sum of products.
    Sum(DType),
}

/// Columns that a CTA marks, and rows that it looks at together.
const MARKED_COLUMNS: usize = 32;
const MARKED_ROWS: usize = 8;
/// Threads of a CTA that makes a row's codes.
const CODE_THREADS: usize = 256;
/// Threads of a CTA that sums products.
const SUM_THREADS: usize = 256;

impl SimulatedKernel {
    /// All of them.
    pub fn all() -> Vec<Self> {
        HALVES.into_iter().flat_map(|half| [Self::Mark(half), Self::Code(half), Self::Sum(half)]).collect()
    }

    /// The kernel's source.
    pub fn source(self) -> Source {
        let (name, parameters, half) = match self {
            Self::Mark(half) => ("mark_columns", "MarkParameters", half),
            Self::Code(half) => ("code_rows", "CodeParameters", half),
            Self::Sum(half) => ("sum_products", "SumParameters", half),
        };
        Source::new(format!("simulated_{name}_{}", half.kernel_name()), |function| {
            format!(
                "#include \"simulated.cuh\"\n\
             // What the host believes.\n\
             static_assert(kMarkedColumns == {MARKED_COLUMNS} && kMarkedRows == {MARKED_ROWS} && kCodeThreads == {CODE_THREADS} && kSumThreads == {SUM_THREADS});\n\
             extern \"C\" __global__ void __launch_bounds__({})\n\
             {function}(const __grid_constant__ {parameters} p) {{ overlap_launches(); {name}<{}>(p); }}\n",
                self.threads(),
                half == DType::BF16,
            )
        })
    }

    /// Threads of a CTA.
    pub fn threads(self) -> usize {
        match self {
            Self::Mark(_) => MARKED_COLUMNS * MARKED_ROWS,
            Self::Code(_) => CODE_THREADS,
            Self::Sum(_) => SUM_THREADS,
        }
    }

    /// CTAs for so many columns, rows, or outputs.
    pub fn ctas(self, units: usize) -> usize {
        match self {
            Self::Mark(_) => units.div_ceil(MARKED_COLUMNS),
            Self::Code(_) => units,
            // Each takes several where there are many.
            Self::Sum(_) => units.div_ceil(SUM_THREADS).clamp(1, 4096),
        }
    }
}

/// `MarkParameters` of `simulated.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MarkParameters {
    /// `m x k` of the 16-bit type.
    pub x: u64,
    /// Output, `k` bytes: 1 where any magnitude of the column reaches the threshold or is no number, else 0.
    pub outlier: u64,
    /// Rows.
    pub m: i32,
    /// Columns.
    pub k: i32,
    /// Magnitude that makes an outlier.
    pub threshold: f32,
}

/// What a product multiplies of an input, as `Coding` of `simulated.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// The 16-bit numbers.
    AsTheyAre,
    /// int8 codes by each row's largest magnitude.
    Symmetric,
    /// Codes of so many bits from each row's least value to its largest, less half their range.
    Asymmetric(u8),
}

impl Coding {
    /// As the kernel knows it, with the bits.
    pub fn codes(self) -> (i32, i32) {
        match self {
            Self::AsTheyAre => (0, 16),
            Self::Symmetric => (1, 8),
            Self::Asymmetric(bits) => (2, bits.into()),
        }
    }
}

/// `CodeParameters` of `simulated.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CodeParameters {
    /// `m x k` of the 16-bit type.
    pub x: u64,
    /// `k` bytes, 1 for outlier columns, 0 for others.
    pub outlier: u64,
    /// Output, `m x k` of the 16-bit type: codes or values of the columns that are meant, and 0.
    pub codes: u64,
    /// Output, `m` float32, where there are codes: their scales.
    pub scale: u64,
    /// Output, `m` float32, of asymmetric codes: a value is `code * scale + zero`.
    pub zero: u64,
    /// Rows.
    pub m: i32,
    /// Columns.
    pub k: i32,
    /// [`Coding`].
    pub coding: i32,
    /// Bits of a code.
    pub bits: i32,
    /// Whether outlier columns are meant (1), or all others (0).
    pub of_outliers: i32,
}

/// `Summand` of `simulated.cuh`: a product of rows with weights, before its scales; addresses are 0 where there is nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Summand {
    /// `m x n` float32.
    pub sums: u64,
    /// Scales of the rows' codes, `m` float32.
    pub scale: u64,
    /// Zeros of them, `m` float32.
    pub zero: u64,
    /// Scales of the weights' codes, `n` float32.
    pub channel_scale: u64,
    /// Sums of each output channel's codes times its scale, `n` float32.
    pub channel_sum: u64,
}

/// `SumParameters` of `simulated.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SumParameters {
    /// The second has no sums where there is only one.
    pub summands: [Summand; 2],
    /// `n` float32, or 0.
    pub bias: u64,
    /// Output, `m x n` of the 16-bit type.
    pub out: u64,
    /// Rows.
    pub m: i32,
    /// Output channels.
    pub n: i32,
}

/// Which columns of an input are outliers.
#[derive(Clone, Debug, PartialEq)]
pub enum Outliers {
    /// Those in which a magnitude of the step reaches this.
    From(f32),
    /// Those with a 1, others have a 0.
    Given(Vec<u8>),
}

/// Weights of outlier columns, or of all others.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Whether they are those of outlier columns.
    pub of_outliers: bool,
    /// What the input is made.
    pub coding: Coding,
    /// `N K` codes, or 16-bit weights; what stands in columns of the other part is multiplied by zero.
    pub values: WeightData,
    /// Scales of the codes, `N`; none without.
    pub channel_scales: Vec<f32>,
    /// With asymmetric inputs: the sum of each output channel's codes times its scale, `N`.
    pub channel_sums: Vec<f32>,
}

impl Part {
    fn of_codes(codes: &[i8], scales: Vec<f32>, coding: Coding, of_outliers: bool) -> Self {
        let k = codes.len() / scales.len().max(1);
        let channel_sums = match coding {
            Coding::Asymmetric(_) => {
                let sum = |row: &[i8]| row.iter().map(|c| i32::from(*c)).sum::<i32>() as f32;
                codes.chunks_exact(k.max(1)).zip(&scales).map(|(row, s)| sum(row) * s).collect()
            }
            Coding::Symmetric | Coding::AsTheyAre => Vec::new(),
        };
        let values = WeightData::F32(codes.iter().map(|c| f32::from(*c)).collect());
        Self { of_outliers, coding, values, channel_scales: scales, channel_sums }
    }

    fn of_floats(values: WeightData) -> Self {
        Self {
            of_outliers: true,
            coding: Coding::AsTheyAre,
            values,
            channel_scales: Vec::new(),
            channel_sums: Vec::new(),
        }
    }
}

/// What a layer multiplies by the columns that are no outliers, and by those that are, if there are any.
///
/// # Errors
/// [`CudaError::Shape`]: a weight that does not hold what its arithmetic says.
pub fn parts(weight: SimulatedWeight) -> Result<(Outliers, Vec<Part>)> {
    let shape = |e: qqq_formats::FormatError| CudaError::Shape(e.to_string());
    let (n, k) = (weight.out_features, weight.in_features);
    if n.checked_mul(k) != Some(weight.data.len()) {
        return Err(CudaError::Shape(format!("{} values for a weight of {n} x {k}", weight.data.len())));
    }
    let (codes, outlier_codes) = (weight.codes().map_err(shape)?, weight.outlier_codes().map_err(shape)?);
    let SimulatedWeight { data, arithmetic, .. } = weight;
    match arithmetic {
        Arithmetic::LlmInt8 { threshold } => {
            let (mut codes, mut scales) = (vec![0; n * k], vec![0.0; n]);
            let values = data.clone().into_f32();
            let rows = codes.chunks_exact_mut(k).zip(values.chunks_exact(k)).zip(&mut scales);
            rows.for_each(|((codes, values), scale)| *scale = quantize_row(values, codes).0);
            let base = Part::of_codes(&codes, scales, Coding::Symmetric, false);
            Ok((Outliers::From(threshold), vec![base, Part::of_floats(data)]))
        }
        Arithmetic::Quik { bits, scales, outliers, outlier_scales } => {
            let codes = codes.unwrap_or_default();
            let mut parts = vec![Part::of_codes(&codes, scales, Coding::Asymmetric(bits), false)];
            let mut marks = vec![0; k];
            outliers.iter().for_each(|j| marks[*j] = 1);
            match (outlier_scales, outlier_codes) {
                _ if outliers.is_empty() => {}
                (Some(scales), Some(codes)) => {
                    parts.push(Part::of_codes(&codes, scales, Coding::Asymmetric(8), true));
                }
                _ => parts.push(Part::of_floats(data)),
            }
            Ok((Outliers::Given(marks), parts))
        }
    }
}
