//! Published recipes on small models, from end to end.

use std::collections::BTreeMap;

use qqq_backend::CpuBackend;
use qqq_formats::{Activations, Checkpoint, CodeBits, LinearWeight};
use qqq_model::{Site, Tokenizer, names};
use qqq_quant::{
    Calibration, OutputFormat, Recipe, RecipeName, Report, calibration::Source, dry_run, report::LearnReport,
};
use tempfile::TempDir;

use crate::tiny::{HIDDEN, Steps, Tiny, VOCAB, logits, run, text};

fn amount() -> Calibration {
    Calibration { windows: 20, window: 128, smooth_tokens: 64 }
}

/// The recipe, with little text where it takes any.
fn small(name: RecipeName) -> Recipe {
    let mut recipe = name.recipe();
    recipe.epochs = recipe.epochs.map(|_| 3);
    match recipe.calibrates() {
        true => Recipe { calibration: amount(), ..recipe },
        false => recipe,
    }
}

struct Made {
    report: Report,
    checkpoint: Checkpoint,
    /// Root of the mean squared difference to the float model's logits.
    distance: f64,
}

fn quantize(tiny: &Tiny, dir: &TempDir, name: &str, recipe: &Recipe) -> Made {
    let source = Source::Files(vec![text(dir.path(), 4000)]);
    let model = match dir.path().join("model") {
        model if model.exists() => model,
        _ => tiny.write(dir.path(), "model"),
    };
    let out = dir.path().join(name);
    let report = run(&model, &source, &out, recipe, OutputFormat::Auto, &mut Steps::default()).unwrap();
    let (before, after) = (logits(&model), logits(&out));
    let squares: f64 = before.iter().zip(&after).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let distance = (squares / before.len() as f64).sqrt();
    Made { report, checkpoint: Checkpoint::open(&out).unwrap(), distance }
}

#[test]
fn every_recipe_gives_what_it_says() {
    // One head has its own values, so that all sites are changed.
    let tiny = Tiny { kv_heads: 4, outliers: true, ..Tiny::default() };
    let dir = TempDir::new().unwrap();
    let mut distances = BTreeMap::new();
    for name in RecipeName::all().filter(|name| *name != RecipeName::Best) {
        let recipe = small(name);
        let made = quantize(&tiny, &dir, name.word(), &recipe);
        println!("{name}: {}", made.distance);
        assert_eq!(made.report.recipe, recipe, "{name}");
        let card = std::fs::read_to_string(made.checkpoint.path.join("README.md")).unwrap();
        assert!(card.contains(&format!("| Recipe | {name} (")), "{name}: {card}");
        let schemes = made.checkpoint.config.quantization.as_ref().map(|q| q.schemes());
        let scheme = match name {
            RecipeName::Fp16 => {
                assert!(schemes.is_none() && made.report.layers.is_empty());
                assert_eq!(
                    (made.report.format.as_str(), made.report.kinds()),
                    ("float16", vec!["float".into()])
                );
                None
            }
            _ if recipe.simulated.is_some() => {
                let record = made.checkpoint.config.quantization.as_ref().and_then(|q| q.simulated());
                assert_eq!(record.map(|record| record.method), recipe.simulated);
                assert_eq!(made.report.kinds(), [format!("{name} simulated")]);
                None
            }
            _ => {
                let schemes = schemes.unwrap();
                assert_eq!(schemes.len(), 1, "{name}");
                Some((schemes[0].bits, schemes[0].activations, schemes[0].group_size))
            }
        };
        let (four, eight) = (CodeBits::Four, CodeBits::Eight);
        let want = match name {
            _ if recipe.simulated.is_some() => None,
            RecipeName::Fp16 => None,
            RecipeName::SmoothQuant | RecipeName::OsPlus => Some((eight, Activations::Int8, None)),
            RecipeName::Gptq | RecipeName::Awq => Some((four, Activations::Half, Some(128))),
            RecipeName::QqqG128 => Some((four, Activations::Int8, Some(128))),
            _ => Some((four, Activations::Int8, None)),
        };
        assert_eq!(scheme, want, "{name}");
        let sites = match name {
            RecipeName::SmoothQuant => 2,
            RecipeName::OsPlus | RecipeName::Awq | RecipeName::Qqq | RecipeName::QqqG128 => 4,
            _ => 0,
        };
        assert_eq!(made.report.smoothing.len(), sites * tiny.layers, "{name}");
        for site in &made.report.smoothing {
            assert!(
                site.loss_after <= site.loss_before || name == RecipeName::SmoothQuant,
                "{name}: {site:?}"
            );
        }
        let learned = if name == RecipeName::OmniQuant { tiny.layers } else { 0 };
        assert_eq!(made.report.learning.len(), learned, "{name}");
        distances.insert(name.word(), made.distance);
    }
    let half = |name| Recipe { activations: Activations::Half, group_size: Some(128), ..small(name) };
    let rtn = quantize(&tiny, &dir, "rtn-w4a16", &half(RecipeName::Rtn)).distance;
    let rtn8 = Recipe { bits: CodeBits::Eight, ..small(RecipeName::Rtn) };
    let rtn8 = quantize(&tiny, &dir, "rtn-w8a8", &rtn8).distance;
    println!("W4A16 to nearest {rtn}, W8A8 to nearest {rtn8}: {distances:?}");
    let of = |name: &str| distances[name];
    assert!(of("fp16") < 0.01 * of("rtn"));
    assert!(of("gptq") < rtn && of("awq") < rtn);
    assert!(of("smoothquant") < rtn8 && of("os+") < rtn8);
    assert!(of("omniquant") < of("rtn"));
    assert!(of("qqq") < of("rtn") && of("qqq-rot") < of("rtn"));
}

/// Of the first layer everything can be computed by hand: its input is the norm of the embedding.
#[test]
fn smoothquant_scales_the_first_layer_as_its_formula_says() {
    let (tiny, dir) = (Tiny::default(), TempDir::new().unwrap());
    let strength = 0.7;
    let recipe = Recipe { migration_strength: Some(strength), ..small(RecipeName::SmoothQuant) };
    let made = quantize(&tiny, &dir, "smoothquant", &recipe);
    let float = Checkpoint::open(&dir.path().join("model")).unwrap();
    let read = |checkpoint: &Checkpoint, name: &str, shape: &[usize]| -> Vec<f64> {
        checkpoint.tensors.f32(name, shape).unwrap().iter().map(|x| f64::from(*x)).collect()
    };
    let norm_name = "model.layers.0.input_layernorm.weight";
    let norm = read(&float, norm_name, &[HIDDEN]);
    let mut largest = vec![0.0f64; HIDDEN];
    // Every word is in the text.
    for row in read(&float, names::EMBEDDING, &[VOCAB, HIDDEN]).chunks_exact(HIDDEN) {
        let root = (row.iter().map(|x| x * x).sum::<f64>() / HIDDEN as f64 + 1e-5).sqrt();
        for ((most, x), w) in largest.iter_mut().zip(row).zip(&norm) {
            *most = most.max((x / root * w).abs());
        }
    }
    let modules = Site::Qkv.modules(&float.config);
    let mut of_weights = vec![0.0f64; HIDDEN];
    for (module, n) in &modules {
        let name = format!("{}.weight", names::linear(0, module));
        for row in read(&float, &name, &[*n, HIDDEN]).chunks_exact(HIDDEN) {
            of_weights.iter_mut().zip(row).for_each(|(most, w)| *most = most.max(w.abs()));
        }
    }
    let s: Vec<f64> =
        largest.iter().zip(&of_weights).map(|(x, w)| x.powf(strength) / w.powf(1.0 - strength)).collect();
    let after = read(&made.checkpoint, norm_name, &[HIDDEN]);
    for j in 0..HIDDEN {
        let want = norm[j] / s[j];
        assert!((after[j] - want).abs() < 3e-3 * want.abs(), "channel {j}: {} {want}", after[j]);
    }
    for (module, n) in modules {
        let prefix = names::linear(0, module);
        let before = read(&float, &format!("{prefix}.weight"), &[n, HIDDEN]);
        let LinearWeight::Quantized(weight) = made.checkpoint.linear(&prefix, n, HIDDEN).unwrap() else {
            panic!("{prefix} is float")
        };
        let rows = weight.dequantize();
        for (row, before) in rows.chunks_exact(HIDDEN).zip(before.chunks_exact(HIDDEN)) {
            let want: Vec<f64> = (0..HIDDEN).map(|j| before[j] * norm[j] / after[j]).collect();
            let step = want.iter().fold(0.0f64, |most, w| most.max(w.abs())) / 127.0;
            for (got, want) in row.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() < 0.51 * step, "{prefix}: {got} {want}");
            }
        }
    }
}

#[test]
fn a_searched_strength_loses_no_more_than_any_given() {
    let tiny = Tiny { outliers: true, ..Tiny::default() };
    let dir = TempDir::new().unwrap();
    let with = |strength| Recipe { migration_strength: strength, ..small(RecipeName::SmoothQuant) };
    let searched = quantize(&tiny, &dir, "searched", &with(None)).report.smoothing;
    for strength in [0.25, 0.5, 0.75] {
        let given = quantize(&tiny, &dir, &format!("{strength}"), &with(Some(strength))).report.smoothing;
        assert!(given.iter().all(|site| site.strength == Some(strength)));
        for (searched, given) in searched.iter().zip(&given) {
            // Inputs of later blocks differ by what norms are rounded to.
            assert!(searched.loss_after <= given.loss_after * 1.02, "{searched:?} {given:?}");
        }
    }
}

#[test]
fn omniquant_learns_every_family() {
    let weights_alone = |recipe| Recipe { activations: Activations::Half, group_size: Some(64), ..recipe };
    let calibration = Calibration { windows: 4, window: 64, smooth_tokens: 64 };
    for tiny in Tiny::families() {
        let tiny = Tiny { outliers: true, ..tiny };
        let dir = TempDir::new().unwrap();
        let recipe = Recipe { calibration, epochs: Some(3), ..small(RecipeName::OmniQuant) };
        for (name, recipe) in [("both", recipe.clone()), ("weights", weights_alone(recipe))] {
            let report = quantize(&tiny, &dir, name, &recipe).report;
            assert_eq!(report.learning.len(), tiny.layers);
            let lost = |of: fn(&LearnReport) -> f64| report.learning.iter().map(of).sum::<f64>();
            let (before, after) = (lost(|block| block.loss_before), lost(|block| block.loss_after));
            println!("{} {name}: {before} {after}", tiny.architecture);
            assert!(report.learning.iter().all(|block| block.loss_after <= block.loss_before));
            let learned = report.learning.iter().any(|block| block.epoch > 0);
            assert_eq!(after < before, learned, "{} {name}: {before} {after}", tiny.architecture);
            // A dozen steps move clipping hardly, and rounding is not smooth.
            assert!(learned || name == "weights", "{}", tiny.architecture);
            // Weights are rounded as it was learned, and not chosen again.
            assert!(report.layers.iter().all(|layer| layer.loss == layer.loss_nearest));
        }
    }
}

#[test]
fn omniquant_gives_the_same_bytes_twice() {
    let (tiny, dir) = (Tiny::default(), TempDir::new().unwrap());
    let recipe = Recipe { epochs: Some(1), ..small(RecipeName::OmniQuant) };
    let file = |name: &str| {
        let made = quantize(&tiny, &dir, name, &recipe);
        std::fs::read(made.checkpoint.path.join("model.safetensors")).unwrap()
    };
    assert!(file("once") == file("again"));
}

/// It takes some steps, and says how long all of them would be.
#[test]
fn a_dry_run_learns_little() {
    let (tiny, dir) = (Tiny { layers: 3, ..Tiny::default() }, TempDir::new().unwrap());
    let model = tiny.write(dir.path(), "model");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let source = Source::Files(vec![text(dir.path(), 4000)]);
    let dry = |epochs: usize| {
        let recipe = Recipe { epochs: Some(epochs), ..small(RecipeName::OmniQuant) };
        let (backend, steps) = (CpuBackend::default(), &mut Steps::default());
        dry_run(&backend, &checkpoint, &tokenizer, &recipe, &source, OutputFormat::Auto, steps).unwrap()
    };
    // A hundred thousand epochs would take hours; how long is known after some steps.
    let long = dry(100_000);
    assert!(long.measured_seconds < 60.0 && long.seconds > 10.0 * long.measured_seconds, "{long:?}");
    let in_blocks = long.block_seconds * 3.0;
    assert!((0.7..1.1).contains(&(in_blocks / long.seconds)), "{long:?}");
    assert!(dry(1000).seconds < 0.1 * long.seconds);
}

/// Without epochs weights are rounded to nearest, at 0.982 of their largest, and the first layer's scales say so.
#[test]
fn omniquant_without_epochs_rounds_to_nearest() {
    let (tiny, dir) = (Tiny::default(), TempDir::new().unwrap());
    let recipe = Recipe { epochs: Some(0), activations: Activations::Half, ..small(RecipeName::OmniQuant) };
    let made = quantize(&tiny, &dir, "none", &recipe);
    assert!(made.report.learning.iter().all(|block| block.loss_before == block.loss_after));
    let float = Checkpoint::open(&dir.path().join("model")).unwrap();
    let prefix = names::linear(0, "self_attn.o_proj");
    let weights = float.tensors.f32(&format!("{prefix}.weight"), &[HIDDEN, HIDDEN]).unwrap();
    let LinearWeight::WeightOnly { weight, .. } = made.checkpoint.linear(&prefix, HIDDEN, HIDDEN).unwrap()
    else {
        panic!("{prefix} is of another kind")
    };
    for (i, row) in weights.chunks_exact(HIDDEN).enumerate() {
        let most = row.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        let step = most / 7.0 / (1.0 + (-4.0f32).exp());
        assert!((weight.channel_scales()[i] - step).abs() < 1e-3 * step, "{i}");
        for (w, q) in row.iter().zip(weight.row_values(i)) {
            assert!((w - q).abs() < 0.51 * step || w.abs() > 6.9 * step, "{w} {q}");
        }
    }
}

#[test]
fn os_plus_gives_biases_where_the_class_has_them() {
    let dir = TempDir::new().unwrap();
    let recipe = Recipe { bits: CodeBits::Four, ..small(RecipeName::OsPlus) };
    let llama = quantize(&Tiny::default(), &dir, "llama", &recipe);
    let raw = &llama.checkpoint.config.raw;
    assert_eq!(raw["attention_bias"], true);
    let zeros = |module: &str, n: usize| {
        let bias = llama.checkpoint.bias(&names::linear(0, module), n).unwrap().unwrap();
        bias.iter().all(|b| *b == 0.0)
    };
    assert!(zeros("self_attn.q_proj", 128) && zeros("self_attn.k_proj", 64));
    assert!(!zeros("self_attn.v_proj", 64) && !zeros("self_attn.o_proj", 128));
    let dir = TempDir::new().unwrap();
    // Qwen2's o has none, and can have none.
    let tiny = Tiny { architecture: "Qwen2ForCausalLM", ..Tiny::default() };
    let qwen = quantize(&tiny, &dir, "qwen", &recipe);
    assert!(qwen.checkpoint.bias(&names::linear(0, "self_attn.o_proj"), 128).unwrap().is_none());
    assert_eq!(qwen.report.smoothing.len(), 4 * tiny.layers);
}

#[test]
fn what_a_recipe_cannot_do_is_refused() {
    let (tiny, dir) = (Tiny { hidden: 160, ..Tiny::default() }, TempDir::new().unwrap());
    let model = tiny.write(dir.path(), "model");
    let source = Source::Files(vec![text(dir.path(), 4000)]);
    let own = |name| small(name);
    for (name, recipe, says) in [
        ("groups", own(RecipeName::Awq), "groups of 128 do not divide the 160 inputs"),
        (
            "propagation",
            Recipe { propagation: qqq_quant::Propagation::Quantized, ..own(RecipeName::SmoothQuant) },
            "choose propagation float",
        ),
        (
            "strength",
            Recipe { migration_strength: Some(1.5), ..own(RecipeName::SmoothQuant) },
            "from 0 to 1, not 1.5",
        ),
        ("clip", Recipe { group_size: None, ..own(RecipeName::Awq) }, "as AWQ has it"),
    ] {
        let out = dir.path().join(name);
        let error = run(&model, &source, &out, &recipe, OutputFormat::Auto, &mut Steps::default());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
    let out = dir.path().join("format");
    let fp16 = own(RecipeName::Fp16);
    let error = run(&model, &source, &out, &fp16, OutputFormat::Qqq, &mut Steps::default()).unwrap_err();
    assert!(error.to_string().contains("no form of quantized layers"), "{error}");
}
