//! How a client says what becomes of its generation when the last reader leaves: a body field on native streams, the
//! header `x-stream-on-disconnect` anywhere.

use std::fmt;

use axum::http::HeaderMap;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::problem::Problem;
use crate::error::Error;
use crate::protocol::OnDisconnect;

/// The request header.
pub(crate) const HEADER: &str = "x-stream-on-disconnect";

/// Grace of a lingering stream that does not say.
pub(crate) const LINGER_DEFAULT: OnDisconnect = OnDisconnect::Linger { grace_ms: 30_000 };

const RULE: &str = "must be cancel, linger, linger=SECONDS or detach";

/// The header's policy, if there is one: `cancel`, `linger`, `linger=SECONDS` or `detach`.
///
/// # Errors
/// 400 for anything else.
pub(crate) fn from_header(headers: &HeaderMap) -> Result<Option<OnDisconnect>, Problem> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let text = value.to_str().unwrap_or("?").trim();
    match policy(text) {
        Some(policy) => Ok(Some(policy)),
        None => Err(Error::invalid(HEADER, format!("`{HEADER}` {RULE}, got {text:?}")).into()),
    }
}

/// The policy's wire form, as a body field has it.
pub(crate) fn to_json(policy: OnDisconnect) -> serde_json::Value {
    match policy {
        OnDisconnect::Cancel => "cancel".into(),
        OnDisconnect::Linger { grace_ms } => serde_json::json!({"linger": grace_ms as f64 / 1000.0}),
        OnDisconnect::Detach => "detach".into(),
    }
}

/// The body field: what the header says, or `{"linger": seconds}`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OnDisconnectField(pub OnDisconnect);

impl<'de> Deserialize<'de> for OnDisconnectField {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct FieldVisitor;
        impl<'de> Visitor<'de> for FieldVisitor {
            type Value = OnDisconnectField;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"cancel\", \"linger\", {\"linger\": seconds} or \"detach\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                let unknown = || E::invalid_value(serde::de::Unexpected::Str(text), &self);
                policy(text).map(OnDisconnectField).ok_or_else(unknown)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                use serde::de::Error;
                let expected = "must be an object with the one field `linger`, in seconds from 0";
                let entry = map.next_entry::<String, f64>()?.filter(|(key, _)| key == "linger");
                let policy =
                    entry.and_then(|(_, seconds)| linger(seconds)).ok_or_else(|| A::Error::custom(expected))?;
                match map.next_key::<String>()? {
                    None => Ok(OnDisconnectField(policy)),
                    Some(_) => Err(A::Error::custom(expected)),
                }
            }
        }
        d.deserialize_any(FieldVisitor)
    }
}

fn policy(text: &str) -> Option<OnDisconnect> {
    match text.split_once('=') {
        None if text == "cancel" => Some(OnDisconnect::Cancel),
        None if text == "linger" => Some(LINGER_DEFAULT),
        None if text == "detach" => Some(OnDisconnect::Detach),
        Some(("linger", seconds)) => linger(seconds.trim().parse().ok()?),
        _ => None,
    }
}

/// The upper bound is the service's to check.
fn linger(seconds: f64) -> Option<OnDisconnect> {
    (seconds >= 0.0).then_some(OnDisconnect::Linger { grace_ms: (seconds * 1000.0) as u64 })
}
