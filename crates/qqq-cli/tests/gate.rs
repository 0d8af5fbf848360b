//! The comparison with the float model at the end of `quantize`, and what happens to a result that is too far from it.

mod common;

use std::fs;

use common::{Place, TinyModel};
use serde_json::Value;

const LINE: &str = "quantize model --calibration text.txt --windows 4 --window 128";

fn kld(report: &Value) -> f64 {
    report["quality"]["kl_divergence"]["mean"].as_f64().unwrap()
}

#[test]
fn the_report_the_summary_and_the_card_say_how_far_the_result_is() {
    let place = Place::new();
    let run = place.run(&format!("{LINE} -o out")).success();
    for row in ["KL divergence", "perplexity ratio", "top-1 agreement", "held-out text"] {
        assert!(run.stdout.lines().any(|line| line.starts_with(row)), "{row}: {}", run.stdout);
    }
    let report: Value =
        serde_json::from_slice(&fs::read(place.path("out/quantization_report.json")).unwrap()).unwrap();
    let quality = &report["quality"];
    assert_eq!((&quality["windows"], &quality["tokens"]), (&2.into(), &254.into()), "{quality}");
    assert_eq!((&quality["max_kld"], &quality["is_beyond"]), (&4.0.into(), &false.into()), "{quality}");
    assert!(kld(&report) > 0.0 && kld(&report) < 0.1, "{quality}");
    assert!(fs::read_to_string(place.path("out/README.md")).unwrap().contains("## Quality"));
    // The same in JSON, of more text; none, of none.
    let json = place.run(&format!("{LINE} -o more --held-out 3 --json")).success().json();
    assert_eq!(json["report"]["quality"]["tokens"], 381);
    let json = place.run(&format!("{LINE} -o none --held-out 0 --json")).success().json();
    assert_eq!(json["report"]["quality"], Value::Null);
    let bytes = |out: &str| fs::read(place.path(out).join("model.safetensors")).unwrap();
    assert!(bytes("out") == bytes("more") && bytes("out") == bytes("none"));
}

#[test]
fn beyond_the_limit_a_run_fails_and_keeps_what_it_has_made() {
    let place = Place::new();
    let strict = format!("{LINE} --max-kld 1e-9 -o out");
    let run = place.run(&format!("{strict} --report report.json")).failure(1, "too far from the float model");
    assert!(run.stderr.contains("nats per token") && run.stderr.contains("the limit is"), "{}", run.stderr);
    assert!(
        run.stderr.contains("hint: try finer groups") && run.stderr.contains("--force"),
        "{}",
        run.stderr
    );
    assert!(run.stdout.contains("out.failed-gate"), "{}", run.stdout);
    assert_eq!(place.names(), ["model", "out.failed-gate", "report.json", "text.txt"]);
    let stored = fs::read(place.path("out.failed-gate/quantization_report.json")).unwrap();
    let stored: Value = serde_json::from_slice(&stored).unwrap();
    assert_eq!(stored["quality"]["is_beyond"], true);
    place.run("inspect out.failed-gate").success();
    place.run("generate out.failed-gate --raw --prompt once -n 3").success();

    // One object, which has the measures; what is there is not replaced.
    let run = place.run(&format!("{strict} --json")).failure(1, "out.failed-gate-2");
    let json = run.json();
    assert_eq!(
        (&json["output"], &json["error"]["exit_code"]),
        (&"out.failed-gate-2".into(), &1.into()),
        "{json}"
    );
    assert!(kld(&json["report"]) > 1e-9 && json["error"]["hint"].is_string(), "{json}");
    assert_eq!(json["report"]["quality"]["max_kld"], 1e-9);

    let run = place.run(&format!("{strict} --force --json")).success().json();
    assert_eq!((&run["output"], &run["report"]["quality"]["is_beyond"]), (&"out".into(), &true.into()));
    assert!(run["warnings"].to_string().contains("by force"), "{run}");
    assert!(run["report"]["warnings"].to_string().contains("by force"), "{run}");
    let card = fs::read_to_string(place.path("out/README.md")).unwrap();
    assert!(card.contains("by force") && card.contains("further from the float model"), "{card}");

    let run = place.run(&format!("{LINE} --max-kld off -o open --json")).success().json();
    let quality = &run["report"]["quality"];
    assert_eq!((&quality["max_kld"], &quality["is_beyond"]), (&Value::Null, &false.into()), "{quality}");
    assert!(kld(&run["report"]) > 1e-9);
    let names = ["model", "open", "out", "out.failed-gate", "out.failed-gate-2", "report.json", "text.txt"];
    assert_eq!(place.names(), names);
}

#[test]
fn options_that_do_nothing_are_refused() {
    let place = Place::new();
    for (options, says) in [
        ("--held-out 0 --max-kld 1", "leaves none"),
        ("--max-kld off --force", "--force does nothing"),
        ("--max-kld 0", "above 0"),
        ("--dry-run --force", "cannot be used with"),
    ] {
        place.run(&format!("{LINE} -o out {options}")).failure(2, says);
    }
    assert_eq!(place.names(), ["model", "text.txt"]);
}

/// A model that knows what it says, and that rounding without a look at its inputs breaks: the weights for an input that is
/// always zero are so large that all others round to zero.
#[test]
fn the_default_limit_catches_a_broken_result_and_lets_a_sound_one_pass() {
    let place = Place::new();
    let mut model = TinyModel::new();
    let hidden = model.config["hidden_size"].as_u64().unwrap() as usize;
    const DEAD: usize = 5;
    for (name, _, values) in &mut model.tensors {
        if name == "lm_head.weight" {
            values.iter_mut().for_each(|x| *x *= 12.0);
        } else if name.ends_with("layernorm.weight") {
            values[DEAD] = 0.0;
        } else if ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
            .iter()
            .any(|part| name.contains(part))
        {
            values.chunks_exact_mut(hidden).for_each(|row| row[DEAD] = 50.0);
        }
    }
    model.write(&place.path("model"));
    let broken =
        "quantize model --method rtn --transform none --clip none --group-size channel -o broken --json";
    let run = place.run(broken).failure(1, "too far from the float model");
    let json = run.json();
    assert!(kld(&json["report"]) > 4.0, "{}", json["report"]["quality"]);
    assert_eq!(json["output"], "broken.failed-gate");
    // What is said of it is what an evaluation finds.
    let line = "eval kld broken.failed-gate --baseline model --text text.txt --window 256 --limit 4 --json";
    let found = place.run(line).success().json()["kl_divergence"]["mean"].as_f64().unwrap();
    assert!(found > 4.0, "{found}");

    let sound = place.run(&format!("{LINE} -o sound --json")).success().json();
    assert!(kld(&sound["report"]) < 2.0, "{}", sound["report"]["quality"]);
}
