//! Chat templates.

use qqq_formats::Checkpoint;

use crate::{Result, Tokenizer};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text.
    pub content: String,
}

/// A model's chat template (Jinja).
pub struct ChatTemplate {}

impl ChatTemplate {
    /// The template that comes with a checkpoint, `None` if it has none.
    pub fn load(_checkpoint: &Checkpoint, _tokenizer: &Tokenizer) -> Result<Option<Self>> {
        unimplemented!()
    }

    /// The prompt for a conversation.
    pub fn render(&self, _messages: &[Message], _add_generation_prompt: bool) -> Result<String> {
        unimplemented!()
    }
}
