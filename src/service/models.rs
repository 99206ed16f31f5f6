//! The models of this process: which one a name means, and which are loaded.
//!
//! ```text
//! a request waits for a model, or an admin asks for it -> wanted -> room in memory?   -> loaded
//!                                        unload the idle one that was used least recently <- no
//! nothing asked of a loaded one for `idle_unload` -> unloaded
//! ```
//!
//! Never unloaded: a model that answers, that is waited for, that is pinned, or that was loaded less than `stay_min` ago, so
//! that two models that are asked in turn do not spend their time on loading. Models that are wanted are loaded in the order in
//! which they were asked for. Who waits keeps its place in its model's queue, and hears of it. All that is decided in `plan`;
//! here the models are looked at, and the decisions carried out.

mod plan;
#[cfg(test)]
mod simulation;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::plan::{ModelCall, ModelOrder, ModelPlace, ModelPlan, Seen};
use super::encoder::only_embeds;
use super::rule::shown;
use super::{Readiness, Residence, Served};
use crate::error::{Error, ErrorKind, Result};
use crate::settings;
use crate::settings::{HOUR_MS, bytes, common, millis, setting};

settings! {
    /// When models are loaded and unloaded.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ModelLimits {
        /// Memory limit for loaded models with their KV caches; the least recently used is unloaded first; 0 is no limit.
        ///
        /// By what each is known to need.
        pub memory_bytes_max: Option<u64> = None => common("model.memory_max", "memory-max", bytes(0, 1 << 50).or("0"));
        /// Unload a model that has had no request for this long; 0 is never.
        pub idle_unload: Option<Duration> = None
            => common("model.idle_unload_ms", "idle-unload-ms", millis(0, 1000 * HOUR_MS).or("0"));
        /// Keep a loaded model for at least this long.
        pub stay_min: Duration = Duration::from_secs(10) => setting("model.stay_min_ms", "stay-min-ms", millis(0, HOUR_MS));
    }
}

/// All models, the first of which is meant where a request names none.
#[derive(Debug)]
pub struct Models {
    all: Vec<Arc<Served>>,
    plan: Mutex<ModelPlan>,
}

/// A wish for a model, until it is heard or dropped.
struct Calling<'a> {
    models: &'a Models,
    call: ModelCall,
}

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.models.lock().hang_up(self.call);
    }
}

impl Models {
    /// # Errors
    /// If there is none, a name means two of them, or one alone is larger than the memory.
    pub fn new(all: Vec<Arc<Served>>, limits: ModelLimits) -> Result<Arc<Self>> {
        if all.is_empty() {
            return Err(Error::invalid("model.name", "there must be a model to serve"));
        }
        for (at, served) in all.iter().enumerate() {
            let names = std::iter::once(served.name()).chain(served.config.aliases.iter().map(String::as_str));
            for name in names {
                if let Some(other) = all[..at].iter().find(|other| other.answers_to(name)) {
                    let message = format!(
                        "models must have different names, but `{name}` means {:?} and {:?} (--served-name)",
                        other.name(),
                        served.name()
                    );
                    return Err(Error::invalid("model.served_name", message));
                }
            }
            let bytes = served.backend.memory_bytes();
            if let Some(max) = limits.memory_bytes_max.filter(|max| bytes > *max) {
                let message = format!(
                    "--memory-max must hold the largest model: {:?} takes about {bytes} bytes with its keys and values, \
                     got {max}",
                    served.name()
                );
                return Err(Error::invalid("model.memory_max", message));
            }
        }
        let each = all.iter().map(|served| (served.backend.memory_bytes(), served.config.is_pinned));
        let plan = Mutex::new(ModelPlan::new(limits, each, Instant::now()));
        Ok(Arc::new(Self { all, plan }))
    }

    /// All of them, the default first.
    pub fn all(&self) -> &[Arc<Served>] {
        &self.all
    }

    /// The one that is meant where a request names none.
    pub(crate) fn default_model(&self) -> &Arc<Served> {
        &self.all[0]
    }

    /// The one that `name` means.
    ///
    /// # Errors
    /// [`ErrorKind::ModelNotFound`].
    pub fn named(&self, name: Option<&str>) -> Result<&Arc<Served>> {
        self.find(name, |_| true)
    }

    /// The same, for a request that goes on from a text.
    ///
    /// # Errors
    /// [`ErrorKind::ModelNotFound`]; [`ErrorKind::InvalidRequest`] for a model that only embeds.
    pub fn generating(&self, name: Option<&str>) -> Result<&Arc<Served>> {
        let found = self.find(name, |served| !served.only_embeds)?;
        if found.only_embeds { Err(only_embeds(found.name())) } else { Ok(found) }
    }

    /// The one that `name` means. An error names those that are `listed`.
    fn find(&self, name: Option<&str>, listed: impl Fn(&Served) -> bool) -> Result<&Arc<Served>> {
        let Some(name) = name else { return Ok(self.default_model()) };
        self.all.iter().find(|served| served.answers_to(name)).ok_or_else(|| {
            let names = self.all.iter().filter(|served| listed(served));
            let names: Vec<String> = names.map(|served| format!("{:?}", served.name())).collect();
            let message = format!("`model` must be {}, got {}", names.join(" or "), shown(name));
            Error::new(ErrorKind::ModelNotFound, message).with_param("model")
        })
    }

    /// The one whose texts have this fingerprint, for a stream of an earlier process.
    pub(super) fn with_fingerprint(&self, fingerprint: u64) -> Option<&Arc<Served>> {
        self.all.iter().find(|served| served.config.fingerprint == fingerprint && !served.only_embeds)
    }

    /// Notes that something was asked of a model; begins to load it if it is not loaded and there is room.
    pub fn ask(&self, served: &Arc<Served>) {
        let now = Instant::now();
        if let Some(index) = self.index(served) {
            self.lock().ask(index, now);
        }
        if served.backend.residence() != Residence::Loaded {
            self.tend(now);
        }
    }

    /// Loads a model whether a request waits for it or not; waits until it is loaded.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if it cannot be loaded.
    pub async fn load(&self, served: &Arc<Served>) -> Result<()> {
        let Some(mut residence) = served.backend.watch_residence() else { return Ok(()) };
        loop {
            let now = Instant::now();
            let state = residence.borrow_and_update().clone();
            if state == Residence::Loaded {
                return Ok(());
            }
            // One that is on its way is what was asked for; if it fails, that is the answer.
            let index = self.index(served).filter(|_| state != Residence::Loading);
            let call = index.map(|index| self.lock().call(index, now));
            let _calling = call.map(|call| Calling { models: self, call });
            self.tend(now);
            if residence.changed().await.is_err() {
                return Err(Error::new(ErrorKind::Unavailable, "the server is shutting down"));
            }
            if let Residence::Failed(message) = residence.borrow().clone() {
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        }
    }

    /// Unloads a model, and waits until its memory is free; false while it is used or on its way into memory.
    pub async fn unload(&self, served: &Arc<Served>) -> bool {
        let Some(mut residence) = served.backend.watch_residence() else { return false };
        let is_away = |state: &Residence| matches!(state, Residence::Unloaded | Residence::Failed(_));
        let before = residence.borrow_and_update().clone();
        if !is_away(&before) && before != Residence::Unloading && !served.backend.begin_unload() {
            return false;
        }
        let after = residence.wait_for(|state| *state != Residence::Unloading).await;
        after.is_ok_and(|state| is_away(&state))
    }

    /// Loads what is wanted where there is room for it, and unloads what must make room or has been idle for long. Called a few
    /// times a second, and when something is asked of a model that is not loaded.
    pub fn tend(&self, now: Instant) {
        // Held until the orders are given, so that two do not decide about the same memory.
        let mut plan = self.lock();
        let seen = self.all.iter().map(|served| see(served)).collect();
        for order in plan.decide(seen, now) {
            match order {
                ModelOrder::Load(index) => self.all[index].backend.begin_load(),
                ModelOrder::MakeRoom(index) => {
                    tracing::info!("{} makes room for another model", self.all[index].name());
                    self.all[index].backend.begin_unload();
                }
                ModelOrder::Retire(index) => {
                    tracing::info!("{} is idle, and is unloaded", self.all[index].name());
                    self.all[index].backend.begin_unload();
                }
            }
        }
    }

    fn index(&self, served: &Arc<Served>) -> Option<usize> {
        self.all.iter().position(|other| Arc::ptr_eq(other, served))
    }

    /// Whether requests will be served: by any of the models.
    pub fn readiness(&self) -> Readiness {
        let all = self.all.iter().map(|served| served.backend.readiness());
        all.min_by_key(|readiness| match readiness {
            Readiness::Draining => 0,
            Readiness::Ready => 1,
            Readiness::Starting => 2,
            Readiness::Failed => 3,
        })
        .unwrap_or(Readiness::Failed)
    }

    fn lock(&self) -> MutexGuard<'_, ModelPlan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn see(served: &Served) -> Seen {
    let place = match served.backend.residence() {
        Residence::Unloaded | Residence::Failed(_) => ModelPlace::Away,
        Residence::Loading => ModelPlace::Loading,
        Residence::Loaded => ModelPlace::Loaded,
        Residence::Unloading => ModelPlace::Unloading,
    };
    Seen { place, is_idle: served.backend.is_idle(), num_waiting: served.backend.num_waiting() }
}

#[cfg(test)]
mod tests {
    use super::super::{LocalBackend, ServedConfig};
    use super::*;
    use crate::engine::{Engine, EngineConfig, Turns};
    use crate::metrics::Metrics;
    use crate::model::Model;
    use crate::model::stub::{StubConfig, StubModel};
    use crate::protocol::{OnDisconnect, QueueTerms, SamplingParams, StopParams, StreamId, Tenant, ValidRequest};
    use crate::stream::StreamLog;
    use crate::text::Tokenizer;

    const MIB: u64 = 1 << 20;
    const STAY: Duration = Duration::from_secs(10);

    /// A stub that takes so much memory, of which that of `broken` does not load.
    fn served(name: &str, memory_bytes: u64, turns: &Arc<Turns>) -> Arc<Served> {
        let (config, tokenizer) = (StubConfig::default(), Arc::new(Tokenizer::byte_level()));
        let spec = StubModel::new(config.clone()).spec().clone();
        let (metrics, factory) = (Arc::new(Metrics::default()), StubModel::factory(config));
        let engine =
            Engine::open(EngineConfig::default(), spec.clone(), tokenizer.clone(), metrics.clone(), turns.clone());
        let is_broken = name == "broken";
        let loader = move || if is_broken { Err(Error::bad_model("planted")) } else { Ok(factory.clone()) };
        let backend = LocalBackend::on_demand(engine.expect("opens"), name, Arc::new(loader), memory_bytes);
        let config = ServedConfig { is_pinned: name == "pinned", ..ServedConfig::named(name) };
        Arc::new(Served::new(config, tokenizer, None, spec, Arc::new(backend), metrics))
    }

    fn models(sizes: &[(&str, u64)], limits: ModelLimits) -> Arc<Models> {
        let turns = Turns::new(1);
        let all = sizes.iter().map(|(name, mib)| served(name, mib * MIB, &turns)).collect();
        Models::new(all, ModelLimits { stay_min: STAY, ..limits }).expect("good names")
    }

    fn bounded(mib: u64) -> ModelLimits {
        ModelLimits { memory_bytes_max: Some(mib * MIB), ..ModelLimits::default() }
    }

    /// Asks for a token; its log ends once the model was loaded.
    fn ask(models: &Models, name: &str) -> Arc<StreamLog> {
        let served = models.named(Some(name)).expect("served");
        let (id, tenant, on_disconnect) = (StreamId::random(), Tenant(0), OnDisconnect::Detach);
        let request = ValidRequest {
            id,
            tenant,
            prompt: vec![104],
            max_tokens: 1,
            sampling: SamplingParams { seed: Some(1), ..SamplingParams::default() },
            stop: StopParams::default(),
            on_disconnect,
            queue: QueueTerms::default(),
            constraint: None,
            leader: None,
            resumed: None,
        };
        let log = StreamLog::new(id, tenant, on_disconnect);
        served.backend.submit(request, log.clone()).expect("room");
        log
    }

    /// Until the model's weights are there, or away.
    async fn until(models: &Models, name: &str, wanted: Residence) {
        let mut residence = models.named(Some(name)).expect("served").backend.watch_residence().expect("they move");
        residence.wait_for(|state| *state == wanted).await.expect("it is alive");
    }

    fn residence(models: &Models, name: &str) -> Residence {
        models.named(Some(name)).expect("served").backend.residence()
    }

    #[tokio::test]
    async fn what_is_asked_for_is_loaded_and_answers() {
        let models = models(&[("a", 1), ("b", 1)], ModelLimits::default());
        let log = ask(&models, "b");
        assert_eq!(residence(&models, "b"), Residence::Unloaded, "nobody tended it");
        models.tend(Instant::now());
        log.finished().await;
        // A worker may answer before the thread that loaded its model says so.
        until(&models, "b", Residence::Loaded).await;
        assert_eq!(residence(&models, "a"), Residence::Unloaded);
    }

    #[tokio::test]
    async fn the_one_used_least_recently_makes_room_once_it_has_stayed() {
        let models = models(&[("a", 2), ("b", 2), ("c", 2)], bounded(5));
        let mut now = Instant::now();
        for name in ["a", "b"] {
            let log = ask(&models, name);
            models.tend(now);
            log.finished().await;
            until(&models, name, Residence::Loaded).await;
            now += Duration::from_secs(1);
            models.tend(now);
        }
        let log = ask(&models, "c");
        models.tend(now);
        assert_eq!(residence(&models, "c"), Residence::Unloaded, "both have stayed for too short a time");
        now += STAY;
        models.tend(now);
        until(&models, "a", Residence::Unloaded).await;
        models.tend(now);
        log.finished().await;
        until(&models, "c", Residence::Loaded).await;
        assert_eq!(residence(&models, "b"), Residence::Loaded);
    }

    #[tokio::test]
    async fn a_pinned_model_never_makes_room_and_who_waits_keeps_waiting() {
        let models = models(&[("pinned", 2), ("b", 2)], bounded(3));
        let now = Instant::now();
        let log = ask(&models, "pinned");
        models.tend(now);
        log.finished().await;
        until(&models, "pinned", Residence::Loaded).await;
        models.tend(now);
        let log = ask(&models, "b");
        models.tend(now + 10 * STAY);
        assert_eq!(residence(&models, "pinned"), Residence::Loaded);
        assert!(!log.is_finished() && residence(&models, "b") == Residence::Unloaded);
    }

    #[tokio::test]
    async fn an_idle_model_is_unloaded_and_comes_back() {
        let idle_unload = Some(Duration::from_secs(60));
        let models = models(&[("a", 1)], ModelLimits { idle_unload, ..ModelLimits::default() });
        let now = Instant::now();
        let log = ask(&models, "a");
        models.tend(now);
        log.finished().await;
        until(&models, "a", Residence::Loaded).await;
        // Seen to be idle from here on.
        models.tend(now);
        models.tend(now + Duration::from_secs(59));
        assert_eq!(residence(&models, "a"), Residence::Loaded);
        models.tend(now + Duration::from_secs(61));
        until(&models, "a", Residence::Unloaded).await;
        let log = ask(&models, "a");
        models.tend(now + Duration::from_secs(62));
        log.finished().await;
    }

    #[tokio::test]
    async fn a_model_that_does_not_load_ends_who_waits_and_may_be_tried_again() {
        let models = models(&[("broken", 1)], ModelLimits::default());
        for _ in 0..2 {
            let log = ask(&models, "broken");
            models.tend(Instant::now());
            log.finished().await;
            let served = models.default_model().clone();
            let e = models.load(&served).await.expect_err("it never loads");
            assert!(e.message().contains("planted"), "{e}");
            assert_eq!(models.readiness(), Readiness::Failed);
        }
    }

    #[tokio::test]
    async fn an_admin_loads_and_unloads() {
        let models = models(&[("a", 1)], ModelLimits::default());
        let served = models.default_model().clone();
        models.load(&served).await.expect("it loads");
        assert_eq!(residence(&models, "a"), Residence::Loaded);
        assert!(models.unload(&served).await, "it is idle");
        assert_eq!(residence(&models, "a"), Residence::Unloaded);
    }

    #[test]
    fn names_are_told_apart_and_the_largest_must_fit() {
        let turns = Turns::new(1);
        let all = |names: [&str; 2]| names.map(|name| served(name, 3 * MIB, &turns)).to_vec();
        let e = Models::new(all(["a", "a"]), ModelLimits::default()).expect_err("one name");
        assert!(e.message().contains("--served-name"), "{e}");
        let e = Models::new(all(["a", "b"]), bounded(2)).expect_err("too large");
        assert!(e.message().contains("--memory-max"), "{e}");
        let models = Models::new(all(["a", "b"]), ModelLimits::default()).expect("two");
        let e = models.named(Some("c")).expect_err("unknown");
        assert_eq!(e.message(), "`model` must be \"a\" or \"b\", got \"c\"");
    }
}
