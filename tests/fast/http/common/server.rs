//! A server on a port of its own, around a backend.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tallow::api::{self, ApiConfig};
use tallow::metrics::Metrics;
use tallow::model::ModelSpec;
use tallow::service::{Backend, ChatTemplate, ModelLimits, Models, Served, ServedConfig, Service, ServiceConfig};
use tallow::stream::{StreamStore, StreamTable, TableLimits};
use tallow::text::Tokenizer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::GatedBackend;

/// ChatML, as the stub's template.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                            {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A server around any backend; the default is the one under the test's control.
pub(crate) struct TestServer<B = GatedBackend> {
    pub address: SocketAddr,
    pub service: Arc<Service>,
    pub backend: Arc<B>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

/// What a test may want otherwise.
pub(crate) struct Setup {
    pub api: ApiConfig,
    pub table: TableLimits,
    /// Where streams are kept, if not in memory alone.
    pub store: Option<Arc<StreamStore>>,
    pub service: ServiceConfig,
    pub served: ServedConfig,
    pub spec: ModelSpec,
    pub with_template: bool,
    pub template: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            // Heads at once: most tests decide only after the head when tokens come.
            api: ApiConfig { head_wait: Duration::ZERO, ..ApiConfig::default() },
            table: TableLimits::default(),
            store: None,
            service: ServiceConfig::default(),
            served: ServedConfig::named("stub"),
            spec: ModelSpec { vocab_size: 257, max_model_len: 256, num_blocks: 64, attention_span: usize::MAX },
            with_template: true,
            template: TEMPLATE,
        }
    }
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::default();
        change(&mut setup);
        Self::around(GatedBackend::new(), setup, Arc::new(Metrics::default())).await
    }
}

impl<B: Backend + 'static> TestServer<B> {
    pub(crate) async fn around(backend: Arc<B>, setup: Setup, metrics: Arc<Metrics>) -> Self {
        let service = service(&setup, backend.clone(), metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = service.clone();
        let serving = tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            api::serve(listener, running, setup.api, shutdown).await.unwrap();
        });
        Self { address, service, backend, stop: Some(stop), serving }
    }

    /// Asks it to stop; [`Self::stopped`] waits.
    pub(crate) fn stop(&mut self) {
        self.stop.take().expect("stopped once").send(()).unwrap();
    }

    pub(crate) async fn stopped(self) {
        self.serving.await.unwrap();
    }
}

fn service(setup: &Setup, backend: Arc<dyn Backend>, metrics: Arc<Metrics>) -> Arc<Service> {
    let template = setup.with_template.then(|| ChatTemplate::new(setup.template, "", "").unwrap());
    let table = match &setup.store {
        Some(store) => StreamTable::with_store(setup.table, store.clone()),
        None => StreamTable::new(setup.table),
    };
    let (config, spec, tokenizer) = (setup.served.clone(), setup.spec.clone(), Arc::new(Tokenizer::byte_level()));
    let served = Served::new(config, tokenizer, template, spec, backend, metrics.clone());
    let models = Models::new(vec![Arc::new(served)], ModelLimits::default()).unwrap();
    Arc::new(Service::new(setup.service.clone(), models, Arc::new(table), metrics).unwrap())
}
