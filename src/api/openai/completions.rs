//! `POST /v1/completions`, streamed or whole: text after text, without a chat's template. The older of OpenAI's wires,
//! and the one that measures likelihoods (`echo` with `logprobs`).
//!
//! Every prompt and every choice of it is a stream of its own; the answer joins them, by `index`: prompt 0's choices
//! first. A call without `stream` folds the same streams to their ends.

use std::sync::{Arc, Mutex};

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::future::join_all;

use super::completion_chunks::{ChoicesShared, CompletionChunks, Echo};
use super::completion_types::{CompletionRequest, TextChoice, TextCompletion, TextLogprobs};
use super::usage_sum::{UsageShown, UsageSum};
use crate::api::caller::Caller;
use crate::api::fold::Folded;
use crate::api::numbers::Whole;
use crate::api::opening::Opening;
use crate::api::problem::Problem;
use crate::api::words::Words;
use crate::api::{App, answer, body, event_body, fields, fold, head, structured, with_stream_id};
use crate::error::Error;
use crate::protocol::{
    Field, GenerateRequest, OnDisconnect, Owner, Place, Prompt, SamplingParams, StopParams, Tenant, TokenId, Usage,
};
use crate::service::{Served, Started};
use crate::stream::{CancelCause, StreamReader};
use crate::text::Tokenizer;

/// A completion is named as its first stream, behind this.
pub(super) const ID_PREFIX: &str = "cmpl-";

/// Tokens of an answer whose request does not say: OpenAI's number for this wire.
const MAX_TOKENS_DEFAULT: usize = 16;

/// Fields that `api::fields` refuses to others.
const SUPPORTED: [&str; 2] = ["best_of", "echo"];

/// One choice on its way.
struct RunningChoice {
    started: Started,
    /// A reader from the beginning on: a `cancel` stream lives as long as it has one.
    reader: StreamReader,
    prompt: usize,
    echo: Option<Echo>,
}

/// What the answer is to look like.
struct Wanted {
    num_choices: usize,
    /// Choices made for each prompt, of which the likeliest are given.
    best_of: usize,
    with_logprobs: bool,
    /// Whether only the prompt was asked for, by `max_tokens: 0` and `echo`. The engine samples one token all the same.
    is_silent: bool,
    is_echo: bool,
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
    let choices_max = app.service.choices_max();
    let (asked, held) = body.parse(&app, tenant, move |json| read(json, owner, choices_max)).await?;
    let Asked { base, prompts, wanted, stream, usage } = asked;
    let on_disconnect = policy.unwrap_or(OnDisconnect::Cancel);
    let base = GenerateRequest { on_disconnect, queue_timeout_ms, ..base };
    let all = start(&app, &base, prompts, &wanted).await?;
    drop(held);
    if stream {
        head::wait(&app, all.iter().map(|r| &r.started.log)).await?;
        Ok(chunks(&app, all, &wanted, usage))
    } else {
        whole(&app, tenant, all, wanted).await
    }
}

/// What a body asks for.
struct Asked {
    /// Of every prompt.
    base: GenerateRequest,
    prompts: Vec<Prompt>,
    wanted: Wanted,
    stream: bool,
    usage: UsageShown,
}

fn read(json: &[u8], owner: Arc<Owner>, choices_max: usize) -> Result<Asked, Problem> {
    let shared = fields::completions(json, &SUPPORTED)?;
    let structured = structured::constraint(json)?;
    let mut asked: CompletionRequest = body::parse(json)?;
    let stream = asked.stream.unwrap_or(false);
    let usage = UsageShown::asked(asked.stream_options.take(), stream)?;
    let wanted = wanted(&asked, &shared, stream)?;
    let prompts = asked.prompt.ok_or_else(|| Error::invalid("prompt", "`prompt` must be given"))?.0;
    check_count(prompts.len(), wanted.best_of, choices_max)?;
    let (sampling, stop) = (params(shared.sampling, &wanted), shared.stop);
    let max_tokens = if wanted.is_silent { 1 } else { stop.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT) };
    let base = GenerateRequest {
        model: asked.model,
        sampling,
        stop: StopParams { max_tokens: Some(max_tokens), ..stop },
        priority: asked.priority.map(Whole::to_i32),
        constraint: structured.constraint,
        constraint_param: structured.param,
        ..GenerateRequest::new(owner, Prompt::Tokens(Vec::new()))
    };
    Ok(Asked { base, prompts, wanted, stream, usage })
}

/// Starts the choices of every prompt, or none.
async fn start(
    app: &App,
    base: &GenerateRequest,
    prompts: Vec<Prompt>,
    wanted: &Wanted,
) -> Result<Vec<RunningChoice>, Problem> {
    let served = app.service.generating(base.model.as_deref())?;
    app.service.check_room(served, &base.owner, prompts.len() * wanted.best_of)?;
    let mut all: Vec<RunningChoice> = Vec::new();
    for (number, prompt) in prompts.into_iter().enumerate() {
        let echoed = wanted.is_echo.then(|| prompt.clone());
        let generate = GenerateRequest { prompt, ..base.clone() };
        let started = app.service.start_choices(generate, wanted.best_of).await.inspect_err(|_| {
            // Nobody wants the texts of some of the prompts.
            for running in &all {
                running.started.log.cancel(CancelCause::Requested);
            }
        });
        let started = started.map_err(|e| Problem::spelled(&e, WORDS))?;
        let first_token = started.first().and_then(|started| started.first_token);
        let echo = echoed.map(|prompt| echo(prompt, first_token, served.tokenizer()));
        all.extend(started.into_iter().map(|started| RunningChoice {
            reader: started.log.reader(0),
            started,
            prompt: number,
            echo: echo.clone(),
        }));
        // Each costs up to a millisecond here: others get their turn, and a client that left is noticed.
        tokio::task::yield_now().await;
    }
    lead(&all);
    Ok(all)
}

/// The end of the first by name is the end of all, as the choices of one prompt have it already.
fn lead(all: &[RunningChoice]) {
    if let Some(first) = all.first() {
        let others = all.iter().filter(|running| running.prompt > 0);
        first.started.log.lead(others.map(|running| &running.started.log));
    }
}

fn wanted(asked: &CompletionRequest, shared: &fields::SharedFields, stream: bool) -> Result<Wanted, Problem> {
    let num_choices = shared.num_choices;
    let best_of = match asked.best_of.map(|n| n.0) {
        Some(best_of) if best_of < num_choices as i64 => {
            let message = format!("`best_of` must be at least `n` ({num_choices}), got {best_of}");
            return Err(Error::invalid("best_of", message).into());
        }
        Some(best_of) if stream && best_of as usize > num_choices => {
            // Which are best is known at the end.
            let message = format!("`best_of` must be `n` ({num_choices}) with `stream: true`, got {best_of}");
            return Err(Error::invalid("best_of", message).into());
        }
        Some(best_of) => best_of as usize,
        None => num_choices,
    };
    let is_echo = asked.echo.unwrap_or(false);
    let is_silent = shared.stop.max_tokens == Some(0) && is_echo;
    let with_logprobs = shared.sampling.top_logprobs.is_some();
    Ok(Wanted { num_choices, best_of, with_logprobs, is_silent, is_echo })
}

fn check_count(num_prompts: usize, best_of: usize, max: usize) -> Result<(), Problem> {
    if num_prompts == 0 {
        return Err(Error::invalid("prompt", "`prompt` must have at least one prompt, got none").into());
    }
    if num_prompts.saturating_mul(best_of) > max {
        let message =
            format!("`prompt` must ask for at most {max} texts, got {num_prompts} prompts with {best_of} choices each");
        return Err(Error::invalid("prompt", message).into());
    }
    Ok(())
}

fn params(sampling: SamplingParams, wanted: &Wanted) -> SamplingParams {
    let prompt_logprobs = sampling.top_logprobs.filter(|_| wanted.is_echo);
    // The likeliest is found by log-probability, so it must be measured.
    let is_ranked = wanted.best_of > wanted.num_choices;
    let top_logprobs = sampling.top_logprobs.or(is_ranked.then_some(0));
    SamplingParams { prompt_logprobs, top_logprobs, ..sampling }
}

/// Prompts of every kind come in one field.
const WORDS: Words<'static> = Words {
    name: &|field| match field {
        Field::Prompt => "prompt".to_owned(),
        Field::Tokens(index) => format!("prompt{}", Place(index)),
        other => other.to_string(),
    },
    ..Words::CHAT
};

/// An accepted prompt as text, with what the model sees first: it is no longer than the context, so spelling its tokens
/// takes no time to speak of. It cannot fail, as generations are running already.
fn echo(prompt: Prompt, first_token: Option<TokenId>, tokenizer: &Tokenizer) -> Echo {
    let text = match prompt {
        Prompt::Tokens(tokens) => tokenizer.decode(&tokens),
        Prompt::Text(text) => text,
        // This wire has no messages.
        Prompt::Chat(_) => String::new(),
    };
    Echo { text, first_token }
}

/// The model that writes them all.
fn served(app: &App, all: &[RunningChoice]) -> Arc<Served> {
    let first = all.first().map(|running| &running.started.served);
    first.unwrap_or(app.service.models().default_model()).clone()
}

fn chunks(app: &App, all: Vec<RunningChoice>, wanted: &Wanted, usage: UsageShown) -> Response {
    let (id, served) = (all.first().map(|r| r.started.log.id()), served(app, &all));
    let shared = Arc::new(ChoicesShared {
        id: completion_id(&all),
        created: all.first().map_or(0, |r| r.started.log.created_ms() / 1000),
        model: served.name().to_owned(),
        include_usage: usage.at_end,
        with_logprobs: wanted.with_logprobs,
        tokenizer: served.tokenizer().clone(),
        sum: Arc::new(Mutex::new(UsageSum::of(all.len()))),
    });
    let parts = all.into_iter().enumerate().map(|(index, running)| {
        let dialect = CompletionChunks {
            shared: shared.clone(),
            index,
            is_first_of_prompt: index % wanted.best_of == 0,
            echo: running.echo,
            is_silent: wanted.is_silent,
            running: usage.running(running.started.prompt_tokens),
            offset: 0,
        };
        (running.reader, dialect)
    });
    let response = event_body::respond_many(parts.collect(), app.config.heartbeat, &app.service.metrics().readers);
    match id {
        Some(id) => with_stream_id(response, id),
        None => response,
    }
}

/// Waits for all ends. If the client goes away meanwhile, the server drops this future, and with it the readers.
async fn whole(app: &App, tenant: Tenant, all: Vec<RunningChoice>, wanted: Wanted) -> Result<Response, Problem> {
    let (id, stream_id) = (completion_id(&all), all.first().map(|r| r.started.log.id()));
    let (created, served) = (all.first().map_or(0, |r| r.started.log.created_ms() / 1000), served(app, &all));
    let folding = all.into_iter().map(async |r| (r.prompt, r.echo, fold::to_end(r.reader).await));
    let folded = join_all(folding).await;
    let echo_bytes = |echo: &Option<Echo>| echo.as_ref().map_or(0, |echo| echo.text.len());
    let num_bytes = folded.iter().map(|(_, echo, folded)| echo_bytes(echo) + folded.num_json_bytes()).sum();
    let make = move || completion(id, created, served.name().to_owned(), folded, &wanted, served.tokenizer());
    let response = answer::json(app, tenant, num_bytes, make).await?;
    Ok(match stream_id {
        Some(id) => with_stream_id(response, id),
        None => response,
    })
}

fn completion(
    id: String,
    created: u64,
    model: String,
    all: Vec<(usize, Option<Echo>, Folded)>,
    wanted: &Wanted,
    tokenizer: &Tokenizer,
) -> Result<TextCompletion<'static>, Problem> {
    let (mut sum, mut texts) = (UsageSum::default(), Vec::new());
    for (index, (prompt, echo, folded)) in all.into_iter().enumerate() {
        let (text, usage) = text(prompt, echo, folded, wanted, tokenizer)?;
        sum.add(usage, 0, index % wanted.best_of == 0);
        texts.push(text);
    }
    let choices = best(texts, wanted.num_choices).into_iter().enumerate().map(|(index, text)| TextChoice {
        text: text.text.into(),
        index,
        logprobs: text.logprobs,
        finish_reason: Some(text.finish_reason),
    });
    Ok(TextCompletion {
        id: id.into(),
        object: "text_completion",
        created,
        model: model.into(),
        choices: choices.collect(),
        usage: Some(Some(sum.object())),
    })
}

/// One finished choice.
struct FinishedText {
    prompt: usize,
    /// Mean log-probability of its tokens, where they are ranked.
    rank: f32,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: &'static str,
}

fn text(
    prompt: usize,
    echo: Option<Echo>,
    folded: Folded,
    wanted: &Wanted,
    tokenizer: &Tokenizer,
) -> Result<(FinishedText, Usage), Problem> {
    let (finish_reason, mut usage) = folded.end.map_err(|info| Problem::from(&info))?;
    let (mut text, mut offset) = (String::new(), 0);
    let mut logprobs = wanted.with_logprobs.then(TextLogprobs::default);
    if let Some(echo) = echo {
        text.push_str(&echo.text);
        if let (Some(all), Some(first)) = (&mut logprobs, echo.first_token) {
            all.push_first(first, tokenizer, &mut offset);
            folded.prompt.iter().for_each(|l| all.push(l, tokenizer, &mut offset));
        }
    }
    let token = folded.token;
    let rank = token.logprobs.iter().map(|l| l.logprob).sum::<f32>() / token.logprobs.len().max(1) as f32;
    if wanted.is_silent {
        usage.completion_tokens = 0;
    } else {
        text.push_str(&token.text);
        if let Some(all) = &mut logprobs {
            token.logprobs.iter().for_each(|l| all.push(l, tokenizer, &mut offset));
        }
    }
    Ok((FinishedText { prompt, rank, text, logprobs, finish_reason: finish_reason.as_str() }, usage))
}

/// The `num_choices` likeliest of each prompt, likeliest first; as they are if all are wanted.
fn best(mut texts: Vec<FinishedText>, num_choices: usize) -> Vec<FinishedText> {
    let num_prompts = texts.last().map_or(0, |last| last.prompt + 1);
    if texts.len() == num_prompts * num_choices {
        return texts;
    }
    // Stable, so that the earlier of two equals stays first.
    texts.sort_by(|a, b| a.prompt.cmp(&b.prompt).then(b.rank.total_cmp(&a.rank)));
    let mut given = vec![0; num_prompts];
    texts.retain(|text| {
        given[text.prompt] += 1;
        given[text.prompt] <= num_choices
    });
    texts
}

fn completion_id(all: &[RunningChoice]) -> String {
    all.first().map_or_else(String::new, |first| format!("{ID_PREFIX}{}", first.started.log.id()))
}
