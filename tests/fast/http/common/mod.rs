//! What HTTP tests share: a backend under the test's control, a server around it, a client that sees raw bytes, and a
//! strict parser of event streams.

pub mod backend;
pub mod client;
pub mod server;
pub mod sse;

pub use backend::{GatedBackend, Job};
pub use client::{Client, Reply, get, post, request};
pub use server::{Setup, TestServer};
