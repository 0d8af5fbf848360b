//! Where memory is short, and what a GPU has no room for.

use qqq_backend::CpuBackend;
use qqq_formats::Checkpoint;
use qqq_model::Tokenizer;
use qqq_testing::TinyModel;

use super::*;
use crate::{Calibration, calibration::CalibrationText, held_out::DECIDING_WINDOWS};

/// What was told.
#[derive(Default)]
struct Told(Vec<String>);

impl Progress for Told {
    fn step(&mut self, done: f64, total: f64, _next: &str) -> bool {
        assert!(done.is_finite() && total >= done, "{done} of {total}");
        true
    }

    fn warn(&mut self, message: &str) {
        panic!("{message}");
    }

    fn note(&mut self, message: &str) {
        self.0.push(message.into());
    }
}

/// Measures all sites of the tiny model in some memory.
fn measured(room: Room, sensitivities: Sensitivities) -> Result<(Found, Vec<String>)> {
    let tiny = TinyModel::new();
    let checkpoint = Checkpoint::open(&tiny.model()).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let recipe = recipe(&Recipe {
        group_size: Some(32),
        calibration: Calibration { windows: 4, window: 64, smooth_tokens: 64 },
        ..Recipe::DEFAULT
    })
    .resolved(&checkpoint.config)
    .recipe;
    let sizes = Sizes::of(&checkpoint, &recipe)?;
    let source = Source::Files(vec![tiny.text()]);
    let calibration = CalibrationText { source: &source, options: None, held_out: 1 + DECIDING_WINDOWS };
    let backend = CpuBackend::new();
    let job = Job {
        backend: &backend,
        checkpoint: &checkpoint,
        tokenizer: &tokenizer,
        recipe: &recipe,
        calibration,
        transform: None,
        budget: None,
    };
    let mut told = Told::default();
    let found = measure_in(&|| Ok(room), &job, 1, &sizes, sensitivities, &mut told)?;
    Ok((found, told.0))
}

#[test]
fn several_passes_change_no_number() {
    let all = |free| Room { on_device: false, free };
    let (once, told) = measured(all(None), Sensitivities::Measured).unwrap();
    assert!(told.len() == 1 && !told[0].contains("in several passes"), "{told:?}");
    let (blocks, told) = measured(all(Some(0)), Sensitivities::Measured).unwrap();
    assert!(told.len() == 1 && told[0].contains("in several passes"), "{told:?}");
    assert_eq!(once.sites, blocks.sites);
    assert!(
        (once.windows, once.tokens) == (DECIDING_WINDOWS, DECIDING_WINDOWS * 63) && !once.on_compared_text
    );
    // Copies of one block are fewer than those of all.
    assert!(blocks.measuring.memory < once.measuring.memory);
    for site in &once.sites {
        let losses: Vec<f64> = site.candidates.iter().map(|c| c.kl_divergence.unwrap()).collect();
        assert!(losses.iter().all(|loss| *loss > 0.0) && losses[0] > losses[1], "{site:?}");
    }
}

#[test]
fn what_a_device_has_no_room_for_is_refused_before_it_is_measured() {
    let of_device = |free| measured(Room { on_device: true, free: Some(free) }, Sensitivities::Alike);
    let error = of_device(1000).err().unwrap().to_string();
    assert!(error.contains("GPU's memory") && error.contains("--device cpu"), "{error}");
    let (found, told) = of_device(1 << 40).unwrap();
    assert!(found.measuring.seconds > 0.0 && told[0].contains("GPU memory"), "{told:?}");
}
