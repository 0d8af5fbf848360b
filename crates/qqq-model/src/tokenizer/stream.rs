//! Decoding token by token.

use super::Tokenizer;
use crate::Result;

/// A token may hold part of a character, so text is given out only when no character is open. No
/// character has more bytes than this many tokens can hold: what is longer is not UTF-8.
const MAX_PENDING: usize = 8;

/// Incremental decoding: holds back bytes of an incomplete character.
///
/// Two windows are decoded and compared, as a token's text can depend on those before it (the space
/// that SentencePiece puts before a word is dropped at the beginning of a text).
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens of the last piece given out, then the pending ones.
    window: Vec<u32>,
    /// Where the pending ones begin.
    pending: usize,
}

impl<'a> TokenStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        TokenStream { tokenizer, window: Vec::new(), pending: 0 }
    }

    /// Adds an id; returns the new complete text, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.window.push(id);
        let new = self.new_text()?;
        // A replacement character at the end: bytes of a character still to be completed.
        let open = new.is_empty() || new.ends_with('\u{fffd}');
        if open && self.window.len() - self.pending < MAX_PENDING {
            return Ok(None);
        }
        self.window.drain(..self.pending);
        self.pending = self.window.len();
        Ok(Some(new).filter(|s| !s.is_empty()))
    }

    /// What is left at the end (incomplete characters as U+FFFD).
    pub fn finish(self) -> Result<Option<String>> {
        Ok(Some(self.new_text()?).filter(|s| !s.is_empty()))
    }

    /// Text of the pending tokens after those before them.
    fn new_text(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.window[..self.pending], true)?;
        let all = self.tokenizer.decode(&self.window, true)?;
        Ok(match all.strip_prefix(&before) {
            Some(new) => new.to_owned(),
            // The pending bytes changed how those before them decode (bytes that are no UTF-8).
            None => self.tokenizer.decode(&self.window[self.pending..], true)?,
        })
    }
}
