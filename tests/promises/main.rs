//! The promises, one file each: what tallow says of its streams, tried on a real server over real sockets.
//!
//! `TALLOW_PROMISES=long` asks for the numbers that the promises name; without it they are small enough for every
//! change. Counts, bytes and ratios are asserted; times are measured and written to `target/promises/`, where
//! `tests/promises/table` reads them (`make prove`). Where a server's own memory counts it runs in a child process.

mod common;
#[path = "../common/gated.rs"]
mod gated;
mod p01_browser;
mod p01_bytes;
mod p02_batch;
mod p03_resume;
mod p03_store;
mod p04_loss;
mod p05_fanout;
mod p06_idle;
mod p07_slow;
mod p08_cancel;
mod p09_policy;
mod p10_overload;
mod p11_fair;
mod p11_real;
mod p12_health;
mod p15_templates;
mod p18_soak;
mod p19_stop;
mod p24_hostile;
#[path = "../common/real.rs"]
mod real;
#[path = "../common/record.rs"]
mod record;
mod restart;
#[allow(dead_code)] // Two test binaries share it, and each uses a part.
#[path = "../fast/http/common/backend.rs"]
mod scripted;

/// The binary's own allocator, since the memory of a server made of this file is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
#[path = "../common/server.rs"]
mod server;
