//! Model files that are changed while the binary works with them, and what is said of loading.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Place, Run, TEXT};

fn truncate(path: &Path) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
}

/// A quantization that takes long, when it has begun to write.
fn quantizing(place: &Place, model: &str, options: &str) -> Child {
    let line = format!("quantize {model} -o out --calibration long.txt --windows 400 --window 512 {options}");
    let mut child = place.start(&line);
    let owner = place.path(&format!(".out.partial-{}", child.id())).join(".owner");
    let begun = Instant::now();
    while !owner.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not begin: {:?}", place.names());
        thread::sleep(Duration::from_millis(5));
    }
    child
}

/// No signal, but an error that names the file; one JSON object where it was asked for; nothing is left behind.
#[test]
fn a_truncated_model_is_an_error() {
    let place = Place::new();
    fs::write(place.path("long.txt"), TEXT.repeat(300_000 / TEXT.len() + 1)).unwrap();
    for options in ["", "--json"] {
        let child = quantizing(&place, "model", options);
        truncate(&place.path("model/model.safetensors"));
        let run = Run::of(child.wait_with_output().unwrap());
        let run = run.failure(1, "model.safetensors was changed while it was in use: it was truncated from");
        assert!(run.stderr.contains("hint: "), "{}", run.stderr);
        if options.is_empty() {
            assert_eq!(run.stdout, "");
        } else {
            let message = run.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(message.contains("to 4096 bytes"), "{message}");
            assert_eq!(run.stdout.lines().count(), 1);
        }
        assert_eq!(place.names(), ["long.txt", "model", "text.txt"]);
        common::TinyModel::new().write(&place.path("model"));
    }
}

/// A model that is loaded does not need its files any more.
#[test]
fn an_evaluation_goes_on_with_what_was_loaded() {
    let place = Place::new();
    let line = "eval perplexity model --text text.txt --window 64 --stride 1 --json";
    let expected = place.run(line).success().json();
    let mut child = place.start(line);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut loaded = String::new();
    while !loaded.starts_with("loaded ") {
        loaded.clear();
        assert!(stderr.read_line(&mut loaded).unwrap() > 0, "it does not say when it is loaded");
    }
    truncate(&place.path("model/model.safetensors"));
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert!(child.wait().unwrap().success());
    let got: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    for key in ["perplexity", "standard_error", "tokens"] {
        assert_eq!(got[key], expected[key], "{key}");
    }
    // One that is loaded afterwards is not.
    place.run(line).failure(2, "model.safetensors");
}

/// What runs a model is said in one line, and with -v for every kind of layer.
#[test]
fn kernels_are_named_after_loading() {
    let place = Place::new();
    place.quantize("out", "--group-size 32");
    let generate = |options: &str| {
        let mut child = place
            .command()
            .env("QQQ_ISA", "portable")
            .args("--threads 2 generate out --raw -n 2".split(' '))
            .args(options.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"Once").unwrap();
        Run::of(child.wait_with_output().unwrap()).success()
    };
    let run = generate("");
    let lines: Vec<&str> = run.stderr.lines().filter(|l| l.starts_with("loaded ")).collect();
    let [line] = lines[..] else { panic!("{}", run.stderr) };
    for part in ["loaded out in ", "portable (W4A8)", "(F16)", "2 threads", "weights take ", "kB"] {
        assert!(line.contains(part), "{line:?} does not say {part:?}");
    }
    assert!(!run.stderr.contains("q_proj") && !run.stderr.contains("loading"), "{}", run.stderr);

    let run = generate("-v");
    for part in [
        "embed_tokens: 272 x 64, F16",
        "self_attn.q_proj+k_proj+v_proj: 2 x 128 x 64, W4A8 in groups of 32, kernel portable",
        "mlp.gate_proj+up_proj: 2 x 256 x 64, W4A8 in groups of 32, kernel portable",
        "lm_head: 272 x 64, F16",
    ] {
        assert!(run.stderr.contains(part), "{:?} does not say {part:?}", run.stderr);
    }
    let quiet = generate("--quiet");
    assert_eq!(quiet.stderr, "");
    let json = generate("--json");
    assert_eq!(json.json()["new_tokens"], 2);
}
