//! Random schedules against the plan: models of random sizes that are asked, called, left, unloaded by hand, that load, fail
//! and get stuck, with time passing. There is no thread and no clock; everything follows from one seed, which a failure
//! prints. `TALLOW_SIM_SCHEDULES=n` runs that many.
//!
//! The world keeps its own account of who waits since when, and checks every order against it:
//!
//! - what is in memory fits it;
//! - only an idle model is unloaded that is not pinned and has stayed; to make room, the one used longest ago, and no more
//!   than it takes; for being idle, only after its time;
//! - only what is wanted is loaded, and nothing before what was wanted earlier and can fit;
//! - a load that fails ends the wait, and once no more is asked, nobody waits who can be served.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::ModelLimits;
use super::plan::{Call, Order, Place, Plan, Seen};
use crate::sampling::random_u64;

const NUM_SCHEDULES: u64 = 3000;
const NUM_STEPS: u64 = 150;
/// Of quiet at the end: more than all loads, answers and stays of a schedule take together.
const NUM_QUIET_STEPS: u64 = 400;
const TICK: Duration = Duration::from_secs(1);

/// A planted defect: the plan hears or does something wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    /// What is on its way into memory seems away.
    LoadingSeemsAway,
    /// What is on its way out seems to be gone.
    UnloadingSeemsAway,
    /// Every model seems idle.
    BusySeemsIdle,
    /// Nobody seems to wait.
    WaitingSeemsNone,
    PinsForgotten,
    StayForgotten,
    MemoryForgotten,
    IdleTimeForgotten,
    /// Uses are noted for the neighbour.
    UsesMixedUp,
    /// Who hangs up is not heard.
    HangUpsForgotten,
    /// The first of several orders is lost, always.
    OrdersLost,
    /// Loads are done for the neighbour.
    LoadsMixedUp,
}

const DEFECTS: [Defect; 12] = [
    Defect::LoadingSeemsAway,
    Defect::UnloadingSeemsAway,
    Defect::BusySeemsIdle,
    Defect::WaitingSeemsNone,
    Defect::PinsForgotten,
    Defect::StayForgotten,
    Defect::MemoryForgotten,
    Defect::IdleTimeForgotten,
    Defect::UsesMixedUp,
    Defect::HangUpsForgotten,
    Defect::OrdersLost,
    Defect::LoadsMixedUp,
];

struct Random {
    seed: u64,
    position: u64,
}

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.position += 1;
        random_u64(self.seed, self.position) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A model as it really is.
struct Real {
    bytes: u64,
    is_pinned: bool,
    place: Place,
    /// Steps until a load or an unload ends.
    num_left: u64,
    num_waiting: usize,
    num_running: usize,
    calls: Vec<Call>,
    /// As of the looks at it: when it was used last, first seen loaded, first wanted.
    last: Instant,
    loaded: Option<Instant>,
    wanted: Option<Instant>,
}

impl Real {
    fn is_idle(&self) -> bool {
        self.num_waiting + self.num_running == 0
    }

    fn is_wanted(&self) -> bool {
        self.num_waiting > 0 || !self.calls.is_empty()
    }

    fn takes_memory(&self) -> bool {
        self.place != Place::Away
    }
}

/// What happened, over all schedules.
#[derive(Debug, Default)]
struct Coverage {
    num_loads: u64,
    num_rooms: u64,
    num_retired: u64,
    num_failed: u64,
    num_served: u64,
    num_blocked: u64,
}

struct World {
    random: Random,
    limits: ModelLimits,
    now: Instant,
    all: Vec<Real>,
    plan: Plan,
    defect: Option<Defect>,
    is_quiet: bool,
    coverage: Coverage,
}

impl World {
    fn new(seed: u64, defect: Option<Defect>) -> Self {
        let mut random = Random { seed, position: 0 };
        let now = Instant::now();
        let num_models = 2 + random.below(4);
        let sizes: Vec<(u64, bool)> = (0..num_models).map(|_| (1 + random.below(4), random.one_in(6))).collect();
        let largest = sizes.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0);
        let limits = ModelLimits {
            memory_bytes_max: (!random.one_in(8)).then(|| largest + random.below(5)),
            idle_unload: random.one_in(2).then(|| TICK * (5 + random.below(20) as u32)),
            stay_min: TICK * random.below(6) as u32,
        };
        let real = |(bytes, is_pinned)| Real {
            bytes,
            is_pinned,
            place: Place::Away,
            num_left: 0,
            num_waiting: 0,
            num_running: 0,
            calls: Vec::new(),
            last: now,
            loaded: None,
            wanted: None,
        };
        let known = match defect {
            Some(Defect::StayForgotten) => ModelLimits { stay_min: Duration::ZERO, ..limits },
            Some(Defect::MemoryForgotten) => ModelLimits { memory_bytes_max: None, ..limits },
            Some(Defect::IdleTimeForgotten) => ModelLimits { idle_unload: limits.idle_unload.map(|_| TICK), ..limits },
            _ => limits,
        };
        let forgets_pins = defect == Some(Defect::PinsForgotten);
        let models = sizes.iter().map(|(bytes, is_pinned)| (*bytes, *is_pinned && !forgets_pins));
        let plan = Plan::new(known, models, now);
        let all = sizes.iter().copied().map(real).collect();
        Self { random, limits, now, all, plan, defect, is_quiet: false, coverage: Coverage::default() }
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn run(mut self) -> Coverage {
        for _ in 0..NUM_STEPS {
            self.disturb();
            self.go_on();
            self.tend();
        }
        self.is_quiet = true;
        for _ in 0..NUM_QUIET_STEPS {
            self.now += TICK;
            self.go_on();
            self.tend();
        }
        for index in 0..self.all.len() {
            assert!(
                !self.all[index].is_wanted() || !self.can_ever_fit(index),
                "model {index} is waited for, and does not come"
            );
        }
        self.coverage
    }

    /// Something that comes from outside.
    fn disturb(&mut self) {
        let index = self.random.below(self.all.len() as u64) as usize;
        let noted = if self.has(Defect::UsesMixedUp) { (index + 1) % self.all.len() } else { index };
        let now = self.now;
        match self.random.below(8) {
            0..=2 => {
                self.all[index].num_waiting += 1;
                self.all[index].last = now;
                self.plan.ask(noted, now);
            }
            3 => {
                let model = &mut self.all[index];
                if matches!(model.place, Place::Away | Place::Unloading) {
                    model.last = now;
                    model.calls.push(self.plan.call(index, now));
                }
            }
            4 => {
                if let Some(call) = self.all[index].calls.pop()
                    && self.defect != Some(Defect::HangUpsForgotten)
                {
                    self.plan.hang_up(call);
                }
            }
            5 => self.all[index].num_waiting = self.all[index].num_waiting.saturating_sub(1),
            6 if self.all[index].place == Place::Loaded && self.all[index].is_idle() => self.begin_unload(index),
            _ => self.now += TICK * self.random.below(4) as u32,
        }
    }

    /// Loads, unloads and answers go on by a step.
    fn go_on(&mut self) {
        for index in 0..self.all.len() {
            let (fails, is_stuck) = (self.random.one_in(5), self.random.one_in(8));
            let (begins, ends) = (self.random.one_in(2), self.random.one_in(3));
            let model = &mut self.all[index];
            match model.place {
                Place::Away => {}
                Place::Loading | Place::Unloading if model.num_left > 0 => model.num_left -= 1,
                Place::Loading if fails && !self.is_quiet => {
                    // Who waited is told.
                    (model.place, model.num_waiting) = (Place::Away, 0);
                    self.answer_calls(index);
                    self.coverage.num_failed += 1;
                }
                Place::Loading => {
                    model.place = Place::Loaded;
                    self.answer_calls(index);
                }
                Place::Unloading if is_stuck => {
                    model.place = Place::Loaded;
                    self.answer_calls(index);
                }
                Place::Unloading => model.place = Place::Away,
                Place::Loaded => {
                    if begins && model.num_waiting > 0 {
                        model.num_waiting -= 1;
                        model.num_running += 1;
                    }
                    if ends && model.num_running > 0 {
                        model.num_running -= 1;
                        self.coverage.num_served += 1;
                    }
                }
            }
        }
    }

    fn answer_calls(&mut self, index: usize) {
        let calls = std::mem::take(&mut self.all[index].calls);
        if !self.has(Defect::HangUpsForgotten) {
            calls.into_iter().for_each(|call| self.plan.hang_up(call));
        }
    }

    fn begin_unload(&mut self, index: usize) {
        self.all[index].place = Place::Unloading;
        self.all[index].num_left = self.random.below(3);
    }

    fn tend(&mut self) {
        let now = self.now;
        for model in &mut self.all {
            let is_loaded = model.place == Place::Loaded;
            model.loaded = is_loaded.then(|| model.loaded.unwrap_or(now));
            if !model.is_idle() {
                model.last = now;
            }
            model.wanted = (!is_loaded && model.is_wanted()).then(|| model.wanted.unwrap_or(now));
        }
        let seen = self.all.iter().map(|model| Seen {
            place: match model.place {
                Place::Loading if self.has(Defect::LoadingSeemsAway) => Place::Away,
                Place::Unloading if self.has(Defect::UnloadingSeemsAway) => Place::Away,
                place => place,
            },
            is_idle: model.is_idle() || self.has(Defect::BusySeemsIdle),
            num_waiting: if self.has(Defect::WaitingSeemsNone) { 0 } else { model.num_waiting },
        });
        let mut orders = self.plan.decide(seen.collect(), now);
        if self.has(Defect::OrdersLost) && !orders.is_empty() {
            orders.remove(0);
        }
        self.check_room_made(&orders);
        for order in orders {
            match order {
                Order::Load(index) if self.has(Defect::LoadsMixedUp) => self.load((index + 1) % self.all.len()),
                Order::Load(index) => self.load(index),
                Order::MakeRoom(index) => {
                    self.check_unload(index);
                    self.coverage.num_rooms += 1;
                    self.begin_unload(index);
                }
                Order::Retire(index) => {
                    self.check_unload(index);
                    let idle = self.limits.idle_unload.expect("models retire");
                    assert!(self.now - self.all[index].last >= idle, "model {index} is retired too early");
                    self.coverage.num_retired += 1;
                    self.begin_unload(index);
                }
            }
        }
        let bytes: u64 = self.all.iter().filter(|model| model.takes_memory()).map(|model| model.bytes).sum();
        assert!(self.fits(bytes), "{bytes} bytes are taken");
    }

    fn load(&mut self, index: usize) {
        let model = &self.all[index];
        assert_eq!(model.place, Place::Away, "model {index} is loaded twice");
        assert!(model.is_wanted(), "model {index} is loaded for nobody");
        for (other, earlier) in self.all.iter().enumerate() {
            let is_earlier = earlier.place == Place::Away && earlier.wanted < model.wanted;
            let is_passed = is_earlier && earlier.wanted.is_some() && self.can_ever_fit(other);
            assert!(!is_passed, "model {index} is loaded before {other}, which was wanted earlier");
        }
        self.coverage.num_loads += 1;
        self.all[index].place = Place::Loading;
        self.all[index].num_left = self.random.below(5);
    }

    fn may_unload(&self, index: usize) -> bool {
        let model = &self.all[index];
        let has_stayed = model.loaded.is_some_and(|at| self.now - at >= self.limits.stay_min);
        model.place == Place::Loaded && model.is_idle() && !model.is_pinned && has_stayed
    }

    fn check_unload(&self, index: usize) {
        let model = &self.all[index];
        assert_eq!(model.place, Place::Loaded, "model {index} is not there to be unloaded");
        assert!(model.is_idle(), "model {index} is unloaded while it is used or waited for");
        assert!(!model.is_pinned, "model {index} is pinned");
        assert!(self.may_unload(index), "model {index} has not stayed for its time");
    }

    /// Those that go are the ones used longest ago, and somebody waits for the room.
    fn check_room_made(&mut self, orders: &[Order]) {
        let making = |order: &Order| if let Order::MakeRoom(index) = order { Some(*index) } else { None };
        let going: Vec<usize> = orders.iter().filter_map(making).collect();
        let Some(latest) = going.iter().map(|index| self.all[*index].last).max() else {
            self.coverage.num_blocked += u64::from(orders.is_empty() && self.all.iter().any(|m| m.wanted.is_some()));
            return;
        };
        let stays_longer = |index: &usize| !going.contains(index) && self.may_unload(*index);
        for index in (0..self.all.len()).filter(stays_longer) {
            assert!(self.all[index].last >= latest, "model {index} was used longer ago than one that makes room");
        }
        let wants_room = |model: &Real| model.place == Place::Away && model.is_wanted();
        assert!(self.all.iter().any(wants_room), "room is made for nobody");
    }

    /// Whether a model fits beside the pinned ones that are in memory.
    fn can_ever_fit(&self, index: usize) -> bool {
        let stays = |model: &&Real| model.is_pinned && matches!(model.place, Place::Loaded | Place::Loading);
        let stays: u64 = self.all.iter().filter(stays).map(|model| model.bytes).sum();
        self.fits(stays + self.all[index].bytes)
    }

    fn fits(&self, bytes: u64) -> bool {
        self.limits.memory_bytes_max.is_none_or(|max| bytes <= max)
    }
}

#[test]
fn random_schedules_keep_every_rule() {
    let asked = std::env::var("TALLOW_SIM_SCHEDULES").ok().and_then(|n| n.parse().ok());
    let mut sum = Coverage::default();
    for seed in 1..=asked.unwrap_or(NUM_SCHEDULES) {
        let run = catch_unwind(|| World::new(seed, None).run());
        let Ok(seen) = run else { panic!("the schedule of seed {seed} breaks a rule") };
        sum.num_loads += seen.num_loads;
        sum.num_rooms += seen.num_rooms;
        sum.num_retired += seen.num_retired;
        sum.num_failed += seen.num_failed;
        sum.num_served += seen.num_served;
        sum.num_blocked += seen.num_blocked;
    }
    let Coverage { num_loads, num_rooms, num_retired, num_failed, num_served, num_blocked } = sum;
    let all = [num_loads, num_rooms, num_retired, num_failed, num_served, num_blocked];
    assert!(all.iter().all(|n| *n > 100), "everything happens: {sum:?}");
}

/// What the simulation is worth: each planted defect must be caught.
#[test]
fn planted_defects_are_caught() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let is_caught = |seed, defect| catch_unwind(AssertUnwindSafe(|| World::new(seed, Some(defect)).run())).is_err();
    let missed: Vec<Defect> =
        DEFECTS.into_iter().filter(|defect| !(1..=300).any(|seed| is_caught(seed, *defect))).collect();
    std::panic::set_hook(report);
    assert!(missed.is_empty(), "{missed:?} went unnoticed");
}
