//! Whole quantizations of small random models.

use std::{path::Path, sync::Arc};

use parquet::{
    data_type::{ByteArray, ByteArrayType, Int64Type},
    file::writer::SerializedFileWriter,
    schema::parser::parse_message_type,
};
use qqq_formats::{Checkpoint, CheckpointFormat, DType, LinearWeight, Scales};
use qqq_model::{Site, names};
use qqq_quant::{
    Calibration, Clip, GroupScales, OutputFormat, Propagation, QuantError, REPORT_FILE, Recipe, Report,
    RotationKind, Transform, ValueHessian, calibration::Source,
};
use tempfile::TempDir;

use crate::tiny::{Steps, Tiny, distance, logits, recipe, run, text};

fn files(dir: &TempDir, words: usize) -> Source {
    Source::Files(vec![text(dir.path(), words)])
}

#[test]
fn every_recipe_loads_back_and_keeps_the_function() {
    let dir = TempDir::new().unwrap();
    let source = files(&dir, 2000);
    let base = recipe();
    let recipes = [
        ("rtn", Recipe { compensate: false, ..base.clone() }),
        ("gptq", base.clone()),
        ("gptq-float-g32", Recipe { propagation: Propagation::Float, group_size: Some(32), ..base.clone() }),
        (
            "gptq-integer-g32",
            Recipe { group_scales: GroupScales::Integer, group_size: Some(32), ..base.clone() },
        ),
        ("gptq-input", Recipe { value_hessian: ValueHessian::Input, ..base.clone() }),
        (
            "gptq-input-float",
            Recipe { value_hessian: ValueHessian::Input, propagation: Propagation::Float, ..base.clone() },
        ),
        ("corrected", Recipe { error_correction: 0.5, ..base.clone() }),
        (
            "corrected-rtn-input-g32",
            Recipe {
                error_correction: 1.0,
                compensate: false,
                value_hessian: ValueHessian::Input,
                group_size: Some(32),
                ..base.clone()
            },
        ),
        ("smooth", Recipe { transform: Transform::Smooth, ..base.clone() }),
        ("smooth-corrected", Recipe { transform: Transform::Smooth, error_correction: 0.25, ..base.clone() }),
        ("smooth-g64", Recipe { transform: Transform::Smooth, group_size: Some(64), ..base.clone() }),
        ("rotate-clip", Recipe { transform: Transform::Rotate, clip: Clip::Output, ..base.clone() }),
        (
            "rotate-orthogonal-g32",
            Recipe {
                transform: Transform::Rotate,
                rotation: RotationKind::Orthogonal,
                group_size: Some(32),
                clip: Clip::Weight,
                propagation: Propagation::Float,
                ..base
            },
        ),
    ];
    for (m, tiny) in Tiny::families().into_iter().enumerate() {
        let model = tiny.write(dir.path(), &format!("model{m}"));
        let float = logits(&model);
        for (name, recipe) in &recipes {
            // The second family is the one with as many key-value heads as heads: smoothing has four sites there.
            let out = dir.path().join(format!("{name}{m}"));
            let mut steps = Steps::default();
            let report = run(&model, &source, &out, recipe, OutputFormat::Auto, &mut steps).unwrap();
            assert!(
                (steps.last.0 - steps.last.1).abs() < 1e-9,
                "{name}: progress ends at the end: {:?}",
                steps.last
            );
            let loss = distance(&logits(&out), &float);
            assert!(loss < 0.2, "{name} of model {m}: relative squared error {loss}");
            assert!(loss > 1e-7, "{name} of model {m}: this cannot be W4A8");
            check_files(&out, &tiny, recipe, &report);
        }
    }
}

/// Norms behind both halves of a block allow no rotation, and smoothing goes on without.
#[test]
fn what_the_graph_does_not_allow_is_refused() {
    let dir = TempDir::new().unwrap();
    let source = Source::Files(vec![text(dir.path(), 1500)]);
    let gemma = Tiny { architecture: "Gemma3ForCausalLM", kv_heads: 4, ..Tiny::default() };
    let model = gemma.write(dir.path(), "gemma");
    let float = logits(&model);
    let quantize = |name: &str, recipe: &Recipe| {
        let out = dir.path().join(name);
        run(&model, &source, &out, recipe, OutputFormat::Auto, &mut Steps::default())
            .map(|report| (out, report))
    };
    let rotate = Recipe { transform: Transform::Rotate, ..recipe() };
    let error = quantize("rotate", &rotate).unwrap_err().to_string();
    assert!(error.contains("norms behind attention and MLP") && error.contains("smooth"), "{error}");
    for (name, transform, propagation) in [
        ("none", Transform::None, Propagation::Quantized),
        ("smooth", Transform::Smooth, Propagation::Quantized),
        ("float", Transform::Smooth, Propagation::Float),
    ] {
        let (out, report) = quantize(name, &Recipe { transform, propagation, ..recipe() }).unwrap();
        let loss = distance(&logits(&out), &float);
        assert!(loss > 1e-7 && loss < 0.2, "{name}: relative squared error {loss}");
        check_files(&out, &gemma, &Recipe { transform, propagation, ..recipe() }, &report);
    }
}

fn check_files(out: &Path, tiny: &Tiny, recipe: &Recipe, report: &Report) {
    let checkpoint = Checkpoint::open(out).unwrap();
    let config = &checkpoint.config;
    let quantization = config.quantization.as_ref().unwrap();
    assert_eq!(quantization.schemes().iter().map(|s| s.group_size).collect::<Vec<_>>(), [recipe.group_size]);
    assert_eq!(quantization.format.name(), report.format);
    assert_eq!(config.tie_word_embeddings, tiny.tied && recipe.transform != Transform::Rotate);
    assert_eq!(checkpoint.tensors.info(names::LM_HEAD).is_some(), !config.tie_word_embeddings);
    assert_eq!(checkpoint.tensors.info(names::EMBEDDING).unwrap().dtype, DType::F16);
    let (module, n) = Site::Qkv.modules(config)[0];
    let q = checkpoint.linear(&format!("model.layers.0.{module}"), n, 128).unwrap();
    match (q, recipe.group_size) {
        (LinearWeight::Quantized(q), None) => assert!(matches!(q.scales, Scales::PerChannel(_))),
        (LinearWeight::Quantized(q), Some(g)) => {
            let Scales::PerGroup { group_size, group, .. } = q.scales else { panic!("{g}") };
            assert_eq!(group_size, g);
            let integers =
                group.iter().all(|s| (0..=15).contains(&(s.to_f32() as i32)) && s.to_f32().fract() == 0.0);
            assert_eq!(integers, recipe.group_scales == GroupScales::Integer);
        }
        (_, _) => panic!("q is not quantized"),
    }
    // v is solved by itself where it has its own Hessian.
    let solved = if recipe.value_hessian == ValueHessian::Attention { 5 } else { 4 };
    assert_eq!(report.layers.len(), solved * tiny.layers);
    let sites = if tiny.heads == tiny.kv_heads { 4 } else { 3 };
    let smooth = if recipe.transform == Transform::Smooth { sites * tiny.layers } else { 0 };
    assert_eq!(report.smoothing.len(), smooth);
    assert!(report.smoothing.iter().all(|s| s.loss_after <= s.loss_before));
    for layer in &report.layers {
        assert!(layer.loss.is_finite() && layer.loss > 0.0 && layer.loss < 0.2, "{layer:?}");
        assert!(layer.scale_range.0 > 0.0 && layer.scale_range.0 <= layer.scale_range.1);
    }
    let stored: Report =
        serde_json::from_str(&std::fs::read_to_string(out.join(REPORT_FILE)).unwrap()).unwrap();
    assert_eq!(stored.recipe, *recipe);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("mlp.down_proj") && card.contains("tiny in W4A8"), "{card}");
    assert!(out.join("tokenizer.json").is_file());
}

#[test]
fn compensation_beats_rounding_to_nearest() {
    let dir = TempDir::new().unwrap();
    let source = files(&dir, 4000);
    let model = Tiny::default().write(dir.path(), "model");
    let float = logits(&model);
    let mut losses = Vec::new();
    for compensate in [false, true] {
        let recipe = Recipe {
            compensate,
            calibration: Calibration { windows: 30, window: 128, smooth_tokens: 64 },
            ..recipe()
        };
        let out = dir.path().join(format!("out{compensate}"));
        let report = run(&model, &source, &out, &recipe, OutputFormat::Auto, &mut Steps::default()).unwrap();
        if compensate {
            assert!(report.layers.iter().all(|l| l.loss < l.loss_nearest), "{:?}", report.layers);
        }
        losses.push(distance(&logits(&out), &float));
    }
    assert!(losses[1] < losses[0], "{losses:?}");
}

/// Weights with outliers are what smoothing mends in part and rotation better still. Neither would if it did nothing: the
/// function is kept by no rotation at all, too.
#[test]
fn outliers_cost_less_after_smoothing_and_least_after_rotation() {
    let dir = TempDir::new().unwrap();
    let source = files(&dir, 4000);
    for kv_heads in [2, 4] {
        let tiny = Tiny { tied: false, outliers: true, kv_heads, ..Tiny::default() };
        let model = tiny.write(dir.path(), &format!("model{kv_heads}"));
        let float = logits(&model);
        for compensate in [false, true] {
            let [none, smooth, rotate] =
                [Transform::None, Transform::Smooth, Transform::Rotate].map(|transform| {
                    let calibration = Calibration { windows: 30, window: 128, smooth_tokens: 64 };
                    let recipe = Recipe { compensate, transform, calibration, ..recipe() };
                    let out = dir.path().join(format!("out{kv_heads}{compensate}{transform:?}"));
                    run(&model, &source, &out, &recipe, OutputFormat::Auto, &mut Steps::default()).unwrap();
                    distance(&logits(&out), &float)
                });
            println!("{kv_heads} KV heads, compensation {compensate}: {none} {smooth} {rotate}");
            assert!(smooth < 0.8 * none, "{kv_heads} KV heads: none {none}, smooth {smooth}");
            assert!(rotate < 0.8 * smooth, "{kv_heads} KV heads: smooth {smooth}, rotate {rotate}");
        }
    }
}

#[test]
fn formats_agree_with_what_was_asked() {
    let dir = TempDir::new().unwrap();
    let source = files(&dir, 2000);
    let model = Tiny { dtype: DType::BF16, ..Tiny::default() }.write(dir.path(), "model");
    let float = logits(&model);
    let quantized = |name: &str, recipe: &Recipe, format| {
        let out = dir.path().join(name);
        run(&model, &source, &out, recipe, format, &mut Steps::default()).map(|_| {
            let checkpoint = Checkpoint::open(&out).unwrap();
            assert_eq!(checkpoint.tensors.info(names::EMBEDDING).unwrap().dtype, DType::BF16);
            assert_eq!(checkpoint.config.raw["torch_dtype"], "bfloat16");
            assert!(distance(&logits(&out), &float) < 0.2, "{name}");
            checkpoint.config.quantization.unwrap().format
        })
    };
    let (qqq, compressed_tensors) = (CheckpointFormat::Qqq, CheckpointFormat::CompressedTensors);
    assert_eq!(quantized("auto", &recipe(), OutputFormat::Auto).unwrap(), qqq);
    assert_eq!(quantized("ct", &recipe(), OutputFormat::CompressedTensors).unwrap(), compressed_tensors);
    let grouped = Recipe { group_size: Some(64), ..recipe() };
    assert_eq!(quantized("g64", &grouped, OutputFormat::Auto).unwrap(), compressed_tensors);

    let error = quantized("refused", &grouped, OutputFormat::Qqq).unwrap_err().to_string();
    assert!(error.contains("compressed-tensors") && error.contains("self_attn.q_proj"), "{error}");
}

#[test]
fn plain_rounding_needs_no_data() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    let none = Calibration { windows: 0, window: 0, smooth_tokens: 0 };
    let nearest = Recipe { compensate: false, calibration: none, ..recipe() };
    let out = dir.path().join("out");
    let source = Source::Files(Vec::new());
    let report = run(&model, &source, &out, &nearest, OutputFormat::Auto, &mut Steps::default()).unwrap();
    assert_eq!((report.calibration_tokens, report.calibration_data.as_str()), (0, "none"));
    assert!(distance(&logits(&out), &logits(&model)) < 0.2);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("layer's weights (no calibration), relative to the weights themselves"), "{card}");
    // What needs text is named, and nothing else.
    let smooth = Recipe { transform: Transform::Smooth, compensate: true, ..nearest.clone() };
    for (recipe, named) in [
        (Recipe { compensate: true, ..nearest.clone() }, "compensate: true"),
        (Recipe { clip: Clip::Output, ..nearest.clone() }, "clip: output"),
        (smooth, "transform: smooth and compensate: true"),
    ] {
        let out = dir.path().join("out2");
        let error = run(&model, &source, &out, &recipe, OutputFormat::Auto, &mut Steps::default());
        let Err(QuantError::Recipe(message)) = error else { panic!("{named}") };
        assert!(message.ends_with(&format!("looks at calibration text for {named}")), "{message}");
    }
}

#[test]
fn the_models_own_samples_serve() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    let out = dir.path().join("out");
    let report =
        run(&model, &Source::SelfSamples, &out, &recipe(), OutputFormat::Auto, &mut Steps::default())
            .unwrap();
    assert_eq!(report.calibration_tokens, 640);
    assert!(distance(&logits(&out), &logits(&model)) < 0.2);
}

#[test]
fn interrupting_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let source = files(&dir, 2000);
    let model = Tiny::default().write(dir.path(), "model");
    let smooth = Recipe { transform: Transform::Smooth, ..recipe() };
    let mut all = Steps::default();
    run(&model, &source, &dir.path().join("whole"), &smooth, OutputFormat::Auto, &mut all).unwrap();
    let before = entries(dir.path());
    for stop_at in [1, 2, all.count / 3, all.count / 2, all.count - 1] {
        let mut steps = Steps { stop_at: Some(stop_at), ..Steps::default() };
        let result = run(&model, &source, &dir.path().join("out"), &smooth, OutputFormat::Auto, &mut steps);
        assert!(matches!(result, Err(QuantError::Interrupted)), "stop at {stop_at}");
        assert_eq!(steps.count, stop_at, "stops at once");
        assert_eq!(entries(dir.path()), before, "stop at {stop_at}");
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn bad_requests_are_refused_before_any_work() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    let source = files(&dir, 2000);
    let base = recipe();
    let try_it = |recipe: &Recipe, source: &Source, out: &str| {
        let mut steps = Steps::default();
        let out = dir.path().join(out);
        let error =
            run(&model, source, &out, recipe, OutputFormat::Auto, &mut steps).unwrap_err().to_string();
        assert!(steps.count <= 2, "{error}");
        error
    };
    let window = |windows, window, smooth_tokens| Calibration { windows, window, smooth_tokens };
    for (recipe, words) in [
        (Recipe { group_size: Some(48), ..base.clone() }, vec!["48", "32, 64, 128"]),
        (Recipe { damping: f64::NAN, ..base.clone() }, vec!["damping"]),
        (Recipe { calibration: window(4, 512, 1), ..base.clone() }, vec!["512", "256"]),
        (
            Recipe { transform: Transform::Smooth, calibration: window(4, 64, 65), ..base.clone() },
            vec!["65", "64"],
        ),
        (Recipe { calibration: window(40, 64, 1), ..base.clone() }, vec!["2000 tokens", "2560"]),
    ] {
        let error = try_it(&recipe, &source, "out");
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    }
    // The output exists: the source model itself.
    let error = try_it(&base, &source, "model");
    assert!(error.contains("exist"), "{error}");

    let binary = dir.path().join("binary.txt");
    std::fs::write(&binary, [0xff, 0xfe, 0x80]).unwrap();
    assert!(try_it(&base, &Source::Files(vec![binary]), "out").contains("UTF-16"));
    let missing = Source::Files(vec![dir.path().join("nowhere.txt")]);
    assert!(try_it(&base, &missing, "out").contains("nowhere.txt"));
    let jsonl = dir.path().join("bad.jsonl");
    std::fs::write(&jsonl, "{\"text\": \"w1 w2\"}\n{\"prompt\": 3}\n").unwrap();
    let error = try_it(&base, &Source::Files(vec![jsonl]), "out");
    assert!(error.contains("line 2"), "{error}");
    assert!(!dir.path().join("out").exists());

    // A checkpoint that is quantized already.
    let out = dir.path().join("out");
    run(&model, &source, &out, &base, OutputFormat::Auto, &mut Steps::default()).unwrap();
    let again =
        run(&out, &source, &dir.path().join("twice"), &base, OutputFormat::Auto, &mut Steps::default())
            .unwrap_err();
    assert!(again.to_string().contains("quantized already"), "{again}");
}

#[test]
fn jsonl_and_parquet_are_read_like_text() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    let plain = text(dir.path(), 660);
    let documents: Vec<String> =
        std::fs::read_to_string(&plain).unwrap().lines().map(str::to_owned).collect();

    let jsonl = dir.path().join("text.jsonl");
    let lines: String =
        documents.iter().map(|l| serde_json::json!({ "text": l }).to_string() + "\n").collect();
    std::fs::write(&jsonl, lines).unwrap();
    let parquet = dir.path().join("text.parquet");
    write_parquet(&parquet, "text", &documents);

    // There are hardly more tokens than needed: the exact way of cutting windows, to which white space does not matter.
    let mut bytes = Vec::new();
    for (name, path) in [("a", plain), ("b", jsonl), ("c", parquet)] {
        let out = dir.path().join(name);
        run(&model, &Source::Files(vec![path]), &out, &recipe(), OutputFormat::Auto, &mut Steps::default())
            .unwrap();
        bytes.push(std::fs::read(out.join("model.safetensors")).unwrap());
    }
    assert!(bytes[0] == bytes[1], "jsonl");
    assert!(bytes[0] == bytes[2], "parquet");

    let other = dir.path().join("other.parquet");
    write_parquet(&other, "prompt", &documents);
    let out = dir.path().join("out");
    let error =
        run(&model, &Source::Files(vec![other]), &out, &recipe(), OutputFormat::Auto, &mut Steps::default())
            .unwrap_err();
    assert!(error.to_string().contains("columns: id, prompt"), "{error}");
}

fn write_parquet(path: &Path, column: &str, documents: &[String]) {
    let schema = format!("message schema {{ optional int64 id; required binary {column} (UTF8); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut ids = group.next_column().unwrap().unwrap();
    ids.typed::<Int64Type>().write_batch(&[], Some(&vec![0; documents.len()]), None).unwrap();
    ids.close().unwrap();
    let mut texts = group.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = documents.iter().map(|d| d.as_str().into()).collect();
    texts.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    texts.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn states_that_overflow_name_the_block() {
    let dir = TempDir::new().unwrap();
    let model = Tiny::default().write(dir.path(), "model");
    // A weight of 3e38 in the second block's o.
    let checkpoint = Checkpoint::open(&model).unwrap();
    let mut bad = qqq_formats::writer::CheckpointWriter::create(&dir.path().join("bad")).unwrap();
    for name in checkpoint.tensors.names() {
        let info = checkpoint.tensors.info(&name).unwrap();
        let mut bytes = checkpoint.tensors.bytes(&name).unwrap().into_owned();
        if name == "model.layers.1.self_attn.o_proj.weight" {
            bytes.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&3e38f32.to_le_bytes()));
        }
        bad.add(&name, info.dtype, &info.shape, &bytes).unwrap();
    }
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(model.join(file), bad.staging().join(file)).unwrap();
    }
    bad.finish().unwrap();
    for propagation in [Propagation::Float, Propagation::Quantized] {
        let recipe = Recipe { propagation, ..recipe() };
        let out = dir.path().join("out");
        let error = run(
            &dir.path().join("bad"),
            &files(&dir, 2000),
            &out,
            &recipe,
            OutputFormat::Auto,
            &mut Steps::default(),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("model.layers.1"), "{error}");
        assert!(!out.exists());
    }
}

/// Not a test of its own: quantizes for [`bits_do_not_depend_on_threads_or_runs`] in a process with its own pool.
#[test]
#[ignore = "a part of bits_do_not_depend_on_threads_or_runs, which runs it"]
fn child_of_the_determinism_test() {
    let out = std::env::var_os("QQQ_TEST_CHILD_OUT").expect("it is run by the other test");
    let dir = TempDir::new().unwrap();
    let model = Tiny { kv_heads: 4, ..Tiny::default() }.write(dir.path(), "model");
    for (name, transform, propagation, error_correction) in [
        ("smooth", Transform::Smooth, Propagation::Quantized, 0.0),
        ("rotate", Transform::Rotate, Propagation::Float, 0.0),
        ("corrected", Transform::Rotate, Propagation::Quantized, 0.5),
    ] {
        let recipe = Recipe { transform, propagation, error_correction, group_size: Some(32), ..recipe() };
        let out = Path::new(&out).join(name);
        run(&model, &files(&dir, 2000), &out, &recipe, OutputFormat::Auto, &mut Steps::default()).unwrap();
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_runs() {
    let dir = TempDir::new().unwrap();
    let mut results: Vec<Vec<Vec<u8>>> = Vec::new();
    for (i, threads) in ["1", "2", "3", "3"].into_iter().enumerate() {
        let out = dir.path().join(i.to_string());
        std::fs::create_dir(&out).unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "pipeline::child_of_the_determinism_test", "-q"])
            .env("QQQ_TEST_CHILD_OUT", &out)
            .env("QQQ_THREADS", threads)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let bytes = |name: &str| std::fs::read(out.join(name).join("model.safetensors")).unwrap();
        results.push(["smooth", "rotate", "corrected"].map(bytes).to_vec());
    }
    for (i, other) in results.iter().enumerate().skip(1) {
        assert!(results[0][0] == other[0], "smooth, run {i}");
        assert!(results[0][1] == other[1], "rotate, run {i}");
        assert!(results[0][2] == other[2], "corrected, run {i}");
    }
}
