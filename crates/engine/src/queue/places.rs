//! What those who wait are told: how many are before them, and how long that may take.

use std::time::Duration;

use super::QueueState;
use crate::fair::Ticket;
use tallow_stream::protocol::Event;

/// Requests further back are not told of their place: their turn is far, and finding it out would hold up the others.
const PLACES_TOLD_MAX: usize = 4096;

/// A request is told of its place at most as often as to make the pause this part of its waiting time so far, so that
/// the number of such events grows with the logarithm of that.
const NOTE_PAUSE_PART: u32 = 8;

impl QueueState {
    /// Tells a newcomer where it stands.
    pub(super) fn tell_first_place(&mut self, ticket: Ticket, num_running: usize, now: Duration) {
        let order = self.waiting.order(PLACES_TOLD_MAX);
        let position = order.iter().position(|t| *t == ticket).unwrap_or(self.waiting.load().requests - 1);
        let ahead = order.iter().take(position).filter_map(|t| self.waiting.get(*t));
        let num_ahead = ahead.map(|e| e.request.num_tokens_max()).sum::<usize>();
        let is_full = self.is_full(num_running);
        let Some(entry) = self.waiting.get_mut(ticket) else { return };
        let num_own = if is_full { entry.request.num_tokens_max() } else { 0 };
        let wait_ms = self.rate.wait_ms(num_ahead + num_own, now);
        entry.position = position;
        if entry.tells_places() {
            entry.writer.append(Event::Queued { position, wait_ms });
        }
    }

    /// Tells those who wait where they stand, if that has changed and they have not heard of it lately.
    pub(super) fn tell_places(&mut self, interval: Duration, num_running: usize, now: Duration) {
        let is_full = self.is_full(num_running);
        let mut num_ahead = 0;
        for (position, ticket) in self.waiting.order(PLACES_TOLD_MAX).into_iter().enumerate() {
            let Some(entry) = self.waiting.get_mut(ticket) else { continue };
            let num_own = entry.request.num_tokens_max();
            let wait_ms = self.rate.wait_ms(num_ahead + if is_full { num_own } else { 0 }, now);
            num_ahead += num_own;
            // While the disk is far behind, there is no room for news that can wait (`stream/store/handover`).
            let is_held_up = || entry.writer.log().is_held_up();
            if entry.position != position && now >= entry.next_note_at && entry.tells_places() && !is_held_up() {
                let pause = interval.max(now.saturating_sub(entry.accepted_at) / NOTE_PAUSE_PART);
                (entry.position, entry.next_note_at) = (position, now + pause);
                entry.writer.append(Event::Queued { position, wait_ms });
            }
        }
    }

    /// Whether workers have had no room for one more with as many under way as now: then not only those before a
    /// request must begin until it can, but as much must end as it needs itself.
    fn is_full(&self, num_running: usize) -> bool {
        self.full_at.is_some_and(|full_at| num_running >= full_at)
    }
}
