//! Texts to vectors, by the model that the request names: a decoder's hidden states, or an encoder made for it.
//!
//! Each text waits in its model's queue as any prompt does, whether the model is loaded or not. There is no stream to come
//! back for: what is under way ends with the call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::room::Room;
use super::{Served, Service, prompt, validate};
use crate::engine::Load;
use crate::error::{Error, ErrorKind, FaultKind, Result};
use crate::protocol::{Field, GenerateRequest, ListIndex, Owner, Prompt, StreamId, ValidInput};

/// Texts of one request that are tokenised in a row: about 10 ms.
const PIECE_BYTES: usize = 64 << 10;

/// What an input costs beside its bytes.
const INPUT_BYTES: usize = 64;

/// What is to be embedded.
#[derive(Debug)]
pub struct EmbedRequest {
    /// Whose request it is.
    pub owner: Arc<Owner>,
    /// The model asked for; `None` means the one that is served.
    pub model: Option<String>,
    /// Texts or tokens.
    pub inputs: Vec<Prompt>,
    /// Its place in line; `None` takes the owner's.
    pub priority: Option<i32>,
    /// How long it may wait for a worker, in milliseconds; `None` takes the server's default.
    pub queue_timeout_ms: Option<u64>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// The model that did it.
    pub model: String,
    /// One for each input, of length 1.
    pub vectors: Vec<Vec<f32>>,
    /// Of all inputs.
    pub prompt_tokens: usize,
}

impl Service {
    /// Embeds every input. Dropping the returned future cancels what is under way.
    ///
    /// # Errors
    /// As [`Service::start`], and what a generation can end with. One input that fails is all that is told.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embedded> {
        let _under_way = self.embedding.token();
        self.try_embed(request).await.inspect_err(|e| self.tell_rejected(e))
    }

    async fn try_embed(&self, request: EmbedRequest) -> Result<Embedded> {
        let served = self.models.named(request.model.as_deref())?;
        self.check_inputs(&request.inputs)?;
        // Whoever is to be refused is refused before work goes into it.
        served.backend.check_room(request.owner.tenant, Load::of_requests(1))?;
        let owner = request.owner.clone();
        // However many the inputs are, it is one request to its owner's limits.
        let _slot = self.quotas.begin(&owner, 1).inspect_err(|e| self.count_limited(e))?;
        let all = self.fit_inputs(request, served).await?;
        let prompt_tokens = all.iter().map(|valid| valid.tokens.len()).sum();
        self.quotas.spend(&owner, prompt_tokens).inspect_err(|e| self.count_limited(e))?;
        let at_once = self.config.embedding_inputs_at_once.max(1);
        let num_unanswered = AtomicUsize::new(prompt_tokens);
        let embed = async |valid: ValidInput| {
            let num_tokens = valid.tokens.len();
            let vector = self.embed_one(served, valid).await;
            if vector.is_ok() {
                num_unanswered.fetch_sub(num_tokens, Ordering::Relaxed);
            }
            vector
        };
        let vectors: Result<Vec<_>> = stream::iter(all).map(embed).buffered(at_once).try_collect().await;
        let vectors = vectors.inspect_err(|e| {
            if matches!(e.kind(), ErrorKind::Overloaded | ErrorKind::Unavailable) {
                // What was computed before a later text was refused has been worked for.
                self.quotas.give_back(&owner, num_unanswered.load(Ordering::Relaxed));
            }
        })?;
        let model = served.name().to_owned();
        Ok(Embedded { model, vectors, prompt_tokens })
    }

    fn check_inputs(&self, inputs: &[Prompt]) -> Result<()> {
        let (num_inputs, max) = (inputs.len(), self.config.embedding_inputs_max);
        if num_inputs > max {
            return Err(Error::invalid("input", format!("`input` must have at most {max} texts, got {num_inputs}")));
        }
        let is_empty = |input: &Prompt| match input {
            Prompt::Text(text) => text.is_empty(),
            Prompt::Tokens(tokens) => tokens.is_empty(),
            Prompt::Chat(messages) => messages.is_empty(),
        };
        match inputs.iter().position(is_empty) {
            // A model that puts a token before every text would embed that.
            Some(index) => {
                let param = param(index, num_inputs);
                Err(Error::invalid(param.clone(), format!("`{param}` must not be empty")))
            }
            None => Ok(()),
        }
    }

    /// Every input as the request that embeds it. Texts are tokenised in pieces, so that a request of many takes turns with
    /// the other requests of its owner, and ends between two pieces if nobody waits for it any more.
    async fn fit_inputs(&self, request: EmbedRequest, served: &Served) -> Result<Vec<ValidInput>> {
        let EmbedRequest { owner, inputs, priority, queue_timeout_ms, .. } = request;
        let (num_inputs, num_bytes) = (inputs.len(), inputs.iter().map(input_bytes).sum());
        let (limits, room) = (self.limits(served), Room::of(served));
        let mut all = Vec::with_capacity(num_inputs);
        let mut inputs = inputs.into_iter();
        while !inputs.as_slice().is_empty() {
            let piece = next_piece(&mut inputs).into_iter().map(|input| GenerateRequest {
                priority,
                queue_timeout_ms,
                ..GenerateRequest::new(owner.clone(), input)
            });
            let piece: Vec<_> = piece.collect();
            let tokenizer = served.tokenizer.clone();
            let first = all.len();
            let name = |at: usize, e| named(e, first + at, num_inputs);
            for (at, input) in piece.iter().enumerate() {
                validate::parameters(input, limits).map_err(|e| name(at, e))?;
            }
            let tokenise = move || {
                let one = |mut input: GenerateRequest| {
                    let tokens = prompt::encode(&tokenizer, None, &mut input, Some(room)).map(|(tokens, _)| tokens);
                    (input, tokens)
                };
                piece.into_iter().map(one).collect::<Vec<_>>()
            };
            for (at, (input, tokens)) in self.sized(owner.tenant, num_bytes, tokenise).await?.into_iter().enumerate() {
                let fit = tokens.and_then(|t| validate::fit_embedding(StreamId::random(), &input, t, limits));
                all.push(fit.map_err(|e| name(at, e))?);
            }
        }
        Ok(all)
    }

    async fn embed_one(&self, served: &Arc<Served>, input: ValidInput) -> Result<Vec<f32>> {
        if !served.only_embeds {
            self.log_prompt(served, input.id, &input.tokens);
        }
        let vector = served.backend.embed(input)?;
        self.models.ask(served);
        vector.await
    }
}

/// What reading an input costs beside its bytes.
fn input_bytes(input: &Prompt) -> usize {
    INPUT_BYTES
        + match input {
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(_) | Prompt::Chat(_) => 0,
        }
}

/// The inputs that come next, up to [`PIECE_BYTES`]; at least one.
fn next_piece(inputs: &mut std::vec::IntoIter<Prompt>) -> Vec<Prompt> {
    let (mut piece, mut num_bytes) = (Vec::new(), 0);
    while let Some(next) = inputs.as_slice().first()
        && (piece.is_empty() || num_bytes + input_bytes(next) <= PIECE_BYTES)
    {
        num_bytes += input_bytes(next);
        piece.extend(inputs.next());
    }
    piece
}

/// The request's field of an input: the list is not named where there is none.
fn param(index: usize, num_inputs: usize) -> String {
    if num_inputs == 1 { "input".to_owned() } else { format!("input[{index}]") }
}

/// An error about a prompt, as one about the input that the prompt came in.
fn named(e: Error, index: usize, num_inputs: usize) -> Error {
    let Some(fault) = e.fault() else { return e };
    let place = match fault.field {
        Field::Tokens(place) => ListIndex(place),
        _ => ListIndex(None),
    };
    let input = format!("{}{place}", param(index, num_inputs));
    match &fault.kind {
        FaultKind::Rule(rule) => Error::invalid(input.clone(), format!("`{input}` {rule}")),
        FaultKind::PromptTooLong { num_tokens, num_tokens_max } => {
            let message = format!("`{input}` must have at most the model's {num_tokens_max} tokens, got {num_tokens}");
            Error::new(ErrorKind::ContextLengthExceeded, message).with_param(input)
        }
    }
}
