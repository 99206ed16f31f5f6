//! A cursor into a log. Dropping it leaves the stream, which may cancel it.

use std::sync::Arc;

use tokio::sync::watch;

use super::entry::{Entry, payload_bytes};
use super::log::{LogState, StreamLog};
use crate::error::ErrorKind;
use crate::protocol::{ErrorInfo, Event, TokenEvent, Usage};

/// Most events that come as one, and most of their memory: what a lagging reader holds at a time is bounded with it. On
/// the wire a rival's log-probability takes eight times its memory, so that is 128 KiB at most, for text a few.
const MERGED_EVENTS_MAX: usize = 256;
const MERGED_BYTES_MAX: usize = 16 << 10;

/// A cursor into a log. Dropping it leaves the stream, which may cancel it (see [`OnDisconnect`](crate::protocol::OnDisconnect)).
#[derive(Debug)]
pub struct StreamReader {
    log: Arc<StreamLog>,
    next_seq: u64,
    changed: watch::Receiver<()>,
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Read {
    /// The next event, or a run of token events as one.
    Entry(Entry),
    /// What came next is no longer kept; the cursor has moved to what is.
    Gap(Gap),
}

/// A hole in what a reader has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The event that follows it.
    pub next_seq: u64,
    /// How many events are missing.
    pub num_lost: u64,
    /// When the event that follows was appended.
    pub ts_ms: u64,
}

impl Gap {
    /// The last event of a reader that must have everything or nothing. The log has no such event.
    pub fn into_end(self) -> Entry {
        let message = format!("{} events that this reader had yet to get are no longer kept", self.num_lost);
        let info = ErrorInfo { kind: ErrorKind::Expired, message, usage: Usage::default() };
        Entry { seq: self.next_seq, ts_ms: self.ts_ms, event: Event::Error(info) }
    }
}

impl StreamLog {
    /// A reader whose next event is number `from_seq`.
    pub fn reader(self: &Arc<Self>, from_seq: u64) -> StreamReader {
        self.join();
        StreamReader { log: self.clone(), next_seq: from_seq, changed: self.progress.subscribe() }
    }
}

impl StreamReader {
    /// Waits until an event is there to take; `false` once the terminal event was given. Cancel-safe.
    pub async fn ready(&mut self) -> bool {
        loop {
            match self.log.progress.has(self.next_seq) {
                Some(true) => return true,
                None => return false,
                Some(false) => {}
            }
            // The sender lives in the log that this reader holds, so waiting cannot fail.
            if self.changed.changed().await.is_err() {
                return false;
            }
        }
    }

    /// The next event and its sequence number, waiting for it if need be; `None` once the terminal event was given.
    /// Cancel-safe: a dropped future loses nothing. A reader that was overtaken (see [`Self::read`]) gets an error as
    /// its last event, since what it has cannot be made whole.
    pub async fn next(&mut self) -> Option<(u64, Event)> {
        self.ready().await;
        self.try_next()
    }

    /// The next event if it is there already; an overtaken reader gets an error, and nothing after it.
    pub fn try_next(&mut self) -> Option<(u64, Event)> {
        self.try_next_entry().map(|e| (e.seq, e.event))
    }

    /// [`Self::try_next`] with the event's time.
    pub fn try_next_entry(&mut self) -> Option<Entry> {
        match self.read(None)? {
            Read::Entry(entry) => Some(entry),
            Read::Gap(gap) => {
                self.next_seq = u64::MAX;
                Some(gap.into_end())
            }
        }
    }

    /// What comes next, if it is there already.
    ///
    /// With `backlog_min`, when at least that many token events have piled up in a row, many come as one, with the
    /// sequence number and time of the last: a reader that lags catches up in few frames.
    pub fn read(&mut self, backlog_min: Option<usize>) -> Option<Read> {
        let Self { log, next_seq, .. } = self;
        if *next_seq >= log.progress.num_visible() {
            return None;
        }
        let state = log.lock();
        if *next_seq < state.num_trimmed {
            let num_lost = state.num_trimmed - *next_seq;
            *next_seq = state.num_trimmed;
            let ts_ms = state.entries.front().map_or(0, |e| e.ts_ms);
            return Some(Read::Gap(Gap { next_seq: *next_seq, num_lost, ts_ms }));
        }
        let index = usize::try_from(*next_seq - state.num_trimmed).ok()?;
        let entry = match backlog_min {
            Some(backlog_min) => merged(&state, index, backlog_min.max(2)),
            None => None,
        };
        let entry = match entry {
            Some(entry) => entry,
            None => state.entries.get(index)?.clone(),
        };
        *next_seq = entry.seq + 1;
        Some(Read::Entry(entry))
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

/// The run of visible token events from `index` on as one event, if it is `backlog_min` long.
fn merged(state: &LogState, index: usize, backlog_min: usize) -> Option<Entry> {
    let num_visible = (state.num_visible() - state.num_trimmed) as usize;
    let rest = state.entries.range(index..num_visible);
    let tokens = rest.clone().take(MERGED_EVENTS_MAX).take_while(|e| matches!(e.event, Event::Token(_)));
    let mut num_bytes = 0;
    let is_room = |entry: &&Entry| {
        num_bytes += payload_bytes(&entry.event);
        num_bytes <= MERGED_BYTES_MAX
    };
    if tokens.clone().take(backlog_min).count() < backlog_min {
        return None;
    }
    let run = tokens.take_while(is_room).count().max(1);
    let mut merged = TokenEvent::default();
    for entry in rest.take(run) {
        if let Event::Token(token) = &entry.event {
            merged.text.push_str(&token.text);
            merged.tokens.extend_from_slice(&token.tokens);
            merged.logprobs.extend_from_slice(&token.logprobs);
        }
    }
    let last = &state.entries[index + run - 1];
    Some(Entry { seq: last.seq, ts_ms: last.ts_ms, event: Event::Token(merged) })
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.log.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CancelCause;
    use crate::protocol::{FinishReason, OnDisconnect, StreamId, Tenant, TokenLogprob};
    use std::sync::atomic::{AtomicU64, Ordering};

    fn log(policy: OnDisconnect) -> Arc<StreamLog> {
        StreamLog::new(StreamId(1), Tenant(0), policy)
    }

    #[test]
    fn who_joins_as_the_last_one_leaves_knows_at_once_whether_it_is_over() {
        let barrier = std::sync::Barrier::new(2);
        for _ in 0..2000 {
            let log = log(OnDisconnect::Cancel);
            let last = log.reader(0);
            std::thread::scope(|scope| {
                let leaving = scope.spawn(|| {
                    barrier.wait();
                    drop(last);
                });
                barrier.wait();
                let joined = log.reader(0);
                let was_over = log.cancelled();
                leaving.join().expect("no panic");
                assert_eq!(log.cancelled(), was_over, "it was ended for a reader that was not the last");
                drop(joined);
            });
        }
    }

    fn token(text: &str) -> Event {
        Event::Token(TokenEvent { text: text.to_owned(), tokens: vec![7], logprobs: Vec::new() })
    }

    fn done() -> Event {
        Event::Done { finish_reason: FinishReason::Stop, usage: Usage::default(), stop: None }
    }

    /// The next event, runs of `backlog_min` as one.
    fn read(reader: &mut StreamReader, backlog_min: usize) -> Option<Entry> {
        match reader.read(Some(backlog_min))? {
            Read::Entry(entry) => Some(entry),
            Read::Gap(gap) => panic!("{gap:?}"),
        }
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
    fn asking_for_its_end_ends_those_that_it_leads_though_it_has_ended() {
        let (ended, left) = (log(OnDisconnect::Detach), log(OnDisconnect::Detach));
        let followers = [log(OnDisconnect::Detach), log(OnDisconnect::Detach)];
        for leader in [&ended, &left] {
            leader.lead(followers.iter());
        }
        ended.append(done());
        left.cancel(CancelCause::ReaderLeft);
        assert!(!left.cancel(CancelCause::ReaderLeft));
        assert_eq!(followers[0].cancelled(), None, "readers leave each for themselves");
        assert!(!ended.cancel(CancelCause::Requested));
        assert!(followers.iter().all(|log| log.cancelled() == Some(CancelCause::Requested)));
        assert_eq!((ended.cancelled(), left.cancelled()), (None, Some(CancelCause::ReaderLeft)));
    }

    #[test]
    fn a_reader_that_was_sent_away_does_not_cancel() {
        let log = log(OnDisconnect::Cancel);
        let reader = log.reader(0);
        log.suspend();
        drop(reader);
        assert_eq!(log.cancelled(), None);
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
        let seqs: Vec<u64> = std::iter::from_fn(|| read(&mut patient, 4).map(|e| e.seq)).collect();
        assert_eq!(seqs, [0, 1, 2, 3, 4], "a run below the threshold stays as it was");

        let mut lagging = log.reader(1);
        let merged = read(&mut lagging, 3).expect("three tokens wait");
        assert_eq!(merged.seq, 3);
        let expected = TokenEvent { text: "abc".to_owned(), tokens: vec![7, 7, 7], logprobs: Vec::new() };
        assert_eq!(merged.event, Event::Token(expected));
        assert_eq!(read(&mut lagging, 3).map(|e| e.seq), Some(4));
        assert_eq!(read(&mut lagging, 3), None);
    }

    #[test]
    fn a_cursor_past_the_end_finds_nothing() {
        let log = log(OnDisconnect::Detach);
        log.append(token("a"));
        let mut reader = log.reader(9);
        assert_eq!(read(&mut reader, 2), None);
        assert_eq!(reader.try_next(), None);
    }

    #[test]
    fn one_event_holds_a_bounded_number_of_others() {
        let log = log(OnDisconnect::Detach);
        for _ in 0..MERGED_EVENTS_MAX + 1 {
            log.append(token("a"));
        }
        let mut reader = log.reader(0);
        assert_eq!(read(&mut reader, 2).map(|e| e.seq), Some(MERGED_EVENTS_MAX as u64 - 1));
        assert_eq!(read(&mut reader, 2).map(|e| e.seq), Some(MERGED_EVENTS_MAX as u64));
        assert_eq!(read(&mut reader, 2), None);
    }

    #[test]
    fn one_event_holds_a_bounded_number_of_bytes() {
        let log = log(OnDisconnect::Detach);
        let logprob = TokenLogprob { token: 7, logprob: -1.0, top: vec![(7, -1.0); 100] };
        let rich = TokenEvent { text: "a".to_owned(), tokens: vec![7], logprobs: vec![logprob] };
        let num_events = MERGED_EVENTS_MAX;
        for _ in 0..num_events {
            log.append(Event::Token(rich.clone()));
        }
        let mut reader = log.reader(0);
        let mut next_seq = 0;
        while let Some(entry) = read(&mut reader, num_events - next_seq as usize) {
            let num_merged = entry.seq + 1 - next_seq;
            assert!(num_merged > 1 || next_seq + 1 == num_events as u64, "{num_merged} from {next_seq} on");
            assert!(payload_bytes(&entry.event) <= MERGED_BYTES_MAX);
            next_seq = entry.seq + 1;
        }
        assert_eq!(next_seq, num_events as u64);
    }

    #[test]
    fn an_overtaken_reader_is_told_and_goes_on_or_ends() {
        let log = log(OnDisconnect::Detach);
        let (mut patient, mut strict) = (log.reader(0), log.reader(0));
        log.append(token("a"));
        assert!(strict.try_next().is_some() && read(&mut patient, 2).is_some());
        // Of any size, only the last event stays.
        log.set_num_bytes_max(1);
        log.append(token("b"));
        log.append(token("c"));
        log.append(token("d"));
        assert_eq!((log.first_seq(), log.len()), (3, 4));
        let gap = Gap { next_seq: 3, num_lost: 2, ts_ms: 0 };
        assert_eq!(patient.read(Some(2)), Some(Read::Gap(gap)));
        assert_eq!(read(&mut patient, 2).map(|e| e.seq), Some(3));
        assert_eq!(strict.try_next_entry(), Some(gap.into_end()));
        log.append(done());
        assert_eq!(strict.try_next(), None, "what follows would be a wrong suffix");
        assert_eq!(read(&mut patient, 2).map(|e| e.event), Some(done()));
        assert_eq!(patient.read(None), None);
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
