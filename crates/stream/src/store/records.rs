//! What is on disk, and reading it back.

use std::collections::BTreeMap;
use std::path::Path;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::super::entry::Entry;
use crate::error::{Error, Result};
use crate::protocol::{Epoch, StreamId, ValidRequest};
use xxhash_rust::xxh3::Xxh3;

/// Requests by stream: a [`StreamRecord`], sealed.
pub(super) const STREAMS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("streams");
/// Events by stream and number of the first: a run of [`Entry`]s, one after another, sealed.
pub(super) const EVENTS: TableDefinition<'_, (u128, u64), &[u8]> = TableDefinition::new("events");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Changes with every change of what is written.
const FORMAT: u64 = 2;

/// A stream's beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamRecord {
    /// What was asked.
    pub request: ValidRequest,
    /// When, by the log's clock.
    pub created_ms: u64,
    /// What the text follows from besides the request: the weights and how they are computed with.
    pub fingerprint: u64,
}

/// A stream as the store has it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredStream {
    /// Its beginning.
    pub record: StreamRecord,
    /// Its events, dense from 0. If the last is not terminal, the stream was cut off by the end of the process.
    pub entries: Vec<Entry>,
}

impl StoredStream {
    pub(super) fn num_bytes(&self) -> u64 {
        // As written; what does not encode was never stored.
        let record = postcard::to_stdvec(&self.record).map_or(0, |bytes| bytes.len());
        let entries = self.entries.iter().map(|e| postcard::to_stdvec(e).map_or(0, |bytes| bytes.len()));
        (record + entries.sum::<usize>()) as u64
    }
}

/// Ends a value with its checksum, and its key's: redb's own are looked at only when it repairs a file.
pub(super) fn seal(id: StreamId, first: u64, mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = checksum(id.0, first, &bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The value without its checksum, if that is right.
fn unseal(id: u128, first: u64, bytes: &[u8]) -> Option<&[u8]> {
    let (value, sum) = bytes.split_last_chunk()?;
    (u64::from_le_bytes(*sum) == checksum(id, first, value)).then_some(value)
}

fn checksum(id: u128, first: u64, bytes: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&id.to_le_bytes());
    hasher.update(&first.to_le_bytes());
    hasher.update(bytes);
    hasher.digest()
}

/// What is at a path.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) epoch: Epoch,
    /// Whether it has all that readers were shown.
    pub(super) was_whole: bool,
    pub(super) stored: Vec<StoredStream>,
}

/// Opens the database. The epoch is a new one if an old file is not marked as whole, which is asked under its lock.
pub(super) fn open(path: &Path, is_marked: impl Fn() -> bool) -> Result<Opened> {
    let is_new = !path.exists();
    let failed = |e: &dyn std::fmt::Display| Error::io(path.display(), e);
    let database = Database::create(path).map_err(|e| match e {
        DatabaseError::DatabaseAlreadyOpen => {
            Error::io(path.display(), "another process uses this stream store (--stream-store)")
        }
        e => failed(&e),
    })?;
    let was_whole = is_new || is_marked();
    let epoch = prepare(&database, path, was_whole)?;
    let stored = read(&database, path)?;
    Ok(Opened { database, epoch, was_whole, stored })
}

/// Makes the tables where there are none, checks the format, and returns the epoch.
fn prepare(database: &Database, path: &Path, is_whole: bool) -> Result<Epoch> {
    let transaction = || -> Result<(u64, u64), redb::Error> {
        let write = database.begin_write()?;
        let mut meta = write.open_table(META)?;
        let format = meta.get("format")?.map(|v| v.value());
        // A file of another format stays as it is: the transaction ends without a commit.
        if let Some(format) = format.filter(|format| *format != FORMAT) {
            return Ok((format, 0));
        }
        write.open_table(STREAMS)?;
        write.open_table(EVENTS)?;
        let epoch = meta.get("epoch")?.map(|v| v.value()).filter(|_| is_whole).unwrap_or_else(|| Epoch::random().0);
        if format.is_none() {
            meta.insert("format", FORMAT)?;
        }
        meta.insert("epoch", epoch)?;
        drop(meta);
        write.commit()?;
        Ok((FORMAT, epoch))
    };
    match transaction() {
        Ok((FORMAT, epoch)) => Ok(Epoch(epoch)),
        Ok((format, _)) => {
            let rule = format!("a stream store must be of format {FORMAT}, this is of format {format}");
            Err(Error::io(path.display(), rule))
        }
        Err(e) => Err(Error::io(path.display(), e)),
    }
}

fn read(database: &Database, path: &Path) -> Result<Vec<StoredStream>> {
    let failed = |e: redb::Error| Error::io(path.display(), e);
    let damaged = |id: u128, what: &str| {
        Error::io(path.display(), format!("the stream store is damaged: {what} of stream {}", StreamId(id)))
    };
    let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
    let streams = transaction.open_table(STREAMS).map_err(|e| failed(e.into()))?;
    let events = transaction.open_table(EVENTS).map_err(|e| failed(e.into()))?;
    let mut all = BTreeMap::new();
    for row in streams.iter().map_err(|e| failed(e.into()))? {
        let (id, bytes) = row.map_err(|e| failed(e.into()))?;
        let value = unseal(id.value(), 0, bytes.value()).ok_or_else(|| damaged(id.value(), "the request"))?;
        let record: StreamRecord =
            postcard::from_bytes(value).map_err(|e| damaged(id.value(), &format!("the request ({e})")))?;
        all.insert(id.value(), StoredStream { record, entries: Vec::new() });
    }
    for row in events.iter().map_err(|e| failed(e.into()))? {
        let (key, bytes) = row.map_err(|e| failed(e.into()))?;
        let (id, first) = key.value();
        let stored = all.get_mut(&id).ok_or_else(|| damaged(id, "events without a request"))?;
        let mut rest =
            unseal(id, first, bytes.value()).ok_or_else(|| damaged(id, &format!("the events from {first}")))?;
        while !rest.is_empty() {
            let (entry, left) = postcard::take_from_bytes::<Entry>(rest)
                .map_err(|e| damaged(id, &format!("the events from {first} ({e})")))?;
            if entry.seq != stored.entries.len() as u64 {
                return Err(damaged(id, &format!("event {} where {} should be", entry.seq, stored.entries.len())));
            }
            stored.entries.push(entry);
            rest = left;
        }
    }
    let mut all: Vec<StoredStream> = all.into_values().collect();
    all.sort_by_key(|stored| (stored.record.created_ms, stored.record.request.id));
    Ok(all)
}
