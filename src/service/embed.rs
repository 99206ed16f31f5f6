//! Texts to vectors, by the served model or by an encoder beside it; which, the request's `model` says.
//!
//! For the served model each text is a generation that samples nothing: it waits in the same queue and is computed in the
//! same steps as any prompt. Its log is in no table: there is nothing in it to come back for, and it ends with the call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::prompt::{self, Room};
use super::validate::{self, Limits};
use super::{Served, Service};
use crate::engine::Load;
use crate::engine::encoder::EncoderPool;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{Event, Field, GenerateRequest, OnDisconnect, Owner, Prompt, StreamId, TokenId, ValidRequest};
use crate::stream::StreamLog;

/// Texts of one request that are tokenised in a row: about 10 ms.
const PIECE_BYTES: usize = 64 << 10;

/// What an input costs beside its bytes.
const INPUT_BYTES: usize = 64;

/// The longest word that an encoder's tokenizer looks at: WordPiece has 100 characters, longer ones are one unknown token.
const WORD_BYTES_MAX: usize = 400;

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

/// An encoder that is served beside the model.
#[derive(Debug)]
pub struct ServedEncoder {
    /// The name requests use for it.
    pub name: String,
    /// Other names that requests may use.
    pub aliases: Vec<String>,
    /// Where it runs.
    pub pool: EncoderPool,
}

impl ServedEncoder {
    /// Tokens of the longest text.
    pub fn max_model_len(&self) -> usize {
        self.pool.encoder().max_model_len()
    }

    fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }

    async fn embed(&self, request: ValidRequest) -> Result<Vec<f32>> {
        let deadline = request.queue.timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        let vector = self.pool.submit(request.prompt, deadline)?.await;
        vector.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the server is shutting down")))
    }
}

impl Service {
    /// With an encoder beside the model.
    #[must_use]
    pub fn with_encoder(self, encoder: ServedEncoder) -> Self {
        Self { encoder: Some(encoder), ..self }
    }

    /// The encoder beside the model, if there is one.
    pub fn encoder(&self) -> Option<&ServedEncoder> {
        self.encoder.as_ref()
    }

    /// The same by a name of its own.
    pub fn encoder_named(&self, name: Option<&str>) -> Option<&ServedEncoder> {
        self.encoder().filter(|encoder| name.is_some_and(|name| encoder.answers_to(name)))
    }

    /// Embeds every input. Dropping the returned future cancels what is under way.
    ///
    /// # Errors
    /// As [`Service::start`], and what a generation can end with. One input that fails is all that is told.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embedded> {
        let _under_way = self.embedding.token();
        self.try_embed(request).await.inspect_err(|e| self.tell_rejected(e))
    }

    async fn try_embed(&self, request: EmbedRequest) -> Result<Embedded> {
        let encoder = self.encoder_named(request.model.as_deref());
        let embedder = match encoder {
            Some(encoder) => Embedder::Encoder(encoder),
            None => Embedder::Decoder(self.embedding_model(request.model.as_deref())?),
        };
        self.check_inputs(&request.inputs)?;
        if let Embedder::Decoder(served) = embedder {
            // Whoever is to be refused is refused before work goes into it.
            served.backend.check_room(request.owner.tenant, Load::of_requests(1))?;
        }
        let owner = request.owner.clone();
        // However many the inputs are, it is one request to its owner's limits.
        let _slot = self.quotas.begin(&owner, 1).inspect_err(|e| self.count_limited(e))?;
        let all = self.fit_inputs(request, embedder).await?;
        let prompt_tokens = all.iter().map(|valid| valid.prompt.len()).sum();
        self.quotas.spend(&owner, prompt_tokens).inspect_err(|e| self.count_limited(e))?;
        let at_once = self.config.embedding_inputs_at_once.max(1);
        let num_unanswered = AtomicUsize::new(prompt_tokens);
        let embed = async |valid: ValidRequest| {
            let num_tokens = valid.prompt.len();
            let vector = match embedder {
                Embedder::Encoder(encoder) => encoder.embed(valid).await,
                Embedder::Decoder(served) => self.embed_one(served, valid).await,
            };
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
        let model = embedder.name().to_owned();
        Ok(Embedded { model, vectors, prompt_tokens })
    }

    /// As [`Service::served`], with the encoder's name too where there is one.
    fn embedding_model(&self, name: Option<&str>) -> Result<&Arc<Served>> {
        self.models.named(name).map_err(|e| match self.encoder() {
            Some(encoder) => {
                let (names, got) = e.message().rsplit_once(", got ").unwrap_or((e.message(), ""));
                let message = format!("{names} or {:?}, got {got}", encoder.name);
                Error::new(e.kind(), message).with_param("model")
            }
            None => e,
        })
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
    async fn fit_inputs(&self, request: EmbedRequest, embedder: Embedder<'_>) -> Result<Vec<ValidRequest>> {
        let EmbedRequest { owner, inputs, priority, queue_timeout_ms, .. } = request;
        let (num_inputs, num_bytes) = (inputs.len(), inputs.iter().map(input_bytes).sum());
        let limits = match embedder {
            Embedder::Decoder(served) => self.limits(served),
            Embedder::Encoder(encoder) => {
                let model = encoder.pool.encoder();
                let (vocab_size, context_len) = (model.vocab_size(), model.max_model_len());
                Limits { config: &self.config, vocab_size, context_len, unasked_len: usize::MAX }
            }
        };
        let mut all = Vec::with_capacity(num_inputs);
        let mut inputs = inputs.into_iter();
        while !inputs.as_slice().is_empty() {
            let piece = next_piece(&mut inputs).into_iter().map(|input| GenerateRequest {
                priority,
                queue_timeout_ms,
                ..GenerateRequest::new(owner.clone(), input)
            });
            let piece: Vec<_> = piece.collect();
            let tokens_of = tokens_of(embedder);
            let first = all.len();
            let name = |at: usize, e| named(e, first + at, num_inputs);
            for (at, input) in piece.iter().enumerate() {
                validate::parameters(input, limits).map_err(|e| name(at, e))?;
            }
            let tokenise = move || {
                let one = |mut input: GenerateRequest| {
                    let tokens = tokens_of(&mut input);
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

    async fn embed_one(&self, served: &Arc<Served>, request: ValidRequest) -> Result<Vec<f32>> {
        self.log_prompt(served, request.id, &request.prompt);
        let log = StreamLog::with_clock(request.id, request.tenant, OnDisconnect::Cancel, self.clock.clone());
        // From the beginning on: dropped with the call, it cancels.
        let mut reader = log.reader(0);
        served.backend.submit(request, log)?;
        self.models.ask(served);
        let mut vector = None;
        while let Some((_, event)) = reader.next().await {
            match event {
                Event::Embedding { values } => vector = Some(values),
                Event::Error(info) => return Err(Error::new(info.kind, info.message)),
                _ => {}
            }
        }
        vector.ok_or_else(|| Error::internal("a text was embedded, and no vector came"))
    }
}

/// What embeds.
#[derive(Clone, Copy)]
enum Embedder<'a> {
    Decoder(&'a Arc<Served>),
    Encoder(&'a ServedEncoder),
}

impl Embedder<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Decoder(served) => served.name(),
            Self::Encoder(encoder) => &encoder.name,
        }
    }
}

/// What takes the text or the tokens out of a request, as tokens of the model that is to embed them.
fn tokens_of(embedder: Embedder<'_>) -> impl Fn(&mut GenerateRequest) -> Result<Vec<TokenId>> + Send + 'static {
    let embedder = match embedder {
        Embedder::Decoder(served) => Ok((served.tokenizer.clone(), prompt::room(served))),
        Embedder::Encoder(encoder) => Err(encoder.pool.encoder().clone()),
    };
    move |request| match (&embedder, &mut request.prompt) {
        (_, Prompt::Tokens(tokens)) => Ok(std::mem::take(tokens)),
        (Err(encoder), Prompt::Text(text)) => {
            Room { num_tokens: encoder.max_model_len(), token_bytes_max: WORD_BYTES_MAX }.check(text, Field::Prompt)?;
            encoder.tokens(&std::mem::take(text))
        }
        (_, Prompt::Chat(_)) => Err(Error::internal("what is embedded has no messages")),
        (Ok((tokenizer, room)), Prompt::Text(_)) => {
            prompt::encode(tokenizer, None, request, Some(*room)).map(|(tokens, _)| tokens)
        }
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

/// An error about a prompt, as one about an input.
fn named(e: Error, index: usize, num_inputs: usize) -> Error {
    let Some(field) = ["prompt", "tokens"].into_iter().find(|f| e.param().is_some_and(|p| p.starts_with(f))) else {
        return e;
    };
    let (old, input) = (e.param().unwrap_or_default(), param(index, num_inputs));
    let new = old.replacen(field, &input, 1);
    let message = e.message().replacen(&format!("`{field}"), &format!("`{input}"), 1);
    Error::new(e.kind(), message).with_param(new)
}
