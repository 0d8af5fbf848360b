//! Methods of `str` that return a `str` or a number: case, padding, tabs, searching, what it is made of.

use super::chars::{
    decimal, is_alnum, is_alpha, is_cased, is_digit, is_identifier, is_numeric, is_printable, is_space,
    is_title, push_title,
};
use super::value::{Result, check_size};

/// `str.capitalize`: the first character in title case, the others in lower case.
pub fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let mut out = String::new();
    if let Some(first) = chars.next() {
        push_title(&mut out, first);
        // Lowered as a part of the whole: a final sigma depends on what stands before it.
        let lowered = text.to_lowercase();
        let skip = first.to_lowercase().count();
        out.extend(lowered.chars().skip(skip));
    }
    out
}

/// `str.title`: letters after what is no letter are capitals.
pub fn title(text: &str) -> String {
    let lowered = |c: char, out: &mut String| out.extend(c.to_lowercase());
    let mut out = String::new();
    let mut after_cased = false;
    for c in text.chars() {
        if after_cased {
            lowered(c, &mut out)
        } else {
            push_title(&mut out, c)
        }
        after_cased = is_cased(c);
    }
    out
}

/// `str.swapcase`: upper case for lower case and the other way.
pub fn swapcase(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else if c.is_lowercase() {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// `str.ljust`, `rjust` and `center`, by what is filled on the left of so many characters.
///
/// # Errors
/// The width is too large.
pub fn pad(text: &str, width: usize, fill: char, side: fn(usize, usize) -> usize) -> Result<String> {
    let room = check_size(width)?.saturating_sub(text.chars().count());
    let left = side(room, width);
    let fill = |n: usize| fill.to_string().repeat(n);
    Ok(format!("{}{text}{}", fill(left), fill(room - left)))
}

/// How `str.center` divides: the odd one goes to the left if the width is odd.
pub fn center(room: usize, width: usize) -> usize {
    room / 2 + (room & width & 1)
}

/// `str.zfill`.
///
/// # Errors
/// The width is too large.
pub fn zfill(text: &str, width: usize) -> Result<String> {
    let zeros = "0".repeat(check_size(width)?.saturating_sub(text.chars().count()));
    let digits = text.strip_prefix(['+', '-']);
    let sign = &text[..text.len() - digits.unwrap_or(text).len()];
    Ok(format!("{sign}{zeros}{}", digits.unwrap_or(text)))
}

/// `str.expandtabs`.
///
/// # Errors
/// The result is too large.
pub fn expandtabs(text: &str, size: usize) -> Result<String> {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' => {
                let n = if size == 0 { 0 } else { size - column % size };
                check_size(out.len().saturating_add(n))?;
                out.push_str(&" ".repeat(n));
                column += n;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(out)
}

/// `str.istitle`: upper case at the beginnings of words alone.
pub fn is_titled(text: &str) -> bool {
    let (mut any, mut after_cased) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() || is_title(c) {
            if after_cased {
                return false;
            }
            (any, after_cased) = (true, true);
        } else if c.is_lowercase() {
            if !after_cased {
                return false;
            }
            any = true;
        } else {
            after_cased = false;
        }
    }
    any
}

/// The methods `is...` that take no argument, by name.
pub fn is(text: &str, method: &str) -> Option<bool> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let cased = |wrong: fn(char) -> bool| text.chars().any(is_cased) && !text.chars().any(wrong);
    Some(match method {
        "isalnum" => all(is_alnum),
        "isalpha" => all(is_alpha),
        "isascii" => text.is_ascii(),
        "isdecimal" => all(|c| decimal(c).is_some()),
        "isdigit" => all(is_digit),
        "isidentifier" => {
            let first = text.chars().next();
            // A letter that may go on with digits, but not begin with them or with an accent.
            first.is_some_and(|c| c == '_' || is_alpha(c) || (is_identifier(c) && is_cased(c)))
                && text.chars().all(is_identifier)
        }
        "islower" => cased(|c| c.is_uppercase() || is_title(c)),
        "isnumeric" => all(is_numeric),
        "isprintable" => text.chars().all(is_printable),
        "isspace" => all(is_space),
        "istitle" => is_titled(text),
        "isupper" => cased(|c| c.is_lowercase() || is_title(c)),
        _ => return None,
    })
}

/// Part of a text between two indices as slices have them, and where it begins; none if the start is
/// beyond the end.
pub fn part(text: &str, start: Option<i128>, end: Option<i128>) -> Option<(usize, &str)> {
    let count = text.chars().count() as i128;
    let clamp = |i: i128| if i < 0 { (i + count).max(0) } else { i };
    let (start, end) = (clamp(start.unwrap_or(0)), clamp(end.unwrap_or(count)).min(count));
    if start > end {
        return None;
    }
    let byte = |i: i128| {
        let i = usize::try_from(i).unwrap_or(usize::MAX);
        text.char_indices().nth(i).map_or(text.len(), |(at, _)| at)
    };
    Some((usize::try_from(start).unwrap_or_default(), &text[byte(start)..byte(end)]))
}

/// `str.find` and `rfind` in a part: the index in characters of the whole.
pub fn find(part: Option<(usize, &str)>, needle: &str, last: bool) -> Option<usize> {
    let (start, text) = part?;
    let at = if last { text.rfind(needle) } else { text.find(needle) }?;
    Some(start + text[..at].chars().count())
}

/// `str.count` in a part.
pub fn count(part: Option<(usize, &str)>, needle: &str) -> usize {
    match part {
        None => 0,
        Some((_, text)) if needle.is_empty() => text.chars().count() + 1,
        Some((_, text)) => text.matches(needle).count(),
    }
}

/// `str.replace`.
///
/// # Errors
/// The result is too large.
pub fn replace(text: &str, old: &str, new: &str, count: i128) -> Result<String> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = text.matches(old).count().min(count);
    check_size(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, count))
}
