//! `POST /v1/chat/completions`, streamed or whole.
//!
//! A stream answers with its first token, so that what fails before has a real status, or after `head_wait` without
//! one, so that heartbeats can flow; what fails after that is an error object in the stream. A call without
//! `stream` is the same stream folded to its end, so it can always answer with a status.

use std::sync::{Arc, Mutex};

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::future::join_all;

use super::chat_answer::Answer;
use super::chat_chunks::ChatChunks;
use super::chat_types::{ChatRequest, Choice, Completion, Logprobs};
use super::usage_sum::{UsageShown, UsageSum};
use crate::api::caller::Caller;
use crate::api::fold::Folded;
use crate::api::ignored::Ignored;
use crate::api::numbers::Whole;
use crate::api::opening::Opening;
use crate::api::problem::Problem;
use crate::api::tool_fields::ToolForm;
use crate::api::words::Words;
use crate::api::{
    App, answer, body, event_body, fields, fold, head, structured, template, tool_fields, with_stream_id,
};
use crate::error::{Error, ErrorKind};
use crate::protocol::{Field, GenerateRequest, OnDisconnect, Owner, Prompt, Tenant};
use crate::service::Started;
use crate::stream::{StreamLog, StreamReader};

/// A completion is named as its stream, behind this.
const ID_PREFIX: &str = "chatcmpl-";
/// What this dialect implements of the fields that others refuse.
const KNOWN: &[&str] = &["chat_template_kwargs", "continue_final_message", "enable_thinking", "tool_choice", "tools"];

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
    let (asked, held) = body.parse(&app, tenant, move |json| read(json, owner)).await?;
    let Asked { generate, num_choices, stream, usage, ignored, custom, paths } = asked;
    let with_logprobs = generate.sampling.top_logprobs.is_some();
    let on_disconnect = policy.unwrap_or(OnDisconnect::Cancel);
    let generate = GenerateRequest { on_disconnect, queue_timeout_ms, ..generate };
    let started = app.service.start_choices(generate, num_choices).await.map_err(|e| spelled(&e, &paths))?;
    drop(held);
    let readers: Vec<StreamReader> = started.iter().map(|choice| choice.log.reader(0)).collect();
    let response = if stream {
        head::wait(&app, started.iter().map(|choice| &choice.log)).await?;
        chunks(&app, &started, readers, usage, with_logprobs, &custom)
    } else {
        whole(&app, tenant, started, readers, with_logprobs, custom).await?
    };
    Ok(ignored.tell(response))
}

/// What the service finds wrong; `paths` are those of the tools, of which some may have been left out.
fn spelled(e: &Error, paths: &[String]) -> Problem {
    let name = |field: Field| match field {
        Field::ToolName(index) => format!("{}.function.name", tool_fields::path(paths, index)),
        Field::ToolParameters(index) => format!("{}.function.parameters", tool_fields::path(paths, index)),
        Field::ToolFormat(index) => format!("{}.custom.format", tool_fields::path(paths, index)),
        field => field.to_string(),
    };
    Problem::spelled(e, Words { name: &name, ..Words::CHAT })
}

/// What a body asks for.
struct Asked {
    generate: GenerateRequest,
    num_choices: usize,
    stream: bool,
    usage: UsageShown,
    ignored: Ignored,
    /// Names of the tools that take free text.
    custom: Vec<String>,
    /// Where each tool stands in the request.
    paths: Vec<String>,
}

fn read(json: &[u8], owner: Arc<Owner>) -> Result<Asked, Problem> {
    let fields::SharedFields { sampling, stop, num_choices } = fields::chat(json, KNOWN)?;
    let structured = structured::constraint(json)?;
    let mut chat: ChatRequest = body::parse(json)?;
    let stream = chat.stream.unwrap_or(false);
    let usage = UsageShown::asked(chat.stream_options.take(), stream)?;
    let mut offered = tool_fields::tools(chat.tools.take().unwrap_or_default())?;
    let choice = chat
        .tool_choice
        .take()
        .map(|value| tool_fields::choice(&value, ToolForm::Nested))
        .transpose()?
        .unwrap_or_default();
    let tool_choice = tool_fields::choose(choice, &mut offered)?;
    let mut ignored = Ignored::default();
    ignored.extend(offered.left_out);
    ignored.hint("verbosity", chat.verbosity.as_ref());
    ignored.hint("prediction", chat.prediction.as_ref());
    let template_kwargs = template::kwargs(template::Thinking {
        kwargs: chat.chat_template_kwargs.unwrap_or_default(),
        is_enabled: chat.enable_thinking,
        effort: chat.reasoning_effort,
    });
    let messages = chat.messages.ok_or_else(|| Error::invalid("messages", "`messages` must be given"))?.0;
    let ending = template::ending(
        chat.add_generation_prompt,
        chat.continue_final_message.or(fields::has_prefix(&messages).then_some(true)),
    );
    let generate = GenerateRequest {
        model: chat.model,
        sampling,
        stop,
        priority: chat.priority.map(Whole::to_i32),
        tools: offered.tools,
        tool_choice,
        parallel_tool_calls: chat.parallel_tool_calls.unwrap_or(true),
        template_kwargs,
        ending,
        constraint: structured.constraint,
        constraint_param: structured.param,
        ..GenerateRequest::new(owner, Prompt::Chat(fields::messages(messages)?))
    };
    let custom = generate.tools.iter().filter(|tool| tool.function.free_text.is_some());
    let custom = custom.map(|tool| tool.function.name.clone()).collect();
    Ok(Asked { generate, num_choices, stream, usage, ignored, custom, paths: offered.paths })
}

/// `POST /v1/chat/completions/{id}/cancel`: cancels at once; 204 also when it has ended. Takes a completion's id and
/// the bare id of its stream.
///
/// # Errors
/// 404, 410; 503 where streams are kept and this could not be in time.
pub(crate) async fn cancel(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let text = id.map(|Path(text)| text).unwrap_or_default();
    let bare = [ID_PREFIX, super::completions::ID_PREFIX].into_iter().find_map(|prefix| text.strip_prefix(prefix));
    let bare = bare.unwrap_or(&text);
    let id = bare.parse().map_err(|()| Error::new(ErrorKind::NotFound, format!("no completion {text:?}")))?;
    app.service.cancel(id, owner.tenant).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An answer is named as the stream of its first choice.
fn first(started: &[Started]) -> &StreamLog {
    &started.first().expect("at least one choice was asked for").log
}

fn chunks(
    app: &App,
    started: &[Started],
    readers: Vec<StreamReader>,
    usage: UsageShown,
    with_logprobs: bool,
    custom: &[String],
) -> Response {
    let (log, sum) = (first(started), Arc::new(Mutex::new(UsageSum::of(started.len()))));
    let dialect = |index: usize, choice: &Started| ChatChunks {
        id: completion_id(log),
        index,
        stream: choice.log.id(),
        created: log.created_ms() / 1000,
        model: choice.served.name().to_owned(),
        include_usage: usage.at_end,
        running: usage.running(choice.prompt_tokens),
        with_logprobs,
        tokenizer: choice.served.tokenizer().clone(),
        answer: Answer::new(&choice.format, custom.to_vec()),
        sum: sum.clone(),
        waiting: Vec::new(),
    };
    let dialects = started.iter().enumerate().map(|(index, choice)| dialect(index, choice));
    let parts = readers.into_iter().zip(dialects).collect();
    let response = event_body::respond_many(parts, app.config.heartbeat, &app.service.metrics().readers);
    with_stream_id(response, log.id())
}

/// Waits for all ends. If the client goes away meanwhile, the server drops this future, and with it the readers.
async fn whole(
    app: &App,
    tenant: Tenant,
    started: Vec<Started>,
    readers: Vec<StreamReader>,
    with_logprobs: bool,
    custom: Vec<String>,
) -> Result<Response, Problem> {
    let id = first(&started).id();
    let all = join_all(readers.into_iter().map(fold::to_end)).await;
    let num_bytes = all.iter().map(Folded::num_json_bytes).sum();
    let make = move || completion(&started, all, with_logprobs, &custom);
    Ok(with_stream_id(answer::json(app, tenant, num_bytes, make).await?, id))
}

fn completion(
    started: &[Started],
    all: Vec<Folded>,
    with_logprobs: bool,
    custom: &[String],
) -> Result<Completion, Problem> {
    let (log, mut choices, mut sum) = (first(started), Vec::with_capacity(started.len()), UsageSum::default());
    let served = &started.first().expect("at least one choice was asked for").served;
    let tokenizer = served.tokenizer();
    for (index, (folded, choice)) in all.into_iter().zip(started).enumerate() {
        let (finish_reason, usage) = folded.end.map_err(|info| Problem::from(&info))?;
        let stop_reason = folded.stop;
        let mut answer = Answer::new(&choice.format, custom.to_vec());
        let message = answer.message(&folded.token, tokenizer, choice.log.id());
        let logprobs = with_logprobs.then(|| Logprobs::new(&folded.token.logprobs, tokenizer));
        let finish_reason = answer.finish_reason(finish_reason);
        choices.push(Choice { index, message, logprobs, finish_reason, stop_reason });
        sum.add(usage, answer.reasoning_tokens(), index == 0);
    }
    Ok(Completion {
        id: completion_id(log),
        object: "chat.completion",
        created: log.created_ms() / 1000,
        model: served.name().to_owned(),
        choices,
        usage: sum.object(),
    })
}

fn completion_id(log: &StreamLog) -> String {
    format!("{ID_PREFIX}{}", log.id())
}
