use qqq_backend::{Calibrate, CpuBackend};

use super::*;
use crate::shapes;

const BF16: Stored = Stored { linear: 2.0, ends: 2.0 };

fn of(recipe: &Recipe, samples: bool, threads: usize) -> MemoryNeed {
    let config = shapes::llama_7b(32);
    let schemes = Schemes::of(&config, recipe).unwrap();
    need((&config, recipe, &schemes, HeldText::default()), BF16, samples, threads, CpuBackend::PIECES)
}

#[test]
fn a_model_of_7b_takes_less_than_4_gb() {
    let recipe = Recipe {
        calibration: crate::Calibration { windows: 32, window: 2048, smooth_tokens: 512 },
        error_correction: 0.0,
        ..Recipe::DEFAULT
    };
    for threads in [1, 2, 16] {
        let need = of(&recipe, false, threads);
        println!("{threads} threads: {need:?}");
        // 32 windows of hidden states alone are 1.07 GB, the inputs of down 0.72 GB, its Hessian 0.48 GB.
        assert!((2_500_000_000..3_800_000_000).contains(&need.bytes), "{need:?}");
        assert!(need.least < need.bytes && need.least > 2_270_000_000, "{need:?}");
    }
    // The model itself in 16 bits.
    let sampled = of(&recipe, true, 2);
    assert!(sampled.bytes > 13_000_000_000 && sampled.phase == "sampling calibration text", "{sampled:?}");
}

/// Peaks (VmHWM) of whole runs with two threads.
#[test]
fn plans_are_a_little_above_what_runs_took() {
    let with = |windows, transform, propagation| Recipe {
        transform,
        propagation,
        calibration: crate::Calibration { windows, ..Recipe::DEFAULT.calibration },
        error_correction: 0.0,
        ..Recipe::DEFAULT
    };
    let usual = with(32, Transform::Rotate, Propagation::Quantized);
    let corrected = |recipe: Recipe| Recipe { error_correction: 0.3, ..recipe };
    // Of a GGUF file.
    let smol = (shapes::smollm2(), Stored { linear: 4.0, ends: 4.0 });
    for ((config, stored), recipe, peak) in [
        (smol.clone(), usual.clone(), 454e6),
        (smol.clone(), with(4, Transform::Smooth, Propagation::Quantized), 277e6),
        (smol.clone(), corrected(usual.clone()), 869e6),
        (smol.clone(), corrected(with(4, Transform::Smooth, Propagation::Quantized)), 322e6),
        (smol, with(4, Transform::Rotate, Propagation::Float), 401e6),
        ((shapes::wide(), BF16), usual.clone(), 1.91e9),
        ((shapes::llama_7b(2), BF16), usual, 3.36e9),
    ] {
        let schemes = Schemes::of(&config, &recipe).unwrap();
        let need =
            need((&config, &recipe, &schemes, HeldText::default()), stored, false, 2, CpuBackend::PIECES);
        let ratio = need.bytes as f64 / peak;
        assert!((1.0..1.15).contains(&ratio), "{need:?} is {ratio} of {peak}");
    }
}

#[test]
fn recipes_and_calibration_count() {
    let plain = Recipe { error_correction: 0.0, ..Recipe::DEFAULT };
    let base = of(&plain, false, 2).bytes;
    let with = |recipe: Recipe| of(&recipe, false, 2).bytes;
    assert!(with(Recipe::DEFAULT) > base, "the float model's windows are beside the others");
    let float = Recipe { propagation: Propagation::Float, ..plain.clone() };
    assert!(with(float) > base);
    let mut fewer = plain.clone();
    fewer.calibration.windows /= 2;
    let saved = base - with(fewer);
    // 32,768 tokens of hidden states, and of int8 inputs of down.
    let expected = RETAINED * f64::from(32_768 * (4 * 4096 + 11008));
    assert!((saved as f64 - expected).abs() < 10.0, "{saved} {expected}");
    // Of float inputs of down, beside which the hidden states are the same.
    let rules = vec!["down_proj=float".parse().unwrap()];
    let wide = with(Recipe { rules, ..plain.clone() });
    let more = RETAINED * 65_536.0 * 3.0 * 11008.0;
    assert!((wide - base) as f64 > 0.9 * more, "{wide} {base}");
    let mut none = Recipe { compensate: false, ..plain };
    none.calibration.windows = 0;
    assert!(with(none) < base / 2);
    let mut huge = Recipe::DEFAULT;
    (huge.calibration.windows, huge.calibration.window) = (usize::MAX, 2048);
    assert_eq!(of(&huge, false, 2).least, u64::MAX);
}

#[test]
fn held_out_text_counts() {
    let config = shapes::llama_7b(32);
    let of = |config: &qqq_formats::ModelConfig, recipe: &Recipe, held| {
        let schemes = Schemes::of(config, recipe).unwrap();
        need((config, recipe, &schemes, held), BF16, false, 2, CpuBackend::PIECES)
    };
    let held = HeldText { windows: 2, window: 2048 };
    let plain = Recipe { error_correction: 0.0, ..Recipe::DEFAULT };
    let more = of(&config, &plain, held).bytes - of(&config, &plain, HeldText::default()).bytes;
    // 4,096 tokens' hidden states in both models, and their int8 inputs of down.
    let expected = RETAINED * f64::from(4096 * (8 * 4096 + 11008));
    assert!((more as f64 - expected).abs() < 10.0, "{more} {expected}");
    // The heads of a model with a large vocabulary take more than what rounds its layers: as much as converting them did, with
    // hidden states beside them.
    let none = crate::Calibration { windows: 0, ..Recipe::DEFAULT.calibration };
    let rtn = Recipe { compensate: false, clip: crate::Clip::Weight, calibration: none, ..plain };
    let mut wide = config.clone();
    wide.vocab_size = 256_000;
    let more = of(&wide, &rtn, held).least - of(&wide, &rtn, HeldText::default()).least;
    assert_eq!(more, 8 * 4096 * 4096);
}
