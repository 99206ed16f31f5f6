//! `POST /v1/messages`, streamed or whole, and `POST /v1/messages/count_tokens`.
//!
//! As with Chat Completions, a stream answers with its first token or after `head_wait`, so that what fails before has
//! a real status, and a call without `stream` is the same stream folded to its end.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;

use super::events::MessageEvents;
use super::message::{MessageObject, blocks, message_id, stop_reason};
use super::request::{AskedMessage, MessagesRequest};
use crate::api::caller::Caller;
use crate::api::opening::Opening;
use crate::api::problem::Problem;
use crate::api::words::Words;
use crate::api::{App, answer, body, event_body, fold, head, tool_fields, with_stream_id};
use crate::error::Error;
use crate::protocol::{Field, ListIndex, Tenant};
use crate::service::Started;
use crate::text::AnswerParser;

/// What the service finds wrong, in this dialect's words; `paths` are those of the tools, of which some may have been left out.
fn spelled(e: &Error, paths: &[String]) -> Problem {
    let name = |field: Field| match field {
        // A turn of this dialect can be several messages to a template, so an index would be another's.
        Field::Messages | Field::Message(..) | Field::Prompt | Field::Tokens(_) => "messages".to_owned(),
        Field::Stop(index) => format!("stop_sequences{}", ListIndex(index)),
        Field::ToolName(index) => format!("{}.name", tool_fields::path(paths, index)),
        Field::ToolParameters(index) | Field::ToolFormat(index) => {
            format!("{}.input_schema", tool_fields::path(paths, index))
        }
        Field::MaxTokens | Field::Tools | Field::ToolChoice => field.to_string(),
    };
    // Claude Code reads the numbers out of this sentence and compacts the conversation.
    let prompt_too_long =
        |num_tokens, num_tokens_max| format!("prompt is too long: {num_tokens} tokens > {num_tokens_max} maximum");
    Problem::spelled(e, Words { name: &name, prompt_too_long })
}

/// Handles one request.
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
    let read = move |json: &[u8]| {
        let message = MessagesRequest::read(json)?;
        message.check_generation()?;
        let is_stream = message.stream.unwrap_or(false);
        Ok((message.into_generate(owner)?, is_stream))
    };
    let ((AskedMessage { mut generate, ignored, paths }, is_stream), held) = body.parse(&app, tenant, read).await?;
    generate.queue_timeout_ms = queue_timeout_ms;
    if let Some(policy) = policy {
        generate.on_disconnect = policy;
    }
    let started = app.service.start(generate).await.map_err(|e| spelled(&e, &paths))?;
    drop(held);
    if !is_stream {
        return Ok(ignored.tell(whole(&app, tenant, started).await?));
    }
    let reader = started.log.reader(0);
    head::wait(&app, [&started.log]).await?;
    let parser = AnswerParser::new(&started.format);
    let dialect = MessageEvents::new(message_id(&started.log), started.served.name(), started.prompt_tokens, parser);
    let response = event_body::respond(reader, dialect, app.config.heartbeat, &app.service.metrics().readers);
    Ok(ignored.tell(with_stream_id(response, started.log.id())))
}

/// How many tokens a request's prompt would have. Takes the same body; `max_tokens` is not needed.
///
/// # Errors
/// Any of the body's and the fields', and those of templating.
pub(crate) async fn count_tokens(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let tenant = owner.tenant;
    let body = body::read(request, &app, tenant).await?;
    let read = move |json: &[u8]| MessagesRequest::read(json)?.into_generate(owner);
    let (AskedMessage { generate, paths, .. }, _held) = body.parse(&app, tenant, read).await?;
    let tokens = app.service.prompt_tokens(generate).await.map_err(|e| spelled(&e, &paths))?;
    Ok(Json(Count { input_tokens: tokens.len() }).into_response())
}

#[derive(Debug, Serialize)]
struct Count {
    input_tokens: usize,
}

/// Waits for the end. If the client goes away meanwhile, the server drops this future, and with it the reader.
async fn whole(app: &App, tenant: Tenant, started: Started) -> Result<Response, Problem> {
    let stream_id = started.log.id();
    let folded = fold::to_end(started.log.reader(0)).await;
    let (num_bytes, model) = (folded.num_json_bytes(), started.served.name().to_owned());
    let make = move || {
        let (finish_reason, usage) = folded.end.map_err(|info| Problem::from(&info))?;
        let id = message_id(&started.log);
        let (content, num_calls) = blocks(&folded.token.text, AnswerParser::new(&started.format), &id);
        let stop_reason = stop_reason(finish_reason, num_calls, folded.stop.as_deref());
        Ok(MessageObject {
            content,
            stop_reason: Some(stop_reason),
            stop_sequence: folded.stop.filter(|_| stop_reason == "stop_sequence"),
            ..MessageObject::new(id, model, usage)
        })
    };
    Ok(with_stream_id(answer::json(app, tenant, num_bytes, make).await?, stream_id))
}
