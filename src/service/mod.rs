//! From a dialect's request to a running stream: template, tokenise, validate, submit. Below the [`Backend`] seam a
//! gateway and a local pool are the same. This floor knows no HTTP and no dialect.

mod backend;
mod background;
mod chat;
mod choices;
mod config;
mod constrain;
mod disk;
mod embed;
mod encoder;
mod local;
mod models;
mod on_demand;
mod prompt;
mod quota;
mod refuse;
mod restore;
mod room;
mod rule;
pub(crate) mod schema;
mod served;
mod sized;
mod template;
mod tokens;
mod tool_grammar;
mod tool_rules;
mod validate;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio_util::task::TaskTracker;

pub use backend::{Backend, Moved, OnMove, Readiness, Residence, VectorFuture};
pub use background::{Background, BackgroundLimits};
pub use config::ServiceConfig;
pub use embed::{EmbedRequest, Embedded};
pub use encoder::{EncoderBackend, StatesLoader};
pub use local::LocalBackend;
pub use models::{ModelLimits, Models};
pub use quota::{Allowance, QuotaState};
pub use restore::Restored;
pub use served::{Served, ServedConfig};
pub use template::ChatTemplate;

use crate::engine::Load;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{Metrics, RejectLabel};
use crate::protocol::{ErrorInfo, Event, GenerateRequest, Owner, StreamId, Tenant, TokenId, Usage, ValidRequest};
use crate::stream::{CancelCause, Clock, Happening, StorePlace, StreamLog, StreamRecord, StreamTable};
use crate::text::AnswerFormat;
use quota::Quotas;
use room::Room;

/// The one front door of generation: every dialect's request goes through [`Service::start`].
pub struct Service {
    config: ServiceConfig,
    models: Arc<Models>,
    table: Arc<StreamTable>,
    metrics: Arc<Metrics>,
    clock: Clock,
    background: Background,
    /// See `constrain`.
    grammar_threads: OnceLock<Result<Background>>,
    /// See `prompt`.
    render_threads: OnceLock<Result<Background>>,
    quotas: Quotas,
    /// Calls that embed: they have no stream in the table.
    embedding: TaskTracker,
    created_ms: u64,
    num_restarts_told: AtomicU64,
    /// As the log was told.
    is_disk_behind: AtomicBool,
}

/// A generation that was accepted.
#[derive(Debug, Clone)]
pub struct Started {
    /// Its events. Take a reader before the next `.await`: a `cancel` stream lives as long as its readers.
    pub log: Arc<StreamLog>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The first of them.
    pub(crate) first_token: Option<TokenId>,
    /// The seed of its draws: the request's, or the one drawn for it. Asking again with it gives the same text.
    pub seed: u64,
    /// How its text is to be read.
    pub format: AnswerFormat,
    /// The model that writes it.
    pub served: Arc<Served>,
}

impl Service {
    /// Puts the parts together. `metrics` are the process's; each model has its own.
    ///
    /// # Errors
    /// If the system gives no thread for the pool.
    pub fn new(
        config: ServiceConfig,
        models: Arc<Models>,
        table: Arc<StreamTable>,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let clock = wall_clock();
        let (created_ms, background) = (clock(), Background::start(config.background)?);
        let quotas = Quotas::new(&config.owners, &clock);
        for served in models.all() {
            let (feed, clock, model) = (table.feed().clone(), clock.clone(), served.name().to_owned());
            if served.backend.residence() == Residence::Loaded {
                feed.publish(created_ms, None, Happening::ModelLoaded { model: model.clone() });
            }
            served.backend.tell_moves(Box::new(move |moved| {
                let model = model.clone();
                let happening = match moved {
                    Moved::Loaded => Happening::ModelLoaded { model },
                    Moved::Unloaded => Happening::ModelUnloaded { model },
                };
                feed.publish(clock(), None, happening);
            }));
        }
        Ok(Self {
            config,
            models,
            table,
            metrics,
            clock,
            background,
            grammar_threads: OnceLock::new(),
            render_threads: OnceLock::new(),
            quotas,
            embedding: TaskTracker::new(),
            created_ms,
            num_restarts_told: AtomicU64::new(0),
            is_disk_behind: AtomicBool::new(false),
        })
    }

    /// Accepts a request and hands it to the backend. Dropping the returned future before it is done leaves nothing
    /// behind.
    ///
    /// # Errors
    /// [`ErrorKind::ModelNotFound`]; [`ErrorKind::InvalidRequest`] or [`ErrorKind::ContextLengthExceeded`] with the
    /// parameter at fault; [`ErrorKind::RateLimited`] for an owner over a limit of its own; [`ErrorKind::Overloaded`]
    /// and [`ErrorKind::Unavailable`] from table and backend. No stream exists then.
    pub async fn start(&self, request: GenerateRequest) -> Result<Started> {
        let started = self.start_choices(request, 1).await?.pop();
        started.ok_or_else(|| Error::internal("a request was accepted without a stream"))
    }

    /// Accepts `num_choices` generations of one prompt, or none: choice `i` is the text of the request with its seed
    /// plus `i`, each is a stream of its own, and all but the first share what the first has computed of the prompt.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) async fn start_choices(&self, request: GenerateRequest, num_choices: usize) -> Result<Vec<Started>> {
        self.try_start(request, num_choices).await.inspect_err(|e| self.tell_rejected(e))
    }

    async fn try_start(&self, request: GenerateRequest, num_choices: usize) -> Result<Vec<Started>> {
        let served = self.models.generating(request.model.as_deref())?;
        validate::choices(num_choices, &self.config)?;
        validate::parameters(&request, self.limits(served))?;
        // Whoever is to be refused is refused before work goes into it.
        self.check_room(served, &request.owner, num_choices)?;
        let owner = request.owner.clone();
        let slot = self.quotas.begin(&owner, num_choices).inspect_err(|e| self.count_limited(e))?;
        let (request, (prompt, format)) = self.tokenise(served, request, Some(Room::of(served))).await?;
        // Held until the backend has it: what is in use stays in the cache.
        let _grammar = self.compile(served, &request).await?;
        // No await from here on: the streams are either running and in the caller's hands, or were never there.
        let unasked_len = self.quotas.tokens_max(&owner) / num_choices;
        let limits = validate::Limits { unasked_len, ..self.limits(served) };
        let first = validate::fit(StreamId::random(), request, prompt, random_seed(), limits)?;
        let num_tokens = first.num_tokens_max() * num_choices;
        self.quotas.spend(&owner, num_tokens).inspect_err(|e| self.count_limited(e))?;
        let coming = Load { requests: num_choices, tokens: num_tokens };
        let give_back = |_: &Error| self.quotas.give_back(&owner, num_tokens);
        served.backend.check_room(owner.tenant, coming).inspect_err(give_back)?;
        let mut places = self.reserve(num_choices).inspect_err(give_back)?;
        let accept = |valid| self.accept(served, valid, format.clone(), places.pop());
        let all = choices::all_or_none(&first, num_choices, accept).inspect_err(give_back)?;
        self.models.ask(served);
        slot.occupy(all.iter().map(|started| &started.log), num_tokens / num_choices);
        Ok(all)
    }

    /// Whether so many generations of an owner would be refused however short they are: asked before work goes into them.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] and [`ErrorKind::Unavailable`], as of [`Self::start`].
    pub fn check_room(&self, served: &Served, owner: &Owner, num_generations: usize) -> Result<()> {
        self.check_kept()?;
        served.backend.check_room(owner.tenant, Load::of_requests(num_generations))
    }

    fn accept(
        &self,
        served: &Arc<Served>,
        valid: ValidRequest,
        format: AnswerFormat,
        place: Option<StorePlace>,
    ) -> Result<Started> {
        let id = valid.id;
        if valid.leader.is_none() {
            self.log_prompt(served, id, &valid.prompt);
        }
        let log = StreamLog::with_clock(id, valid.tenant, valid.on_disconnect, self.clock.clone());
        log.set_model(served.config.name.clone());
        let (prompt_tokens, first_token, seed) = (valid.prompt.len(), valid.prompt.first().copied(), valid.seed());
        let weight = valid.queue.weight;
        self.table.insert(log.clone(), weight).inspect_err(|_| self.metrics.reject(&RejectLabel::STREAMS_FULL))?;
        let mut inserted = Inserted { table: &self.table, log: log.clone(), id: Some(id) };
        if let Some(place) = place {
            let record = StreamRecord {
                request: valid.clone(),
                created_ms: log.created_ms(),
                fingerprint: served.config.fingerprint,
            };
            place.begin(record, &log);
        }
        served.backend.submit(valid, log.clone())?;
        inserted.id = None;
        tracing::info!(stream = %id, prompt_tokens, "accepted");
        Ok(Started { log, prompt_tokens, first_token, seed, format, served: served.clone() })
    }

    /// Cancels the tenant's stream; one that has ended stays as it is. Where streams are kept, this is over when no crash
    /// can bring the generation back to life.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and [`ErrorKind::Expired`] as [`StreamTable::get`]; [`ErrorKind::Unavailable`] if it was
    /// not kept within the bound, or the process is about to end: it is to be asked again.
    pub async fn cancel(&self, id: StreamId, tenant: Tenant) -> Result<()> {
        let log = self.table.get(id, tenant)?;
        log.cancel(CancelCause::Requested);
        let Some(store) = self.table.store() else { return Ok(()) };
        let all = [vec![log.clone()], log.followers()].concat();
        let kept = async {
            // Not a mark beside the stream: after a crash its end must not stand where a reader has seen a token.
            for log in &all {
                log.settled().await;
            }
            store.flushed().await;
        };
        let is_kept = tokio::time::timeout(self.config.cancel_wait, kept).await.is_ok();
        if is_kept && !all.iter().any(|log| log.is_suspended()) {
            return Ok(());
        }
        let message = format!("stream {id} was told to stop, but that is not kept yet; ask again");
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// What an owner has left, if it has limits of its own.
    pub fn quota(&self, owner: &Owner) -> Option<QuotaState> {
        self.quotas.state(owner)
    }

    /// Ends what is over its time: lingering and finished streams, requests that wait. Called a few times a second.
    pub fn sweep(&self) {
        self.models.all().iter().for_each(|served| served.backend.sweep());
        self.quotas.sweep();
        self.models.tend(Instant::now());
        let num_restarts = self.models.all().iter().map(|served| served.backend.num_restarts()).sum();
        if self.num_restarts_told.swap(num_restarts, Ordering::Relaxed) < num_restarts {
            self.table.feed().publish(self.now_ms(), None, Happening::WorkerRestarted { num_restarts });
        }
        self.table.sweep(self.now_ms());
        self.watch_disk();
    }

    /// The model that `name` means; without one, the first.
    ///
    /// # Errors
    /// [`ErrorKind::ModelNotFound`].
    pub fn served(&self, name: Option<&str>) -> Result<&Arc<Served>> {
        self.models.named(name)
    }

    /// The same, for a request that goes on from a text.
    ///
    /// # Errors
    /// [`ErrorKind::ModelNotFound`]; [`ErrorKind::InvalidRequest`] for a model that only embeds.
    pub fn generating(&self, name: Option<&str>) -> Result<&Arc<Served>> {
        self.models.generating(name)
    }

    /// The model that writes a stream.
    pub(crate) fn served_of(&self, log: &StreamLog) -> &Arc<Served> {
        log.model().and_then(|name| self.models.named(Some(name)).ok()).unwrap_or(self.models.default_model())
    }

    /// All models.
    pub fn models(&self) -> &Arc<Models> {
        &self.models
    }

    /// Most generations that one request may ask for.
    pub fn choices_max(&self) -> usize {
        self.config.choices_max
    }

    /// When the service was made, in milliseconds since the Unix epoch.
    pub fn created_ms(&self) -> u64 {
        self.created_ms
    }

    /// Now, by the clock that stamps events.
    pub fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    /// All streams.
    pub fn table(&self) -> &Arc<StreamTable> {
        &self.table
    }

    /// All metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Whether requests will be served.
    pub fn readiness(&self) -> Readiness {
        self.models.readiness()
    }

    /// Takes no new requests from now on.
    pub fn drain(&self) {
        self.models.all().iter().for_each(|served| served.backend.drain());
    }

    /// Waits until every stream in the table has ended, and every call that embeds.
    pub async fn drained(&self) {
        // Closed, it can still be entered; open, it would be waited for even when it is empty.
        self.embedding.close();
        self.embedding.wait().await;
        for log in self.table.live() {
            log.finished().await;
        }
    }

    /// Ends what is left with an error event, or where streams are kept, leaves it for the next process: readers are
    /// sent away without an end, and may come back. Blocks until that is done.
    pub fn shutdown(&self, message: &str) {
        // One that has failed hands nothing over: its streams end here like others.
        if let Some(store) = self.table.store().filter(|store| store.is_open()) {
            let live = self.table.live();
            live.iter().for_each(|log| log.suspend());
            // Before the backend ends them: what it appends then is nobody's to see.
            store.close();
        }
        self.models.all().iter().for_each(|served| served.backend.shutdown(message));
        self.table.feed().close();
    }

    fn limits(&self, served: &Served) -> validate::Limits<'_> {
        let (vocab_size, context_len) = (served.spec.vocab_size, served.context_len());
        validate::Limits { config: &self.config, vocab_size, context_len, unasked_len: usize::MAX }
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("config", &self.config).field("models", &self.models).finish_non_exhaustive()
    }
}

/// A stream in the table whose request the backend has not accepted yet. Leaves with an error or a panic: a stream
/// that nobody runs would never end.
struct Inserted<'a> {
    table: &'a StreamTable,
    log: Arc<StreamLog>,
    /// `None` once it was accepted.
    id: Option<StreamId>,
}

impl Drop for Inserted<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // Somebody who lists live streams may hold it already; for them it ends.
            if !self.log.is_finished() {
                let message = "the request was not accepted".to_owned();
                self.log.append(Event::Error(ErrorInfo {
                    kind: ErrorKind::Unavailable,
                    message,
                    usage: Usage::default(),
                }));
            }
            self.table.remove(id);
        }
    }
}

/// 53 bits, so that a JavaScript client can send the seed back unchanged.
fn random_seed() -> u64 {
    (StreamId::random().0 as u64) & ((1 << 53) - 1)
}

/// Wall time that cannot go back: read once, then carried on by the monotonic clock.
fn wall_clock() -> Clock {
    let start = Instant::now();
    let start_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    Arc::new(move || start_ms + start.elapsed().as_millis() as u64)
}
