//! The verbs of `/v1/responses`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::assembly::Assembly;
use super::events::ResponseEvents;
use super::input;
use super::request::{self, Asked, CreateFields};
use super::store::Described;
use crate::api::auth::Caller;
use crate::api::disconnect::{self, LINGER_DEFAULT};
use crate::api::opening::Opening;
use crate::api::problem::Problem;
use crate::api::query::{self, Pairs, broken, pairs, value};
use crate::api::{App, event_body, head, with_stream_id};
use crate::error::Error;
use crate::metrics::RejectLabel;
use crate::protocol::{ChatMessage, GenerateRequest, OnDisconnect, Prompt, Tenant};
use crate::service::Started;
use crate::stream::{StreamLog, StreamReader};

/// Items in one answer: the most, and if nobody says.
const ITEMS_MAX: usize = 100;
const ITEMS_DEFAULT: usize = 20;

/// `POST /v1/responses`.
///
/// # Errors
/// Any of the body's, the fields' and the service's; 404 for an earlier response that is not kept.
pub async fn create(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let Opening { policy: header_policy, queue_timeout_ms, json } = Opening::read(request, &app).await?;
    let (mut fields, mut asked) = request::read(&json)?;
    drop(json);
    let items = context(&app, &mut fields, owner.tenant)?;
    let on_disconnect = policy(&fields, header_policy)?;
    let instructions = fields.instructions.iter().map(|text| ChatMessage::new("system", text.as_str()));
    let messages = instructions.chain(input::messages(&items)).collect();
    let tenant = owner.tenant;
    let generate = GenerateRequest {
        model: fields.model.clone(),
        sampling: asked.sampling.clone(),
        stop: std::mem::take(&mut asked.stop),
        on_disconnect,
        priority: fields.priority,
        queue_timeout_ms,
        tools: std::mem::take(&mut asked.tools),
        tool_choice: std::mem::take(&mut asked.tool_choice),
        parallel_tool_calls: fields.parallel_tool_calls.unwrap_or(true),
        constraint: asked.constraint.take(),
        constraint_param: "text.format",
        ..GenerateRequest::new(owner, Prompt::Chat(messages))
    };
    let started = app.service.start(generate).await?;
    let reader = started.log.reader(0);
    let described = describe(&app, &started, &fields, asked, items);
    if fields.store != Some(false)
        && let Err(e) = app.responses.insert(tenant, described.clone(), app.service.table())
    {
        // Nobody could ever ask for it, so it must not run either.
        app.service.cancel(started.log.id(), tenant).await?;
        app.service.metrics().reject(&RejectLabel::RESPONSES_FULL);
        app.service.tell_rejected(&e);
        return Err(e.into());
    }
    answer(&app, &started, described, reader, fields.stream == Some(true)).await
}

/// `GET /v1/responses/{id}`: as it stands, or with `stream=true` its events after number `starting_after`.
///
/// # Errors
/// 404, and 400 for a query that breaks a rule.
pub async fn get(
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
    let object = snapshot(&app, described, &log)?.object();
    Ok(with_stream_id(Json(object).into_response(), log.id()))
}

/// `POST /v1/responses/{id}/cancel`: ends it and shows it; one that has ended stays as it is.
///
/// # Errors
/// 404, and 400 for one that is not a background response.
pub async fn cancel(
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
    let object = snapshot(&app, described, &log)?.object();
    Ok(with_stream_id(Json(object).into_response(), log.id()))
}

/// `DELETE /v1/responses/{id}`: ends it if it runs, and forgets it with its stream.
///
/// # Errors
/// 404.
pub async fn delete(
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
pub async fn input_items(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    query: Pairs,
) -> Result<Response, Problem> {
    let (described, _) = find(&app, id, owner.tenant)?;
    let pairs = pairs(query)?;
    let limit = query::limit(&pairs, ITEMS_DEFAULT, ITEMS_MAX)?;
    let mut items: Vec<&Value> = described.items.iter().collect();
    match value(&pairs, "order") {
        Some("asc") => {}
        None | Some("desc") => items.reverse(),
        Some(other) => return Err(broken("order", "asc or desc", other)),
    }
    let from = match value(&pairs, "after") {
        None => 0,
        Some(id) => match items.iter().position(|item| item["id"] == id) {
            Some(at) => at + 1,
            None => return Err(broken("after", "the id of an input item of this response", id)),
        },
    };
    let rest = &items[from..];
    let data = &rest[..rest.len().min(limit)];
    let id = |item: Option<&&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    let list = json!({
        "object": "list", "data": data, "first_id": id(data.first()), "last_id": id(data.last()),
        "has_more": rest.len() > limit,
    });
    Ok(Json(list).into_response())
}

/// All items that the model is to answer: those of the response before, its output, and the request's own.
fn context(app: &App, fields: &mut CreateFields, tenant: Tenant) -> Result<Vec<Value>, Problem> {
    let own = match fields.input.take() {
        Some(input) => input::items(input)?,
        None if fields.previous_response_id.is_some() => Vec::new(),
        None => return Err(Error::invalid("input", "`input` must be given").into()),
    };
    let mut items = Vec::new();
    if let Some(previous) = &fields.previous_response_id {
        const PARAM: &str = "previous_response_id";
        let found = app.responses.get(previous, tenant, app.service.table());
        let (described, log) = found.map_err(|e| e.with_param(PARAM))?;
        items.clone_from(&described.items);
        let assembly = snapshot(app, described, &log)?;
        if !assembly.is_terminal() {
            let message = format!("`{PARAM}` must name a response that has ended, got {previous:?}, which runs");
            return Err(Error::invalid(PARAM, message).into());
        }
        items.extend(assembly.into_output());
    }
    items.extend(own);
    if items.is_empty() {
        return Err(Error::invalid("input", "`input` must have at least one item, got none").into());
    }
    Ok(items)
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
    app: &App,
    started: &Started,
    fields: &CreateFields,
    asked: Asked,
    mut items: Vec<Value>,
) -> Arc<Described> {
    let id = started.log.id();
    for (i, item) in items.iter_mut().enumerate().filter(|(_, item)| item.get("id").is_none()) {
        let prefix = match item["type"].as_str() {
            Some("function_call") => "fc",
            Some("function_call_output") => "fco",
            Some("reasoning") => "rs",
            _ => "msg",
        };
        item["id"] = json!(format!("{prefix}_{id}_in{i}"));
    }
    Arc::new(Described {
        id,
        created_s: started.log.created_ms() / 1000,
        model: app.service.model_name().to_owned(),
        format: started.format.clone(),
        with_logprobs: asked.sampling.top_logprobs.is_some(),
        is_background: fields.background.unwrap_or(false),
        echo: asked.echo,
        items,
    })
}

async fn answer(
    app: &App,
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
        let object = snapshot(app, described, log)?.object();
        return Ok(with_stream_id(Json(object).into_response(), log.id()));
    }
    // If the client goes away meanwhile, the server drops this future, and with it the reader.
    let assembly = to_end(reader, Assembly::new(described, app.service.tokenizer().clone())).await;
    match assembly.failure() {
        Some(info) => Err(Problem::from(info)),
        None => Ok(with_stream_id(Json(assembly.object()).into_response(), log.id())),
    }
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
    let assembly = Assembly::new(described, app.service.tokenizer().clone());
    let readers = &app.service.metrics().readers;
    let response = event_body::respond(reader, ResponseEvents { assembly, from }, app.config.heartbeat, readers);
    with_stream_id(response, log.id())
}

/// The response as far as its log goes by now.
fn snapshot(app: &App, described: Arc<Described>, log: &Arc<StreamLog>) -> Result<Assembly, Problem> {
    if log.first_seq() > 0 {
        let message = "the beginning of this response's log is no longer kept; its stream was longer than one may be";
        return Err(Problem::http(StatusCode::GONE, Some("history_trimmed"), message));
    }
    let mut assembly = Assembly::new(described, app.service.tokenizer().clone());
    let mut reader = log.reader(0);
    while let Some(entry) = reader.try_next_entry() {
        assembly.take(&entry);
    }
    Ok(assembly)
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
            with_logprobs: false,
            is_background: false,
            echo: serde_json::Map::new(),
            items: Vec::new(),
        };
        let assembly = Assembly::new(Arc::new(described), Arc::new(Tokenizer::byte_level()));
        let assembly = to_end(reader, assembly).now_or_never().expect("there is nothing to wait for");
        assert_eq!(assembly.failure().map(|info| info.kind), Some(ErrorKind::Expired));
        assert!(!log.is_finished());
    }
}
