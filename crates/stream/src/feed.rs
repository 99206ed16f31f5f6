//! What happens on the whole server, for operators: a ring of lifecycle events, numbered from 0, of which the newest are
//! kept. Publishing never waits; a reader that is too slow is told how many events it has missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::CancelCause;
use crate::protocol::{ErrorInfo, Event, FinishReason, StreamId, Usage};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedEvent {
    /// Its number, from 0.
    pub seq: u64,
    /// When, in milliseconds since the Unix epoch.
    pub ts_ms: u64,
    /// To which stream, if to one.
    pub stream: Option<StreamId>,
    /// What.
    pub happening: Happening,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// A request was accepted.
    Queued {
        /// Requests before it.
        position: usize,
    },
    /// A worker has begun on it.
    Started {
        /// Tokens of its prompt.
        prompt_tokens: usize,
        /// Of those, from the prefix cache.
        cached_tokens: usize,
    },
    /// It ended as it should.
    Finished {
        /// Why it ended.
        finish_reason: FinishReason,
        /// What it cost.
        usage: Usage,
    },
    /// Somebody cancelled it.
    Cancelled {
        /// Who.
        cause: Option<CancelCause>,
        /// What it cost until then.
        usage: Usage,
    },
    /// It failed.
    Failed(ErrorInfo),
    /// A request was refused.
    Rejected {
        /// Why, in a sentence.
        reason: String,
    },
    /// A worker was started again, or another in its place.
    WorkerRestarted {
        /// Restarts since the server began.
        num_restarts: u64,
    },
    /// The model's weights are in memory.
    ModelLoaded {
        /// What it is called on the wire.
        model: String,
    },
    /// The memory of the model's weights is free.
    ModelUnloaded {
        /// What it is called on the wire.
        model: String,
    },
}

impl Happening {
    /// The wire word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Started { .. } => "started",
            Self::Finished { .. } => "finished",
            Self::Cancelled { .. } => "cancelled",
            Self::Failed(_) => "failed",
            Self::Rejected { .. } => "rejected",
            Self::WorkerRestarted { .. } => "worker_restarted",
            Self::ModelLoaded { .. } => "model_loaded",
            Self::ModelUnloaded { .. } => "model_unloaded",
        }
    }

    /// What a log's event means for the server; `None` for tokens and for later places in the queue.
    pub(super) fn of(seq: u64, event: &Event, cause: Option<CancelCause>) -> Option<Self> {
        match event {
            Event::Queued { position, .. } if seq == 0 => Some(Self::Queued { position: *position }),
            Event::Started { prompt_tokens, cached_tokens } => {
                Some(Self::Started { prompt_tokens: *prompt_tokens, cached_tokens: *cached_tokens })
            }
            Event::Done { finish_reason, usage, .. } => {
                Some(Self::Finished { finish_reason: *finish_reason, usage: *usage })
            }
            // It was refused and never began.
            Event::Error(_) if seq == 0 => None,
            Event::Error(info) if cause.is_some() => Some(Self::Cancelled { cause, usage: info.usage }),
            Event::Error(info) => Some(Self::Failed(info.clone())),
            Event::Queued { .. } | Event::Prompt { .. } | Event::Token(_) => None,
        }
    }
}

/// The ring.
#[derive(Debug)]
pub struct Feed {
    num_events_max: usize,
    // A std mutex: it is held for a push or a clone.
    ring: Mutex<Ring>,
    /// Events so far; readers wait on it.
    len: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<FeedEvent>,
    num_events: u64,
    /// Nothing comes any more.
    is_closed: bool,
}

impl Feed {
    /// An empty ring that keeps the newest `num_events_max`, at least one.
    pub fn new(num_events_max: usize) -> Arc<Self> {
        Arc::new(Self { num_events_max: num_events_max.max(1), ring: Mutex::default(), len: watch::Sender::new(0) })
    }

    /// Adds an event, and drops the oldest if there is no room.
    pub fn publish(&self, ts_ms: u64, stream: Option<StreamId>, happening: Happening) {
        let mut ring = self.lock();
        let seq = ring.num_events;
        if ring.events.len() == self.num_events_max {
            ring.events.pop_front();
        }
        ring.events.push_back(FeedEvent { seq, ts_ms, stream, happening });
        ring.num_events += 1;
        drop(ring);
        self.len.send_replace(seq + 1);
    }

    /// Sends readers away once they have what there is. What is published from here on may find nobody.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.len.send_modify(|_| ());
    }

    /// Number of events so far, those that are no longer kept too.
    pub fn num_events(&self) -> u64 {
        self.lock().num_events
    }

    /// A reader whose next event is number `from_seq`.
    pub fn reader(self: &Arc<Self>, from_seq: u64) -> FeedReader {
        FeedReader { feed: self.clone(), next_seq: from_seq, len: self.len.subscribe() }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // A panic while pushing leaves a valid queue behind.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cursor into the ring.
#[derive(Debug)]
pub struct FeedReader {
    feed: Arc<Feed>,
    next_seq: u64,
    len: watch::Receiver<u64>,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedRead {
    /// An event.
    Event(FeedEvent),
    /// Events up to this one, exclusive, are no longer kept.
    Gap {
        /// The oldest that is kept.
        next_seq: u64,
        /// When it happened.
        ts_ms: u64,
    },
}

impl FeedReader {
    /// Waits until there is something to read; `false` if nothing will come. Cancel-safe.
    pub async fn ready(&mut self) -> bool {
        loop {
            let (num_events, is_closed) = {
                let ring = self.feed.lock();
                (ring.num_events, ring.is_closed)
            };
            if num_events > self.next_seq {
                return true;
            }
            // The sender lives in the feed that this reader holds.
            if is_closed || self.len.changed().await.is_err() {
                return false;
            }
        }
    }

    /// What comes next, if it is there already.
    pub fn read(&mut self) -> Option<FeedRead> {
        let ring = self.feed.lock();
        let oldest = ring.events.front()?;
        let first = oldest.seq;
        if self.next_seq < first {
            self.next_seq = first;
            return Some(FeedRead::Gap { next_seq: first, ts_ms: oldest.ts_ms });
        }
        let event = ring.events.get((self.next_seq - first) as usize)?.clone();
        self.next_seq += 1;
        Some(FeedRead::Event(event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_are_kept_and_the_rest_is_a_gap() {
        let feed = Feed::new(3);
        let mut early = feed.reader(0);
        for i in 0..5 {
            feed.publish(i, None, Happening::WorkerRestarted { num_restarts: i });
        }
        assert!(early.ready().await);
        assert_eq!(early.read(), Some(FeedRead::Gap { next_seq: 2, ts_ms: 2 }));
        let seqs: Vec<u64> = std::iter::from_fn(|| early.read())
            .map(|read| match read {
                FeedRead::Event(e) => e.seq,
                FeedRead::Gap { .. } => panic!("a second gap"),
            })
            .collect();
        assert_eq!(seqs, [2, 3, 4]);
        assert_eq!(feed.reader(9).read(), None);
        let waiting = tokio::spawn(async move {
            assert!(early.ready().await);
            (early.read(), early)
        });
        feed.publish(7, None, Happening::Rejected { reason: "full".to_owned() });
        let (read, mut early) = waiting.await.expect("no panic");
        assert!(matches!(read, Some(FeedRead::Event(e)) if e.seq == 5));
        feed.publish(8, None, Happening::WorkerRestarted { num_restarts: 8 });
        feed.close();
        assert!(early.ready().await, "what there is comes first");
        assert!(early.read().is_some());
        assert!(!early.ready().await);
    }
}
