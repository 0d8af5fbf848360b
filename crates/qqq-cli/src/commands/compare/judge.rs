//! What was measured, with what is known of the differences between the models.

use std::path::PathBuf;

use qqq_eval::{
    Estimate,
    significance::{PairedAnswers, holm, mean_of, of_large_mean, of_perplexities},
};
use serde::Serialize;
use serde_json::Value;

use super::{
    CompareArgs,
    columns::Column,
    measure::{Answers, Found, OnTask, OnText, Row, Sources},
    subject::Simulated,
};
use crate::commands::{
    bench::Speed,
    eval::{HashedFile, Protocol},
    inspect::Size,
};

/// Below it a difference is called significant.
pub const LEVEL: f64 = 0.05;

/// The result of the command.
#[derive(Serialize)]
pub struct Outcome<'a> {
    pub version: &'static str,
    pub baseline: String,
    pub device: String,
    pub texts: Vec<TextFile>,
    /// How texts are cut.
    cut: Value,
    pub tasks: Vec<TaskOf>,
    /// How their questions were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<Protocol<'a>>,
    significance: Significance,
    /// The baseline first.
    pub models: Vec<Judged>,
    /// Whether it was stopped before all was measured.
    pub partial: bool,
    /// Models that were to be measured.
    pub planned_models: usize,
}

#[derive(Serialize)]
pub struct TextFile {
    path: PathBuf,
    sha256: String,
}

impl TextFile {
    /// Without its folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).display().to_string()
    }
}

/// A task, or a group of them.
#[derive(Serialize)]
pub struct TaskOf {
    pub task: &'static str,
    files: Vec<HashedFile>,
}

#[derive(Serialize)]
struct Significance {
    level: f64,
    correction: &'static str,
    perplexity: &'static str,
    tasks: &'static str,
    average: &'static str,
}

/// Of a difference from the baseline.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Difference {
    /// Probability of one at least as large by chance.
    p_value: f64,
    /// Adjusted for the models of its column.
    p_adjusted: f64,
}

impl Difference {
    /// Whether it is more than chance.
    pub fn is_significant(&self) -> bool {
        self.p_adjusted < LEVEL
    }
}

/// A figure with what is known of its difference from the baseline's.
#[derive(Serialize)]
pub struct Compared<T> {
    #[serde(flatten)]
    pub found: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
}

/// A model.
#[derive(Serialize)]
pub struct Judged {
    pub name: String,
    model: String,
    #[serde(flatten)]
    pub size: Size,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simulated: Option<Simulated>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// By text.
    pub on_texts: Vec<Compared<Found<OnText>>>,
    /// By task.
    pub on_tasks: Vec<Compared<Found<OnTask>>>,
    /// Mean of the tasks' accuracies, where all were scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average: Option<Compared<Estimate>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
}

impl<'a> Outcome<'a> {
    /// Judges what was measured; the first row is the baseline's.
    pub fn new(
        sources: &Sources,
        args: &'a CompareArgs,
        device: String,
        mut rows: Vec<Row>,
        (partial, planned_models): (bool, usize),
    ) -> Self {
        let columns = Column::all(&sources.tasks);
        for row in &mut rows {
            row.tasks = columns.iter().map_while(|column| column.of(&row.tasks)).collect();
        }
        let texts =
            (0..sources.texts.len()).map(|i| adjusted(&rows, |row, _| text_probability(row.texts.get(i)?)));
        let texts: Vec<_> = texts.collect();
        let tasks = (0..columns.len()).map(|i| {
            adjusted(&rows, |row, baseline| {
                Some(paired(row.tasks.get(i)?, baseline.tasks.get(i)?)?.probability())
            })
        });
        let tasks: Vec<_> = tasks.collect();
        let count = columns.len();
        let averages = adjusted(&rows, |row, baseline| {
            let pairs = row.tasks.iter().zip(&baseline.tasks).map(|(own, other)| paired(own, other));
            let pairs = pairs.collect::<Option<Vec<_>>>().filter(|pairs| pairs.len() == count)?;
            of_large_mean(mean_of(&pairs.iter().map(|pair| pair.difference).collect::<Vec<_>>())?)
        });
        let judged = |(index, row): (usize, Row)| {
            let means: Vec<Estimate> =
                row.tasks.iter().filter_map(|found| complete(found)).map(|answers| answers.on.acc).collect();
            let average = mean_of(&means).filter(|_| means.len() == count);
            let on_texts = row.texts.into_iter().enumerate();
            let on_tasks = row.tasks.into_iter().enumerate();
            Judged {
                name: row.subject.named.name,
                model: row.subject.named.spec,
                size: row.subject.size,
                simulated: row.subject.simulated,
                memory: row.memory,
                on_texts: on_texts
                    .map(|(i, found)| Compared { found, difference: texts[i][index] })
                    .collect(),
                on_tasks: on_tasks
                    .map(|(i, found)| Compared { found: without_answers(found), difference: tasks[i][index] })
                    .collect(),
                average: average.map(|found| Compared { found, difference: averages[index] }),
                speed: row.speed,
            }
        };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            baseline: rows[0].subject.named.name.clone(),
            device,
            texts: sources.texts.iter().cloned().map(|(path, sha256)| TextFile { path, sha256 }).collect(),
            cut: args.cut.key(),
            tasks: columns
                .into_iter()
                .map(|Column { name, files, .. }| TaskOf { task: name, files })
                .collect(),
            asked: (!sources.tasks.is_empty()).then(|| args.questions.protocol(args.limit_tasks)),
            significance: Significance {
                level: LEVEL,
                correction: "Holm, over the models of a column",
                perplexity: "Student's t test of the windows' mean negative log-likelihoods, paired by window",
                tasks: "McNemar's exact test, paired by question",
                average: "normal test of the mean of the tasks' differences, paired by question",
            },
            models: rows.into_iter().enumerate().map(judged).collect(),
            partial,
            planned_models,
        }
    }
}

/// Differences from the baseline in one column, the models in their order.
fn adjusted(rows: &[Row], probability: impl Fn(&Row, &Row) -> Option<f64>) -> Vec<Option<Difference>> {
    let own = |(index, row): (usize, &Row)| (index > 0).then(|| probability(row, &rows[0])).flatten();
    let probabilities: Vec<Option<f64>> = rows.iter().enumerate().map(own).collect();
    let pairs = probabilities.iter().zip(holm(&probabilities));
    pairs.map(|(p, adjusted)| Some(Difference { p_value: (*p)?, p_adjusted: adjusted? })).collect()
}

fn text_probability(found: &Found<OnText>) -> Option<f64> {
    let on = found.measured().filter(|on| !on.partial)?;
    of_perplexities(on.perplexity_ratio?, on.windows)
}

/// Answers to all questions.
fn complete(found: &Found<Answers>) -> Option<&Answers> {
    found.measured().filter(|answers| !answers.on.partial)
}

fn paired(own: &Found<Answers>, baseline: &Found<Answers>) -> Option<PairedAnswers> {
    Some(PairedAnswers::new(complete(baseline)?.right(), complete(own)?.right()))
}

fn without_answers(found: Found<Answers>) -> Found<OnTask> {
    match found {
        Found::NotFinite { not_finite } => Found::NotFinite { not_finite },
        Found::Measured(answers) => Found::Measured(answers.on),
    }
}
