//! Stand-in for the chat template until the real one is merged: ignores the source, writes ChatML.

use crate::error::Result;
use crate::protocol::ChatMessage;

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate;

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// # Errors
    /// If the source does not compile.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let _ = (source, bos, eos);
        Ok(Self)
    }

    /// The prompt text of `messages`.
    ///
    /// # Errors
    /// If the template refuses the messages.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let mut text = String::new();
        for m in messages {
            text.push_str(&format!("<|im_start|>{}\n{}<|im_end|>\n", m.role, m.content));
        }
        if add_generation_prompt {
            text.push_str("<|im_start|>assistant\n");
        }
        Ok(text)
    }
}
