//! What each dialect calls a field, and the sentences that its clients read by machine. The service says which rule of which
//! field is broken (`Fault`); here that becomes a sentence. Nothing rewrites a sentence that is already made.

use crate::error::{Broken, Error};
use crate::protocol::Field;

/// The words of one dialect.
#[derive(Clone, Copy)]
pub(crate) struct Words<'a> {
    /// A field's name.
    pub(crate) name: &'a dyn Fn(Field) -> String,
    /// That a prompt of so many tokens does not fit a context of so many.
    pub(crate) prompt_too_long: fn(usize, usize) -> String,
}

impl Words<'_> {
    /// Those of Chat Completions and native streams.
    pub(crate) const CHAT: Words<'static> =
        Words { name: &|field| field.to_string(), prompt_too_long: prompt_too_long_openai };

    /// The sentence of an error, and the name of the field at fault.
    pub(crate) fn spell(&self, e: &Error) -> (String, Option<String>) {
        let Some(fault) = e.fault() else { return (e.message().to_owned(), e.param().map(str::to_owned)) };
        let name = (self.name)(fault.field);
        let sentence = match &fault.broken {
            Broken::Rule(rule) => format!("`{name}` {rule}"),
            Broken::PromptTooLong { num_tokens, num_tokens_max } => {
                (self.prompt_too_long)(*num_tokens, *num_tokens_max)
            }
        };
        (sentence, Some(name))
    }
}

/// LiteLLM, LangChain and others look for "maximum context length is", and for the code in the text, since not every client
/// hands the code on.
pub(crate) fn prompt_too_long_openai(num_tokens: usize, num_tokens_max: usize) -> String {
    format!(
        "This model's maximum context length is {num_tokens_max} tokens, and the prompt has {num_tokens} tokens; output \
         needs at least one more (context_length_exceeded)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialect_says_a_rule_in_its_own_words() {
        let e = Error::rule(Field::Stop(Some(2)), "must have 1 to 64 bytes, got 0");
        assert_eq!(e.message(), "`stop[2]` must have 1 to 64 bytes, got 0");
        let words = Words { name: &|_| "stop_sequences[2]".to_owned(), ..Words::CHAT };
        let (sentence, param) = words.spell(&e);
        assert_eq!(sentence, "`stop_sequences[2]` must have 1 to 64 bytes, got 0");
        assert_eq!(param.as_deref(), Some("stop_sequences[2]"));
        let e = Error::prompt_too_long(Field::Messages, 18_844, 8192);
        let (sentence, param) = Words::CHAT.spell(&e);
        assert!(sentence.starts_with("This model's maximum context length is 8192 tokens"), "{sentence}");
        assert_eq!(param.as_deref(), Some("messages"));
        let e = Error::invalid("top_p", "`top_p` must be > 0 and <= 1, got 2");
        assert_eq!(words.spell(&e), (e.message().to_owned(), Some("top_p".to_owned())));
    }
}
