//! The conversation that a response answers: the items of the response before it, those that the request refers to by id, and
//! its own, as items and as the messages that the model reads.

use std::sync::Arc;

use serde_json::Value;

use super::assembly::Assembly;
use super::described::{Described, ID_PREFIX};
use super::request::CreateFields;
use super::{input, reading};
use crate::api::App;
use crate::api::problem::Problem;
use crate::error::Error;
use crate::protocol::{ChatMessage, PromptEnding, Tenant};

/// Looks up what the request refers to, and makes the conversation of it.
pub(super) async fn prepare(
    app: &App,
    tenant: Tenant,
    fields: &CreateFields,
    own: &mut Option<Vec<Value>>,
    echo_bytes: usize,
    body_bytes: usize,
) -> Result<Context, Problem> {
    for item in own.iter_mut().flatten() {
        if let Some(id) = input::reference(item) {
            *item = referred(app, tenant, id).await?;
        }
    }
    let previous = match &fields.previous_response_id {
        Some(id) => Some(previous(app, tenant, id).await?),
        None => None,
    };
    let known = previous.as_ref().map_or(0, |previous| previous.described.num_bytes);
    let (own, instructions) = (own.take(), fields.instructions.clone());
    let work = move || context(previous, own, instructions, echo_bytes);
    app.service.sized(tenant, body_bytes + known, work).await?
}

/// The item of a stored response that `id` names: ids of items hold the name of their response's stream.
async fn referred(app: &App, tenant: Tenant, id: &str) -> Result<Value, Problem> {
    let unknown = || {
        let message = format!("`input` must refer to an item of a stored response, got {id:?}");
        Problem::from(Error::invalid("input", message))
    };
    let response = id.split('_').nth(1).map(|stream| format!("{ID_PREFIX}{stream}")).ok_or_else(unknown)?;
    let (described, log) = app.responses.get(&response, tenant, app.service.table()).map_err(|_| unknown())?;
    if let Some(item) = described.items.iter().find(|item| item["id"] == id) {
        return Ok(item.clone());
    }
    let wanted = id.to_owned();
    let find = move |assembly: &Assembly| assembly.output().find(|item| item["id"] == *wanted);
    reading::look(app, tenant, &described, &log, find).await?.ok_or_else(unknown)
}

/// A response that is gone on from.
struct Previous {
    described: Arc<Described>,
    output: Vec<Value>,
}

async fn previous(app: &App, tenant: Tenant, id: &str) -> Result<Previous, Problem> {
    const PARAM: &str = "previous_response_id";
    let found = app.responses.get(id, tenant, app.service.table());
    let (described, log) = found.map_err(|e| e.with_param(PARAM))?;
    let output = |assembly: &Assembly| assembly.is_terminal().then(|| assembly.output().collect());
    match reading::look(app, tenant, &described, &log, output).await? {
        Some(output) => Ok(Previous { described, output }),
        None => {
            let message = format!("`{PARAM}` must name a response that has ended, got {id:?}, which runs");
            Err(Error::invalid(PARAM, message).into())
        }
    }
}

/// What the model is to answer.
pub(super) struct Context {
    /// Those of the response before, its output, and the request's own.
    pub(super) items: Vec<Value>,
    pub(super) messages: Vec<ChatMessage>,
    pub(super) ending: PromptEnding,
    /// Of all items and what is repeated of the request, as JSON.
    pub(super) num_bytes: usize,
}

fn context(
    previous: Option<Previous>,
    own: Option<Vec<Value>>,
    instructions: Option<String>,
    echo_bytes: usize,
) -> Result<Context, Problem> {
    let mut items = Vec::new();
    if let Some(Previous { described, output }) = previous {
        items.clone_from(&described.items);
        items.extend(output);
    }
    // An answer of the model's own that nothing follows was ended; what a client has begun is gone on with.
    let ending =
        if own.as_ref().is_some_and(|own| !own.is_empty()) { PromptEnding::Continue } else { PromptEnding::Answer };
    items.extend(own.unwrap_or_default());
    if items.is_empty() {
        return Err(Error::invalid("input", "`input` must have at least one item, got none").into());
    }
    let instructions = instructions.map(|text| ChatMessage::new("system", text));
    let messages = instructions.into_iter().chain(input::messages(&items)).collect();
    let num_bytes = items.iter().map(|item| item.to_string().len()).sum::<usize>() + echo_bytes;
    Ok(Context { items, messages, ending, num_bytes })
}
