//! Learning beside the CPU's: every operation, and models that are quantized so.

use qqq_backend::{Calibrate, CpuBackend};
use qqq_cuda::CudaBackend;
use qqq_formats::Activations;
use qqq_quant::{Calibration, Recipe, RecipeName, Report, report::LearnReport};
use qqq_testing::TinyModel;

use super::learning::{Bounds, check};
use super::tiny::{run, taken_bytes};

/// Gradients are products of TF32.
const BOUNDS: Bounds = Bounds { sums: 2e-5, gradients: 4e-3 };

pub fn operations_are_those_of_the_host(b: CudaBackend) {
    check(&b.learner(), BOUNDS).unwrap();
}

fn recipe(activations: Activations) -> Recipe {
    let calibration = Calibration { windows: 6, window: 64, smooth_tokens: 64 };
    let group_size = (activations == Activations::Half).then_some(32);
    Recipe { epochs: Some(8), calibration, activations, group_size, ..RecipeName::OmniQuant.recipe() }
}

fn lost(report: &Report) -> (f64, f64) {
    let sum = |of: fn(&LearnReport) -> f64| report.learning.iter().map(of).sum();
    (sum(|block| block.loss_before), sum(|block| block.loss_after))
}

pub fn blocks_learn_as_on_the_cpu(b: CudaBackend) {
    for activations in [Activations::Int8, Activations::Half] {
        let (tiny, recipe) = (TinyModel::new(), recipe(activations));
        let there = run(&b, &tiny, &recipe, None, None).unwrap();
        let bytes = taken_bytes(&tiny);
        let here = run(&CpuBackend::default(), &tiny, &recipe, None, None).unwrap();
        taken_bytes(&tiny);
        let ((before, after), (before_here, after_here)) = (lost(&there), lost(&here));
        println!("{activations:?}: {before} {after}; on the CPU {before_here} {after_here}");
        // Both start alike; which way rounding goes is seen from other gradients after that. Later blocks see inputs in 16 bits.
        let first = (there.learning[0].loss_before, here.learning[0].loss_before);
        assert!((first.0 / first.1 - 1.0).abs() < 1e-2, "{first:?}");
        assert!(
            after < before && after < 1.15 * after_here,
            "{after} of {before}, {after_here} of {before_here}"
        );
        // The same bytes again.
        run(&b, &tiny, &recipe, None, None).unwrap();
        assert!(taken_bytes(&tiny) == bytes, "two runs differ");
    }
}
