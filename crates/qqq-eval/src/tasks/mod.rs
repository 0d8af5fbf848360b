//! Questions with several answers, of which a model finds one likeliest, and texts whose last word it should find, as
//! lm-evaluation-harness 0.4.13 asks and counts (Gao et al., doi 10.5281/zenodo.12608602), for the tasks that quantized models
//! are commonly judged by.
//!
//! ```no_run
//! use qqq_backend::CpuBackend;
//! use qqq_eval::tasks::{Documents, Encoded, Scorer, Task};
//! use qqq_formats::Checkpoint;
//! use qqq_model::{Decoder, Tokenizer};
//!
//! let checkpoint = Checkpoint::open("SmolLM2-135M".as_ref())?;
//! let tokenizer = Tokenizer::load(&checkpoint)?;
//! let decoder = Decoder::load(CpuBackend::new(), &checkpoint)?;
//! let task = Task::named("piqa").expect("it is one of TASKS");
//! let path = "piqa.validation.jsonl";
//! let documents = Documents::parse(task, path.as_ref(), &std::fs::read_to_string(path)?, 100)?;
//! let encoded = Encoded::new(documents, &tokenizer, &decoder.config)?;
//! let found = Scorer::new(&decoder)?.score(&encoded, &mut |_, _| true)?;
//! println!("{:.3} of {}", found.report.acc.mean, found.report.documents);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bootstrap;
mod definitions;
mod documents;
mod groups;
mod mmlu;
mod prompts;
mod python_random;
mod requests;
mod walk;

use std::time::Instant;

use qqq_backend::Backend;
use qqq_formats::ModelConfig;
use qqq_model::{
    Decoder, Tokenizer,
    scores::{WindowSum, estimate},
};
use serde::Serialize;

pub use self::{
    definitions::{DataSet, Metric, ShotChoice, Shots, TASKS, Task},
    documents::{Document, Documents, Records, TextRequest},
    groups::{GROUPS, Group, GroupReport, pooled},
    prompts::Prompt,
    requests::Request,
    walk::Work,
};
use crate::{Estimate, EvalError, Progress, Result, forward::where_not_finite};

/// Documents as a model sees them.
#[derive(Debug)]
pub struct Encoded {
    /// The documents.
    pub documents: Documents,
    /// Of each document, a request for each choice.
    pub requests: Vec<Vec<Request>>,
}

impl Encoded {
    /// With a model's tokenizer, for its context.
    ///
    /// # Errors
    /// A text that cannot be encoded, or an answer longer than the model's context.
    pub fn new(documents: Documents, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Self> {
        let requests = requests::encode(&documents, tokenizer, config.max_position_embeddings)?;
        for (document, requests) in documents.documents.iter().zip(&requests) {
            let mut tokens = requests.iter().flat_map(|request| &request.tokens);
            if let Some(token) = tokens.find(|&&token| token as usize >= config.vocab_size) {
                return Err(EvalError::Mismatch(format!(
                    "{}, line {}: token {token} is outside the model's vocabulary of {}",
                    documents.path_of(document).display(),
                    document.line,
                    config.vocab_size
                )));
            }
        }
        Ok(Self { documents, requests })
    }

    /// Tokens of all requests.
    pub fn tokens(&self) -> usize {
        self.requests.iter().flatten().map(|request| request.tokens.len()).sum()
    }
}

/// What a model answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// Line or row of the document in its file.
    pub line: usize,
    /// Log-likelihood of each choice, in nats.
    pub loglikelihoods: Vec<f64>,
    /// Whether it counts for accuracy.
    pub right: bool,
    /// Index of the right choice.
    pub target: usize,
    /// The likeliest choice, the first among equals; without choices there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<usize>,
    /// The likeliest one for each of its characters, where the task asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice_norm: Option<usize>,
}

/// How well a model does a task. Standard errors are those of the mean over documents.
#[derive(Clone, Debug, Serialize)]
pub struct TaskReport {
    /// Name of the task.
    pub task: &'static str,
    /// The group that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<&'static str>,
    /// Examples before each question.
    pub fewshot: usize,
    /// Share of documents whose likeliest choice is right, or each of whose answer's tokens is the likeliest.
    pub acc: Estimate,
    /// The same by log-likelihood for each character of a choice, where the task asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<Estimate>,
    /// exp of the mean negative log-likelihood of an answer, where the task asks for it; its standard error is the harness's,
    /// from the same 100 000 draws of documents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Estimate>,
    /// Documents that were scored.
    pub documents: usize,
    /// Documents that were to be scored: more where `progress` stopped it.
    pub planned_documents: usize,
    /// Whether it was stopped: the figures are those of the first documents only.
    pub partial: bool,
    /// What was computed for them.
    pub work: Work,
    /// Seconds that it took.
    pub seconds: f64,
}

/// A report with the examples that it counts.
#[derive(Clone, Debug)]
pub struct Scored {
    /// Their summary.
    pub report: TaskReport,
    /// In the order of the documents.
    pub examples: Vec<Example>,
}

/// Answers tasks with one model.
pub struct Scorer<'d, B: Backend> {
    decoder: &'d Decoder<B>,
    walker: walk::Walker<'d, B>,
}

impl<'d, B: Backend> Scorer<'d, B> {
    /// With the memory that steps take.
    ///
    /// # Errors
    /// The backend has not the memory.
    pub fn new(decoder: &'d Decoder<B>) -> Result<Self> {
        Ok(Self { decoder, walker: walk::Walker::new(decoder)? })
    }

    /// Scores a task. `progress` is told how many tokens of its requests are done, and how many there are; documents come in
    /// their order, so that what was stopped has scored the first ones.
    ///
    /// # Errors
    /// Those of the backend, logits that are not finite, or `progress` returned `false` before anything was scored.
    pub fn score(&mut self, encoded: &Encoded, progress: &mut Progress<'_>) -> Result<Scored> {
        let start = Instant::now();
        let Documents { task, documents, .. } = &encoded.documents;
        let total = encoded.tokens();
        if !progress(0, total) {
            return Err(EvalError::Interrupted);
        }
        let greedy = task.counts(Metric::AccGreedy);
        let (found, work) =
            self.walker.run(&encoded.requests, greedy, &mut |_, tokens| progress(tokens, total))?;
        let mut examples = Vec::with_capacity(found.len());
        for ((document, requests), found) in documents.iter().zip(&encoded.requests).zip(found) {
            let loglikelihoods: Vec<f64> = found.iter().map(|found| found.loglikelihood).collect();
            if let Some(bad) = loglikelihoods.iter().position(|found| !found.is_finite()) {
                let request = &requests[bad];
                let place = where_not_finite(self.decoder, request.input(), request.first_row())?;
                return Err(EvalError::NotFiniteAnswer { task: task.name, line: document.line, place });
            }
            let of_length = || loglikelihoods.iter().zip(&document.lengths).map(|(l, n)| l / *n as f64);
            let choice = (!greedy).then(|| first_largest(loglikelihoods.iter().copied()));
            examples.push(Example {
                line: document.line,
                right: choice.map_or(found[0].greedy, |choice| choice == document.target),
                target: document.target,
                choice,
                choice_norm: task.counts(Metric::AccNorm).then(|| first_largest(of_length())),
                loglikelihoods,
            });
        }
        let seconds = start.elapsed().as_secs_f64();
        let mean = |value: &dyn Fn(&Example) -> f64| {
            let sum = |e| WindowSum { sum: value(e), tokens: 1 };
            estimate(&examples.iter().map(sum).collect::<Vec<_>>())
        };
        let share = |right: &dyn Fn(&Example) -> bool| mean(&|e| f64::from(u8::from(right(e))));
        let answers = || examples.iter().map(|e| e.loglikelihoods[0]).collect::<Vec<_>>();
        let report = TaskReport {
            task: task.name,
            group: task.group,
            fewshot: encoded.documents.shots,
            acc: share(&|e| e.right),
            acc_norm: task.counts(Metric::AccNorm).then(|| share(&|e| e.choice_norm == Some(e.target))),
            perplexity: task.counts(Metric::Perplexity).then(|| bootstrap::perplexity(&answers())),
            documents: examples.len(),
            planned_documents: documents.len(),
            partial: examples.len() < documents.len(),
            work,
            seconds,
        };
        Ok(Scored { report, examples })
    }
}

/// Index of the largest value, the first among equals.
fn first_largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}
