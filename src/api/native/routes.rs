//! The four verbs of `/v1/streams`.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::cursor::{self, Cursor, Resume};
use super::events::NativeEvents;
use crate::api::caller::Caller;
use crate::api::disconnect::{self, LINGER_DEFAULT, OnDisconnectField};
use crate::api::fields::{self, MessageFields};
use crate::api::many::{MESSAGES_MAX, Many};
use crate::api::numbers::Whole;
use crate::api::opening::Opening;
use crate::api::problem::Problem;
use crate::api::query::{self, Pairs};
use crate::api::{App, body, event_body, sse, structured, with_stream_id};
use crate::error::{Error, ErrorKind};
use crate::protocol::{GenerateRequest, OnDisconnect, Owner, Prompt, PromptEnding, StreamId, TokenId};
use crate::stream::StreamLog;

/// Streams in one answer of the list.
const LIST_MAX: usize = 100;

#[derive(Debug, Deserialize)]
struct CreateRequest {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Many<MessageFields, MESSAGES_MAX>>,
    tokens: Option<Vec<TokenId>>,
    on_disconnect: Option<OnDisconnectField>,
    priority: Option<Whole>,
}

/// A stream on the wire.
#[derive(Debug, Serialize)]
pub(crate) struct StreamObject {
    id: String,
    object: &'static str,
    status: &'static str,
    /// Milliseconds since the Unix epoch.
    created: u64,
    /// Number of events so far.
    events: usize,
    on_disconnect: serde_json::Value,
    /// Where a reader stands that has nothing yet.
    start_event_id: String,
}

#[derive(Debug, Serialize)]
struct Created {
    #[serde(flatten)]
    stream: StreamObject,
    model: String,
    prompt_tokens: usize,
    seed: u64,
}

/// The list on the wire.
#[derive(Debug, Serialize)]
pub(crate) struct StreamList {
    object: &'static str,
    data: Vec<StreamObject>,
    /// Whether there are older ones than these.
    has_more: bool,
}

/// `POST /v1/streams`: 201 with the stream's name. It runs whether or not anybody reads.
///
/// # Errors
/// Any of the body's, the fields' and the service's.
pub(crate) async fn create(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let tenant = owner.tenant;
    let Opening { policy, queue_timeout_ms, body } = Opening::read(request, &app, tenant).await?;
    let (generate, held) = body.parse(&app, tenant, move |json| read(json, owner, policy)).await?;
    let started = app.service.start(GenerateRequest { queue_timeout_ms, ..generate }).await?;
    drop(held);
    // A name that was given out must still mean something after a crash.
    started.log.accepted().await;
    let created = Created {
        stream: describe(&app, &started.log),
        model: started.served.name().to_owned(),
        prompt_tokens: started.prompt_tokens,
        seed: started.seed,
    };
    let mut response = (StatusCode::CREATED, Json(created)).into_response();
    let location = HeaderValue::try_from(format!("/v1/streams/{}", started.log.id()));
    response.headers_mut().insert(header::LOCATION, location.map_err(|e| Error::internal(e.to_string()))?);
    Ok(with_stream_id(response, started.log.id()))
}

fn read(json: &[u8], owner: Arc<Owner>, header_policy: Option<OnDisconnect>) -> Result<GenerateRequest, Problem> {
    let (sampling, stop) = fields::sampling(json)?;
    let structured = structured::constraint(json)?;
    let create: CreateRequest = body::parse(json)?;
    let prompt = match (create.prompt, create.messages, create.tokens) {
        (Some(text), None, None) => Prompt::Text(text),
        (None, Some(messages), None) => Prompt::Chat(fields::messages(messages.0)?),
        (None, None, Some(tokens)) => Prompt::Tokens(tokens),
        _ => {
            let message = "exactly one of `prompt`, `messages` and `tokens` must be given";
            return Err(Error::invalid("prompt", message).into());
        }
    };
    let on_disconnect = create.on_disconnect.map(|f| f.0).or(header_policy).unwrap_or(LINGER_DEFAULT);
    let base = GenerateRequest {
        constraint: structured.constraint,
        constraint_param: structured.param,
        ending: PromptEnding::Continue,
        ..GenerateRequest::new(owner, prompt)
    };
    Ok(GenerateRequest {
        model: create.model,
        sampling,
        stop,
        on_disconnect,
        priority: create.priority.map(Whole::to_i32),
        ..base
    })
}

/// `GET /v1/streams`: the caller's own, newest first; `limit` of them, those older than the one named `after`.
///
/// # Errors
/// 400 for a query that breaks a rule.
pub(crate) async fn list(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    query: Pairs,
) -> Result<Json<StreamList>, Problem> {
    let pairs = query::pairs(query)?;
    let limit = query::limit(&pairs, LIST_MAX, LIST_MAX)?;
    let logs = app.service.table().list(owner.tenant);
    let from = match query::value(&pairs, "after") {
        None => 0,
        Some(text) => {
            let id = text.parse().ok();
            let at = logs.iter().position(|log| Some(log.id()) == id);
            at.ok_or_else(|| query::broken("after", "the id of a stream of yours that is kept", text))? + 1
        }
    };
    let data = logs.iter().skip(from).take(limit).map(|log| describe(&app, log)).collect();
    Ok(Json(StreamList { object: "list", data, has_more: logs.len() > from + limit }))
}

/// `GET /v1/streams/{id}`: the events from the cursor on, live.
///
/// # Errors
/// 404, 410, and 400 for a cursor that is none.
pub(crate) async fn follow(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    method: Method,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let log = app.service.table().get(stream_id(id)?, owner.tenant)?;
    let cursor = cursor_of(&headers, query)?;
    let epoch = app.service.table().epoch();
    let resume = cursor::resume(&log, epoch, cursor);
    let from = match resume {
        Resume::From(seq) | Resume::Gap { from: seq, .. } => seq,
        // The one status that ends an EventSource without an error.
        Resume::Complete => return Ok(with_stream_id(StatusCode::NO_CONTENT.into_response(), log.id())),
    };
    if method == Method::HEAD {
        // Not a reader: were it one, its leaving could cancel a stream that nobody else reads.
        let content_type = [(header::CONTENT_TYPE, sse::CONTENT_TYPE)];
        return Ok(with_stream_id(content_type.into_response(), log.id()));
    }
    let dialect = NativeEvents {
        stream: log.id().to_string(),
        epoch,
        resume,
        retry_ms: retry_ms(),
        now_ms: app.service.now_ms(),
        next_seq: from,
        live_from: log.len() as u64,
        tokenizer: app.service.served_of(&log).tokenizer().clone(),
    };
    let metrics = app.service.metrics();
    if cursor.is_some() {
        metrics.resumes.inc();
    }
    metrics.replayed_events.inc_by((log.len() as u64).saturating_sub(from));
    let readers = &metrics.readers;
    let response = event_body::respond(log.reader(from), dialect, app.config.heartbeat, readers);
    Ok(with_stream_id(response, log.id()))
}

/// `DELETE /v1/streams/{id}`: cancels it; 204 also when it has ended. What it said stays readable.
///
/// # Errors
/// 404, 410; 503 where streams are kept and this could not be in time.
pub(crate) async fn cancel(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    app.service.cancel(stream_id(id)?, owner.tenant).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn describe(app: &App, log: &StreamLog) -> StreamObject {
    StreamObject {
        id: log.id().to_string(),
        object: "stream",
        status: log.status().as_str(),
        created: log.created_ms(),
        events: log.len(),
        on_disconnect: disconnect::to_json(log.on_disconnect()),
        start_event_id: Cursor::Start(app.service.table().epoch()).to_string(),
    }
}

/// A name that is none is unknown, not malformed.
fn stream_id(path: Result<Path<String>, PathRejection>) -> Result<StreamId, Problem> {
    let text = path.map(|Path(text)| text).unwrap_or_default();
    text.parse().map_err(|()| Error::new(ErrorKind::NotFound, format!("no stream {text:?}")).into())
}

/// The header wins: a browser that reconnects repeats the address, query and all, and knows better by then.
pub(crate) fn cursor_of(
    headers: &HeaderMap,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Option<Cursor>, Problem> {
    let header = headers.get("last-event-id").map(|v| v.to_str().unwrap_or("?").to_owned());
    let text = match header.filter(|text| !text.is_empty()) {
        Some(text) => text,
        None => {
            let Query(pairs) = query.map_err(|e| Error::invalid("last_event_id", e.body_text()))?;
            let given = pairs.into_iter().rfind(|(name, _)| name == "last_event_id").map(|(_, value)| value);
            match given.filter(|text| !text.is_empty()) {
                Some(text) => text,
                None => return Ok(None),
            }
        }
    };
    text.parse().map(Some).map_err(|()| {
        let message = format!("`last_event_id` must be an event id of this server, got {text:?}");
        Error::invalid("last_event_id", message).into()
    })
}

/// One to two seconds.
pub(crate) fn retry_ms() -> u64 {
    1000 + StreamId::random().0 as u64 % 1000
}
