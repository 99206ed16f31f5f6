//! The verbs of `/v1/responses`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::assembly::Assembly;
use super::context::prepare;
use super::described::Described;
use super::events::ResponseEvents;
use super::input;
use super::reading;
use super::request::{self, Asked, CreateFields};
use crate::api::answer::AnswerBlocks;
use crate::api::caller::Caller;
use crate::api::disconnect::{self, LINGER_DEFAULT};
use crate::api::numbers::Whole;
use crate::api::opening::Opening;
use crate::api::problem::Problem;
use crate::api::query::{self, Pairs, broken, pairs, value};
use crate::api::words::Words;
use crate::api::{App, answer, body, event_body, fold, head, tool_fields, with_stream_id};
use crate::error::Error;
use crate::metrics::RejectLabel;
use crate::protocol::{Field, GenerateRequest, OnDisconnect, Prompt, Tenant};
use crate::service::Started;
use crate::stream::{StreamLog, StreamReader};

/// Items in one answer: the most, and if nobody says.
const ITEMS_MAX: usize = 100;
const ITEMS_DEFAULT: usize = 20;

/// `POST /v1/responses`.
///
/// # Errors
/// Any of the body's, the fields' and the service's; 404 for an earlier response that is not kept.
pub(crate) async fn create(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let tenant = owner.tenant;
    let Opening { policy: header_policy, queue_timeout_ms, body } = Opening::read(request, &app, tenant).await?;
    let ((fields, mut asked, mut own), held) = body.parse(&app, tenant, read).await?;
    let context = prepare(&app, tenant, &fields, &mut own, asked.echo_bytes, held.num_bytes()).await?;
    let on_disconnect = policy(&fields, header_policy)?;
    let generate = GenerateRequest {
        model: fields.model.clone(),
        sampling: asked.sampling.clone(),
        stop: std::mem::take(&mut asked.stop),
        on_disconnect,
        priority: fields.priority.map(Whole::to_i32),
        queue_timeout_ms,
        tools: std::mem::take(&mut asked.tools),
        tool_choice: std::mem::take(&mut asked.tool_choice),
        parallel_tool_calls: fields.parallel_tool_calls.unwrap_or(true),
        constraint: asked.constraint.take(),
        constraint_param: "text.format",
        template_kwargs: std::mem::take(&mut asked.template_kwargs),
        ending: context.ending,
        ..GenerateRequest::new(owner, Prompt::Chat(context.messages))
    };
    let paths = std::mem::take(&mut asked.paths);
    let started = app.service.start(generate).await.map_err(|e| spelled(&e, &paths))?;
    let ignored = std::mem::take(&mut asked.ignored);
    let reader = started.log.reader(0);
    drop(held);
    let described = describe(&started, &fields, asked, context.items, context.num_bytes);
    if fields.store != Some(false)
        && let Err(e) = app.responses.insert(tenant, described.clone(), app.service.table())
    {
        // Nobody could ever ask for it, so it must not run either.
        app.service.cancel(started.log.id(), tenant).await?;
        app.service.metrics().reject(&RejectLabel::RESPONSES_FULL);
        app.service.tell_rejected(&e);
        return Err(e.into());
    }
    let response = answer(&app, tenant, &started, described, reader, fields.stream == Some(true)).await?;
    Ok(ignored.tell(response))
}

/// What the service finds wrong, in this dialect's words; `paths` are those of the tools.
fn spelled(e: &Error, paths: &[String]) -> Problem {
    let tool = |index| tool_fields::path(paths, index);
    let name = |field: Field| match field {
        // Items become messages in a way of their own, so an index would be another's.
        Field::Messages | Field::Message(..) | Field::Prompt | Field::Tokens(_) => "input".to_owned(),
        Field::MaxTokens => "max_output_tokens".to_owned(),
        Field::ToolName(index) => format!("{}.name", tool(index)),
        Field::ToolFormat(index) => format!("{}.format", tool(index)),
        Field::ToolParameters(index) => format!("{}.parameters", tool(index)),
        Field::Stop(_) | Field::Tools | Field::ToolChoice => field.to_string(),
    };
    Problem::spelled(e, Words { name: &name, ..Words::CHAT })
}

/// `POST /v1/responses/input_tokens`: how many tokens a request's prompt would have. Takes the same body.
///
/// # Errors
/// Any of the body's and the fields', and those of templating.
pub(crate) async fn input_tokens(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let tenant = owner.tenant;
    let body = body::read(request, &app, tenant).await?;
    let ((fields, asked, mut own), held) = body.parse(&app, tenant, read).await?;
    let context = prepare(&app, tenant, &fields, &mut own, asked.echo_bytes, held.num_bytes()).await?;
    let generate = GenerateRequest {
        model: fields.model,
        tools: asked.tools,
        tool_choice: asked.tool_choice,
        template_kwargs: asked.template_kwargs,
        ending: context.ending,
        ..GenerateRequest::new(owner, Prompt::Chat(context.messages))
    };
    let tokens = app.service.prompt_tokens(generate).await.map_err(|e| spelled(&e, &asked.paths))?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens.len()})).into_response())
}

/// `GET /v1/responses/{id}`: as it stands, or with `stream=true` its events after number `starting_after`.
///
/// # Errors
/// 404, and 400 for a query that breaks a rule.
pub(crate) async fn get(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    query: Pairs,
) -> Result<Response, Problem> {
    let (described, log) = find(&app, id, owner.tenant)?;
    let pairs = pairs(query)?;
    let is_stream = match value(&pairs, "stream") {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(broken("stream", "true or false", other)),
    };
    let from = match value(&pairs, "starting_after") {
        None => 0,
        Some(_) if !is_stream => {
            let message = "`starting_after` must come with `stream=true`, got it without";
            return Err(Error::invalid("starting_after", message).into());
        }
        Some(text) => match text.parse::<u64>() {
            Ok(number) => number.saturating_add(1),
            Err(_) => return Err(broken("starting_after", "a sequence number", text)),
        },
    };
    if is_stream {
        return Ok(stream(&app, described, &log, log.reader(0), from));
    }
    snapshot(&app, owner.tenant, &described, &log).await
}

/// `POST /v1/responses/{id}/cancel`: ends it and shows it; one that has ended stays as it is.
///
/// # Errors
/// 404, and 400 for one that is not a background response.
pub(crate) async fn cancel(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let (described, log) = find(&app, id, owner.tenant)?;
    if !described.is_background {
        let message = "only a response with `background: true` can be cancelled; close the connection of another";
        return Err(Problem::http(StatusCode::BAD_REQUEST, None, message));
    }
    app.service.cancel(log.id(), owner.tenant).await?;
    // The worker writes the end, with what was spent until then.
    log.finished().await;
    snapshot(&app, owner.tenant, &described, &log).await
}

/// `DELETE /v1/responses/{id}`: ends it if it runs, and forgets it with its stream.
///
/// # Errors
/// 404.
pub(crate) async fn delete(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let (described, log) = find(&app, id, owner.tenant)?;
    // First: should this have to be asked again, it must still be there.
    app.service.cancel(log.id(), owner.tenant).await?;
    app.responses.remove(log.id());
    log.finished().await;
    app.service.table().remove(log.id());
    let deleted = json!({"id": described.response_id(), "object": "response", "deleted": true});
    Ok(Json(deleted).into_response())
}

/// `GET /v1/responses/{id}/input_items`: everything that it answers, the newest first unless asked otherwise.
///
/// # Errors
/// 404, and 400 for a query that breaks a rule.
pub(crate) async fn input_items(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    query: Pairs,
) -> Result<Response, Problem> {
    let (described, _) = find(&app, id, owner.tenant)?;
    let pairs = pairs(query)?;
    let limit = query::limit(&pairs, ITEMS_DEFAULT, ITEMS_MAX)?;
    let is_rising = match value(&pairs, "order") {
        Some("asc") => true,
        None | Some("desc") => false,
        Some(other) => return Err(broken("order", "asc or desc", other)),
    };
    let after = value(&pairs, "after").map(str::to_owned);
    let num_bytes = described.num_bytes;
    let make = move || page(&described.items, is_rising, after.as_deref(), limit);
    answer::json(&app, owner.tenant, num_bytes, make).await
}

fn page(items: &[Value], is_rising: bool, after: Option<&str>, limit: usize) -> Result<Value, Problem> {
    let mut items: Vec<&Value> = items.iter().collect();
    if !is_rising {
        items.reverse();
    }
    let from = match after {
        None => 0,
        Some(id) => match items.iter().position(|item| item["id"] == id) {
            Some(at) => at + 1,
            None => return Err(broken("after", "the id of an input item of this response", id)),
        },
    };
    let rest = &items[from..];
    let data = &rest[..rest.len().min(limit)];
    let id = |item: Option<&&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    Ok(json!({
        "object": "list", "data": data, "first_id": id(data.first()), "last_id": id(data.last()),
        "has_more": rest.len() > limit,
    }))
}

/// What a body asks for, with its own items, if it has any.
fn read(json: &[u8]) -> Result<(CreateFields, Asked, Option<Vec<Value>>), Problem> {
    let (mut fields, asked) = request::read(json)?;
    let own = fields.input.take().map(input::items).transpose()?;
    if own.is_none() && fields.previous_response_id.is_none() {
        return Err(Error::invalid("input", "`input` must be given").into());
    }
    Ok((fields, asked, own))
}

/// A background response runs to its end; one that is kept waits a while for its client to come back.
fn policy(fields: &CreateFields, header: Option<OnDisconnect>) -> Result<OnDisconnect, Problem> {
    match (fields.background.unwrap_or(false), header) {
        (true, None | Some(OnDisconnect::Detach)) => Ok(OnDisconnect::Detach),
        (true, Some(other)) => {
            let rule = format!("`{}` must be detach with `background: true`", disconnect::HEADER);
            let message = format!("{rule}, got {}", disconnect::to_json(other));
            Err(Error::invalid(disconnect::HEADER, message).into())
        }
        (false, Some(policy)) => Ok(policy),
        (false, None) if fields.store == Some(false) => Ok(OnDisconnect::Cancel),
        (false, None) => Ok(LINGER_DEFAULT),
    }
}

fn describe(
    started: &Started,
    fields: &CreateFields,
    asked: Asked,
    mut items: Vec<Value>,
    num_bytes: usize,
) -> Arc<Described> {
    let id = started.log.id();
    for (i, item) in items.iter_mut().enumerate().filter(|(_, item)| item.get("id").is_none()) {
        let prefix = match item["type"].as_str() {
            Some("function_call") => "fc",
            Some("function_call_output") => "fco",
            Some("custom_tool_call") => "ctc",
            Some("custom_tool_call_output") => "ctco",
            Some("reasoning") => "rs",
            _ => "msg",
        };
        item["id"] = json!(format!("{prefix}_{id}_in{i}"));
    }
    Arc::new(Described {
        id,
        created_s: started.log.created_ms() / 1000,
        model: started.served.name().to_owned(),
        format: started.format.clone(),
        names: asked.names,
        with_logprobs: asked.sampling.top_logprobs.is_some(),
        is_background: fields.background.unwrap_or(false),
        echo: asked.echo,
        items,
        num_bytes,
    })
}

async fn answer(
    app: &App,
    tenant: Tenant,
    started: &Started,
    described: Arc<Described>,
    reader: StreamReader,
    is_stream: bool,
) -> Result<Response, Problem> {
    let log = &started.log;
    if described.is_background {
        // The stream's name must still mean something after a crash; the response's own does not (docs/api.md).
        log.accepted().await;
    }
    if is_stream {
        // As in Chat Completions: what fails before the first token has a status, unless it runs in the background.
        if !described.is_background {
            head::wait(app, [log]).await?;
        }
        return Ok(stream(app, described, log, reader, 0));
    }
    if described.is_background {
        return snapshot(app, tenant, &described, log).await;
    }
    // If the client goes away meanwhile, the server drops this future, and with it the reader.
    let tokenizer = app.service.served_of(log).tokenizer().clone();
    let assembly = to_end(reader, Assembly::new(described, tokenizer, u64::MAX)).await;
    if let Some(info) = assembly.failure() {
        return Err(Problem::from(info));
    }
    if let Some(info) = fold::suspension(log).filter(|_| !assembly.is_terminal()) {
        return Err(Problem::from(&info));
    }
    let blocks = app.service.sized(tenant, assembly.num_bytes(), move || AnswerBlocks::of(&assembly.object())).await?;
    Ok(with_stream_id(answer::respond(app, tenant, blocks)?, log.id()))
}

/// Reads to the end, or to the error that a reader gets which was overtaken: nothing follows that, however long the
/// generation goes on.
async fn to_end(mut reader: StreamReader, mut assembly: Assembly) -> Assembly {
    while assembly.failure().is_none() && reader.ready().await {
        if let Some(entry) = reader.try_next_entry() {
            assembly.take(&entry);
        }
    }
    assembly
}

fn stream(app: &App, described: Arc<Described>, log: &StreamLog, reader: StreamReader, from: u64) -> Response {
    let assembly = Assembly::new(described, app.service.served_of(log).tokenizer().clone(), from);
    let readers = &app.service.metrics().readers;
    let response = event_body::respond(reader, ResponseEvents { assembly, from }, app.config.heartbeat, readers);
    with_stream_id(response, log.id())
}

/// The response as far as its log goes by now.
async fn snapshot(
    app: &App,
    tenant: Tenant,
    described: &Arc<Described>,
    log: &Arc<StreamLog>,
) -> Result<Response, Problem> {
    let write = |assembly: &Assembly| AnswerBlocks::of(&assembly.object());
    let blocks = reading::look(app, tenant, described, log, write).await?;
    Ok(with_stream_id(answer::respond(app, tenant, blocks)?, log.id()))
}

fn find(
    app: &App,
    id: Result<Path<String>, PathRejection>,
    tenant: Tenant,
) -> Result<(Arc<Described>, Arc<StreamLog>), Problem> {
    let text = id.map(|Path(text)| text).unwrap_or_default();
    Ok(app.responses.get(&text, tenant, app.service.table())?)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::error::ErrorKind;
    use crate::protocol::{Event, StreamId, TokenEvent};
    use crate::text::{AnswerFormat, Tokenizer};

    /// It had its error, and waited with it for the end of a generation that may take minutes more.
    #[test]
    fn an_overtaken_reader_is_answered_while_the_generation_goes_on() {
        let log = StreamLog::new(StreamId(1), Tenant(0), OnDisconnect::Detach);
        let reader = log.reader(0);
        // Of any size, only the last event stays.
        log.set_num_bytes_max(1);
        for text in ["a", "b", "c"] {
            log.append(Event::Token(TokenEvent { text: text.to_owned(), ..TokenEvent::default() }));
        }
        let described = Described {
            id: log.id(),
            created_s: 0,
            model: "stub".to_owned(),
            format: AnswerFormat::default(),
            names: super::super::tools::ToolNames::default(),
            with_logprobs: false,
            is_background: false,
            echo: serde_json::Map::new(),
            items: Vec::new(),
            num_bytes: 0,
        };
        let assembly = Assembly::new(Arc::new(described), Arc::new(Tokenizer::byte_level()), u64::MAX);
        let assembly = to_end(reader, assembly).now_or_never().expect("there is nothing to wait for");
        assert_eq!(assembly.failure().map(|info| info.kind), Some(ErrorKind::Expired));
        assert!(!log.is_finished());
    }
}
