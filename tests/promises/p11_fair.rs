//! P11: a key with ten requests does not feel that another has a thousand in the queue. Counted in steps of the model, so
//! that a busy machine does not show.

use std::sync::Arc;
use std::time::Duration;

use tallow::engine::{Engine, EngineConfig};
use tallow::metrics::Metrics;
use tallow::model::stub::{StubConfig, StubModel};
use tallow::protocol::{
    Event, OnDisconnect, QueueTerms, SamplingParams, StopParams, StreamId, Task, Tenant, ValidRequest,
};
use tallow::stream::StreamLog;
use tallow::text::Tokenizer;

use crate::common::Figure;
use crate::common::record::quantile;

const MANY: usize = 1000;
const FEW: usize = 10;
const RATIO_MAX: f64 = 2.0;
/// Steps of the longest request, its prompt included.
const LONGEST_STEPS: f64 = 8.0 + 16.0 + 2.0;

struct Server {
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
}

impl Server {
    fn start() -> Self {
        let stub = StubConfig { step_delay: Duration::from_millis(2), ..StubConfig::default() };
        let config = EngineConfig { max_num_seqs: 8, queue_requests_max: 2 * MANY, ..EngineConfig::default() };
        let metrics = Arc::new(Metrics::default());
        let tokenizer = Arc::new(Tokenizer::byte_level());
        let engine = Engine::start(config, StubModel::factory(stub), tokenizer, metrics.clone()).expect("it starts");
        Self { engine, metrics }
    }

    /// The log's clock is the number of steps that were run.
    fn submit(&self, tenant: u64, number: usize) -> Arc<StreamLog> {
        let metrics = self.metrics.clone();
        let id = StreamId(u128::from(tenant) << 64 | number as u128);
        let clock = Arc::new(move || metrics.steps.get());
        let log = StreamLog::with_clock(id, Tenant(tenant), OnDisconnect::Detach, clock);
        let request = ValidRequest {
            id,
            tenant: Tenant(tenant),
            // Lengths that differ, so that slots do not all free up in one step.
            prompt: (0..20 + number % 30).map(|i| 97 + (i + number) as u32 % 26).collect(),
            max_tokens: 8 + number % 17,
            sampling: SamplingParams { seed: Some(number as u64), ..SamplingParams::default() },
            stop: StopParams { ignore_eos: true, ..StopParams::default() },
            on_disconnect: OnDisconnect::Detach,
            queue: QueueTerms::default(),
            constraint: None,
            leader: None,
            resumed: None,
            task: Task::Generate,
        };
        self.engine.submit(request, log.clone()).expect("room");
        log
    }

    /// Steps from each request to its first token, the worst of a hundred.
    async fn ttft_of_few(&self) -> f64 {
        let logs: Vec<_> = (0..FEW).map(|i| self.submit(2, i)).collect();
        let mut steps = Vec::new();
        for log in logs {
            let mut reader = log.reader(0);
            loop {
                assert!(reader.ready().await, "it ended without a token");
                let entry = reader.try_next_entry().expect("ready");
                if matches!(entry.event, Event::Token(_)) {
                    steps.push((entry.ts_ms - log.created_ms()) as f64);
                    break;
                }
            }
        }
        quantile(&mut steps, 0.99)
    }
}

#[tokio::test]
async fn p11_a_key_with_few_requests_does_not_wait_for_one_with_many() {
    let alone = Server::start().ttft_of_few().await;
    let server = Server::start();
    let many: Vec<_> = (0..MANY).map(|i| server.submit(1, i)).collect();
    let beside = server.ttft_of_few().await;
    let num_waiting = server.metrics.num_waiting.get();
    assert!(num_waiting > MANY as i64 / 2, "the others still wait: {num_waiting}");
    let ratio = beside / alone;
    Figure {
        promise: "P11",
        what: "TTFT p99 of 10 requests beside another key's 1,000",
        asked: "<= 2x of alone",
        measured: format!("{ratio:.2}x ({beside} steps beside, {alone} alone)"),
        is_reached: ratio <= RATIO_MAX,
    }
    .record();
    // It waits for slots that run out, never for the queue: without preemption no order of service does better.
    assert!(beside <= alone + LONGEST_STEPS, "{beside} steps beside, {alone} alone");
    drop(many);
}
