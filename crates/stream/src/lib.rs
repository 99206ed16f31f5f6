//! A generation's life as a log: append-only, dense ids from 0, one terminal event that is last. A reader is a cursor
//! into the log, so any number of readers can follow, leave and come back. This is the only room below the service that
//! may be async: a reader can wait for the next event. It knows nothing of HTTP or of the code that produces events,
//! and it reads no clock.
//!
//! The types that all rooms share, those of events among them, live here: `protocol`, `error` and `settings`.

mod entry;
pub mod error;
mod expired;
mod feed;
mod holdings;
mod log;
mod printable;
mod progress;
pub mod protocol;
mod reader;
pub mod settings;
mod status;
mod store;
mod table;

pub use entry::Entry;
pub use feed::{Feed, FeedEvent, FeedRead, FeedReader, Happening};
pub use log::{Clock, StreamLog};
pub use printable::{excerpt, printable, printable_json, printable_line};
pub use reader::{Gap, Read, StreamReader};
pub use status::{CancelCause, StreamStatus};
#[doc(hidden)]
pub use store::DiskStall;
pub use store::{StoreLimits, StorePlace, StoredStream, StreamRecord, StreamStore};
pub use table::{StreamTable, TableLimits};
