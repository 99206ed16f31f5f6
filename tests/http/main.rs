//! The HTTP wires over real sockets, with a backend that the tests control.

mod common;

mod chat;
mod connection;
mod errors;
mod headers;
mod native;
mod shutdown;
