//! Bad input: a clear error each time, no panic, nothing left under the final name.

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Place, Run, TinyModel};
use serde_json::json;

const QUANTIZE: &str = "quantize model -o out --calibration text.txt --windows 2 --window 64";

/// A place whose model is changed; quantizing it must fail with exit code 2, saying `says`, and leave nothing.
#[track_caller]
fn refused(change: impl FnOnce(&mut TinyModel), damage: impl FnOnce(&Path), says: &str) {
    let place = Place::new();
    fs::remove_dir_all(place.path("model")).unwrap();
    let mut model = TinyModel::new();
    change(&mut model);
    model.write(&place.path("model"));
    damage(&place.path("model"));
    place.run(QUANTIZE).failure(2, says);
    assert_eq!(place.names(), ["model", "text.txt"]);
    // What runs a model refuses it just so.
    place.run("eval perplexity model --text text.txt --window 64 --limit 1").failure(2, says);
}

fn values<'a>(model: &'a mut TinyModel, name: &str) -> &'a mut (String, Vec<usize>, Vec<f32>) {
    model.tensors.iter_mut().find(|(n, ..)| n == name).unwrap()
}

#[test]
fn truncated_safetensors() {
    for keep in [0, 5, 300, 100_000] {
        refused(
            |_| {},
            |dir| {
                let file = dir.join("model.safetensors");
                let bytes = fs::read(&file).unwrap();
                fs::write(&file, &bytes[..keep]).unwrap();
            },
            "model.safetensors",
        );
    }
}

#[test]
fn lying_safetensors() {
    let damage = |dir: &Path| {
        let file = dir.join("model.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(&file, bytes).unwrap();
    };
    refused(|_| {}, damage, "model.safetensors");
}

#[test]
fn missing_shard() {
    let place = Place::new();
    TinyModel::new().write_sharded(&place.path("sharded"));
    fs::remove_file(place.path("sharded/model-00002-of-00002.safetensors")).unwrap();
    place
        .run("quantize sharded -o out --calibration text.txt --windows 2 --window 64")
        .failure(2, "model-00002-of-00002.safetensors");
    assert!(!place.path("out").exists());
}

#[test]
fn missing_tensor() {
    refused(
        |m| m.tensors.retain(|(n, ..)| n != "model.layers.1.mlp.up_proj.weight"),
        |_| {},
        "model.layers.1.mlp.up_proj.weight",
    );
}

#[test]
fn wrong_shape() {
    let change = |m: &mut TinyModel| {
        let (_, shape, values) = values(m, "model.layers.1.mlp.down_proj.weight");
        values.truncate(64 * 112);
        *shape = vec![64, 112];
    };
    refused(change, |_| {}, "model.layers.1.mlp.down_proj.weight");
}

#[test]
fn weights_that_are_not_finite() {
    for bad in [f32::NAN, f32::INFINITY] {
        let change = |m: &mut TinyModel| values(m, "model.layers.1.self_attn.o_proj.weight").2[7] = bad;
        refused(change, |_| {}, "model.layers.1.self_attn.o_proj.weight");
    }
}

#[test]
fn unknown_architecture() {
    let change = |m: &mut TinyModel| m.config["architectures"] = json!(["MambaForCausalLM"]);
    refused(change, |_| {}, "MambaForCausalLM");
}

#[test]
fn damaged_config() {
    refused(|_| {}, |dir| fs::write(dir.join("config.json"), "{\"hidden_size\":").unwrap(), "config.json");
    refused(|_| {}, |dir| fs::remove_file(dir.join("config.json")).unwrap(), "config.json");
}

#[test]
fn tokenizer_of_another_model() {
    refused(|m| m.tokenizer["model"]["vocab"]["z"] = json!(5000), |_| {}, "5000");
    refused(|_| {}, |dir| fs::remove_file(dir.join("tokenizer.json")).unwrap(), "tokenizer");
    refused(|_| {}, |dir| fs::write(dir.join("tokenizer.json"), "[]").unwrap(), "tokenizer");
}

#[test]
fn calibration_text() {
    let place = Place::new();
    let line = |rest: &str| format!("quantize model -o out {rest}");
    fs::write(place.path("short.txt"), "A few words.").unwrap();
    fs::write(place.path("empty.txt"), "").unwrap();
    place.run(&line("--calibration short.txt --windows 2 --window 64")).failure(2, "128");
    place.run(&line("--calibration empty.txt --windows 2 --window 64")).failure(2, "empty.txt");
    place.run(&line("--calibration nowhere.txt")).failure(2, "nowhere.txt");
    place.run(&line("--calibration text.txt nowhere.txt")).failure(2, "nowhere.txt");
    place.run(&line("--calibration text.txt --windows 2 --window 4096")).failure(2, "2048");
    assert_eq!(place.names(), ["empty.txt", "model", "short.txt", "text.txt"]);
}

#[test]
fn outputs_that_exist_or_cannot_be() {
    let place = Place::new();
    fs::create_dir(place.path("out")).unwrap();
    fs::write(place.path("out/precious"), "mine").unwrap();
    place.run(QUANTIZE).failure(2, "out exists");
    assert_eq!(fs::read_to_string(place.path("out/precious")).unwrap(), "mine");
    assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 1);
    let line = |out: &str| format!("quantize model -o {out} --calibration text.txt --windows 2 --window 64");
    place.run(&line("text.txt")).failure(2, "text.txt exists");
    place.run(&line("no/such/parent")).failure(2, "no/such");
    place.run(&format!("{} --report text.txt", line("new"))).failure(2, "text.txt exists");
    assert_eq!(place.names(), ["model", "out", "text.txt"]);
}

#[test]
fn recipes_that_do_not_fit() {
    let place = Place::new();
    let run = |rest: &str| place.run(&format!("{QUANTIZE} {rest}"));
    // k and v have 32 output channels.
    run("--format qqq --group-size channel").failure(2, "qqq format");
    for damping in ["-1", "nan", "inf", "1e300"] {
        run(&format!("--damping {damping}")).failure(2, "--damping");
    }
    run("--group-size 48").failure(2, "48");
    run("--windows 0").failure(2, "windows");
    assert_eq!(place.names(), ["model", "text.txt"]);
    place.quantize("done", "");
    place
        .run("quantize done -o again --calibration text.txt --windows 2 --window 64")
        .failure(2, "quantized already");
}

#[test]
fn models_that_are_not_there() {
    let place = Place::new();
    for command in ["inspect", "generate --prompt x", "quantize -o out", "chat", "bench model"] {
        let mut words = command.split(' ').collect::<Vec<_>>();
        words.insert(if words[0] == "bench" { 2 } else { 1 }, "./nowhere");
        place.run(&words.join(" ")).failure(2, "nowhere");
    }
    fs::create_dir(place.path("empty")).unwrap();
    place.run("inspect empty").failure(2, "config.json");
    fs::write(place.path("fake.gguf"), "GGUF but not really").unwrap();
    place.run("inspect fake.gguf").failure(2, "fake.gguf");
    place.run("inspect text.txt").failure(2, "text.txt");
}

#[test]
fn texts_and_windows() {
    let place = Place::new();
    let run = |rest: &str| place.run(&format!("eval perplexity model {rest}"));
    fs::write(place.path("latin1.txt"), [b'a', 0xE9, b'b']).unwrap();
    run("--text latin1.txt").failure(2, "UTF-8");
    run("--text nowhere.txt").failure(2, "nowhere.txt");
    run("--text text.txt --window 100000").failure(2, "100000");
    run("--text text.txt --window 4096").failure(2, "2048");
    run("--text text.txt --window 1").failure(2, "at least 2");
    run("--text text.txt --window 64 --stride 0").failure(2, "stride");
    run("--text text.txt --window 64 --limit 0").failure(2, "limit");
}

#[test]
fn sizes_that_cannot_be() {
    let place = Place::new();
    let huge = usize::MAX;
    for source in ["text.txt", "self"] {
        for amount in [
            format!("--windows {huge}"),
            format!("--windows {huge} --window 1"),
            format!("--windows {} --window 2", huge / 2 + 1),
            "--windows 1000000000".into(),
            "--windows 4294967296 --window 1024 --method rtn --clip none --transform none".into(),
        ] {
            place
                .run(&format!("quantize model -o out --calibration {source} {amount}"))
                .failure(2, "windows");
        }
    }
    // The memory may hold them, but the text does not.
    place
        .run("quantize model -o out --calibration text.txt --windows 200000 --window 1")
        .failure(2, "200000 windows of 1");
    place.run(&format!("quantize model -o out --calibration text.txt --window {huge}")).failure(2, "2048");
    assert_eq!(place.names(), ["model", "text.txt"]);

    let eval = |rest: &str| place.run(&format!("eval perplexity model --text text.txt {rest} --json"));
    eval(&format!("--window {huge}")).failure(2, "context of 2048");
    let all = eval("--window 512").success().json();
    assert_eq!(eval(&format!("--window 512 --limit {huge}")).success().json()["windows"], all["windows"]);
    assert_eq!(eval(&format!("--window 512 --stride {huge}")).success().json()["windows"], 1);
    assert_eq!(eval(&format!("--window 512 --stride {huge} --limit {huge}")).success().json()["windows"], 1);

    let bench = |rest: &str| place.run(&format!("bench model model {rest}"));
    bench(&format!("--prompt-tokens {huge}")).failure(2, "context of 2048");
    bench(&format!("--prompt-tokens 8 --new-tokens {huge}")).failure(2, "context of 2048");
    bench(&format!("--prompt-tokens 8 --new-tokens 2 --repeat {huge}")).failure(2, "--repeat");
    place.run(&format!("bench gemm --shape {huge}x128")).failure(2, "--shape");
    place.run("bench gemm --shape 18446744073709551600x128").failure(2, "--shape");
    place.run(&format!("bench gemm --tokens {huge}")).failure(2, "--tokens");
    place.run("bench gemm --gpu 4294967296").failure(2, "--gpu");
    place.run(&format!("inspect model --threads {huge}")).failure(2, "thread");
    let long = "x".repeat(2040);
    let run = place.run(&format!(
        "generate model --raw --prompt {long} -n {huge} --top-k {huge} --temperature 1 --json"
    ));
    assert!(run.success().json()["new_tokens"].as_u64().unwrap() <= 8);
}

#[test]
fn prompts_and_sampling() {
    let place = Place::new();
    let run = |rest: &str| place.run(&format!("generate model {rest}"));
    run("").failure(2, "prompt is empty");
    run("--prompt x --temperature -1").failure(2, "temperature");
    run("--prompt x --top-p 0").failure(2, "top-p");
    run("--prompt x -n 0").failure(2, "max-new-tokens");
    let long = "x".repeat(3000);
    run(&format!("--raw --prompt {long}")).failure(2, "2048");
    let mut model = TinyModel::new();
    model.tokenizer["added_tokens"][0]["content"] = json!("<begin>");
    model.write(&place.path("plain"));
    fs::write(place.path("plain/tokenizer_config.json"), "{}").unwrap();
    place.run("generate plain --chat --prompt x").failure(2, "chat template");
    place.run("chat plain").failure(2, "chat template");
}

#[test]
fn baselines_of_another_vocabulary() {
    let place = Place::new();
    let mut model = TinyModel::new();
    model.config["vocab_size"] = json!(288);
    for (name, shape, values) in &mut model.tensors {
        if name == "lm_head.weight" || name == "model.embed_tokens.weight" {
            shape[0] = 288;
            values.resize(288 * 64, 0.1);
        }
    }
    model.write(&place.path("other"));
    place.run("eval kld model --baseline other --text text.txt --window 64").failure(2, "288");
}

#[test]
fn wrong_usage() {
    let place = Place::new();
    place.run("frobnicate").failure(2, "frobnicate");
    place.run("quantize model").failure(2, "required");
    place.run("quantize model -o out --group-size 7").failure(2, "7");
    place.run("inspect model --threads 0").failure(2, "thread");
    let json = place.run("eval kld model --json").failure(2, "required").json();
    assert_eq!(json["error"]["exit_code"], 2);
    place.run("chat model --json").failure(2, "JSON").json();
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let place = Place::new();
    let run = place.run("inspect ./nowhere --json").failure(2, "nowhere");
    let json = run.json();
    assert!(json["error"]["message"].as_str().unwrap().contains("nowhere"));
    assert!(json["error"]["hint"].is_string());
    assert_eq!(json["error"]["exit_code"], 2);
}

/// Starts a long quantization and waits until it has begun to write.
fn long_quantization(place: &Place) -> std::process::Child {
    let mut child = place
        .command()
        .args("quantize model -o out --calibration self --windows 256 --window 2048 --json".split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !place.names().iter().any(|n| n.starts_with(".out.partial")) {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not start");
        assert!(child.try_wait().unwrap().is_none(), "it has ended already");
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(200));
    child
}

#[cfg(unix)]
#[test]
fn interrupting_leaves_nothing() {
    for signal in ["-INT", "-TERM"] {
        let place = Place::new();
        let child = long_quantization(&place);
        assert!(Command::new("kill").arg(signal).arg(child.id().to_string()).status().unwrap().success());
        let run = Run::of(child.wait_with_output().unwrap()).failure(130, "interrupted");
        assert_eq!(run.json()["error"]["exit_code"], 130);
        assert_eq!(place.names(), ["model", "text.txt"]);
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let place = Place::new();
    // A limit on file sizes stands in for a full disk: a write fails in mid-run.
    let mut command = Command::new("sh");
    common::clean(&mut command);
    let script = format!("trap '' XFSZ; ulimit -f 64; exec {} {QUANTIZE}", env!("CARGO_BIN_EXE_qqq"));
    let output = command.args(["-c", &script]).current_dir(place.path("")).output().unwrap();
    Run::of(output).failure(1, "out");
    assert_eq!(place.names(), ["model", "text.txt"]);
}

#[test]
fn bench_gemm_looks_at_its_options_first() {
    let place = Place::new();
    place
        .run("bench gemm --plot none/speed.svg")
        .failure(2, "--plot none/speed.svg: its folder does not exist");
    place.run("bench gemm --plot model").failure(2, "--plot model: a folder");
    place.run("bench gemm --tune --no-tuned").failure(2, "cannot be used with");
}
