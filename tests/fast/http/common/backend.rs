//! A backend that does nothing by itself: each accepted request comes to the test as a [`Job`], and the test says
//! what happens to it. Nothing sleeps; every step can be awaited.

use std::sync::{Arc, Mutex};

use tallow::engine::Load;
use tallow::error::{Error, ErrorKind, Result};
use tallow::protocol::{
    ErrorInfo, Event, FinishReason, Tenant, TokenEvent, TokenId, TokenLogprob, Usage, ValidInput, ValidRequest,
};
use tallow::service::{Backend, Embedding, Readiness};
use tallow::stream::{CancelCause, StreamLog};
use tokio::sync::{mpsc, oneshot, watch};

/// More than any test has waiting.
const NUM_JOBS_MAX: usize = 64;

pub(crate) struct GatedBackend {
    jobs: mpsc::Sender<Job>,
    received: tokio::sync::Mutex<mpsc::Receiver<Job>>,
    texts: mpsc::Sender<EmbedJob>,
    received_texts: tokio::sync::Mutex<mpsc::Receiver<EmbedJob>>,
    state: Mutex<State>,
}

struct State {
    readiness: Readiness,
    refusal: Option<Error>,
    panics: bool,
    live: Vec<Arc<StreamLog>>,
}

/// One accepted request.
pub(crate) struct Job {
    pub request: ValidRequest,
    pub log: Arc<StreamLog>,
    cancelled: watch::Receiver<Option<CancelCause>>,
}

/// One text to embed.
pub(crate) struct EmbedJob {
    pub input: ValidInput,
    vector: oneshot::Sender<Result<Vec<f32>>>,
}

impl EmbedJob {
    pub(crate) fn answer(self, vector: &[f32]) {
        self.vector.send(Ok(vector.to_vec())).expect("somebody waits for it");
    }

    pub(crate) fn fail(self, kind: ErrorKind, message: &str) {
        self.vector.send(Err(Error::new(kind, message))).expect("somebody waits for it");
    }

    /// Waits until nobody wants the vector any more.
    pub(crate) async fn cancelled(&mut self) {
        self.vector.closed().await;
    }
}

impl GatedBackend {
    pub(crate) fn new() -> Arc<Self> {
        let (jobs, received) = mpsc::channel(NUM_JOBS_MAX);
        let (texts, received_texts) = mpsc::channel(NUM_JOBS_MAX);
        let state = State { readiness: Readiness::Ready, refusal: None, panics: false, live: Vec::new() };
        let (received, received_texts) = (received.into(), received_texts.into());
        Arc::new(Self { jobs, received, texts, received_texts, state: Mutex::new(state) })
    }

    /// The next accepted request.
    pub(crate) async fn job(&self) -> Job {
        self.received.lock().await.recv().await.expect("the backend lives")
    }

    /// The next accepted text to embed.
    pub(crate) async fn embed_job(&self) -> EmbedJob {
        self.received_texts.lock().await.recv().await.expect("the backend lives")
    }

    /// Whether no request is waiting to be taken by the test.
    pub(crate) async fn has_no_job(&self) -> bool {
        let has_text = self.received_texts.lock().await.try_recv().is_ok();
        !has_text && self.received.lock().await.try_recv().is_err()
    }

    pub(crate) fn set_readiness(&self, readiness: Readiness) {
        self.state.lock().unwrap().readiness = readiness;
    }

    /// Panics on the next request.
    pub(crate) fn panic_next(&self) {
        self.state.lock().unwrap().panics = true;
    }

    /// Refuses the next request.
    pub(crate) fn refuse_next(&self, error: Error) {
        self.state.lock().unwrap().refusal = Some(error);
    }
}

impl Backend for GatedBackend {
    fn submit(&self, request: ValidRequest, log: Arc<StreamLog>) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        if std::mem::take(&mut state.panics) {
            drop(state);
            panic!("the backend has a bug, as this test wants");
        }
        if let Some(error) = state.refusal.take() {
            return Err(error);
        }
        if state.readiness != Readiness::Ready {
            return Err(Error::new(ErrorKind::Unavailable, "not ready"));
        }
        state.live.retain(|log| !log.is_finished());
        state.live.push(log.clone());
        drop(state);
        log.append(Event::Queued { position: 0, wait_ms: None });
        let (sender, cancelled) = watch::channel(None);
        // Like the engine's: a cancelled request ends with an error event.
        let hooked = Arc::downgrade(&log);
        log.on_cancel(move |cause| {
            if let Some(log) = hooked.upgrade() {
                log.append(Event::Error(failure(ErrorKind::Cancelled, "the generation was cancelled")));
            }
            sender.send_replace(Some(cause));
        });
        let sent = self.jobs.try_send(Job { request, log, cancelled });
        assert!(sent.is_ok(), "more than {NUM_JOBS_MAX} jobs that the test has not taken");
        Ok(())
    }

    fn embed(&self, input: ValidInput) -> Result<Embedding> {
        if let Some(error) = self.state.lock().unwrap().refusal.take() {
            return Err(error);
        }
        let (vector, answer) = oneshot::channel();
        let sent = self.texts.try_send(EmbedJob { input, vector });
        assert!(sent.is_ok(), "more than {NUM_JOBS_MAX} texts that the test has not taken");
        Ok(Box::pin(async move { answer.await.expect("the test answers what it takes") }))
    }

    fn check_room(&self, _tenant: Tenant, _coming: Load) -> Result<()> {
        Ok(())
    }

    fn sweep(&self) {}

    fn readiness(&self) -> Readiness {
        self.state.lock().unwrap().readiness
    }

    fn drain(&self) {
        self.set_readiness(Readiness::Draining);
    }

    fn is_idle(&self) -> bool {
        self.state.lock().unwrap().live.iter().all(|log| log.is_finished())
    }

    fn shutdown(&self, message: &str) {
        let live = std::mem::take(&mut self.state.lock().unwrap().live);
        for log in live.iter().filter(|log| !log.is_finished()) {
            log.append(Event::Error(failure(ErrorKind::Unavailable, message)));
        }
    }
}

impl Job {
    pub(crate) fn start(&self) {
        self.log.append(Event::Started { prompt_tokens: self.request.prompt.len(), cached_tokens: 2 });
    }

    /// One byte-level token per byte.
    pub(crate) fn say(&self, text: &str) {
        let tokens: Vec<TokenId> = text.bytes().map(TokenId::from).collect();
        let logprob = |&token: &TokenId| TokenLogprob { token, logprob: -0.5, top: vec![(token, -0.5), (33, -1.25)] };
        let logprobs = match self.request.sampling.top_logprobs {
            Some(_) => tokens.iter().map(logprob).collect(),
            None => Vec::new(),
        };
        self.log.append(Event::Token(TokenEvent { text: text.to_owned(), tokens, logprobs }));
    }

    pub(crate) fn finish(&self, finish_reason: FinishReason) {
        self.end(finish_reason, None);
    }

    /// Ends the text as the stop string `stop` does.
    pub(crate) fn stop_at(&self, stop: &str) {
        self.end(FinishReason::Stop, Some(stop.to_owned()));
    }

    fn end(&self, finish_reason: FinishReason, stop: Option<String>) {
        let usage = Usage { prompt_tokens: self.request.prompt.len(), cached_tokens: 2, completion_tokens: 3 };
        self.log.append(Event::Done { finish_reason, usage, stop });
    }

    pub(crate) fn fail(&self, kind: ErrorKind, message: &str) {
        self.log.append(Event::Error(failure(kind, message)));
    }

    /// Runs the whole generation.
    pub(crate) fn run(&self, pieces: &[&str]) {
        self.start();
        for piece in pieces {
            self.say(piece);
        }
        self.finish(FinishReason::Stop);
    }

    /// Waits for the cancellation and says what caused it.
    pub(crate) async fn cancelled(&mut self) -> CancelCause {
        let cause = self.cancelled.wait_for(Option::is_some).await.expect("it ended without being cancelled");
        cause.expect("just checked")
    }
}

fn failure(kind: ErrorKind, message: &str) -> ErrorInfo {
    ErrorInfo { kind, message: message.to_owned(), usage: Usage::default() }
}
