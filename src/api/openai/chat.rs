//! `POST /v1/chat/completions`, streamed or whole.
//!
//! A stream answers with its first token, so that what fails before has a real status, or after `head_wait` without
//! one, so that heartbeats can flow; what fails after that is an error object in the stream. A call without
//! `stream` is the same stream folded to its end, so it can always answer with a status.

use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::chat_chunks::ChatChunks;
use super::chat_types::{ChatRequest, Choice, Completion, Logprobs, Message};
use crate::api::auth::Caller;
use crate::api::problem::Problem;
use crate::api::{App, body, disconnect, event_body, fields, fold, queue_timeout, structured, with_stream_id};
use crate::error::{Error, ErrorKind};
use crate::protocol::{ErrorInfo, Event, GenerateRequest, OnDisconnect, Prompt};
use crate::service::Started;
use crate::stream::StreamReader;

/// A completion is named as its stream, behind this.
const ID_PREFIX: &str = "chatcmpl-";

/// Handles one request.
///
/// # Errors
/// Any of the body's, the fields' and the service's.
pub async fn create(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let policy = disconnect::from_header(request.headers())?;
    let queue_timeout_ms = queue_timeout::from_header(request.headers())?;
    let json = body::read(request, &app.config).await?;
    let (sampling, stop) = fields::sampling(&json)?;
    let structured = structured::constraint(&json)?;
    let chat: ChatRequest = body::parse(&json)?;
    drop(json);
    let stream = chat.stream.unwrap_or(false);
    if chat.stream_options.is_some() && !stream {
        let message = "`stream_options` must come with `stream: true`, got it without";
        return Err(Error::invalid("stream_options", message).into());
    }
    let include_usage = chat.stream_options.and_then(|o| o.include_usage).unwrap_or(false);
    let messages = chat.messages.ok_or_else(|| Error::invalid("messages", "`messages` must be given"))?;
    let with_logprobs = sampling.top_logprobs.is_some();
    let generate = GenerateRequest {
        model: chat.model,
        sampling,
        stop,
        on_disconnect: policy.unwrap_or(OnDisconnect::Cancel),
        priority: chat.priority,
        queue_timeout_ms,
        constraint: structured.constraint,
        constraint_param: structured.param,
        ..GenerateRequest::new(owner, Prompt::Chat(fields::messages(messages)?))
    };
    let started = app.service.start(generate).await?;
    if stream {
        let reader = started.log.reader(0);
        // Its own reader goes on while this one looks ahead: the last to leave would cancel the stream.
        if let Some(info) = early_error(started.log.reader(0), app.config.head_wait).await {
            return Err(Problem::from(&info));
        }
        Ok(chunks(&app, &started, reader, include_usage, with_logprobs))
    } else {
        whole(&app, &started, with_logprobs).await
    }
}

/// `POST /v1/chat/completions/{id}/cancel`: cancels at once; 204 also when it has ended. Takes a completion's id and
/// the bare id of its stream.
///
/// # Errors
/// 404, 410.
pub async fn cancel(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let text = id.map(|Path(text)| text).unwrap_or_default();
    let bare = text.strip_prefix(ID_PREFIX).unwrap_or(&text);
    let id = bare.parse().map_err(|()| Error::new(ErrorKind::NotFound, format!("no completion {text:?}")))?;
    app.service.table().cancel(id, owner.tenant)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The error of a generation that fails before its first token, and within `patience`.
async fn early_error(mut reader: StreamReader, patience: Duration) -> Option<ErrorInfo> {
    let first = async {
        loop {
            match reader.next().await? {
                (_, Event::Queued { .. } | Event::Started { .. }) => {}
                (_, Event::Error(info)) => return Some(info),
                (_, Event::Token(_) | Event::Done { .. }) => return None,
            }
        }
    };
    tokio::time::timeout(patience, first).await.unwrap_or(None)
}

fn chunks(app: &App, started: &Started, reader: StreamReader, include_usage: bool, with_logprobs: bool) -> Response {
    let dialect = ChatChunks {
        id: completion_id(started),
        created: started.log.created_ms() / 1000,
        model: app.service.model_name().to_owned(),
        include_usage,
        with_logprobs,
        tokenizer: app.service.tokenizer().clone(),
    };
    let response = event_body::respond(reader, dialect, app.config.heartbeat, &app.service.metrics().readers);
    with_stream_id(response, started.log.id())
}

/// Waits for the end. If the client goes away meanwhile, the server drops this future, and with it the reader.
async fn whole(app: &App, started: &Started, with_logprobs: bool) -> Result<Response, Problem> {
    let folded = fold::to_end(started.log.reader(0)).await;
    let (finish_reason, usage) = folded.end.map_err(|info| Problem::from(&info))?;
    let completion = Completion {
        id: completion_id(started),
        object: "chat.completion",
        created: started.log.created_ms() / 1000,
        model: app.service.model_name(),
        choices: [Choice {
            index: 0,
            message: Message { role: "assistant", content: folded.token.text, refusal: None },
            logprobs: with_logprobs.then(|| Logprobs::new(&folded.token.logprobs, app.service.tokenizer())),
            finish_reason: finish_reason.as_str(),
        }],
        usage: usage.into(),
    };
    Ok(with_stream_id(Json(completion).into_response(), started.log.id()))
}

fn completion_id(started: &Started) -> String {
    format!("{ID_PREFIX}{}", started.log.id())
}
