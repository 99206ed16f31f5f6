//! `GET /v1/events`: what happens on the server, for operators. One envelope for everything, resumable like a stream.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use serde_json::{Value, json};

use super::App;
use super::caller::{self, Caller};
use super::native::{Cursor, cursor_of, retry_ms};
use super::problem::{ErrorBody, Problem};
use super::sse::{self, SseWriter};
use crate::protocol::{Epoch, EventId, Usage};
use crate::stream::{CancelCause, FeedEvent, FeedRead, FeedReader, Happening};

/// Events that are ready go out in one write, up to about this size.
const FRAME_BYTES_MAX: usize = 16 << 10;

#[derive(Serialize)]
struct Envelope<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    /// Milliseconds since the Unix epoch.
    time: u64,
    /// Which life of the server says so.
    source: &'a str,
    stream: Option<String>,
    data: Value,
}

/// From the cursor on, or from now.
///
/// # Errors
/// 403 without an admin key where there are keys; 400 for a cursor that is none.
pub(crate) async fn follow(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller::require_admin(&owner, "/v1/events")?;
    let table = app.service.table();
    let (feed, epoch) = (table.feed(), table.feed_epoch());
    let num_events = feed.num_events();
    let cursor = cursor_of(&headers, query)?;
    let (from, is_gap) = match cursor {
        // Without a cursor from now on: what was before is history that nobody asked for.
        None => (num_events, false),
        Some(Cursor::Start(_)) => (0, false),
        Some(Cursor::After(id)) if id.epoch != epoch || id.seq >= num_events => (0, true),
        Some(Cursor::After(id)) => (id.seq + 1, false),
    };
    let following = Following {
        reader: feed.reader(from),
        epoch,
        source: format!("tallow/{:x}", epoch.0),
        heartbeat: app.config.heartbeat,
        opening: Some((from, is_gap)),
        opened_ms: app.service.now_ms(),
    };
    let body = Body::from_stream(stream::unfold(following, |mut following| async move {
        let bytes = following.next_bytes().await?;
        Some((Ok::<_, Infallible>(bytes), following))
    }));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(sse::CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

struct Following {
    reader: FeedReader,
    epoch: Epoch,
    source: String,
    heartbeat: Duration,
    /// Where it begins, and whether that is not where the client stood; until it is said.
    opening: Option<(u64, bool)>,
    /// When it came, in milliseconds since the Unix epoch.
    opened_ms: u64,
}

impl Following {
    /// `None` when the server ends: the client is to come back to the next one.
    async fn next_bytes(&mut self) -> Option<Bytes> {
        let mut out = SseWriter::default();
        if let Some((from, is_gap)) = self.opening.take() {
            out.beginning(self.before(from), retry_ms());
            if is_gap {
                self.gap(from, self.opened_ms, &mut out);
            }
            return Some(out.take());
        }
        while out.is_empty() {
            match tokio::time::timeout(self.heartbeat, self.reader.ready()).await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(_elapsed) => out.heartbeat(),
            }
            while out.len() < FRAME_BYTES_MAX
                && let Some(read) = self.reader.read()
            {
                match read {
                    FeedRead::Event(event) => self.event(&event, &mut out),
                    FeedRead::Gap { next_seq, ts_ms } => self.gap(next_seq, ts_ms, &mut out),
                }
            }
        }
        Some(out.take())
    }

    fn event(&self, event: &FeedEvent, out: &mut SseWriter) {
        let name = event.happening.as_str();
        let envelope = Envelope {
            event_type: name,
            time: event.ts_ms,
            source: &self.source,
            stream: event.stream.map(|id| id.to_string()),
            data: data(&event.happening),
        };
        out.event(self.id(event.seq), name, &envelope);
    }

    fn gap(&self, next_seq: u64, time: u64, out: &mut SseWriter) {
        let data = json!({ "next": next_seq });
        let envelope = Envelope { event_type: "gap", time, source: &self.source, stream: None, data };
        out.event(self.before(next_seq), "gap", &envelope);
    }

    fn id(&self, seq: u64) -> Cursor {
        Cursor::After(EventId { epoch: self.epoch, seq })
    }

    fn before(&self, seq: u64) -> Cursor {
        seq.checked_sub(1).map_or(Cursor::Start(self.epoch), |before| self.id(before))
    }
}

fn data(happening: &Happening) -> Value {
    match happening {
        Happening::Queued { position } => json!({ "position": position }),
        Happening::Started { prompt_tokens, cached_tokens } => {
            json!({ "prompt_tokens": prompt_tokens, "cached_tokens": cached_tokens })
        }
        Happening::Finished { finish_reason, usage } => {
            json!({ "finish_reason": finish_reason.as_str(), "usage": usage_object(*usage) })
        }
        Happening::Cancelled { cause, usage } => {
            json!({ "cause": cause.map(CancelCause::as_str), "usage": usage_object(*usage) })
        }
        Happening::Failed(info) => {
            json!({ "error": ErrorBody::from(info), "usage": usage_object(info.usage) })
        }
        Happening::Rejected { reason } => json!({ "reason": reason }),
        Happening::WorkerRestarted { num_restarts } => json!({ "restarts": num_restarts }),
        Happening::ModelLoaded { model } | Happening::ModelUnloaded { model } => json!({ "model": model }),
    }
}

fn usage_object(usage: Usage) -> Value {
    let Usage { prompt_tokens, cached_tokens, completion_tokens } = usage;
    json!({ "prompt_tokens": prompt_tokens, "cached_tokens": cached_tokens, "completion_tokens": completion_tokens })
}
