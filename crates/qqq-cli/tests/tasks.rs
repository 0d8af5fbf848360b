//! `qqq eval tasks`: which files are taken, what is printed, what is refused.

mod common;

use std::{fs, path::PathBuf};

use common::Place;
use serde_json::Value;

/// A place with questions of our own in `tasks/`, named as the hub's data sets are.
fn questions() -> Place {
    let place = Place::new();
    let from: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../qqq-eval/tests/questions"].iter().collect();
    fs::create_dir(place.path("tasks")).unwrap();
    fs::create_dir(place.path("tasks/anatomy")).unwrap();
    fs::create_dir(place.path("tasks/arrow")).unwrap();
    for (name, to) in [
        ("piqa.jsonl", "piqa.validation.jsonl"),
        ("piqa.train.jsonl", "piqa.train.jsonl"),
        ("piqa.arrow", "arrow/json-validation.arrow"),
        ("arc_easy.jsonl", "ARC-Easy.test.jsonl"),
        ("winogrande.jsonl", "winogrande_xl.validation.jsonl"),
        ("lambada.jsonl", "lambada.jsonl"),
        ("mmlu.test.jsonl", "mmlu.test.jsonl"),
        ("mmlu.dev.jsonl", "mmlu.dev.jsonl"),
        ("anatomy/test-00000-of-00002.parquet", "anatomy/test-00000-of-00002.parquet"),
        ("anatomy/test-00001-of-00002.parquet", "anatomy/test-00001-of-00002.parquet"),
        ("anatomy/dev-00000-of-00001.parquet", "anatomy/dev-00000-of-00001.parquet"),
    ] {
        fs::copy(from.join(name), place.path("tasks").join(to)).unwrap();
    }
    place
}

#[test]
fn a_folder_gives_each_task_its_file() {
    let place = questions();
    let command = "eval tasks model --tasks piqa,arc_easy,winogrande --data tasks --samples out.jsonl";
    let run = place.run(&format!("{command} --json")).success().json();
    let tasks = run["tasks"].as_array().unwrap();
    let files: Vec<&str> = tasks.iter().map(|task| task["files"][0]["file"].as_str().unwrap()).collect();
    assert_eq!(
        files,
        ["tasks/piqa.validation.jsonl", "tasks/ARC-Easy.test.jsonl", "tasks/winogrande_xl.validation.jsonl"]
    );
    let samples = fs::read_to_string(place.path("out.jsonl")).unwrap();
    let samples: Vec<Value> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(samples.len(), 9);
    for task in tasks {
        let own: Vec<_> = samples.iter().filter(|sample| sample["task"] == task["task"]).collect();
        assert_eq!(task["documents"], own.len());
        let right = own.iter().filter(|sample| sample["right"] == true).count();
        let mean = task["acc"]["mean"].as_f64().unwrap();
        assert!((mean - right as f64 / own.len() as f64).abs() < 1e-12, "{task}");
        assert_eq!(task.get("acc_norm").is_some(), task["task"] != "winogrande");
        assert!(
            own.iter().all(|s| s["loglikelihoods"]
                .as_array()
                .unwrap()
                .iter()
                .all(|l| l.as_f64() < Some(0.0)))
        );
    }
    let table = place.run(command).success().stdout;
    for name in ["piqa", "arc_easy", "winogrande", "acc_norm"] {
        assert!(table.contains(name), "{table}");
    }
    let one =
        place.run("eval tasks model --tasks piqa --data tasks/piqa.train.jsonl --limit 1 --json").success();
    assert_eq!(one.json()["tasks"][0]["documents"], 1);
}

#[test]
fn subjects_come_from_shards_or_from_a_file_for_all() {
    let place = questions();
    let asked = "eval tasks model --tasks mmlu_anatomy --fewshot 2 --samples out.jsonl --json --data";
    let told = |data: &str| {
        let task = place.run(&format!("{asked} {data}")).success().json()["tasks"][0].clone();
        (task, fs::read_to_string(place.path("out.jsonl")).unwrap())
    };
    let (of_shards, answers) = told("tasks");
    let split =
        |file: &Value| format!("{} {}", file["split"].as_str().unwrap(), file["file"].as_str().unwrap());
    let files: Vec<String> = of_shards["files"].as_array().unwrap().iter().map(split).collect();
    let of = |name: &str| format!("tasks/anatomy/{name}.parquet");
    let expected = ["test-00000-of-00002", "test-00001-of-00002", "dev-00000-of-00001"].map(of);
    assert_eq!(
        files,
        ["test ", "test ", "dev "].iter().zip(expected).map(|(s, f)| format!("{s}{f}")).collect::<Vec<_>>()
    );
    assert_eq!((&of_shards["fewshot"], &of_shards["documents"]), (&2.into(), &3.into()));
    // The same questions among those of another subject; where they stand is something else.
    let (_, of_one) = told("tasks/mmlu.test.jsonl --data tasks/mmlu.dev.jsonl");
    let found = |text: &str| {
        let one = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loglikelihoods"].clone();
        text.lines().map(one).collect::<Vec<_>>()
    };
    assert_eq!(found(&answers), found(&of_one));
    fs::remove_file(place.path("tasks/anatomy/test-00000-of-00002.parquet")).unwrap();
    place.run(&format!("{asked} tasks")).failure(2, "not exactly 2 parts are there");
}

/// As the datasets library keeps them.
#[test]
fn arrow_files_have_the_same_questions() {
    let place = questions();
    let told = |data: &str| {
        let command = "eval tasks model --tasks piqa --samples out.jsonl --json --data";
        let task = place.run(&format!("{command} {data}")).success().json()["tasks"][0].clone();
        (task["acc"].clone(), fs::read_to_string(place.path("out.jsonl")).unwrap())
    };
    let of_json = told("tasks/piqa.validation.jsonl");
    assert_eq!(told("tasks/arrow/json-validation.arrow"), of_json);
    assert_eq!(told("piqa=tasks/arrow"), of_json);
}

#[test]
fn what_was_asked_is_told() {
    let place = questions();
    let run = place.run(
        "eval tasks model --tasks lambada,piqa --data tasks --fewshot 2 --chat-template --system-instruction Hm --json",
    );
    let told = run.success().json();
    let expected = [
        ("protocol", Value::from("lm-evaluation-harness 0.4.13")),
        ("fewshot", 2.into()),
        ("chat_template", true.into()),
        ("fewshot_as_multiturn", true.into()),
        ("system_instruction", "Hm".into()),
    ];
    for (name, value) in expected {
        assert_eq!(told[name], value, "{name}");
    }
    let lambada = &told["tasks"][0];
    assert!(lambada["perplexity"]["mean"].as_f64() > Some(1.0), "{lambada}");
    assert!(lambada["perplexity"]["standard_error"].as_f64() > Some(0.0), "{lambada}");
    let table = place.run("eval tasks model --tasks lambada --data tasks").success().stdout;
    assert!(table.contains("perplexity") && table.contains("0.4.13, zero-shot"), "{table}");
}

#[test]
fn refusals() {
    let place = questions();
    let mut text = fs::read_to_string(place.path("tasks/piqa.train.jsonl")).unwrap();
    text.push_str("{\"goal\": \"g\", \"sol1\": \"a\", \"label\": 0}\n");
    fs::write(place.path("bad.jsonl"), text).unwrap();
    fs::write(place.path("x.arrow"), "ARROW1").unwrap();
    fs::copy(place.path("tasks/piqa.train.jsonl"), place.path("tasks/piqa.validation.2.jsonl")).unwrap();
    for (arguments, says) in [
        ("--tasks piqa,copa --data tasks", "there is no such task; there are piqa, arc_easy"),
        ("--tasks piqa,piqa --data tasks", "piqa is named twice"),
        ("--tasks piqa --data nowhere", "nowhere: no such file or directory"),
        ("--tasks hellaswag --data tasks", "no file of --data has the questions of hellaswag"),
        ("--tasks piqa --data tasks", "several files of --data may have the questions of piqa"),
        ("--tasks piqa --data bad.jsonl", "bad.jsonl, line 6: the field \"sol2\" is missing"),
        ("--tasks piqa,arc_easy --data tasks/ --data bad.jsonl", "belongs to none of the tasks"),
        ("--tasks piqa --data piqa=tasks/ARC-Easy.test.jsonl", "it is a document of arc_easy"),
        ("--tasks arc_easy --data tasks --limit 0", "a whole number from 1 on"),
        ("--tasks mmlu_anatomy,mmlu_stem --data tasks", "mmlu_anatomy is named twice"),
        ("--tasks mmlu_virology --data tasks", "it has no documents of mmlu_virology"),
        ("--tasks arc_easy --data tasks --fewshot 1", "no file of --data has the examples of arc_easy"),
        ("--tasks piqa --data piqa=x.arrow", "x.arrow: it cannot be read as Arrow"),
        (
            "--tasks lambada --data tasks --fewshot 6",
            "6 examples for lambada_openai take 6 documents, and it has 5",
        ),
        ("--tasks piqa --data tasks --fewshot-as-multiturn false", "required arguments were not provided"),
    ] {
        place.run(&format!("eval tasks model {arguments}")).failure(2, says);
    }
}
