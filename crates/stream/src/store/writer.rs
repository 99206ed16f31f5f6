//! The thread that owns the database.

use std::collections::HashMap;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Instant;

use redb::Database;

use super::records::{EVENTS, STREAMS, StoredStream, seal};
use super::stall::CommitGate;
use super::{Change, Handover, StoreLimits, WholeMark};
use crate::StreamLog;
use crate::holdings::Holdings;
use crate::protocol::{StreamId, Tenant};

/// Changes in one transaction; more wait for the next.
const NUM_CHANGES_PER_COMMIT_MAX: usize = 8_192;

pub(super) struct StoreWriter {
    database: Database,
    path: PathBuf,
    /// It goes with a failure.
    mark: WholeMark,
    limits: StoreLimits,
    handover: Arc<Handover>,
    gate: Arc<CommitGate>,
    /// Live streams, to be told what is durable.
    logs: HashMap<StreamId, Weak<StreamLog>>,
    streams: HashMap<StreamId, Stored>,
    /// Of each owner: the bound is shared by owner and weight, as the table's is.
    holdings: Holdings,
}

/// A stream that is on disk, or about to be.
struct Stored {
    tenant: Tenant,
    num_bytes: u64,
}

/// One transaction's worth.
#[derive(Default)]
struct Commit {
    /// Requests by stream.
    streams: Vec<(StreamId, Vec<u8>)>,
    /// By stream: the first event's number, and the events.
    events: HashMap<StreamId, (u64, Vec<u8>)>,
    forgotten: Vec<StreamId>,
    /// Whose terminal event is in here.
    ended: Vec<StreamId>,
    /// Events that readers wait for.
    awaited: Vec<(StreamId, u64)>,
    num_changes: usize,
    makes_whole: bool,
    is_last: bool,
}

impl StoreWriter {
    pub(super) fn new(
        database: Database,
        (path, mark): (PathBuf, WholeMark),
        limits: StoreLimits,
        (handover, gate): (Arc<Handover>, Arc<CommitGate>),
        stored: &[StoredStream],
    ) -> Self {
        let (streams, holdings) = (HashMap::new(), Holdings::default());
        let logs = HashMap::new();
        let mut writer = Self { database, path, mark, limits, handover, gate, logs, streams, holdings };
        let mut ended = Vec::new();
        for stream in stored {
            let request = &stream.record.request;
            writer.begin(request.id, request.tenant, request.queue.weight);
            writer.count(request.id, stream.num_bytes());
            let last = stream.entries.last().filter(|e| e.event.is_terminal());
            ended.extend(last.map(|e| (e.ts_ms, request.id)));
        }
        ended.sort_unstable();
        ended.into_iter().for_each(|(ended_ms, id)| writer.end(id, ended_ms));
        writer
    }

    /// Commits until the store is closed, or fails.
    pub(super) fn run(&mut self) {
        // Damage that opening did not find can show in an assertion of redb's.
        match catch_unwind(AssertUnwindSafe(|| self.commit_all())) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => self.fail(&e),
            Err(_panic) => self.fail(&"the database is damaged, or has a defect"),
        }
        self.handover.end();
    }

    fn commit_all(&mut self) -> Result<(), String> {
        loop {
            let mut commit = self.gather();
            self.handover.begin_commit()?;
            self.write(&mut commit).map_err(|e| e.to_string())?;
            self.tell(&commit);
            self.handover.end_commit();
            if commit.is_last {
                return Ok(());
            }
        }
    }

    /// Waits for a change, then takes what comes within the interval, or until somebody waits for what was taken.
    fn gather(&mut self) -> Commit {
        let mut commit = Commit::default();
        let first = self.handover.next(None);
        let deadline = Instant::now() + self.limits.commit_interval;
        first.into_iter().for_each(|change| self.take(change, &mut commit));
        while !commit.is_last && commit.num_changes < NUM_CHANGES_PER_COMMIT_MAX {
            let deadline = if commit.awaited.is_empty() { deadline } else { Instant::now() };
            let Some(next) = self.handover.next(Some(deadline)) else { break };
            self.take(next, &mut commit);
        }
        self.forget_beyond_bound(&mut commit);
        commit
    }

    fn take(&mut self, change: Change, commit: &mut Commit) {
        commit.num_changes += 1;
        match change {
            Change::Begin { record, log } => {
                let id = record.request.id;
                self.begin(id, record.request.tenant, record.request.queue.weight);
                self.logs.insert(id, log);
                // Plain data of ours always encodes.
                let bytes = seal(id, 0, postcard::to_stdvec(&*record).expect("a request encodes"));
                self.count(id, bytes.len() as u64);
                commit.streams.push((id, bytes));
            }
            Change::Follow { log, id } => {
                self.logs.insert(id, log);
            }
            Change::Append { id, entry } if self.streams.contains_key(&id) => {
                if !entry.event.is_repeatable() {
                    commit.awaited.push((id, entry.seq));
                }
                let is_terminal = entry.event.is_terminal();
                let (_, bytes) = commit.events.entry(id).or_insert_with(|| (entry.seq, Vec::new()));
                let before = bytes.len();
                *bytes = postcard::to_extend(&entry, std::mem::take(bytes)).expect("an event encodes");
                let num_bytes = bytes.len() - before;
                self.count(id, num_bytes as u64);
                if is_terminal {
                    self.end(id, entry.ts_ms);
                    commit.ended.push(id);
                }
            }
            // Forgotten meanwhile.
            Change::Append { id, entry } => commit.awaited.push((id, entry.seq)),
            Change::Forget { id } => self.forget(id, commit),
            Change::MakeWhole => commit.makes_whole = true,
            Change::Close => commit.is_last = true,
            #[cfg(test)]
            Change::Run(act) => act(),
        }
    }

    fn begin(&mut self, id: StreamId, tenant: Tenant, weight: u32) {
        self.streams.insert(id, Stored { tenant, num_bytes: 0 });
        self.holdings.begin(tenant, weight);
    }

    fn count(&mut self, id: StreamId, num_bytes: u64) {
        if let Some(stored) = self.streams.get_mut(&id) {
            stored.num_bytes += num_bytes;
            self.holdings.add_bytes(stored.tenant, num_bytes);
        }
    }

    fn end(&mut self, id: StreamId, ended_ms: u64) {
        if let Some(stored) = self.streams.get(&id) {
            self.holdings.end(stored.tenant, ended_ms, id);
        }
    }

    fn forget(&mut self, id: StreamId, commit: &mut Commit) {
        if let Some(Stored { tenant, num_bytes }) = self.streams.remove(&id) {
            self.holdings.remove(tenant, id, num_bytes);
            commit.streams.retain(|(stream, _)| *stream != id);
            commit.events.remove(&id);
            commit.forgotten.push(id);
        }
    }

    fn forget_beyond_bound(&mut self, commit: &mut Commit) {
        let num_bytes_of = |id| self.streams.get(&id).map_or(0, |stored| stored.num_bytes);
        for id in self.holdings.beyond(self.limits.num_bytes_max, num_bytes_of) {
            self.forget(id, commit);
        }
    }

    fn write(&self, commit: &mut Commit) -> Result<(), redb::Error> {
        if commit.streams.is_empty() && commit.events.is_empty() && commit.forgotten.is_empty() {
            return Ok(());
        }
        let transaction = self.database.begin_write()?;
        {
            let mut streams = transaction.open_table(STREAMS)?;
            let mut events = transaction.open_table(EVENTS)?;
            for id in &commit.forgotten {
                streams.remove(id.0)?;
                events.retain_in((id.0, 0)..=(id.0, u64::MAX), |_, _| false)?;
            }
            for (id, bytes) in &commit.streams {
                streams.insert(id.0, bytes.as_slice())?;
            }
            for (id, (first, bytes)) in &mut commit.events {
                let bytes = seal(*id, *first, std::mem::take(bytes));
                events.insert((id.0, *first), bytes.as_slice())?;
            }
        }
        self.gate.pass();
        transaction.commit()?;
        Ok(())
    }

    /// Tells the logs what is durable, and lets go of those that have ended.
    fn tell(&mut self, commit: &Commit) {
        if commit.makes_whole
            && let Err(e) = self.mark.put().and_then(|()| self.mark.sync())
        {
            tracing::warn!("{}: {e}; the next process will end what is under way", self.mark.0.display());
        }
        for (id, seq) in &commit.awaited {
            if let Some(log) = self.logs.get(id).and_then(Weak::upgrade) {
                log.on_durable(*seq);
            }
        }
        // By what was written, not by whether the log has ended: a fast one ends while its first events are written, and
        // its readers still wait for the others.
        for id in &commit.ended {
            self.logs.remove(id);
        }
        for id in &commit.forgotten {
            // What it still has to say finds it gone, so nothing of it waits.
            if let Some(log) = self.logs.remove(id).and_then(|log| log.upgrade()) {
                log.on_durable(u64::MAX);
            }
        }
    }

    /// Nothing will be durable any more: readers get everything there is. First what is on disk is said not to be all:
    /// the next process must not take it for what readers have seen.
    fn fail(&mut self, reason: &dyn Display) {
        let path = self.path.display();
        tracing::error!("{path}: {reason}; streams go on in memory alone and will not outlive the process");
        let removed = self.mark.remove();
        for change in self.handover.fail() {
            match change {
                Change::Begin { log, record } => drop(self.logs.insert(record.request.id, log)),
                Change::Follow { log, id } => drop(self.logs.insert(id, log)),
                _ => {}
            }
        }
        for log in self.logs.drain().filter_map(|(_, log)| log.upgrade()) {
            log.on_durable(u64::MAX);
        }
        // Last, because a sick disk may take its time.
        match removed.and_then(|()| self.mark.sync()) {
            // Of an earlier failure, which nothing has mended yet.
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                let mark = self.mark.0.display();
                tracing::error!("{mark}: {e}; remove it by hand, or the next process takes old streams for whole ones");
            }
            _ => {}
        }
    }
}
