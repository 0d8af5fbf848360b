//! What Python says of single characters.

use super::tables::{ALPHA, CASEFOLD, DIGIT, NOT_PRINTABLE, NUMERIC, TITLE, WORD, ZEROS};

fn within(table: &[(u32, u32)], c: char) -> bool {
    let code = u32::from(c);
    let at = table.partition_point(|&(first, _)| first <= code);
    at > 0 && code <= table[at - 1].1
}

/// `str.isspace`, `\s` of regular expressions.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Where `str.splitlines` splits.
pub fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// `str.isprintable`: whether `repr` shows it as it is.
pub fn is_printable(c: char) -> bool {
    !within(NOT_PRINTABLE, c)
}

/// Whether `str.isalpha` holds for a text of this character.
pub fn is_alpha(c: char) -> bool {
    c.is_ascii_alphabetic() || within(ALPHA, c)
}

/// The value of a decimal digit of any script, as `int` reads it.
pub fn decimal(c: char) -> Option<u32> {
    let code = u32::from(c);
    let at = ZEROS.partition_point(|&zero| zero <= code);
    (at > 0 && code - ZEROS[at - 1] < 10).then(|| code - ZEROS[at - 1])
}

/// Whether `str.isdigit` holds for a text of this character.
pub fn is_digit(c: char) -> bool {
    decimal(c).is_some() || within(DIGIT, c)
}

/// Whether `str.isnumeric` holds for a text of this character.
pub fn is_numeric(c: char) -> bool {
    is_digit(c) || within(NUMERIC, c)
}

/// Whether `str.isalnum` holds for a text of this character.
pub fn is_alnum(c: char) -> bool {
    is_alpha(c) || is_numeric(c)
}

/// `\w` of regular expressions.
pub fn is_word(c: char) -> bool {
    c == '_' || is_alnum(c)
}

/// Whether an identifier may go on with it.
pub fn is_identifier(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric() || within(WORD, c)
}

/// Whether it is a cased letter: upper, lower or title.
pub fn is_cased(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase() || is_title(c)
}

/// Whether it is a letter of title case, such as `ǅ`.
pub fn is_title(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}'
        | '\u{1fa8}'..='\u{1faf}' | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

/// The character in title case.
pub fn push_title(out: &mut String, c: char) {
    match TITLE.binary_search_by_key(&c, |&(from, _)| from) {
        Ok(i) => *out += TITLE[i].1,
        Err(_) => out.extend(c.to_uppercase()),
    }
}

/// `str.casefold`: Unicode's full case folding.
pub fn casefold(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match CASEFOLD.binary_search_by_key(&c, |&(from, _)| from) {
            Ok(i) => out += CASEFOLD[i].1,
            Err(_) => out.extend(c.to_lowercase()),
        }
    }
    out
}
