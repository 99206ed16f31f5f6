//! The owner of a request, which decides its share of the machine, its place in line and its limits. There is one owner
//! per API key; without keys every client is the one anonymous owner.

use super::ids::Tenant;
use crate::settings;
use crate::settings::{count, setting};

/// The smallest weight.
pub const WEIGHT_MIN: u32 = 1;
/// The largest weight.
pub const WEIGHT_MAX: u32 = 1000;
/// The most urgent priority; like vLLM's, a lower one goes first.
pub const PRIORITY_MIN: i32 = -10;
/// The least urgent priority.
pub const PRIORITY_MAX: i32 = 10;

/// What a limit's field holds.
const LIMIT_MAX: u64 = u32::MAX as u64;

/// A client that may see, resume and cancel its own streams, and the terms on which its requests are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Keeps its streams, its place in the queue and its prefixes apart from other owners'.
    pub tenant: Tenant,
    /// A name for people to read; never a secret.
    pub name: String,
    /// Whether it may see what belongs to other owners.
    pub is_admin: bool,
    /// Its share of the machine while others want it too, relative to theirs.
    pub weight: u32,
    /// The priority of its requests that name none, and the most urgent one that they may ask for.
    pub priority: i32,
    /// Its limits.
    pub limits: OwnerLimits,
}

settings! {
    /// What an owner may use at most; `None` is no limit of its own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct OwnerLimits {
        /// Requests per minute of a key that does not say, or of all without keys; 0 is no limit.
        pub requests_per_minute: Option<u32> = None
            => setting("keys.requests_per_minute", "key-requests-per-minute", count(0, LIMIT_MAX, "requests").or("0"));
        /// The same for tokens, prompt and max_tokens; 0 is no limit.
        pub tokens_per_minute: Option<u32> = None
            => setting("keys.tokens_per_minute", "key-tokens-per-minute", count(0, LIMIT_MAX, "tokens").or("0"));
        /// The same for generations that wait or run at once; 0 is no limit.
        pub concurrency_max: Option<u32> = None
            => setting("keys.concurrency_max", "key-concurrency-max", count(0, LIMIT_MAX, "generations").or("0"));
    }
}

impl Owner {
    /// The one owner of a server without keys. Every client that reaches such a server may do anything with it.
    pub fn anonymous() -> Self {
        Self {
            tenant: Tenant(0),
            name: "anonymous".to_owned(),
            is_admin: true,
            weight: WEIGHT_MIN,
            priority: 0,
            limits: OwnerLimits::default(),
        }
    }
}

/// The terms on which a request waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct QueueTerms {
    /// Its owner's share while others wait too; from [`WEIGHT_MIN`] to [`WEIGHT_MAX`].
    pub weight: u32,
    /// A lower one goes first; from [`PRIORITY_MIN`] to [`PRIORITY_MAX`].
    pub priority: i32,
    /// How long it may wait for a worker, in milliseconds; `None` waits for ever.
    pub timeout_ms: Option<u64>,
}

impl Default for QueueTerms {
    fn default() -> Self {
        Self { weight: WEIGHT_MIN, priority: 0, timeout_ms: None }
    }
}
