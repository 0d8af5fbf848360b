//! The tasks that are known, as data. Prompts, choices, examples and metrics are those of lm-evaluation-harness 0.4.13, so that
//! figures can be set beside published ones.

use std::{fmt, sync::LazyLock};

use super::mmlu::mmlu;

/// Questions whose right answers a model should find likely.
#[derive(Debug)]
pub struct Task {
    /// Its name in lm-evaluation-harness.
    pub name: &'static str,
    /// Its questions on the hub.
    pub data_set: DataSet,
    /// What files of its data set are called, in lower case with `_`: the beginning.
    pub file: &'static str,
    /// The split that is scored.
    pub split: &'static str,
    /// Where examples come from that are put before a question.
    pub shots: Shots,
    /// What is counted.
    pub metrics: &'static [Metric],
    /// The subject whose rows are its questions, where files have those of several.
    pub subject: Option<&'static str>,
    /// The group that it belongs to.
    pub group: Option<&'static str>,
    /// What comes before all questions; `{subject}` stands for the subject with blanks.
    pub(super) description: &'static str,
    pub(super) form: Form,
}

/// A data set on the hub.
#[derive(Clone, Copy, Debug)]
pub struct DataSet {
    /// `owner/name`.
    pub repo: &'static str,
    /// The folder of its files, or what their names begin with, where it has several configurations.
    pub config: Option<&'static str>,
}

impl fmt::Display for DataSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.repo)?;
        self.config.map_or(Ok(()), |config| write!(f, ", {config}"))
    }
}

/// Where examples come from.
#[derive(Clone, Copy, Debug)]
pub struct Shots {
    /// The split that they are taken from.
    pub split: &'static str,
    /// Which of its documents.
    pub choice: ShotChoice,
}

/// Which documents become examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShotChoice {
    /// The first ones, the same before all questions.
    First,
    /// For each question others are drawn.
    Drawn {
        /// Whether a document that is the question itself is passed over.
        but_itself: bool,
    },
}

/// What is counted of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Accuracy: whether the right choice is the likeliest.
    Acc,
    /// The same by log-likelihood for each character of the choice.
    AccNorm,
    /// Accuracy of what has no choices: whether each of its tokens is the likeliest.
    AccGreedy,
    /// exp of the mean negative log-likelihood of an answer.
    Perplexity,
}

/// How a document becomes contexts and continuations. Fields of a document are named by their path (`choices.text`).
#[derive(Debug)]
pub(super) enum Form {
    /// One context; each choice continues it.
    Choices {
        /// The context; `{field}` stands for a field, `{field|capitalize}` and `{field|strip}` for what Python's methods of
        /// these names make of it.
        prompt: &'static str,
        choices: Choices,
        answer: Answer,
        /// Whether context and choices are rid of WikiHow's marks.
        clean: bool,
    },
    /// A sentence with a blank: each option fills it, and what comes behind the blank is scored.
    Blank {
        sentence: &'static str,
        options: &'static [&'static str],
        /// The number of the right option, from 1.
        answer: &'static str,
    },
    /// A text whose last word is scored: what follows its last blank.
    LastWord { text: &'static str },
}

/// Where the choices stand.
#[derive(Debug)]
pub(super) enum Choices {
    /// A field each.
    Fields(&'static [&'static str]),
    /// One field, a list.
    List(&'static str),
    /// The same for all documents.
    Fixed(&'static [&'static str]),
}

/// Which choice is right.
#[derive(Debug)]
pub(super) enum Answer {
    /// A field has its number, from 0.
    Number(&'static str),
    /// A field has its label; another one lists the labels of the choices.
    Label { key: &'static str, labels: &'static str },
}

const ARC: Form = Form::Choices {
    prompt: "Question: {question}\nAnswer:",
    choices: Choices::List("choices.text"),
    answer: Answer::Label { key: "answerKey", labels: "choices.label" },
    clean: false,
};

const DRAWN: Shots = Shots { split: "train", choice: ShotChoice::Drawn { but_itself: false } };
/// The harness compares documents where a task has no test split.
const DRAWN_BUT_ITSELF: Shots = Shots { split: "train", choice: ShotChoice::Drawn { but_itself: true } };

const PLAIN: [Task; 6] = [
    Task {
        name: "piqa",
        data_set: DataSet { repo: "baber/piqa", config: None },
        file: "piqa",
        split: "validation",
        shots: DRAWN_BUT_ITSELF,
        metrics: &[Metric::Acc, Metric::AccNorm],
        subject: None,
        group: None,
        description: "",
        form: Form::Choices {
            prompt: "Question: {goal}\nAnswer:",
            choices: Choices::Fields(&["sol1", "sol2"]),
            answer: Answer::Number("label"),
            clean: false,
        },
    },
    Task {
        name: "arc_easy",
        data_set: DataSet { repo: "allenai/ai2_arc", config: Some("ARC-Easy") },
        file: "arc_easy",
        split: "test",
        shots: DRAWN,
        metrics: &[Metric::Acc, Metric::AccNorm],
        subject: None,
        group: None,
        description: "",
        form: ARC,
    },
    Task {
        name: "arc_challenge",
        data_set: DataSet { repo: "allenai/ai2_arc", config: Some("ARC-Challenge") },
        file: "arc_challenge",
        split: "test",
        shots: DRAWN,
        metrics: &[Metric::Acc, Metric::AccNorm],
        subject: None,
        group: None,
        description: "",
        form: ARC,
    },
    Task {
        name: "hellaswag",
        data_set: DataSet { repo: "Rowan/hellaswag", config: None },
        file: "hellaswag",
        split: "validation",
        shots: DRAWN_BUT_ITSELF,
        metrics: &[Metric::Acc, Metric::AccNorm],
        subject: None,
        group: None,
        description: "",
        form: Form::Choices {
            prompt: "{activity_label}: {ctx_a} {ctx_b|capitalize}",
            choices: Choices::List("endings"),
            answer: Answer::Number("label"),
            clean: true,
        },
    },
    Task {
        name: "winogrande",
        data_set: DataSet { repo: "allenai/winogrande", config: Some("winogrande_xl") },
        file: "winogrande",
        split: "validation",
        shots: DRAWN_BUT_ITSELF,
        metrics: &[Metric::Acc],
        subject: None,
        group: None,
        description: "",
        form: Form::Blank { sentence: "sentence", options: &["option1", "option2"], answer: "answer" },
    },
    Task {
        name: "lambada_openai",
        // Its other languages lie beside it.
        data_set: DataSet { repo: "EleutherAI/lambada_openai", config: Some("lambada_test") },
        file: "lambada",
        split: "test",
        // It has no other split; a question may be an example of its own.
        shots: Shots { split: "test", choice: ShotChoice::Drawn { but_itself: false } },
        metrics: &[Metric::AccGreedy, Metric::Perplexity],
        subject: None,
        group: None,
        description: "",
        form: Form::LastWord { text: "text" },
    },
];

/// All of them, those of a group one after the other.
pub static TASKS: LazyLock<Vec<Task>> = LazyLock::new(|| PLAIN.into_iter().chain(mmlu()).collect());

impl Task {
    /// The task of a name.
    pub fn named(name: &str) -> Option<&'static Task> {
        TASKS.iter().find(|task| task.name == name)
    }

    /// The tasks that a name asks for: its task, those of its group, or the one that is meant by a shorter name.
    pub fn asked(name: &str) -> Option<Vec<&'static Task>> {
        let name = if name == "lambada" { "lambada_openai" } else { name };
        match super::Group::named(name) {
            Some(group) => Some(group.tasks()),
            None => Self::named(name).map(|task| vec![task]),
        }
    }

    /// Whether something is counted.
    pub fn counts(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }

    /// What comes before all questions.
    pub(super) fn description(&self) -> String {
        self.description.replace("{subject}", &self.subject.unwrap_or_default().replace('_', " "))
    }

    /// The fields that a document must have.
    pub(super) fn fields(&self) -> Vec<&'static str> {
        let mut fields = match &self.form {
            Form::Choices { prompt, choices, answer, .. } => {
                let named = prompt.split('{').skip(1).filter_map(|part| part.split(['}', '|']).next());
                let mut fields: Vec<_> = named.collect();
                match choices {
                    Choices::Fields(names) => fields.extend(*names),
                    Choices::List(name) => fields.push(name),
                    Choices::Fixed(_) => {}
                }
                match answer {
                    Answer::Number(name) => fields.push(name),
                    Answer::Label { key, labels } => fields.extend([*key, *labels]),
                }
                fields
            }
            Form::Blank { sentence, options, answer } => {
                let mut fields = vec![*sentence, *answer];
                fields.extend(*options);
                fields
            }
            Form::LastWord { text } => vec![*text],
        };
        fields.extend(self.subject.map(|_| SUBJECT));
        fields
    }
}

/// The field that has a document's subject.
pub(super) const SUBJECT: &str = "subject";
