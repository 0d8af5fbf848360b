//! Chat templates: any text is either refused or renders, the same each time.

use qqq_model::tokenizer::SpecialTokens;
use qqq_model::{ChatTemplate, Message};

use crate::{Outcome, text};

/// Longer ones would be slow, and say no more.
const MAX_BYTES: usize = 1 << 14;

/// Renders conversations with a template.
///
/// # Errors
/// It is no template, or it refuses all conversations.
pub fn chat_template(bytes: &[u8]) -> Outcome {
    let source = std::str::from_utf8(bytes).map_err(text)?;
    if source.len() > MAX_BYTES {
        return Err(String::from("too long"));
    }
    let token = |t: &str| Some(t.to_owned());
    let special = SpecialTokens { bos: token("<s>"), eos: token("</s>"), unk: None, pad: token("<pad>") };
    let template = ChatTemplate::new(source, &special).map_err(text)?;
    let message = |(role, content): (&str, &str)| Message { role: role.into(), content: content.into() };
    let talk = [
        ("system", "Be kind."),
        ("user", "Hi!\r\n  {{ 1 }} <s> ü😀"),
        ("assistant", " Hello "),
        ("user", ""),
    ]
    .map(message);
    let mut refusal = None;
    let mut rendered = false;
    // All of it; without the system message; a question; nothing.
    for (part, prompt) in [(&talk[..], true), (&talk[1..3], false), (&talk[1..2], true), (&[], false)] {
        match template.render(part, prompt) {
            Ok(text) => {
                // The time of day may have changed.
                if !source.contains("strftime_now") {
                    assert_eq!(template.render(part, prompt).expect("it rendered before"), text);
                }
                rendered = true;
            }
            Err(error) => refusal = Some(text(error)),
        }
    }
    match refusal {
        Some(refusal) if !rendered => Err(refusal),
        _ => Ok(()),
    }
}
