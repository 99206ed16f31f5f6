//! Checks a table, on invented time, against what was put into it and against an oracle that keeps a plain list.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::protocol::{Event, FinishReason, OnDisconnect, TokenEvent, Usage};

const LIMITS: TableLimits = TableLimits {
    num_streams_max: 2,
    num_bytes_max: 1 << 20,
    stream_bytes_max: 1 << 20,
    unread_grace_ms: 70,
    retention_ms: 100,
    num_expired_max: 2,
    feed_events_max: 9,
};

/// A log whose clock always says `now_ms`.
fn log_at(id: u128, now_ms: u64, policy: OnDisconnect) -> Arc<StreamLog> {
    StreamLog::with_clock(StreamId(id), Tenant(1), policy, Arc::new(move || now_ms))
}

fn end(log: &StreamLog) {
    log.append(Event::Done { finish_reason: FinishReason::Stop, usage: Usage::default(), stop: None });
}

fn kind_of(table: &StreamTable, id: u128, tenant: u64) -> Option<ErrorKind> {
    table.get(StreamId(id), Tenant(tenant)).err().map(|e| e.kind())
}

#[test]
fn a_finished_stream_is_kept_then_expired_then_forgotten() {
    let table = StreamTable::new(LIMITS);
    for id in 1..=3 {
        let log = log_at(id, 10, OnDisconnect::Detach);
        table.insert(log.clone(), 1).expect("room");
        end(&log);
        table.sweep(109);
        assert_eq!(kind_of(&table, id, 1), None);
        table.sweep(110);
        assert_eq!(kind_of(&table, id, 1), Some(ErrorKind::Expired));
        assert_eq!(kind_of(&table, id, 2), Some(ErrorKind::NotFound), "never told to a stranger");
    }
    assert_eq!(kind_of(&table, 1, 1), Some(ErrorKind::NotFound), "only two expired ids are remembered");
    assert_eq!(kind_of(&table, 9, 1), Some(ErrorKind::NotFound));
}

#[test]
fn a_full_table_evicts_the_finished_that_ended_first_and_never_the_live() {
    let table = StreamTable::new(LIMITS);
    let (first, second) = (log_at(1, 20, OnDisconnect::Detach), log_at(2, 10, OnDisconnect::Detach));
    table.insert(first.clone(), 1).expect("room");
    table.insert(second.clone(), 1).expect("room");
    let refused = table.insert(log_at(3, 30, OnDisconnect::Detach), 1).expect_err("both are live");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(refused.retry_after_ms().is_some());
    end(&first);
    end(&second);
    table.insert(log_at(3, 30, OnDisconnect::Detach), 1).expect("a finished one makes room");
    assert_eq!(kind_of(&table, 2, 1), Some(ErrorKind::Expired), "it ended at 10");
    assert_eq!(kind_of(&table, 1, 1), None, "it ended at 20");
}

#[test]
fn bytes_are_bounded_too() {
    let table = StreamTable::new(TableLimits { num_bytes_max: 2000, num_streams_max: 9, ..LIMITS });
    let text = "x".repeat(1500);
    for id in 1..=2 {
        let log = log_at(id, id as u64, OnDisconnect::Detach);
        table.insert(log.clone(), 1).expect("room");
        log.append(Event::Token(TokenEvent { text: text.clone(), ..TokenEvent::default() }));
        if id == 1 {
            end(&log);
        }
    }
    table.sweep(5);
    assert_eq!(kind_of(&table, 1, 1), Some(ErrorKind::Expired));
    assert_eq!(kind_of(&table, 2, 1), None, "live streams stay");
    let live = table.get(StreamId(2), Tenant(1)).expect("live");
    live.append(Event::Token(TokenEvent { text, ..TokenEvent::default() }));
    table.sweep(6);
    let refused = table.insert(log_at(3, 3, OnDisconnect::Detach), 1).expect_err("live streams hold all memory");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
}

#[test]
fn a_lingering_stream_is_cancelled_when_its_grace_is_over() {
    let table = StreamTable::new(LIMITS);
    let log = log_at(1, 0, OnDisconnect::Linger { grace_ms: 50 });
    table.insert(log.clone(), 1).expect("room");
    table.sweep(1000);
    table.sweep(1049);
    let reader = log.reader(0);
    table.sweep(2000);
    assert_eq!(log.cancelled(), None, "somebody reads");
    drop(reader);
    table.sweep(3000);
    table.sweep(3049);
    assert_eq!(log.cancelled(), None, "the grace began anew");
    table.sweep(3050);
    assert_eq!(log.cancelled(), Some(CancelCause::ReaderLeft));
}

#[test]
fn a_stream_that_ends_with_its_reader_waits_a_while_for_the_first() {
    let table = StreamTable::new(LIMITS);
    let (unread, read) = (log_at(1, 0, OnDisconnect::Cancel), log_at(2, 0, OnDisconnect::Cancel));
    table.insert(unread.clone(), 1).expect("room");
    table.insert(read.clone(), 1).expect("room");
    let reader = read.reader(0);
    table.sweep(1000);
    table.sweep(1069);
    assert_eq!(unread.cancelled(), None);
    table.sweep(1070);
    assert_eq!(unread.cancelled(), Some(CancelCause::ReaderLeft));
    assert_eq!(read.cancelled(), None);
    drop(reader);
    assert_eq!(read.cancelled(), Some(CancelCause::ReaderLeft), "without any grace");
}

#[test]
fn one_stream_is_bounded_and_says_where_it_begins() {
    let table = StreamTable::new(TableLimits { stream_bytes_max: 5000, ..LIMITS });
    let log = log_at(1, 0, OnDisconnect::Detach);
    table.insert(log.clone(), 1).expect("room");
    for _ in 0..100 {
        log.append(Event::Token(TokenEvent { text: "x".repeat(200), ..TokenEvent::default() }));
        assert!(log.num_bytes() <= 5000, "{}", log.num_bytes());
    }
    end(&log);
    assert_eq!(log.len(), 101, "numbers stay dense");
    assert!((70..100).contains(&log.first_seq()), "{}", log.first_seq());
    table.sweep(1);
    assert!(table.get(StreamId(1), Tenant(1)).is_ok());
}

#[test]
fn the_list_shows_a_tenant_its_own_newest_first() {
    let table = StreamTable::new(LIMITS);
    let foreign = StreamLog::new(StreamId(1), Tenant(2), OnDisconnect::Detach);
    table.insert(foreign, 1).expect("room");
    table.insert(log_at(2, 5, OnDisconnect::Detach), 1).expect("room");
    let ids = |tenant| table.list(Tenant(tenant)).iter().map(|l| l.id().0).collect::<Vec<_>>();
    assert_eq!(ids(1), [2]);
    assert_eq!(ids(2), [1]);
    assert_eq!(ids(3), [0u128; 0]);
    assert_eq!(table.live().len(), 2);
}

/// A log of `tenant` whose clock reads `now`.
fn log_of(id: u128, tenant: u64, now: &Arc<AtomicU64>) -> Arc<StreamLog> {
    let now = now.clone();
    let clock = Arc::new(move || now.load(Ordering::Relaxed));
    StreamLog::with_clock(StreamId(id), Tenant(tenant), OnDisconnect::Detach, clock)
}

/// Inserts a stream of `tenant` that ended at `ended_ms`.
fn insert_ended(table: &StreamTable, id: u128, tenant: u64, ended_ms: u64) -> Result<()> {
    let log = log_of(id, tenant, &Arc::new(AtomicU64::new(ended_ms)));
    table.insert(log.clone(), 1)?;
    end(&log);
    Ok(())
}

#[test]
fn one_owners_flood_leaves_another_ones_streams_and_expired_ids() {
    const EXPIRED_MAX: usize = 8;
    let limits = TableLimits { num_streams_max: 16, num_expired_max: EXPIRED_MAX, retention_ms: 100_000, ..LIMITS };
    let table = StreamTable::new(limits);
    for id in 1..=4 {
        insert_ended(&table, id, 2, 10).expect("room");
    }
    table.sweep(100_010);
    for id in 5..=8 {
        insert_ended(&table, id, 2, 100_011).expect("room");
    }
    for id in 100..2000 {
        insert_ended(&table, id, 1, 100_012).expect("its own make room");
        if id % 7 == 0 {
            table.sweep(100_013);
        }
    }
    for id in 1..=4 {
        assert_eq!(kind_of(&table, id, 2), Some(ErrorKind::Expired), "{id}");
    }
    for id in 5..=8 {
        assert_eq!(kind_of(&table, id, 2), None, "{id}");
    }
    assert_eq!((table.len(), table.list(Tenant(1)).len()), (16, 12), "what nobody else wants, one may have");
}

#[test]
fn an_owner_whose_streams_all_run_is_refused_and_takes_nothing() {
    let table = StreamTable::new(TableLimits { num_streams_max: 4, ..LIMITS });
    insert_ended(&table, 1, 2, 10).expect("room");
    for id in 2..=4 {
        table.insert(log_at(id, 10, OnDisconnect::Detach), 1).expect("room");
    }
    let refused = table.insert(log_at(5, 10, OnDisconnect::Detach), 1).expect_err("it has most, and all run");
    assert_eq!((refused.kind(), refused.retry_after_ms()), (ErrorKind::Overloaded, Some(RETRY_AFTER_MS)));
    assert_eq!(kind_of(&table, 1, 2), None);
    // Another owner with a larger weight has less than its part, and an owner without any stream always gets one.
    let heavy = StreamLog::new(StreamId(6), Tenant(3), OnDisconnect::Detach);
    table.insert(heavy, 9).expect("the finished one makes way");
    assert_eq!(kind_of(&table, 1, 2), Some(ErrorKind::Expired));
}

#[test]
fn weights_say_how_many_finished_streams_each_keeps() {
    let table = StreamTable::new(TableLimits { num_streams_max: 12, ..LIMITS });
    for id in 0..100_u64 {
        let log = log_of(u128::from(id), id % 2, &Arc::new(AtomicU64::new(id)));
        // The first has a weight of 1, the second of 3.
        table.insert(log.clone(), if id % 2 == 0 { 1 } else { 3 }).expect("room");
        end(&log);
    }
    assert_eq!((table.list(Tenant(0)).len(), table.list(Tenant(1)).len()), (3, 9));
}

#[test]
fn bytes_of_one_owners_live_streams_cost_another_one_nothing_of_its_part() {
    let table = StreamTable::new(TableLimits { num_bytes_max: 8000, num_streams_max: 99, ..LIMITS });
    let say = |log: &StreamLog| {
        log.append(Event::Token(TokenEvent { text: "x".repeat(1500), ..TokenEvent::default() }));
    };
    for id in 1..=2 {
        let log = log_of(id, 2, &Arc::new(AtomicU64::new(10)));
        table.insert(log.clone(), 1).expect("room");
        say(&log);
        end(&log);
    }
    let hog = log_at(3, 10, OnDisconnect::Detach);
    table.insert(hog.clone(), 1).expect("room");
    for _ in 0..9 {
        say(&hog);
    }
    table.sweep(11);
    assert!(kind_of(&table, 1, 2).is_none() && kind_of(&table, 2, 2).is_none());
    let refused = table.insert(log_at(4, 10, OnDisconnect::Detach), 1).expect_err("it has more than its part");
    assert!(refused.message().contains("8000"), "{refused}");
    insert_ended(&table, 5, 2, 11).expect("it has less than its part");
    end(&hog);
    table.sweep(12);
    assert_eq!(kind_of(&table, 3, 1), Some(ErrorKind::Expired), "the largest goes first");
    assert!(kind_of(&table, 1, 2).is_none() && kind_of(&table, 2, 2).is_none());
}

/// One stream as the oracle knows it.
#[derive(Debug, Clone)]
struct Known {
    id: u128,
    tenant: u64,
    num_bytes: u64,
    /// The time of its end, which no other stream shares.
    ended: Option<u64>,
    is_seen_ended: bool,
    log: Arc<StreamLog>,
}

/// The rules, written in the plainest way: it counts everything anew each time.
#[derive(Debug, Default)]
struct Oracle {
    streams: Vec<Known>,
    expired: Vec<(u128, u64)>,
}

const ORACLE_LIMITS: TableLimits = TableLimits {
    num_streams_max: 8,
    num_bytes_max: 4000,
    stream_bytes_max: 1 << 20,
    unread_grace_ms: 1 << 40,
    retention_ms: 40,
    num_expired_max: 5,
    feed_events_max: 9,
};

/// The weights of owners 0 to 3.
const WEIGHTS: [u64; 4] = [1, 1, 2, 5];

impl Oracle {
    fn num_of(&self, tenant: u64) -> u64 {
        self.streams.iter().filter(|s| s.tenant == tenant).count() as u64
    }

    fn bytes_of(&self, tenant: u64) -> u64 {
        self.streams.iter().filter(|s| s.tenant == tenant).map(|s| s.num_bytes).sum()
    }

    fn look(&mut self) {
        for s in &mut self.streams {
            s.num_bytes = s.log.num_bytes() as u64;
            s.is_seen_ended = s.ended.is_some();
        }
    }

    fn first_ended(&self, tenant: u64) -> Option<(u64, u128)> {
        self.streams.iter().filter(|s| s.tenant == tenant).filter_map(|s| Some((s.ended?, s.id))).min()
    }

    /// The owner with the largest `amount` per weight; of several, the last, as the table breaks ties.
    fn largest(&self, among: impl Fn(u64) -> bool, amount: impl Fn(u64) -> u64) -> Option<u64> {
        (0..4).filter(|t| among(*t)).max_by(|a, b| {
            let (of_a, of_b) = (amount(*a) * WEIGHTS[*b as usize], amount(*b) * WEIGHTS[*a as usize]);
            of_a.cmp(&of_b).then(a.cmp(b))
        })
    }

    fn evict(&mut self, id: u128) {
        let at = self.streams.iter().position(|s| s.id == id).expect("a stream");
        let gone = self.streams.remove(at);
        self.expired.push((id, gone.tenant));
        if self.expired.len() > ORACLE_LIMITS.num_expired_max {
            let num = |t: u64| self.expired.iter().filter(|e| e.1 == t).count() as u64;
            let tenant = self.largest(|t| num(t) > 0, num).expect("there are some");
            let first = self.expired.iter().position(|e| e.1 == tenant).expect("it has one");
            self.expired.remove(first);
        }
    }

    fn weights(&self) -> u64 {
        (0..4).filter(|t| self.num_of(*t) > 0).map(|t| WEIGHTS[t as usize]).sum()
    }

    fn is_beyond_part(&self, tenant: u64) -> bool {
        let bytes = self.bytes_of(tenant);
        bytes * self.weights() > ORACLE_LIMITS.num_bytes_max as u64 * WEIGHTS[tenant as usize]
    }

    fn sum(&self) -> u64 {
        (0..4).map(|t| self.bytes_of(t)).sum()
    }

    fn insert(&mut self, log: Arc<StreamLog>, id: u128, tenant: u64) -> bool {
        if self.sum() > ORACLE_LIMITS.num_bytes_max as u64 && self.is_beyond_part(tenant) {
            return false;
        }
        if self.streams.len() == ORACLE_LIMITS.num_streams_max {
            let (own, weight) = (self.num_of(tenant) + 1, WEIGHTS[tenant as usize]);
            let is_larger = |t: u64| own == 1 || self.num_of(t) * weight > own * WEIGHTS[t as usize];
            let gives = |t: u64| t != tenant && self.first_ended(t).is_some() && is_larger(t);
            let from = self.largest(gives, |t| self.num_of(t)).unwrap_or(tenant);
            // The table looks at live streams only where it must, and then counts their bytes too.
            let top = self.largest(|t| self.num_of(t) > 0, |t| self.num_of(t)).expect("it is full");
            let is_seen = |tenant| self.streams.iter().any(|s| s.tenant == tenant && s.is_seen_ended);
            if !is_seen(top) || !is_seen(from) {
                self.look();
            }
            let Some((_, leaving)) = self.first_ended(from) else { return false };
            self.evict(leaving);
        }
        self.streams.push(Known { id, tenant, num_bytes: 0, ended: None, is_seen_ended: false, log });
        true
    }

    fn sweep(&mut self, now_ms: u64) {
        self.look();
        let mut over: Vec<_> = self.streams.iter().filter_map(|s| Some((s.ended?, s.id))).collect();
        over.retain(|(ended, _)| now_ms - ended >= ORACLE_LIMITS.retention_ms);
        over.sort_unstable();
        over.into_iter().for_each(|(_, id)| self.evict(id));
        // An owner's part is the one it had when the sweep began.
        let weights = self.weights();
        while self.sum() > ORACLE_LIMITS.num_bytes_max as u64 {
            let beyond = |t: u64| self.bytes_of(t) * weights > ORACLE_LIMITS.num_bytes_max as u64 * WEIGHTS[t as usize];
            let gives = |t: u64| self.first_ended(t).is_some() && beyond(t);
            let Some(tenant) = self.largest(gives, |t| self.bytes_of(t)) else { return };
            let (_, id) = self.first_ended(tenant).expect("it has one");
            self.evict(id);
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Insert(u64),
    Say(prop::sample::Index, usize),
    End(prop::sample::Index),
    Remove(prop::sample::Index),
    Sweep,
}

fn act() -> impl Strategy<Value = Act> {
    let any = any::<prop::sample::Index>;
    prop_oneof![
        5 => (0..4_u64).prop_map(Act::Insert),
        4 => (any(), 0..1500_usize).prop_map(|(which, len)| Act::Say(which, len)),
        4 => any().prop_map(Act::End),
        1 => any().prop_map(Act::Remove),
        2 => Just(Act::Sweep),
    ]
}

proptest! {
    #[test]
    fn the_table_keeps_what_the_oracle_keeps(acts in prop::collection::vec(act(), 1..120)) {
        let (table, mut oracle) = (StreamTable::new(ORACLE_LIMITS), Oracle::default());
        let now = Arc::new(AtomicU64::new(0));
        for (i, act) in acts.into_iter().enumerate() {
            // Every act has a time of its own, so that no two streams end at once.
            let now_ms = now.fetch_add(1, Ordering::Relaxed) + 1;
            let num_streams = oracle.streams.len();
            match act {
                Act::Insert(tenant) => {
                    let log = log_of(i as u128, tenant, &now);
                    let is_in = table.insert(log.clone(), WEIGHTS[tenant as usize] as u32).is_ok();
                    prop_assert_eq!(is_in, oracle.insert(log, i as u128, tenant), "{:?}", oracle);
                }
                _ if num_streams == 0 => {}
                Act::Say(which, len) => {
                    let stream = &oracle.streams[which.index(num_streams)];
                    if stream.ended.is_none() {
                        stream.log.append(Event::Token(TokenEvent { text: "x".repeat(len), ..TokenEvent::default() }));
                    }
                }
                Act::End(which) => {
                    let stream = &mut oracle.streams[which.index(num_streams)];
                    if stream.ended.is_none() {
                        end(&stream.log);
                        stream.ended = Some(now_ms);
                    }
                }
                Act::Remove(which) => {
                    let stream = oracle.streams.remove(which.index(num_streams));
                    table.remove(StreamId(stream.id));
                }
                Act::Sweep => {
                    table.sweep(now_ms);
                    oracle.sweep(now_ms);
                }
            }
            for known in &oracle.streams {
                prop_assert!(kind_of(&table, known.id, known.tenant).is_none(), "{} is missing: {:?}", known.id, oracle);
            }
            prop_assert_eq!(table.len(), oracle.streams.len());
            for (id, tenant) in &oracle.expired {
                prop_assert_eq!(kind_of(&table, *id, *tenant), Some(ErrorKind::Expired), "{:?}", oracle);
            }
        }
    }
}
