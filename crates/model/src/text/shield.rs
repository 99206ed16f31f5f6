//! What a user wrote inside a prompt that a template rendered. The template's `<|im_end|>` is a control token; the same
//! letters in a message are letters, or a message could end its own turn and speak as the system.
//!
//! Before rendering, every character of a control token's spelling in a message is preceded by a mark that no message
//! holds ([`shield`](Tokenizer::shield)); after it, marked characters are never part of a control token, and the marks
//! are gone ([`encode_shielded`](Tokenizer::encode_shielded)). A mark before each character, not a pair around them,
//! because templates trim and split messages.

use super::Tokenizer;
use super::special::Segment;
use tallow_stream::error::Result;
use tallow_stream::protocol::TokenId;

/// Marks to choose from: noncharacters, which the Unicode standard reserves for use inside a process (section 23.7).
const MARKS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// A stretch of a rendered prompt.
enum PromptPart {
    Text(String),
    Token(TokenId),
}

impl Tokenizer {
    /// A mark that none of `texts` holds; `None` if somebody used them all up.
    pub fn mark_for<'a>(texts: &(impl Iterator<Item = &'a str> + Clone)) -> Option<char> {
        MARKS.into_iter().find(|mark| !texts.clone().any(|text| text.contains(*mark)))
    }

    /// `text` with every spelling of a control token marked.
    pub fn shield(&self, text: &str, mark: char) -> String {
        let mut out = String::with_capacity(text.len());
        for segment in self.special().split(text) {
            match segment {
                Segment::Text(text) => out.push_str(text),
                Segment::Token(id) => {
                    let spelling = self.special_spelling(id).unwrap_or_default();
                    // User-defined tokens are text with an id of its own; control tokens have no text.
                    if !self.token_bytes(id).is_empty() {
                        out.push_str(spelling);
                        continue;
                    }
                    spelling.chars().for_each(|c| out.extend([mark, c]));
                }
            }
        }
        out
    }

    /// Ids of a rendered prompt, in which spellings of control tokens are those tokens unless they are marked.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_shielded(&self, text: &str, mark: char) -> Result<Vec<TokenId>> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(mark) {
            self.push_parts(&rest[..at], &mut parts);
            let mut chars = rest[at..].chars();
            chars.next();
            if let Some(marked) = chars.next() {
                push_text(marked.encode_utf8(&mut [0; 4]), &mut parts);
            }
            rest = chars.as_str();
        }
        self.push_parts(rest, &mut parts);
        let mut ids = Vec::new();
        let mut at_start = true;
        for part in parts {
            match &part {
                PromptPart::Token(id) => ids.push(*id),
                PromptPart::Text(text) => self.encode_words(text, at_start, &mut ids)?,
            }
            at_start = matches!(part, PromptPart::Token(_));
        }
        Ok(ids)
    }

    fn push_parts(&self, text: &str, parts: &mut Vec<PromptPart>) {
        for segment in self.special().split(text) {
            match segment {
                Segment::Text(text) => push_text(text, parts),
                Segment::Token(id) => parts.push(PromptPart::Token(id)),
            }
        }
    }
}

/// Text next to text is one stretch, so that words are cut as if nothing had been marked.
fn push_text(text: &str, parts: &mut Vec<PromptPart>) {
    match parts.last_mut() {
        Some(PromptPart::Text(last)) => last.push_str(text),
        _ => parts.push(PromptPart::Text(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Scheme, TokenKind, Vocab};

    /// Letters and two control tokens, `<e>` and `<s>`.
    fn tokenizer() -> Tokenizer {
        let mut tokens: Vec<String> = ('!'..='~').map(String::from).collect();
        let mut kinds = vec![TokenKind::Normal; tokens.len()];
        tokens.extend(["<e>".to_owned(), "<s>".to_owned()]);
        kinds.extend([TokenKind::Control; 2]);
        let scheme = Scheme::Bpe { pre: "gpt-2".to_owned(), merges: Vec::new() };
        let vocab = Vocab {
            tokens,
            kinds,
            scheme,
            bos: None,
            eos: None,
            end_of_generation: Vec::new(),
            add_bos: false,
            add_space_prefix: false,
        };
        Tokenizer::from_vocab(vocab).unwrap()
    }

    #[test]
    fn spellings_of_a_user_stay_text_and_those_of_the_template_are_tokens() {
        let t = tokenizer();
        let mark = Tokenizer::mark_for(&["hi<e><s>you", "x"].into_iter()).unwrap();
        let rendered = format!("<s>{}<e>", t.shield("hi<e><s>you", mark));
        let ids = t.encode_shielded(&rendered, mark).unwrap();
        let control = |spelling: &str| t.encode(spelling, true).unwrap()[0];
        let mut expected = vec![control("<s>")];
        expected.extend(t.encode("hi<e><s>you", false).unwrap());
        expected.push(control("<e>"));
        assert_eq!(ids, expected);
    }

    #[test]
    fn without_spellings_nothing_is_marked_and_the_ids_are_the_plain_ones() {
        let t = tokenizer();
        let mark = Tokenizer::mark_for(&["\u{FDD0}"].into_iter()).unwrap();
        assert_eq!(mark, '\u{FDD1}');
        assert_eq!(t.shield("no<control", mark), "no<control");
        assert_eq!(t.encode_shielded("<s>no<e>", mark).unwrap(), t.encode("<s>no<e>", true).unwrap());
    }
}
