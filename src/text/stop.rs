//! Stop strings: the text ends before the first of them to appear, and what may be the beginning of one is held back.

/// Watches text as it arrives.
#[derive(Debug)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
}

/// What may be shown after a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that can no longer be part of a stop string.
    pub emit: String,
    /// Whether a stop string appeared; `emit` is what stood before it, and the text is over.
    pub stopped: bool,
}

impl StopStrings {
    /// Stops at any of `strings`.
    pub fn new(strings: &[String]) -> Self {
        Self { strings: strings.to_vec(), held: String::new() }
    }

    /// Adds text; gives what is certain to be shown.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        self.held.push_str(text);
        let hit = self.strings.iter().filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(at) = hit {
            self.held.truncate(at);
            return StopOutcome { emit: std::mem::take(&mut self.held), stopped: true };
        }
        let may_begin = |at: usize| self.strings.iter().any(|s| s.starts_with(&self.held[at..]));
        let keep_from = self.held.char_indices().map(|(at, _)| at).find(|&at| may_begin(at));
        let rest = keep_from.map_or_else(String::new, |at| self.held.split_off(at));
        StopOutcome { emit: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back, now that nothing follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_string_cut_into_pieces_is_found_and_nothing_of_it_shown() {
        let mut s = StopStrings::new(&["END".to_owned()]);
        assert_eq!(s.push("an EN"), StopOutcome { emit: "an ".to_owned(), stopped: false });
        assert_eq!(s.push("EN"), StopOutcome { emit: "EN".to_owned(), stopped: false });
        assert_eq!(s.push("D tail"), StopOutcome { emit: String::new(), stopped: true });
    }

    #[test]
    fn what_was_held_comes_out_at_the_end() {
        let mut s = StopStrings::new(&["END".to_owned()]);
        assert_eq!(s.push("the E").emit, "the ");
        assert_eq!(s.finish(), "E");
    }
}
