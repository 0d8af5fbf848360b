//! Stop strings: a text ends before the first of them.
//!
//! The rule does not depend on how a text is cut into tokens. Of all occurrences of all stop strings the one that is
//! complete first counts, and of several that are complete at the same character the longest. The text ends before it.

use qqq_model::{ModelError, Result, Tokenizer};

/// Texts that end a generation.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    /// Those that are special tokens, which give no text: their ids.
    special: Vec<(u32, usize)>,
}

impl StopStrings {
    /// Stop strings for the texts of a tokenizer. One that is the text of a special token (`<|im_end|>`) stands for
    /// that token, wherever it comes from; all others are looked for in the new text.
    ///
    /// # Errors
    /// One of them is empty.
    pub fn new(strings: Vec<String>, tokenizer: &Tokenizer) -> Result<Self> {
        let mut special = Vec::new();
        for (i, string) in strings.iter().enumerate() {
            if string.is_empty() {
                return Err(ModelError::Request("a stop string is empty".into()));
            }
            if let Some(id) = tokenizer.token_to_id(string)
                && tokenizer.decode(&[id], true)?.is_empty()
            {
                special.push((id, i));
            }
        }
        Ok(Self { strings, special })
    }

    /// The strings, as given.
    pub fn strings(&self) -> &[String] {
        &self.strings
    }

    /// The string that a special token stands for.
    pub(crate) fn special(&self, id: u32) -> Option<usize> {
        self.special.iter().find(|(special, _)| *special == id).map(|(_, index)| *index)
    }
}

/// A text that comes piece by piece; holds back what may be the beginning of a stop string.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    held: String,
}

impl Watch {
    /// Adds a piece. Gives what no later piece can take back, and the stop string before which the text ends, if it does.
    pub fn push(&mut self, piece: &str, strings: &[String]) -> (String, Option<usize>) {
        self.held += piece;
        if let Some((start, index)) = first(&self.held, strings) {
            self.held.truncate(start);
            return (std::mem::take(&mut self.held), Some(index));
        }
        let kept = self.held.split_off(self.held.len() - open(&self.held, strings));
        (std::mem::replace(&mut self.held, kept), None)
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Where the stop string that is complete first begins, and which it is.
fn first(text: &str, strings: &[String]) -> Option<(usize, usize)> {
    let found = strings.iter().enumerate().filter_map(|(i, s)| Some((text.find(s)?, i)));
    found.min_by_key(|(start, i)| (start + strings[*i].len(), *start))
}

/// Bytes at the end of `text` with which a stop string may begin.
fn open(text: &str, strings: &[String]) -> usize {
    let beginnings = strings.iter().flat_map(|s| s.char_indices().map(|(len, _)| &s[..len]));
    beginnings.filter(|b| text.ends_with(b)).map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(strings: &[&str]) -> Vec<String> {
        strings.iter().map(|s| (*s).to_owned()).collect()
    }

    /// The rule, written down anew: character by character.
    fn expected(text: &str, strings: &[String]) -> (String, Option<usize>) {
        for end in text.char_indices().map(|(i, c)| i + c.len_utf8()) {
            let complete = strings.iter().enumerate().filter(|(_, s)| text[..end].ends_with(s.as_str()));
            if let Some((i, s)) = complete.max_by_key(|(i, s)| (s.len(), usize::MAX - i)) {
                return (text[..end - s.len()].to_owned(), Some(i));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn the_result_does_not_depend_on_the_pieces() {
        let cases: [(&str, &[&str]); 9] = [
            ("abcabcabd", &["abd"]),
            ("aaaaab", &["aab"]),
            ("xabcd", &["bcd", "c"]),
            ("xabcd", &["c", "abc", "bc"]),
            ("a\n\nUser: b", &["\nUser:", "###"]),
            ("ééê漢字", &["ê漢"]),
            ("nothing", &["thing!", "ngg"]),
            ("stop", &["stop"]),
            ("free", &[]),
        ];
        for (text, strings) in cases {
            let strings = owned(strings);
            let wanted = expected(text, &strings);
            let chars: Vec<char> = text.chars().collect();
            for cuts in 0..1u32 << (chars.len() - 1) {
                let mut pieces = vec![String::new()];
                for (i, c) in chars.iter().enumerate() {
                    pieces.last_mut().unwrap().push(*c);
                    if cuts >> i & 1 == 1 {
                        pieces.push(String::new());
                    }
                }
                let (mut watch, mut shown, mut found) = (Watch::default(), String::new(), None);
                for piece in &pieces {
                    let (new, hit) = watch.push(piece, &strings);
                    shown += &new;
                    assert!(wanted.0.starts_with(&shown), "{text:?} {strings:?} {pieces:?}: {shown:?} shown");
                    if hit.is_some() {
                        found = hit;
                        break;
                    }
                }
                if found.is_none() {
                    shown += &watch.finish();
                }
                assert_eq!((shown, found), wanted, "{strings:?} {pieces:?}");
            }
        }
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let strings = owned(&["abab!"]);
        let mut watch = Watch::default();
        assert_eq!(watch.push("xaba", &strings), ("x".into(), None));
        assert_eq!(watch.push("c", &strings), ("abac".into(), None));
        assert_eq!(watch.push("ab", &strings), (String::new(), None));
        assert_eq!(watch.push("ab", &strings), (String::new(), None));
        assert_eq!(watch.push("ab", &strings), ("ab".into(), None));
        assert_eq!(watch.finish(), "abab");
    }
}
