//! Workers that come and go with the model's weights, and one that does not come or go in time.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use tallow::engine::Turns;
use tallow::model::{Batch, Model, ModelSpec};

use super::lost::solo;
use super::*;

/// Holds threads until it is opened.
#[derive(Default)]
struct Door {
    has_arrived: AtomicBool,
    is_open: AtomicBool,
}

impl Door {
    fn pass(&self) {
        self.has_arrived.store(true, Ordering::SeqCst);
        while !self.is_open.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_arrived(&self) {
        wait_for("a worker at the door", || self.has_arrived.load(Ordering::SeqCst));
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }
}

fn hasty(num_workers: usize) -> EngineConfig {
    let (worker_backoff_min, shutdown_time_max) = (Duration::from_millis(1), Duration::from_millis(100));
    EngineConfig { num_workers, worker_backoff_min, shutdown_time_max, ..EngineConfig::default() }
}

fn num_workers(server: &Server) -> i64 {
    server.metrics.kv_blocks_total.get() / StubConfig::default().num_blocks as i64
}

/// The engine went on with the workers that had not ended in time: here with none that serves.
#[test]
fn an_unload_that_a_stuck_worker_prevents_leaves_all_workers() {
    let (num_made, door) = (AtomicUsize::new(0), Arc::<Door>::default());
    let at_door = door.clone();
    let factory: ModelFactory = Arc::new(move || {
        let number = num_made.fetch_add(1, Ordering::SeqCst);
        if number == 2 {
            at_door.pass();
        }
        let faults = StubFaults { panic_on_token: (number < 2).then_some(1), ..StubFaults::default() };
        Ok(Box::new(StubModel::new(StubConfig { faults, ..StubConfig::default() })))
    });
    let server = Server::with_factory(hasty(2), factory).expect("the stub loads");
    assert_eq!(error(&server.submit(with_token(1, 1))).kind, ErrorKind::Internal);
    door.wait_arrived();
    assert!(server.engine.is_idle() && !server.engine.unload(), "one worker is still loading its next model");
    let log = server.submit(request(3));
    assert_eq!(transcript(&log), solo(request(3)), "the other one is back");
    door.open();
    wait_for("both workers", || num_workers(&server) == 2);
    assert!(server.engine.unload());
    assert_eq!(num_workers(&server), 0);
}

/// A stub that is slow to go away.
struct SlowToDrop(StubModel, Arc<Door>);

impl Model for SlowToDrop {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()> {
        self.0.forward(batch, logits)
    }

    fn hidden_states(&mut self, batch: &Batch, rows: Range<usize>, states: &mut Vec<f32>) -> Result<()> {
        self.0.hidden_states(batch, rows, states)
    }
}

impl Drop for SlowToDrop {
    fn drop(&mut self) {
        self.1.pass();
    }
}

/// The last worker ended after the unload was given up, and its engine took no request ever again.
#[test]
fn a_worker_that_ends_after_its_unload_was_given_up_comes_back() {
    let door = Arc::<Door>::default();
    let at_door = door.clone();
    let factory: ModelFactory =
        Arc::new(move || Ok(Box::new(SlowToDrop(StubModel::new(StubConfig::default()), at_door.clone()))));
    let server = Server::with_factory(hasty(1), factory).expect("the stub loads");
    assert!(!server.engine.unload(), "the model is not gone in time");
    let log = server.submit(request(3));
    door.open();
    wait_for("the worker", || {
        server.engine.sweep();
        log.is_finished()
    });
    assert_eq!(transcript(&log), solo(request(3)));
    assert!(!server.engine.has_failed() && server.engine.unload());
}

/// The slower of two workers ended after the load had failed, and the engine took no request ever again.
#[test]
fn after_a_load_that_failed_the_next_one_waits_for_its_last_worker() {
    let metrics = Arc::new(Metrics::default());
    let spec = StubModel::new(StubConfig::default()).spec().clone();
    let engine =
        Engine::open(hasty(2), spec, Arc::new(Tokenizer::byte_level()), metrics.clone(), Turns::new(2)).unwrap();
    let (num_made, door) = (AtomicUsize::new(0), Arc::<Door>::default());
    let at_door = door.clone();
    let failing: ModelFactory = Arc::new(move || {
        if num_made.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(tallow::error::Error::bad_model("planted"));
        }
        at_door.pass();
        Ok(Box::new(StubModel::new(StubConfig::default())))
    });
    assert_eq!(engine.load(failing).expect_err("one worker has none").kind(), ErrorKind::BadModel);
    let good = StubModel::factory(StubConfig::default());
    let refused = engine.load(good.clone()).expect_err("a worker is still loading");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    door.open();
    wait_for("the last worker of the attempt before", || engine.load(good.clone()).is_ok());
    let server = Server { engine, metrics };
    wait_for("both workers", || num_workers(&server) == 2);
    assert_eq!(transcript(&server.submit(request(3))), solo(request(3)));
}
