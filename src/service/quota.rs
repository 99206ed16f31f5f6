//! What each owner may use: requests and tokens per minute, and generations at once. Rates are governor's (a bucket
//! that fills evenly over the minute, so a quiet owner may use a minute's worth at once), on the service's own clock.
//!
//! Tokens are counted as they are reserved, prompt and `max_tokens`, because that is known before the work. What an answer
//! did not use comes back when it has ended; all of it does for a request that is refused.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota as Rate, RateLimiter, clock};

use crate::error::{Error, Result};
use crate::protocol::{Field, Owner, Tenant};
use crate::stream::{Clock, StreamLog};

/// When an owner at its limit of concurrent generations is asked to come back: about one short generation.
const CONCURRENCY_RETRY_MS: u64 = 1000;

const MINUTE: Duration = Duration::from_secs(60);

/// All owners that have limits.
pub(super) struct Quotas {
    by_tenant: HashMap<Tenant, OwnerQuota>,
}

struct OwnerQuota {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    concurrency_max: usize,
    live: Mutex<Live>,
}

/// What an owner has going on.
#[derive(Default)]
struct Live {
    /// Requests on their way to a log.
    num_starting: usize,
    /// Ended ones leave when the next request comes, and with every sweep.
    running: Vec<Running>,
}

/// A generation that counts.
struct Running {
    /// Weak, or the last logs of an owner that falls silent would be kept past their time. Until it ends, a log is held by
    /// the worker that writes it.
    log: Weak<StreamLog>,
    /// Tokens that were reserved for it: its prompt, and as many as it may have.
    num_reserved: usize,
}

/// What an owner has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaState {
    /// Of requests.
    pub requests: Option<Allowance>,
    /// Of tokens.
    pub tokens: Option<Allowance>,
}

/// What is left of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// In a minute.
    pub limit: u32,
    /// Now.
    pub remaining: u32,
    /// Until nothing is missing.
    pub reset: Duration,
}

impl Quotas {
    pub(super) fn new(owners: &[Arc<Owner>], clock: &Clock) -> Self {
        let limited = owners.iter().filter(|owner| owner.limits != Default::default());
        let quota = |owner: &Arc<Owner>| {
            let bucket = |limit: Option<u32>| Some(Bucket::new(NonZeroU32::new(limit?)?, clock.clone()));
            let quota = OwnerQuota {
                requests: bucket(owner.limits.requests_per_minute),
                tokens: bucket(owner.limits.tokens_per_minute),
                concurrency_max: owner.limits.concurrency_max.map_or(usize::MAX, |max| max as usize),
                live: Mutex::default(),
            };
            (owner.tenant, quota)
        };
        Self { by_tenant: limited.map(quota).collect() }
    }

    /// Counts a request of `owner` for `num_choices` generations. They are under way until the slot is dropped, or the
    /// logs in it have ended.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::RateLimited`] with the time to come back.
    pub(super) fn begin(&self, owner: &Owner, num_choices: usize) -> Result<QuotaSlot<'_>> {
        let Some(quota) = self.by_tenant.get(&owner.tenant) else { return Ok(QuotaSlot { quota: None, num_choices }) };
        let mut live = quota.settled();
        let max = quota.concurrency_max;
        if num_choices > max {
            let message = format!(
                "concurrency limit: this key may run {max} generations at once, the request asks for {num_choices}"
            );
            return Err(Error::invalid("n", message));
        }
        let num_running = live.num_starting + live.running.len();
        if num_running + num_choices > max {
            let message =
                format!("concurrency limit reached: {num_running} of {max} generations of this key are running");
            return Err(Error::rate_limited(message, CONCURRENCY_RETRY_MS));
        }
        if let Some(requests) = &quota.requests {
            requests.take(NonZeroU32::MIN, "requests")?;
        }
        live.num_starting += num_choices;
        drop(live);
        Ok(QuotaSlot { quota: Some(quota), num_choices })
    }

    /// Counts a request's tokens.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::RateLimited`] with the time to come back;
    /// [`crate::error::ErrorKind::InvalidRequest`] for more than a minute's worth, which no waiting helps.
    pub(super) fn spend(&self, owner: &Owner, num_tokens: usize) -> Result<()> {
        let Some(tokens) = self.tokens_of(owner) else { return Ok(()) };
        let limit = tokens.limit.get();
        match u32::try_from(num_tokens).ok().and_then(NonZeroU32::new) {
            Some(n) if n <= tokens.limit => tokens.take(n, "tokens"),
            _ => {
                let rule = format!(
                    "must be, together with the prompt, at most the {limit} tokens that this key may use in a minute, \
                     got {num_tokens}"
                );
                Err(Error::rule(Field::MaxTokens, rule))
            }
        }
    }

    /// Most tokens that one request of `owner` can have.
    pub(super) fn tokens_max(&self, owner: &Owner) -> usize {
        self.tokens_of(owner).map_or(usize::MAX, |tokens| tokens.limit.get() as usize)
    }

    /// Takes back what was spent for a request that was refused then.
    pub(super) fn give_back(&self, owner: &Owner, num_tokens: usize) {
        if let Some(tokens) = self.tokens_of(owner) {
            tokens.give_back(num_tokens);
        }
    }

    fn tokens_of(&self, owner: &Owner) -> Option<&Bucket> {
        self.by_tenant.get(&owner.tenant)?.tokens.as_ref()
    }

    /// A generation that an earlier process has accepted counts like others. Its tokens were that process's to count.
    pub(super) fn occupy(&self, log: &Arc<StreamLog>) {
        if let Some(quota) = self.by_tenant.get(&log.tenant()) {
            quota.hold(std::iter::once(log), 0);
        }
    }

    /// Gives back what ended generations did not use.
    pub(super) fn sweep(&self) {
        self.by_tenant.values().for_each(|quota| drop(quota.settled()));
    }

    pub(super) fn state(&self, owner: &Owner) -> Option<QuotaState> {
        let quota = self.by_tenant.get(&owner.tenant)?;
        drop(quota.settled());
        let left = |bucket: &Option<Bucket>| bucket.as_ref().map(Bucket::left);
        Some(QuotaState { requests: left(&quota.requests), tokens: left(&quota.tokens) })
    }
}

/// A request that counts as under way. Dropped without [`Self::occupy`], it no longer does.
pub(super) struct QuotaSlot<'a> {
    quota: Option<&'a OwnerQuota>,
    num_choices: usize,
}

impl QuotaSlot<'_> {
    /// From here on it counts until `logs` have ended, for each of which `num_reserved` tokens were spent.
    pub(super) fn occupy<'l>(self, logs: impl Iterator<Item = &'l Arc<StreamLog>>, num_reserved: usize) {
        if let Some(quota) = self.quota {
            quota.hold(logs, num_reserved);
        }
    }
}

impl Drop for QuotaSlot<'_> {
    fn drop(&mut self) {
        if let Some(quota) = self.quota {
            quota.lock().num_starting -= self.num_choices;
        }
    }
}

impl OwnerQuota {
    /// Counts logs as under way until they have ended.
    fn hold<'l>(&self, logs: impl Iterator<Item = &'l Arc<StreamLog>>, num_reserved: usize) {
        if self.concurrency_max < usize::MAX || self.tokens.is_some() {
            let running = logs.map(|log| Running { log: Arc::downgrade(log), num_reserved });
            self.lock().running.extend(running);
        }
    }

    /// Forgets what has ended, and gives back what it did not use. A log that is gone has ended, nobody knows how.
    fn settled(&self) -> MutexGuard<'_, Live> {
        let mut live = self.lock();
        live.running.retain(|running| {
            let Some(log) = running.log.upgrade() else { return false };
            let Some(usage) = log.usage() else { return true };
            if let Some(tokens) = &self.tokens {
                tokens.give_back(running.num_reserved.saturating_sub(usage.prompt_tokens + usage.completion_tokens));
            }
            false
        });
        live
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        // Counters and a list; a panic elsewhere leaves them whole.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One limit.
struct Bucket {
    limit: NonZeroU32,
    time: ServiceTime,
    began: Duration,
    limiter: RateLimiter<NotKeyed, SharedState, ServiceTime, NoOpMiddleware<Duration>>,
    state: SharedState,
}

impl Bucket {
    fn new(limit: NonZeroU32, clock: Clock) -> Self {
        let (time, state) = (ServiceTime(clock), SharedState::default());
        let limiter = RateLimiter::new(Rate::per_minute(limit), state.clone(), time.clone());
        Self { limit, began: clock::Clock::now(&time), time, limiter, state }
    }

    fn take(&self, n: NonZeroU32, what: &str) -> Result<()> {
        let Ok(Err(until)) = self.limiter.check_n(n) else { return Ok(()) };
        let wait = until.wait_time_from(clock::Clock::now(&self.time));
        let message = format!("this key's limit of {} {what} a minute is used up", self.limit);
        Err(Error::rate_limited(message, wait.as_millis().max(1) as u64))
    }

    fn give_back(&self, n: usize) {
        let time = MINUTE / self.limit.get() * u32::try_from(n).unwrap_or(u32::MAX);
        let mut state = self.state.lock();
        *state = state.map(|full_at| Duration::from_nanos(full_at.as_u64()).saturating_sub(time).into());
    }

    /// What is left, without taking any.
    fn left(&self) -> Allowance {
        let now = clock::Clock::now(&self.time).saturating_sub(self.began);
        // The bucket is full at its "theoretical arrival time"; what is missing now comes evenly until then.
        let full_at = Duration::from_nanos(self.state.lock().map_or(0, Nanos::as_u64));
        let reset = full_at.saturating_sub(now);
        let per_one = MINUTE / self.limit.get();
        let num_missing = reset.as_nanos().div_ceil(per_one.as_nanos().max(1)) as u32;
        Allowance { limit: self.limit.get(), remaining: self.limit.get().saturating_sub(num_missing), reset }
    }
}

/// The service's clock as governor reads it.
#[derive(Clone)]
struct ServiceTime(Clock);

impl clock::Clock for ServiceTime {
    type Instant = Duration;

    fn now(&self) -> Duration {
        Duration::from_millis((self.0)())
    }
}

/// governor's one number, kept where it can also be read: its own store can only be changed.
#[derive(Clone, Default)]
struct SharedState(Arc<Mutex<Option<Nanos>>>);

impl SharedState {
    fn lock(&self) -> MutexGuard<'_, Option<Nanos>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for SharedState {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _key: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut state = self.lock();
        let (outcome, next) = f(*state)?;
        *state = Some(next);
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::error::ErrorKind;
    use crate::protocol::{ErrorInfo, Event, FinishReason, OnDisconnect, OwnerLimits, StreamId, Usage};

    fn quotas(limits: OwnerLimits) -> (Quotas, Arc<Owner>, Arc<AtomicU64>) {
        let owner = Arc::new(Owner { tenant: Tenant(7), limits, ..Owner::anonymous() });
        let time_ms = Arc::new(AtomicU64::new(1_000_000));
        let time = time_ms.clone();
        let clock: Clock = Arc::new(move || time.load(Ordering::Relaxed));
        (Quotas::new(std::slice::from_ref(&owner), &clock), owner, time_ms)
    }

    #[track_caller]
    fn refused(result: Result<impl Sized>) -> u64 {
        let e = result.err().expect("over the limit");
        assert_eq!(e.kind(), ErrorKind::RateLimited, "{e}");
        e.retry_after_ms().expect("told")
    }

    #[test]
    fn requests_fill_up_evenly_over_the_minute() {
        let limits = OwnerLimits { requests_per_minute: Some(6), ..OwnerLimits::default() };
        let (quotas, owner, time_ms) = quotas(limits);
        let left = || quotas.state(&owner).and_then(|s| s.requests).expect("a limit");
        assert_eq!(left(), Allowance { limit: 6, remaining: 6, reset: Duration::ZERO });
        for n in 1..=6 {
            quotas.begin(&owner, 1).expect("six in a minute");
            assert_eq!(left(), Allowance { limit: 6, remaining: 6 - n, reset: Duration::from_secs(10) * n });
        }
        assert_eq!(refused(quotas.begin(&owner, 1)), 10_000, "one every ten seconds");
        time_ms.fetch_add(10_000, Ordering::Relaxed);
        quotas.begin(&owner, 1).expect("one has come");
        assert_eq!(refused(quotas.begin(&owner, 1)), 10_000);
        time_ms.fetch_add(600_000, Ordering::Relaxed);
        assert_eq!(left().remaining, 6, "never more than a minute's worth");
    }

    #[test]
    fn tokens_are_counted_as_they_are_reserved() {
        let limits = OwnerLimits { tokens_per_minute: Some(600), ..OwnerLimits::default() };
        let (quotas, owner, time_ms) = quotas(limits);
        quotas.spend(&owner, 500).expect("of 600");
        assert_eq!(quotas.state(&owner).and_then(|s| s.tokens).map(|t| t.remaining), Some(100));
        assert_eq!(refused(quotas.spend(&owner, 150)), 5000, "ten a second");
        time_ms.fetch_add(5000, Ordering::Relaxed);
        quotas.spend(&owner, 150).expect("they have come");
        let too_large = quotas.spend(&owner, 601).expect_err("never fits");
        assert_eq!(too_large.kind(), ErrorKind::InvalidRequest);
    }

    #[test]
    fn what_an_answer_did_not_use_comes_back_when_it_has_ended() {
        let limits = OwnerLimits { tokens_per_minute: Some(6000), ..OwnerLimits::default() };
        let (quotas, owner, _) = quotas(limits);
        let remaining = || quotas.state(&owner).and_then(|s| s.tokens).map(|t| t.remaining);
        let logs = [1, 2, 3].map(|id| StreamLog::new(StreamId(id), owner.tenant, OnDisconnect::Detach));
        let slot = quotas.begin(&owner, 3).expect("room");
        quotas.spend(&owner, 3 * 1000).expect("of 6000");
        slot.occupy(logs.iter(), 1000);
        assert_eq!(remaining(), Some(3000));
        let usage = Usage { prompt_tokens: 100, completion_tokens: 50, ..Usage::default() };
        logs[0].append(Event::Done { finish_reason: FinishReason::Stop, usage, stop: None });
        assert_eq!(remaining(), Some(3850), "850 of the first were not used");
        assert_eq!(remaining(), Some(3850), "they come back once");
        let message = "cancelled".to_owned();
        logs[1].append(Event::Error(ErrorInfo { kind: ErrorKind::Cancelled, message, usage: Usage::default() }));
        quotas.sweep();
        drop(logs);
        assert_eq!(remaining(), Some(4850), "nothing of the second was used; nobody knows of the third");
    }

    #[test]
    fn a_place_is_free_the_moment_its_log_has_ended_or_its_request_failed() {
        let limits = OwnerLimits { concurrency_max: Some(2), ..OwnerLimits::default() };
        let (quotas, owner, _) = quotas(limits);
        let log = StreamLog::new(StreamId(1), owner.tenant, OnDisconnect::Detach);
        quotas.begin(&owner, 1).expect("room").occupy([&log].into_iter(), 0);
        let failing = quotas.begin(&owner, 1).expect("room");
        refused(quotas.begin(&owner, 1));
        drop(failing);
        let starting = quotas.begin(&owner, 1).expect("the failed one is gone");
        refused(quotas.begin(&owner, 1));
        log.append(Event::Done { finish_reason: FinishReason::Stop, usage: Usage::default(), stop: None });
        quotas.begin(&owner, 1).expect("the log has ended");
        drop(starting);
    }

    #[test]
    fn a_log_that_has_ended_is_not_kept_by_an_owner_that_falls_silent() {
        let limits = OwnerLimits { concurrency_max: Some(1), ..OwnerLimits::default() };
        let (quotas, owner, _) = quotas(limits);
        let log = StreamLog::new(StreamId(1), owner.tenant, OnDisconnect::Detach);
        quotas.begin(&owner, 1).expect("room").occupy([&log].into_iter(), 0);
        refused(quotas.begin(&owner, 1));
        log.append(Event::Done { finish_reason: FinishReason::Stop, usage: Usage::default(), stop: None });
        let kept = Arc::downgrade(&log);
        drop(log);
        assert!(kept.upgrade().is_none(), "nobody else has it");
        quotas.begin(&owner, 1).expect("the log has ended");
    }

    #[test]
    fn choices_are_one_request_and_several_generations() {
        let limits = OwnerLimits { requests_per_minute: Some(2), concurrency_max: Some(4), ..OwnerLimits::default() };
        let (quotas, owner, _) = quotas(limits);
        let three = quotas.begin(&owner, 3).expect("room for four");
        refused(quotas.begin(&owner, 2));
        quotas.begin(&owner, 1).expect("room for one more, and the second request of two");
        drop(three);
        assert_eq!(quotas.begin(&owner, 5).err().map(|e| e.kind()), Some(ErrorKind::InvalidRequest), "never fits");
    }

    #[test]
    fn others_are_not_limited() {
        let (quotas, _, _) = quotas(OwnerLimits { requests_per_minute: Some(1), ..OwnerLimits::default() });
        let other = Owner { tenant: Tenant(8), ..Owner::anonymous() };
        for _ in 0..3 {
            quotas.begin(&other, 1).expect("no limit");
        }
        assert_eq!(quotas.state(&other), None);
    }
}
