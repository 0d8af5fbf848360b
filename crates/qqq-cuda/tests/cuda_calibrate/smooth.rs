//! The smoothing search: candidates, their losses, and what is chosen, beside the CPU's.

use qqq_backend::{Backend, Calibrate, CpuBackend, InputKind, solve::Scheme};
use qqq_cuda::{CudaBackend, DType, KernelType};
use qqq_formats::{Activations, Checkpoint, CodeBits, WeightData};
use qqq_model::{
    Sites, names,
    rope::{self, RopeChoice},
};
use qqq_quant::{
    Calibration, Propagation, Recipe, Transform,
    float_linear::read_block,
    half_type::HalfType,
    report::SmoothReport,
    smooth::{self, SearchOptions, SmoothChoice},
    smooth_sites::SmoothContext,
    windows::{Surroundings, Window},
};
use qqq_testing::{TinyModel, values};

use super::{activations, input, relative, tiny::quantized, weights};

const SCHEMES: [Scheme; 5] = [
    Scheme::w4a8(None),
    Scheme::w4a8(Some(32)),
    Scheme::w4a8(Some(64)),
    Scheme::w4a8(Some(128)),
    Scheme { bits: CodeBits::Eight, activations: Activations::Int8, group_size: None },
];

/// Values as a device's 16-bit type has them, so that both see the same.
fn rounded(b: &CudaBackend, x: Vec<f32>) -> Vec<f32> {
    x.into_iter().map(|v| b.half().decode(b.half().encode(v))).collect()
}

/// A layer and its input.
struct Site<'a, B: Calibrate> {
    b: &'a B,
    weights: B::Weights,
    x: B::Input,
    rows: usize,
    n: usize,
    bias: &'a [f32],
}

impl<'a, B: Calibrate> Site<'a, B> {
    fn new(b: &'a B, w: &[f32], x: &[f32], k: usize, bias: &'a [f32]) -> Self {
        let (n, rows) = (w.len() / k, x.len() / k);
        let weights = b.weights(n, k, WeightData::F32(w.to_vec())).unwrap();
        Self { b, weights, x: input(b, rows, k, x.to_vec(), InputKind::Float), rows, n, bias }
    }

    /// What a layer makes of an input, as an input.
    fn output(&self, x: &B::Input, linear: &B::Linear) -> B::Input {
        let (mut y, mut out) = (self.b.tensor(self.rows, self.n).unwrap(), self.b.input(0, 0).unwrap());
        self.b.linear(x, linear, &mut y).unwrap();
        self.b.to_input(&mut y, InputKind::Float, &mut out).unwrap();
        out
    }

    fn reference(&self) -> B::Input {
        let linear = self.b.float_linear(&self.weights, Some(self.bias.to_vec())).unwrap();
        self.output(&self.x, &linear)
    }

    /// A candidate's input and output; `linear` is memory.
    fn candidate(&self, s: &[f32], scheme: Scheme, linear: &mut Option<B::Linear>) -> (B::Input, B::Input) {
        let mut x = self.b.input(0, 0).unwrap();
        self.b.smooth_input(&self.x, s, scheme.input_kind(), &mut x).unwrap();
        self.b.round_scaled(&self.weights, s, scheme, Some(self.bias), linear).unwrap();
        let y = self.output(&x, linear.as_ref().unwrap());
        (x, y)
    }

    fn loss(&self, s: &[f32], scheme: Scheme, reference: &B::Input) -> f64 {
        let (_, y) = self.candidate(s, scheme, &mut None);
        self.b.squared_distance(&y, Some(reference)).unwrap()
            / self.b.squared_distance(reference, None).unwrap()
    }

    fn search(&self, scheme: Scheme) -> SmoothChoice {
        let reference = self.reference();
        let (max, min) = self.b.channel_range(&self.x).unwrap();
        smooth::search(&max, &min, |s| self.loss(s, scheme, &reference), &SearchOptions::default())
    }

    fn values(&self, x: &B::Input) -> Vec<f32> {
        self.b.read_input(x).unwrap().into_owned()
    }
}

/// Scales of a threshold.
fn scales<B: Calibrate>(site: &Site<'_, B>, sigma: f32) -> Vec<f32> {
    let (max, min) = site.b.channel_range(&site.x).unwrap();
    smooth::scales(&max, &min, sigma)
}

pub fn candidates_are_those_of_the_cpu(b: CudaBackend) {
    let cpu = CpuBackend::default();
    let unit = if b.half() == DType::BF16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
    for (rows, n, k) in [(37, 80, 128), (130, 208, 1152)] {
        let (w, x) = (weights(n, k), rounded(&b, activations(rows, k, 4)));
        let bias: Vec<f32> = values(n, 9);
        let (here, there) = (Site::new(&cpu, &w, &x, k, &bias), Site::new(&b, &w, &x, k, &bias));
        assert_eq!(cpu.channel_range(&here.x).unwrap(), b.channel_range(&there.x).unwrap());
        for scheme in SCHEMES {
            let mut memory = None;
            for sigma in [1e4, 9.0, 1.3] {
                let s = scales(&here, sigma);
                let what = format!("{rows} x {n} x {k}, {scheme:?}, threshold {sigma}");
                let (x_here, y_here) = here.candidate(&s, scheme, &mut None);
                // In the memory of the candidate before.
                let (x_there, y_there) = there.candidate(&s, scheme, &mut memory);
                assert_eq!(here.values(&x_here), there.values(&x_there), "{what}: inputs");
                for (i, (want, got)) in here.values(&y_here).iter().zip(there.values(&y_there)).enumerate() {
                    let bound = unit * want.abs() + 1e-6;
                    assert!((got - want).abs() <= bound, "{what}: output {i} is {got} instead of {want}");
                }
                let (_, again) = there.candidate(&s, scheme, &mut None);
                assert_eq!(there.values(&again), there.values(&y_there), "{what}: in memory of its own");
            }
        }
        let nothing = b.round_scaled(&there.weights, &vec![1.0; k], Scheme::w4a8(Some(48)), None, &mut None);
        assert!(nothing.unwrap_err().to_string().contains("groups of 48"));
        assert!(b.smooth_input(&there.x, &[1.0; 3], InputKind::Int8, &mut b.input(0, 0).unwrap()).is_err());
    }
}

pub fn weights_are_divided_as_on_the_cpu(b: CudaBackend) {
    let cpu = CpuBackend::default();
    let (n, k) = (96, 80);
    let w = weights(n, k);
    let (mut here, mut there) = (
        cpu.weights(n, k, WeightData::F32(w.clone())).unwrap(),
        b.weights(n, k, WeightData::F32(w)).unwrap(),
    );
    let s: Vec<f32> = (0..32).map(|i| 1.0 + i as f32 / 7.0).collect();
    cpu.divide_outputs(&mut here, 64, &s).unwrap();
    b.divide_outputs(&mut there, 64, &s).unwrap();
    assert_eq!(cpu.read_weights(&here).unwrap(), b.read_weights(&there).unwrap());
    assert!(b.divide_outputs(&mut there, 65, &s).is_err() && cpu.divide_outputs(&mut here, 65, &s).is_err());
}

pub fn thresholds_are_as_good_as_the_cpus(b: CudaBackend) {
    let cpu = CpuBackend::default();
    let (rows, n, k) = (300, 272, 640);
    let (w, x) = (weights(n, k), rounded(&b, activations(rows, k, 7)));
    let bias = vec![0.1; n];
    let (here, there) = (Site::new(&cpu, &w, &x, k, &bias), Site::new(&b, &w, &x, k, &bias));
    for scheme in [None, Some(64)].map(Scheme::w4a8) {
        let (ours, theirs) = (here.reference(), there.reference());
        for sigma in [1e3, 40.0, 10.0, 3.0, 1.0, 0.2] {
            let s = scales(&here, sigma);
            let (want, got) = (here.loss(&s, scheme, &ours), there.loss(&s, scheme, &theirs));
            // Beside rounding to nearest, what rounding to 16 bits loses.
            assert!(
                relative(got, want) < 0.02,
                "{scheme:?}, threshold {sigma}: loss {got} instead of {want}"
            );
        }
        let (want, got) = (here.search(scheme), there.search(scheme));
        assert!(want.loss_after < want.loss_before, "{want:?}");
        let reached = here.loss(&got.scales, scheme, &ours);
        assert!(
            reached <= 1.02 * want.loss_after,
            "{scheme:?}: threshold {} loses {reached}, {} loses {}",
            got.sigma,
            want.sigma,
            want.loss_after
        );
        assert_eq!(there.search(scheme), got, "{scheme:?}: a second time");
    }
}

pub fn inputs_that_are_not_finite_are_found(b: CudaBackend) {
    let (rows, k) = (40, 64);
    let mut x = activations(rows, k, 3);
    assert_eq!(b.input_not_finite(&input(&b, rows, k, x.clone(), InputKind::Float)).unwrap(), None);
    x[7 * k + 9] = f32::INFINITY;
    x[8 * k] = f32::NAN;
    let found = b.input_not_finite(&input(&b, rows, k, x, InputKind::Float)).unwrap();
    assert_eq!(found, Some((7, f32::INFINITY)));
}

/// What both blocks of a tiny model lose at the best of thresholds on a grid, which is the same on every device.
fn searched<B: Calibrate>(b: &B, tiny: &TinyModel, group_size: Option<usize>) -> Vec<SmoothReport> {
    const TOKENS: usize = 128;
    let checkpoint = Checkpoint::open(&tiny.model()).unwrap();
    let config = &checkpoint.config;
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let ropes = rope::embeddings(b, config, RopeChoice::new(config, TOKENS), TOKENS).unwrap();
    let around = Surroundings { backend: b, config, ropes: &ropes };
    let table = checkpoint.tensors.f32(names::EMBEDDING, &[vocab, hidden]).unwrap();
    let table = b.embedding(vocab, hidden, WeightData::F32(table)).unwrap();
    let ids: Vec<u32> = (0..TOKENS).map(|i| ((i * i * 7 + 3 * i) % vocab) as u32).collect();
    let mut window = Window::embedded(b, &table, &ids, hidden, 1.0).unwrap();
    let mut workshop = around.workshop(TOKENS).unwrap();
    let options = SearchOptions { evaluations: 12, coarse: 1.0, ..SearchOptions::default() };
    let context = SmoothContext {
        around,
        schemes: Sites::new([Some(Scheme::w4a8(group_size)); 4]),
        half: HalfType::BF16,
        options,
    };
    let mut reports = Vec::new();
    for index in 0..config.num_layers {
        let mut block = read_block(b, &checkpoint, index).unwrap();
        let found = context.smooth_block(index, &mut block, &mut window, &mut workshop, &mut || Ok(()));
        reports.extend(found.unwrap());
    }
    reports
}

pub fn blocks_are_smoothed_as_on_the_cpu(b: CudaBackend) {
    let (cpu, tiny) = (CpuBackend::default(), TinyModel::new());
    for group_size in [None, Some(32)] {
        let (want, got) = (searched(&cpu, &tiny, group_size), searched(&b, &tiny, group_size));
        assert_eq!(want.len(), got.len());
        for (want, got) in want.iter().zip(&got) {
            let what = format!("groups of {group_size:?}: {got:?}, {want:?}");
            assert_eq!(want.site, got.site);
            assert!(relative(got.loss_before, want.loss_before) < 0.1, "{what}");
            assert!(relative(got.loss_after, want.loss_after) < 0.1, "{what}");
        }
    }
}

pub fn runs_that_smooth_give_the_same_bytes(b: CudaBackend) {
    let (cpu, tiny) = (CpuBackend::default(), TinyModel::new());
    for group_size in [None, Some(32)] {
        for propagation in [Propagation::Quantized, Propagation::Float] {
            let recipe = Recipe {
                transform: Transform::Smooth,
                group_size,
                propagation,
                error_correction: 0.0,
                calibration: Calibration { windows: 4, window: 128, smooth_tokens: 128 },
                ..Recipe::DEFAULT
            };
            let what = format!("groups of {group_size:?}, {propagation:?}");
            let (report, bytes) = quantized(&b, &tiny, &recipe);
            let got = report.smoothing;
            assert!(quantized(&b, &tiny, &recipe).1 == bytes, "{what}: another time other bytes");
            // So small a layer's loss is rough, and a search may end in another valley of it: no worse on the whole.
            let all = |reports: &[SmoothReport]| {
                reports.iter().map(|r| (r.loss_after / r.loss_before).ln()).sum::<f64>()
                    / reports.len() as f64
            };
            let want = all(&quantized(&cpu, &tiny, &recipe).0.smoothing);
            assert!(all(&got) < want + 0.1 && all(&got) < 0.0, "{what}: {} for {want}", all(&got));
        }
    }
}
