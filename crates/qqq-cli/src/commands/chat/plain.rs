//! Messages where there is no line editor: a line is a message.

use std::io::{BufRead, IsTerminal, StdinLock};

use crate::{console::Console, errors::bad_input};

/// Bytes of a line, its end included, that a terminal hands on at most (Linux); what is beyond them is lost.
const TERMINAL_LINE: usize = 4096;

/// Lines of standard input.
pub struct Lines {
    input: StdinLock<'static>,
    terminal: bool,
    first: bool,
}

impl Lines {
    /// From the next line on.
    pub fn new() -> Self {
        let stdin = std::io::stdin();
        Self { terminal: stdin.is_terminal(), input: stdin.lock(), first: true }
    }

    /// Whether a person types them.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The next line that is a text, `None` at the end. `prompt` precedes it on a terminal.
    pub fn read(&mut self, prompt: bool, console: &Console) -> anyhow::Result<Option<String>> {
        let prompt = prompt && self.terminal;
        loop {
            if prompt {
                console.raw("> ")?;
            }
            let mut bytes = Vec::new();
            let read = self.input.read_until(b'\n', &mut bytes);
            if read.map_err(|e| bad_input(format!("standard input: {e}")))? == 0 {
                if prompt {
                    console.line("")?;
                }
                return Ok(None);
            }
            if self.terminal && bytes.len() >= TERMINAL_LINE {
                console.warn(&format!(
                    "this line is left out: a terminal cuts lines at {} bytes; pipe the text into standard input, or \
                     let standard output and standard error be the terminal as well",
                    TERMINAL_LINE - 1
                ));
                continue;
            }
            match text_of(&bytes, std::mem::take(&mut self.first)) {
                Ok(line) => return Ok(Some(line.to_owned())),
                Err(reason) => console.warn(&reason),
            }
        }
    }
}

/// A line of input as text. Editors on Windows put a byte order mark before the first; it is no part of it.
fn text_of(line: &[u8], first: bool) -> Result<&str, String> {
    let line = line.strip_prefix(b"\xEF\xBB\xBF").filter(|_| first).unwrap_or(line);
    std::str::from_utf8(line).map_err(|e| {
        let at = e.valid_up_to();
        format!("this line is not UTF-8 (byte {} is {:#04x}) and is left out", at + 1, line[at])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_text() {
        assert_eq!(text_of("é\n".as_bytes(), true), Ok("é\n"));
        let reason = text_of(b"ab\xff\xfe\n", false).unwrap_err();
        assert!(reason.contains("not UTF-8 (byte 3 is 0xff)"), "{reason}");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        assert_eq!(text_of("\u{FEFF}a".as_bytes(), true), Ok("a"));
        assert_eq!(text_of("\u{FEFF}a".as_bytes(), false), Ok("\u{FEFF}a"));
    }
}
