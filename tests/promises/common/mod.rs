//! What the proofs share: a server, a client that hides nothing, a parser by the letter, a proxy that breaks things.

pub mod child;
pub mod host;
pub mod hostile;
pub mod memory;
pub mod proxy;
pub mod random;
pub mod sse;
pub mod wire;

pub use crate::record::{Figure, is_long, quantile, scale};
pub use child::ChildServer;
pub use host::{Host, Options};
pub use proxy::{Fault, Proxy};
pub use random::Random;
pub use sse::{SseEvent, SseParser};
pub use wire::{Reply, Wire, http};
