//! What the proofs share: a server, a client that hides nothing, a parser by the letter, a proxy that breaks things.

pub(crate) mod child;
pub(crate) mod host;
pub(crate) mod hostile;
pub(crate) mod memory;
pub(crate) mod proxy;
pub(crate) mod random;
pub(crate) mod sse;
pub(crate) mod wire;

pub(crate) use crate::record::{Figure, is_long, quantile, scale};
pub(crate) use child::ChildServer;
pub(crate) use host::{Host, Options};
pub(crate) use proxy::{Fault, Proxy};
pub(crate) use random::Random;
pub(crate) use sse::{SseEvent, SseParser};
pub(crate) use wire::{Reply, Wire, http};
