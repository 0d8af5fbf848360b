//! `qqq compare`: what its table has, what is kept, what is refused.

mod common;

use std::{fs, path::PathBuf};

use common::Place;
use serde_json::Value;

/// A place with questions of our own in `tasks/`.
fn place() -> Place {
    let place = Place::new();
    let from: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../qqq-eval/tests/questions"].iter().collect();
    fs::create_dir(place.path("tasks")).unwrap();
    for name in ["piqa", "winogrande"] {
        fs::copy(from.join(name).with_extension("jsonl"), place.path("tasks").join(format!("{name}.jsonl")))
            .unwrap();
    }
    place
}

const MEASURES: &str = "--text text.txt --window 128 --limit 4 --data tasks --tasks piqa,winogrande";
const RECIPES: &str = "compare model --recipes fp16,rtn,gptq:group-size=32 --calibration text.txt --calibration-windows 2 \
                       --calibration-window 64 -o out";

/// A field of a model, by its place in the table.
fn of(json: &Value, model: usize, path: &str) -> f64 {
    json["models"][model].pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {json:#}"))
}

#[test]
fn the_table_has_what_the_single_commands_give() {
    let place = place();
    place.quantize("w4a8", "--group-size 32");
    place.run("quantize model -o w8a8 --recipe rtn --bits 8 --held-out 0").success();
    let command = format!(
        "compare w4a8 w8a8 --baseline model {MEASURES} --speed --prompt-tokens 8 --new-tokens 4 --repeat 1"
    );
    let json = place.run(&format!("{command} --json")).success().json();
    let names: Vec<&str> =
        json["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["model", "w4a8", "w8a8"]);
    let kld = "--baseline model --text text.txt --window 128 --limit 4 --json";
    for (index, name) in [(1, "w4a8"), (2, "w8a8")] {
        let alone = place.run(&format!("eval kld {name} {kld}")).success().json();
        for figure in ["kl_divergence", "top1_agreement", "perplexity_ratio"] {
            let found = of(&json, index, &format!("/on_texts/0/{figure}/mean"));
            assert_eq!(Some(found), alone[figure]["mean"].as_f64(), "{name}: {figure}");
        }
        assert_eq!(Some(of(&json, index, "/on_texts/0/perplexity/mean")), alone["perplexity"].as_f64());
        assert!(of(&json, index, "/on_texts/0/perplexity/standard_error") > 0.0);
        let p = of(&json, index, "/on_texts/0/difference/p_value");
        let adjusted = of(&json, index, "/on_texts/0/difference/p_adjusted");
        assert!(0.0 < p && p <= adjusted && adjusted <= 1.0, "{p} {adjusted}");
        let tasks = "--data tasks --tasks piqa,winogrande --json";
        let alone = place.run(&format!("eval tasks {name} {tasks}")).success().json();
        let accuracies = [0, 1].map(|task| alone["tasks"][task]["acc"]["mean"].as_f64().unwrap());
        assert_eq!([0, 1].map(|task| of(&json, index, &format!("/on_tasks/{task}/acc/mean"))), accuracies);
        assert_eq!(of(&json, index, "/average/mean"), accuracies.iter().sum::<f64>() / 2.0);
        assert!(of(&json, index, "/on_tasks/1/difference/p_value") <= 1.0);
    }
    let alone =
        place.run("eval perplexity model --text text.txt --window 128 --limit 4 --json").success().json();
    assert_eq!(Some(of(&json, 0, "/on_texts/0/perplexity/mean")), alone["perplexity"].as_f64());
    assert!(json["models"][0]["on_texts"][0].get("difference").is_none());
    assert!(of(&json, 2, "/bits_per_weight") > of(&json, 1, "/bits_per_weight"));
    assert!(
        of(&json, 0, "/memory") > of(&json, 2, "/memory")
            && of(&json, 2, "/memory") > of(&json, 1, "/memory")
    );
    assert!(of(&json, 1, "/speed/decode_tokens_per_second/median") > 0.0);
    // Nothing is kept where no folder was named.
    assert_eq!(place.names(), ["model", "tasks", "text.txt", "w4a8", "w8a8"]);

    let text = place.run(&command).success().stdout;
    for part in [
        "Quality on text.txt",
        "Accuracy on tasks",
        "Size and speed",
        "perplexity",
        "average",
        "decode",
        "W4A8 g32",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn recipes_are_made_once_and_measurements_kept() {
    let place = place();
    let command = format!("{RECIPES} {MEASURES} --json");
    let first = place.run(&command).success().json();
    let names: Vec<&str> =
        first["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["fp16", "rtn", "gptq:group-size=32"]);
    for file in [
        "fp16/config.json",
        "gptq-group-size-32/config.json",
        "comparison.md",
        "comparison.tex",
        "report.html",
    ] {
        assert!(place.path("out").join(file).exists(), "{file}");
    }
    // Nothing would be measured again in the same folder.
    fs::copy(place.path("out/comparison.json"), place.path("first.json")).unwrap();
    place.run("rerun first.json").failure(2, "nothing would be measured again");
    let rerun = place.run("rerun first.json -o elsewhere --json").success().json();
    assert_eq!(rerun["rerun"]["same"], true, "{rerun}");
    assert!(rerun["rerun"]["figures"].as_u64().unwrap() > 50);

    let stamp = || fs::metadata(place.path("out/rtn/model.safetensors")).unwrap().modified().unwrap();
    let made = stamp();

    // Nothing is loaded again.
    let again = place.run(&command).success();
    assert!(!again.stderr.contains("loaded"), "{}", again.stderr);
    assert_eq!(again.json()["models"], first["models"]);
    assert_eq!(stamp(), made);

    // What is new is measured, the rest is kept: its time is what it took then.
    fs::write(place.path("more.txt"), common::TEXT.repeat(2)).unwrap();
    let more = place.run(&format!("{command} --text more.txt")).success();
    assert!(more.stderr.contains("loaded out/rtn"), "{}", more.stderr);
    let more = more.json();
    assert_eq!(of(&more, 1, "/on_texts/0/seconds"), of(&first, 1, "/on_texts/0/seconds"));
    assert_eq!(more["models"][1]["on_texts"].as_array().unwrap().len(), 2);

    // A text that has changed is measured again; so is a model.
    fs::write(place.path("text.txt"), common::TEXT.to_uppercase()).unwrap();
    let changed = place.run(&command).failure(2, "with another calibration text under the same name");
    assert!(changed.stderr.contains("remove it, or give another --output"), "{}", changed.stderr);
    let models = "compare out/fp16 out/rtn -o kept --window 128 --limit 4";
    let lower = place.run(&format!("{models} --text more.txt --json")).success().json();
    fs::copy(place.path("text.txt"), place.path("more.txt")).unwrap();
    let upper = place.run(&format!("{models} --text more.txt --json")).success().json();
    assert_ne!(of(&lower, 1, "/on_texts/0/perplexity/mean"), of(&upper, 1, "/on_texts/0/perplexity/mean"));

    // Checkpoints that were made otherwise are not taken for these.
    let other = RECIPES.replace("--calibration-windows 2", "--calibration-windows 3");
    place
        .run(&format!("{other} {MEASURES}"))
        .failure(2, "gptq-group-size-32 is there, and was made by quantize");
    fs::create_dir(place.path("out/awq-group-size-32")).unwrap();
    let foreign = "compare model --recipes awq:group-size=32 -o out --speed";
    place.run(foreign).failure(2, "was made by another command");
}

/// Ctrl-C while a text is scored: what there was until then, and nothing of it is kept.
#[cfg(unix)]
#[test]
fn an_interrupted_comparison_tells_what_it_has() {
    let place = Place::new();
    place.quantize("w4a8", "--group-size 32");
    fs::write(place.path("long.txt"), common::TEXT.repeat(120)).unwrap();
    let command = "compare model w4a8 -o kept --text long.txt --window 2048";
    for json in [true, false] {
        let run = place.interrupted(&format!("{command}{}", if json { " --json" } else { "" }));
        assert_eq!(run.code, Some(130), "{}", run.stderr);
        assert!(run.stderr.contains("what is finished is kept in kept"), "{}", run.stderr);
        if json {
            let outcome = run.json();
            assert!(outcome["partial"] == true && outcome["planned_models"] == 2, "{outcome}");
            assert_eq!(outcome["models"].as_array().unwrap().len(), 1);
            assert_eq!(outcome["models"][0]["on_texts"][0]["partial"], true);
        } else {
            assert!(
                run.stdout.starts_with("PARTIAL, interrupted: the first 1 of 2 models"),
                "{}",
                run.stdout
            );
        }
        assert!(!place.path("kept/measurements/model.json").exists());
    }
}

#[test]
fn it_is_written_as_markdown_latex_and_a_page() {
    let place = place();
    place.run("quantize model -o a_b --recipe rtn --held-out 0").success();
    let command = format!("compare model a_b {MEASURES} --limit-tasks 2 --report page.html");
    let markdown = place.run(&format!("{command} --format markdown")).success().stdout;
    assert!(markdown.starts_with("**Quality on text.txt**\n\n| model | layers | perplexity |"), "{markdown}");
    assert!(
        markdown.contains("\n| a_b | W4A8 |")
            && markdown.contains("zero-shot; the first 2 questions of each task."),
        "{markdown}"
    );
    let latex = place.run(&format!("{command} --format latex")).success().stdout;
    assert!(latex.contains("\\toprule") && latex.contains("\na\\_b & W4A8 & "), "{latex}");
    let page = fs::read_to_string(place.path("page.html")).unwrap();
    for part in [
        "<h1>Models beside model</h1>",
        "role=\"img\"",
        "qqq compare model a_b",
        "<caption>Accuracy on tasks",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn refusals() {
    let place = place();
    for (arguments, says) in [
        ("model", "nothing is to be measured"),
        ("model --data tasks --tasks piqa --window 64", "--window does nothing without --text"),
        ("model --text nowhere.txt", "--text nowhere.txt: no such file"),
        ("model --text tasks", "is no file"),
        ("model --data tasks --tasks piqa,piqa", "piqa is named twice"),
        ("model --data tasks --tasks arc_easy", "no file of --data has the questions of arc_easy"),
        ("model --speed --limit-tasks 2", "--limit-tasks does nothing without --tasks or --data"),
        ("model --speed --chat-template", "--chat-template does nothing without --tasks or --data"),
        ("model --speed --new-tokens 1", "--new-tokens must be at least 2"),
        ("model --speed --prompt-tokens 4096", "does not hold 4096"),
        ("model other --recipes rtn -o out --speed", "--recipes quantizes one model, and 2 are named"),
        ("model --recipes rtn,nothing -o out --speed", "--recipes nothing"),
        ("model --recipes rtn,rtn -o out --speed", "rtn is named twice"),
        ("model --recipes awq:bits=8 -o out --speed", "--bits: recipe awq"),
        ("model --recipes rtn:token=hf_x -o out --speed", "token is no option of a recipe"),
        ("model --text text.txt -o model", "--output model: there is a model"),
        ("model --text text.txt --report text.txt", "would take the place of text.txt, which is read"),
        ("model --recipes rtn -o out --text text.txt --window 4096", "longer than the model's context"),
        ("model --recipes os+:bots=8 -o out --speed", "--recipes os+:bots=8: unexpected argument '--bots'"),
        (
            "model --recipes fp16,gptq -o out --speed",
            "--recipes gptq: groups of 128 do not divide the 64 inputs",
        ),
        ("model --text text.txt --window 4096", "longer than the model's context"),
    ] {
        place.run(&format!("compare {arguments}")).failure(2, says);
    }
    assert!(!place.path("out/fp16").exists());
    // A model that is named twice counts once in the tests.
    place.run("quantize model -o w4a8 --recipe rtn --held-out 0").success();
    let twice =
        place.run("compare model w4a8 ./model --text text.txt --window 128 --limit 4 --json").success();
    assert_eq!(twice.json()["models"].as_array().unwrap().len(), 2);
    assert!(twice.stderr.contains("./model is model once more: left out"), "{}", twice.stderr);
    // What is left out is needed.
    let run = place.run("compare model --recipes rtn --speed");
    assert!(run.code == Some(2) && run.stderr.contains("--output"), "{}", run.stderr);
}
