//! The HTTP wires over real sockets, with a backend that the tests control; `engine` uses the
//! real one on the stub model.

mod common;

mod admission;
mod backpressure;
mod chat;
mod connection;
mod engine;
mod errors;
mod feed;
mod headers;
mod health;
mod limits;
mod native;
mod owners;
mod resume;
mod shutdown;
mod structured;
