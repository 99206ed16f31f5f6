//! What a key has left, in OpenAI's headers.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::service::{Allowance, QuotaState};

/// The headers of requests: limit, remaining, reset.
pub(super) const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];

/// The headers of tokens: limit, remaining, reset.
pub(super) const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Adds the headers of every limit there is.
pub(super) fn insert(headers: &mut HeaderMap, state: &QuotaState) {
    for (names, allowance) in [(REQUESTS, state.requests), (TOKENS, state.tokens)] {
        let Some(Allowance { limit, remaining, reset }) = allowance else { continue };
        let values = [Some(limit.into()), Some(remaining.into()), HeaderValue::try_from(spell(reset)).ok()];
        for (name, value) in names.into_iter().zip(values) {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
    }
}

/// A duration as OpenAI spells it: `120ms`, `8.64s`, `6m0s`, `1h0m0s`. Rounded up to milliseconds.
fn spell(time: Duration) -> String {
    let ms = time.as_nanos().div_ceil(1_000_000);
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, (ms % 60_000) as f64 / 1000.0);
    match ms {
        1..1000 => format!("{ms}ms"),
        _ if hours > 0 => format!("{hours}h{minutes}m{seconds}s"),
        _ if minutes > 0 => format!("{minutes}m{seconds}s"),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spelled_like_openai_does() {
        let of = |ms: u64| spell(Duration::from_millis(ms));
        assert_eq!([of(0), of(120), of(8640), of(60_000)], ["0s", "120ms", "8.64s", "1m0s"]);
        assert_eq!([of(360_000), of(3_600_000), of(3_661_500)], ["6m0s", "1h0m0s", "1h1m1.5s"]);
        assert_eq!(spell(Duration::from_nanos(1)), "1ms");
    }
}
