//! A disk that stalls: nobody waits for it who holds anything, memory stays bounded, and nothing is lost when it comes back.

use std::sync::mpsc::sync_channel;

use super::super::handover::{NUM_CHANGES_HIGH, NUM_CHANGES_MAX, NUM_CHANGES_PER_STREAM};
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
const MANY_BYTES: StoreLimits = StoreLimits { num_bytes_max: 1 << 30, ..LIMITS };

fn failure(message: &str) -> Event {
    let (message, usage) = (message.to_owned(), Usage::default());
    Event::Error(ErrorInfo { kind: ErrorKind::Cancelled, message, usage })
}

/// A store whose disk stalls, with a commit that hangs, and the log of the stream in it.
fn stalled(dir: &Path, limits: StoreLimits) -> (Arc<StreamStore>, DiskStall, Arc<StreamLog>) {
    let (store, _) = StreamStore::open(dir, limits).unwrap();
    let stall = store.stall();
    let log = begin(&store, 0);
    stall.wait_reached();
    (store, stall, log)
}

fn fill(store: &StreamStore, log: &StreamLog, num_changes: usize) {
    for i in store.num_waiting()..num_changes {
        log.append(token(i as u32));
    }
}

#[test]
fn a_disk_that_stalls_holds_up_workers_between_steps_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = StreamStore::open(dir.path(), MANY_BYTES).unwrap();
    let log = begin(&store, 1);
    log.wait_for_disk(PATIENCE);
    let (go_on, told) = sync_channel(1);
    store.handover.push(Change::Run(Box::new(move || told.recv().unwrap())));
    // More than a worker brings in a step, and none of it waits.
    for i in 0..NUM_CHANGES_HIGH as u32 + 1000 {
        assert!(!log.is_held_up() || i + 1 >= NUM_CHANGES_HIGH as u32);
        log.append(token(i));
    }
    log.wait_for_disk(Duration::from_millis(1));
    assert!(log.is_held_up(), "a worker waits for as long as it says, and looks after its sequences then");
    let worker = {
        let log = log.clone();
        std::thread::spawn(move || {
            log.wait_for_disk(PATIENCE);
            log.is_held_up()
        })
    };
    go_on.send(()).unwrap();
    assert!(!worker.join().unwrap(), "it went on while the disk was behind");
    log.append(done());
    drop((store, log));
    let (_store, stored) = StreamStore::open(dir.path(), MANY_BYTES).unwrap();
    assert_eq!(stored[0].entries.len(), NUM_CHANGES_HIGH + 1001);
}

/// Beyond 16,384 changes whoever brought more waited, with the lock of the queue, the table or a lease.
#[test]
fn what_was_accepted_is_always_handed_over_and_new_streams_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, stall, log) = stalled(dir.path(), MANY_BYTES);
    fill(&store, &log, NUM_CHANGES_HIGH + 1);
    let mut logs = Vec::new();
    while store.check_room().is_ok() {
        let log = begin(&store, 1 + logs.len() as u128);
        log.append(Event::Queued { position: 0, wait_ms: None });
        logs.push(log);
    }
    let refused = store.reserve(1).expect_err("no place");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    let rule = format!("at most {NUM_CHANGES_MAX} changes may wait for it, and {} do", store.num_waiting());
    assert!(refused.message().contains(&rule), "{refused}");
    for log in &logs {
        log.append(Event::Started { prompt_tokens: 3, cached_tokens: 0 });
        log.append(token(1));
        log.append(failure("the generation was cancelled"));
    }
    let (forgotten, kept) = logs.split_at(logs.len() / 2);
    // Twice, as a table that gives way may: it counts once.
    forgotten.iter().chain(forgotten).for_each(|log| store.forget(log.id()));
    let num_offered = NUM_CHANGES_HIGH + 1 + logs.len() * 5 + forgotten.len();
    assert!(num_offered > NUM_CHANGES_MAX + NUM_CHANGES_HIGH && store.num_waiting() == num_offered, "{num_offered}");
    assert!(!store.has_failed() && store.is_open());
    drop(stall);
    log.append(done());
    let num_tokens = log.len();
    drop((store, log));
    let (store, stored) = StreamStore::open(dir.path(), MANY_BYTES).unwrap();
    assert!(store.was_whole());
    assert_eq!(stored.len(), 1 + kept.len());
    for stream in &stored {
        let seqs: Vec<u64> = stream.entries.iter().map(|e| e.seq).collect();
        let num_events = if stream.record.request.id == StreamId(0) { num_tokens } else { 4 };
        assert_eq!(seqs, (0..num_events as u64).collect::<Vec<_>>(), "ids are dense and whole");
        assert!(stream.entries.last().is_some_and(|e| e.event.is_terminal()));
    }
}

/// A source that does not stop is a bug of ours: it costs the keeping, and neither memory nor anybody's time.
#[tokio::test]
async fn a_change_without_room_ends_the_keeping_and_waits_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, stall, log) = stalled(dir.path(), LIMITS);
    let other = begin(&store, 1);
    other.append(Event::Queued { position: 0, wait_ms: None });
    let room = NUM_CHANGES_MAX + 2 * NUM_CHANGES_PER_STREAM;
    for i in 0..room as u32 + 500 {
        log.append(token(i));
    }
    assert_eq!(store.num_waiting(), room);
    log.append(failure("no"));
    drop(stall);
    tokio::time::timeout(PATIENCE, log.settled()).await.expect("readers get the end from memory");
    tokio::time::timeout(PATIENCE, other.accepted()).await.expect("and others what they wait for");
    assert!(store.has_failed() && !store.is_open());
    drop(store);
    let (store, _) = StreamStore::open(dir.path(), LIMITS).unwrap();
    assert!(!store.was_whole(), "the next process knows that the file is not all");
}

#[tokio::test]
async fn a_commit_that_takes_too_long_refuses_new_streams_until_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let limits = StoreLimits { stall_time_max: Duration::from_millis(5), ..LIMITS };
    let (store, stall, log) = stalled(dir.path(), limits);
    let flushed = store.flushed();
    tokio::pin!(flushed);
    let refused = loop {
        let waited = tokio::time::timeout(Duration::from_millis(1), &mut flushed).await;
        assert!(waited.is_err(), "what was handed over is not durable");
        if let Err(e) = store.check_room() {
            break e;
        }
    };
    assert!(refused.message().contains("a commit must take at most 0.005 s"), "{refused}");
    assert!(store.commit_time() > limits.stall_time_max);
    // What was accepted goes on.
    log.append(Event::Queued { position: 0, wait_ms: None });
    drop(stall);
    tokio::time::timeout(PATIENCE, flushed).await.expect("the first commit is over");
    tokio::time::timeout(PATIENCE, store.flushed()).await.expect("and so is the next");
    assert_eq!((store.check_room(), store.commit_time(), store.num_waiting()), (Ok(()), Duration::ZERO, 0));
    tokio::time::timeout(PATIENCE, log.accepted()).await.expect("it is durable");
}

/// The interval would be an hour; whoever waits for what came is not made to.
#[tokio::test]
async fn a_flush_does_not_wait_for_the_interval() {
    let dir = tempfile::tempdir().unwrap();
    let limits = StoreLimits { commit_interval: Duration::from_secs(3600), ..LIMITS };
    let (store, _) = StreamStore::open(dir.path(), limits).unwrap();
    let log = begin(&store, 1);
    for i in 0..3 {
        log.append(token(i));
        tokio::time::timeout(PATIENCE, store.flushed()).await.expect("it is written at once");
        assert_eq!(store.num_waiting(), 0);
    }
}
