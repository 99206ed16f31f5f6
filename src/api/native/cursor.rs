//! Where a reader wants to go on, and what of that the log can honour. Never a wrong suffix: a cursor of another life
//! of the server, or past the end, gets a `gap` event and then everything that is kept. What is no longer kept is the
//! reader's to notice: it can happen at any time.

use std::fmt;
use std::str::FromStr;

use crate::protocol::{Epoch, EventId};
use crate::stream::StreamLog;

/// What a client has, as its last event id says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// Nothing yet: `<epoch>-start`, the id of the first block of a connection that starts at the beginning.
    Start(Epoch),
    /// Everything up to and with this event.
    After(EventId),
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(epoch) => write!(f, "{:x}-start", epoch.0),
            Self::After(id) => write!(f, "{id}"),
        }
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        match s.strip_suffix("-start") {
            // Spelled by the rules of an event id, whatever its sequence number.
            Some(epoch) => format!("{epoch}-0").parse().map(|id: EventId| Self::Start(id.epoch)),
            None => s.parse().map(Self::After),
        }
    }
}

/// How a reader with a cursor is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resume {
    /// From this event on, which is the one it wants.
    From(u64),
    /// From this event on, after saying that it is not the one it wanted.
    Gap {
        /// The first event that follows.
        from: u64,
        /// Why.
        reason: GapReason,
    },
    /// It has the terminal event already.
    Complete,
}

/// Why a cursor cannot be honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GapReason {
    /// It is of another life of the server.
    ForeignEpoch,
    /// It is past what the stream has.
    PastEnd,
    /// What follows it is no longer kept.
    Trimmed,
}

impl GapReason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ForeignEpoch => "foreign_epoch",
            Self::PastEnd => "past_end",
            Self::Trimmed => "trimmed",
        }
    }
}

/// What `log` can do for a reader that has `cursor`.
pub(super) fn resume(log: &StreamLog, epoch: Epoch, cursor: Option<Cursor>) -> Resume {
    // Should more be trimmed from here on, the reader says so when it is read.
    let first_seq = log.first_seq();
    match cursor {
        // Who has nothing misses nothing, whatever life it is of.
        None | Some(Cursor::Start(_)) => Resume::From(0),
        Some(Cursor::After(id)) if id.epoch != epoch => {
            Resume::Gap { from: first_seq, reason: GapReason::ForeignEpoch }
        }
        Some(Cursor::After(id)) => {
            // The end first: were it asked second, an event between the two questions would look like one missed.
            let is_finished = log.is_finished();
            let num_events = log.len() as u64;
            match id.seq.checked_add(1) {
                Some(next) if next == num_events && is_finished => Resume::Complete,
                // Shown by an earlier process, and not yet computed again by this one.
                Some(next) if next <= num_events || !is_finished && log.may_be_behind_readers() => Resume::From(next),
                _ => Resume::Gap { from: first_seq, reason: GapReason::PastEnd },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Event, FinishReason, OnDisconnect, StreamId, Tenant, Usage};

    const HERE: Epoch = Epoch(0xab);

    #[track_caller]
    fn check(cursor: &str, is_finished: bool, expect: Resume) {
        let log = StreamLog::new(StreamId(1), Tenant(0), OnDisconnect::Detach);
        log.append(Event::Queued { position: 0, wait_ms: None });
        if is_finished {
            log.append(Event::Done { finish_reason: FinishReason::Stop, usage: Usage::default(), stop: None });
        } else {
            log.append(Event::Started { prompt_tokens: 1, cached_tokens: 0 });
        }
        let cursor = Some(cursor.parse().expect("a cursor"));
        assert_eq!(resume(&log, HERE, cursor), expect);
    }

    #[test]
    fn a_cursor_is_honoured_or_told_of_the_gap() {
        for is_finished in [false, true] {
            check("ab-start", is_finished, Resume::From(0));
            check("cd-start", is_finished, Resume::From(0));
            check("ab-0", is_finished, Resume::From(1));
            check("cd-0", is_finished, Resume::Gap { from: 0, reason: GapReason::ForeignEpoch });
            check("ab-2", is_finished, Resume::Gap { from: 0, reason: GapReason::PastEnd });
            check("ab-18446744073709551615", is_finished, Resume::Gap { from: 0, reason: GapReason::PastEnd });
        }
        check("ab-1", false, Resume::From(2));
        check("ab-1", true, Resume::Complete);
    }

    #[test]
    fn a_gap_goes_on_with_what_is_kept() {
        let log = StreamLog::new(StreamId(1), Tenant(0), OnDisconnect::Detach);
        log.set_num_bytes_max(1);
        for position in 0..5 {
            log.append(Event::Queued { position, wait_ms: None });
        }
        let of = |text: &str| resume(&log, HERE, Some(text.parse().expect("a cursor")));
        assert_eq!(of("cd-1"), Resume::Gap { from: 4, reason: GapReason::ForeignEpoch });
        assert_eq!(of("ab-5"), Resume::Gap { from: 4, reason: GapReason::PastEnd });
        assert_eq!(of("ab-4"), Resume::From(5));
        assert_eq!(of("ab-1"), Resume::From(2), "the reader tells of the gap");
    }

    #[test]
    fn cursors_have_one_spelling() {
        for text in ["ab-start", "ab-0", "ab-12"] {
            assert_eq!(text.parse::<Cursor>().map(|c| c.to_string()), Ok(text.to_owned()));
        }
        for bad in ["", "-start", "start", "xy-start", "+1-start", "ab", "ab-", "ab--start", "12", "a b-1"] {
            assert_eq!(bad.parse::<Cursor>(), Err(()), "{bad:?}");
        }
    }
}
