//! A server of the real parts around the stub model (or any other), in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow::api::{self, ApiConfig, ApiKey};
use tallow::engine::{Engine, EngineConfig};
use tallow::error::Result;
use tallow::metrics::Metrics;
use tallow::model::stub::{StubConfig, StubGate, StubModel};
use tallow::model::{Model, ModelFactory, ModelSpec};
use tallow::protocol::{Owner, Tenant};
use tallow::service::{
    Backend, ChatTemplate, LocalBackend, ModelLimits, Models, Served, ServedConfig, Service, ServiceConfig,
};
use tallow::stream::{StreamTable, TableLimits};
use tallow::text::Tokenizer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Reply, http};

/// ChatML, as the stub's template.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                            {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const STREAMS: &str = "/v1/streams";

/// What a proof may want otherwise; goes to a child process as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Options {
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub queue_requests_max: usize,
    pub num_blocks: usize,
    pub max_model_len: usize,
    pub step_delay_us: u64,
    /// The stub says a character with every token; else some take up to four.
    pub is_ascii: bool,
    /// The stub's steps wait at a gate: for the test in this process, for good in a child.
    pub is_gated: bool,
    pub heartbeat_ms: u64,
    pub head_wait_ms: u64,
    pub sweep_ms: u64,
    pub drain_ms: u64,
    pub close_ms: u64,
    pub retention_ms: u64,
    pub num_streams_max: usize,
    pub connections_max: usize,
    /// Each is another owner's; without any everybody is one.
    pub keys: Vec<String>,
    /// What makes prompts of chats.
    pub template: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            queue_requests_max: 1024,
            num_blocks: 4096,
            max_model_len: 8192,
            step_delay_us: 0,
            is_ascii: false,
            is_gated: false,
            heartbeat_ms: 60_000,
            head_wait_ms: 0,
            sweep_ms: 20,
            drain_ms: 60_000,
            close_ms: 5_000,
            retention_ms: 600_000,
            num_streams_max: 4096,
            connections_max: 4096,
            keys: Vec::new(),
            template: TEMPLATE.to_owned(),
        }
    }
}

impl Options {
    fn stub(&self, gate: Option<Arc<StubGate>>) -> StubConfig {
        StubConfig {
            max_model_len: self.max_model_len,
            num_blocks: self.num_blocks,
            // A proof says itself when a generation ends.
            eos_probability: 0.0,
            multibyte_probability: if self.is_ascii { 0.0 } else { StubConfig::default().multibyte_probability },
            step_delay: Duration::from_micros(self.step_delay_us),
            gate,
            ..StubConfig::default()
        }
    }

    fn engine(&self) -> EngineConfig {
        EngineConfig {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            prefill_tokens_per_step_max: self.max_num_batched_tokens,
            queue_requests_max: self.queue_requests_max,
            queue_tokens_max: 1 << 32,
            // A step at a shut gate is as it should be here.
            step_time_max: Duration::from_secs(3600),
            ..EngineConfig::default()
        }
    }

    fn owners(&self) -> Vec<Arc<Owner>> {
        let owner = |n: usize| {
            let (tenant, name) = (Tenant(n as u64), format!("owner-{n}"));
            Arc::new(Owner { tenant, name, is_admin: false, ..Owner::anonymous() })
        };
        (1..=self.keys.len()).map(owner).collect()
    }

    fn api(&self) -> ApiConfig {
        ApiConfig {
            keys: self.keys.iter().zip(self.owners()).map(|(key, owner)| ApiKey::new(key, owner)).collect(),
            heartbeat: Duration::from_millis(self.heartbeat_ms),
            head_wait: Duration::from_millis(self.head_wait_ms),
            sweep_interval: Duration::from_millis(self.sweep_ms),
            drain_timeout: Duration::from_millis(self.drain_ms),
            close_timeout: Duration::from_millis(self.close_ms),
            connections_max: self.connections_max,
            ..ApiConfig::default()
        }
    }

    fn table(&self) -> TableLimits {
        TableLimits {
            num_streams_max: self.num_streams_max,
            retention_ms: self.retention_ms,
            num_bytes_max: 4 << 30,
            ..TableLimits::default()
        }
    }
}

/// A model that is not the stub.
pub(crate) struct OtherModel {
    pub factory: ModelFactory,
    pub tokenizer: Arc<Tokenizer>,
}

/// A server in this process.
pub(crate) struct Host {
    pub address: SocketAddr,
    pub service: Arc<Service>,
    /// Of the stub, if it is gated.
    pub gate: Arc<StubGate>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<()>>,
}

impl Host {
    pub(crate) async fn start(options: &Options) -> Self {
        Self::on("127.0.0.1:0", options).await
    }

    /// With a model that waits at the given gate by itself.
    pub(crate) async fn with_model(options: &Options, model: OtherModel, gate: Arc<StubGate>) -> Self {
        Self::build("127.0.0.1:0", options, model, gate).await
    }

    async fn on(address: &str, options: &Options) -> Self {
        let gate = StubGate::new();
        let stub = options.stub(options.is_gated.then(|| gate.clone()));
        let factory: ModelFactory = Arc::new(move || Ok(Box::new(StubModel::new(stub.clone())) as Box<dyn Model>));
        let model = OtherModel { factory, tokenizer: Arc::new(Tokenizer::byte_level()) };
        Self::build(address, options, model, gate).await
    }

    async fn build(address: &str, options: &Options, model: OtherModel, gate: Arc<StubGate>) -> Self {
        let metrics = Arc::new(Metrics::default());
        let OtherModel { factory, tokenizer } = model;
        let engine = Engine::start(options.engine(), factory, tokenizer.clone(), metrics.clone()).unwrap();
        let (spec, backend) = (engine.spec().clone(), Arc::new(LocalBackend::new(engine)));
        Self::serving(address, options, service(options, tokenizer, spec, backend, metrics), gate).await
    }

    /// Around a backend under the test's control.
    pub(crate) async fn around(options: &Options, backend: Arc<dyn Backend>) -> Self {
        let Options { max_model_len, num_blocks, .. } = *options;
        let spec = ModelSpec { vocab_size: 257, max_model_len, num_blocks, attention_span: usize::MAX };
        let service = service(options, Arc::new(Tokenizer::byte_level()), spec, backend, Arc::default());
        Self::serving("127.0.0.1:0", options, service, StubGate::new()).await
    }

    async fn serving(address: &str, options: &Options, service: Arc<Service>, gate: Arc<StubGate>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (running, api) = (service.clone(), options.api());
        let serving = tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            api::serve(listener, running, api, shutdown).await
        });
        Self { address, service, gate, stop: Some(stop), serving }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.service.metrics()
    }

    /// Waits until that many steps in all have come to the gate.
    pub(crate) async fn arrived(&self, num_steps: u64) {
        let gate = self.gate.clone();
        tokio::task::spawn_blocking(move || gate.wait_arrived(num_steps)).await.unwrap();
    }

    /// Waits until every generation has ended and its client has been told; then nothing may be held any more.
    pub(crate) async fn idle(&self) {
        self.service.drained().await;
        let m = self.metrics();
        assert_eq!([m.num_running.get(), m.num_waiting.get(), m.kv_blocks_used.get()], [0; 3], "leaked");
    }

    /// Asks it to stop.
    pub(crate) fn stop(&mut self) {
        self.stop.take().expect("stopped once").send(()).unwrap();
    }

    pub(crate) async fn stopped(self) {
        self.serving.await.unwrap().unwrap();
    }
}

fn service(
    options: &Options,
    tokenizer: Arc<Tokenizer>,
    spec: ModelSpec,
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
) -> Arc<Service> {
    let template = Some(ChatTemplate::new(&options.template, "", "").unwrap());
    let mut config = ServiceConfig::default();
    if !options.keys.is_empty() {
        config.owners = options.owners();
    }
    let table = Arc::new(StreamTable::new(options.table()));
    let served = Served::new(ServedConfig::named("stub"), tokenizer, template, spec, backend, metrics.clone());
    let models = Models::new(vec![Arc::new(served)], ModelLimits::default()).expect("one model");
    Arc::new(Service::new(config, models, table, metrics).expect("threads"))
}

/// A native stream's request.
pub(crate) fn native(max_tokens: usize, seed: u64, on_disconnect: &Value) -> Value {
    let prompt = format!("stream {seed}");
    json!({"prompt": prompt, "max_tokens": max_tokens, "seed": seed, "on_disconnect": on_disconnect})
}

/// A chat's request.
pub(crate) fn chat(prompt: &str, max_tokens: usize, stream: bool) -> Value {
    let messages = [json!({"role": "user", "content": prompt})];
    json!({"messages": messages, "max_tokens": max_tokens, "seed": 1, "stream": stream, "ignore_eos": true})
}

/// Starts a native stream; gives its path.
pub(crate) async fn create(to: SocketAddr, request: &Value) -> String {
    let reply: Reply = http(to, "POST", STREAMS, &[], &request.to_string()).await.unwrap();
    assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&reply.body));
    reply.headers["location"].clone()
}

/// One metric by its name on the wire.
pub(crate) async fn metric(of: SocketAddr, name: &str) -> f64 {
    let text = http(of, "GET", "/metrics", &[], "").await.unwrap().text();
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    line.unwrap_or_else(|| panic!("no metric {name} in\n{text}")).rsplit_once(' ').unwrap().1.parse().unwrap()
}
