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
    for (name, to) in [
        ("piqa", "piqa.validation.jsonl"),
        ("piqa", "piqa.train.jsonl"),
        ("arc_easy", "ARC-Easy.test.jsonl"),
        ("winogrande", "winogrande_xl.validation.jsonl"),
    ] {
        fs::copy(from.join(name).with_extension("jsonl"), place.path("tasks").join(to)).unwrap();
    }
    place
}

#[test]
fn a_folder_gives_each_task_its_file() {
    let place = questions();
    let command = "eval tasks model --tasks piqa,arc_easy,winogrande --data tasks --samples out.jsonl";
    let run = place.run(&format!("{command} --json")).success().json();
    let tasks = run["tasks"].as_array().unwrap();
    let files: Vec<&str> = tasks.iter().map(|task| task["file"].as_str().unwrap()).collect();
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
        let right = own.iter().filter(|sample| sample["choice"] == sample["target"]).count();
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
fn refusals() {
    let place = questions();
    let mut text = fs::read_to_string(place.path("tasks/piqa.train.jsonl")).unwrap();
    text.push_str("{\"goal\": \"g\", \"sol1\": \"a\", \"label\": 0}\n");
    fs::write(place.path("bad.jsonl"), text).unwrap();
    fs::copy(place.path("tasks/piqa.train.jsonl"), place.path("tasks/piqa.validation.2.jsonl")).unwrap();
    for (arguments, says) in [
        ("--tasks piqa,copa --data tasks", "there is no such task; there are piqa, arc_easy"),
        ("--tasks piqa,piqa --data tasks", "piqa is named twice"),
        ("--tasks piqa --data nowhere", "nowhere: no such file or directory"),
        ("--tasks hellaswag --data tasks", "no file of --data has the questions of hellaswag"),
        ("--tasks piqa --data tasks", "several files of --data may have the questions of piqa"),
        ("--tasks piqa --data bad.jsonl", "bad.jsonl, line 4: the field \"sol2\" is missing"),
        ("--tasks piqa,arc_easy --data tasks/ --data bad.jsonl", "belongs to none of the tasks"),
        ("--tasks piqa --data piqa=tasks/ARC-Easy.test.jsonl", "it is a document of arc_easy"),
        ("--tasks arc_easy --data tasks --limit 0", "a whole number from 1 on"),
    ] {
        place.run(&format!("eval tasks model {arguments}")).failure(2, says);
    }
}
