//! The step loop's one step, without a thread around it: a worker runs it with a clock and a model, the simulation
//! with neither.
//!
//! ```text
//! end what was cancelled -> is the disk behind? no -> schedule -> pull from the queue -> forward, and beside it the masks of grammars
//!     -> sample -> publish -> end what is finished
//! ```
//!
//! A sequence's slot and blocks are free, and the gauges say so, before its terminal event can be seen.

mod disk;
mod embed;
mod generation;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use self::generation::{Generation, SequenceEnd, TokenTurn};
use super::constrain::{Constrained, Question};
use super::held::Held;
use super::lease::{Gauges, Lease};
use super::masks::{MaskJob, Masks};
use super::output::Output;
use super::parts::CoreParts;
use super::pooling::Pooling;
use super::queue::{Pulled, QueueEntry};
use super::scheduler::{Newcomer, Scheduler, SchedulerLimits};
use super::sequence::Sequence;
use super::takeover;
use crate::sampling::{Sampler, SeenTokens};
use tallow_model::{Batch, Model};
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::{Event, StreamId};

/// One worker's model, sequences and scratch.
pub struct EngineCore {
    model: Box<dyn Model>,
    lease: Arc<Lease>,
    parts: CoreParts,
    scheduler: Scheduler,
    /// By slot.
    generations: Vec<Option<Box<Generation>>>,
    free_slots: Vec<usize>,
    ended: Vec<(usize, SequenceEnd)>,
    sampler: Sampler,
    masks: Masks,
    batch: Batch,
    logits: Vec<f32>,
    /// Hidden states of one sequence.
    states: Vec<f32>,
    gauges: Gauges,
    /// Since when the disk holds it up.
    held_up_since: Option<Duration>,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was computed.
    Ran,
    /// Every sequence waits for the mask of its next token.
    Waited,
    /// There was nothing to do.
    Idle,
    /// The disk that keeps the streams is far behind, so nothing was computed: see [`EngineCore::wait_for_disk`].
    HeldUp,
    /// The step took so long that the worker was given up; everything is somebody else's now.
    Revoked,
    /// The engine shuts down; every sequence has its terminal event.
    Stopped,
}

impl EngineCore {
    /// A core without sequences.
    pub fn new(model: Box<dyn Model>, parts: CoreParts) -> Self {
        let num_blocks = model.spec().num_blocks;
        let limits = SchedulerLimits { attention_span: model.spec().attention_span, ..parts.limits };
        let scheduler = Scheduler::new(limits, num_blocks);
        let num_slots = scheduler.num_in_flight_max();
        let metrics = parts.metrics.clone();
        let lease = Lease::new(metrics.clone(), num_blocks);
        let gauges = Gauges::new(lease.clone(), metrics);
        Self {
            model,
            lease,
            scheduler,
            generations: (0..num_slots).map(|_| None).collect(),
            free_slots: (0..num_slots).rev().collect(),
            ended: Vec::new(),
            sampler: Sampler::default(),
            masks: Masks::new(parts.mask_wait, num_slots),
            batch: Batch::default(),
            logits: Vec::new(),
            states: Vec::new(),
            gauges,
            held_up_since: None,
            parts,
        }
    }

    /// Computes one step.
    ///
    /// # Errors
    /// If the model fails. Like after a panic, the core is of no more use then than for [`EngineCore::hand_over`].
    pub fn step(&mut self) -> Result<Step> {
        let started_at = self.parts.queue.now();
        self.end_cancelled();
        if let Some(step) = self.check_disk(started_at) {
            return Ok(step);
        }
        let scheduler = &self.scheduler;
        let expected = self.parts.queue.next_owner(|tenant| !scheduler.has_prompt(tenant));
        self.scheduler.expect(expected);
        self.scheduler.schedule();
        if let Some(message) = self.pull(started_at) {
            self.fail_all(ErrorKind::Unavailable, &message);
            return Ok(Step::Stopped);
        }
        if self.lease.is_revoked() {
            return Ok(Step::Revoked);
        }
        self.gauges.set(&self.scheduler);
        if self.scheduler.plan().is_empty() {
            return self.wait_for_masks();
        }
        self.scheduler.build(&mut self.batch);
        self.ask_masks();
        self.lease.work_for(self.likely_culprit());
        let began = self.parts.queue.now();
        let computed = self.model.forward(&self.batch, &mut self.logits);
        let forward_time = self.parts.queue.now().saturating_sub(began);
        if self.lease.is_revoked() {
            return Ok(Step::Revoked);
        }
        computed?;
        self.lease.work_for(None);
        self.embed();
        self.scheduler.commit();
        self.collect_masks(forward_time);
        let now = self.parts.queue.now();
        self.count_step(now.saturating_sub(started_at));
        self.sample(now);
        self.sample_held(now);
        self.settle();
        Ok(Step::Ran)
    }

    /// Takes what comes of the masks that every running sequence waits for, if there are any.
    fn wait_for_masks(&mut self) -> Result<Step> {
        if self.scheduler.num_running() + self.scheduler.num_waiting() == 0 {
            return Ok(Step::Idle);
        }
        if !self.masks.has_questions() {
            // They would do so for ever: a fresh worker takes them up.
            return Err(Error::internal("sequences stand still that wait for nothing"));
        }
        let (generations, now) = (&mut self.generations, self.parts.queue.now());
        self.masks.wait(|job| answer(generations, job, now));
        self.sample_held(self.parts.queue.now());
        self.settle();
        Ok(Step::Waited)
    }

    /// Hands its sequences to other workers, or to its own successor; `what` says what happened. The core is of no more
    /// use after that.
    pub fn hand_over(&mut self, what: &str) {
        let (lost, culprit) = self.lease.revoke();
        takeover::hand_over(lost, culprit, what, &self.parts);
    }

    /// The sequence that is to blame if the model does not return from this step: the only one that is not settled.
    fn likely_culprit(&self) -> Option<usize> {
        let mut unsettled = self
            .scheduler
            .plan()
            .iter()
            .map(|planned| planned.slot)
            .filter(|slot| self.generations[*slot].as_ref().is_some_and(|generation| !generation.is_settled()));
        unsettled.next().filter(|_| unsettled.next().is_none())
    }

    /// Ends every sequence with an error event.
    pub(crate) fn fail_all(&mut self, kind: ErrorKind, message: &str) {
        self.gauges.clear();
        for generation in self.generations.iter_mut().filter_map(Option::take) {
            let num_computed = generation.writer.usage.num_computed();
            self.parts.queue.on_lost(generation.tenant, generation.num_tokens_max, num_computed);
            generation.writer.failed(kind, message.to_owned());
        }
    }

    /// Its model's count of what it has computed.
    pub(super) fn beat(&self) -> Option<Arc<AtomicU64>> {
        self.model.beat()
    }

    /// Its right to write.
    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// Its sequences and blocks.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    fn end_cancelled(&mut self) {
        for (slot, generation) in self.generations.iter().enumerate() {
            if generation.as_ref().is_some_and(|g| g.writer.is_cancelled()) {
                self.ended.push((slot, SequenceEnd::Cancelled));
            }
        }
        self.settle();
    }

    /// Takes what there is room for, from the queue and of what was preempted; a message if the engine shuts down.
    fn pull(&mut self, now: Duration) -> Option<String> {
        while !self.lease.is_revoked() {
            let (scheduler, generations) = (&self.scheduler, &self.generations);
            // One that waits for its mask takes part in no step.
            let in_steps = || generations.iter().flatten().filter(|g| g.held.is_none());
            let has_unsettled = in_steps().any(|g| !g.is_settled());
            let has_suspect = in_steps().any(|g| g.has_returned && !g.is_settled());
            let fits = |entry: &QueueEntry, passed: Option<&QueueEntry>| {
                let QueueEntry { request, chain, .. } = entry;
                let newcomer = Newcomer { share: entry.share(), prompt: &request.prompt, chain: chain.as_ref() };
                let leader = slot_of(generations, request.leader);
                let num_shared = request.num_prompt_tokens() - 1;
                let is_held_up = has_suspect || has_unsettled && entry.has_returned;
                !is_held_up
                    && passed.is_none_or(|passed| scheduler.may_pass(newcomer.share, passed.share()))
                    && leader.is_none_or(|slot| !scheduler.is_computing(slot, num_shared))
                    && scheduler.admits(newcomer)
            };
            match self.parts.queue.pull(fits) {
                Pulled::Entry(entry) => self.admit(*entry, now),
                Pulled::Nothing if self.scheduler.readmit() => {}
                Pulled::Nothing => return None,
                Pulled::Stopped(message) => return Some(message),
            }
        }
        None
    }

    fn admit(&mut self, entry: QueueEntry, now: Duration) {
        let (share, origin) = (entry.share(), entry.origin());
        let QueueEntry { request, chain, grammar, vector, writer, accepted_at, cancelled_at, has_returned, .. } = entry;
        let (seed, num_tokens_max) = (request.seed(), request.num_tokens_max());
        let slot = self.free_slots.pop().expect("as many slots as sequences");
        let held = Held::new(writer.log().clone(), slot, origin);
        self.lease.work_for(Some(slot));
        let mut writer = match writer.lease(&self.lease, held) {
            Ok(writer) => writer,
            // Given up between the two: whoever did that did not find this one.
            Err(held) => return takeover::hand_over(vec![*held], None, "the worker was given up", &self.parts),
        };
        let prompt_tokens = request.num_prompt_tokens();
        let (prompt, emitted) = request.prompt.split_at(prompt_tokens);
        let mut seen = SeenTokens::new(&request.sampling, prompt, request.max_tokens);
        let mut output = Output::new(request.stop, request.max_tokens, &self.parts.end_of_generation);
        // What was shown before this worker had it: draws, penalties and held-back text go on from there.
        emitted.iter().for_each(|token| seen.push(*token));
        output.replay(emitted, &self.parts.tokenizer);
        let emitted_tokens = emitted.len();
        writer.usage.completion_tokens = emitted_tokens;
        let constrained = grammar.map(|grammar| Constrained::new(grammar, emitted, &request.sampling));
        let embedded = vector.map(|vector| (Pooling::default(), vector));
        let mut sequence = Sequence::new(slot, share, request.prompt, num_tokens_max, chain);
        if request.sampling.prompt_logprobs.is_some() {
            sequence.want_prompt_logits();
        } else if embedded.is_some() {
            sequence.want_no_logits();
        } else if let Some(leader) = slot_of(&self.generations, request.leader).filter(|_| emitted_tokens == 0) {
            // One that goes on after its worker or process has more than the prompt, and goes its own way.
            sequence.follow(leader);
        }
        let found_tokens = self.scheduler.admit(sequence);
        let cached_before = request.resumed.and_then(|resumed| resumed.cached_tokens);
        let cached_tokens = cached_before.unwrap_or(found_tokens);
        writer.usage.prompt_tokens = prompt_tokens;
        writer.usage.cached_tokens = cached_tokens;
        self.parts.metrics.cached_tokens.inc_by(found_tokens as u64);
        if cached_before.is_none() {
            self.parts.metrics.prompt_tokens.inc_by(prompt_tokens as u64);
            self.parts.metrics.queue_wait_seconds.observe(now.saturating_sub(accepted_at).as_secs_f64());
            writer.append(Event::Started { prompt_tokens, cached_tokens });
        }
        let sampling = request.sampling;
        self.generations[slot] = Some(Box::new(Generation {
            tenant: share.tenant,
            has_returned,
            num_tokens_before: emitted_tokens,
            held: None,
            sampled: None,
            late_time: Duration::ZERO,
            writer,
            output,
            sampling,
            seen,
            constrained,
            seed,
            num_tokens_max,
            accepted_at,
            cancelled_at,
            // The first token of a text that was begun elsewhere is not its first.
            last_token_at: (emitted_tokens > 0).then_some(now),
            prompt_logprobs: Vec::new(),
            embedded,
        }));
        self.lease.work_for(None);
    }

    /// Has the masks worked out that the step will need.
    fn ask_masks(&mut self) {
        self.masks.begin_step();
        for planned in self.scheduler.plan().iter().filter(|planned| planned.is_sampled) {
            let generation = self.generations[planned.slot].as_mut().expect("a planned sequence is alive");
            if let Some(constrained) = &mut generation.constrained {
                self.masks.ask(planned.slot, generation.tenant, constrained, &self.parts.metrics);
            }
        }
    }

    /// Takes the masks that are there.
    fn collect_masks(&mut self, forward_time: Duration) {
        let (generations, now) = (&mut self.generations, self.parts.queue.now());
        let lacks_mask = |slot: usize| generations[slot].as_ref().is_some_and(|g| g.lacks_mask());
        let is_alone = self.scheduler.plan().iter().all(|planned| planned.is_sampled && lacks_mask(planned.slot));
        self.masks.collect(forward_time, is_alone, |job| answer(generations, job, now));
    }

    /// Samples for every sequence whose last token was computed, and publishes what that makes visible.
    fn sample(&mut self, now: Duration) {
        let vocab_size = self.model.spec().vocab_size;
        assert_eq!(self.logits.len(), self.batch.logits_indices.len() * vocab_size, "logits of the wanted rows");
        let mut rows = self.logits.chunks_exact_mut(vocab_size);
        for index in 0..self.scheduler.plan().len() {
            let planned = self.scheduler.plan()[index];
            let generation = self.generations[planned.slot].as_mut().expect("a planned sequence is alive");
            let prompt = rows.by_ref().take(planned.num_wanted).map(|row| &*row);
            let failed = generation.measure(prompt, self.scheduler.wanted_tokens(planned), &mut self.sampler);
            if failed.is_some() {
                // Its last row is left over.
                rows.by_ref().take(usize::from(planned.is_sampled)).for_each(drop);
                self.ended.extend(failed.map(|end| (planned.slot, end)));
                continue;
            }
            if !planned.is_sampled || generation.embedded.is_some() {
                continue;
            }
            let row = rows.next().expect("a row per sampled sequence");
            if generation.lacks_mask() {
                generation.hold(row, now);
                continue;
            }
            // What was kept before it was preempted is the same row.
            generation.held = None;
            self.lease.work_for(Some(planned.slot));
            let (sampler, scheduler, parts) = (&mut self.sampler, &mut self.scheduler, &self.parts);
            let defers = self.masks.defers(generation.constrained.as_ref());
            let end = generation.sample(row, &mut TokenTurn { planned, sampler, scheduler, parts, defers, now });
            generation.ask_deferred(planned.slot, &mut self.masks, &self.parts.metrics);
            self.ended.extend(end.map(|end| (planned.slot, end)));
        }
        self.lease.work_for(None);
    }

    /// Samples from the rows that were kept for masks which are there now, and ends what waits too long.
    fn sample_held(&mut self, now: Duration) {
        for (slot, generation) in self.generations.iter_mut().enumerate() {
            let Some(generation) = generation.as_mut().filter(|generation| generation.held.is_some()) else { continue };
            if let Some(end) = generation.check_late(now) {
                self.ended.push((slot, end));
                continue;
            }
            // A sequence that was preempted meanwhile samples once its tokens are computed again.
            let Some(planned) = self.scheduler.standing(slot).filter(|_| !generation.lacks_mask()) else { continue };
            let Some(mut held) = generation.held.take() else { continue };
            self.lease.work_for(Some(slot));
            let (sampler, scheduler, parts) = (&mut self.sampler, &mut self.scheduler, &self.parts);
            let defers = self.masks.defers(generation.constrained.as_ref());
            let end =
                generation.sample(&mut held.row, &mut TokenTurn { planned, sampler, scheduler, parts, defers, now });
            generation.ask_deferred(slot, &mut self.masks, &self.parts.metrics);
            self.ended.extend(end.map(|end| (slot, end)));
        }
        self.lease.work_for(None);
    }

    fn count_step(&self, took: Duration) {
        let metrics = &self.parts.metrics;
        metrics.steps.inc();
        metrics.step_sequences.inc_by(self.batch.num_seqs() as u64);
        metrics.batch_sequences.observe(self.batch.num_seqs() as f64);
        metrics.step_tokens.inc_by(self.batch.num_tokens() as u64);
        metrics.step_seconds.observe(took.as_secs_f64());
    }

    /// Frees what the ended sequences held, and only then tells the world.
    fn settle(&mut self) {
        for (slot, _) in &self.ended {
            self.scheduler.remove(*slot);
            self.free_slots.push(*slot);
        }
        self.gauges.set(&self.scheduler);
        for (slot, end) in self.ended.drain(..) {
            let mut generation = self.generations[slot].take().expect("a sequence ends once");
            if let Some(constrained) = generation.constrained.take() {
                self.masks.forget(constrained);
            }
            let num_computed = generation.writer.usage.num_computed();
            // Whoever took the right away has given its tokens back.
            if !self.lease.is_revoked() {
                self.parts.queue.on_served(generation.tenant, generation.num_tokens_max, num_computed);
            }
            match end {
                SequenceEnd::Done(reason) => {
                    let took = self.parts.queue.now().saturating_sub(generation.accepted_at);
                    self.parts.metrics.e2e_seconds.observe(took.as_secs_f64());
                    let stop = generation.output.stop_string().map(str::to_owned);
                    generation.writer.done(reason, stop);
                }
                SequenceEnd::Failed(kind, message) => generation.writer.failed(kind, message),
                SequenceEnd::Cancelled => {
                    if let Some(&at) = generation.cancelled_at.get() {
                        let took = self.parts.queue.now().saturating_sub(at);
                        self.parts.metrics.disconnect_to_free_seconds.observe(took.as_secs_f64());
                    }
                    generation.writer.cancelled();
                }
            }
        }
    }
}

/// Gives a mask to the sequence that asked for it; if that has ended, its matcher is returned.
fn answer(generations: &mut [Option<Box<Generation>>], job: MaskJob, now: Duration) -> Option<Question> {
    match &mut generations[job.slot] {
        Some(generation) => generation.take_answer(job.ticket, job.question, now),
        None => Some(job.question),
    }
}

/// The slot of a stream that is in flight here.
fn slot_of(generations: &[Option<Box<Generation>>], id: Option<StreamId>) -> Option<usize> {
    let id = id?;
    generations.iter().position(|g| g.as_ref().is_some_and(|g| g.writer.log().id() == id))
}
