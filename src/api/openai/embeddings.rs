//! `POST /v1/embeddings`: one vector for each text. All come in one answer, or none.

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Serialize};

use super::completion_types::PromptField;
use crate::api::caller::Caller;
use crate::api::numbers::Whole;
use crate::api::problem::Problem;
use crate::api::{App, answer, body, queue_timeout};
use crate::error::Error;
use crate::protocol::Prompt;
use crate::service::{EmbedRequest, Embedded};

/// What a float takes on the wire, at most.
const FLOAT_BYTES: usize = 16;

/// The whole of a request. `user` is accepted and changes nothing.
#[derive(Debug, Deserialize)]
struct EmbeddingRequest {
    model: Option<String>,
    input: Option<PromptField>,
    encoding_format: Option<String>,
    dimensions: Option<Whole>,
    /// vLLM's: a lower one goes first.
    priority: Option<Whole>,
}

/// The answer on the wire.
#[derive(Debug, Serialize)]
pub(crate) struct EmbeddingList {
    object: &'static str,
    data: Vec<EmbeddingObject>,
    model: String,
    usage: EmbeddingUsage,
}

#[derive(Debug, Serialize)]
struct EmbeddingObject {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

/// A vector, as it was asked for.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize)]
struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Handles one request.
///
/// # Errors
/// The body's; 400 for `dimensions` and an unknown format; the service's. If the client goes away meanwhile, the server
/// drops this future, and with it what is under way.
pub(crate) async fn create(
    State(app): State<App>,
    Extension(Caller(owner)): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let (tenant, queue_timeout_ms) = (owner.tenant, queue_timeout::from_header(request.headers())?);
    let body = body::read(request, &app, tenant).await?;
    let (asked, held) = body.parse(&app, tenant, read).await?;
    let Asked { model, inputs, priority, is_base64, dimensions } = asked;
    let embedded = app.service.embed(EmbedRequest { owner, model, inputs, priority, queue_timeout_ms }).await?;
    drop(held);
    check_dimensions(dimensions, embedded.vectors.first().map_or(0, Vec::len))?;
    let num_bytes = embedded.vectors.iter().map(|vector| vector.len() * FLOAT_BYTES).sum();
    answer::json(&app, tenant, num_bytes, move || Ok(list(embedded, is_base64))).await
}

/// A vector that was not trained to be cut says nothing when it is, so it has its own length or none.
fn check_dimensions(asked: Option<i64>, own: usize) -> Result<(), Problem> {
    match asked {
        Some(dimensions) if dimensions != own as i64 => {
            let rule = format!("must be the {own} that this model's vectors have, got {dimensions}");
            Err(Problem::unsupported("dimensions", &rule))
        }
        _ => Ok(()),
    }
}

/// What a body asks for.
struct Asked {
    model: Option<String>,
    inputs: Vec<Prompt>,
    priority: Option<i32>,
    is_base64: bool,
    /// How long the vectors are to be.
    dimensions: Option<i64>,
}

fn read(json: &[u8]) -> Result<Asked, Problem> {
    let asked: EmbeddingRequest = body::parse(json)?;
    let is_base64 = is_base64(asked.encoding_format.as_deref())?;
    let inputs = asked.input.ok_or_else(|| Error::invalid("input", "`input` must be given"))?.0;
    let priority = asked.priority.map(Whole::to_i32);
    Ok(Asked { model: asked.model, inputs, priority, is_base64, dimensions: asked.dimensions.map(|n| n.0) })
}

fn list(embedded: Embedded, is_base64: bool) -> EmbeddingList {
    let Embedded { model, vectors, prompt_tokens } = embedded;
    let data = vectors.into_iter().enumerate().map(|(index, vector)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: if is_base64 { Vector::Base64(base64_of(&vector)) } else { Vector::Floats(vector) },
    });
    let usage = EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens };
    EmbeddingList { object: "list", data: data.collect(), model, usage }
}

fn is_base64(format: Option<&str>) -> Result<bool, Error> {
    match format {
        None | Some("float") => Ok(false),
        Some("base64") => Ok(true),
        Some(other) => {
            let message = format!("`encoding_format` must be float or base64, got {other:?}");
            Err(Error::invalid("encoding_format", message))
        }
    }
}

/// A vector's little-endian bytes, as OpenAI's clients ask for them.
fn base64_of(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_everybody_writes_it() {
        assert_eq!(base64_of(&[]), "");
        assert_eq!(base64_of(&[1.0]), "AACAPw==");
        assert_eq!(base64_of(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64_of(&[1.0, -2.5, 3e-9]), "AACAPwAAIMCPKE4x");
    }
}
