//! Activations to be quantized, and what they must become. Needs the module `uniform` beside it.

use qqq_cuda::quantize::{Operation, Precision, QuantizeConfig};
use qqq_cuda::{DType, KernelType};

use crate::uniform::uniform;

pub const EPSILON: f32 = 1e-5;

/// What a norm is given besides its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    None,
    /// Input + residual replaces it.
    Replaced,
    /// Input + residual goes elsewhere.
    Kept,
}

impl Residual {
    pub const ALL: [Self; 3] = [Self::None, Self::Replaced, Self::Kept];
}

/// Inputs of an operation, and the exact result before int8.
pub struct Case {
    pub config: QuantizeConfig,
    pub m: usize,
    pub k: usize,
    pub x: Vec<u16>,
    residual: Option<Vec<u16>>,
    keeps_residual: bool,
    norm: Vec<f32>,
}

/// What the kernel writes.
pub struct Outputs {
    pub q: Vec<i8>,
    pub scale: Vec<f32>,
    pub sum: Vec<i32>,
    /// What is where the residual was, if there was one.
    pub residual: Option<Vec<u16>>,
    /// Input + residual, if they are not to replace it.
    pub new_residual: Option<Vec<u16>>,
}

impl Case {
    pub fn new(config: QuantizeConfig, m: usize, k: usize, residual: Residual) -> Self {
        let columns = if config.operation == Operation::SiluMul { 2 * k } else { k };
        let spread = |row: usize| match row {
            // Zeros, and values whose scale is subnormal in float16.
            1 => 0.0,
            2 => 1e-4,
            _ => 8.0 * uniform(1, row) + 0.01,
        };
        let value = |seed: u64, i: usize| (0..4).map(|j| uniform(seed, 4 * i + j) - 0.5).sum::<f32>();
        let input = config.input;
        Self {
            config,
            m,
            k,
            x: (0..m * columns).map(|i| input.encode(value(2, i) * spread(i / columns))).collect(),
            residual: (residual != Residual::None)
                .then(|| (0..m * k).map(|i| input.encode(value(3, i))).collect()),
            keeps_residual: residual == Residual::Kept,
            norm: (0..k).map(|i| 0.5 + uniform(4, i)).collect(),
        }
    }

    /// To the input's type, where the precision asks for it.
    fn round(&self, x: f64) -> f64 {
        match self.config.precision {
            Precision::Float32 => x,
            Precision::Stepwise => f64::from(self.config.input.decode(self.config.input.encode(x as f32))),
        }
    }

    /// Input + residual, in the input's type.
    fn sum(&self) -> Vec<u16> {
        let input = self.config.input;
        match &self.residual {
            None => self.x.clone(),
            Some(r) => {
                let add = |(x, r): (&u16, &u16)| input.encode(input.decode(*x) + input.decode(*r));
                self.x.iter().zip(r).map(add).collect()
            }
        }
    }

    /// A row before it becomes int8.
    fn exact(&self, row: usize, norm: &[f32]) -> Vec<f64> {
        let value = |bits: u16| f64::from(self.config.input.decode(bits));
        match self.config.operation {
            Operation::Plain => self.x[row * self.k..][..self.k].iter().map(|b| value(*b)).collect(),
            Operation::SiluMul => {
                let (gate, up) = self.x[row * 2 * self.k..][..2 * self.k].split_at(self.k);
                let one = |(g, u): (&u16, &u16)| {
                    let g = value(*g);
                    self.round(self.round(g / (1.0 + (-g).exp())) * value(*u))
                };
                gate.iter().zip(up).map(one).collect()
            }
            Operation::RmsNorm => {
                let v: Vec<f64> = self.sum()[row * self.k..][..self.k].iter().map(|b| value(*b)).collect();
                let mean = v.iter().map(|x| x * x).sum::<f64>() / self.k as f64;
                let factor = 1.0 / (mean + f64::from(EPSILON)).sqrt();
                v.iter().zip(norm).map(|(x, w)| self.round(self.round(x * factor) * f64::from(*w))).collect()
            }
        }
    }

    /// The norm's factors: the bytes of a type, and their values.
    pub fn norm(&self, norm_type: DType) -> (Vec<u8>, Vec<f32>) {
        match norm_type {
            DType::F32 => (self.norm.iter().flat_map(|v| v.to_le_bytes()).collect(), self.norm.clone()),
            other => {
                let half = if other == DType::F16 { DType::F16 } else { DType::BF16 };
                let bits: Vec<u16> = self.norm.iter().map(|v| half.encode(*v)).collect();
                (
                    bits.iter().flat_map(|b| b.to_le_bytes()).collect(),
                    bits.iter().map(|b| half.decode(*b)).collect(),
                )
            }
        }
    }

    /// What the outputs hold before: one row more than there is to write.
    pub fn poison(&self) -> Outputs {
        Outputs {
            q: vec![0x55; (self.m + 1) * self.k],
            scale: vec![f32::NAN; self.m + 1],
            sum: vec![-7; self.m + 1],
            residual: self.residual.clone(),
            new_residual: self.keeps_residual.then(|| vec![0x5555; (self.m + 1) * self.k]),
        }
    }

    /// Panics unless the outputs are those of float64, up to what rounding explains.
    pub fn check(&self, outputs: &Outputs, norm_type: DType) {
        let what = format!("{:?}, {} x {}, {norm_type:?}", self.config, self.m, self.k);
        let norm = self.norm(norm_type).1;
        let Outputs { q, scale, sum, residual, new_residual } = outputs;
        if let Some(new) = new_residual {
            let (new, beyond) = new.split_at(self.m * self.k);
            assert!(beyond.iter().all(|v| *v == 0x5555), "{what}: written too far");
            assert_eq!(new, self.sum(), "{what}: new residual");
            assert_eq!(*residual, self.residual, "{what}: the residual was to be kept");
        } else if let Some(r) = residual {
            assert_eq!(*r, self.sum(), "{what}: residual");
        }
        assert!(
            q[self.m * self.k..].iter().all(|v| *v == 0x55) && scale[self.m].is_nan(),
            "{what}: written too far"
        );
        assert_eq!(sum[self.m], -7, "{what}: written too far");

        let plain = self.config.operation == Operation::Plain;
        let stepwise = self.config.precision == Precision::Stepwise;
        let mut different = 0;
        for row in 0..self.m {
            let exact = self.exact(row, &norm);
            let largest = exact.iter().fold(0.0f64, |a, v| a.max(v.abs())) as f32;
            let mut expected = if largest >= 1e-30 { largest } else { 1.0 } / 127.0f32;
            if stepwise {
                expected = self.config.input.decode(self.config.input.encode(expected));
                if self.config.input == DType::F16 {
                    expected = expected.max(5.960_464_5e-8);
                }
            }
            let got = scale[row];
            // A result beside a boundary may round the other way: one step of the type, twice where two follow.
            let tolerance = match (plain, stepwise, self.config.input) {
                (true, ..) => 0.0,
                (_, false, _) => 1e-5,
                (_, true, DType::F16) => 3e-3,
                _ => 2e-2,
            };
            // A subnormal scale has fewer bits.
            let floor = if stepwise && !plain { 6e-8 } else { 0.0 };
            assert!(
                (got - expected).abs() <= tolerance * expected + floor,
                "{what}: scale {row}: {got} for {expected}"
            );
            let q = &q[row * self.k..][..self.k];
            assert_eq!(sum[row], q.iter().map(|v| i32::from(*v)).sum::<i32>(), "{what}: sum of {row}");
            for (i, (got, exact)) in q.iter().zip(&exact).enumerate() {
                // With the scale that was found: an error there is no error here.
                let expected = (*exact as f32 / scale[row]).round_ties_even().clamp(-128.0, 127.0) as i32;
                let difference = (i32::from(*got) - expected).abs();
                assert!(difference <= i32::from(!plain), "{what}: row {row}, {i}: {got} for {expected}");
                different += usize::from(difference > 0);
            }
        }
        let most = if stepwise { 0.03 } else { 0.001 };
        assert!(
            different as f64 <= most * (self.m * self.k) as f64 + 2.0,
            "{what}: {different} of {} differ",
            self.m * self.k
        );
    }
}
