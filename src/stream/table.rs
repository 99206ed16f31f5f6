//! All streams of this process, by id: bounded in number, kept for a retention time after their end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::StreamLog;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{StreamId, Tenant};

/// The table's bounds.
#[derive(Debug, Clone, Copy)]
pub struct TableLimits {
    /// Most streams, live and retained.
    pub num_streams_max: usize,
    /// How long a finished stream can be replayed.
    pub retention_ms: u64,
}

/// Streams by id.
#[derive(Debug)]
pub struct StreamTable {
    limits: TableLimits,
    streams: Mutex<HashMap<StreamId, Arc<StreamLog>>>,
}

impl StreamTable {
    /// An empty table.
    pub fn new(limits: TableLimits) -> Self {
        Self { limits, streams: Mutex::default() }
    }

    /// Adds a stream.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when the table is full of live streams.
    pub fn insert(&self, log: Arc<StreamLog>) -> Result<()> {
        let mut streams = self.streams.lock().expect("no panic while held");
        if streams.len() >= self.limits.num_streams_max {
            return Err(Error::overloaded("too many streams", 1000));
        }
        streams.insert(log.id(), log);
        Ok(())
    }

    /// The stream, if it exists and is `tenant`'s.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for unknown and foreign ids alike.
    pub fn get(&self, id: StreamId, tenant: Tenant) -> Result<Arc<StreamLog>> {
        let streams = self.streams.lock().expect("no panic while held");
        match streams.get(&id) {
            Some(log) if log.tenant() == tenant => Ok(log.clone()),
            _ => Err(Error::new(ErrorKind::NotFound, format!("no stream {id}"))),
        }
    }
}
