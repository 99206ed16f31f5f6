//! The settings of API keys, as `table` has all others.

use super::row::{limit, row};
use super::settings::Kind::{Secrets, Text};
use super::settings::Setting;

pub(super) const ROWS: &[Setting] = &[
    row(
        "keys.list",
        "api-keys",
        Secrets,
        "",
        "API keys, KEY or NAME:KEY; other users of this machine can see the command line",
    ),
    row(
        "keys.file",
        "api-keys-file",
        Text,
        "",
        "API keys with their weights and limits: `NAME KEY [...]` lines, or TOML",
    ),
    row(
        "keys.requests_per_minute",
        "key-requests-per-minute",
        limit("requests"),
        "0",
        "Requests per minute of a key that does not say, or of all without keys; 0 is no limit",
    ),
    row(
        "keys.tokens_per_minute",
        "key-tokens-per-minute",
        limit("tokens"),
        "0",
        "The same for tokens, prompt and max_tokens; 0 is no limit",
    ),
    row(
        "keys.concurrency_max",
        "key-concurrency-max",
        limit("generations"),
        "0",
        "The same for generations that wait or run at once; 0 is no limit",
    ),
    row(
        "keys.open_requests_max",
        "key-open-requests-max",
        limit("requests"),
        "1024",
        "Requests of one key that may be open at once, streams that it follows too; 0 is no bound",
    ),
];
