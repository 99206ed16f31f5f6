//! A model without weights whose text depends on every slot it is given.
//!
//! It writes each token id into its KV slot, and derives the next token's logits from what it reads back *through the
//! block table* over all positions up to the token's own. A wrong slot, a stale prefix or a lost preemption therefore
//! changes the text, so scheduler, cache, streams and wires are tested in milliseconds and without weights.
//!
//! Its vocabulary is the 256 bytes, and token 256 for the end (`Tokenizer::byte_level`). Its output looks like text:
//! mostly lower-case letters and spaces, now and then a character of two, three or four bytes.

mod gate;
mod spec;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use gate::StubGate;
pub use spec::from_spec;

use super::{Batch, Model, ModelSpec};
use tallow_kernels::{BLOCK_SIZE, BlockId};
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

/// The properties of a stub.
#[derive(Debug, Clone)]
pub struct StubConfig {
    /// Number of logits; at least 257.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_model_len: usize,
    /// KV blocks.
    pub num_blocks: usize,
    /// How likely each token is to be the end.
    pub eos_probability: f32,
    /// How likely a character is to have more than one byte.
    pub multibyte_probability: f32,
    /// Each step takes this long ...
    pub step_delay: Duration,
    /// ... and this per token.
    pub token_delay: Duration,
    /// Overwrite the slots that a step is about to fill, and those behind them, before it writes. Code that reads a
    /// slot too early or too late then reads nonsense.
    pub poison: bool,
    /// Faults to inject.
    pub faults: StubFaults,
    /// Holds every step until a test lets it through. A test that never does simulates a hang.
    pub gate: Option<std::sync::Arc<StubGate>>,
}

impl Default for StubConfig {
    fn default() -> Self {
        Self {
            vocab_size: 257,
            max_model_len: 4096,
            num_blocks: 1024,
            eos_probability: 0.01,
            multibyte_probability: 0.05,
            step_delay: Duration::ZERO,
            token_delay: Duration::ZERO,
            poison: false,
            faults: StubFaults::default(),
            gate: None,
        }
    }
}

/// Faults to inject. Steps count from 0 in the life of one model.
#[derive(Debug, Clone, Default)]
pub struct StubFaults {
    /// Panic at this step.
    pub panic_at_step: Option<u64>,
    /// Panic when this token is in a batch.
    pub panic_on_token: Option<TokenId>,
    /// Report a failed device at this step.
    pub error_at_step: Option<u64>,
    /// From this step on, the beat does not rise while a step waits at the gate or sleeps its delay.
    pub silent_from_step: Option<u64>,
    /// Sequences that have this token anywhere get rows of NaN.
    pub nan_on_token: Option<TokenId>,
    /// Asking for this token's hidden states fails.
    pub no_states_of_token: Option<TokenId>,
}

/// The model without weights.
#[derive(Debug)]
pub struct StubModel {
    config: StubConfig,
    spec: ModelSpec,
    /// `[num_blocks, BLOCK_SIZE]`, the token written to each slot.
    kv: Vec<TokenId>,
    step: u64,
    beat: Arc<AtomicU64>,
}

/// The value of an unwritten slot, which is no token.
const POISON: TokenId = TokenId::MAX;
/// A longer delay is cut into parts, with a beat before each part.
const DELAY_SLICE: Duration = Duration::from_millis(50);
/// The end of generation.
const EOS: usize = 256;
const NEVER: f32 = -30.0;
const SURELY: f32 = 60.0;
/// Number of values of a token's hidden state.
const HIDDEN_SIZE: usize = 16;

impl StubModel {
    /// A stub with empty KV memory.
    ///
    /// # Panics
    /// If the vocabulary is too small for all bytes and the end token.
    pub fn new(config: StubConfig) -> Self {
        assert!(config.vocab_size > EOS, "the stub needs 257 tokens, got {}", config.vocab_size);
        let StubConfig { vocab_size, max_model_len, num_blocks, .. } = config;
        let spec = ModelSpec { vocab_size, max_model_len, num_blocks, attention_span: usize::MAX };
        Self { config, spec, kv: vec![POISON; num_blocks * BLOCK_SIZE], step: 0, beat: Arc::default() }
    }

    /// A factory of stubs for the engine, each with memory of its own.
    pub fn factory(config: StubConfig) -> super::ModelFactory {
        std::sync::Arc::new(move || Ok(Box::new(Self::new(config.clone()))))
    }

    /// Overwrites a block that no sequence should read any more.
    pub fn poison(&mut self, block: BlockId) {
        let at = block.0 as usize * BLOCK_SIZE;
        self.kv[at..at + BLOCK_SIZE].fill(POISON);
    }

    fn write(&mut self, batch: &Batch) {
        for (from, to) in &batch.copies {
            let from = from.0 as usize * BLOCK_SIZE;
            self.kv.copy_within(from..from + BLOCK_SIZE, to.0 as usize * BLOCK_SIZE);
        }
        for seq in 0..batch.num_seqs() {
            let rows = batch.rows(seq);
            let first = batch.positions[rows.start];
            let consecutive = batch.positions[rows.clone()].iter().zip(first..).all(|(&p, expected)| p == expected);
            assert!(consecutive, "positions of sequence {seq} have gaps");
            let table = batch.block_table(seq);
            assert!(table.len() == (first as usize + rows.len()).div_ceil(BLOCK_SIZE), "table of sequence {seq}");
            if self.config.poison {
                for position in first as usize..table.len() * BLOCK_SIZE {
                    self.kv[slot(table, position)] = POISON;
                }
            }
        }
        for (&token, &slot) in batch.token_ids.iter().zip(&batch.slot_mapping) {
            self.kv[slot as usize] = token;
        }
    }

    /// Reads a sequence with this table up to `position`. Returns a hash of its tokens, whether they include
    /// [`StubFaults::nan_on_token`], and the last three tokens.
    fn read(&self, table: &[BlockId], position: usize) -> (u64, bool, [TokenId; 3]) {
        let mut last = [POISON; 3];
        let (mut hash, mut marked) = (0u64, false);
        for at in 0..=position {
            let token = self.kv[slot(table, at)];
            hash = mix(hash ^ (u64::from(token) + 1));
            marked |= self.config.faults.nan_on_token == Some(token);
            last = [last[1], last[2], token];
        }
        (hash, marked, last)
    }

    /// Appends the logits of the token at `position` of a sequence with this table.
    fn row(&self, table: &[BlockId], position: usize, logits: &mut Vec<f32>) {
        let (hash, marked, last) = self.read(table, position);
        let begin = logits.len();
        if marked {
            logits.resize(begin + self.spec.vocab_size, f32::NAN);
            return;
        }
        logits.resize(begin + self.spec.vocab_size, NEVER);
        let row = &mut logits[begin..];
        let chance = |bits: u64| (bits & 0xffff) as f32 / 65_536.0;
        for byte in likely_bytes(last) {
            let noise = (mix(hash.wrapping_add(byte as u64)) >> 40) as f32 / 2_097_152.0;
            let liked = byte == usize::from(b' ') || (97..123).contains(&byte);
            row[byte] = if liked { noise + 4.0 } else { noise };
        }
        if !wants_continuation(last) && chance(hash) < self.config.multibyte_probability {
            row[[0xc3, 0xe2, 0xf0][(hash >> 16) as usize % 3]] = SURELY;
        }
        if chance(hash >> 32) < self.config.eos_probability {
            row[EOS] = 2.0 * SURELY;
        }
    }
}

impl Model for StubModel {
    fn beat(&self) -> Option<Arc<AtomicU64>> {
        Some(self.beat.clone())
    }

    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()> {
        let is_silent = self.config.faults.silent_from_step.is_some_and(|first| self.step >= first);
        let beat = || {
            if !is_silent {
                self.beat.fetch_add(1, Ordering::Relaxed);
            }
        };
        if let Some(gate) = &self.config.gate {
            gate.pass(beat);
        }
        let mut delay = self.config.step_delay + self.config.token_delay * batch.num_tokens() as u32;
        while !delay.is_zero() {
            beat();
            let slice = delay.min(DELAY_SLICE);
            std::thread::sleep(slice);
            delay -= slice;
        }
        let (faults, step) = (&self.config.faults, self.step);
        self.step += 1;
        assert!(faults.panic_at_step != Some(step), "the stub was told to panic at step {step}");
        if let Some(token) = faults.panic_on_token {
            assert!(!batch.token_ids.contains(&token), "the stub was told to panic on token {token}");
        }
        if faults.error_at_step == Some(step) {
            return Err(Error::internal(format!("the stub was told to fail at step {step}")));
        }
        self.write(batch);
        logits.clear();
        let mut seq = 0;
        for &row in &batch.logits_indices {
            while batch.rows(seq).end <= row as usize {
                seq += 1;
            }
            self.row(batch.block_table(seq), batch.positions[row as usize] as usize, logits);
        }
        Ok(())
    }

    /// Sixteen values from -1 to 1 for each row, derived from the tokens of its sequence up to that row.
    fn hidden_states(&mut self, batch: &Batch, rows: Range<usize>, states: &mut Vec<f32>) -> Result<()> {
        states.clear();
        let mut seq = 0;
        for row in rows {
            if self.config.faults.no_states_of_token == Some(batch.token_ids[row]) {
                return Err(Error::internal("the stub was told to have no states of this token"));
            }
            while batch.rows(seq).end <= row {
                seq += 1;
            }
            let (hash, marked, _) = self.read(batch.block_table(seq), batch.positions[row] as usize);
            let value = |i: usize| (mix(hash.wrapping_add(i as u64)) >> 40) as f32 / 8_388_608.0 - 1.0;
            states.extend((0..HIDDEN_SIZE).map(|i| if marked { f32::NAN } else { value(i) }));
        }
        Ok(())
    }
}

fn slot(table: &[BlockId], position: usize) -> usize {
    table[position / BLOCK_SIZE].0 as usize * BLOCK_SIZE + position % BLOCK_SIZE
}

/// Bytes that may follow these three.
fn likely_bytes(last: [TokenId; 3]) -> std::ops::Range<usize> {
    match last {
        [_, _, 0xf0] => 0x9f..0xa0,
        _ if wants_continuation(last) => 0x80..0xc0,
        _ => 0x20..0x7f,
    }
}

/// Whether the bytes end within one of the multi-byte characters that the stub begins.
fn wants_continuation(last: [TokenId; 3]) -> bool {
    let inner = |t: TokenId| (0x80..0xc0).contains(&t);
    let of_three = |t: TokenId| (0xe1..0xed).contains(&t);
    match last {
        [_, _, a] if (0xc2..0xe0).contains(&a) || of_three(a) || a == 0xf0 => true,
        [_, b, a] if inner(a) && (of_three(b) || b == 0xf0) => true,
        [c, b, a] => inner(a) && inner(b) && c == 0xf0,
    }
}

/// The finisher of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) over a Weyl step.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `tokens[from..]` of a sequence with this table.
    fn step(model: &mut StubModel, tokens: &[TokenId], from: usize, table: &[u32]) -> Vec<f32> {
        let table: Vec<_> = table.iter().map(|&b| BlockId(b)).collect();
        let mut batch = Batch::default();
        batch.clear();
        batch.token_ids = tokens[from..].to_vec();
        batch.positions = (from as u32..tokens.len() as u32).collect();
        batch.slot_mapping = (from..tokens.len()).map(|p| slot(&table, p) as u32).collect();
        batch.cu_seqlens.push(batch.token_ids.len() as u32);
        batch.cu_blocks.push(table.len() as u32);
        batch.block_tables = table;
        batch.logits_indices = vec![batch.token_ids.len() as u32 - 1];
        let mut logits = Vec::new();
        model.forward(&batch, &mut logits).expect("no fault");
        logits
    }

    #[test]
    fn chunks_and_places_do_not_show_and_slots_do() {
        let tokens: Vec<TokenId> = (0..50).map(|i| 97 + i % 26).collect();
        let mut model = StubModel::new(StubConfig { num_blocks: 8, ..StubConfig::default() });
        let whole = step(&mut model, &tokens, 0, &[0, 1]);
        step(&mut model, &tokens[..20], 0, &[6]);
        step(&mut model, &tokens[..40], 20, &[6, 3]);
        assert_eq!(step(&mut model, &tokens, 40, &[6, 3]), whole);
        model.poison(BlockId(6));
        assert_ne!(step(&mut model, &tokens, 40, &[6, 3]), whole, "a stale slot must show");
    }

    #[test]
    fn greedy_text_is_valid_utf8_with_characters_of_several_bytes() {
        let mut model = StubModel::new(StubConfig { eos_probability: 0.0, ..StubConfig::default() });
        let mut tokens: Vec<TokenId> = b"hello".iter().map(|&b| TokenId::from(b)).collect();
        let table: Vec<u32> = (0..64).collect();
        for from in [0].into_iter().chain(5..1000) {
            let num_blocks = tokens.len().div_ceil(BLOCK_SIZE);
            let row = step(&mut model, &tokens, from, &table[..num_blocks]);
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a row").0;
            tokens.push(best as TokenId);
        }
        let bytes: Vec<u8> = tokens.iter().map(|&t| t as u8).collect();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.trim_end_matches(char::REPLACEMENT_CHARACTER).contains(char::REPLACEMENT_CHARACTER), "{text}");
        for len in 1..=4 {
            assert!(text.chars().any(|c| c.len_utf8() == len), "no character of {len} bytes in {text}");
        }
    }
}
