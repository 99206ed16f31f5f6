//! The step loop's one step, without a thread around it: a worker runs it with a clock and a model, the simulation
//! with neither.
//!
//! ```text
//! end what was cancelled -> schedule -> pull from the queue -> forward, and beside it the masks of grammars
//!     -> sample -> publish -> end what is finished
//! ```
//!
//! A sequence's slot and blocks are free, and the gauges say so, before its terminal event can be seen.

mod embed;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::constrain::{self, Constrained, Masks};
use super::lease::{Gauges, Lease};
use super::output::Output;
use super::pooling::Pooling;
use super::queue::{Entry, Pulled, Queue};
use super::scheduler::{Newcomer, Planned, Scheduler, SchedulerLimits};
use super::sequence::Sequence;
use super::writer::Writer;
use crate::error::{ErrorKind, Result};
use crate::metrics::Metrics;
use crate::model::{Batch, Model};
use crate::protocol::{Event, FinishReason, SamplingParams, StreamId, Task, Tenant, TokenId, TokenLogprob};
use crate::sampling::grammar::Next;
use crate::sampling::{Draw, Sampled, Sampler, SeenTokens, TokenMask};
use crate::text::Tokenizer;

/// One worker's model, sequences and scratch.
pub struct EngineCore {
    model: Box<dyn Model>,
    lease: Arc<Lease>,
    parts: CoreParts,
    scheduler: Scheduler,
    /// By slot.
    generations: Vec<Option<Box<Generation>>>,
    free_slots: Vec<usize>,
    ended: Vec<(usize, End)>,
    sampler: Sampler,
    masks: Masks,
    batch: Batch,
    logits: Vec<f32>,
    /// Hidden states of one sequence.
    states: Vec<f32>,
    gauges: Gauges,
}

/// What a worker's core shares with the rest of the engine.
#[derive(Debug, Clone)]
pub struct CoreParts {
    /// Bounds of a step.
    pub limits: SchedulerLimits,
    /// Where work comes from.
    pub queue: Arc<Queue>,
    /// Tokens to bytes.
    pub tokenizer: Arc<Tokenizer>,
    /// The vocabulary's own stop tokens.
    pub end_of_generation: Arc<[TokenId]>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was computed.
    Ran,
    /// There was nothing to do.
    Idle,
    /// The step took so long that the worker was given up; everything is somebody else's now.
    Revoked,
    /// The engine shuts down; every sequence has its terminal event.
    Stopped,
}

/// A request in flight, as far as the scheduler need not know it.
#[derive(Debug)]
struct Generation {
    tenant: Tenant,
    writer: Writer,
    output: Output,
    sampling: SamplingParams,
    seen: SeenTokens,
    constrained: Option<Constrained>,
    seed: u64,
    num_tokens_max: usize,
    accepted_at: Duration,
    cancelled_at: Arc<OnceLock<Duration>>,
    last_token_at: Option<Duration>,
    /// Of the prompt's tokens so far, where they were asked for.
    prompt_logprobs: Vec<TokenLogprob>,
    /// Of what is embedded.
    pooling: Option<Pooling>,
}

/// What a sequence needs to take its next token.
struct Turn<'a> {
    planned: Planned,
    sampler: &'a mut Sampler,
    scheduler: &'a mut Scheduler,
    parts: &'a CoreParts,
    now: Duration,
}

#[derive(Debug)]
enum End {
    Done(FinishReason),
    Cancelled,
    Failed(ErrorKind, String),
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
            masks: Masks::default(),
            batch: Batch::default(),
            logits: Vec::new(),
            states: Vec::new(),
            gauges,
            parts,
        }
    }

    /// Computes one step.
    ///
    /// # Errors
    /// If the model fails. Like after a panic, the core is of no more use then than for [`EngineCore::fail_all`].
    pub fn step(&mut self) -> Result<Step> {
        let started_at = self.parts.queue.now();
        self.end_cancelled();
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
            debug_assert_eq!(
                self.scheduler.num_running() + self.scheduler.num_waiting(),
                0,
                "sequences that stand still"
            );
            return Ok(Step::Idle);
        }
        self.scheduler.build(&mut self.batch);
        self.ask_masks();
        let computed = self.model.forward(&self.batch, &mut self.logits);
        if self.lease.is_revoked() {
            return Ok(Step::Revoked);
        }
        computed?;
        self.embed()?;
        self.scheduler.commit();
        let now = self.parts.queue.now();
        self.count_step(now.saturating_sub(started_at));
        let generations = &mut self.generations;
        self.masks.collect(|slot, answer| {
            if let Some(constrained) = generations[slot].as_mut().and_then(|g| g.constrained.as_mut()) {
                constrained.take_answer(answer);
            }
        });
        self.sample(now);
        self.settle();
        Ok(Step::Ran)
    }

    /// Ends every sequence with an error event.
    pub fn fail_all(&mut self, kind: ErrorKind, message: &str) {
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
    pub fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// Its sequences and blocks.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    fn end_cancelled(&mut self) {
        for (slot, generation) in self.generations.iter().enumerate() {
            if generation.as_ref().is_some_and(|g| g.writer.is_cancelled()) {
                self.ended.push((slot, End::Cancelled));
            }
        }
        self.settle();
    }

    /// Takes what there is room for, from the queue and of what was preempted; a message if the engine shuts down.
    fn pull(&mut self, now: Duration) -> Option<String> {
        while !self.lease.is_revoked() {
            let (scheduler, generations) = (&self.scheduler, &self.generations);
            let fits = |entry: &Entry, passed: Option<&Entry>| {
                let Entry { request, chain, .. } = entry;
                let newcomer = Newcomer { share: entry.share(), prompt: &request.prompt, chain: chain.as_ref() };
                let leader = slot_of(generations, request.leader);
                let num_shared = request.num_prompt_tokens() - 1;
                passed.is_none_or(|passed| scheduler.may_pass(newcomer.share, passed.share()))
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

    fn admit(&mut self, entry: Entry, now: Duration) {
        let share = entry.share();
        let Entry { request, chain, grammar, mut writer, accepted_at, cancelled_at, .. } = entry;
        let (seed, num_tokens_max) = (request.seed(), request.num_tokens_max());
        if !writer.lease(&self.lease, num_tokens_max) {
            // Given up between the two. Whoever did that did not find this one.
            self.parts.queue.on_lost(share.tenant, num_tokens_max, 0);
            writer.failed(ErrorKind::Internal, "the worker hung before it began and was given up".to_owned());
            return;
        }
        let slot = self.free_slots.pop().expect("as many slots as sequences");
        let prompt_tokens = request.num_prompt_tokens();
        let (prompt, emitted) = request.prompt.split_at(prompt_tokens);
        let mut seen = SeenTokens::new(&request.sampling, prompt, request.max_tokens);
        let mut output = Output::new(request.stop, request.max_tokens, &self.parts.end_of_generation);
        // What an earlier process has shown: draws, penalties and held-back text go on from there.
        emitted.iter().for_each(|token| seen.push(*token));
        output.replay(emitted, &self.parts.tokenizer);
        let emitted_tokens = emitted.len();
        writer.usage.completion_tokens = emitted_tokens;
        let constrained = grammar.map(|grammar| Constrained::new(grammar, emitted, &request.sampling));
        let mut sequence = Sequence::new(slot, share, request.prompt, num_tokens_max, chain);
        // One that goes on after the end of another process has more than the prompt, and goes its own way.
        if let Some(leader) = slot_of(&self.generations, request.leader)
            && emitted_tokens == 0
            && request.sampling.prompt_logprobs.is_none()
        {
            sequence.follow(leader);
        }
        if request.sampling.prompt_logprobs.is_some() {
            sequence.want_prompt_logits();
        }
        let pooling = (request.task == Task::Embed).then(Pooling::default);
        if pooling.is_some() {
            sequence.want_no_logits();
        }
        let found_tokens = self.scheduler.admit(sequence);
        let cached_before = request.resumed.and_then(|resumed| resumed.cached_tokens);
        let cached_tokens = cached_before.unwrap_or(found_tokens);
        writer.usage.prompt_tokens = prompt_tokens;
        writer.usage.cached_tokens = cached_tokens;
        let metrics = &self.parts.metrics;
        metrics.prompt_tokens.inc_by(prompt_tokens as u64);
        metrics.cached_tokens.inc_by(found_tokens as u64);
        metrics.queue_wait_seconds.observe(now.saturating_sub(accepted_at).as_secs_f64());
        if cached_before.is_none() {
            writer.append(Event::Started { prompt_tokens, cached_tokens });
        }
        let sampling = request.sampling;
        self.generations[slot] = Some(Box::new(Generation {
            tenant: share.tenant,
            writer,
            output,
            sampling,
            seen,
            constrained,
            seed,
            num_tokens_max,
            accepted_at,
            cancelled_at,
            last_token_at: None,
            prompt_logprobs: Vec::new(),
            pooling,
        }));
    }

    /// Has the masks worked out that the step will need.
    fn ask_masks(&mut self) {
        let num_slots = self.generations.len();
        for planned in self.scheduler.plan().iter().filter(|planned| planned.is_sampled) {
            let generation = self.generations[planned.slot].as_mut().expect("a planned sequence is alive");
            if let Some(constrained) = &mut generation.constrained {
                self.masks.ask(planned.slot, constrained, num_slots, &self.parts.metrics);
            }
        }
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
            if !planned.is_sampled || generation.pooling.is_some() {
                continue;
            }
            let row = rows.next().expect("a row per sampled sequence");
            let (sampler, scheduler, parts) = (&mut self.sampler, &mut self.scheduler, &self.parts);
            let end = generation.sample(row, &mut Turn { planned, sampler, scheduler, parts, now });
            self.ended.extend(end.map(|end| (planned.slot, end)));
        }
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
            let generation = self.generations[slot].take().expect("a sequence ends once");
            let num_computed = generation.writer.usage.num_computed();
            // Whoever took the right away has given its tokens back.
            if !self.lease.is_revoked() {
                self.parts.queue.on_served(generation.tenant, generation.num_tokens_max, num_computed);
            }
            match end {
                End::Done(reason) => {
                    let took = self.parts.queue.now().saturating_sub(generation.accepted_at);
                    self.parts.metrics.e2e_seconds.observe(took.as_secs_f64());
                    let stop = generation.output.stop_string().map(str::to_owned);
                    generation.writer.done(reason, stop);
                }
                End::Failed(kind, message) => generation.writer.failed(kind, message),
                End::Cancelled => {
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

/// The slot of a stream that is in flight here.
fn slot_of(generations: &[Option<Box<Generation>>], id: Option<StreamId>) -> Option<usize> {
    let id = id?;
    generations.iter().position(|g| g.as_ref().is_some_and(|g| g.writer.log().id() == id))
}

impl Generation {
    /// Notes how likely these tokens of the prompt were.
    fn measure<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a [f32]>,
        tokens: impl Iterator<Item = TokenId>,
        sampler: &mut Sampler,
    ) -> Option<End> {
        let num_top = self.sampling.prompt_logprobs?;
        // All rows are taken, whatever is in them: the next sequence's follow.
        let measured: Vec<_> = rows.zip(tokens).map(|(row, token)| sampler.measure(row, token, num_top)).collect();
        for logprob in measured {
            match logprob {
                Ok(logprob) => self.prompt_logprobs.push(logprob),
                Err(e) => return Some(End::Failed(e.kind(), e.message().to_owned())),
            }
        }
        None
    }

    /// Takes the next token, and what its grammar forces behind it.
    fn sample(&mut self, row: &mut [f32], turn: &mut Turn<'_>) -> Option<End> {
        if self.sampling.prompt_logprobs.take().is_some() {
            self.writer.append(Event::Prompt { logprobs: std::mem::take(&mut self.prompt_logprobs) });
        }
        let next = self.constrained.as_mut().map(Constrained::take_next).transpose();
        let taken = match next {
            Ok(Some(Next::Complete)) => Ok(Some(self.output.close())),
            Ok(Some(Next::Forced(tokens))) => Ok(self.force(&tokens, turn)),
            Ok(Some(Next::Sample(mask))) => {
                let mask = constrain::without(mask, self.output.banned_with(&turn.parts.end_of_generation));
                self.draw(row, Some(&mask), turn)
            }
            Ok(None) => self.draw(row, None, turn),
            Err(e) => Err(e),
        };
        if let Some(event) = self.output.take_event() {
            self.writer.append(Event::Token(event));
        }
        match taken {
            Ok(reason) => reason.map(End::Done),
            Err(e) => Some(End::Failed(e.kind(), e.message().to_owned())),
        }
    }

    fn draw(
        &mut self,
        row: &mut [f32],
        allowed: Option<&TokenMask>,
        turn: &mut Turn<'_>,
    ) -> Result<Option<FinishReason>> {
        let draw = Draw {
            params: &self.sampling,
            seen: &self.seen,
            // Taken out of what is allowed already.
            banned: if allowed.is_some() { &[] } else { self.output.banned() },
            allowed,
            seed: self.seed,
            position: self.output.num_tokens() as u64,
        };
        let sampled = turn.sampler.sample(row, &draw)?;
        let token = sampled.token;
        self.count_token(&turn.parts.metrics, turn.now);
        self.seen.push(token);
        turn.scheduler.push_token(turn.planned, token);
        let reason = self.output.push(sampled, &turn.parts.tokenizer);
        let Some(constrained) = &mut self.constrained else { return Ok(reason) };
        let forced = constrained.accept(token)?;
        match constrain::end(reason, forced.is_empty() && constrained.is_complete(), &mut self.output) {
            None => Ok(self.force(&forced, turn)),
            reason => Ok(reason),
        }
    }

    /// Appends tokens that must come.
    fn force(&mut self, tokens: &[TokenId], turn: &mut Turn<'_>) -> Option<FinishReason> {
        let parts = turn.parts;
        for (index, &token) in tokens.iter().enumerate() {
            self.writer.usage.completion_tokens += 1;
            parts.metrics.completion_tokens.inc();
            parts.metrics.forced_tokens.inc();
            self.seen.push(token);
            turn.scheduler.push_forced(turn.planned, token);
            let reason = self.output.push(Sampled { token, logprob: None }, &parts.tokenizer);
            let is_last = index + 1 == tokens.len();
            let is_complete = is_last && self.constrained.as_ref().is_some_and(Constrained::is_complete);
            if let Some(reason) = constrain::end(reason, is_complete, &mut self.output) {
                return Some(reason);
            }
        }
        None
    }

    fn count_token(&mut self, metrics: &Metrics, now: Duration) {
        self.writer.usage.completion_tokens += 1;
        metrics.completion_tokens.inc();
        let since = |then: Duration| now.saturating_sub(then).as_secs_f64();
        match self.last_token_at.replace(now) {
            None => metrics.ttft_seconds.observe(since(self.accepted_at)),
            Some(last) => metrics.itl_seconds.observe(since(last)),
        }
    }
}
