//! `wordwrap`: Python's `textwrap.wrap` for each line.

use crate::chat::python::chars::{is_space, is_word};
use crate::chat::python::split;
use crate::chat::python::value::{Args, Result, as_int, fail, text};

/// The filter.
///
/// # Errors
/// A width that is not positive.
pub(super) fn call(s: &str, args: Args) -> Result<String> {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let [width, long, wrap, hyphens] = args.bind("wordwrap", names, 0)?;
    let width = width.as_ref().map_or(Some(79), as_int).and_then(|n| usize::try_from(n).ok());
    let Some(width) = width.filter(|n| *n > 0) else {
        return fail("wordwrap: the width must be a positive integer");
    };
    let wrap = match wrap.as_ref().filter(|v| !v.is_none()) {
        Some(v) => text(v, "wordwrap")?,
        None => "\n",
    };
    let truth = |v: Option<minijinja::Value>| v.is_none_or(|v| v.is_true());
    let (long, hyphens) = (truth(long), truth(hyphens));
    let lines = split::lines(s, false);
    let wrapped = lines.iter().map(|line| wrap_line(line, width, long, hyphens).join(wrap));
    Ok(wrapped.collect::<Vec<_>>().join(wrap))
}

fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\x0b' | '\x0c' | '\r' | ' ')
}

fn wrap_line(line: &str, width: usize, break_long_words: bool, break_on_hyphens: bool) -> Vec<String> {
    let chars: Vec<char> = line.chars().collect();
    let mut chunks: Vec<Vec<char>> = chunks(&chars, break_on_hyphens);
    chunks.reverse();
    let blank = |chunk: &Vec<char>| chunk.iter().all(|c| is_space(*c));
    let mut lines = Vec::new();
    while let Some(first) = chunks.last() {
        if blank(first) && !lines.is_empty() {
            chunks.pop();
        }
        let (mut current, mut length): (Vec<Vec<char>>, usize) = (Vec::new(), 0);
        while let Some(chunk) = chunks.pop_if(|c| length + c.len() <= width) {
            length += chunk.len();
            current.push(chunk);
        }
        if let Some(chunk) = chunks.last_mut().filter(|c| c.len() > width) {
            let room = width - length;
            if break_long_words {
                let mut end = room;
                if break_on_hyphens
                    && let Some(hyphen) = chunk[..room].iter().rposition(|c| *c == '-')
                    && chunk[..hyphen].iter().any(|c| *c != '-')
                {
                    end = hyphen + 1;
                }
                current.push(chunk.drain(..end).collect());
            } else if current.is_empty() {
                current.extend(chunks.pop());
            }
        }
        if current.last().is_some_and(blank) {
            current.pop();
        }
        if !current.is_empty() {
            lines.push(current.into_iter().flatten().collect());
        }
    }
    lines
}

/// Words and the whitespace between them; words also end after a hyphen between letters and before and
/// after a dash.
fn chunks(chars: &[char], break_on_hyphens: bool) -> Vec<Vec<char>> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let end = if is_blank(chars[at]) {
            at + chars[at..].iter().take_while(|c| is_blank(**c)).count()
        } else if !break_on_hyphens {
            at + chars[at..].iter().take_while(|c| !is_blank(**c)).count()
        } else {
            dash(chars, at).unwrap_or_else(|| word(chars, at))
        };
        out.push(chars[at..end].to_vec());
        at = end;
    }
    out
}

/// The end of two or more hyphens between words.
fn dash(chars: &[char], at: usize) -> Option<usize> {
    let before = chars[..at].last().is_some_and(|c| is_word(*c) || "!\"'&.,?".contains(*c));
    let end = at + chars[at..].iter().take_while(|c| **c == '-').count();
    (before && end >= at + 2 && chars.get(end).is_some_and(|c| is_word(*c))).then_some(end)
}

fn word(chars: &[char], at: usize) -> usize {
    let letter = |i: Option<usize>| {
        i.and_then(|i| chars.get(i))
            .is_some_and(|c| is_word(*c) && crate::chat::python::chars::decimal(*c).is_none())
    };
    let hyphen = |i: Option<usize>| i.and_then(|i| chars.get(i)) == Some(&'-');
    let back = |end: usize, n: usize| end.checked_sub(n);
    for end in at + 1..=chars.len() {
        if end == chars.len() || is_blank(chars[end]) {
            return end;
        }
        let after_letters =
            letter(back(end, 1)) && (letter(back(end, 2)) || (hyphen(back(end, 2)) && letter(back(end, 3))));
        let next = if hyphen(Some(end + 2)) { end + 3 } else { end + 2 };
        if hyphen(Some(end)) && after_letters && letter(Some(end + 1)) && letter(Some(next)) {
            return end + 1;
        }
        if dash(chars, end).is_some() {
            return end;
        }
    }
    chars.len()
}
