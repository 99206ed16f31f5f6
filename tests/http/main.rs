//! The HTTP wires over real sockets, with a backend that the tests control.

#[path = "../common/mod.rs"]
mod common;

mod chat;
mod connection;
mod errors;
mod headers;
mod native;
mod shutdown;
