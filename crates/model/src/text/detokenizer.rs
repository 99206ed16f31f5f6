//! Bytes to text as they arrive. A token may end in the middle of a character: what may still become one waits, and
//! text is only ever handed on in whole characters.
//!
//! The text of all pushes and the flush is exactly `String::from_utf8_lossy` of all bytes: each maximal part of a
//! broken sequence becomes one U+FFFD (Unicode 15, section 3.9, "substitution of maximal subparts"). At most three
//! bytes wait, so a push costs its own length whatever came before.
//!
//! Nothing is trimmed here. A SentencePiece model that opens its answer with `▁Paris` opens it with a space: what came
//! before the first generated token is the prompt, so that space is content.

/// Assembles one generation's text.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// Whole characters nobody has taken yet.
    text: String,
    /// A proper prefix of one character's bytes: at most three.
    partial: Vec<u8>,
}

impl Detokenizer {
    /// Begins a generation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a token's bytes; characters they complete join the text.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.partial.is_empty() {
            let rest = append_complete(&mut self.text, bytes);
            self.partial.extend_from_slice(rest);
            return;
        }
        let mut joined = std::mem::take(&mut self.partial);
        joined.extend_from_slice(bytes);
        let rest = append_complete(&mut self.text, &joined);
        self.partial.extend_from_slice(rest);
    }

    /// The text completed since the last call.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Forgets the beginning of a character that will not become whole.
    pub fn forget_partial(&mut self) {
        self.partial.clear();
    }

    /// Ends the generation: the text not yet taken, and one U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String {
        if !self.partial.is_empty() {
            self.partial.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        self.take()
    }
}

/// Appends all of `bytes` but an incomplete last character, which is returned.
fn append_complete<'a>(text: &mut String, mut bytes: &'a [u8]) -> &'a [u8] {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                return &[];
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                // Valid up to there, as the error says; the lossy conversion has nothing to replace.
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(invalid_len) = error.error_len() else { return rest };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[invalid_len..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assemble(chunks: &[&[u8]]) -> String {
        let mut detokenizer = Detokenizer::new();
        let mut text = String::new();
        for chunk in chunks {
            detokenizer.push(chunk);
            text.push_str(&detokenizer.take());
        }
        text + &detokenizer.finish()
    }

    #[test]
    fn holds_back_half_a_character_and_no_more() {
        let mut detokenizer = Detokenizer::new();
        detokenizer.push(b"a\xF0\x9F");
        assert_eq!(detokenizer.take(), "a");
        detokenizer.push(b"\x98");
        assert_eq!(detokenizer.take(), "");
        detokenizer.push(b"\x80b");
        assert_eq!(detokenizer.take(), "😀b");
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn broken_sequences_become_one_replacement_each() {
        assert_eq!(assemble(&[b"\xF0\x9F", b"a"]), "\u{FFFD}a");
        assert_eq!(assemble(&[b"\xC3"]), "\u{FFFD}");
        assert_eq!(assemble(&[b"\xC0\x80"]), "\u{FFFD}\u{FFFD}");
        assert_eq!(assemble(&[b"\xED", b"\xA0", b"\x80"]), "\u{FFFD}\u{FFFD}\u{FFFD}");
        assert_eq!(assemble(&[" Paris".as_bytes()]), " Paris", "a leading space is content");
    }

    /// Bytes that are often valid, often broken in the middle of a character.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            prop::collection::vec(any::<u8>(), 0..4),
            prop::sample::select(vec![&b"\xE2\x82"[..], b"\xF0\x9F\x98", b"\xED\xA0", b"\x80", b"\xF4\x90"])
                .prop_map(<[u8]>::to_vec),
        ];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_lossy_text(bytes in bytes(), cuts in prop::collection::vec(0usize..64, 0..12)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                chunks.push(&bytes[start..cut]);
                start = cut;
            }
            prop_assert_eq!(assemble(&chunks), String::from_utf8_lossy(&bytes));
        }
    }
}
