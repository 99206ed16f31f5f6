//! A generation's life as a log: append-only, dense ids from 0, one terminal event that is last. A reader is a cursor
//! into it, so any number can follow, leave and come back. This is the only floor-1 room that may be async: a reader
//! can wait for the next event. It knows nothing of HTTP, and nothing of who produces events; it reads no clock.

mod log;
mod reader;
mod store;
mod table;

pub use log::{CancelCause, Clock, Entry, StreamLog, StreamStatus};
pub use reader::{Gap, Read, StreamReader};
pub use store::{StoreLimits, StoredStream, StreamRecord, StreamStore};
pub use table::{StreamTable, TableLimits};
