//! Token masks of grammars, worked out beside the steps.
//!
//! Which tokens may come next depends only on those before the step, so a mask is computed while the model computes the
//! step, on one of two threads that a worker starts when the first such sequence comes:
//!
//! ```text
//! worker:  build the batch -> ask ----> forward -> collect, for a short grace -> sample those whose masks are there
//! quick lane:                 \---> masks of grammars that were quick so far        (normal priority)
//! slow lane:                   \--> masks of grammars that once were slow           (low priority, owners in turn)
//! ```
//!
//! A mask is work for one sequence, and a step is everybody's, so no step waits for a mask longer than the grace. A
//! sequence whose mask is late keeps the row of logits that it would have sampled from and sits out the following steps
//! until the mask is there. The text is the same either way: the row and the mask do not depend on when they meet.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::constrain::{self, Constrained, Question};
use crate::metrics::Metrics;
use crate::sampling::grammar::STACK_BYTES;
use crate::sampling::random_u64;
use crate::threads::spawn_background;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::Tenant;

/// A step waits for masks for this part of the time that the model took ...
const GRACE_PART: u32 = 8;
/// ... but at least so long, as waking a thread takes up to a tenth of it ...
const GRACE_MIN: Duration = Duration::from_micros(300);
/// ... and at most so long.
const GRACE_MAX: Duration = Duration::from_millis(2);

/// A step in which nothing else could go on waits longer. This bounds how late such a step sees newcomers.
const GRACE_ALONE: Duration = Duration::from_millis(20);

/// Matchers of ended sequences that wait to be freed. Each may hold tens of megabytes, so a further one is freed by the
/// worker itself.
const BURIED_MAX: usize = 64;

/// How long a step waits for masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaskWait {
    /// For the grace.
    #[default]
    Grace,
    /// For all of them, and then some are taken for late, and some grammars for slow, drawn with this seed: a simulation's
    /// steps must not depend on the speed of threads.
    Drawn(u64),
}

/// A question on its way through a lane, or its answer.
#[derive(Debug)]
pub(super) struct MaskJob {
    pub(super) slot: usize,
    tenant: Tenant,
    /// Rises with every question, so that an answer to a sequence that has ended is told from one to its successor.
    pub(super) ticket: u64,
    is_quick: bool,
    pub(super) question: Question,
}

/// A worker's end of its lanes.
#[derive(Debug)]
pub(super) struct Masks {
    wait: MaskWait,
    /// A sequence has one question at a time, and those that ended may have left one each.
    answers_max: usize,
    lanes: Option<Lanes>,
    next_ticket: u64,
    /// Questions under way.
    num_away: usize,
    /// Of those, asked on the quick lane for the step being computed.
    num_awaited: usize,
    first_of_step: u64,
    /// Answers that count as late.
    withheld: Vec<MaskJob>,
    /// How often it was drawn which answers are late.
    num_draws: u64,
}

#[derive(Debug)]
struct Lanes {
    quick: Arc<Lane>,
    slow: Arc<Lane>,
    answers: Receiver<MaskJob>,
}

/// A thread's work.
#[derive(Debug, Default)]
struct Lane {
    line: Mutex<LaneLine>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct LaneLine {
    waiting: VecDeque<MaskJob>,
    /// What is only to be freed.
    buried: Vec<Question>,
    /// When each owner was served last, in served questions; forgotten when nothing waits.
    served: HashMap<Tenant, u64>,
    num_served: u64,
    is_closed: bool,
}

enum Work {
    Answer(Box<MaskJob>),
    Bury(Vec<Question>),
}

impl Masks {
    /// Without threads yet, for a worker of `num_slots` sequences.
    pub(super) fn new(wait: MaskWait, num_slots: usize) -> Self {
        Self {
            wait,
            answers_max: 2 * num_slots,
            lanes: None,
            next_ticket: 0,
            num_away: 0,
            num_awaited: 0,
            first_of_step: 0,
            withheld: Vec::new(),
            num_draws: 0,
        }
    }

    /// Begins a step: what is asked from here on, it may wait for.
    pub(super) fn begin_step(&mut self) {
        self.first_of_step = self.next_ticket;
        self.num_awaited = 0;
    }

    /// Asks what may come next for the sequence in `slot`, unless that is known or asked already.
    pub(super) fn ask(&mut self, slot: usize, tenant: Tenant, constrained: &mut Constrained, metrics: &Arc<Metrics>) {
        let ticket = self.next_ticket;
        let Some(question) = constrained.ask(ticket) else { return };
        let lanes = match &self.lanes {
            Some(lanes) => lanes,
            None => match Lanes::start(self.answers_max, metrics) {
                Ok(lanes) => self.lanes.insert(lanes),
                // Without a thread it is not worked out here: that would be everybody's time.
                Err(e) => return drop(constrained.take_answer(ticket, question.failed(e))),
            },
        };
        self.next_ticket += 1;
        self.num_away += 1;
        let is_quick = !question.is_slow();
        self.num_awaited += usize::from(is_quick);
        let lane = if is_quick { &lanes.quick } else { &lanes.slow };
        lane.push(MaskJob { slot, tenant, ticket, is_quick, question });
    }

    /// Whether a token that is sampled now is accepted in a lane.
    pub(super) fn defers(&self, constrained: Option<&Constrained>) -> bool {
        match (self.wait, constrained) {
            (_, None) => false,
            (MaskWait::Grace, Some(constrained)) => constrained.is_slow(),
            (MaskWait::Drawn(seed), Some(_)) => random_u64(!seed, self.next_ticket).is_multiple_of(4),
        }
    }

    /// Takes the answers that are there, waits for the rest of this step's within the grace, and hands each to `give`, which
    /// returns the matcher of a sequence that has ended. `forward_time` is what the model took; `is_alone` says that every
    /// sequence of the step needs a mask.
    pub(super) fn collect(
        &mut self,
        forward_time: Duration,
        is_alone: bool,
        mut give: impl FnMut(MaskJob) -> Option<Question>,
    ) {
        if let MaskWait::Drawn(seed) = self.wait {
            return self.draw_late(seed, give);
        }
        let began = Instant::now();
        let grace = (forward_time / GRACE_PART).clamp(GRACE_MIN, GRACE_MAX);
        let mut num_given = 0;
        while self.num_away > 0 {
            let patience = match (self.num_awaited, is_alone && num_given == 0) {
                (0, _) => Duration::ZERO,
                (_, true) => GRACE_ALONE,
                (_, false) => grace,
            };
            let Some(job) = self.next_answer(patience.saturating_sub(began.elapsed())) else { return };
            num_given += 1;
            let ended = give(job);
            self.bury(ended);
        }
    }

    /// Waits a little for any answer: every sequence that runs needs one.
    pub(super) fn wait(&mut self, mut give: impl FnMut(MaskJob) -> Option<Question>) {
        if let MaskWait::Drawn(seed) = self.wait {
            return self.draw_late(seed, give);
        }
        if let Some(job) = self.next_answer(GRACE_ALONE) {
            let ended = give(job);
            self.bury(ended);
        }
    }

    /// Whether answers are still to come.
    pub(super) fn has_questions(&self) -> bool {
        self.num_away > 0 || !self.withheld.is_empty()
    }

    /// Takes back what a sequence that has ended still asks, and frees what its matcher holds, which may take
    /// milliseconds, away from the worker.
    pub(super) fn forget(&mut self, constrained: Constrained) {
        let Some(lanes) = &self.lanes else { return };
        if let Some(ticket) = constrained.asked() {
            let taken = lanes.quick.take_back(ticket).or_else(|| lanes.slow.take_back(ticket));
            self.num_away -= usize::from(taken.is_some());
            lanes.slow.bury(taken.map(|job| job.question));
        }
        lanes.slow.bury(constrained.into_question());
    }

    fn bury(&self, question: Option<Question>) {
        if let Some(lanes) = &self.lanes {
            lanes.slow.bury(question);
        }
    }

    fn next_answer(&mut self, patience: Duration) -> Option<MaskJob> {
        let lanes = self.lanes.as_ref()?;
        let answer = if patience.is_zero() {
            lanes.answers.try_recv().map_err(|_| RecvTimeoutError::Timeout)
        } else {
            lanes.answers.recv_timeout(patience)
        };
        let job = answer.ok()?;
        self.num_away -= 1;
        self.num_awaited -= usize::from(job.is_quick && job.ticket >= self.first_of_step);
        Some(job)
    }

    fn draw_late(&mut self, seed: u64, mut give: impl FnMut(MaskJob) -> Option<Question>) {
        self.num_draws += 1;
        let mut all = std::mem::take(&mut self.withheld);
        while self.num_away > 0 {
            all.extend(self.next_answer(Duration::from_secs(1)));
        }
        // In the order of the questions, whichever thread was quicker.
        all.sort_by_key(|job| job.ticket);
        for job in all {
            let draw = random_u64(seed, job.ticket ^ (self.num_draws << 32));
            if draw.is_multiple_of(4) { self.withheld.push(job) } else { drop(give(job)) }
        }
    }
}

impl Lanes {
    fn start(answers_max: usize, metrics: &Arc<Metrics>) -> Result<Self> {
        let (sender, answers) = sync_channel(answers_max);
        let lanes = Self { quick: Arc::default(), slow: Arc::default(), answers };
        let failed = |e| Error::io("cannot start a thread to compute masks", e);
        let (quick, answer, told) = (lanes.quick.clone(), sender.clone(), metrics.clone());
        let thread = std::thread::Builder::new().name("masks".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || quick.serve(&answer, &told)).map_err(failed)?;
        let (slow, told) = (lanes.slow.clone(), metrics.clone());
        spawn_background("masks-slow", STACK_BYTES, move || slow.serve(&sender, &told)).map_err(failed)?;
        Ok(lanes)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for lane in [&self.quick, &self.slow] {
            lane.lock().is_closed = true;
            lane.wake.notify_all();
        }
    }
}

impl Lane {
    fn push(&self, job: MaskJob) {
        self.lock().waiting.push_back(job);
        self.wake.notify_one();
    }

    fn take_back(&self, ticket: u64) -> Option<MaskJob> {
        let mut line = self.lock();
        let at = line.waiting.iter().position(|job| job.ticket == ticket)?;
        line.waiting.remove(at)
    }

    fn bury(&self, question: Option<Question>) {
        let mut line = self.lock();
        let is_full = line.buried.len() >= BURIED_MAX;
        if let Some(question) = question.filter(|_| !is_full) {
            line.buried.push(question);
            drop(line);
            self.wake.notify_one();
        }
    }

    /// Works until the worker's end goes away.
    fn serve(&self, answer: &SyncSender<MaskJob>, metrics: &Metrics) {
        while let Some(work) = self.next() {
            match work {
                // What is broken may panic once more.
                Work::Bury(buried) => drop(catch_unwind(AssertUnwindSafe(|| drop(buried)))),
                Work::Answer(mut job) => {
                    job.work(metrics);
                    if answer.send(*job).is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn next(&self) -> Option<Work> {
        let mut line = self.lock();
        loop {
            if line.is_closed {
                return None;
            }
            if let Some(job) = line.take() {
                return Some(Work::Answer(Box::new(job)));
            }
            if !line.buried.is_empty() {
                return Some(Work::Bury(std::mem::take(&mut line.buried)));
            }
            line = self.wake.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, LaneLine> {
        // Lists, changed by whole operations; a panic elsewhere leaves them whole.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LaneLine {
    /// The first question of the owner that was served longest ago, so that one owner's do not hold up another's.
    fn take(&mut self) -> Option<MaskJob> {
        if self.waiting.is_empty() {
            self.served.clear();
            return None;
        }
        let last_served = |job: &MaskJob| self.served.get(&job.tenant).copied().unwrap_or_default();
        let (at, _) = self.waiting.iter().enumerate().min_by_key(|(at, job)| (last_served(job), *at))?;
        let job = self.waiting.remove(at)?;
        self.num_served += 1;
        self.served.insert(job.tenant, self.num_served);
        Some(job)
    }
}

impl MaskJob {
    fn work(&mut self, metrics: &Metrics) {
        let (began, began_cpu) = (Instant::now(), constrain::cpu_time());
        let is_replay = self.question.is_at_start();
        // What panics here is one request's, and its matcher is thrown away.
        let worked = catch_unwind(AssertUnwindSafe(|| self.question.work()));
        if worked.is_err() {
            let failed = Error::internal("the grammar of this request met a bug in the server");
            let _ = catch_unwind(AssertUnwindSafe(|| self.question.fail(failed)));
        }
        if !is_replay {
            self.question.mark_if_slow(began_cpu);
        }
        metrics.grammar_mask_seconds.observe(began.elapsed().as_secs_f64());
    }
}
