use qqq_backend::{AttentionKind, Backend, BatchPlan, CpuBackend, DeviationValues, InputKind, solve::Scheme};
use qqq_formats::{Checkpoint, ModelConfig};
use qqq_model::{
    BlockNorms, RopeChoice,
    block::{Layer, head_layout},
    names::EMBEDDING,
    rope,
};
use qqq_testing::TinyModel;

use super::*;
use crate::float_linear::{FloatBlock, read_block};

type Cpu = CpuBackend;

const TOKENS: usize = 24;
/// More than one wave.
const WINDOWS: usize = 11;

/// The first block of a model: in float, and with layers that are rounded to 4 bits and take int8 inputs.
fn blocks(b: &Cpu, checkpoint: &Checkpoint) -> [Block<Cpu>; 2] {
    let FloatBlock { layers, .. } = read_block(b, checkpoint, 0).unwrap();
    [InputKind::Float, InputKind::Int8].map(|kind| {
        let norms = BlockNorms::read(checkpoint, 0).unwrap();
        let mut block = Block::without_layers(b, &checkpoint.config, 0, norms, kind).unwrap();
        for site in Site::ALL {
            let layer = &layers[site];
            *block.layer_mut(site) = match kind {
                InputKind::Float => layer.layer(b, 0, site).unwrap(),
                InputKind::Int8 => {
                    let mut rounded = None;
                    b.round_scaled(
                        &layer.weights,
                        &vec![1.0; layer.k],
                        Scheme::w4a8(Some(32)),
                        None,
                        &mut rounded,
                    )
                    .unwrap();
                    Layer::Ready(rounded.unwrap())
                }
            };
        }
        block
    })
}

fn windows(b: &Cpu, checkpoint: &Checkpoint) -> Vec<Window<Cpu>> {
    let ModelConfig { vocab_size, hidden_size, .. } = checkpoint.config;
    let values = checkpoint.tensors.f32(EMBEDDING, &[vocab_size, hidden_size]).unwrap();
    let table = b.embedding(vocab_size, hidden_size, qqq_formats::WeightData::F32(values)).unwrap();
    let ids = |w: usize| (0..TOKENS).map(|t| ((t * t + 31 * w + 7) % vocab_size) as u32).collect::<Vec<_>>();
    let window = |w| Window::embedded(b, &table, &ids(w), hidden_size, 1.0).unwrap();
    (0..WINDOWS).map(window).collect()
}

/// `2/n` times the sums over rows of pairs, in f64.
fn naive(pairs: &[(Vec<f32>, Vec<f32>)], k: usize) -> [Vec<f64>; 2] {
    let n: usize = pairs.iter().map(|(x, _)| x.len() / k).sum();
    let mut sums = [vec![0.0; k * k], vec![0.0; k * k]];
    for (x, y) in pairs {
        for (x, y) in x.chunks_exact(k).zip(y.chunks_exact(k)) {
            let d: Vec<f64> = x.iter().zip(y).map(|(x, y)| f64::from(*y) - f64::from(*x)).collect();
            for i in 0..k {
                for j in 0..k {
                    sums[0][i * k + j] += 2.0 / n as f64 * f64::from(x[i]) * d[j];
                    sums[1][i * k + j] += 2.0 / n as f64 * d[i] * d[j];
                }
            }
        }
    }
    sums
}

#[track_caller]
fn assert_deviation(b: &Cpu, sums: <Cpu as Calibrate>::Deviations, pairs: &[(Vec<f32>, Vec<f32>)], k: usize) {
    let deviation = b.deviation(sums).unwrap();
    let DeviationValues { cross, square } = b.read_deviation(&deviation).unwrap();
    for (got, want) in [cross, square].into_iter().zip(naive(pairs, k)) {
        let unit = want.iter().fold(0.0f64, |max, v| max.max(v.abs()));
        assert!(unit > 0.0, "the streams are the same");
        for i in 0..k {
            // The second matrix has no upper triangle.
            for j in 0..=i {
                let error = (f64::from(got[i * k + j]) - want[i * k + j]).abs();
                assert!(error < 1e-5 * unit, "[{i}, {j}]: error {error:e} of {unit:e}");
            }
        }
    }
}

/// Inputs of all windows, in both models.
fn inputs(b: &Cpu, quantized: &Windows<'_, Cpu>, float: &Windows<'_, Cpu>) -> Vec<(Vec<f32>, Vec<f32>)> {
    let read = |x: &&<Cpu as Backend>::Input| b.read_input(x).unwrap().into_owned();
    quantized.inputs().iter().map(read).zip(float.inputs().iter().map(read)).collect()
}

#[test]
fn streams_are_compared_at_every_site_and_leave_the_block_as_their_models_do() {
    let tiny = TinyModel::new();
    let checkpoint = Checkpoint::open(&tiny.model()).unwrap();
    let (b, config) = (Cpu::default(), &checkpoint.config);
    let ropes = rope::embeddings(&b, config, RopeChoice::new(config, TOKENS), TOKENS).unwrap();
    let around = Surroundings { backend: &b, config, ropes: &ropes };
    let [float_block, block] = blocks(&b, &checkpoint);
    let on_wave: &mut OnWave<'_> = &mut |_| Ok(());
    for leaves in [false, true] {
        let mut quantized = Windows::new(around, windows(&b, &checkpoint), TOKENS);
        let mut stream = FloatStream::new(around, windows(&b, &checkpoint), TOKENS);
        for site in Site::ALL {
            quantized.sum_input("block", &block, site, on_wave).unwrap();
            let sums =
                stream.sum_deviations("block", &float_block, site, &quantized, leaves, on_wave).unwrap();
            if !(leaves && site == Site::Down) {
                let pairs = inputs(&b, &quantized, &stream.windows);
                assert_eq!(pairs.len(), WINDOWS);
                assert_deviation(&b, sums, &pairs, site.in_features(config));
            }
            if site == Site::Qkv {
                let attended = stream.sum_attended(&float_block, &mut quantized, &block, on_wave).unwrap();
                let pairs = averages(&b, around, &mut quantized, &block)
                    .into_iter()
                    .zip(averages(&b, around, &mut stream.windows, &float_block))
                    .collect::<Vec<_>>();
                assert_deviation(&b, attended.deviations.unwrap(), &pairs, config.hidden_size);
                // The Hessian is the one of a run that corrects nothing.
                let alone = b.hessian(quantized.sum_attended(&block, on_wave).unwrap()).unwrap();
                let beside = b.hessian(attended.gram).unwrap();
                assert!(b.read_hessian(&alone).unwrap() == b.read_hessian(&beside).unwrap());
            }
        }
        if leaves {
            let mut whole = FloatStream::new(around, windows(&b, &checkpoint), TOKENS);
            whole.pass(&float_block, on_wave).unwrap();
            assert!(
                whole.states().zip(stream.states()).all(|(a, c)| b.read(a).unwrap() == b.read(c).unwrap())
            );
        }
    }
}

/// The inputs of windows as attention averages them.
fn averages(
    b: &Cpu,
    around: Surroundings<'_, Cpu>,
    windows: &mut Windows<'_, Cpu>,
    block: &Block<Cpu>,
) -> Vec<Vec<f32>> {
    let kind = AttentionKind::causal(head_layout(around.config), None);
    let mut workshop = around.workshop(TOKENS).unwrap();
    let mut of_window = |window: &mut Window<Cpu>| {
        let batch = b.batch(&BatchPlan::whole(TOKENS)).unwrap();
        let mut step = around.step(&mut workshop, &batch);
        block.project(&mut step, &window.flow).unwrap();
        let x = b.attended(window.flow.input().unwrap(), &step.scratch.qkv, &kind).unwrap();
        b.read_input(&x).unwrap().into_owned()
    };
    windows.windows.iter_mut().map(&mut of_window).collect()
}
