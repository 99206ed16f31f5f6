//! The HTTP wires over real sockets, with a backend that the tests control; `engine` uses the
//! real one on the stub model.

pub(crate) mod common;

mod admission;
mod as_they_come;
mod backpressure;
mod chat;
mod completions;
mod connection;
mod docs;
mod embeddings;
mod engine;
mod errors;
mod feed;
mod fuzz;
mod headers;
mod heads;
mod health;
mod heavy;
mod kept;
mod limits;
mod messages;
mod metrics;
mod native;
mod numbers;
mod openapi;
mod owners;
mod quota;
mod responses;
mod responses_rules;
mod resume;
mod session;
mod shutdown;
mod stalled;
mod structured;
mod tokens;
mod tools;
