//! A cursor into a log. Dropping it leaves the stream, which may cancel it.

use std::sync::Arc;

use tokio::sync::watch;

use super::log::{Entry, StreamLog};
use super::{CancelCause, log::State};
use crate::protocol::{Event, OnDisconnect, TokenEvent};

/// A cursor into a log. Dropping it leaves the stream, which may cancel it (see [`OnDisconnect`]).
#[derive(Debug)]
pub struct StreamReader {
    log: Arc<StreamLog>,
    next_seq: u64,
    len: watch::Receiver<usize>,
}

impl StreamReader {
    pub(super) fn new(log: Arc<StreamLog>, next_seq: u64) -> Self {
        let len = log.len.subscribe();
        Self { log, next_seq, len }
    }

    /// Waits until an event is there to take; `false` once the terminal event was given. Cancel-safe.
    pub async fn ready(&mut self) -> bool {
        loop {
            let (num_events, ended) = {
                let state = self.log.lock();
                (state.entries.len() as u64, is_ended(&state))
            };
            if num_events > self.next_seq {
                return true;
            }
            // The sender lives in the log that this reader holds, so waiting cannot fail.
            if ended || self.len.changed().await.is_err() {
                return false;
            }
        }
    }

    /// The next event and its sequence number, waiting for it if need be; `None` once the terminal event was given.
    /// Cancel-safe: a dropped future loses nothing.
    pub async fn next(&mut self) -> Option<(u64, Event)> {
        self.ready().await;
        self.try_next()
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<(u64, Event)> {
        self.try_next_entry().map(|e| (e.seq, e.event))
    }

    /// The next event with its time, if it is there already.
    pub fn try_next_entry(&mut self) -> Option<Entry> {
        let entry = self.log.lock().entries.get(self.next_seq as usize).cloned()?;
        self.next_seq += 1;
        Some(entry)
    }

    /// Like [`Self::try_next_entry`], but when at least `backlog_min` token events have piled up in a row, all of
    /// them come as one, with the sequence number and time of the last: a reader that lags catches up in few frames.
    pub fn try_next_merged(&mut self, backlog_min: usize) -> Option<Entry> {
        let log = self.log.clone();
        let state = log.lock();
        let rest = state.entries.get(self.next_seq as usize..)?;
        let run = rest.iter().take_while(|e| matches!(e.event, Event::Token(_))).count();
        if run < backlog_min.max(2) {
            drop(state);
            return self.try_next_entry();
        }
        let mut merged = TokenEvent::default();
        for entry in &rest[..run] {
            if let Event::Token(token) = &entry.event {
                merged.text.push_str(&token.text);
                merged.tokens.extend_from_slice(&token.tokens);
                merged.logprobs.extend_from_slice(&token.logprobs);
            }
        }
        let last = &rest[run - 1];
        self.next_seq = last.seq + 1;
        Some(Entry { seq: last.seq, ts_ms: last.ts_ms, event: Event::Token(merged) })
    }

    /// The sequence number of the next event.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The log it reads.
    pub fn log(&self) -> &Arc<StreamLog> {
        &self.log
    }
}

fn is_ended(state: &State) -> bool {
    state.entries.last().is_some_and(|e| e.event.is_terminal())
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        state.num_readers -= 1;
        let last = state.num_readers == 0;
        drop(state);
        if last && self.log.on_disconnect() == OnDisconnect::Cancel {
            self.log.cancel(CancelCause::ReaderLeft);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FinishReason, StreamId, Tenant, Usage};
    use std::sync::atomic::{AtomicU64, Ordering};

    fn log(policy: OnDisconnect) -> Arc<StreamLog> {
        StreamLog::new(StreamId(1), Tenant(0), policy)
    }

    fn token(text: &str) -> Event {
        Event::Token(TokenEvent { text: text.to_owned(), tokens: vec![7], logprobs: Vec::new() })
    }

    fn done() -> Event {
        Event::Done { finish_reason: FinishReason::Stop, usage: Usage::default() }
    }

    #[tokio::test]
    async fn readers_see_every_event_once_and_then_the_end() {
        let log = log(OnDisconnect::Detach);
        let mut early = log.reader(0);
        log.append(Event::Queued { position: 0, wait_ms: None });
        log.append(done());
        let mut late = log.reader(1);
        assert_eq!(early.next().await.map(|(seq, _)| seq), Some(0));
        assert_eq!(early.next().await.map(|(seq, _)| seq), Some(1));
        assert_eq!(early.next().await, None);
        assert_eq!(late.next().await.map(|(seq, _)| seq), Some(1));
        assert!(!late.ready().await);
    }

    #[test]
    fn the_last_reader_to_leave_cancels() {
        let log = log(OnDisconnect::Cancel);
        let (a, b) = (log.reader(0), log.reader(0));
        drop(a);
        assert_eq!(log.cancelled(), None);
        drop(b);
        assert_eq!(log.cancelled(), Some(CancelCause::ReaderLeft));
    }

    #[test]
    fn lingering_and_detached_streams_outlive_their_readers() {
        for policy in [OnDisconnect::Linger { grace_ms: 5 }, OnDisconnect::Detach] {
            let log = log(policy);
            drop(log.reader(0));
            assert_eq!(log.cancelled(), None, "{policy:?}");
        }
    }

    #[test]
    fn piled_up_tokens_merge_and_lose_nothing() {
        let log = log(OnDisconnect::Detach);
        log.append(Event::Started { prompt_tokens: 1, cached_tokens: 0 });
        for text in ["a", "b", "c"] {
            log.append(token(text));
        }
        log.append(done());
        let mut patient = log.reader(0);
        let seqs: Vec<u64> = std::iter::from_fn(|| patient.try_next_merged(4).map(|e| e.seq)).collect();
        assert_eq!(seqs, [0, 1, 2, 3, 4], "a run below the threshold stays as it was");

        let mut lagging = log.reader(1);
        let merged = lagging.try_next_merged(3).expect("three tokens wait");
        assert_eq!(merged.seq, 3);
        let expected = TokenEvent { text: "abc".to_owned(), tokens: vec![7, 7, 7], logprobs: Vec::new() };
        assert_eq!(merged.event, Event::Token(expected));
        assert_eq!(lagging.try_next_merged(3).map(|e| e.seq), Some(4));
        assert_eq!(lagging.try_next_merged(3), None);
    }

    #[test]
    fn a_cursor_past_the_end_finds_nothing() {
        let log = log(OnDisconnect::Detach);
        log.append(token("a"));
        let mut reader = log.reader(9);
        assert_eq!(reader.try_next_merged(2), None);
        assert_eq!(reader.try_next(), None);
    }

    #[test]
    fn events_carry_the_time_of_the_clock_that_was_handed_in() {
        let now = Arc::new(AtomicU64::new(40));
        let clock = now.clone();
        let clock = Arc::new(move || clock.fetch_add(1, Ordering::Relaxed));
        let log = StreamLog::with_clock(StreamId(1), Tenant(0), OnDisconnect::Detach, clock);
        log.append(token("a"));
        log.append(done());
        let mut reader = log.reader(0);
        assert_eq!(log.created_ms(), 40);
        assert_eq!(reader.try_next_entry().map(|e| e.ts_ms), Some(41));
        assert_eq!(log.finished_ms(), Some(42));
    }

    #[tokio::test]
    async fn waiting_for_the_end_is_not_reading() {
        let log = log(OnDisconnect::Cancel);
        let waiting = tokio::spawn({
            let log = log.clone();
            async move { log.finished().await }
        });
        log.append(done());
        waiting.await.expect("no panic");
        assert_eq!(log.cancelled(), None);
    }
}
