//! Questions of our own beside what lm-evaluation-harness 0.4.13 makes of them (`questions/lm_eval.json`, by
//! `scripts/make_task_vectors.py`).

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use qqq_backend::CpuBackend;
use qqq_eval::tasks::{Documents, Encoded, Scorer, TASKS, Task};
use qqq_formats::Checkpoint;
use qqq_model::{Decoder, Tokenizer};
use qqq_testing::{Suite, tests};
use serde_json::Value;

fn main() -> ExitCode {
    Suite::new()
        .tests(tests![texts_are_those_of_the_harness])
        .with(qqq_testing::smollm2, tests![tokens_and_answers_are_those_of_the_harness])
        .run()
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/questions").join(name)
}

fn vectors() -> Value {
    serde_json::from_str(&std::fs::read_to_string(path("lm_eval.json")).unwrap()).unwrap()
}

fn documents(task: &'static Task) -> Documents {
    let path = path(&format!("{}.jsonl", task.name));
    Documents::parse(task, &path, &std::fs::read_to_string(&path).unwrap(), usize::MAX).unwrap()
}

/// The requests of a task's document in the vectors.
fn wanted<'v>(vectors: &'v Value, task: &Task, document: usize) -> &'v [Value] {
    vectors[task.name][document]["requests"].as_array().unwrap()
}

fn texts_are_those_of_the_harness() {
    let vectors = vectors();
    for task in &TASKS {
        let found = documents(task).documents;
        assert_eq!(found.len(), vectors[task.name].as_array().unwrap().len(), "{}", task.name);
        for (i, document) in found.iter().enumerate() {
            let wanted = wanted(&vectors, task, i);
            assert_eq!(document.requests.len(), wanted.len());
            for (request, wanted) in document.requests.iter().zip(wanted) {
                assert_eq!(request.context, wanted["context"], "{}, {i}", task.name);
                assert_eq!(request.continuation, wanted["continuation"], "{}, {i}", task.name);
            }
        }
    }
}

fn tokens_and_answers_are_those_of_the_harness(model: PathBuf) {
    let vectors = vectors();
    let checkpoint = Checkpoint::open(&model).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let decoder = Decoder::load(CpuBackend::default(), &checkpoint).unwrap();
    let mut scorer = Scorer::new(&decoder).unwrap();
    for task in &TASKS {
        let encoded = Encoded::new(documents(task), &tokenizer, &checkpoint.config).unwrap();
        let found = scorer.score(&encoded, &mut |_, _| true).unwrap();
        for (i, (example, requests)) in found.examples.iter().zip(&encoded.requests).enumerate() {
            let wanted = wanted(&vectors, task, i);
            for ((request, got), wanted) in requests.iter().zip(&example.loglikelihoods).zip(wanted) {
                assert_eq!(serde_json::json!(request.tokens), wanted["tokens"], "{}, {i}", task.name);
                assert_eq!(request.scored as u64, wanted["scored"], "{}, {i}", task.name);
                // The harness had the weights in float16, each rounded once.
                let want = wanted["loglikelihood"].as_f64().unwrap();
                assert!(
                    (got - want).abs() < 2e-2 + 1e-3 * want.abs(),
                    "{}, {i}: {got}, not {want}",
                    task.name
                );
            }
            let right = |choice: usize| f64::from(u8::from(choice == example.target));
            let metrics = &vectors[task.name][i];
            assert_eq!(metrics["acc"], right(example.choice), "{}, {i}", task.name);
            match example.choice_norm {
                Some(choice) => assert_eq!(metrics["acc_norm"], right(choice), "{}, {i}", task.name),
                None => assert!(metrics.get("acc_norm").is_none()),
            }
        }
    }
}
