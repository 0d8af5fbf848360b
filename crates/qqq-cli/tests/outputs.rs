//! Outputs that could not be written are refused before any work; killed runs leave nothing that stays.

mod common;

use std::{
    fs,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Place, Run};
use serde_json::{Value, json};

const QUANTIZE: &str = "quantize model --calibration text.txt --windows 2 --window 64 -o";

/// A run that takes long, when it has begun to write.
fn started(place: &Place) -> Child {
    started_with(place, "")
}

fn started_with(place: &Place, options: &str) -> Child {
    let line = format!("quantize model -o out --calibration self --windows 512 --window 512{options}");
    let child =
        place.command().args(line.split(' ')).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let staging = place.path(&format!(".out.partial-{}", child.id()));
    let begun = Instant::now();
    while !staging.join(".owner").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not begin: {:?}", place.names());
        thread::sleep(Duration::from_millis(10));
    }
    child
}

fn kill(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn reports_are_known_to_have_a_place() {
    let place = Place::new();
    fs::create_dir(place.path("folder")).unwrap();
    fs::write(place.path("file"), "").unwrap();
    for (report, says) in [
        ("none/report.json", "its folder does not exist"),
        ("file/report.json", "file is not a folder"),
        ("folder", "exists already"),
        ("file", "exists already"),
        ("new/", "a folder, not a file"),
        ("out/report.json", "out is what will be made"),
        ("./out", "out is what will be made"),
    ] {
        // The model is not even looked for: it is not there.
        let line = format!("quantize no-model -o out --report {report}");
        place.run(&line).failure(2, says);
    }
    for (line, says) in [
        ("quantize no-model -o none/out", "none does not exist"),
        ("quantize no-model -o file/out", "file is not a directory"),
        ("quantize no-model -o file", "exists already"),
        ("demo --model model --keep none/out", "none does not exist"),
        ("demo --model model --keep file", "exists already"),
        ("kernels build --output folder", "a folder, not a file"),
        ("kernels build --output none/k.zip", "its folder does not exist"),
        ("bench gemm --plot none/f.svg", "its folder does not exist"),
    ] {
        place.run(line).failure(2, says);
    }
    assert_eq!(place.names(), ["file", "folder", "model", "text.txt"]);
}

/// Not even root makes files in /proc, nor replaces a device.
#[cfg(target_os = "linux")]
#[test]
fn places_that_take_no_files() {
    let place = Place::new();
    for line in [
        "quantize no-model -o out --report /proc/report.json",
        "kernels build --output /dev/null",
        "bench gemm --plot /proc/f.svg",
    ] {
        let run = place.run(line);
        let says =
            if line.contains("/dev") { "neither a file nor a new name" } else { "cannot be written to" };
        run.failure(2, says);
    }
    place.run("quantize no-model -o /proc/out").failure(2, "cannot be written to");
    assert_eq!(place.names(), ["model", "text.txt"]);
}

#[test]
fn one_run_at_a_time_makes_an_output() {
    let place = Place::new();
    let mut first = started(&place);
    let says = format!("process {}", first.id());
    // By whatever path, and before the model is looked for.
    for out in ["out", "./out", "model/../out"] {
        place.run(&format!("quantize no-model -o {out}")).failure(1, &says);
    }
    place.run("demo --model model --keep out").failure(1, &says);
    // Another output is another matter.
    place.run(&format!("{QUANTIZE} other")).success();
    assert!(first.try_wait().unwrap().is_none(), "the first goes on");
    kill(&mut first);
}

#[test]
fn one_run_at_a_time_makes_a_report() {
    let place = Place::new();
    let mut first = started_with(&place, " --report report.json");
    let says = format!("process {}", first.id());
    for report in ["report.json", "./report.json", "model/../report.json"] {
        place.run(&format!("quantize no-model -o other --report {report}")).failure(1, &says);
    }
    place.run(&format!("{QUANTIZE} other --report another.json")).success();
    assert!(first.try_wait().unwrap().is_none(), "the first goes on");
    kill(&mut first);
    // A killed run has it no more, and what it has left is no report.
    let run = place.run(&format!("{QUANTIZE} third --report report.json")).success();
    assert!(place.path("report.json").is_file(), "{}", run.stderr);
    let hidden: Vec<_> = place.names().into_iter().filter(|n| n.contains("report.json.")).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

#[test]
fn what_a_killed_run_has_left_goes_with_the_next() {
    let place = Place::new();
    let mut first = started(&place);
    let left = format!(".out.partial-{}", first.id());
    kill(&mut first);
    assert!(place.names().contains(&left), "{:?}", place.names());
    // The number of its process is another's by now: this one's.
    let reused = format!(".out.partial-{}", std::process::id());
    fs::rename(place.path(&left), place.path(&reused)).unwrap();
    // Of other outputs nothing is touched, nor what only looks so.
    for name in [".other.partial-1", ".out.partial-x"] {
        fs::create_dir(place.path(name)).unwrap();
    }
    let run = place.run(&format!("{QUANTIZE} out")).success();
    assert!(
        run.stderr.contains(&format!("removed ./{reused}")) || run.stderr.contains(&reused),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("killed"), "{}", run.stderr);
    assert_eq!(place.names(), [".other.partial-1", ".out.partial-x", "model", "out", "text.txt"]);
    let mut files: Vec<_> = fs::read_dir(place.path("out"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    files.retain(|f| f.starts_with('.'));
    assert!(files.is_empty(), "{files:?}");
}

/// Of a version that took no locks: only the process tells.
#[cfg(target_os = "linux")]
#[test]
fn directories_without_a_lock_stay_while_their_process_lives() {
    let place = Place::new();
    // Beyond the largest number that Linux gives (2^22).
    for process in [4_194_999, std::process::id()] {
        fs::create_dir(place.path(&format!(".out.partial-{process}"))).unwrap();
    }
    let run = place.run(&format!("{QUANTIZE} out")).success();
    assert!(run.stderr.contains("removed"), "{}", run.stderr);
    let kept = format!(".out.partial-{}", std::process::id());
    assert!(run.stderr.contains(&format!("{kept} may be")), "{}", run.stderr);
    assert_eq!(place.names(), [kept.as_str(), "model", "out", "text.txt"]);
}

#[test]
fn failures_leave_no_lock() {
    let place = Place::new();
    place.run("quantize no-model -o out").failure(2, "no-model");
    place.run(&format!("{QUANTIZE} out --group-size 48")).failure(2, "48");
    assert_eq!(place.names(), ["model", "text.txt"]);
}

#[test]
fn licences_and_templates_come_along() {
    let place = Place::new();
    let model = place.path("model");
    fs::create_dir(model.join("additional_chat_templates")).unwrap();
    for name in [
        "LICENSE",
        "NOTICE.txt",
        "USE_POLICY.md",
        "additional_chat_templates/tool_use.jinja",
        "added_tokens.json",
        "generation_config.json",
        "vocab.json",
    ] {
        fs::write(model.join(name), if name.ends_with("json") { "{}" } else { name }).unwrap();
    }
    fs::write(model.join("modeling_own.py"), "import os").unwrap();
    fs::write(model.join("README.md"), "---\nlicense: apache-2.0\n---\n# The model\n").unwrap();
    place.run(&format!("{QUANTIZE} out")).success();
    let out = place.path("out");
    for name in ["LICENSE", "NOTICE.txt", "USE_POLICY.md", "additional_chat_templates/tool_use.jinja"] {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), name);
    }
    for name in ["added_tokens.json", "generation_config.json", "vocab.json"] {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), "{}", "{name}");
    }
    assert!(!out.join("modeling_own.py").exists());
    // The card is our own; its terms are the model's.
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.starts_with("---\ntags:\n- qqq\n- w4a8\nlicense: apache-2.0\n---\n"), "{card}");
}

#[test]
fn ctrl_c_while_it_waits_leaves_nothing() {
    if !cfg!(unix) {
        return;
    }
    let place = Place::new();
    // A hub that never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let child = place
        .command()
        .args("quantize owner/name -o out".split(' '))
        .env("HF_ENDPOINT", format!("http://{}", silent.local_addr().unwrap()))
        .env("HF_HOME", place.path("hf"))
        .env("HF_HUB_OFFLINE", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It has asked.
    let connection = silent.accept().unwrap();
    assert!(place.names().contains(&".out.lock".to_owned()), "{:?}", place.names());
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    assert_eq!(place.names(), ["model", "text.txt"]);
    drop(connection);
}

#[test]
fn a_page_says_what_was_done_and_its_figures_are_files_where_asked() {
    let place = Place::new();
    place.run("quantize no-model -o out --plots out/plots").failure(2, "out is what will be made");
    fs::write(place.path("file"), "").unwrap();
    place.run("quantize no-model -o out --plots file").failure(2, "--plots file");
    let line = "quantize model -o out --calibration text.txt --windows 2 --window 64 --transform smooth --plots plots";
    let report = place.run(&format!("{line} --json")).success().json();
    let page = fs::read_to_string(place.path("out/report.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
    assert!(page.contains(line) && page.contains("cpu with"), "{page}");
    let kl = report["report"]["quality"]["kl_divergence"]["mean"].as_f64().unwrap();
    assert!(page.contains(&format!("KL divergence {kl:.4} nats")), "{kl}: {page}");
    for site in ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"] {
        assert!(page.contains(&format!("model.layers.1.{site}")), "{site}");
        let figure = fs::read_to_string(place.path(&format!("plots/outliers-{site}.svg"))).unwrap();
        assert!(figure.starts_with("<svg") && page.contains("Input of"), "{figure}");
    }
    for name in ["plots/loss.svg", "plots/channels-mlp.down_proj.svg"] {
        assert!(place.path(name).exists(), "{name}");
    }
    // The numbers of the figures, of every layer of both blocks.
    let details: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(place.path("out/quantization_details.json")).unwrap())
            .unwrap();
    assert_eq!(details["activations"].as_array().unwrap().len(), 8);
    let curve = details["searches"][0]["curve"].as_array().unwrap();
    assert!(curve.len() > 3 && curve.windows(2).all(|w| w[0][0].as_f64() <= w[1][0].as_f64()), "{curve:?}");
    // They are not in the report, which people read.
    let short = fs::read_to_string(place.path("out/quantization_report.json")).unwrap();
    assert!(!short.contains("curve") && !short.contains("activations\": ["), "{short}");
}

/// The JSON of a run, in a file of that name.
fn recorded(place: &Place, name: &str, line: &str) -> Value {
    let run = place.run(&format!("{line} --json -q")).success();
    fs::write(place.path(name), &run.stdout).unwrap();
    run.json()
}

#[test]
fn a_run_is_done_again_from_its_json() {
    let place = Place::new();
    let line = "quantize model -o out --calibration text.txt --windows 2 --window 64 --report copy.json --token hf_secret";
    let made = recorded(&place, "made.json", line);
    let arguments = "quantize model -o out --calibration text.txt --windows 2 --window 64 --report copy.json";
    assert_eq!(made["run"]["arguments"], json!(arguments.split(' ').collect::<Vec<_>>()));
    assert!(made["run"]["inputs"]["text.txt"].is_string() && made["report"].get("run").is_none(), "{made}");
    let report = fs::read_to_string(place.path("out/quantization_report.json")).unwrap();
    let page = fs::read_to_string(place.path("out/report.html")).unwrap();
    assert!(page.contains(arguments), "{page}");
    assert!(
        !report.contains("hf_secret")
            && !page.contains("hf_secret")
            && !made.to_string().contains("hf_secret")
    );

    // What was made is still there.
    place.run("rerun made.json").failure(2, "out exists already");
    let again = place.run("rerun made.json -o again --json").success().json();
    assert_eq!((&again["output"], &again["rerun"]["same"]), (&json!("again"), &json!(true)));
    assert!(again["rerun"]["figures"].as_u64().unwrap() > 50, "{again}");
    let files = |out: &str| fs::read(place.path(out).join("model.safetensors")).unwrap();
    assert!(files("out") == files("again"));
    // The report in the checkpoint says as much, and what was run again can be run again.
    let run = place.run("rerun out/quantization_report.json -o third").success();
    assert!(run.stdout.contains("rerun: all ") && run.stdout.contains("(times aside)"), "{}", run.stdout);
    let run = place.run("rerun third/quantization_report.json --check").success();
    assert!(
        run.stdout.contains("--output third") && run.stdout.contains("one text is as they were"),
        "{}",
        run.stdout
    );
}

#[test]
fn figures_that_differ_fail_and_are_named() {
    let place = Place::new();
    let mut scored =
        recorded(&place, "scored.json", "eval perplexity model --text text.txt --window 64 --limit 2");
    let run = place.run("rerun scored.json").success();
    assert!(run.stdout.contains("perplexity") && run.stdout.contains("rerun: all"), "{}", run.stdout);
    let perplexity = scored["perplexity"].as_f64().unwrap();
    scored["perplexity"] = json!(perplexity + 0.5);
    fs::write(place.path("other.json"), scored.to_string()).unwrap();
    let run = place.run("rerun other.json").failure(1, "1 values differ from those of other.json");
    let says = format!("perplexity was {} and is {perplexity}", perplexity + 0.5);
    assert!(run.stdout.contains(&says), "{}", run.stdout);
    let run = place.run("rerun other.json --json");
    assert_eq!((run.code, &run.json()["rerun"]["same"]), (Some(1), &json!(false)));

    // What is printed as it comes is compared as well, with the seed that was drawn.
    let answer =
        recorded(&place, "answer.json", "generate model --raw -p once -n 5 --seed -1 --temperature 1");
    assert_eq!(place.run("rerun answer.json --json").success().json()["tokens"], answer["tokens"]);
    let run = place.run("rerun answer.json").success();
    assert!(run.stdout.contains("rerun: all"), "{}", run.stdout);
}

#[test]
fn what_is_not_as_it_was_is_named_before_anything_is_run() {
    let place = Place::new();
    let scored =
        recorded(&place, "scored.json", "eval perplexity model --text text.txt --window 64 --limit 2");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = scored.clone();
        change(&mut changed["run"]);
        fs::write(place.path("changed.json"), changed.to_string()).unwrap();
    };
    with(&|run| run["version"] = json!("0.0.1"));
    place.run("rerun changed.json").failure(2, "written by qqq 0.0.1, and this is ");
    place.run("rerun changed.json --any-version").success();
    with(&|run| run["environment"] = json!({ "QQQ_ISA": "portable" }));
    place.run("rerun changed.json").failure(2, "was run with QQQ_ISA=portable, and here is neither");
    with(&|run| run["arguments"] = json!(["rerun", "scored.json"]));
    place.run("rerun changed.json").failure(2, "it runs another run again");
    with(&|run| run["arguments"] = json!(["eval", "perplexity", "model", "--txet", "text.txt"]));
    place.run("rerun changed.json").failure(2, "unexpected argument '--txet'");
    with(&|run| *run = Value::Null);
    place.run("rerun changed.json").failure(2, "\"run\" is not what qqq writes");
    fs::write(place.path("changed.json"), "{}").unwrap();
    place.run("rerun changed.json").failure(2, "changed.json has no \"run\"");
    place.run("rerun text.txt").failure(2, "text.txt is no JSON");
    fs::write(place.path("text.txt"), "another text").unwrap();
    let run = place.run("rerun scored.json --check");
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("text.txt has SHA-256 "), "{}", run.stderr);
}
