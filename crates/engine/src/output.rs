//! Sampled tokens to text, and the decision that the text is over. Runs on the worker, so that a stop string ends the
//! sequence in the step that completes it.

use crate::sampling::Sampled;
use tallow_model::text::{Detokenizer, StopStrings, Tokenizer};
use tallow_stream::protocol::{FinishReason, StopParams, TokenEvent, TokenId};

/// One generation's output so far. Text that may be the beginning of a stop string, or half a character, is held
/// back; its tokens wait with it.
#[derive(Debug)]
pub struct Output {
    detokenizer: Detokenizer,
    stop_strings: StopStrings,
    stop: StopParams,
    max_tokens: usize,
    num_tokens: usize,
    /// Text that can be shown, and the tokens since the last event.
    next: TokenEvent,
    /// What may not be sampled before `min_tokens`.
    banned: Vec<TokenId>,
}

/// What tokens of an earlier process come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Replayed {
    /// Why the text is over with them, if it is.
    pub end: Option<FinishReason>,
    /// Length of the text that they show.
    pub text_bytes: usize,
}

impl Output {
    /// Nothing sampled yet. `end_of_generation` are the vocabulary's own stop tokens.
    pub fn new(stop: StopParams, max_tokens: usize, end_of_generation: &[TokenId]) -> Self {
        let mut banned = Vec::new();
        if stop.min_tokens > 0 {
            banned.extend_from_slice(&stop.token_ids);
            if !stop.ignore_eos {
                banned.extend_from_slice(end_of_generation);
            }
        }
        Self {
            detokenizer: Detokenizer::new(),
            stop_strings: StopStrings::new(&stop.strings),
            stop,
            max_tokens,
            num_tokens: 0,
            next: TokenEvent::default(),
            banned,
        }
    }

    /// Adds tokens whose events an earlier process has made, up to and with the last of them, and where that leads.
    pub(crate) fn replay(&mut self, tokens: &[TokenId], tokenizer: &Tokenizer) -> Replayed {
        let mut replayed = Replayed::default();
        for &token in tokens {
            debug_assert_eq!(replayed.end, None, "tokens after the end");
            replayed.end = self.push(Sampled { token, logprob: None }, tokenizer);
            replayed.text_bytes += self.take_event().map_or(0, |event| event.text.len());
        }
        // The last may have shown nothing, where a grammar forced it: its event was that of the token before.
        self.next = TokenEvent::default();
        replayed
    }

    /// Tokens sampled so far.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// The stop string that ended the text, if one did.
    pub(crate) fn stop_string(&self) -> Option<&str> {
        self.stop_strings.completed()
    }

    /// Tokens that may not come next: before `min_tokens`, those that would end the text.
    pub fn banned(&self) -> &[TokenId] {
        if self.num_tokens < self.stop.min_tokens { &self.banned } else { &[] }
    }

    /// The same for a text that keeps to a grammar: such a one is over when its grammar says so, so where it is to go
    /// on past ends of generation these are no choice at all.
    pub(crate) fn banned_with<'a>(&'a self, end_of_generation: &'a [TokenId]) -> &'a [TokenId] {
        if self.stop.ignore_eos && self.banned().is_empty() { end_of_generation } else { self.banned() }
    }

    /// Adds a token. `Some` if it is the last: what was held back can be shown then, unless it belongs to a stop
    /// string. The token that ends a text is counted, but is no part of it.
    pub fn push(&mut self, sampled: Sampled, tokenizer: &Tokenizer) -> Option<FinishReason> {
        let may_stop = self.num_tokens >= self.stop.min_tokens;
        let token = sampled.token;
        self.num_tokens += 1;
        let is_end = tokenizer.is_end_of_generation(token) && !self.stop.ignore_eos;
        if may_stop && (is_end || self.stop.token_ids.contains(&token)) {
            self.flush();
            return Some(FinishReason::Stop);
        }
        self.next.tokens.push(token);
        self.next.logprobs.extend(sampled.logprob);
        self.detokenizer.push(tokenizer.output_bytes(token));
        let text = self.detokenizer.take();
        if !may_stop {
            self.next.text.push_str(&text);
        } else if self.show(&text) {
            return Some(FinishReason::Stop);
        }
        if self.num_tokens < self.max_tokens {
            return None;
        }
        // Half a character that was cut off is no text. Where log-probabilities are told, each token has to be shown.
        if self.next.logprobs.is_empty() {
            self.detokenizer.forget_partial();
        }
        Some(if self.flush() { FinishReason::Stop } else { FinishReason::Length })
    }

    /// Ends the text behind the last token: a grammar is complete.
    pub fn close(&mut self) -> FinishReason {
        // Whether that completes a stop string or not, the reason is the same.
        self.flush();
        FinishReason::Stop
    }

    /// The text and tokens since the last call, if there is text.
    pub(crate) fn take_event(&mut self) -> Option<TokenEvent> {
        (!self.next.text.is_empty()).then(|| std::mem::take(&mut self.next))
    }

    /// Shows what no stop string can claim; true if one was completed.
    fn show(&mut self, text: &str) -> bool {
        let outcome = self.stop_strings.push(text);
        self.next.text.push_str(&outcome.emit);
        outcome.stopped
    }

    /// Shows everything that was held back; true if that completed a stop string.
    fn flush(&mut self) -> bool {
        let text = self.detokenizer.finish();
        if !text.is_empty() && self.show(&text) {
            return true;
        }
        let held = self.stop_strings.finish();
        self.next.text.push_str(&held);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tallow_stream::protocol::TokenLogprob;

    fn stop_at(strings: &[&str]) -> StopParams {
        StopParams { strings: strings.iter().map(|&s| s.to_owned()).collect(), ..StopParams::default() }
    }

    /// Feeds bytes (256 is the end); returns each step's text, and the end with the number of tokens it took.
    fn run(stop: StopParams, max_tokens: usize, tokens: &[TokenId]) -> (Vec<String>, Option<(FinishReason, usize)>) {
        let tokenizer = Tokenizer::byte_level();
        let mut output = Output::new(stop, max_tokens, &[256]);
        let mut texts = Vec::new();
        for &token in tokens {
            let reason = output.push(Sampled { token, logprob: None }, &tokenizer);
            texts.push(output.take_event().map(|e| e.text).unwrap_or_default());
            if let Some(reason) = reason {
                return (texts, Some((reason, output.num_tokens())));
            }
        }
        (texts, None)
    }

    #[track_caller]
    fn check(stop: StopParams, tokens: &str, expect: &str, reason: FinishReason, num_tokens: usize) {
        let mut tokens: Vec<TokenId> = tokens.bytes().map(TokenId::from).collect();
        tokens.push(256);
        let (texts, end) = run(stop, 20, &tokens);
        assert_eq!((texts.concat().as_str(), end), (expect, Some((reason, num_tokens))));
    }

    #[test]
    fn texts_end_where_they_should() {
        check(StopParams::default(), "hello", "hello", FinishReason::Stop, 6);
        check(stop_at(&["ll"]), "hello", "he", FinishReason::Stop, 4);
        check(stop_at(&["lx"]), "hello", "hello", FinishReason::Stop, 6);
        check(stop_at(&["lox"]), "hello", "hello", FinishReason::Stop, 6);
        check(StopParams::default(), "0123456789012345678901", "01234567890123456789", FinishReason::Length, 20);
        check(stop_at(&["89x"]), "0123456789012345678901", "01234567890123456789", FinishReason::Length, 20);
        let ids = StopParams { token_ids: vec![b'l'.into()], ..StopParams::default() };
        check(ids, "hello", "he", FinishReason::Stop, 3);
        let min = StopParams { min_tokens: 4, ..stop_at(&["l"]) };
        check(min, "hello all", "hello a", FinishReason::Stop, 8);
    }

    #[test]
    fn a_character_that_is_cut_off_is_not_shown() {
        let tokens: Vec<TokenId> = "a🙂".bytes().map(TokenId::from).collect();
        for (max_tokens, expect) in [(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "a🙂")] {
            let (texts, end) = run(StopParams::default(), max_tokens, &tokens);
            assert_eq!((texts.concat().as_str(), end), (expect, Some((FinishReason::Length, max_tokens))));
        }
        // A text that ends by itself has what the model wrote.
        let (texts, _) = run(StopParams::default(), 9, &[0xf0, 0x9f, 256]);
        assert_eq!(texts.concat(), "\u{fffd}");
        let (tokenizer, mut output) = (Tokenizer::byte_level(), Output::new(StopParams::default(), 1, &[256]));
        let logprob = TokenLogprob { token: 0xf0, logprob: -0.5, top: Vec::new() };
        output.push(Sampled { token: 0xf0, logprob: Some(logprob) }, &tokenizer);
        assert_eq!(
            output.take_event().map(|event| (event.text, event.logprobs.len())),
            Some(("\u{fffd}".to_owned(), 1))
        );
    }

    #[test]
    fn the_stop_string_that_ended_it_is_known() {
        let tokenizer = Tokenizer::byte_level();
        let mut output = Output::new(stop_at(&["x", "ll"]), 9, &[256]);
        for (token, expect) in [(b'h', None), (b'l', None), (b'l', Some("ll"))] {
            output.push(Sampled { token: token.into(), logprob: None }, &tokenizer);
            assert_eq!(output.stop_string(), expect);
        }
        let mut ended = Output::new(stop_at(&["x"]), 9, &[256]);
        assert_eq!(ended.push(Sampled { token: 256, logprob: None }, &tokenizer), Some(FinishReason::Stop));
        assert_eq!(ended.stop_string(), None);
    }

    #[test]
    fn the_end_is_passed_where_asked() {
        let stop = StopParams { ignore_eos: true, ..StopParams::default() };
        assert_eq!(run(stop, 3, &[104, 256, 105]).0.concat(), "hi");
    }

    #[test]
    fn what_may_be_a_stop_string_or_half_a_character_is_held_back() {
        let tokens: Vec<TokenId> = "a<b<e\u{e9}.".bytes().map(TokenId::from).collect();
        let (texts, end) = run(stop_at(&["<end>"]), 20, &tokens);
        assert_eq!((texts, end), (["a", "", "<b", "", "", "", "<e\u{e9}", "."].map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn tokens_travel_with_the_text_they_made() {
        let tokenizer = Tokenizer::byte_level();
        let mut output = Output::new(StopParams::default(), 9, &[256]);
        let mut events = Vec::new();
        for token in [0xe2, 0x82, 0xac, 0x61] {
            assert_eq!(output.push(Sampled { token, logprob: None }, &tokenizer), None);
            events.extend(output.take_event());
        }
        let event = |text: &str, tokens: &[TokenId]| TokenEvent {
            text: text.to_owned(),
            tokens: tokens.to_vec(),
            logprobs: Vec::new(),
        };
        assert_eq!(events, [event("\u{20ac}", &[0xe2, 0x82, 0xac]), event("a", &[0x61])]);
    }

    #[test]
    fn replayed_tokens_are_not_told_again() {
        let tokenizer = Tokenizer::byte_level();
        let push =
            |output: &mut Output, token: u8| output.push(Sampled { token: token.into(), logprob: None }, &tokenizer);
        let mut output = Output::new(stop_at(&["bz"]), 9, &[256]);
        // As when a grammar forces the second: one event has both, and the text of one.
        let [a, b, c] = *b"abc";
        assert_eq!((push(&mut output, a), push(&mut output, b)), (None, None));
        assert_eq!(output.take_event().map(|e| (e.text, e.tokens)), Some(("a".to_owned(), vec![a.into(), b.into()])));
        let mut again = Output::new(stop_at(&["bz"]), 9, &[256]);
        let replayed = again.replay(&[a.into(), b.into()], &tokenizer);
        assert_eq!(replayed, Replayed { end: None, text_bytes: 1 });
        for output in [&mut output, &mut again] {
            assert_eq!(push(output, c), None);
            assert_eq!(output.take_event().map(|e| (e.text, e.tokens)), Some(("bc".to_owned(), vec![c.into()])));
        }
    }

    #[test]
    fn before_min_tokens_the_ends_are_banned() {
        let stop = StopParams { min_tokens: 1, token_ids: vec![7], ..StopParams::default() };
        let mut output = Output::new(stop.clone(), 9, &[256]);
        assert_eq!(output.banned(), [7, 256]);
        output.push(Sampled { token: 97, logprob: None }, &Tokenizer::byte_level());
        assert!(output.banned().is_empty());
        assert_eq!(Output::new(StopParams { ignore_eos: true, ..stop }, 9, &[256]).banned(), [7]);
    }
}
