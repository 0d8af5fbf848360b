//! Methods of `str` that take a text apart, and `strip`.

use super::chars::{is_line_end, is_space};

/// `str.split(separator, limit)`, or `rsplit`; without a separator at whitespace. A limit below 0 is none.
pub fn split(text: &str, separator: Option<&str>, limit: i128, from_end: bool) -> Vec<String> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let owned = |parts: Vec<&str>| parts.into_iter().map(str::to_owned).collect::<Vec<_>>();
    match (separator, from_end) {
        (Some(separator), false) => owned(text.splitn(limit.saturating_add(1), separator).collect()),
        (Some(separator), true) => {
            let mut parts: Vec<&str> = text.rsplitn(limit.saturating_add(1), separator).collect();
            parts.reverse();
            owned(parts)
        }
        (None, false) => {
            let mut parts = Vec::new();
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() {
                if parts.len() == limit {
                    parts.push(rest);
                    break;
                }
                let end = rest.find(is_space).unwrap_or(rest.len());
                parts.push(&rest[..end]);
                rest = rest[end..].trim_start_matches(is_space);
            }
            owned(parts)
        }
        (None, true) => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                if parts.len() == limit {
                    parts.push(rest);
                    break;
                }
                let end = rest.char_indices().rev().find(|(_, c)| is_space(*c));
                let begin = end.map_or(0, |(i, c)| i + c.len_utf8());
                parts.push(&rest[begin..]);
                rest = rest[..begin].trim_end_matches(is_space);
            }
            parts.reverse();
            owned(parts)
        }
    }
}

/// `str.splitlines`: at all of Unicode's line boundaries.
pub fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((end, c)) = rest.char_indices().find(|(_, c)| is_line_end(*c)) else {
            lines.push(rest);
            break;
        };
        let pair = rest[end..].starts_with("\r\n");
        let next = end + if pair { 2 } else { c.len_utf8() };
        lines.push(&rest[..if keep_ends { next } else { end }]);
        rest = &rest[next..];
    }
    lines
}

/// `str.partition`, or `rpartition`.
pub fn partition<'a>(text: &'a str, separator: &'a str, from_end: bool) -> [&'a str; 3] {
    let found = if from_end { text.rsplit_once(separator) } else { text.split_once(separator) };
    match found {
        Some((before, after)) => [before, separator, after],
        None if from_end => ["", "", text],
        None => [text, "", ""],
    }
}

/// `str.strip`, `lstrip`, `rstrip`: whitespace, or the characters of a text.
pub fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let strips = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(strips) } else { text };
    if right { text.trim_end_matches(strips) } else { text }
}
