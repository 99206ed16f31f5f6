//! Bytes of tokens to text, one token at a time: a character that is not complete yet waits for its other bytes.

/// Joins the bytes of successive tokens into text. What was taken is always whole characters.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// At most three bytes: the beginning of a character.
    partial: Vec<u8>,
    text: String,
}

impl Detokenizer {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a token's bytes to the pending text. Bytes that can never become UTF-8 turn into U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.partial[done..]) {
                Ok(valid) => {
                    self.text.push_str(valid);
                    done = self.partial.len();
                    break;
                }
                Err(e) => {
                    let valid = &self.partial[done..done + e.valid_up_to()];
                    self.text.push_str(std::str::from_utf8(valid).expect("checked just above"));
                    done += e.valid_up_to();
                    let Some(bad) = e.error_len() else { break };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    done += bad;
                }
            }
        }
        self.partial.drain(..done);
    }

    /// The complete text since the last call.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// The rest: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        if !self.partial.is_empty() {
            self.partial.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        self.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_cut_anywhere_come_out_whole() {
        let text = "a\u{e9}\u{20ac}\u{1f600}z";
        let mut d = Detokenizer::new();
        let mut out = String::new();
        for b in text.bytes() {
            d.push(&[b]);
            out += &d.take();
        }
        assert_eq!(out + &d.finish(), text);
    }

    #[test]
    fn invalid_bytes_are_replaced_and_the_rest_survives() {
        let mut d = Detokenizer::new();
        d.push(b"a\xffb\xe2\x82");
        assert_eq!(d.take(), "a\u{fffd}b");
        assert_eq!(d.finish(), "\u{fffd}");
    }
}
