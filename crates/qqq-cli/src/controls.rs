//! Control characters in what a terminal gets.
//!
//! A terminal obeys them: they move the cursor, change colours, titles and the clipboard, or have it answer as if somebody
//! had typed. What a model or a file says is to be read, not obeyed.

use std::borrow::Cow;

/// The text with its control characters as `^X`, all but line feeds and tabs: those of ASCII in caret notation, those of
/// Latin-1 as the escape sequences of two characters that they stand for (ECMA-48, 5.3), U+009B as `^[[`.
pub fn visible(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(is_obeyed) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_obeyed(c) => out.push(c),
            '\u{80}'..='\u{9F}' => out.extend(['^', '[', letter(c)]),
            '\u{7F}' => out.push_str("^?"),
            c => out.extend(['^', letter(c)]),
        }
    }
    out.into()
}

/// The character between `@` and `_` that stands for a control character.
fn letter(c: char) -> char {
    char::from((c as u8 & 0x1F) + b'@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_seen() {
        assert_eq!(visible("a\tb\nc é 漢 👍🏽"), "a\tb\nc é 漢 👍🏽");
        assert_eq!(visible("\x1b[31mred\x1b]0;title\x07"), "^[[31mred^[]0;title^G");
        assert_eq!(visible("\0a\r\n\x1f\x7f"), "^@a^M\n^_^?");
        assert_eq!(visible("\u{9b}31m\u{80}\u{9f}\u{a0}"), "^[[31m^[@^[_\u{a0}");
        let all: String = ('\0'..='\u{ff}').collect();
        assert!(!visible(&all).contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
    }
}
