//! What `Transform::Auto` becomes.

use std::path::Path;

use qqq_quant::{Calibration, OutputFormat, REPORT_FILE, Recipe, Transform, calibration::Source};
use tempfile::TempDir;

use crate::tiny::{Steps, Tiny, recipe, run, text};

/// Auto takes what the graph allows, says so where that is no rotation, and stands in no report.
#[test]
fn auto_takes_what_the_graph_allows() {
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
        ("gemma", gemma.clone(), recipe(), Transform::Smooth, Some("transform auto smooths, as Gemma3")),
        (
            "gemma-nearest",
            gemma,
            nearest,
            Transform::None,
            Some("transform auto leaves the weights as they are, as Gemma3"),
        ),
    ] {
        let model = tiny.write(dir.path(), &format!("{name}-model"));
        let made = |transform| {
            let out = dir.path().join(format!("{name}-{transform:?}"));
            let recipe = Recipe { transform, ..base.clone() };
            let mut steps = Steps::default();
            let report = run(&model, &source, &out, &recipe, OutputFormat::Auto, &mut steps).unwrap();
            let notes: Vec<_> = steps.notes.into_iter().filter(|n| n.starts_with("transform")).collect();
            (out, report, notes)
        };
        let (out, report, notes) = made(Transform::Auto);
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
            assert!(!text.contains("auto\"") && !text.contains("chosen for the model"), "{name}: {text}");
        }
    }
}
