//! A store against what was put into it, over reopening, damage and a full disk.

use std::io::{Seek, SeekFrom, Write};

mod stalled;

use super::*;
use crate::error::ErrorKind;
use crate::protocol::{
    ErrorInfo, FinishReason, OnDisconnect, QueueTerms, SamplingParams, StopParams, Tenant, TokenEvent, TokenLogprob,
    Usage, ValidRequest,
};

const LIMITS: StoreLimits = StoreLimits {
    commit_interval: Duration::from_millis(1),
    num_bytes_max: 1 << 20,
    stall_time_max: Duration::from_secs(3600),
};

fn record(id: u128) -> StreamRecord {
    let sampling = SamplingParams { seed: Some(7), logit_bias: vec![(3, -1.5)], ..SamplingParams::default() };
    let request = ValidRequest {
        id: StreamId(id),
        tenant: Tenant(9),
        prompt: vec![1, 2, 70_000],
        max_tokens: 50,
        sampling,
        stop: StopParams { strings: vec!["\u{e9}nd".to_owned()], ..StopParams::default() },
        on_disconnect: OnDisconnect::Linger { grace_ms: 5 },
        queue: QueueTerms::default(),
        constraint: None,
        leader: None,
        resumed: None,
    };
    StreamRecord { request, created_ms: id as u64, fingerprint: 1 << 60 }
}

fn token(i: u32) -> Event {
    let logprob = TokenLogprob { token: i, logprob: -0.1, top: vec![(i, -0.1), (4, f32::NEG_INFINITY)] };
    Event::Token(TokenEvent { text: format!("w{i} "), tokens: vec![i], logprobs: vec![logprob] })
}

fn done() -> Event {
    Event::Done {
        finish_reason: FinishReason::Length,
        usage: Usage { completion_tokens: 3, ..Usage::default() },
        stop: None,
    }
}

fn begin(store: &Arc<StreamStore>, id: u128) -> Arc<StreamLog> {
    begin_as(store, id, Tenant(9))
}

fn begin_as(store: &Arc<StreamStore>, id: u128, tenant: Tenant) -> Arc<StreamLog> {
    let mut record = record(id);
    record.request.tenant = tenant;
    let request = &record.request;
    let log = StreamLog::new(request.id, request.tenant, request.on_disconnect);
    let place = store.reserve(1).expect("room").pop();
    place.expect("one place").begin(record, &log);
    log
}

fn events(log: &Arc<StreamLog>) -> Vec<Event> {
    let mut reader = log.reader(0);
    std::iter::from_fn(|| reader.try_next()).map(|(_, event)| event).collect()
}

#[test]
fn a_file_of_another_format_is_refused_and_stays_as_it_is() {
    const META: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = StreamStore::open(dir.path(), LIMITS).unwrap();
    store.close();
    drop(store);
    let path = dir.path().join(FILE_NAME);
    let open = || redb::Database::create(&path).unwrap();
    let database = open();
    let write = database.begin_write().unwrap();
    write.open_table(META).unwrap().insert("format", 77).unwrap();
    write.open_table(META).unwrap().insert("epoch", 5).unwrap();
    write.commit().unwrap();
    drop(database);
    let e = StreamStore::open(dir.path(), LIMITS).map(|_| ()).expect_err("another format");
    assert!(e.message().contains("this is of format 77"), "{e}");
    let database = open();
    let read = redb::ReadableDatabase::begin_read(&database).unwrap();
    let meta = read.open_table(META).unwrap();
    assert_eq!(redb::ReadableTable::get(&meta, "epoch").unwrap().map(|epoch| epoch.value()), Some(5));
}

#[test]
fn what_was_kept_is_there_after_reopening_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (store, stored) = StreamStore::open(dir.path(), LIMITS).unwrap();
    assert_eq!(stored, []);
    let (finished, cut, forgotten) = (begin(&store, 1), begin(&store, 2), begin(&store, 3));
    for log in [&finished, &cut, &forgotten] {
        log.append(Event::Queued { position: 1, wait_ms: Some(3) });
        log.append(Event::Started { prompt_tokens: 3, cached_tokens: 0 });
        for i in 0..40 {
            log.append(token(i));
        }
    }
    finished.append(done());
    store.forget(forgotten.id());
    store.close();
    let epoch = store.epoch();
    drop(store);

    let (store, stored) = StreamStore::open(dir.path(), LIMITS).unwrap();
    assert_eq!(store.epoch(), epoch);
    assert_eq!(stored.iter().map(|s| s.record.clone()).collect::<Vec<_>>(), [record(1), record(2)]);
    for (stored, log) in stored.iter().zip([&finished, &cut]) {
        let seqs: Vec<u64> = stored.entries.iter().map(|e| e.seq).collect();
        assert_eq!(seqs, (0..log.len() as u64).collect::<Vec<_>>());
        log.on_durable(u64::MAX);
        assert_eq!(stored.entries.iter().map(|e| e.event.clone()).collect::<Vec<_>>(), events(log));
    }
    let (request, entries) = (&stored[1].record.request, stored[1].entries.clone());
    let on = StreamLog::restored(request.id, request.tenant, request.on_disconnect, Arc::new(|| 0), 2, entries);
    store.follow(&on);
    on.append(token(40));
    on.append(done());
    drop((store, on));
    let (_store, stored) = StreamStore::open(dir.path(), LIMITS).unwrap();
    assert_eq!(stored[1].entries.len(), 44);
    assert!(stored[1].entries[43].event.is_terminal());
}

#[tokio::test]
async fn what_another_run_would_not_repeat_is_seen_once_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    // So long that nothing is written but what somebody waits for.
    let limits = StoreLimits { commit_interval: Duration::from_secs(3600), ..LIMITS };
    let (store, _) = StreamStore::open(dir.path(), limits).unwrap();
    let log = begin(&store, 1);
    log.append(Event::Queued { position: 0, wait_ms: None });
    log.accepted().await;
    let mut reader = log.reader(0);
    assert!(matches!(reader.next().await, Some((0, Event::Queued { .. }))));
    log.append(token(1));
    assert_eq!(reader.try_next(), Some((1, token(1))), "a token is seen at once");
    let failure = ErrorInfo { kind: ErrorKind::Cancelled, message: "no".to_owned(), usage: Usage::default() };
    log.append(Event::Error(failure.clone()));
    assert_eq!(reader.next().await, Some((2, Event::Error(failure))));
    assert_eq!(reader.next().await, None);
}

#[tokio::test]
async fn a_stream_that_ends_while_its_first_events_are_written_is_shown_whole() {
    let dir = tempfile::tempdir().unwrap();
    let limits = StoreLimits { commit_interval: Duration::ZERO, ..LIMITS };
    let (store, _) = StreamStore::open(dir.path(), limits).unwrap();
    for id in 1..=100 {
        let log = begin(&store, id);
        log.append(Event::Queued { position: 0, wait_ms: None });
        let mut reader = log.reader(0);
        // While the thread is somewhere within the first commit, another place each time.
        for _ in 0..id * 50 {
            std::hint::spin_loop();
        }
        log.append(Event::Started { prompt_tokens: 3, cached_tokens: 0 });
        log.append(done());
        for seq in 0..3 {
            let next = tokio::time::timeout(Duration::from_secs(30), reader.next()).await;
            let Ok(Some((got, _))) = next else { panic!("event {seq} of stream {id} never came: {next:?}") };
            assert_eq!(got, seq);
        }
    }
}

#[tokio::test]
async fn readers_of_a_suspended_stream_leave_without_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = StreamStore::open(dir.path(), LIMITS).unwrap();
    let log = begin(&store, 1);
    log.append(Event::Queued { position: 0, wait_ms: None });
    let mut reader = log.reader(0);
    reader.next().await.expect("the place in the queue");
    log.append(token(1));
    log.suspend();
    store.close();
    let failure = ErrorInfo { kind: ErrorKind::Unavailable, message: "over".to_owned(), usage: Usage::default() };
    log.append(Event::Error(failure));
    assert_eq!(reader.next().await, Some((1, token(1))));
    assert_eq!(reader.next().await, None, "the failure is nobody's to see");
    drop(store);
    let (_store, stored) = StreamStore::open(dir.path(), LIMITS).unwrap();
    assert_eq!(stored[0].entries.len(), 2, "nor is it kept");
}

#[tokio::test]
async fn what_comes_once_the_store_is_closed_is_nobodys_to_see() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = StreamStore::open(dir.path(), LIMITS).unwrap();
    let log = begin(&store, 1);
    log.append(Event::Queued { position: 0, wait_ms: None });
    store.close();
    log.append(Event::Started { prompt_tokens: 3, cached_tokens: 0 });
    log.append(done());
    let mut reader = log.reader(0);
    assert!(matches!(reader.next().await, Some((0, Event::Queued { .. }))));
    assert_eq!(reader.next().await, None, "the next process starts it, perhaps elsewhere");
    log.settled().await;
    assert!(log.is_suspended());
}

#[tokio::test]
async fn a_defect_of_the_database_costs_the_keeping_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = StreamStore::open(dir.path(), LIMITS).unwrap();
    let next = async |log: &Arc<StreamLog>| {
        let seq = log.len() as u64 - 1;
        let mut reader = log.reader(seq);
        let next = tokio::time::timeout(Duration::from_secs(30), reader.next()).await;
        assert!(matches!(next, Ok(Some((got, _))) if got == seq), "event {seq} never came: {next:?}");
    };
    let before = begin(&store, 1);
    before.append(Event::Queued { position: 0, wait_ms: None });
    before.accepted().await;
    assert!(store.was_whole() && !store.has_failed());
    // Restored ones whose first change stands behind what breaks the thread.
    let restored: Vec<_> = (2..200).map(|id| begin(&store, id)).collect();
    store.flushed().await;
    store.handover.push(Change::Run(Box::new(|| panic!("told to"))));
    for log in &restored {
        store.follow(log);
        log.append(Event::Queued { position: 0, wait_ms: None });
    }
    for log in restored.iter().chain([&before]) {
        log.append(Event::Started { prompt_tokens: 3, cached_tokens: 0 });
        next(log).await;
        let failure = ErrorInfo { kind: ErrorKind::Cancelled, message: "no".to_owned(), usage: Usage::default() };
        log.append(Event::Error(failure));
        next(log).await;
        log.settled().await;
        assert!(!log.is_suspended());
    }
    assert!(store.has_failed() && !store.is_open());
    let epoch = store.epoch();
    drop(store);
    let (store, stored) = StreamStore::open(dir.path(), LIMITS).unwrap();
    assert!(!store.was_whole() && stored.len() == 199);
    assert_ne!(store.epoch(), epoch, "ids of what is not here must not name what will be");
    // A process that ends before what cannot go on has ended leaves the same behind.
    drop(store);
    let (store, stored) = StreamStore::open(dir.path(), LIMITS).unwrap();
    assert!(!store.was_whole() && stored.len() == 199);
    store.make_whole();
    let epoch = store.epoch();
    drop(store);
    let (store, _) = StreamStore::open(dir.path(), LIMITS).unwrap();
    assert!(store.was_whole() && store.epoch() == epoch, "once is enough");
}

#[test]
fn beyond_its_bound_the_store_forgets_what_ended_first() {
    let dir = tempfile::tempdir().unwrap();
    let limits = StoreLimits { num_bytes_max: 3000, ..LIMITS };
    let (store, _) = StreamStore::open(dir.path(), limits).unwrap();
    for id in 1..=20 {
        let log = begin(&store, id);
        log.append(Event::Queued { position: 0, wait_ms: None });
        for i in 0..10 {
            log.append(token(i));
        }
        log.append(done());
    }
    let live = begin(&store, 0);
    live.append(Event::Queued { position: 0, wait_ms: None });
    drop((store, live));
    let (_store, stored) = StreamStore::open(dir.path(), limits).unwrap();
    let ids: Vec<u128> = stored.iter().map(|s| s.record.request.id.0).collect();
    assert!(ids.len() > 2 && ids.len() < 20, "{ids:?}");
    assert_eq!((ids[0], ids[ids.len() - 1]), (0, 20), "the live one and the newest stay");
    assert!(stored.iter().map(StoredStream::num_bytes).sum::<u64>() <= 3000);
}

#[test]
fn one_owners_streams_on_disk_are_not_pushed_out_by_another_ones() {
    let dir = tempfile::tempdir().unwrap();
    let limits = StoreLimits { num_bytes_max: 3000, ..LIMITS };
    let (store, _) = StreamStore::open(dir.path(), limits).unwrap();
    for id in 0..26 {
        let log = begin_as(&store, id, Tenant(if id == 0 { 1 } else { 9 }));
        for i in 0..5 {
            log.append(token(i));
        }
        log.append(done());
    }
    drop(store);
    let kept = |stored: &[StoredStream]| stored.iter().map(|s| s.record.request.id.0).collect::<Vec<_>>();
    let (store, stored) = StreamStore::open(dir.path(), limits).unwrap();
    assert_eq!((kept(&stored)[0], kept(&stored).last()), (0, Some(&25)), "{:?}", kept(&stored));
    // The next process knows whose they are.
    for id in 50..99 {
        let log = begin_as(&store, id, Tenant(9));
        for i in 0..5 {
            log.append(token(i));
        }
        log.append(done());
    }
    drop(store);
    let (_store, stored) = StreamStore::open(dir.path(), limits).unwrap();
    assert_eq!((kept(&stored)[0], kept(&stored).last()), (0, Some(&98)), "{:?}", kept(&stored));
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let _first = StreamStore::open(dir.path(), LIMITS).unwrap();
    let second = StreamStore::open(dir.path(), LIMITS).unwrap_err();
    assert!(second.message().contains("another process uses this stream store"), "{second}");
    assert!(second.message().contains(FILE_NAME), "{second}");
}

#[test]
fn a_damaged_file_is_an_error_that_names_it_or_is_read_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = StreamStore::open(dir.path(), LIMITS).unwrap();
    for id in 1..=5 {
        let log = begin(&store, id);
        log.append(Event::Queued { position: 0, wait_ms: None });
        for i in 0..20 {
            log.append(token(i));
        }
        log.append(done());
    }
    drop(store);
    let (store, whole) = StreamStore::open(dir.path(), LIMITS).unwrap();
    drop(store);
    let path = dir.path().join(FILE_NAME);
    let bytes = std::fs::read(&path).unwrap();
    let mut num_refused = 0;
    let lens = (0..12).map(|i| (bytes.len() * i / 12, None));
    let flips = (0..200).map(|i| (bytes.len(), Some((i * 7919 * 13) % bytes.len())));
    for (len, flip) in lens.chain(flips) {
        let copy = tempfile::tempdir().unwrap();
        let mut file = std::fs::File::create(copy.path().join(FILE_NAME)).unwrap();
        file.write_all(&bytes[..len]).unwrap();
        if let Some(at) = flip {
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(&[!bytes[at]]).unwrap();
        }
        drop(file);
        // A panic within the database would be a bug of it; that it does not reach us is what counts.
        match StreamStore::open(copy.path(), LIMITS) {
            Ok((_, stored)) if len > 0 => {
                assert!(stored.iter().all(|s| whole.contains(s)), "length {len} flip {flip:?}: not as it was");
            }
            Ok((_, stored)) => assert_eq!(stored, [], "an empty file is a new store"),
            Err(e) => {
                num_refused += 1;
                assert!(e.message().contains(FILE_NAME), "{e}");
            }
        }
    }
    assert!(num_refused > 0);
}
