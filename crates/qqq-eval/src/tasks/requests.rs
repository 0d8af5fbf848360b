//! Texts of a question as tokens.

use qqq_backend::pool::parallel_each_mut;
use qqq_model::{Tokenizer, chat::is_space};

use super::{Document, Documents, TextRequest};
use crate::{EvalError, Result};

/// Tokens whose last ones are scored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Context and continuation.
    pub tokens: Vec<u32>,
    /// How many of them are the continuation's.
    pub scored: usize,
}

impl Request {
    /// What the model sees: nothing has to follow the last token.
    pub(super) fn input(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// The first row of the input that predicts a token of the continuation.
    pub(super) fn first_row(&self) -> usize {
        self.tokens.len() - 1 - self.scored
    }
}

/// What comes before a text.
struct Prefix {
    /// BOS, or where there is none the end of a text.
    id: Option<u32>,
    /// A text that begins with it gets no special tokens besides.
    text: Option<String>,
}

impl Prefix {
    fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let special = tokenizer.special_tokens();
        let named = special.bos.as_ref().or(special.eos.as_ref());
        let id = named.and_then(|token| tokenizer.token_to_id(token));
        let text = id.map(|id| tokenizer.decode(&[id], false)).transpose()?.filter(|text| !text.is_empty());
        Ok(Self { id, text })
    }

    fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        let begins = self.text.as_ref().is_some_and(|prefix| text.starts_with(prefix));
        Ok(tokenizer.encode(text, !begins)?)
    }
}

/// Requests of all documents, in their order, for a model that sees `longest` tokens at most.
///
/// White space at the end of a context belongs to the continuation, whose tokens are those of both texts together behind as
/// many as the context alone has. What is too long loses its beginning.
///
/// # Errors
/// A text that cannot be encoded, a continuation without tokens, or one longer than the model's context.
pub(super) fn encode(
    documents: &Documents,
    tokenizer: &Tokenizer,
    longest: usize,
) -> Result<Vec<Vec<Request>>> {
    let prefix = Prefix::of(tokenizer)?;
    let mut encoded: Vec<Result<Vec<Request>>> = documents.documents.iter().map(|_| Ok(Vec::new())).collect();
    parallel_each_mut(&mut encoded, |i, out| {
        *out =
            encode_one(&documents.documents[i], tokenizer, &prefix, longest).map_err(|reason| match reason {
                Failure::Model(e) => e,
                Failure::Document(reason) => EvalError::Document {
                    path: documents.path_of(&documents.documents[i]).to_owned(),
                    line: Some(documents.documents[i].line),
                    reason,
                },
            });
    });
    encoded.into_iter().collect()
}

enum Failure {
    Model(EvalError),
    Document(String),
}

impl<E: Into<EvalError>> From<E> for Failure {
    fn from(e: E) -> Self {
        Self::Model(e.into())
    }
}

fn encode_one(
    document: &Document,
    tokenizer: &Tokenizer,
    prefix: &Prefix,
    longest: usize,
) -> Result<Vec<Request>, Failure> {
    // Choices of a question mostly share their context.
    let mut last: Option<(&str, Vec<u32>)> = None;
    let mut requests = Vec::with_capacity(document.requests.len());
    for TextRequest { context, continuation } in &document.requests {
        let trimmed = context.trim_end_matches(is_space);
        let (tokens, scored) = if context.is_empty() {
            let tokens = tokenizer.encode(continuation, false)?;
            match (prefix.id, tokens.first()) {
                (Some(id), Some(first)) if id != *first => {
                    let scored = tokens.len();
                    ([vec![id], tokens].concat(), scored)
                }
                _ => {
                    let scored = tokens.len().saturating_sub(1);
                    (tokens, scored)
                }
            }
        } else {
            if last.as_ref().is_none_or(|(known, _)| *known != trimmed) {
                last = Some((trimmed, prefix.encode(tokenizer, trimmed)?));
            }
            let before = last.as_ref().map_or(0, |(_, tokens)| tokens.len());
            let tokens = prefix.encode(tokenizer, &format!("{context}{continuation}"))?;
            let scored = tokens.len().saturating_sub(before);
            (tokens, scored)
        };
        if scored == 0 || scored == tokens.len() {
            let what = if scored == 0 { "answer" } else { "question" };
            return Err(Failure::Document(format!("the tokenizer makes no tokens of the {what}")));
        }
        if scored > longest {
            return Err(Failure::Document(format!(
                "an answer has {scored} tokens, more than the model's context of {longest}"
            )));
        }
        let from = tokens.len().saturating_sub(longest + 1);
        requests.push(Request { tokens: tokens[from..].to_vec(), scored });
    }
    Ok(requests)
}
