//! Texts in every form that calibration and evaluation read: what they hold counts, not how it is packed.

mod common;

use std::{fs, process::Stdio};

use common::{Place, Run, TEXT};
use serde_json::{Value, json};

/// A place with the text of `text.txt` as records.
fn forms() -> Place {
    let place = Place::new();
    let documents: Vec<&str> = TEXT.split("\n\n").collect();
    let records = |field: &str| documents.iter().map(|d| json!({ field: d })).collect::<Vec<Value>>();
    let lines = |field: &str| records(field).iter().map(|r| format!("{r}\n")).collect::<String>();
    fs::write(place.path("lines.jsonl"), lines("text")).unwrap();
    fs::write(place.path("lines.txt"), lines("text")).unwrap();
    fs::write(place.path("array.json"), json!(records("text")).to_string()).unwrap();
    fs::write(place.path("indented.json"), format!("{:#}", json!(records("content")))).unwrap();
    fs::write(place.path("body.jsonl"), lines("body")).unwrap();
    fs::write(place.path("bom.txt"), format!("\u{FEFF}{TEXT}")).unwrap();
    let utf16: Vec<u8> = format!("\u{FEFF}{TEXT}").encode_utf16().flat_map(u16::to_be_bytes).collect();
    fs::write(place.path("utf16.txt"), utf16).unwrap();
    place
}

const FORMS: [&str; 7] = [
    "lines.jsonl",
    "lines.txt",
    "array.json",
    "indented.json",
    "body.jsonl --text-field body",
    "bom.txt",
    "utf16.txt",
];

/// What is said besides what runs the model.
fn notes(run: &Run) -> String {
    let lines: Vec<&str> = run.stderr.lines().filter(|l| !l.starts_with("loaded ")).collect();
    lines.join("\n")
}

#[test]
fn evaluation_reads_what_files_hold() {
    let place = forms();
    let run =
        |text: &str| place.run(&format!("eval perplexity model --text {text} --window 128 --json")).success();
    let plain = run("text.txt");
    assert_eq!(notes(&plain), "");
    for form in FORMS {
        let run = run(form);
        assert_eq!(run.json()["perplexity"], plain.json()["perplexity"], "{form}");
        let name = form.split(' ').next().unwrap();
        let note = notes(&run);
        match name {
            "bom.txt" | "utf16.txt" => assert_eq!(note, ""),
            _ => assert!(note.starts_with(&format!("{name}: JSON, field \"")), "{note}"),
        }
    }
    let syntax = run("lines.jsonl --text-format plain");
    assert_ne!(syntax.json()["perplexity"], plain.json()["perplexity"]);
    let kld = place
        .run("eval kld model --baseline model --text array.json --window 128 --limit 2 --json")
        .success();
    assert_eq!(kld.json()["kl_divergence"]["mean"], 0.0);
    assert_eq!(notes(&kld).lines().count(), 1, "{}", kld.stderr);
}

#[test]
fn calibration_reads_what_files_hold() {
    let place = forms();
    let weights = |text: &str| {
        let options = "--windows 3 --window 64 --method rtn --clip output --group-size 32";
        let run = place.run(&format!("quantize model -o out --calibration {text} {options}")).success();
        let bytes = fs::read(place.path("out/model.safetensors")).unwrap();
        fs::remove_dir_all(place.path("out")).unwrap();
        (bytes, run.stderr)
    };
    let plain = weights("text.txt");
    assert!(!plain.1.contains("field"), "{}", plain.1);
    for form in FORMS {
        let (bytes, notes) = weights(form);
        assert!(bytes == plain.0, "{form}");
        assert_eq!(
            notes.contains("JSON, field \""),
            form.contains("json") || form == "lines.txt",
            "{form}: {notes}"
        );
    }
    assert!(weights("array.json --text-format plain").0 != plain.0);
}

#[test]
fn messages_go_through_the_template() {
    let place = Place::new();
    let question = "x".repeat(200);
    let record =
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "y"}]});
    let sharegpt =
        json!({"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "y"}]});
    let alpaca = json!([{"instruction": question, "input": "", "output": "y"}]);
    fs::write(place.path("chat.jsonl"), record.to_string()).unwrap();
    fs::write(place.path("sharegpt.json"), json!([sharegpt]).to_string()).unwrap();
    fs::write(place.path("alpaca.json"), alpaca.to_string()).unwrap();
    fs::write(place.path("rendered.txt"), format!("user: {question}\nassistant: y\n")).unwrap();
    let perplexity = |text: &str| {
        let run = place.run(&format!("eval perplexity model --text {text} --window 32 --json")).success();
        assert!(text.ends_with(".txt") || run.stderr.contains("chat template"), "{}", run.stderr);
        run.json()["perplexity"].as_f64().unwrap()
    };
    let rendered = perplexity("rendered.txt");
    for text in ["chat.jsonl", "sharegpt.json", "alpaca.json"] {
        assert_eq!(perplexity(text), rendered, "{text}");
    }
}

#[test]
fn a_limit_bounds_what_is_read() {
    let place = Place::new();
    let long = TEXT.repeat(1 + 400_000 / TEXT.len());
    fs::write(place.path("long.txt"), &long).unwrap();
    // Nothing of what is behind is looked at.
    fs::write(place.path("damaged.txt"), [long.as_bytes(), b"\xFF"].concat()).unwrap();
    let run = |line: &str| place.run(&format!("eval perplexity model --window 128 --json --text {line}"));
    let few = run("damaged.txt --limit 2").success().json();
    assert_eq!(few["windows"], 2);
    let short: String = TEXT.chars().take(2000).collect();
    fs::write(place.path("short.txt"), short).unwrap();
    assert_eq!(few["perplexity"], run("short.txt --limit 2").success().json()["perplexity"]);
    run("damaged.txt --limit 100000").failure(2, "UTF-8");
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_prompt() {
    let place = Place::new();
    fs::write(place.path("prompt.txt"), "\u{FEFF}Hello\n").unwrap();
    let prompt = Stdio::from(fs::File::open(place.path("prompt.txt")).unwrap());
    let mut command = place.command();
    command.args(["generate", "model", "--raw", "--prompt", "-", "-n", "1", "--json"]).stdin(prompt);
    assert_eq!(Run::of(command.output().unwrap()).success().json()["prompt_tokens"], 5);
}
