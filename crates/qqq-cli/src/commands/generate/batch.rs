//! `qqq generate --batch`: JSON lines in and out.

use std::time::Instant;

use qqq_backend::Backend;
use qqq_engine::{FinishReason, Prompt, TextEvent, TextRun};
use serde::Serialize;
use serde_json::Value;

use super::{
    Answer,
    lines::{self, Line, Request},
    prompt::Encoder,
};
use crate::{
    console::Console, errors::InterruptedWithResult, format, interrupt::Guard, numbers::Seed,
    progress::Progress,
};

/// The answer to a line.
#[derive(Serialize)]
struct Answered<'a> {
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    /// That was drawn because the line asks for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(flatten)]
    answer: &'a Answer,
}

/// The result, for `--json`.
#[derive(Serialize)]
struct Report<'a> {
    prompts: usize,
    answers: Vec<Answered<'a>>,
}

/// Tokens of all lines, or what is wrong with the first that has none.
pub fn encode(lines: &[Line], source: &str, encoder: &Encoder<'_>) -> anyhow::Result<Vec<Prompt>> {
    let prompt = |line: &Line| {
        let tokens = match &line.request {
            Request::Text(text) => encoder.text(text),
            Request::Messages { messages, tools } => encoder.messages(messages, tools.as_ref()),
        };
        let tokens = tokens.map_err(|e| lines::at(source, line.number, &e))?;
        let seed = line.seed.map(Seed::value).transpose()?.map(|(seed, _)| seed);
        Ok(Prompt { tokens, seed })
    };
    lines.iter().map(prompt).collect()
}

/// Answers that are there, printed in the order of their lines as soon as all before them are.
struct Answers<'a> {
    lines: &'a [Line],
    prompts: &'a [Prompt],
    answers: Vec<Option<Answer>>,
    /// Lines until here are printed.
    printed: usize,
}

impl<'a> Answers<'a> {
    fn of(&self, i: usize) -> Option<Answered<'_>> {
        let line = &self.lines[i];
        let seed = self.prompts[i].seed.filter(|_| line.seed == Some(Seed::Random));
        self.answers[i].as_ref().map(|answer| Answered {
            line: line.number,
            id: line.id.as_ref(),
            seed,
            answer,
        })
    }

    fn complete(&self) -> usize {
        self.answers.iter().flatten().count()
    }

    /// Prints what can be printed; `all`: also what comes after lines without an answer.
    fn print(&mut self, all: bool, console: &Console) -> anyhow::Result<()> {
        while self.printed < self.answers.len() {
            match self.of(self.printed) {
                Some(answered) => console.line(&serde_json::to_string(&answered)?)?,
                None if all => {}
                None => break,
            }
            self.printed += 1;
        }
        Ok(())
    }
}

/// Answers all lines.
pub fn run<B: Backend>(
    lines: &[Line],
    prompts: &[Prompt],
    run: &TextRun<'_, B>,
    console: &Console,
) -> anyhow::Result<()> {
    let guard = Guard::new();
    let start = Instant::now();
    let mut answers = Answers { lines, prompts, answers: lines.iter().map(|_| None).collect(), printed: 0 };
    // Where lines can be watched as they come, a bar would be in their way.
    let mut progress = (console.json() || !console.fancy_out()).then(|| Progress::new(console, "answering"));
    let mut printed = Ok(());
    let mut new_tokens = 0;
    let outcome = run.run(prompts, &mut |event| {
        match event {
            TextEvent::Pass { .. } => {}
            TextEvent::Text { .. } => new_tokens += 1,
            TextEvent::End { sequence, result } => {
                if result.generation.finish != FinishReason::Cancelled {
                    answers.answers[sequence] = Some(Answer::new(prompts[sequence].tokens.len(), result));
                }
                if !console.json() && printed.is_ok() {
                    printed = answers.print(false, console);
                }
            }
        }
        if let Some(progress) = &mut progress {
            let (done, all) = (answers.complete(), lines.len());
            progress.update(
                done as f64,
                all as f64,
                &format!("{done} of {all} prompts, {new_tokens} tokens"),
            );
        }
        printed.is_ok() && !guard.pressed()
    });
    drop(progress);
    printed?;
    if !console.json() {
        answers.print(true, console)?;
    }
    if outcome.is_ok() {
        let report = Report {
            prompts: lines.len(),
            answers: (0..lines.len()).filter_map(|i| answers.of(i)).collect(),
        };
        console.printed_result(&report)?;
    }
    outcome?;
    let complete = answers.complete();
    if complete < lines.len() {
        console.note(&format!("{complete} of {} answers are complete", lines.len()));
        return Err(InterruptedWithResult.into());
    }
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = answers.answers.iter().flatten().map(|a| a.new_tokens).sum();
    let prompt_tokens: usize = prompts.iter().map(|p| p.tokens.len()).sum();
    console.status(&format!(
        "prompts: {} with {prompt_tokens} tokens; new: {tokens} tokens in {} ({:.0} tokens/s, prompts included)",
        lines.len(),
        format::seconds(seconds),
        tokens as f64 / seconds.max(1e-9),
    ));
    Ok(())
}
