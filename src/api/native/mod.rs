//! The native wire, `/v1/streams`: a generation is a thing with a name. Post one, follow it from anywhere, as often as
//! you like and from any event on; delete it to cancel.

mod cursor;
mod events;
mod routes;

pub(super) use cursor::Cursor;
pub(crate) use routes::{cancel, create, follow, list};
pub(super) use routes::{cursor_of, retry_ms};
