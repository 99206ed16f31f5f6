//! What HTTP tests share: a backend under the test's control, a server around it, a client that sees raw bytes, and a
//! strict parser of event streams.

pub(crate) mod backend;
pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod sse;

pub(crate) use backend::{GatedBackend, Job};
pub(crate) use client::{Client, Reply, get, post, request};
pub(crate) use server::{Setup, TestServer};
