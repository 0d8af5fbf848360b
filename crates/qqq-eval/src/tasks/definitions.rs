//! The tasks that are known, as data. Prompts, choices and metrics are those of lm-evaluation-harness 0.4.13, so that figures
//! can be set beside published ones.

/// A question with several answers, of which a model prefers one.
#[derive(Debug)]
pub struct Task {
    /// Its name in lm-evaluation-harness.
    pub name: &'static str,
    /// What its data set is called on the hub.
    pub data_set: &'static str,
    /// What files of its data set are called, in lower case with `_`: the beginning.
    pub file: &'static str,
    /// The split that is scored.
    pub split: &'static str,
    /// Whether accuracy by log-likelihood for each character of the answer is a metric of it.
    pub normalized: bool,
    pub(super) form: Form,
}

/// How a document becomes contexts and continuations. Fields of a document are named by their path (`choices.text`).
#[derive(Debug)]
pub(super) enum Form {
    /// One context; each choice continues it.
    Choices {
        /// The context; `{field}` stands for a field, `{field|capitalize}` for the field with Python's `capitalize`.
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
}

/// Where the choices stand.
#[derive(Debug)]
pub(super) enum Choices {
    /// A field each.
    Fields(&'static [&'static str]),
    /// One field, a list.
    List(&'static str),
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

/// All of them.
pub static TASKS: [Task; 5] = [
    Task {
        name: "piqa",
        data_set: "baber/piqa",
        file: "piqa",
        split: "validation",
        normalized: true,
        form: Form::Choices {
            prompt: "Question: {goal}\nAnswer:",
            choices: Choices::Fields(&["sol1", "sol2"]),
            answer: Answer::Number("label"),
            clean: false,
        },
    },
    Task {
        name: "arc_easy",
        data_set: "allenai/ai2_arc, ARC-Easy",
        file: "arc_easy",
        split: "test",
        normalized: true,
        form: ARC,
    },
    Task {
        name: "arc_challenge",
        data_set: "allenai/ai2_arc, ARC-Challenge",
        file: "arc_challenge",
        split: "test",
        normalized: true,
        form: ARC,
    },
    Task {
        name: "hellaswag",
        data_set: "Rowan/hellaswag",
        file: "hellaswag",
        split: "validation",
        normalized: true,
        form: Form::Choices {
            prompt: "{activity_label}: {ctx_a} {ctx_b|capitalize}",
            choices: Choices::List("endings"),
            answer: Answer::Number("label"),
            clean: true,
        },
    },
    Task {
        name: "winogrande",
        data_set: "allenai/winogrande, winogrande_xl",
        file: "winogrande",
        split: "validation",
        normalized: false,
        form: Form::Blank { sentence: "sentence", options: &["option1", "option2"], answer: "answer" },
    },
];

impl Task {
    /// The task of a name.
    pub fn named(name: &str) -> Option<&'static Task> {
        TASKS.iter().find(|task| task.name == name)
    }

    /// The fields that a document must have.
    pub(super) fn fields(&self) -> Vec<&'static str> {
        match &self.form {
            Form::Choices { prompt, choices, answer, .. } => {
                let named = prompt.split('{').skip(1).filter_map(|part| part.split(['}', '|']).next());
                let mut fields: Vec<_> = named.collect();
                match choices {
                    Choices::Fields(names) => fields.extend(*names),
                    Choices::List(name) => fields.push(name),
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
        }
    }
}
