//! Which questions are asked, and how.

use qqq_eval::tasks::{Documents, Encoded, GROUPS, Prompt, TASKS, Task};
use qqq_model::ChatTemplate;
use serde::Serialize;

use super::data::{Loader, Source, TaskFile};
use crate::{
    console::Console,
    errors::{bad_input, bad_input_hint},
    model::{HubArgs, LoadedModel},
};

/// Tasks that are asked if none are named: those of the usual tables.
const USUAL: [&str; 5] = ["piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande"];

/// Which questions are asked, and how.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Tasks")]
pub struct QuestionArgs {
    /// Which tasks or groups, with commas between [default: piqa,arc_easy,arc_challenge,hellaswag,winogrande]
    #[arg(long, value_name = "TASKS", value_delimiter = ',', value_parser = known)]
    tasks: Vec<Asked>,
    /// Folder of data files, or a file; TASK=PATH says whose. May be given several times [default: the hub's data sets]
    #[arg(long, value_name = "PATH")]
    data: Vec<String>,
    /// Put N examples with their answers before each question
    #[arg(long, value_name = "N", default_value_t = 0)]
    fewshot: usize,
    /// Ask in the model's chat template: questions are the user's turns
    #[arg(long)]
    chat_template: bool,
    /// Whether examples are turns of their own in it, or part of the question's
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, requires = "chat_template")]
    fewshot_as_multiturn: bool,
    /// What comes before all: the system's turn in a chat template, else text
    #[arg(long, value_name = "TEXT")]
    system_instruction: Option<String>,
}

/// A name, and what it stands for.
#[derive(Clone, Debug)]
struct Asked(Vec<&'static Task>);

/// A task or a group by its name on the command line.
fn known(name: &str) -> Result<Asked, String> {
    Task::asked(name).map(Asked).ok_or_else(|| {
        let tasks = TASKS.iter().filter(|task| task.group.is_none()).map(|task| task.name);
        let names: Vec<&str> = tasks.chain(GROUPS.iter().map(|group| group.name)).collect();
        format!(
            "there is no such task; there are {} and the subjects of mmlu (mmlu_anatomy)",
            names.join(", ")
        )
    })
}

/// How questions were asked.
#[derive(Clone, Serialize)]
pub struct Protocol<'a> {
    /// The harness whose prompts and metrics these are.
    protocol: &'static str,
    /// Examples before each question.
    fewshot: usize,
    /// Whether the model's chat template was applied.
    chat_template: bool,
    /// Whether examples are turns of their own in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fewshot_as_multiturn: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_instruction: Option<&'a str>,
    limit: Option<usize>,
}

impl Protocol<'_> {
    /// In a line.
    pub fn describe(&self) -> String {
        let shots = match self.fewshot {
            0 => "zero-shot".to_owned(),
            n => format!("{n}-shot"),
        };
        let template = match (self.chat_template, self.fewshot_as_multiturn) {
            (false, _) => "",
            (true, Some(false)) => ", chat template (examples in the question's turn)",
            (true, _) => ", chat template",
        };
        let system = if self.system_instruction.is_some() { ", system instruction" } else { "" };
        let limit = self.limit.map(|n| format!("; the first {n} questions of each task")).unwrap_or_default();
        format!("{}, {shots}{template}{system}{limit}", self.protocol)
    }
}

impl QuestionArgs {
    /// Whether tasks or files of theirs are named.
    pub fn are_asked_for(&self) -> bool {
        !self.tasks.is_empty() || !self.data.is_empty()
    }

    /// All tasks that are asked for, in their order.
    ///
    /// # Errors
    /// One that is named twice.
    fn tasks(&self) -> anyhow::Result<Vec<&'static Task>> {
        let all: Vec<&'static Task> = match self.tasks.is_empty() {
            true => USUAL.iter().filter_map(|name| Task::named(name)).collect(),
            false => self.tasks.iter().flat_map(|asked| asked.0.iter().copied()).collect(),
        };
        match all.iter().enumerate().find(|(i, task)| all[..*i].iter().any(|before| before.name == task.name))
        {
            Some((_, task)) => Err(bad_input(format!("--tasks: {} is named twice", task.name))),
            None => Ok(all),
        }
    }

    /// The questions of all tasks, with their examples: from files, or fetched from the hub.
    ///
    /// # Errors
    /// What is missing or cannot be read.
    pub fn read(&self, limit: Option<usize>, hub: &HubArgs) -> anyhow::Result<Vec<TaskFile>> {
        let tasks = self.tasks()?;
        let sources = self.data.iter().map(|data| Source::of(data)).collect::<anyhow::Result<Vec<_>>>()?;
        Loader::new(&tasks, &sources, hub, self.fewshot)?.read(&tasks, limit.unwrap_or(usize::MAX))
    }

    /// How the questions are asked.
    pub fn protocol(&self, limit: Option<usize>) -> Protocol<'_> {
        Protocol {
            protocol: "lm-evaluation-harness 0.4.13",
            fewshot: self.fewshot,
            chat_template: self.chat_template,
            fewshot_as_multiturn: (self.chat_template && self.fewshot > 0)
                .then_some(self.fewshot_as_multiturn),
            system_instruction: self.system_instruction.as_deref(),
            limit: limit.filter(|limit| *limit != usize::MAX),
        }
    }

    /// Documents as this model is to be asked, in its tokens.
    ///
    /// # Errors
    /// A model without chat template, where one is needed, or one that refuses the messages; questions that it cannot be asked.
    pub fn encoded<B: qqq_backend::Backend>(
        &self,
        documents: Vec<Documents>,
        model: &LoadedModel<B>,
        console: &Console,
    ) -> anyhow::Result<Vec<Encoded>> {
        let prompted = self.prompted(documents, model, console)?.into_iter();
        prompted
            .map(|documents| Ok(Encoded::new(documents, &model.tokenizer, &model.checkpoint.config)?))
            .collect()
    }

    /// Documents in the model's chat template, or as plain text.
    fn prompted<B: qqq_backend::Backend>(
        &self,
        documents: Vec<Documents>,
        model: &LoadedModel<B>,
        console: &Console,
    ) -> anyhow::Result<Vec<Documents>> {
        let template = match self.chat_template {
            true => ChatTemplate::load(&model.checkpoint, &model.tokenizer)?.map(Some).ok_or_else(|| {
                bad_input_hint(
                    "--chat-template: the model has no chat template",
                    "without it questions are asked as plain text",
                )
            })?,
            false => None,
        };
        let prompt = Prompt {
            system: self.system_instruction.as_deref(),
            chat: template.as_ref(),
            multiturn: self.fewshot_as_multiturn,
        };
        let prompted = documents
            .into_iter()
            .map(|documents| Ok(documents.prompted(&prompt)?))
            .collect::<anyhow::Result<Vec<_>>>()?;
        if let Some(one) = prompted.iter().find(|documents| documents.without_system) {
            console.note(&format!(
                "{}: the chat template refuses a system message, so that it is left out, as the harness does",
                one.task.name
            ));
        }
        Ok(prompted)
    }
}
