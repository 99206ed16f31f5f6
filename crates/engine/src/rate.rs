//! How fast the engine frees what requests reserve, for telling a refused client when to come back.

use std::time::Duration;

/// Finished work of so long ago counts for 1/e.
const MEMORY_SECONDS: f64 = 30.0;
const RETRY_MS_MIN: u64 = 100;
const RETRY_MS_MAX: u64 = 60_000;
/// Said when nothing was ever measured.
const RETRY_MS_UNKNOWN: u64 = 1000;

/// Tokens freed per second of work: an average that forgets exponentially. Time in which there was nothing to do does
/// not count. Reservations (prompt and `max_tokens`) are what is counted, as they are what the queue is bounded by.
#[derive(Debug, Default)]
pub(crate) struct ServiceRate {
    tokens: f64,
    seconds: f64,
    num_busy: usize,
    /// Up to here time has been counted.
    counted_until: Duration,
}

impl ServiceRate {
    /// A request was accepted.
    pub(crate) fn on_accepted(&mut self, now: Duration) {
        self.advance(now);
        self.num_busy += 1;
    }

    /// An accepted request left without being served.
    pub(crate) fn on_abandoned(&mut self, now: Duration) {
        self.advance(now);
        self.num_busy = self.num_busy.saturating_sub(1);
    }

    /// A worker is through with a request, and its `tokens` are free for others.
    pub(crate) fn on_served(&mut self, tokens: usize, now: Duration) {
        self.on_abandoned(now);
        self.tokens += tokens as f64;
    }

    /// When there should be room, if `tokens` must be freed before.
    pub(crate) fn retry_after_ms(&self, tokens: usize, now: Duration) -> u64 {
        // If nothing has finished yet, it is likely to take as long again as it has taken.
        let unknown = || ((self.seconds_until(now) * 1000.0) as u64).max(RETRY_MS_UNKNOWN);
        self.wait_ms(tokens, now).unwrap_or_else(unknown).clamp(RETRY_MS_MIN, RETRY_MS_MAX)
    }

    /// How long it should take until `tokens` are freed; `None` before anything was measured.
    pub(crate) fn wait_ms(&self, tokens: usize, now: Duration) -> Option<u64> {
        (self.tokens > 0.0).then(|| (tokens as f64 * self.seconds_until(now) / self.tokens * 1000.0) as u64)
    }

    fn seconds_until(&self, now: Duration) -> f64 {
        let waited = if self.num_busy > 0 { now.saturating_sub(self.counted_until).as_secs_f64() } else { 0.0 };
        self.seconds + waited
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.counted_until).as_secs_f64();
        self.counted_until = self.counted_until.max(now);
        if self.num_busy > 0 {
            let kept = (-passed / MEMORY_SECONDS).exp();
            self.tokens *= kept;
            self.seconds = self.seconds * kept + passed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn before_any_measurement_the_answer_is_sensible() {
        let mut rate = ServiceRate::default();
        assert_eq!(rate.retry_after_ms(1_000_000, at(0)), 1000);
        rate.on_accepted(at(50_000));
        assert_eq!(rate.retry_after_ms(10, at(50_500)), 1000);
        assert_eq!(rate.retry_after_ms(10, at(55_000)), 5000, "as long again as it has taken");
    }

    #[test]
    fn the_answer_is_work_ahead_over_measured_rate() {
        let mut rate = ServiceRate::default();
        for i in 0..5 {
            rate.on_accepted(at(i * 1000));
            rate.on_served(200, at(i * 1000 + 1000));
        }
        let ms = rate.retry_after_ms(1000, at(5000));
        assert!((4500..=5500).contains(&ms), "200 tokens/s, 1000 to go: {ms}");
    }

    #[test]
    fn idle_time_does_not_count_and_old_rates_fade() {
        let mut rate = ServiceRate::default();
        rate.on_accepted(at(0));
        rate.on_served(1000, at(1000));
        let before = rate.retry_after_ms(1000, at(1000));
        rate.on_accepted(at(500_000));
        assert_eq!(rate.retry_after_ms(1000, at(500_000)), before);
        rate.on_served(10, at(600_000));
        assert_eq!(rate.retry_after_ms(1000, at(600_000)), RETRY_MS_MAX, "it has become slow");
    }
}
