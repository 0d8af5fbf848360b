//! Runs that were interrupted and are gone on with.

use std::fs;

use qqq_backend::Calibrate;
use qqq_cuda::CudaBackend;
use qqq_formats::writer::Reservation;
use qqq_quant::{Calibration, Propagation, QuantError, Recipe, Report, Result, Transform, resume::Resume};
use qqq_testing::TinyModel;

use super::tiny::{self, OUT, taken_bytes};

/// Quantizes a tiny model, from the beginning or from where a run was stopped.
fn run<B: Calibrate>(
    b: &B,
    tiny: &TinyModel,
    recipe: &Recipe,
    goes_on: bool,
    stop: Option<&'static str>,
) -> Result<Report> {
    tiny::run(b, tiny, recipe, Some(Resume { device: "one", goes_on }), stop)
}

/// The folder that a stopped run has left.
fn left(tiny: &TinyModel) -> std::path::PathBuf {
    Reservation::take(&tiny.path(OUT)).unwrap().stopped()[0].clone()
}

/// With its hidden states, and without, when the finished block is run again.
pub fn bytes_are_those_of_one_run(b: CudaBackend) {
    same_bytes(&b);
}

fn same_bytes<B: Calibrate>(b: &B) {
    let tiny = TinyModel::new();
    for (transform, propagation, error_correction) in [
        (Transform::Rotate, Propagation::Quantized, 0.0),
        (Transform::Smooth, Propagation::Quantized, 0.0),
        (Transform::Smooth, Propagation::Float, 0.0),
        (Transform::Rotate, Propagation::Quantized, 0.5),
        (Transform::Smooth, Propagation::Quantized, 0.5),
    ] {
        let recipe = Recipe {
            transform,
            propagation,
            error_correction,
            group_size: Some(32),
            calibration: Calibration { windows: 4, window: 128, smooth_tokens: 128 },
            ..Recipe::DEFAULT
        };
        run(b, &tiny, &recipe, false, None).unwrap();
        let whole = taken_bytes(&tiny);
        for states in [true, false] {
            let what =
                format!("{transform:?}, {propagation:?}, correction {error_correction}, states {states}");
            let stopped = run(b, &tiny, &recipe, false, Some("block 2/2: solving"));
            assert!(matches!(stopped, Err(QuantError::Interrupted)), "{what}: {stopped:?}");
            for entry in fs::read_dir(left(&tiny)).unwrap() {
                let path = entry.unwrap().path();
                if !states && path.to_string_lossy().contains(".resume-states-") {
                    fs::remove_file(path).unwrap();
                }
            }
            run(b, &tiny, &recipe, true, None).unwrap();
            assert!(taken_bytes(&tiny) == whole, "{what}: other bytes");
        }
    }
}
