//! Jinja2's lexer: template source to tokens, whitespace control included.
//!
//! `trim_blocks` and `lstrip_blocks` are on and one newline at the end is dropped, as transformers
//! sets up its environment.

use super::SyntaxError;
use crate::chat::python::chars::{is_identifier, is_space};

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// Text outside of tags.
    Data(String),
    /// `{{`, which begins an expression that is written.
    VariableBegin,
    /// `}}`, which ends an expression that is written.
    VariableEnd,
    /// `{%`, which begins a statement.
    BlockBegin,
    /// `%}`, which ends a statement.
    BlockEnd,
    /// An identifier or keyword.
    Name(String),
    /// A string literal, unescaped.
    Str(String),
    /// An integer literal.
    Int(i128),
    /// A float literal.
    Float(f64),
    /// An operator or bracket.
    Op(&'static str),
    /// The end of the template.
    Eof,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Data(_) => f.write_str("text"),
            Token::VariableBegin => f.write_str("{{"),
            Token::VariableEnd => f.write_str("}}"),
            Token::BlockBegin => f.write_str("{%"),
            Token::BlockEnd => f.write_str("%}"),
            Token::Name(name) => f.write_str(name),
            Token::Str(text) => write!(f, "{text:?}"),
            Token::Int(n) => write!(f, "{n}"),
            Token::Float(x) => write!(f, "{x}"),
            Token::Op(op) => f.write_str(op),
            Token::Eof => f.write_str("the end of the template"),
        }
    }
}

/// Longest first: `**` is not two `*`.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";", "!",
];

/// Splits a template into tokens with their lines.
///
/// # Errors
/// A tag that does not end, brackets that do not match, a character or an escape that Jinja2 does not know.
pub fn tokenize(source: &str) -> Result<Vec<(usize, Token)>, SyntaxError> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_start: true, tokens: Vec::new() };
    lexer.root()?;
    let line = lexer.line;
    lexer.tokens.push((line, Token::Eof));
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// Whether what was read last ended in a newline: then a tag may be the first thing on its line.
    line_start: bool,
    tokens: Vec<(usize, Token)>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { line: self.line, message: message.into() })
    }

    /// Steps over `n` bytes.
    fn advance(&mut self, n: usize) -> &'a str {
        let text = &self.source[self.at..self.at + n];
        self.line += text.matches('\n').count();
        self.line_start = text.ends_with('\n');
        self.at += n;
        text
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((self.line, token));
    }

    fn root(&mut self) -> Result<(), SyntaxError> {
        loop {
            let Some((offset, kind)) = next_tag(self.rest()) else {
                let text = self.rest();
                self.data(text);
                self.advance(text.len());
                return Ok(());
            };
            let text = &self.rest()[..offset];
            let raw = if kind == '%' { raw_tag(&self.rest()[offset..], "raw") } else { None };
            let sign = self.rest()[offset + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let text = self.stripped(text, sign, kind != '{');
            self.data(text);
            self.advance(offset);
            if let Some(length) = raw {
                self.advance(length);
                self.raw()?;
                continue;
            }
            self.advance(2 + usize::from(sign.is_some()));
            match kind {
                '#' => self.comment()?,
                '%' => self.tag(Token::BlockBegin)?,
                _ => self.tag(Token::VariableBegin)?,
            }
        }
    }

    /// What is left of the text before a tag.
    fn stripped(&self, text: &'a str, sign: Option<char>, block: bool) -> &'a str {
        if sign == Some('-') {
            return text.trim_end_matches(is_space);
        }
        if sign == Some('+') || !block {
            return text;
        }
        let last_line = text.rfind('\n').map_or(0, |i| i + 1);
        if (last_line > 0 || self.line_start) && text[last_line..].chars().all(is_space) {
            return &text[..last_line];
        }
        text
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Data(text.to_owned()));
        }
    }

    fn comment(&mut self) -> Result<(), SyntaxError> {
        let Some(end) = self.rest().find("#}") else {
            return self.fail("a comment does not end");
        };
        let sign = self.rest()[..end].chars().last().filter(|c| matches!(c, '-' | '+'));
        let after = &self.rest()[end + 2..];
        self.advance(end + 2 + block_suffix(after, sign));
        Ok(())
    }

    fn raw(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let end = rest.match_indices("{%").find_map(|(i, _)| raw_tag(&rest[i..], "endraw").map(|n| (i, n)));
        let Some((start, length)) = end else {
            return self.fail("the tag raw does not end");
        };
        let sign = rest[start + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
        let text = self.stripped(&rest[..start], sign, true);
        self.data(text);
        self.advance(start + length);
        Ok(())
    }

    fn tag(&mut self, begin: Token) -> Result<(), SyntaxError> {
        let block = begin == Token::BlockBegin;
        let (close, end) = if block { ("%}", Token::BlockEnd) } else { ("}}", Token::VariableEnd) };
        self.push(begin);
        let mut open: Vec<&str> = Vec::new();
        loop {
            let rest = self.rest();
            let sign = rest.chars().next().filter(|c| *c == '-' || (*c == '+' && block));
            let unsigned = &rest[usize::from(sign.is_some())..];
            if open.is_empty() && unsigned.starts_with(close) {
                let after = &unsigned[2..];
                let suffix = if block || sign == Some('-') { block_suffix(after, sign) } else { 0 };
                self.push(end);
                self.advance(rest.len() - after.len() + suffix);
                return Ok(());
            }
            let Some(first) = rest.chars().next() else {
                return self.fail(format!("unexpected end of the template, expected {close}"));
            };
            if is_space(first) {
                self.advance(rest.len() - rest.trim_start_matches(is_space).len());
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if first == '_' || first.is_alphanumeric() {
                let length = rest.find(|c: char| c != '_' && !is_identifier(c)).unwrap_or(rest.len());
                self.push(Token::Name(rest[..length].to_owned()));
                self.advance(length);
            } else if first == '"' || first == '\'' {
                self.string(first)?;
            } else {
                self.operator(&mut open)?;
            }
        }
    }

    fn operator(&mut self, open: &mut Vec<&'static str>) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let op = OPERATORS.into_iter().find(|op| rest.starts_with(op) && *op != "!");
        let Some(op) = op else {
            return self.fail(format!("unexpected character {:?}", rest.chars().next().unwrap_or_default()));
        };
        match op {
            "(" => open.push(")"),
            "[" => open.push("]"),
            "{" => open.push("}"),
            ")" | "]" | "}" => match open.pop() {
                None => return self.fail(format!("unexpected '{op}'")),
                Some(expected) if expected != op => {
                    return self.fail(format!("unexpected '{op}', expected '{expected}'"));
                }
                Some(_) => {}
            },
            _ => {}
        }
        self.push(Token::Op(op));
        self.advance(op.len());
        Ok(())
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let after_dot = self.source[..self.at].ends_with('.');
        if let Some(length) = float_length(rest).filter(|_| !after_dot) {
            let value = rest[..length].replace('_', "").parse();
            let Ok(value) = value else { return self.fail(format!("bad number {}", &rest[..length])) };
            self.push(Token::Float(value));
            self.advance(length);
            return Ok(());
        }
        let (radix, prefix) = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0b") => (2, 2),
            Some("0o") => (8, 2),
            Some("0x") => (16, 2),
            _ => (10, 0),
        };
        let mut digits = String::new();
        let mut length = prefix;
        // A leading zero is followed by zeros only, as in Python.
        let zeros = prefix == 0 && rest.starts_with('0');
        while let Some(c) = rest[length..].chars().next() {
            let next = rest[length + c.len_utf8()..].chars().next();
            let digit = |c: char| if zeros { c == '0' } else { c.is_digit(radix) };
            if digit(c) {
                digits.push(c);
            } else if !(c == '_' && next.is_some_and(digit) && (prefix > 0 || !digits.is_empty())) {
                break;
            }
            length += c.len_utf8();
        }
        if digits.is_empty() {
            (digits, length) = ("0".into(), 1); // `0x` without digits is 0 and a name
        }
        match i128::from_str_radix(&digits, if digits == "0" { 10 } else { radix }) {
            Ok(value) => self.push(Token::Int(value)),
            Err(_) => return self.fail(format!("the integer {} is too large", &rest[..length])),
        }
        self.advance(length);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest[1..].char_indices().find(|&(_, c)| {
            let is_end = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        });
        let Some((end, _)) = end else {
            return self.fail("a string does not end");
        };
        match unescape(&rest[1..=end]) {
            Ok(text) => self.push(Token::Str(text)),
            Err(message) => return self.fail(message),
        }
        self.advance(end + 2);
        Ok(())
    }
}

/// Where the next tag begins, and its second character.
fn next_tag(text: &str) -> Option<(usize, char)> {
    let bytes = text.as_bytes();
    (0..bytes.len().saturating_sub(1))
        .find(|&i| bytes[i] == b'{' && matches!(bytes[i + 1], b'{' | b'%' | b'#'))
        .map(|i| (i, char::from(bytes[i + 1])))
}

/// Length of the tag `raw` or `endraw` at the beginning of a text, with the whitespace it takes.
fn raw_tag(text: &str, name: &str) -> Option<usize> {
    let rest = text.strip_prefix("{%")?;
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).trim_start_matches(is_space);
    let rest = rest.strip_prefix(name)?.trim_start_matches(is_space);
    let sign = rest.chars().next().filter(|c| *c == '-' || (*c == '+' && name == "endraw"));
    let rest = rest[usize::from(sign.is_some())..].strip_prefix("%}")?;
    // The newline after `raw` stays, the one after `endraw` does not.
    let suffix = if name == "raw" && sign.is_none() { 0 } else { block_suffix(rest, sign) };
    Some(text.len() - rest.len() + suffix)
}

/// Bytes of whitespace that the end of a block takes from what follows.
fn block_suffix(after: &str, sign: Option<char>) -> usize {
    match sign {
        Some('-') => after.len() - after.trim_start_matches(is_space).len(),
        Some(_) => 0,
        None => usize::from(after.starts_with('\n')),
    }
}

/// Length of the float at the beginning of a text.
fn float_length(text: &str) -> Option<usize> {
    let digits = |from: usize| {
        let bytes = &text.as_bytes()[from..];
        if !bytes.first().is_some_and(u8::is_ascii_digit) {
            return 0;
        }
        let mut n = 0;
        while n < bytes.len() {
            let underscore = bytes[n] == b'_' && bytes.get(n + 1).is_some_and(u8::is_ascii_digit);
            if !bytes[n].is_ascii_digit() && !underscore {
                break;
            }
            n += 1;
        }
        n
    };
    let bytes = text.as_bytes();
    let whole = digits(0);
    let mut end = whole;
    let mut float = false;
    if bytes.get(end) == Some(&b'.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
        float = true;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        if bytes.len() > end + 1 + sign && digits(end + 1 + sign) > 0 {
            return Some(end + 1 + sign + digits(end + 1 + sign));
        }
    }
    (float && whole > 0).then_some(end)
}

/// Python's `text.encode("ascii", "backslashreplace").decode("unicode-escape")`.
fn unescape(text: &str) -> Result<String, String> {
    let mut ascii = String::new();
    for c in text.chars() {
        match u32::from(c) {
            0..=0x7f => ascii.push(c),
            n @ 0x80..=0xff => ascii += &format!("\\x{n:02x}"),
            n @ 0x100..=0xffff => ascii += &format!("\\u{n:04x}"),
            n => ascii += &format!("\\U{n:08x}"),
        }
    }
    let mut out = String::new();
    let mut rest = ascii.as_str();
    while let Some(at) = rest.find('\\') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        let c = rest.chars().next().ok_or("\\ at end of string")?;
        rest = &rest[1..];
        let simple = match c {
            '\n' => continue,
            '\\' | '\'' | '"' => c,
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            'x' | 'u' | 'U' => {
                let n = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let digits = rest.get(..n).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
                let digits = digits.ok_or(format!("truncated \\{c} escape in a string"))?;
                rest = &rest[n..];
                let code = u32::from_str_radix(digits, 16).map_err(|e| e.to_string())?;
                char::from_u32(code)
                    .ok_or(format!("the escape \\{c}{digits} is no character (a lone surrogate)"))?
            }
            '0'..='7' => {
                let n = 1 + rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let digits = format!("{c}{}", &rest[..n - 1]);
                rest = &rest[n - 1..];
                let code = u32::from_str_radix(&digits, 8).map_err(|e| e.to_string())?;
                char::from_u32(code).ok_or("octal escape out of range")?
            }
            'N' => return Err("characters by name (\\N{...}) in strings are not supported".into()),
            other => {
                out.push('\\');
                other
            }
        };
        out.push(simple);
    }
    Ok(out + rest)
}
