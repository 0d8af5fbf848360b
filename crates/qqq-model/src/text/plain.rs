//! Plain text, in blocks.

use std::{
    io::{BufRead, Read},
    path::Path,
};

use super::{TextError, TextProblem, decode::read_error};
use crate::Result;

const BLOCK: u64 = 64 << 10;

pub(super) struct Plain {
    reader: Box<dyn BufRead>,
    /// The beginning of a character that the last block has cut.
    rest: Vec<u8>,
    line: usize,
    byte: u64,
}

impl Plain {
    pub fn new(reader: Box<dyn BufRead>) -> Self {
        Self { reader, rest: Vec::new(), line: 1, byte: 0 }
    }

    /// The next block, never empty.
    pub fn next_piece(&mut self, path: &Path) -> Result<Option<String>> {
        let mut bytes = std::mem::take(&mut self.rest);
        let read = (&mut self.reader).take(BLOCK).read_to_end(&mut bytes).map_err(|e| read_error(path, e))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if let Err(e) = std::str::from_utf8(&bytes) {
            let valid = e.valid_up_to();
            if e.error_len().is_some() || read == 0 || valid == 0 {
                let line = self.line + bytes[..valid].iter().filter(|b| **b == b'\n').count();
                let byte = self.byte + valid as u64;
                return Err(TextError::line(
                    path,
                    line,
                    TextProblem::Content,
                    format!("it is not UTF-8 text (byte {byte} is invalid); convert it, for instance with iconv -t utf-8"),
                )
                .into());
            }
            self.rest = bytes.split_off(valid);
        }
        self.line += bytes.iter().filter(|b| **b == b'\n').count();
        self.byte += bytes.len() as u64;
        // Checked above.
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}
