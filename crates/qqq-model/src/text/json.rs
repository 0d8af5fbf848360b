//! JSON values of a file, one at a time: the elements of an array, a value a line, or values one after the other.
//!
//! Values are cut out before they are parsed, so that a large file is not held as a whole and an error knows its line.

use std::{
    io::{self, BufRead, Cursor, Read},
    path::Path,
};

use serde_json::Value;

use super::{TextError, TextProblem, decode::read_error};
use crate::{ModelError, Result};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Nothing was read yet.
    Unknown,
    /// Between the brackets of an array; `true` before its first element.
    Array(bool),
    /// A value a line.
    Lines,
    /// Values that extend over lines.
    Values,
    /// The text holds no more values.
    Done,
}

pub(super) struct JsonValues {
    reader: Box<dyn BufRead>,
    layout: Layout,
    /// Number of the line that is read next.
    line: usize,
}

impl JsonValues {
    pub fn new(reader: Box<dyn BufRead>) -> Self {
        Self { reader, layout: Layout::Unknown, line: 1 }
    }

    /// The next value, with the line where it begins.
    pub fn next_value(&mut self, path: &Path) -> Result<Option<(usize, Value)>> {
        loop {
            match self.layout {
                Layout::Unknown => {
                    if let Some(first) = self.begin(path)? {
                        return Ok(Some(first));
                    }
                }
                Layout::Array(first) => return self.element(path, first),
                Layout::Lines => return self.next_line(path),
                Layout::Values => {
                    if self.skip_space(path)?.is_none() {
                        self.layout = Layout::Done;
                        continue;
                    }
                    return self.cut_out(path).map(Some);
                }
                Layout::Done => return Ok(None),
            }
        }
    }

    /// Finds the layout out; a value a line shows by the first line, whose value is returned.
    fn begin(&mut self, path: &Path) -> Result<Option<(usize, Value)>> {
        match self.skip_space(path)? {
            None => self.layout = Layout::Done,
            Some(b'[') => {
                self.reader.consume(1);
                self.layout = Layout::Array(true);
            }
            Some(_) => {
                let line = self.line;
                let bytes = self.read_line(path)?.unwrap_or_default();
                match parse(bytes.trim_ascii_end()) {
                    Ok(value) => {
                        self.layout = Layout::Lines;
                        return Ok(Some((line, value)));
                    }
                    Err(e) if e.is_eof() => {
                        // It goes on in the next line: all of it is read again.
                        let rest = std::mem::replace(&mut self.reader, Box::new(io::empty()));
                        self.reader = Box::new(Cursor::new(bytes).chain(rest));
                        (self.layout, self.line) = (Layout::Values, line);
                    }
                    Err(e) => return Err(invalid(path, line, &e)),
                }
            }
        }
        Ok(None)
    }

    fn next_line(&mut self, path: &Path) -> Result<Option<(usize, Value)>> {
        loop {
            let line = self.line;
            match self.read_line(path)? {
                None => return Ok(None),
                Some(bytes) if bytes.trim_ascii().is_empty() => {}
                Some(bytes) => {
                    let value = parse(bytes.trim_ascii_end()).map_err(|e| invalid(path, line, &e))?;
                    return Ok(Some((line, value)));
                }
            }
        }
    }

    /// The next element of an array; behind its last one there must be nothing.
    fn element(&mut self, path: &Path, first: bool) -> Result<Option<(usize, Value)>> {
        let wrong =
            |line: usize, what: &str| Err(TextError::line(path, line, TextProblem::NotJson, what).into());
        let next = self.skip_space(path)?;
        match next {
            None => return wrong(self.line, "the JSON array does not end"),
            Some(b']') => {
                self.reader.consume(1);
                self.layout = Layout::Done;
                if self.skip_space(path)?.is_some() {
                    return wrong(
                        self.line,
                        "something follows the JSON array; a file is one array, or has an object a line",
                    );
                }
                return Ok(None);
            }
            Some(b',') if !first => {
                self.reader.consume(1);
                if self.skip_space(path)? == Some(b']') {
                    return wrong(self.line, "a comma before the end of the JSON array");
                }
            }
            Some(_) if !first => {
                return wrong(self.line, "a comma or the end of the JSON array is expected");
            }
            Some(_) => {}
        }
        self.layout = Layout::Array(false);
        self.cut_out(path).map(Some)
    }

    /// Skips white space; the byte that follows.
    fn skip_space(&mut self, path: &Path) -> Result<Option<u8>> {
        loop {
            let buffer = self.reader.fill_buf().map_err(|e| read_error(path, e))?;
            let Some(&byte) = buffer.first() else { return Ok(None) };
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.line += usize::from(byte == b'\n');
            self.reader.consume(1);
        }
    }

    fn read_line(&mut self, path: &Path) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        self.reader.read_until(b'\n', &mut bytes).map_err(|e| read_error(path, e))?;
        self.line += usize::from(bytes.ends_with(b"\n"));
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    /// Reads up to the end of a value, and parses it.
    fn cut_out(&mut self, path: &Path) -> Result<(usize, Value)> {
        let start = self.line;
        let (mut bytes, mut depth) = (Vec::new(), 0usize);
        let (mut in_string, mut escaped, mut ended) = (false, false, false);
        while !ended {
            let buffer = self.reader.fill_buf().map_err(|e| read_error(path, e))?;
            if buffer.is_empty() {
                break;
            }
            let mut used = 0;
            for &byte in buffer {
                // What ends a number and the like does not belong to it.
                if depth == 0 && !in_string && (byte.is_ascii_whitespace() || b",]}".contains(&byte)) {
                    ended = true;
                    break;
                }
                used += 1;
                self.line += usize::from(byte == b'\n');
                if in_string {
                    // A line break cannot be part of a string: parsing will say so.
                    ended = byte == b'\n' || (byte == b'"' && !escaped && depth == 0);
                    in_string = byte != b'"' || escaped;
                    escaped = byte == b'\\' && !escaped;
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => {
                            depth -= 1;
                            ended = depth == 0;
                        }
                        _ => {}
                    }
                }
                if ended {
                    break;
                }
            }
            bytes.extend_from_slice(&buffer[..used]);
            self.reader.consume(used);
        }
        let value = parse(&bytes).map_err(|e| invalid(path, start, &e))?;
        Ok((start, value))
    }
}

fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(bytes)
}

/// `start`: the line where the value begins.
fn invalid(path: &Path, start: usize, e: &serde_json::Error) -> ModelError {
    let text = e.to_string();
    let reason = text.split(" at line ").next().unwrap_or_default();
    // Behind a line break within a string, serde_json counts the next line.
    let line = (start + e.line()).saturating_sub(1 + usize::from(e.column() == 0)).max(start);
    TextError::line(path, line, TextProblem::NotJson, format!("it is not valid JSON: {reason}")).into()
}
