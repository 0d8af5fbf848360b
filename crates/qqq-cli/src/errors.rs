//! Errors as the user sees them: what went wrong (a line, or the lines of a list), a hint where there is a way out, an
//! exit code.

use std::io;

use qqq_eval::EvalError;
use qqq_formats::FormatError;
use qqq_model::{
    ModelError,
    text::{TextError, TextProblem},
};
use qqq_quant::QuantError;
use serde_json::json;

use crate::commands::quantize;

/// Something went wrong on the way.
pub const FAILED: u8 = 1;
/// Wrong usage, or input that cannot be used.
pub const BAD_INPUT: u8 = 2;
/// Stopped by Ctrl-C: 128 and the number of the signal.
pub const INTERRUPTED: u8 = 130;

/// An error that says what the user can do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Explained {
    message: String,
    hint: Option<String>,
    exit_code: u8,
}

/// The reader of our standard output has gone.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct ClosedOutput;

/// Ctrl-C was pressed.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Ctrl-C was pressed; what there was until then is on standard output, `--json`'s object included.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct InterruptedWithResult;

/// A failure that the result on standard output tells of, `--json`'s object included.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FailedWithResult(pub String);

/// Input or options that cannot be used.
pub fn bad_input(message: impl Into<String>) -> anyhow::Error {
    Explained { message: message.into(), hint: None, exit_code: BAD_INPUT }.into()
}

/// As [`bad_input`], with a way out.
pub fn bad_input_hint(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Explained { message: message.into(), hint: Some(hint.into()), exit_code: BAD_INPUT }.into()
}

/// A failure that is not the input's fault, with a way out.
pub fn failed_hint(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Explained { message: message.into(), hint: Some(hint.into()), exit_code: FAILED }.into()
}

/// An error, ready to be shown.
#[derive(Debug)]
pub struct Failure {
    /// The chain of causes; lines as they are in the messages.
    pub message: String,
    /// A way out.
    pub hint: Option<String>,
    /// Exit code of the process.
    pub exit_code: u8,
    closed_output: bool,
    answered: bool,
}

impl Failure {
    /// Options that contradict each other or make no sense: exit code 2.
    pub fn usage(message: &str) -> Self {
        Self {
            message: message.into(),
            hint: None,
            exit_code: BAD_INPUT,
            closed_output: false,
            answered: false,
        }
    }

    /// Sorts out an error.
    pub fn of(error: &anyhow::Error) -> Self {
        let exit_code = error.chain().find_map(exit_code).unwrap_or(FAILED);
        Self {
            message: chain(error),
            hint: error.chain().find_map(hint),
            exit_code,
            closed_output: error.chain().any(|e| e.is::<ClosedOutput>()),
            // One that was put before its cause is no link of the chain itself.
            answered: error.is::<FailedWithResult>()
                || error.chain().any(|e| e.is::<InterruptedWithResult>() || e.is::<FailedWithResult>()),
        }
    }

    /// Whether the reader of standard output has gone.
    pub fn is_closed_output(&self) -> bool {
        self.closed_output
    }

    /// Whether standard output has its result already.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// The object that `--json` prints instead of a result.
    pub fn to_json(&self) -> serde_json::Value {
        json!({ "error": { "message": self.message, "hint": self.hint, "exit_code": self.exit_code } })
    }
}

/// The messages of all causes, one after the other; a cause that the message before it already spells out is left out.
/// Their lines stay lines: lists of places and the compiler's words are unreadable as one.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let message = cause.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        let message = message.trim().to_owned();
        if text.is_empty() {
            text = message;
        } else if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
    }
    text
}

type Cause = dyn std::error::Error + 'static;

fn exit_code(e: &Cause) -> Option<u8> {
    if let Some(e) = e.downcast_ref::<Explained>() {
        return Some(e.exit_code);
    }
    if e.is::<Interrupted>() || e.is::<InterruptedWithResult>() {
        return Some(INTERRUPTED);
    }
    match e.downcast_ref::<EvalError>() {
        Some(EvalError::Interrupted) => return Some(INTERRUPTED),
        Some(EvalError::Windows(_) | EvalError::Mismatch(_) | EvalError::Document { .. }) => {
            return Some(BAD_INPUT);
        }
        Some(EvalError::Model(e)) => return model_exit_code(e),
        _ => {}
    }
    match e.downcast_ref::<QuantError>() {
        Some(QuantError::Interrupted) => return Some(INTERRUPTED),
        Some(QuantError::Calibration(_) | QuantError::Recipe(_) | QuantError::Resume(_)) => {
            return Some(BAD_INPUT);
        }
        Some(QuantError::Model(e)) => return model_exit_code(e),
        Some(QuantError::Format(e)) => return format_exit_code(e),
        _ => {}
    }
    if let Some(e) = e.downcast_ref::<ModelError>() {
        return model_exit_code(e);
    }
    e.downcast_ref::<FormatError>().and_then(format_exit_code)
}

fn model_exit_code(e: &ModelError) -> Option<u8> {
    match e {
        ModelError::Format(e) => format_exit_code(e),
        ModelError::Hub(_) | ModelError::NotFinite(_) => Some(FAILED),
        ModelError::Interrupted => Some(INTERRUPTED),
        _ => Some(BAD_INPUT),
    }
}

fn format_exit_code(e: &FormatError) -> Option<u8> {
    match e {
        FormatError::Io { source, .. } => Some(match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => BAD_INPUT,
            _ => FAILED,
        }),
        FormatError::Changed { .. } => Some(FAILED),
        _ => Some(BAD_INPUT),
    }
}

/// Unix's number of an error of the device, which has no name in the standard library.
const EIO: i32 = 5;

/// What to do about a model that overflows.
const NOT_FINITE: &str = "fetch the model again, or compare its checksums with the publisher's; a checkpoint of 4-bit weights: \
                          quantize the float model again";

fn hint(e: &Cause) -> Option<String> {
    if let Some(e) = e.downcast_ref::<Explained>() {
        return e.hint.clone();
    }
    let model = match (e.downcast_ref::<QuantError>(), e.downcast_ref::<EvalError>()) {
        (Some(QuantError::Resume(_)), _) => {
            return Some(
                "without --resume the run starts anew, and removes what the stopped one has finished".into(),
            );
        }
        (Some(QuantError::Gate(beyond)), _) => return Some(quantize::way_out(beyond)),
        (Some(QuantError::Numerics { .. }), _) => {
            return Some("give more calibration text (--windows), or a larger --damping".into());
        }
        (Some(QuantError::NotFinite { .. } | QuantError::Model(ModelError::NotFinite(_))), _)
        | (
            _,
            Some(
                EvalError::NotFinite { .. } | EvalError::NotFiniteAnswer { .. } | EvalError::Overflow { .. },
            ),
        ) => {
            return Some(NOT_FINITE.into());
        }
        (Some(QuantError::Model(e)), _) | (_, Some(EvalError::Model(e))) => Some(e),
        _ => e.downcast_ref::<ModelError>(),
    };
    let format = match (model, e.downcast_ref::<QuantError>()) {
        (Some(ModelError::NotFinite(_)), _) => return Some(NOT_FINITE.into()),
        (Some(ModelError::NoEmbedding { token, .. }), _) => {
            return Some(format!("leave {token:?} out of the text, or use a model that was trained with it"));
        }
        (Some(ModelError::Tokenizer(_)), _) => {
            return Some("the tokenizer must be the one that the model was trained with; fetch the model's files again".into());
        }
        (Some(ModelError::Text(e)), _) => return text_hint(e),
        (Some(ModelError::Format(e)), _) | (_, Some(QuantError::Format(e))) => Some(e),
        _ => e.downcast_ref::<FormatError>(),
    };
    match format? {
        FormatError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            Some("free some space, or give an output on another disk".into())
        }
        FormatError::Io { source, .. }
            if source.raw_os_error() == Some(EIO)
                || source.kind() == io::ErrorKind::StaleNetworkFileHandle =>
        {
            Some("the disk or the network's file system failed; copy the file elsewhere, and name that copy".into())
        }
        FormatError::Changed { .. } => Some(
            "run it again when nothing writes to the model; to replace a file that is in use, write another one and \
             rename it over the old"
                .into(),
        ),
        FormatError::NotFinite { .. } | FormatError::MissingTensor { .. } => {
            Some("fetch the model again, or compare its checksums with the publisher's".into())
        }
        _ => None,
    }
}

fn text_hint(e: &TextError) -> Option<String> {
    match e.problem {
        TextProblem::NotJson => Some("if it is meant to be plain text, say --text-format plain".into()),
        TextProblem::Field => Some("--text-field names the field or column that holds the text".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_joined_once_and_keep_their_lines() {
        let cause = io::Error::new(io::ErrorKind::NotFound, "no such file\r\n  looked at x  \n");
        let error =
            anyhow::Error::from(ModelError::Format(FormatError::Io { path: "a/b".into(), source: cause }))
                .context("loading the baseline");
        let failure = Failure::of(&error);
        assert_eq!(failure.message, "loading the baseline: a/b: no such file\n  looked at x");
        assert_eq!(failure.exit_code, BAD_INPUT);
    }

    #[test]
    fn exit_codes() {
        let code = |e: anyhow::Error| Failure::of(&e).exit_code;
        assert_eq!(code(QuantError::Interrupted.into()), INTERRUPTED);
        assert_eq!(code(EvalError::Interrupted.into()), INTERRUPTED);
        assert_eq!(code(Interrupted.into()), INTERRUPTED);
        assert_eq!(code(InterruptedWithResult.into()), INTERRUPTED);
        assert!(Failure::of(&InterruptedWithResult.into()).is_answered());
        let failure = Failure::of(&FailedWithResult("no memory".into()).into());
        assert_eq!((failure.exit_code, failure.is_answered()), (FAILED, true));
        let failure = Failure::of(
            &anyhow::Error::from(QuantError::Numerics { layer: "q".into(), reason: "no".into() })
                .context(FailedWithResult("q: no".into())),
        );
        assert_eq!(
            (failure.message.as_str(), failure.exit_code, failure.is_answered()),
            ("q: no", FAILED, true)
        );
        assert!(failure.hint.is_some());
        assert!(!Failure::of(&Interrupted.into()).is_answered());
        assert_eq!(code(QuantError::Recipe("no".into()).into()), BAD_INPUT);
        assert_eq!(code(QuantError::Model(FormatError::Layout("x".into()).into()).into()), BAD_INPUT);
        assert_eq!(code(anyhow::anyhow!("anything")), FAILED);
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error =
            anyhow::Error::from(QuantError::Format(FormatError::Io { path: "out".into(), source: full() }));
        assert_eq!(Failure::of(&error).exit_code, FAILED);
        assert!(Failure::of(&error).hint.unwrap().contains("space"));
        let broken = io::Error::from_raw_os_error(EIO);
        let failure = Failure::of(&FormatError::Io { path: "model".into(), source: broken }.into());
        assert_eq!(failure.exit_code, FAILED);
        assert!(failure.message.starts_with("model: ") && failure.hint.unwrap().contains("the disk"));
        let changed = FormatError::Changed { path: "model".into(), what: "it grew".into() };
        let failure = Failure::of(&QuantError::Model(changed.into()).into());
        assert_eq!((failure.exit_code, failure.hint.is_some()), (FAILED, true));
    }
}
