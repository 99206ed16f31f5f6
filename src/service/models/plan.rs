//! Which models are loaded and unloaded, decided without a clock, a thread or a lock: what is seen of the models goes in,
//! orders come out. Not every order is carried out (a model may be asked in the moment in which it is to be unloaded), so
//! each decision begins with what is seen.
//!
//! ```text
//! wanted: requests wait for it, or a call does, and it is not loaded; in the order of the wishes
//!   fits beside what is in memory                       -> load
//!   fits once idle models go, those used longest ago    -> unload these; it is loaded when they are gone
//!   fits once busy models are idle                      -> wait, and so does all that was wanted later
//!   never fits beside the pinned ones that are loaded   -> wait, and hold nobody up
//! idle for long                                         -> unload
//! ```

use std::time::Instant;

use super::ModelLimits;

/// Where a model is, as far as memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Not in memory, whether it was ever tried or not.
    Away,
    Loading,
    Loaded,
    Unloading,
}

/// What is seen of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) place: Place,
    /// Whether nothing waits for it or runs.
    pub(super) is_idle: bool,
    pub(super) num_waiting: usize,
}

/// What is to be done with the model of this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Load(usize),
    /// Unload it, so that another one fits.
    MakeRoom(usize),
    /// Unload it, since it was idle for long.
    Retire(usize),
}

/// A wish for a model that is no request. It ends with the next load that is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    index: usize,
    num_loads: u64,
}

/// What is known of all models.
#[derive(Debug)]
pub(super) struct Plan {
    limits: ModelLimits,
    all: Vec<One>,
}

#[derive(Debug, Clone, Copy)]
struct One {
    bytes: u64,
    is_pinned: bool,
    /// When something was last asked of it, or seen to be under way.
    last: Instant,
    /// When it was first seen loaded.
    loaded: Option<Instant>,
    /// When it was first wanted, since it was loaded last.
    wanted: Option<Instant>,
    /// Calls that wait for a load to begin.
    num_calls: usize,
    num_loads: u64,
}

impl Plan {
    /// Of models that take so many bytes each, and are pinned or not.
    pub(super) fn new(limits: ModelLimits, models: impl Iterator<Item = (u64, bool)>, now: Instant) -> Self {
        let one = |(bytes, is_pinned)| One {
            bytes,
            is_pinned,
            last: now,
            loaded: None,
            wanted: None,
            num_calls: 0,
            num_loads: 0,
        };
        Self { limits, all: models.map(one).collect() }
    }

    /// Something was asked of a model.
    pub(super) fn ask(&mut self, index: usize, now: Instant) {
        self.all[index].last = now;
    }

    /// A model is wanted whether a request waits for it or not.
    pub(super) fn call(&mut self, index: usize, now: Instant) -> Call {
        let one = &mut self.all[index];
        one.last = now;
        one.num_calls += 1;
        Call { index, num_loads: one.num_loads }
    }

    /// Nobody waits for the call's answer any more.
    pub(super) fn hang_up(&mut self, call: Call) {
        let one = &mut self.all[call.index];
        if one.num_loads == call.num_loads {
            one.num_calls -= 1;
        }
    }

    /// What is to be done now. To be asked a few times a second, and when a model that is not loaded is asked for.
    pub(super) fn decide(&mut self, mut seen: Vec<Seen>, now: Instant) -> Vec<Order> {
        for (one, seen) in self.all.iter_mut().zip(&seen) {
            one.see(*seen, now);
        }
        let mut orders = Vec::new();
        self.load_wanted(&mut seen, now, &mut orders);
        let Some(idle_unload) = self.limits.idle_unload else { return orders };
        for index in 0..self.all.len() {
            let is_over = now.saturating_duration_since(self.all[index].last) >= idle_unload;
            if is_over && self.may_unload(index, &seen, now) {
                orders.push(Order::Retire(index));
            }
        }
        orders
    }

    fn load_wanted(&mut self, seen: &mut [Seen], now: Instant, orders: &mut Vec<Order>) {
        let mut wanted: Vec<usize> = (0..self.all.len()).filter(|index| self.all[*index].wanted.is_some()).collect();
        wanted.sort_by_key(|index| self.all[*index].wanted);
        for index in wanted {
            if seen[index].place != Place::Away || !self.can_ever_fit(index, seen) {
                continue;
            }
            if !self.has_room(index, seen, now, orders) {
                // Those that were wanted later wait too: else a large one would wait for ever.
                return;
            }
            let one = &mut self.all[index];
            (one.wanted, one.num_calls, one.num_loads) = (None, 0, one.num_loads + 1);
            seen[index].place = Place::Loading;
            orders.push(Order::Load(index));
        }
    }

    /// Whether it would fit if everything went that may ever go.
    fn can_ever_fit(&self, index: usize, seen: &[Seen]) -> bool {
        let stays = |(one, seen): &(&One, &Seen)| one.is_pinned && matches!(seen.place, Place::Loaded | Place::Loading);
        let stays = self.all.iter().zip(seen).filter(stays).map(|(one, _)| one.bytes);
        self.fits(stays.fold(self.all[index].bytes, u64::saturating_add))
    }

    /// Whether a model fits beside what is in memory; if not, orders what may go to go, if that is enough.
    fn has_room(&self, index: usize, seen: &mut [Seen], now: Instant, orders: &mut Vec<Order>) -> bool {
        let bytes_of = |seen: &[Seen], takes: fn(Place) -> bool| {
            let all = self.all.iter().zip(seen).filter(|(_, seen)| takes(seen.place)).map(|(one, _)| one.bytes);
            all.fold(self.all[index].bytes, u64::saturating_add)
        };
        if self.fits(bytes_of(seen, |place| place != Place::Away)) {
            return true;
        }
        // What is on its way out will be gone.
        let mut needed = bytes_of(seen, |place| matches!(place, Place::Loaded | Place::Loading));
        let mut idle: Vec<usize> = (0..self.all.len()).filter(|i| self.may_unload(*i, seen, now)).collect();
        idle.sort_by_key(|i| self.all[*i].last);
        let mut going = Vec::new();
        for i in idle {
            if self.fits(needed) {
                break;
            }
            needed = needed.saturating_sub(self.all[i].bytes);
            going.push(i);
        }
        if self.fits(needed) {
            for i in going {
                seen[i].place = Place::Unloading;
                orders.push(Order::MakeRoom(i));
            }
        }
        false
    }

    fn fits(&self, bytes: u64) -> bool {
        self.limits.memory_bytes_max.is_none_or(|max| bytes <= max)
    }

    fn may_unload(&self, index: usize, seen: &[Seen], now: Instant) -> bool {
        let (one, seen) = (&self.all[index], seen[index]);
        let has_stayed = one.loaded.is_some_and(|at| now.saturating_duration_since(at) >= self.limits.stay_min);
        has_stayed && !one.is_pinned && seen.place == Place::Loaded && seen.is_idle
    }
}

impl One {
    fn see(&mut self, seen: Seen, now: Instant) {
        let is_loaded = seen.place == Place::Loaded;
        self.loaded = is_loaded.then(|| self.loaded.unwrap_or(now));
        if seen.num_waiting > 0 || !seen.is_idle {
            self.last = now;
        }
        // Who wanted it may have left: it must not be loaded for nobody, nor hold others up.
        let is_wanted = !is_loaded && (seen.num_waiting > 0 || self.num_calls > 0);
        self.wanted = is_wanted.then(|| self.wanted.unwrap_or(now));
    }
}
