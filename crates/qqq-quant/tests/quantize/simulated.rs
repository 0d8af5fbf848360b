//! Simulated recipes: through the whole pipeline, written, read and run.

use std::{fs, path::Path};

use qqq_backend::CpuBackend;
use qqq_formats::{
    Checkpoint, FormatError, LinearWeight, SimulatedMethod,
    simulated::{Arithmetic, LlmInt8, METHOD, OUTLIER_SCALE, OUTLIERS, Quik, Quip, SpQr},
    writer::Reservation,
};
use qqq_model::{Decoder, Site, Tokenizer};
use qqq_quant::{
    Calibration, Output, OutputFormat, Propagation, QuantError, Recipe, RecipeName, Report, Resume,
    Transform, calibration::Source, quantize,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::tiny::{HIDDEN, INNER, Steps, Tiny, distance, logits, run, text};

fn simulating(method: SimulatedMethod) -> Recipe {
    let calibration = Calibration { windows: 10, window: 64, smooth_tokens: 48 };
    Recipe { calibration, ..Recipe::simulating(method) }
}

/// Each with bounds of the distance of its logits from the float model's and of the bits for a weight.
fn methods() -> [(SimulatedMethod, f64, f64, (f64, f64)); 8] {
    use SimulatedMethod::{LlmInt8 as Int8, Quik as Q, Quip as P, SpQr as S};
    let eight = Quik { bits: 8, outliers: 0.0, ..Quik::default() };
    let wide = Quip { bits: 16, rho: 64.0, ..Quip::default() };
    [
        (Int8(LlmInt8::default()), 1e-7, 2e-2, (8.0, 8.2)),
        // Every channel an outlier: float products of 16-bit weights.
        (Int8(LlmInt8 { threshold: 1e-30 }), 0.0, 1e-5, (8.0, 8.2)),
        (Q(eight), 1e-7, 2e-2, (8.0, 8.5)),
        (Q(Quik::default()), 1e-5, 0.6, (4.5, 7.0)),
        (Q(Quik { outliers: 0.25, outlier_bits: 8, ..Quik::default() }), 1e-5, 0.6, (4.5, 7.0)),
        (S(SpQr::default()), 1e-5, 0.4, (3.5, 7.0)),
        (P(wide), 0.0, 1e-3, (16.0, 16.2)),
        (P(Quip { bits: 4, ..Quip::default() }), 1e-5, 0.2, (4.0, 4.2)),
    ]
}

fn quantized(model: &Path, source: &Source, out: &Path, recipe: &Recipe) -> Report {
    let mut steps = Steps::default();
    let report = run(model, source, out, recipe, OutputFormat::Auto, &mut steps).unwrap();
    assert!((steps.last.0 - steps.last.1).abs() < 1e-9, "progress ends at the end: {:?}", steps.last);
    report
}

#[test]
fn methods_go_through_the_pipeline_and_run() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 1500)]);
    let families = [
        Tiny::default(),
        Tiny { architecture: "Qwen2ForCausalLM", ..Tiny::default() },
        Tiny { architecture: "Phi3ForCausalLM", tied: false, ..Tiny::default() },
    ];
    for (m, tiny) in families.into_iter().enumerate() {
        let model = tiny.write(dir.path(), &format!("model{m}"));
        let float = logits(&model);
        for (i, (method, least, most, bits)) in methods().into_iter().enumerate() {
            // Families differ in how layers are cut and joined: one method of each kind.
            if m > 0 && ![0, 3, 5].contains(&i) {
                continue;
            }
            let out = dir.path().join(format!("{m}-{i}"));
            let report = quantized(&model, &source, &out, &simulating(method));
            let what = format!("{method:?} of model {m}");
            let loss = distance(&logits(&out), &float);
            assert!((least..=most).contains(&loss), "{what}: relative squared error {loss}");
            assert_eq!(report.format, METHOD);
            let stored = report.simulated_bits().unwrap();
            assert!(stored >= bits.0 && stored <= bits.1, "{what}: {stored} bits");

            let checkpoint = Checkpoint::open(&out).unwrap();
            let record = *checkpoint.config.quantization.as_ref().unwrap().simulated().unwrap();
            assert_eq!((record.method, record.bits_per_weight), (method, Some(stored)), "{what}");
            assert_eq!(checkpoint.config.raw["model_type"], json!(METHOD));
            let modules: usize = Site::ALL.iter().map(|site| site.modules(&checkpoint.config).len()).sum();
            assert_eq!(report.layers.len(), modules * tiny.layers);
            assert!(report.float_layers.is_empty(), "{what}");
            assert_eq!(report.kinds(), [format!("{} simulated", method.name())]);
            let card = fs::read_to_string(out.join("README.md")).unwrap();
            assert!(card.contains(&format!("{} simulated\n", method.name())), "{card}");
            assert!(card.contains(&format!("| Simulated | {method} |")), "{card}");
            assert!(!card.contains("W4A8") && !card.contains("| Activations |"), "{card}");
            let sums = report.layers.iter().fold((0.0, 0.0), |(a, b), l| (a + l.loss, b + l.loss_nearest));
            assert!(sums.0 <= 1.05 * sums.1, "{what}: compensation does not pay: {sums:?}");
            let down = checkpoint.linear("model.layers.1.mlp.down_proj", HIDDEN, INNER).unwrap();
            match (method, down) {
                (SimulatedMethod::LlmInt8(_), LinearWeight::Simulated(weight)) => {
                    assert!(matches!(weight.arithmetic, Arithmetic::LlmInt8 { .. }));
                }
                (SimulatedMethod::Quik(options), LinearWeight::Simulated(weight)) => {
                    let Arithmetic::Quik { bits, outliers, outlier_scales, .. } = weight.arithmetic else {
                        panic!("{what}")
                    };
                    let count = (options.outliers * INNER as f64) as usize;
                    assert_eq!((bits, outliers.len()), (options.down_bits, count));
                    assert_eq!(outlier_scales.is_some(), options.outlier_bits == 8);
                }
                (SimulatedMethod::SpQr(_) | SimulatedMethod::Quip(_), LinearWeight::Float { .. }) => {}
                (_, weight) => panic!("{what}: {weight:?}"),
            }
            // Nothing here takes it for a model to quantize.
            let again = run(
                &out,
                &source,
                &dir.path().join("again"),
                &super::tiny::recipe(),
                OutputFormat::Auto,
                &mut Steps::default(),
            );
            assert!(again.unwrap_err().to_string().contains("quantized already"));
        }
    }
}

/// The outliers of QUIK are the channels with the largest inputs.
#[test]
fn channels_that_stand_out_are_found() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 1500)]);
    let model = Tiny::default().write(dir.path(), "model");
    let options = Quik { outliers: 3.0 / HIDDEN as f64, ..Quik::default() };
    let out = dir.path().join("out");
    quantized(&model, &source, &out, &simulating(SimulatedMethod::Quik(options)));
    let checkpoint = Checkpoint::open(&out).unwrap();
    let LinearWeight::Simulated(weight) =
        checkpoint.linear("model.layers.0.mlp.up_proj", INNER, HIDDEN).unwrap()
    else {
        panic!("not simulated")
    };
    let Arithmetic::Quik { outliers, .. } = weight.arithmetic else { panic!("not QUIK") };
    // Their norms are six times as large.
    assert_eq!(outliers.iter().filter(|j| *j % 41 == 5).count(), 3, "{outliers:?}");
}

#[test]
fn llm_int8_takes_no_text_and_a_float_pass_serves_the_others() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 1500)]);
    let model = Tiny::default().write(dir.path(), "model");
    let float = logits(&model);
    let calibration = Calibration { windows: 0, window: 64, smooth_tokens: 48 };
    let blind = Recipe { calibration, ..simulating(SimulatedMethod::LlmInt8(LlmInt8::default())) };
    quantized(&model, &source, &dir.path().join("blind"), &blind);
    let loss = distance(&logits(&dir.path().join("blind")), &float);
    assert!(loss > 1e-7 && loss < 2e-2, "{loss}");
    let spqr = SimulatedMethod::SpQr(SpQr::default());
    let recipe = Recipe { propagation: Propagation::Float, ..simulating(spqr) };
    quantized(&model, &source, &dir.path().join("float"), &recipe);
    let loss = distance(&logits(&dir.path().join("float")), &float);
    assert!(loss > 1e-5 && loss < 0.4, "{loss}");
}

#[test]
fn what_a_paper_does_not_have_is_refused() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 1500)]);
    let model = Tiny::default().write(dir.path(), "model");
    let refused = |recipe: Recipe, format| {
        let out = dir.path().join("out");
        run(&model, &source, &out, &recipe, format, &mut Steps::default()).unwrap_err().to_string()
    };
    let quik = || simulating(SimulatedMethod::Quik(Quik::default()));
    let calibration = Calibration { windows: 0, window: 64, smooth_tokens: 48 };
    for (recipe, format, says) in [
        (quik(), OutputFormat::Qqq, "a form of its own"),
        (Recipe { transform: Transform::Rotate, ..quik() }, OutputFormat::Auto, "parameters of its own"),
        (Recipe { error_correction: 0.5, ..quik() }, OutputFormat::Auto, "parameters of its own"),
        (
            Recipe { rules: vec!["down_proj=int8".parse().unwrap()], ..quik() },
            OutputFormat::Auto,
            "parameters of its own",
        ),
        (Recipe { name: RecipeName::Quip, ..quik() }, OutputFormat::Auto, "parameters of its own"),
        (
            simulating(SimulatedMethod::Quip(Quip { bits: 1, ..Quip::default() })),
            OutputFormat::Auto,
            "bits is 1",
        ),
        (Recipe { propagation: Propagation::Float, ..quik() }, OutputFormat::Auto, "largest inputs"),
        (Recipe { calibration, ..quik() }, OutputFormat::Auto, "looks at calibration text"),
    ] {
        let error = refused(recipe, format);
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 1500)]);
    let model = Tiny { layers: 3, ..Tiny::default() }.write(dir.path(), "model");
    for (name, method) in
        [("quik", SimulatedMethod::Quik(Quik::default())), ("quip", SimulatedMethod::Quip(Quip::default()))]
    {
        let recipe = simulating(method);
        let whole = dir.path().join(format!("{name}-whole"));
        quantized(&model, &source, &whole, &recipe);
        let out = dir.path().join(name);
        let attempt = |stop_at: Option<usize>| {
            let checkpoint = Checkpoint::open(&model).unwrap();
            let tokenizer = Tokenizer::load(&checkpoint).unwrap();
            let reservation = Reservation::take(&out).unwrap();
            let resume = Some(Resume { device: "cpu", goes_on: true });
            let output = Output { resume, ..Output::new(&reservation, "tiny") };
            let mut steps = Steps { stop_at, ..Steps::default() };
            let made =
                quantize(&CpuBackend::new(), &checkpoint, &tokenizer, &recipe, &source, &output, &mut steps);
            made.map(|report| (report, steps))
        };
        let mut stops = 0;
        let (report, notes) = loop {
            // Ever further.
            match attempt((stops < 4).then_some(60 + 40 * stops)) {
                Err(QuantError::Interrupted) => stops += 1,
                made => {
                    let (report, steps) = made.unwrap();
                    break (report, steps.notes);
                }
            }
        };
        assert!(stops > 0 && notes.iter().any(|note| note.contains("going on behind block")), "{notes:?}");
        let bytes = |place: &Path| fs::read(place.join("model.safetensors")).unwrap();
        assert!(bytes(&out) == bytes(&whole), "{name}");
        assert_eq!(fs::read(out.join("config.json")).unwrap(), fs::read(whole.join("config.json")).unwrap());
        assert_eq!(report.layers.len(), 21);
    }
}

/// Records that say something else than the tensors are errors.
#[test]
fn damaged_checkpoints_are_refused() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 1500)]);
    let model = Tiny::default().write(dir.path(), "model");
    let out = dir.path().join("out");
    quantized(&model, &source, &out, &simulating(SimulatedMethod::Quik(Quik::default())));
    let path = out.join("config.json");
    let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let load = |change: &dyn Fn(&mut Value)| {
        let mut changed = config.clone();
        change(&mut changed["quantization_config"]);
        fs::write(&path, changed.to_string()).unwrap();
        let checkpoint = Checkpoint::open(&out).map_err(|e: FormatError| e.to_string())?;
        Decoder::load(CpuBackend::new(), &checkpoint).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(load(&|_| ()), Ok(()));
    type Change = dyn Fn(&mut Value);
    let refused: [(&Change, &str); 9] = [
        (&|q| q["arithmetic"] = json!("other"), "arithmetic of qqq-simulated"),
        (&|q| q["parameters"]["zeros"] = json!(1), "unknown field `zeros`"),
        (&|q| q["parameters"]["bits"] = json!(3), "4 or 8"),
        (&|q| q["recipe"] = json!("quick"), "none of llm-int8, quik, spqr, quip"),
        (&|q| q["bits_per_weight"] = json!(-4), "bits_per_weight of qqq-simulated is -4"),
        // 8-bit codes of the down projection.
        (&|q| q["parameters"]["down_bits"] = json!(4), "is no 4-bit code times the scale"),
        (&|q| q["parameters"]["outlier_bits"] = json!(4), "outlier_bits is 4, but must be 8 or 16"),
        // Outliers of 8 bits have scales.
        (&|q| q["parameters"]["outlier_bits"] = json!(8), OUTLIER_SCALE),
        // Tensors that this method has no use for.
        (
            &|q| *q = json!({"quant_method": METHOD, "recipe": "quik"}),
            "parameters of qqq-simulated are missing",
        ),
    ];
    for (change, says) in refused {
        let error = load(change).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    // A file without the outliers.
    fs::write(&path, config.to_string()).unwrap();
    let file = out.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let (from, to) = (OUTLIERS.as_bytes(), "outlier_column_".as_bytes());
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    let mut renamed = bytes.clone();
    renamed[at..at + to.len()].copy_from_slice(to);
    fs::write(&file, &renamed).unwrap();
    let error = load(&|_| ()).unwrap_err();
    assert!(error.contains("outlier_column"), "{error}");
}

#[test]
fn layers_say_what_they_simulate() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 1500)]);
    let model = Tiny::default().write(dir.path(), "model");
    let out = dir.path().join("out");
    quantized(&model, &source, &out, &simulating(SimulatedMethod::LlmInt8(LlmInt8::default())));
    let decoder = Decoder::load(CpuBackend::new(), &Checkpoint::open(&out).unwrap()).unwrap();
    let kinds = decoder.layer_kinds();
    assert!(kinds.iter().any(|kind| kind.arithmetic == "LLM.int8() simulated"), "{kinds:?}");
}
