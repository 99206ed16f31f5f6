//! The queue without workers: bounds, order, cancellation, the end.

use std::sync::atomic::AtomicU64;

use super::*;

const ONE: Load = Load { requests: 1, tokens: 1 };

use tallow_stream::CancelCause;
use tallow_stream::protocol::{Event, OnDisconnect, QueueTerms, SamplingParams, StopParams, Tenant};

struct Bench {
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    time_ms: Arc<AtomicU64>,
}

fn bench(requests_max: usize, tokens_max: usize) -> Bench {
    let (metrics, time_ms) = (Arc::new(Metrics::default()), Arc::new(AtomicU64::new(0)));
    let time = time_ms.clone();
    let clock = Arc::new(move || Duration::from_millis(time.load(Ordering::Relaxed)));
    let limits =
        QueueLimits { requests_max, tokens_max, priority_step_tokens: 1000, note_interval: Duration::from_secs(1) };
    let queue = Queue::new(limits, metrics.clone(), clock);
    Bench { queue, metrics, time_ms }
}

impl Bench {
    /// A request of 10 prompt tokens and `max_tokens`.
    fn submit(&self, id: u128, max_tokens: usize) -> Result<Arc<StreamLog>> {
        let log = StreamLog::new(StreamId(id), Tenant(0), OnDisconnect::Detach);
        self.submit_to(&log, max_tokens).map(|()| log)
    }

    fn submit_to(&self, log: &Arc<StreamLog>, max_tokens: usize) -> Result<()> {
        self.submit_on(log, max_tokens, QueueTerms::default())
    }

    fn submit_on(&self, log: &Arc<StreamLog>, max_tokens: usize, queue: QueueTerms) -> Result<()> {
        let request = ValidRequest {
            constraint: None,
            leader: None,
            resumed: None,
            id: log.id(),
            tenant: log.tenant(),
            prompt: vec![1; 10],
            max_tokens,
            sampling: SamplingParams { seed: Some(0), ..SamplingParams::default() },
            stop: StopParams::default(),
            on_disconnect: OnDisconnect::Detach,
            queue,
        };
        self.queue.submit(request, None, log)
    }

    fn pull(&self) -> Option<Box<QueueEntry>> {
        match self.queue.pull(|_, _| true) {
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
        assert_eq!(log.reader(0).try_next(), Some((0, Event::Queued { position, wait_ms: None })));
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
    assert!(matches!(b.queue.pull(|e, _| e.request.id.0 == 1), Pulled::Nothing), "the second does not overtake");
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
        b.queue.on_served(Tenant(0), entry.request.num_tokens_max(), 50);
        entry.writer.done(tallow_stream::protocol::FinishReason::Stop, None);
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
fn an_owner_does_not_pay_for_what_a_worker_lost() {
    for is_lost in [false, true] {
        let b = bench(10, 10_000);
        let submit = |id: u128, tenant: u64, max_tokens| {
            let log = StreamLog::new(StreamId(id), Tenant(tenant), OnDisconnect::Detach);
            b.submit_to(&log, max_tokens).expect("room");
        };
        submit(1, 1, 900);
        let lost = b.pull().expect("waits");
        if is_lost {
            b.queue.on_lost(Tenant(1), lost.request.num_tokens_max(), 0);
        }
        submit(2, 1, 5);
        submit(3, 2, 5);
        let first = b.pull().expect("waits").request.id.0;
        assert_eq!(first, if is_lost { 2 } else { 3 }, "lost {is_lost}");
    }
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
    assert!(matches!(b.queue.pull(|_, _| true), Pulled::Stopped(message) if message == "over"));
    assert!(b.queue.is_idle() && b.queue.wait_stopped(Duration::from_secs(60)));
    b.queue.wait();
}

/// An empty log of `tenant`.
fn log_of(tenant: u64, id: u128) -> Arc<StreamLog> {
    StreamLog::new(StreamId(id), Tenant(tenant), OnDisconnect::Detach)
}

fn events(log: &Arc<StreamLog>) -> Vec<Event> {
    let mut reader = log.reader(0);
    std::iter::from_fn(|| reader.try_next().map(|(_, event)| event)).collect()
}

#[test]
fn a_request_that_waits_too_long_ends_and_never_runs() {
    let b = bench(10, 1000);
    let (patient, hasty) = (log_of(0, 1), log_of(0, 2));
    b.submit_to(&patient, 5).expect("room");
    b.submit_on(&hasty, 5, QueueTerms { timeout_ms: Some(2000), ..QueueTerms::default() }).expect("room");
    b.time_ms.store(1999, Ordering::Relaxed);
    b.queue.sweep();
    assert!(!hasty.is_finished());
    b.time_ms.store(2000, Ordering::Relaxed);
    b.queue.sweep();
    assert_eq!(last_error(&hasty), ErrorKind::QueueTimeout);
    assert_eq!((b.metrics.queue_timeouts.get(), b.metrics.requests_failed.get()), (1, 1));
    let other = log_of(0, 3);
    b.submit_on(&other, 5, QueueTerms { timeout_ms: Some(10), ..QueueTerms::default() }).expect("room");
    b.time_ms.store(9000, Ordering::Relaxed);
    assert_eq!(b.pull().expect("waits").request.id, patient.id());
    assert!(b.pull().is_none(), "also when a worker comes before the sweep");
    assert_eq!(last_error(&other), ErrorKind::QueueTimeout);
}

#[test]
fn places_are_told_when_they_change_and_not_too_often() {
    let b = bench(100, 10_000);
    let logs: Vec<_> = (0..20).map(|id| b.submit(id, 5).expect("room")).collect();
    let places = |log: &Arc<StreamLog>| {
        let place = |e| match e {
            Event::Queued { position, .. } => position,
            other => panic!("{other:?}"),
        };
        events(log).into_iter().map(place).collect::<Vec<_>>()
    };
    let pass = |ms: u64| {
        b.time_ms.fetch_add(ms, Ordering::Relaxed);
        b.queue.sweep();
    };
    pass(5000);
    assert_eq!(places(&logs[19]), [19], "nothing changed");
    for _ in 0..4 {
        b.pull().expect("waits");
        pass(250);
    }
    // Told of the first, then not again within a second.
    assert_eq!(places(&logs[19]), [19, 18]);
    pass(250);
    assert_eq!(places(&logs[19]), [19, 18, 15]);
    b.time_ms.store(80_000, Ordering::Relaxed);
    let before = logs[19].len();
    for _ in 0..11 {
        b.pull().expect("waits");
        pass(2000);
    }
    // After 80 seconds the pause is ten: about a third of 22 seconds' changes are told.
    let told = logs[19].len() - before;
    assert!((2..=3).contains(&told), "{told}");
}

#[test]
fn the_wait_told_is_work_ahead_over_measured_rate() {
    let b = bench(10, 10_000);
    b.submit(1, 90).expect("room");
    let entry = b.pull().expect("waits");
    b.time_ms.store(1000, Ordering::Relaxed);
    b.queue.on_served(Tenant(0), 100, 100);
    entry.writer.done(tallow_stream::protocol::FinishReason::Stop, None);
    b.submit(2, 190).expect("room");
    let log = b.submit(3, 5).expect("room");
    assert_eq!(events(&log), [Event::Queued { position: 1, wait_ms: Some(2000) }]);
}

/// Where there is no room, as much must end as the request needs itself.
#[test]
fn the_wait_told_counts_what_must_end_before_there_is_room() {
    let b = bench(10, 10_000);
    let told = |id: u128, num_tokens: usize| events(&b.submit(id, num_tokens).expect("room"));
    told(1, 90);
    let first = b.pull().expect("waits");
    b.time_ms.store(1000, Ordering::Relaxed);
    b.queue.on_served(Tenant(0), 100, 100);
    assert_eq!(told(2, 190), [Event::Queued { position: 0, wait_ms: Some(0) }], "nobody has said that it is full");
    assert!(matches!(b.queue.pull(|_, _| false), Pulled::Nothing));
    assert_eq!(told(3, 40), [Event::Queued { position: 1, wait_ms: Some(2500) }], "200 of the other's, 50 of its own");
    let second = b.pull().expect("room after all");
    assert_eq!(told(4, 40), [Event::Queued { position: 1, wait_ms: Some(500) }]);
    drop((first, second));
}

#[test]
fn one_key_cannot_fill_the_queue() {
    let b = bench(100, 100_000);
    let taken = (0..100).take_while(|id| b.submit_to(&log_of(1, *id), 5).is_ok()).count();
    assert_eq!(taken, 80, "four fifths");
    for id in 1000..1010 {
        b.submit_to(&log_of(2, id), 5).expect("another finds room");
    }
    let refused = b.submit_to(&log_of(1, 999), 5).expect_err("still too many");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(b.queue.check_room(Tenant(1), ONE).is_err() && b.queue.check_room(Tenant(2), ONE).is_ok());
    let without_keys = bench(100, 100_000);
    assert_eq!((0..200).take_while(|id| without_keys.submit(*id, 5).is_ok()).count(), 100);
    let by_tokens = bench(100, 1000);
    let taken = (0..100).take_while(|id| by_tokens.submit_to(&log_of(1, *id), 90).is_ok()).count();
    assert_eq!(taken, 8, "of ten");
}

/// What is asked for several at once is what would be found out one by one.
#[test]
fn there_is_room_for_several_if_each_would_be_let_in() {
    for (owner, num_before, num_tokens) in
        [(0, 0, 5), (0, 7, 5), (1, 0, 5), (1, 3, 5), (1, 6, 90), (2, 0, 90), (0, 0, 900)]
    {
        for num_coming in 1..14 {
            let b = bench(10, 1000);
            (0..num_before).for_each(|id| drop(b.submit_to(&log_of(1, id), 5)));
            // Each has a prompt of ten.
            let coming = Load { requests: num_coming, tokens: num_coming * (10 + num_tokens) };
            let is_room = b.queue.check_room(Tenant(owner), coming).is_ok();
            let ids = 100..100 + num_coming as u128;
            let all_let_in = ids.into_iter().all(|id| b.submit_to(&log_of(owner, id), num_tokens).is_ok());
            assert_eq!(is_room, all_let_in, "{num_coming} of owner {owner} with {num_tokens} behind {num_before}");
        }
    }
}

#[test]
fn owners_take_turns_and_positions_say_so() {
    let b = bench(100, 100_000);
    for id in 0..6 {
        b.submit_to(&log_of(1, id), 5).expect("room");
    }
    let newcomer = log_of(2, 100);
    b.submit_to(&newcomer, 5).expect("room");
    let Event::Queued { position, .. } = events(&newcomer)[0] else { panic!("queued first") };
    assert!(position <= 1, "it shares with one, not with six: {position}");
    let order: Vec<_> = (0..7).map(|_| b.pull().expect("waits").request.id.0).collect();
    assert_eq!(order.iter().position(|id| *id == 100), Some(position));
}

#[test]
fn what_does_not_fit_is_passed_by_another_owners_first_if_the_worker_wants_it() {
    let b = bench(100, 100_000);
    for (tenant, id) in [(1, 0), (1, 1), (2, 10), (2, 11), (3, 20)] {
        b.submit_to(&log_of(tenant, id), 5).expect("room");
    }
    let mut asked = Vec::new();
    let pulled = b.queue.pull(|entry, passed| {
        asked.push((entry.request.id.0, passed.map(|passed| passed.request.id.0)));
        entry.request.id.0 == 20
    });
    assert!(matches!(pulled, Pulled::Entry(entry) if entry.request.id.0 == 20));
    assert_eq!(asked, [(0, None), (10, Some(0)), (20, Some(0))], "the first of each owner, in turn");
    assert_eq!(b.pull().expect("waits").request.id.0, 0, "and the next stays so");
}
