//! Measuring the models of a comparison, one after the other, each loaded once.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use qqq_eval::{
    Estimate, EvalError, KldReport, PerplexityReport, kl_divergence, perplexity,
    tasks::{Documents, Scored, Scorer, TaskReport},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    CompareArgs,
    kept::Kept,
    subject::{self, Named, Subject},
};
use crate::{
    commands::{
        bench::{self, Speed},
        eval::{TaskFile, check_tokens, score_all, scored},
    },
    console::Console,
    device::Place,
    errors::{Interrupted, bad_input, bad_input_hint},
    files, format,
    interrupt::Guard,
    model::{self, LoadedModel},
    progress::Progress,
};

/// What is measured on, read before a model is loaded: files are wrong more often.
pub struct Sources {
    /// Texts, with their SHA-256.
    pub texts: Vec<(PathBuf, String)>,
    /// Questions of the tasks, with their files.
    pub tasks: Vec<TaskFile>,
}

impl Sources {
    /// Reads them.
    ///
    /// # Errors
    /// A file that is not there, or not what it should be.
    pub fn read(args: &CompareArgs, console: &Console) -> anyhow::Result<Self> {
        let mut texts = Vec::new();
        for path in &args.texts {
            if !path.is_file() {
                let problem =
                    if path.exists() { "is read several times, and is no file" } else { "no such file" };
                return Err(bad_input(format!("--text {}: {problem}", path.display())));
            }
            let sha256 = files::sha256(path)?;
            console.read_input(path, &sha256);
            texts.push((path.clone(), sha256));
        }
        let tasks = match args.questions.are_asked_for() {
            true => args.questions.read(args.limit_tasks, &args.hub)?,
            false => Vec::new(),
        };
        for file in tasks.iter().flat_map(|task| &task.files) {
            file.tell(console);
        }
        Ok(Self { texts, tasks })
    }
}

/// What a model does on a text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OnText {
    pub perplexity: Estimate,
    /// From the baseline, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_divergence: Option<Estimate>,
    /// Share of tokens whose likeliest successor is the baseline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<Estimate>,
    /// To the baseline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity_ratio: Option<Estimate>,
    pub windows: usize,
    pub tokens: usize,
    pub partial: bool,
    pub seconds: f64,
}

impl From<PerplexityReport> for OnText {
    fn from(r: PerplexityReport) -> Self {
        Self {
            perplexity: Estimate { mean: r.perplexity, standard_error: r.standard_error },
            kl_divergence: None,
            top1_agreement: None,
            perplexity_ratio: None,
            windows: r.windows,
            tokens: r.tokens,
            partial: r.partial,
            seconds: r.seconds,
        }
    }
}

impl From<KldReport> for OnText {
    fn from(r: KldReport) -> Self {
        Self {
            perplexity: Estimate { mean: r.perplexity, standard_error: r.perplexity_error },
            kl_divergence: Some(r.kl_divergence),
            top1_agreement: Some(r.top1_agreement),
            perplexity_ratio: Some(r.perplexity_ratio),
            windows: r.windows,
            tokens: r.tokens,
            partial: r.partial,
            seconds: r.seconds,
        }
    }
}

/// What a model does in a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OnTask {
    pub acc: Estimate,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<Estimate>,
    pub documents: usize,
    pub partial: bool,
    pub seconds: f64,
}

/// The same with each answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answers {
    #[serde(flatten)]
    pub on: OnTask,
    /// Of each question whether it was answered rightly: 1, or 0.
    pub right: String,
}

impl Answers {
    fn of(scored: &Scored) -> Self {
        let TaskReport { acc, acc_norm, documents, partial, seconds, .. } = scored.report;
        let right = scored.examples.iter().map(|e| if e.right { '1' } else { '0' }).collect();
        Self { on: OnTask { acc, acc_norm, documents, partial, seconds }, right }
    }

    /// Of each question whether it was answered rightly.
    pub fn right(&self) -> impl Iterator<Item = bool> {
        self.right.bytes().map(|b| b == b'1')
    }
}

/// A measurement, or why a broken model has none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Found<T> {
    NotFinite { not_finite: String },
    Measured(T),
}

impl<T> Found<T> {
    /// Where there is one.
    pub fn measured(&self) -> Option<&T> {
        match self {
            Self::NotFinite { .. } => None,
            Self::Measured(found) => Some(found),
        }
    }
}

/// What was measured of a model; lists are shorter than what was asked for where it was interrupted.
pub struct Row {
    pub subject: Subject,
    /// By text.
    pub texts: Vec<Found<OnText>>,
    /// By task.
    pub tasks: Vec<Found<Answers>>,
    /// Of what it is simulated for, none.
    pub speed: Option<Speed>,
    /// Bytes of its weights where they are computed with.
    pub memory: Option<u64>,
}

/// A comparison under way.
pub struct Session<'a, P: Place> {
    args: &'a CompareArgs,
    sources: &'a Sources,
    place: &'a P,
    console: &'a Console,
    subjects: Vec<Subject>,
    device: String,
    guard: Guard,
}

/// A model that is loaded when something of it is not kept, and the baseline when it is compared.
struct Models<'m, P: Place> {
    baseline: &'m mut Option<LoadedModel<P::Backend>>,
    /// Another than the baseline.
    own: Option<LoadedModel<P::Backend>>,
    memory: Option<u64>,
}

impl<'a, P: Place> Session<'a, P> {
    /// Opens all models.
    ///
    /// # Errors
    /// One of them cannot be read, or what is to be measured does not fit it.
    pub fn new(
        args: &'a CompareArgs,
        sources: &'a Sources,
        models: &[Named],
        place: &'a P,
        console: &'a Console,
    ) -> anyhow::Result<Self> {
        let open = |named: &Named| Subject::open(named, &args.hub);
        let mut subjects: Vec<Subject> = Vec::new();
        for subject in models.iter().map(open) {
            let subject = subject?;
            // The same files under another path would count twice in the tests.
            match subjects.iter().find(|other| other.is_same(&subject)) {
                Some(other) => console
                    .note(&format!("{} is {} once more: left out", subject.named.spec, other.named.spec)),
                None => subjects.push(subject),
            }
        }
        for subject in &subjects {
            if let Some(load) = args.load() {
                load.check(&subject.checkpoint.config)?;
            }
        }
        Ok(Self { args, sources, place, console, subjects, device: place.identity()?, guard: Guard::new() })
    }

    /// Measures all, until Ctrl-C. Gives the models in their order, and whether it was stopped.
    ///
    /// # Errors
    /// Those of loading and measuring, and being stopped before anything was measured.
    pub fn measure(mut self) -> anyhow::Result<(Vec<Row>, bool)> {
        let subjects = std::mem::take(&mut self.subjects);
        let (count, baseline_prints) = (subjects.len(), subjects[0].prints.clone());
        let baseline_name = subjects[0].named.clone();
        let mut baseline = None;
        let mut rows = Vec::new();
        let mut times = Vec::new();
        for (index, subject) in subjects.into_iter().enumerate() {
            let begun = Instant::now();
            let mut row = Row { subject, texts: Vec::new(), tasks: Vec::new(), speed: None, memory: None };
            let mut models = Models { baseline: &mut baseline, own: None, memory: None };
            let title = format!("{} of {count}, {}", index + 1, row.subject.named.name);
            let of = Of {
                is_baseline: index == 0,
                title,
                baseline: &baseline_name,
                baseline_prints: &baseline_prints,
            };
            let done = self.measure_one(&mut row, &of, &mut models);
            let was_loaded = models.memory.is_some() || models.own.is_some();
            let stopped = self.guard.pressed();
            match done {
                // What was measured before counts.
                Err(_) if stopped => {}
                done => done?,
            }
            rows.push(row);
            if stopped {
                let nothing = rows
                    .iter()
                    .all(|row| row.texts.is_empty() && row.tasks.is_empty() && row.speed.is_none());
                return if nothing { Err(Interrupted.into()) } else { Ok((rows, true)) };
            }
            // What was kept takes no time, and says nothing of the others.
            if was_loaded {
                times.push(begun.elapsed().as_secs_f64());
            }
            let left = count - index - 1;
            if left > 0 && !times.is_empty() {
                let each = times.iter().sum::<f64>() / times.len() as f64;
                self.console.status(&format!(
                    "{} of {count} models are measured; {} left",
                    index + 1,
                    format::about(each * left as f64)
                ));
            }
        }
        Ok((rows, false))
    }

    fn measure_one(&self, row: &mut Row, of: &Of<'_>, models: &mut Models<'_, P>) -> anyhow::Result<()> {
        let mut kept = Kept::of(self.args.output.as_deref(), &row.subject.named.name)?;
        let key = |more: Value| -> Value {
            let mut key = json!({ "qqq": env!("CARGO_PKG_VERSION"), "device": self.device, "model": row.subject.prints });
            if let (Some(key), Value::Object(more)) = (key.as_object_mut(), more) {
                key.extend(more);
            }
            key
        };
        let mut wanted = Vec::new();
        for (path, sha256) in &self.sources.texts {
            let baseline = if of.is_baseline { &Value::Null } else { of.baseline_prints };
            wanted.push(key(json!({ "text": sha256, "cut": self.args.cut.key(), "baseline": baseline })));
            let key = &wanted[wanted.len() - 1];
            let found = match kept.get(key) {
                Some(found) => found,
                None => {
                    let found = self.on_text((path, sha256), &row.subject, of, models)?;
                    if !found.measured().is_some_and(|on| on.partial) {
                        kept.put(key.clone(), &found)?;
                    }
                    found
                }
            };
            row.texts.push(found);
            self.guard.check()?;
        }
        let protocol = self.args.questions.protocol(self.args.limit_tasks);
        for TaskFile { documents, files } in &self.sources.tasks {
            let hashes: Vec<&str> = files.iter().map(|file| file.sha256.as_str()).collect();
            let key = key(json!({ "task": documents.task.name, "files": hashes, "protocol": protocol }));
            let found = match kept.get(&key) {
                Some(found) => found,
                None => {
                    let found = self.on_task(documents, &row.subject, of, models)?;
                    if !found.measured().is_some_and(|answers| answers.on.partial) {
                        kept.put(key, &found)?;
                    }
                    found
                }
            };
            row.tasks.push(found);
            self.guard.check()?;
        }
        // Neither says anything of the method.
        if row.subject.simulated.is_some() {
            return Ok(());
        }
        let is_broken = row.texts.iter().any(|found| found.measured().is_none())
            || row.tasks.iter().any(|found| found.measured().is_none());
        if let (Some(load), false) = (self.args.load(), is_broken) {
            let key = key(json!({
                "prompt_tokens": load.prompt_tokens, "new_tokens": load.new_tokens, "repeat": load.repeat,
                "threads": qqq_backend::pool::num_threads(),
            }));
            row.speed = kept.get(&key);
            if row.speed.is_none() {
                let model = self.loaded(&row.subject, of, models)?;
                let mut progress = Progress::new(self.console, &format!("{}: measuring speed", of.title));
                let mut on_run =
                    |run: usize, runs: usize| progress.update(run as f64, runs as f64, "tokens a second");
                let speed =
                    bench::measure(&model.decoder, load, &mut on_run, &mut || Ok(!self.guard.pressed()))?;
                if !speed.partial {
                    kept.put(key, &speed)?;
                }
                row.speed = Some(speed);
                self.guard.check()?;
            }
        }
        let key = key(json!({ "memory": "weights" }));
        row.memory = kept.get(&key);
        if row.memory.is_none() {
            self.loaded(&row.subject, of, models)?;
            row.memory = models.memory;
            if let Some(bytes) = row.memory {
                kept.put(key, &bytes)?;
            }
        }
        Ok(())
    }

    /// The model, loaded by now.
    fn loaded<'m>(
        &self,
        subject: &Subject,
        of: &Of<'_>,
        models: &'m mut Models<'_, P>,
    ) -> anyhow::Result<&'m LoadedModel<P::Backend>> {
        let slot = if of.is_baseline { &mut *models.baseline } else { &mut models.own };
        if slot.is_none() {
            let before = self.place.available();
            let model = model::load_checked(&subject.named.spec, &self.args.hub, self.place)?;
            if subject::prints(&model.checkpoint)? != subject.prints {
                return Err(changed(&subject.named.spec));
            }
            models.memory = self.place.taken(&model.decoder, before);
            *slot = Some(model);
        }
        slot.as_ref().ok_or_else(|| Interrupted.into())
    }

    fn on_text(
        &self,
        (path, sha256): (&Path, &str),
        subject: &Subject,
        of: &Of<'_>,
        models: &mut Models<'_, P>,
    ) -> anyhow::Result<Found<OnText>> {
        let file = path.file_name().unwrap_or(path.as_os_str()).display();
        let title = format!("{}: {file}", of.title);
        // Before the model itself: both are in memory at once.
        if models.baseline.is_none() && !of.is_baseline {
            *models.baseline = Some(model::load_checked(&of.baseline.spec, &self.args.hub, self.place)?);
        }
        self.loaded(subject, of, models)?;
        let Some(baseline) = models.baseline.as_ref() else { return Err(Interrupted.into()) };
        let mut text = self.args.cut.open(path, baseline)?;
        let tokens = text.tokens(&baseline.tokenizer)?;
        let (read, options) = text.finish(self.console)?;
        if read.sha256() != Some(sha256) {
            return Err(changed(&path.display().to_string()));
        }
        let found = match &models.own {
            None => scored(self.console, &title, |progress| {
                perplexity(&baseline.decoder, &tokens, &options, progress)
            })
            .map(OnText::from),
            Some(model) => {
                let names = (of.baseline.name.as_str(), subject.named.name.as_str());
                check_tokens((path, &self.args.cut), &tokens, (names.0, baseline), (names.1, model))?;
                options.check(&model.checkpoint.config)?;
                scored(self.console, &title, |progress| {
                    kl_divergence(&baseline.decoder, &model.decoder, &tokens, &options, progress)
                })
                .map(OnText::from)
            }
        };
        self.unless_broken(found, subject, of)
    }

    fn on_task(
        &self,
        documents: &Documents,
        subject: &Subject,
        of: &Of<'_>,
        models: &mut Models<'_, P>,
    ) -> anyhow::Result<Found<Answers>> {
        let model = self.loaded(subject, of, models)?;
        let title = format!("{}: {}", of.title, documents.task.name);
        let encoded = self.args.questions.encoded(vec![documents.clone()], model, self.console)?;
        let mut scorer = Scorer::new(&model.decoder)?;
        let scored = score_all(&mut scorer, &encoded, &title, self.console);
        let found = match scored {
            Ok(scored) => scored.first().map(Answers::of).ok_or(EvalError::Interrupted),
            Err(e) => Err(e.downcast::<EvalError>()?),
        };
        self.unless_broken(found, subject, of)
    }

    /// A model whose numbers are no numbers has a row that says so; a baseline must have some.
    fn unless_broken<T>(
        &self,
        found: Result<T, EvalError>,
        subject: &Subject,
        of: &Of<'_>,
    ) -> anyhow::Result<Found<T>> {
        match found {
            Ok(found) => Ok(Found::Measured(found)),
            Err(
                e @ (EvalError::NotFinite { model: "model", .. }
                | EvalError::Overflow { model: "model", .. }
                | EvalError::NotFiniteAnswer { .. }),
            ) if !of.is_baseline => {
                self.console.warn(&format!("{}: {e}", subject.named.name));
                Ok(Found::NotFinite { not_finite: e.to_string() })
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// What is measured must be what measurements are kept under.
fn changed(what: &str) -> anyhow::Error {
    bad_input_hint(
        format!("{what} has changed while models were measured"),
        "start again: what was measured before is measured anew where it depends on that",
    )
}

/// What is known of a model's place among the others.
struct Of<'a> {
    is_baseline: bool,
    /// Before what is told of its progress.
    title: String,
    baseline: &'a Named,
    baseline_prints: &'a Value,
}
