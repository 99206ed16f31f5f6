//! How far a decoder's distributions are from the reference's: perplexity, Kullback-Leibler divergence, agreement.
//!
//! ```text
//! cut the text into windows of `len` tokens, each begun as a prompt is (with the beginning-of-text token, if any)
//! per window, per decoder: all tokens in one step; logits of the second half's rows but the last
//! per row: p = softmax of the reference's, q = of the decoder's, both in f64
//!          surprise = -ln q(next token); divergence = sum p (ln p - ln q); agreement = both have the same greatest
//! ```
//!
//! These are llama-perplexity's windows and rows, so that its figures for the same text and model can stand beside
//! these.

use tallow::cache::{BLOCK_SIZE, BlockId};
use tallow::error::Result;
use tallow::model::decoder::{Compute, Decoder, DecoderOptions};
use tallow::model::{Batch, Model};
use tallow::protocol::TokenId;
use tallow::text::Tokenizer;

/// What a decoder for windows of `window` tokens needs.
pub(crate) fn options(compute: Compute, window: usize) -> DecoderOptions {
    DecoderOptions { compute, max_model_len: Some(window), kv_bytes_max: usize::MAX / 2, max_num_seqs: 1 }
}

/// As many whole windows of `len` tokens as the text's first `num_tokens` fill.
///
/// # Errors
/// If the text cannot be spelled in this vocabulary.
pub(crate) fn windows(tokenizer: &Tokenizer, text: &str, num_tokens: usize, len: usize) -> Result<Vec<Vec<TokenId>>> {
    let mut ids = tokenizer.encode(text, false)?;
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    tokenizer.begin(&mut ids);
    ids.truncate(num_tokens);
    let mut windows: Vec<Vec<TokenId>> = ids.chunks_exact(len).map(<[TokenId]>::to_vec).collect();
    for window in &mut windows {
        if let Some(bos) = bos {
            window[0] = bos;
        }
    }
    Ok(windows)
}

/// What a decoder said of a text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Score {
    /// Per token, `-ln q(token)`.
    surprises: Vec<f64>,
    /// Per token, how much greater that is than the reference's.
    excesses: Vec<f64>,
    /// Per token, the divergence from the reference.
    divergences: Vec<f64>,
    num_agreeing: usize,
}

impl Score {
    /// Number of scored tokens.
    pub(crate) fn num_tokens(&self) -> usize {
        self.surprises.len()
    }

    /// exp of the mean surprise.
    pub(crate) fn perplexity(&self) -> f64 {
        mean(&self.surprises).exp()
    }

    /// Perplexity divided by the reference's, less 1, and its standard error.
    pub(crate) fn excess(&self) -> (f64, f64) {
        let ratio = mean(&self.excesses).exp();
        (ratio - 1.0, ratio * standard_error(&self.excesses))
    }

    /// Mean divergence in nats, and its standard error.
    pub(crate) fn divergence(&self) -> (f64, f64) {
        (mean(&self.divergences), standard_error(&self.divergences))
    }

    /// The divergence that all but one in a hundred tokens stay below.
    pub(crate) fn divergence_99(&self) -> f64 {
        let mut sorted = self.divergences.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(f64::NAN)
    }

    /// Share of tokens where the most probable one is the reference's.
    pub(crate) fn agreement(&self) -> f64 {
        self.num_agreeing as f64 / self.num_tokens() as f64
    }

    fn add(&mut self, row: &RowScore) {
        self.surprises.push(row.surprise);
        self.excesses.push(row.excess);
        self.divergences.push(row.divergence);
        self.num_agreeing += usize::from(row.is_agreeing);
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn standard_error(values: &[f64]) -> f64 {
    let (mean, n) = (mean(values), values.len() as f64);
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n * (n - 1.0))).sqrt()
}

/// Scores all decoders on the windows, the first of them being the reference, in their order.
///
/// # Errors
/// If a decoder fails.
pub(crate) fn score(
    decoders: &mut [Decoder],
    windows: &[Vec<TokenId>],
    mut progress: impl FnMut(usize),
) -> Result<Vec<Score>> {
    let mut scores = vec![Score::default(); decoders.len()];
    let mut logits = vec![Vec::new(); decoders.len()];
    for (number, window) in windows.iter().enumerate() {
        let rows = window.len() / 2..window.len() - 1;
        let batch = batch(window, rows.clone());
        for (decoder, logits) in decoders.iter_mut().zip(&mut logits) {
            decoder.forward(&batch, logits)?;
        }
        let next = &window[rows.start + 1..];
        for (score, of_one) in scores.iter_mut().zip(&logits) {
            rows_in_parallel(&logits[0], of_one, next).iter().for_each(|row| score.add(row));
        }
        progress(number + 1);
    }
    Ok(scores)
}

/// The whole window as one sequence in one step, with logits of `rows`.
fn batch(window: &[TokenId], rows: std::ops::Range<usize>) -> Batch {
    let mut batch = Batch::default();
    batch.clear();
    batch.token_ids.extend(window);
    batch.positions.extend(0..window.len() as u32);
    batch.slot_mapping.extend(0..window.len() as u32);
    batch.cu_seqlens.push(window.len() as u32);
    batch.block_tables.extend((0..window.len().div_ceil(BLOCK_SIZE)).map(|block| BlockId(block as u32)));
    batch.cu_blocks.push(batch.block_tables.len() as u32);
    batch.logits_indices.extend(rows.map(|row| row as u32));
    batch
}

/// Scores of rows in their order, on every core.
fn rows_in_parallel(reference: &[f32], logits: &[f32], next: &[TokenId]) -> Vec<RowScore> {
    let vocab = logits.len() / next.len();
    let share = next.len().div_ceil(std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        let shares: Vec<_> = next
            .chunks(share)
            .zip(reference.chunks(share * vocab).zip(logits.chunks(share * vocab)))
            .map(|(next, (reference, logits))| {
                let rows = next.iter().zip(reference.chunks(vocab).zip(logits.chunks(vocab)));
                scope.spawn(|| rows.map(|(next, (p, q))| RowScore::of(p, q, *next as usize)).collect::<Vec<_>>())
            })
            .collect();
        shares.into_iter().flat_map(|share| share.join().expect("no row panics")).collect()
    })
}

/// One token's part of a [`Score`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RowScore {
    /// `-ln q(next)`
    pub surprise: f64,
    /// `ln p(next) - ln q(next)`
    pub excess: f64,
    /// `sum p (ln p - ln q)`
    pub divergence: f64,
    /// Whether p and q have the same most probable token.
    pub is_agreeing: bool,
}

impl RowScore {
    /// From the logits of the reference, `p`, and of the decoder, `q`.
    pub(crate) fn of(p: &[f32], q: &[f32], next: usize) -> Self {
        let (p_norm, q_norm) = (log_sum_exp(p), log_sum_exp(q));
        let log_p = |i: usize| f64::from(p[i]) - p_norm;
        let log_q = |i: usize| f64::from(q[i]) - q_norm;
        Self {
            surprise: -log_q(next),
            excess: log_p(next) - log_q(next),
            divergence: (0..p.len()).map(|i| log_p(i).exp() * (log_p(i) - log_q(i))).sum(),
            is_agreeing: greatest(p) == greatest(q),
        }
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

/// The first of the greatest.
fn greatest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best })
}
