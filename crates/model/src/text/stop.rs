//! Stop strings in text that arrives in pieces.
//!
//! A generation ends with the first byte that completes a stop string, so **the match that ends first wins**; of
//! several that end there, the longest. That rule sees bytes and not pieces, so the same text stops at the same place
//! however it was cut: with `"abcd"` and `"bc"`, the text `abcd` becomes `a` even if it comes in one piece.
//!
//! Text that may be the beginning of a stop string is held back. Per string one Knuth-Morris-Pratt automaton (Knuth,
//! Morris, Pratt 1977, "Fast pattern matching in strings") tracks the longest prefix of it that the text ends with; the
//! longest of these prefixes is held. Each byte costs amortised constant time per string, and memory is the strings
//! themselves.
//!
//! Text and strings are valid UTF-8, so a prefix of a string begins in the text at a character boundary, and only whole
//! characters are handed on.

/// The stop strings of one generation, and the text that may yet turn out to be one.
#[derive(Debug, Default)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
    held: String,
    /// The string that was completed.
    stopped_by: Option<usize>,
}

/// The result of pushing a piece of text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutcome {
    /// Text that is surely no part of a stop string.
    pub emit: String,
    /// Whether a stop string is complete: `emit` is the last text and does not contain the stop string.
    pub stopped: bool,
}

impl StopStrings {
    /// Watches for `strings`; empty ones never match.
    pub fn new(strings: &[String]) -> Self {
        let patterns = strings.iter().filter(|s| !s.is_empty()).map(|s| Pattern::new(s)).collect();
        Self { patterns, held: String::new(), stopped_by: None }
    }

    /// The string that ended the text, if one did.
    pub fn completed(&self) -> Option<&str> {
        std::str::from_utf8(&self.patterns.get(self.stopped_by?)?.bytes).ok()
    }

    /// Adds text; returns the part of the text so far that can be sent. After a stop, no more text is returned.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped_by.is_some() {
            return StopOutcome { emit: String::new(), stopped: true };
        }
        let num_held = self.held.len();
        self.held.push_str(text);
        for (index, &byte) in text.as_bytes().iter().enumerate() {
            let mut matched = 0;
            for (pattern_index, pattern) in self.patterns.iter_mut().enumerate() {
                if pattern.step(byte) && pattern.bytes.len() > matched {
                    matched = pattern.bytes.len();
                    self.stopped_by = Some(pattern_index);
                }
            }
            if matched > 0 {
                self.held.truncate(num_held + index + 1 - matched);
                return StopOutcome { emit: std::mem::take(&mut self.held), stopped: true };
            }
        }
        let hold = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - hold);
        StopOutcome { emit: std::mem::replace(&mut self.held, tail), stopped: false }
    }

    /// Ends the generation. Returns the text that was held back, which is no stop string after all.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        std::mem::take(&mut self.held)
    }
}

/// One stop string, and how much of it the text has matched.
#[derive(Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `borders[i]`: length of the longest proper prefix of `bytes[..=i]` that is also its suffix.
    borders: Vec<usize>,
    /// Length of the longest prefix of `bytes` that the text ends with; less than the whole between pushes.
    matched: usize,
}

impl Pattern {
    fn new(string: &str) -> Self {
        let bytes = string.as_bytes().to_vec();
        let mut borders = vec![0; bytes.len()];
        let mut border = 0;
        for index in 1..bytes.len() {
            while border > 0 && bytes[index] != bytes[border] {
                border = borders[border - 1];
            }
            if bytes[index] == bytes[border] {
                border += 1;
            }
            borders[index] = border;
        }
        Self { bytes, borders, matched: 0 }
    }

    /// Takes the text's next byte; true when it completes the string.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && byte != self.bytes[self.matched] {
            self.matched = self.borders[self.matched - 1];
        }
        if byte == self.bytes[self.matched] {
            self.matched += 1;
        }
        self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(strings: &[&str]) -> Vec<String> {
        strings.iter().map(|s| (*s).to_owned()).collect()
    }

    fn run(stops: &[String], chunks: &[&str]) -> (String, bool) {
        let mut watch = StopStrings::new(stops);
        let mut text = String::new();
        for chunk in chunks {
            let outcome = watch.push(chunk);
            text.push_str(&outcome.emit);
            if outcome.stopped {
                assert_eq!(watch.push("more"), StopOutcome { emit: String::new(), stopped: true });
                return (text, true);
            }
        }
        (text + &watch.finish(), false)
    }

    /// The rule in its slow form: try every end, then every string.
    fn oracle(stops: &[String], text: &str) -> (String, bool) {
        for end in 1..=text.len() {
            let ended = |s: &&String| !s.is_empty() && text.as_bytes()[..end].ends_with(s.as_bytes());
            if let Some(longest) = stops.iter().filter(ended).map(String::len).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn holds_back_only_what_may_be_a_stop_string() {
        let mut watch = StopStrings::new(&owned(&["</end>"]));
        assert_eq!(watch.push("a </en").emit, "a ");
        assert_eq!(watch.push("d").emit, "");
        assert_eq!(watch.push("<").emit, "</end");
        assert_eq!(watch.push("/end>tail"), StopOutcome { emit: String::new(), stopped: true });
        assert_eq!(watch.finish(), "");
    }

    #[test]
    fn the_match_that_ends_first_wins_then_the_longest() {
        assert_eq!(run(&owned(&["abcd", "bc"]), &["abcd"]), ("a".to_owned(), true));
        assert_eq!(run(&owned(&["c", "bc"]), &["abcd"]), ("a".to_owned(), true));
        assert_eq!(run(&owned(&["aab"]), &["aa", "aab"]), ("aa".to_owned(), true));
        assert_eq!(run(&owned(&["", "x"]), &["no match"]), ("no match".to_owned(), false));
        assert_eq!(run(&[], &["any", "thing"]), ("anything".to_owned(), false));
        assert_eq!(run(&owned(&["日本語"]), &["日本", "の"]), ("日本の".to_owned(), false));
    }

    #[test]
    fn the_string_that_ended_the_text_is_known() {
        let mut watch = StopStrings::new(&owned(&["", "c", "bc"]));
        watch.push("ab");
        assert_eq!(watch.completed(), None);
        watch.push("cd");
        assert_eq!(watch.completed(), Some("bc"));
    }

    #[test]
    fn without_stop_strings_nothing_waits() {
        let mut watch = StopStrings::new(&[]);
        assert_eq!(watch.push("x"), StopOutcome { emit: "x".to_owned(), stopped: false });
    }

    proptest! {
        #[test]
        fn every_chunking_agrees_with_the_oracle(
            stops in prop::collection::vec("[abé日]{0,5}", 0..5),
            text in "[abcé日]{0,40}",
            cuts in prop::collection::vec(0usize..=40, 0..20),
        ) {
            let boundaries: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| boundaries[cut % boundaries.len()]).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                chunks.push(&text[start..cut]);
                start = cut;
            }
            let expect = oracle(&stops, &text);
            prop_assert_eq!(&run(&stops, &chunks), &expect);
            prop_assert_eq!(&run(&stops, &[&text]), &expect);
        }

        #[test]
        fn held_text_is_always_a_proper_prefix(stops in prop::collection::vec("[ab]{1,6}", 1..4), text in "[abc]{0,30}") {
            let mut watch = StopStrings::new(&stops);
            let mut seen = String::new();
            let mut out = String::new();
            for c in text.chars() {
                seen.push(c);
                let outcome = watch.push(&c.to_string());
                out.push_str(&outcome.emit);
                if outcome.stopped {
                    break;
                }
                let held = &seen[out.len()..];
                let longest = (0..=seen.len()).map(|from| &seen[from..])
                    .find(|tail| stops.iter().any(|s| s.len() > tail.len() && s.starts_with(tail)));
                prop_assert_eq!(Some(held), longest);
            }
        }
    }
}
