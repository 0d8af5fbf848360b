//! What `Transform::Usual` and `Transform::Auto` become.

use std::path::Path;

use qqq_quant::{
    Calibration, Clip, OutputFormat, Progress, REPORT_FILE, Recipe, Transform, calibration::Source,
    transform_choice::TransformTrial,
};
use tempfile::TempDir;

use crate::tiny::{Steps, Tiny, recipe, run, text};

/// The usual one is what the graph allows, says so where that is no rotation, and stands in no report.
#[test]
fn the_usual_transform_is_what_the_graph_allows() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 1500)]);
    let gemma = Tiny { architecture: "Gemma3ForCausalLM", ..Tiny::default() };
    let nearest = Recipe {
        compensate: false,
        calibration: Calibration { windows: 0, window: 0, smooth_tokens: 0 },
        ..recipe()
    };
    for (name, tiny, base, becomes, told) in [
        ("llama", Tiny::default(), recipe(), Transform::Rotate, None),
        ("llama-nearest", Tiny::default(), nearest.clone(), Transform::Rotate, None),
        (
            "gemma",
            gemma.clone(),
            recipe(),
            Transform::Smooth,
            Some("the model is smoothed, not rotated, as Gemma3"),
        ),
        (
            "gemma-nearest",
            gemma,
            nearest,
            Transform::None,
            Some("the weights are not transformed, as Gemma3"),
        ),
    ] {
        let model = tiny.write(dir.path(), &format!("{name}-model"));
        let made = |transform| {
            let out = dir.path().join(format!("{name}-{transform:?}"));
            let recipe = Recipe { transform, ..base.clone() };
            let mut steps = Steps::default();
            let report = run(&model, &source, &out, &recipe, OutputFormat::Auto, &mut steps).unwrap();
            let notes: Vec<_> = steps.notes.into_iter().filter(|n| n.contains(", as Gemma3")).collect();
            (out, report, notes)
        };
        let (out, report, notes) = made(Transform::Usual);
        let (asked_out, asked, asked_notes) = made(becomes);
        assert_eq!(report.recipe, Recipe { transform: becomes, ..base.clone() }, "{name}");
        assert_eq!((notes.len(), asked_notes.len()), (usize::from(told.is_some()), 0), "{name}: {notes:?}");
        assert!(notes.iter().all(|n| n.starts_with(told.unwrap())), "{name}: {notes:?}");
        assert_eq!(report.memory_estimate, asked.memory_estimate, "{name}");
        for file in ["model.safetensors", "config.json"] {
            let bytes = |out: &Path| std::fs::read(out.join(file)).unwrap();
            assert!(bytes(&out) == bytes(&asked_out), "{name}: {file}");
        }
        for file in [REPORT_FILE, "README.md"] {
            let text = std::fs::read_to_string(out.join(file)).unwrap();
            assert!(!text.contains("usual\"") && !text.contains("chosen for the model"), "{name}: {text}");
        }
    }
}

/// What is told of trials and of the run behind them, whose time begins anew.
#[derive(Default)]
struct Told {
    planned: usize,
    notes: Vec<String>,
    trials: usize,
}

impl Progress for Told {
    fn planned(&mut self, seconds: f64) {
        assert!(seconds > 0.0);
        self.planned += 1;
    }

    fn step(&mut self, done: f64, total: f64, next: &str) -> bool {
        assert!(done.is_finite() && (0.0..=total).contains(&done), "{done} of {total}");
        assert_eq!(next.starts_with("trying "), self.planned == 0, "{next}");
        self.trials += usize::from(next.starts_with("trying "));
        true
    }

    fn warn(&mut self, message: &str) {
        panic!("{message}");
    }

    fn note(&mut self, message: &str) {
        self.notes.push(message.to_owned());
    }
}

/// Trials choose what is nearest to the float model, and the run is the one that names it.
#[test]
fn trials_choose_the_transform() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 4000)]);
    let gemma = Tiny { architecture: "Gemma3ForCausalLM", ..Tiny::default() };
    for (name, tiny, allowed) in [
        ("llama", Tiny::default(), vec![Transform::Rotate, Transform::Smooth, Transform::None]),
        ("gemma", gemma, vec![Transform::Smooth, Transform::None]),
    ] {
        let model = tiny.write(dir.path(), &format!("{name}-model"));
        let made = |transform, out: &str| {
            let out = dir.path().join(format!("{name}-{out}"));
            let recipe = Recipe { transform, ..recipe() };
            let mut told = Told::default();
            let report = run(&model, &source, &out, &recipe, OutputFormat::Auto, &mut told).unwrap();
            assert_eq!((told.planned, told.trials > 0), (1, transform == Transform::Auto), "{name}");
            (out, report, told.notes)
        };
        let (out, report, notes) = made(Transform::Auto, "auto");
        let trials = report.transform.clone().unwrap();
        let loss = |trial: &TransformTrial| trial.kl_divergence.unwrap().mean;
        assert_eq!(trials.trials.iter().map(|trial| trial.transform).collect::<Vec<_>>(), allowed, "{name}");
        let least = trials.trials.iter().map(loss).fold(f64::INFINITY, f64::min);
        let chosen = trials.trials.iter().find(|trial| loss(trial) == least).unwrap().transform;
        assert_eq!((trials.chosen, report.recipe.transform), (chosen, chosen), "{name}: {trials:?}");
        assert!(
            trials.windows > 0 && trials.tokens > 0 && !trials.chosen_on_compared_text,
            "{name}: {trials:?}"
        );
        // Trials differ: none of them is another one's.
        let mut losses: Vec<u64> = trials.trials.iter().map(|trial| loss(trial).to_bits()).collect();
        losses.sort_unstable();
        losses.dedup();
        assert_eq!(losses.len(), allowed.len(), "{name}: {trials:?}");
        assert!(report.timings.trials > 0.0 && report.timings.trials < report.timings.total, "{name}");
        assert_eq!(
            notes.iter().filter(|note| note.contains("by nats per token in trials")).count(),
            1,
            "{name}"
        );

        let (named, without, _) = made(chosen, "named");
        assert!(without.transform.is_none() && without.timings.trials == 0.0, "{name}");
        for file in ["model.safetensors", "config.json"] {
            let bytes = |out: &Path| std::fs::read(out.join(file)).unwrap();
            assert!(bytes(&out) == bytes(&named), "{name}: {file}");
        }
        assert!(
            std::fs::read_to_string(out.join("README.md")).unwrap().contains("| Transform chosen |"),
            "{name}"
        );
    }
}

/// Without text to smooth by there is less to try, and what is alone is taken.
#[test]
fn without_calibration_windows_nothing_is_smoothed() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 4000)]);
    let nearest = Recipe {
        transform: Transform::Auto,
        compensate: false,
        error_correction: 0.0,
        clip: Clip::Weight,
        calibration: Calibration { windows: 0, window: 0, smooth_tokens: 0 },
        ..recipe()
    };
    for (architecture, tried) in [("LlamaForCausalLM", 2), ("Gemma3ForCausalLM", 0)] {
        let tiny = Tiny { architecture, ..Tiny::default() };
        let model = tiny.write(dir.path(), &format!("{architecture}-model"));
        let out = dir.path().join(architecture);
        let report = run(&model, &source, &out, &nearest, OutputFormat::Auto, &mut Told::default()).unwrap();
        let trials = report.transform.unwrap();
        assert_eq!(trials.trials.len(), tried, "{trials:?}");
        assert_eq!(trials.chosen, report.recipe.transform, "{trials:?}");
        assert!(tried > 0 || trials.chosen == Transform::None, "{trials:?}");
    }
}
