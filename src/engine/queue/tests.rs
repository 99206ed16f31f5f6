//! The queue without workers: bounds, order, cancellation, the end.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::protocol::{OnDisconnect, SamplingParams, StopParams, Tenant};
use crate::stream::CancelCause;

struct Bench {
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    time_ms: Arc<AtomicU64>,
}

fn bench(requests_max: usize, tokens_max: usize) -> Bench {
    let (metrics, time_ms) = (Arc::new(Metrics::default()), Arc::new(AtomicU64::new(0)));
    let time = time_ms.clone();
    let clock = Arc::new(move || Duration::from_millis(time.load(Ordering::Relaxed)));
    let queue = Queue::new(QueueLimits { requests_max, tokens_max }, metrics.clone(), clock);
    Bench { queue, metrics, time_ms }
}

impl Bench {
    /// A request of 10 prompt tokens and `max_tokens`.
    fn submit(&self, id: u128, max_tokens: usize) -> Result<Arc<StreamLog>> {
        let log = StreamLog::new(StreamId(id), Tenant(0), OnDisconnect::Detach);
        self.submit_to(&log, max_tokens).map(|()| log)
    }

    fn submit_to(&self, log: &Arc<StreamLog>, max_tokens: usize) -> Result<()> {
        let request = ValidRequest {
            id: log.id(),
            tenant: Tenant(0),
            prompt: vec![1; 10],
            max_tokens,
            sampling: SamplingParams { seed: Some(0), ..SamplingParams::default() },
            stop: StopParams::default(),
            on_disconnect: OnDisconnect::Detach,
        };
        self.queue.submit(request, None, log)
    }

    fn pull(&self) -> Option<Box<Entry>> {
        match self.queue.pull(|_| true) {
            Pulled::Entry(entry) => Some(entry),
            Pulled::Nothing => None,
            Pulled::Stopped(message) => panic!("stopped: {message}"),
        }
    }
}

#[track_caller]
fn last_error(log: &Arc<StreamLog>) -> ErrorKind {
    let mut reader = log.reader(log.len() as u64 - 1);
    match reader.try_next() {
        Some((_, Event::Error(info))) => info.kind,
        other => panic!("not an error: {other:?}"),
    }
}

#[test]
fn first_come_first_served_and_positions_say_so() {
    let b = bench(10, 1000);
    let logs: Vec<_> = (0..3).map(|id| b.submit(id, 5).expect("room")).collect();
    for (position, log) in logs.iter().enumerate() {
        assert_eq!(log.reader(0).try_next(), Some((0, Event::Queued { position })));
    }
    assert_eq!(b.queue.depth(), (3, 45));
    let order: Vec<_> = (0..3).map(|_| b.pull().expect("waits").request.id.0).collect();
    assert_eq!(order, [0, 1, 2]);
    assert_eq!(b.queue.depth(), (0, 0));
}

#[test]
fn what_does_not_fit_stays_and_keeps_its_place() {
    let b = bench(10, 1000);
    let _logs = [b.submit(0, 5), b.submit(1, 5)];
    assert!(matches!(b.queue.pull(|e| e.request.id.0 == 1), Pulled::Nothing), "the second does not overtake");
    assert_eq!(b.pull().expect("waits").request.id.0, 0);
}

#[test]
fn both_bounds_refuse_and_leave_no_trace() {
    let b = bench(2, 100);
    b.submit(0, 20).expect("room");
    let log = StreamLog::new(StreamId(9), Tenant(0), OnDisconnect::Detach);
    let by_tokens = b.submit_to(&log, 61).expect_err("30 and 71 tokens");
    b.submit(1, 20).expect("room");
    let by_requests = b.submit_to(&log, 1).expect_err("two wait");
    for e in [by_tokens, by_requests] {
        assert_eq!((e.kind(), e.retry_after_ms()), (ErrorKind::Overloaded, Some(1000)), "{e}");
    }
    assert!(log.is_empty());
    assert_eq!((b.metrics.requests_accepted.get(), b.metrics.requests_rejected.get()), (2, 2));
    let big = bench(2, 100);
    big.submit(0, 5000).expect("an empty queue takes any request");
}

#[test]
fn the_time_to_come_back_is_work_ahead_over_measured_rate() {
    let b = bench(1, 10_000);
    // A request of 100 tokens every second.
    for second in 1..=10 {
        b.submit(second, 90).expect("room");
        let entry = b.pull().expect("waits");
        b.time_ms.store(u64::try_from(second).expect("small") * 1000, Ordering::Relaxed);
        b.queue.on_served(entry.request.num_tokens_max());
        entry.writer.done(crate::protocol::FinishReason::Stop);
    }
    b.submit(100, 490).expect("room");
    let ms = b.submit(101, 1).expect_err("full").retry_after_ms().expect("told");
    assert!((4500..=5500).contains(&ms), "500 tokens wait, 100 are served a second: {ms}");
}

#[test]
fn a_cancelled_request_leaves_at_once_and_ends_once() {
    let b = bench(10, 1000);
    let logs: Vec<_> = (0..3).map(|id| b.submit(id, 5).expect("room")).collect();
    logs[1].cancel(CancelCause::ReaderLeft);
    logs[1].cancel(CancelCause::Requested);
    assert_eq!((logs[1].len(), last_error(&logs[1])), (2, ErrorKind::Cancelled));
    assert_eq!((b.queue.depth(), b.metrics.num_waiting.get()), ((2, 30), 2));
    let order: Vec<_> = (0..2).map(|_| b.pull().expect("waits").request.id.0).collect();
    assert_eq!(order, [0, 2]);
    assert_eq!(b.metrics.requests_cancelled.get(), 1);
}

#[test]
fn a_request_cancelled_before_it_came_never_runs() {
    let b = bench(10, 1000);
    let log = StreamLog::new(StreamId(1), Tenant(0), OnDisconnect::Detach);
    log.cancel(CancelCause::ReaderLeft);
    b.submit_to(&log, 5).expect("room");
    assert_eq!(last_error(&log), ErrorKind::Cancelled);
    assert!(b.pull().is_none() && b.queue.is_idle());
}

#[test]
fn a_cancellation_after_the_pull_is_the_worker_s() {
    let b = bench(10, 1000);
    let log = b.submit(1, 5).expect("room");
    b.time_ms.store(70, Ordering::Relaxed);
    let entry = b.pull().expect("waits");
    log.cancel(CancelCause::Requested);
    assert!(!log.is_finished() && entry.writer.is_cancelled());
    assert_eq!(entry.cancelled_at.get(), Some(&Duration::from_millis(70)));
    entry.writer.cancelled();
    assert_eq!(last_error(&log), ErrorKind::Cancelled);
}

#[test]
fn a_dropped_writer_ends_its_log() {
    let b = bench(10, 1000);
    let log = b.submit(1, 5).expect("room");
    drop(b.pull());
    assert_eq!(last_error(&log), ErrorKind::Internal);
    assert!(b.queue.is_idle());
    assert_eq!(b.metrics.requests_failed.get(), 1);
}

#[test]
fn closing_lets_the_waiting_run_and_stopping_ends_them() {
    let b = bench(10, 1000);
    let log = b.submit(1, 5).expect("room");
    b.queue.close("draining");
    assert_eq!(b.submit(2, 5).expect_err("closed").message(), "draining");
    assert!(!b.queue.is_open() && !b.queue.is_idle());
    b.queue.stop("over");
    assert_eq!(last_error(&log), ErrorKind::Unavailable);
    assert!(matches!(b.queue.pull(|_| true), Pulled::Stopped(message) if message == "over"));
    assert!(b.queue.is_idle() && b.queue.wait_stopped(Duration::from_secs(60)));
    b.queue.wait();
}
