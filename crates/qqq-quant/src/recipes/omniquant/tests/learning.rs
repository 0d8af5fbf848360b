//! What learning does to a block.

use qqq_backend::{
    Learn,
    cpu::learn::{Array, CpuLearner},
};
use qqq_model::Site;

use super::{PLAIN, Shape, array, block, learned, ops, point, problem};
use crate::{
    clip::round,
    recipes::omniquant::{
        block::Learned,
        learn::{Example, LearnOptions, Outcome, learn, passes},
    },
};

const TOKENS: usize = 24;
const WINDOWS: usize = 4;

/// Where learning begins: hardly clipped, channels as they are.
fn first(shape: Shape, seed: u64) -> Learned<Array<f32>> {
    let mut point = point(shape, &problem(shape, seed), seed);
    point.clips.iter_mut().flatten().for_each(|clip| clip.fill(4.0));
    point.scales.iter_mut().flatten().for_each(|scales| scales.fill(1.0));
    learned(&point)
}

fn run(shape: Shape, seed: u64, options: LearnOptions) -> (Outcome<Array<f32>>, usize) {
    run_from(shape, seed, first(Shape { tokens: TOKENS, ..shape }, seed), options)
}

/// Learns a random block whose input has outliers, against itself in float.
fn run_from(
    shape: Shape,
    seed: u64,
    from: Learned<Array<f32>>,
    options: LearnOptions,
) -> (Outcome<Array<f32>>, usize) {
    let shape = Shape { tokens: TOKENS, ..shape };
    let ops: CpuLearner<f32> = ops();
    let of_block = problem(shape, seed);
    let windows: Vec<_> = (0..WINDOWS as u64).map(|i| problem(shape, 1000 + seed * 100 + i).x).collect();
    let mut float = of_block.clone();
    float.layers.iter_mut().for_each(|layer| (layer.grid, layer.is_int8) = (None, false));
    let float = block::<f32>(&float);
    let nothing = Learned { clips: Default::default(), scales: None };
    let weights = float.weights(&ops, &nothing).unwrap();
    let targets: Vec<_> =
        windows.iter().map(|x| float.run(&ops, &array(x), &nothing, &weights).unwrap()).collect();
    let power = targets.iter().flat_map(|target| &target.data).map(|x| f64::from(*x).powi(2)).sum();
    let load = |i: usize| Ok(Example { input: array(&windows[i]), target: targets[i].clone() });
    let mut seen = 0;
    let mut on_passes = |passes| {
        seen += passes;
        Ok(())
    };
    let block = block::<f32>(&of_block);
    let outcome = learn(&ops, &block, from, (WINDOWS, &load), power, options, &mut on_passes).unwrap();
    (outcome, seen)
}

#[test]
fn learning_lowers_the_loss() {
    let options = LearnOptions::default();
    for shape in [
        PLAIN,
        Shape { is_rich: true, ..PLAIN },
        Shape { both: false, group: Some(4), ..PLAIN },
        Shape { both: false, is_rich: true, ..PLAIN },
    ] {
        let mut gains = Vec::new();
        for seed in 0..4 {
            let (Outcome { loss_before, loss_after, .. }, seen) = run(shape, seed, options);
            assert_eq!(seen, WINDOWS * passes(options.epochs));
            // However it goes, no block is worse than it began.
            assert!(loss_after <= loss_before);
            println!("{shape:?}: {loss_before:.3e} {loss_after:.3e}");
            gains.push(loss_after / loss_before);
        }
        // Rounding is not smooth: single blocks of this size may lose.
        let mean = gains.iter().sum::<f64>() / gains.len() as f64;
        assert!(mean < 0.9, "{shape:?}: {gains:?}");
    }
}

#[test]
fn the_same_twice() {
    let options = LearnOptions { epochs: 2, ..LearnOptions::default() };
    let [(a, _), (b, _)] = [run(PLAIN, 1, options), run(PLAIN, 1, options)];
    assert_eq!(a.loss_after.to_bits(), b.loss_after.to_bits());
    for site in Site::ALL {
        assert_eq!(a.learned.clip(site), b.learned.clip(site));
    }
}

/// With more epochs the first of them are gone through alike: what was best behind these is kept until another is better.
#[test]
fn the_best_epoch_is_kept() {
    let (mut least, mut kept) = (f64::INFINITY, 0);
    for epochs in 0..8 {
        // Long steps: losses go up and down.
        let options = LearnOptions { epochs, clip_rate: 0.5, scale_rate: 0.2 };
        let (Outcome { learned, loss_before, loss_after, epoch }, _) = run(PLAIN, 3, options);
        least = least.min(if epochs == 0 { loss_before } else { loss_after });
        assert_eq!(loss_after.to_bits(), least.to_bits(), "{epochs}");
        assert!(epoch <= epochs);
        kept += usize::from(epoch < epochs);
        // It is what it says: without a rate this loses as much at the beginning.
        let options = LearnOptions { epochs: 0, ..options };
        let (again, _) = run_from(PLAIN, 3, learned, options);
        assert_eq!(again.loss_before.to_bits(), loss_after.to_bits());
    }
    assert!(kept > 0, "no epoch was worse than one before");
}

/// At learning rates of 0 weights are rounded to nearest, clipped as at the beginning.
#[test]
fn without_a_rate_nothing_is_learned() {
    let options = LearnOptions { epochs: 3, clip_rate: 0.0, scale_rate: 0.0 };
    for shape in [PLAIN, Shape { both: false, group: Some(4), ..PLAIN }] {
        let (outcome, _) = run(shape, 2, options);
        assert_eq!(outcome.loss_before.to_bits(), outcome.loss_after.to_bits());
        let problem = problem(Shape { tokens: TOKENS, ..shape }, 2);
        let (ops, block) = (ops::<f32>(), block::<f32>(&problem));
        let weights = block.weights(&ops, &outcome.learned).unwrap();
        for site in Site::ALL {
            let (float, rounded) = (&block.layers[site].weights, &weights[site]);
            let grid = block.layers[site].grid.unwrap();
            let clip = outcome.learned.clip(site).unwrap();
            let steps = ops.steps(float, clip, grid).unwrap();
            let groups = float.data.chunks(grid.group).zip(rounded.data.chunks(grid.group)).zip(steps);
            for ((w, q), step) in groups {
                let most = w.iter().fold(0.0f32, |most, w| most.max(w.abs()));
                let want = most / grid.grid.reach / (1.0 + (-4.0f32).exp());
                assert!((step - want).abs() < 1e-6 * want, "{step} {want}");
                for (w, q) in w.iter().zip(q) {
                    assert_eq!(*q, round((w / step).clamp(grid.grid.low, grid.grid.high)) * step);
                }
            }
        }
    }
}
