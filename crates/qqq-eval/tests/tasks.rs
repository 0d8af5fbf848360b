//! Questions of our own beside what lm-evaluation-harness 0.4.13 makes of them (`questions/lm_eval.json`, by
//! `scripts/make_task_vectors.py`).

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use qqq_backend::CpuBackend;
use qqq_eval::{
    Estimate,
    tasks::{Documents, Encoded, Group, Prompt, Records, Scorer, Task, TaskReport},
};
use qqq_formats::Checkpoint;
use qqq_model::{ChatTemplate, Decoder, Tokenizer};
use qqq_testing::{Suite, tests};
use serde_json::{Value, json};

fn main() -> ExitCode {
    Suite::new()
        .tests(tests![texts_are_those_of_the_harness, what_comes_before_is_computed_once])
        .with(qqq_testing::smollm2, tests![tokens_and_answers_are_those_of_the_harness])
        .run()
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/questions").join(name)
}

/// What the harness was asked, and what it found.
fn runs() -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(path("lm_eval.json")).unwrap()).unwrap()
}

fn records(name: &str) -> Records {
    Records::read(vec![path(&format!("{name}.jsonl"))]).unwrap()
}

/// The documents of a run's task, with its examples.
fn documents(run: &Value, task: &'static Task) -> Documents {
    let (questions, examples) = match (task.subject, task.name) {
        (Some(_), _) => ("mmlu.test".to_owned(), "mmlu.dev".to_owned()),
        (None, "lambada_openai") => ("lambada".to_owned(), "lambada".to_owned()),
        (None, name) => (name.to_owned(), format!("{name}.train")),
    };
    let bare = Documents::new(task, &records(&questions), usize::MAX).unwrap();
    match run["fewshot"].as_u64().unwrap() {
        0 => bare,
        shots => bare.with_shots(shots as usize, &records(&examples)).unwrap(),
    }
}

fn tasks(run: &Value) -> impl Iterator<Item = (&'static Task, &Vec<Value>)> {
    let tasks = run["tasks"].as_object().unwrap().iter();
    tasks.map(|(name, documents)| (Task::named(name).unwrap(), documents.as_array().unwrap()))
}

fn prompt<'r>(run: &'r Value, chat: Option<&'r ChatTemplate>) -> Prompt<'r> {
    Prompt {
        system: run["system_instruction"].as_str(),
        chat: chat.filter(|_| run["chat_template"] == true),
        multiturn: run["multiturn"] == true,
    }
}

fn check_texts(run: &Value, prompt: &Prompt<'_>) {
    for (task, wanted) in tasks(run) {
        let found = documents(run, task).prompted(prompt).unwrap();
        assert!(!found.without_system);
        assert_eq!(found.documents.len(), wanted.len(), "{}", task.name);
        for (i, (document, wanted)) in found.documents.iter().zip(wanted).enumerate() {
            let texts: Vec<Value> = document
                .requests
                .iter()
                .map(|request| json!([&*request.context, request.continuation]))
                .collect();
            let wanted = wanted["requests"].as_array().unwrap();
            let wanted: Vec<Value> =
                wanted.iter().map(|w| json!([w["context"], w["continuation"]])).collect();
            assert_eq!(texts, wanted, "{}, {}, {i}", run["title"], task.name);
        }
    }
}

fn texts_are_those_of_the_harness() {
    for run in runs().iter().filter(|run| run["chat_template"] == false) {
        check_texts(run, &prompt(run, None));
    }
}

fn tokens_and_answers_are_those_of_the_harness(model: PathBuf) {
    let checkpoint = Checkpoint::open(&model).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let template = ChatTemplate::load(&checkpoint, &tokenizer).unwrap();
    let decoder = Decoder::load(CpuBackend::default(), &checkpoint).unwrap();
    let mut scorer = Scorer::new(&decoder).unwrap();
    for run in &runs() {
        let prompt = prompt(run, template.as_ref());
        check_texts(run, &prompt);
        let mut reports = Vec::new();
        for (task, wanted) in tasks(run) {
            let documents = documents(run, task).prompted(&prompt).unwrap();
            let encoded = Encoded::new(documents, &tokenizer, &checkpoint.config).unwrap();
            for (i, (requests, wanted)) in encoded.requests.iter().zip(wanted).enumerate() {
                for (request, wanted) in requests.iter().zip(wanted["requests"].as_array().unwrap()) {
                    let found = json!([request.tokens, request.scored]);
                    assert_eq!(found, json!([wanted["tokens"], wanted["scored"]]), "{}, {i}", task.name);
                }
            }
            // What a model makes of tokens is seen without examples; with them, of each form once.
            let one_a_form = ["winogrande", "lambada_openai", "mmlu_anatomy"].contains(&task.name);
            if run["title"] == "zero-shot" || (run["title"] == "few-shot turns" && one_a_form) {
                reports.push(check_answers(&mut scorer, &encoded, wanted, &run["perplexity"]));
            }
        }
        if run["title"] == "zero-shot" {
            check_group(&reports, &run["mmlu"]);
        }
    }
}

fn check_answers(
    scorer: &mut Scorer<'_, CpuBackend>,
    encoded: &Encoded,
    wanted: &[Value],
    perplexities: &Value,
) -> TaskReport {
    let found = scorer.score(encoded, &mut |_, _| true).unwrap();
    let name = found.report.task;
    for (i, (example, metrics)) in found.examples.iter().zip(wanted).enumerate() {
        for (got, wanted) in example.loglikelihoods.iter().zip(metrics["requests"].as_array().unwrap()) {
            // The harness had the weights in float16, each rounded once.
            let want = wanted["loglikelihood"].as_f64().unwrap();
            assert!((got - want).abs() < 2e-2 + 1e-3 * want.abs(), "{name}, {i}: {got}, not {want}");
        }
        let counts = |right: bool| f64::from(u8::from(right));
        assert_eq!(metrics["acc"].as_f64(), Some(counts(example.right)), "{name}, {i}");
        let norm = example.choice_norm.map(|choice| counts(choice == example.target));
        assert_eq!(metrics.get("acc_norm").and_then(Value::as_f64), norm, "{name}, {i}");
    }
    let perplexity = found.report.perplexity.map(|e| [e.mean, e.standard_error.unwrap()]);
    assert_eq!(perplexity.is_some(), perplexities.get(name).is_some());
    for (got, want) in perplexity.iter().flatten().zip(perplexities[name].as_array().into_iter().flatten()) {
        // As the log-likelihoods: exp of what is 2e-2 off.
        let want = want.as_f64().unwrap();
        assert!((got / want - 1.0).abs() < 3e-2, "{name}: perplexity {got}, not {want}");
    }
    found.report
}

/// The harness's figure for its two subjects is what ours is for a group of these.
fn check_group(reports: &[TaskReport], wanted: &Value) {
    assert!(Group::named("mmlu").unwrap().report(reports).is_none(), "55 subjects are missing");
    let subjects: Vec<(Estimate, usize)> = reports
        .iter()
        .filter(|report| report.group.is_some())
        .map(|report| (report.acc, report.documents))
        .collect();
    let found = qqq_eval::tasks::pooled(&subjects);
    let wanted = [&wanted["mean"], &wanted["standard_error"]].map(|v| v.as_f64().unwrap());
    assert!((found.mean - wanted[0]).abs() < 1e-12, "{found:?}, not {wanted:?}");
    assert!((found.standard_error.unwrap() - wanted[1]).abs() < 1e-12, "{found:?}, not {wanted:?}");
}

fn what_comes_before_is_computed_once() {
    let tiny = qqq_testing::TinyModel::new();
    let checkpoint = Checkpoint::open(&tiny.model()).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let decoder = Decoder::load(CpuBackend::default(), &checkpoint).unwrap();
    let task = Task::named("mmlu_anatomy").unwrap();
    // Questions of a few words behind an example of hundreds.
    let row = |question: &str, answer: usize| {
        let row = json!({
            "question": question, "subject": "anatomy", "choices": ["w1", "w2", "w3", "w4"], "answer": answer,
        });
        format!("{row}\n")
    };
    let of_text = |text: &str| Records::of_text("rows.jsonl".as_ref(), text).unwrap();
    let questions: String = (0..24).map(|i| row(&format!("w{i} w{}", i * 7 % 24), i % 4)).collect();
    let long = "w5 w9 w3 ".repeat(100);
    let bare = Documents::new(task, &of_text(&questions), usize::MAX).unwrap();
    let asked = bare.with_shots(1, &of_text(&row(&long, 2))).unwrap();
    let encoded = Encoded::new(asked, &tokenizer, &checkpoint.config).unwrap();
    let mut scorer = Scorer::new(&decoder).unwrap();
    let together = scorer.score(&encoded, &mut |_, _| true).unwrap();
    // One after the other, each with pages of its own.
    let mut rows = 0;
    for (i, document) in encoded.requests.iter().enumerate() {
        let mut alone = encoded.documents.clone();
        alone.documents = vec![alone.documents[i].clone()];
        let one = Encoded { documents: alone, requests: vec![document.clone()] };
        let one = Scorer::new(&decoder).unwrap().score(&one, &mut |_, _| true).unwrap();
        rows += one.report.work.rows;
        let pairs = one.examples[0].loglikelihoods.iter().zip(&together.examples[i].loglikelihoods);
        for (alone, shared) in pairs {
            assert!((alone - shared).abs() < 1e-3 * alone.abs(), "{i}: {alone}, {shared}");
        }
    }
    // Of what is before the questions, the last page is each walk's own.
    assert!(together.report.work.rows * 3 < rows, "{} of {rows}", together.report.work.rows);
}
