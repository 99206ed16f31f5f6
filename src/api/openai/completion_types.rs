//! Completions' JSON, private to this dialect.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chat_types::{LOGPROB_MIN, StreamOptions, UsageObject};
use crate::api::numbers::Whole;
use crate::protocol::{Prompt, TokenId, TokenLogprob};
use crate::text::Tokenizer;

/// The fields of a request that only this dialect has; sampling is in `api::fields`.
#[derive(Debug, Deserialize)]
pub(super) struct CompletionRequest {
    pub(super) model: Option<String>,
    pub(super) prompt: Option<PromptField>,
    pub(super) echo: Option<bool>,
    pub(super) best_of: Option<Whole>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    /// vLLM's: a lower one goes first.
    pub(super) priority: Option<Whole>,
}

/// A prompt in any of the four shapes: a text, token ids, or a list of either.
#[derive(Debug)]
pub(super) struct PromptField(pub(super) Vec<Prompt>);

impl<'de> Deserialize<'de> for PromptField {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct PromptsVisitor;
        impl<'de> Visitor<'de> for PromptsVisitor {
            type Value = PromptField;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of token ids, or a list of strings or of lists of token ids")
            }
            fn visit_str<E>(self, text: &str) -> Result<PromptField, E> {
                Ok(PromptField(vec![Prompt::Text(text.to_owned())]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<PromptField, A::Error> {
                // Ids by the hundred thousand are a list of numbers here from the first on.
                let (mut tokens, mut prompts) = (Vec::new(), Vec::new());
                while let Some(element) = elements.next_element()? {
                    match element {
                        Element::Token(id) => tokens.push(id),
                        Element::Prompt(prompt) => prompts.push(prompt),
                    }
                    if !tokens.is_empty() && !prompts.is_empty() {
                        return Err(serde::de::Error::custom("a list holds token ids or prompts, not both"));
                    }
                }
                Ok(PromptField(if prompts.is_empty() { vec![Prompt::Tokens(tokens)] } else { prompts }))
            }
        }
        d.deserialize_any(PromptsVisitor)
    }
}

/// One token of a prompt, or a prompt.
enum Element {
    Token(TokenId),
    Prompt(Prompt),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ElementVisitor;
        impl<'de> Visitor<'de> for ElementVisitor {
            type Value = Element;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token id, a string or a list of token ids")
            }
            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Element, E> {
                let id = TokenId::try_from(id);
                id.map(Element::Token).map_err(|_| E::custom("a token id has 32 bits"))
            }
            fn visit_str<E>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Prompt(Prompt::Text(text.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, tokens: A) -> Result<Element, A::Error> {
                let tokens = Deserialize::deserialize(SeqAccessDeserializer::new(tokens))?;
                Ok(Element::Prompt(Prompt::Tokens(tokens)))
            }
        }
        d.deserialize_any(ElementVisitor)
    }
}

/// The answer to a call without `stream`, and one chunk of a stream.
#[derive(Debug, Serialize)]
pub(super) struct TextCompletion<'a> {
    pub(super) id: Cow<'a, str>,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: Cow<'a, str>,
    pub(super) choices: Vec<TextChoice<'a>>,
    /// In a stream, left out unless the client asked for it; then `null` but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<UsageObject>>,
}

#[derive(Debug, Serialize)]
pub(super) struct TextChoice<'a> {
    pub(super) text: Cow<'a, str>,
    pub(super) index: usize,
    pub(super) logprobs: Option<TextLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
}

/// Log-probabilities as four lists, one entry per token.
#[derive(Debug, Default, Serialize)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    /// `null` for the first token of a prompt, which follows nothing.
    token_logprobs: Vec<Option<f32>>,
    /// Each an object from a token's text to its log-probability.
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// A prompt's first token.
    pub(super) fn push_first(&mut self, token: TokenId, tokenizer: &Tokenizer, offset: &mut usize) {
        self.push_spelling(token, tokenizer, offset);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    /// A token that was measured; `offset` is where it begins, and then where it ends.
    pub(super) fn push(&mut self, logprob: &TokenLogprob, tokenizer: &Tokenizer, offset: &mut usize) {
        self.push_spelling(logprob.token, tokenizer, offset);
        self.token_logprobs.push(Some(finite(logprob.logprob)));
        // The token itself is always among them, as OpenAI has it: `logprobs + 1` entries where it is none of the top.
        let own = std::iter::once((logprob.token, logprob.logprob));
        let top = logprob.top.iter().copied().chain(own).map(|(id, p)| (spelling(id, tokenizer), number(finite(p))));
        self.top_logprobs.push(Some(top.collect()));
    }

    fn push_spelling(&mut self, token: TokenId, tokenizer: &Tokenizer, offset: &mut usize) {
        self.text_offset.push(*offset);
        let bytes = tokenizer.token_bytes(token);
        // Characters begin where a byte is none that continues one.
        *offset += bytes.iter().filter(|b| (**b as i8) >= -0x40).count();
        self.tokens.push(spelling(token, tokenizer));
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LOGPROB_MIN }
}

/// With the digits that it has as an `f32`: clients compare the two lists to see whether a token is the likeliest.
fn number(logprob: f32) -> Value {
    logprob.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// A token's text; OpenAI's `bytes:\x..` where it is part of a character, a control token's own spelling.
fn spelling(token: TokenId, tokenizer: &Tokenizer) -> String {
    let bytes = tokenizer.token_bytes(token);
    match std::str::from_utf8(bytes) {
        Ok("") => tokenizer.special_spelling(token).unwrap_or_default().to_owned(),
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}
