//! From logits to a token: one row in, one id out. No state between calls but scratch memory, no clock, and no
//! randomness that is not a function of seed and position.
//!
//! The chain, in this order:
//!
//! ```text
//! logit_bias -> repetition, presence, frequency penalties -> (temperature 0: argmax, lowest id wins ties)
//!            -> temperature -> top_k -> typical_p -> top_p -> min_p -> draw
//! ```
//!
//! Bias and penalties act on raw logits, where their documented scales mean something; that is vLLM's order too.
//! Temperature comes before the filters, as in OpenAI's and vLLM's, so `top_p` cuts the distribution that is drawn
//! from; the filters follow llama.cpp's order, from the one that looks at ranks to the one that looks at the survivors.
//! Each filter sees the renormalised survivors of the one before, and never leaves nothing.
//!
//! Probabilities are integers: a token whose logit is `d` below the largest weighs `floor(exp(-d / temperature) *
//! 2^40)`. Integer sums do not depend on order, so cuts by probability mass need no sort (a selection finds the last
//! survivor, and one pass in order of id drops the rest), a draw walks the survivors in order of id, and no CPU,
//! vector width or batch can change the outcome. Tokens below 2^-40 of the most probable one cannot be drawn.

mod filter;
pub mod grammar;
mod mask;
pub mod math;
mod philox;
mod seen;
mod top;
mod weights;

use filter::Candidates;
pub use mask::TokenMask;
pub use philox::random_u64;
pub use seen::SeenTokens;
use weights::LogitRow;

use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::{SamplingParams, TokenId, TokenLogprob};

/// Scratch memory for sampling. One per worker; what is in it between calls means nothing.
#[derive(Debug, Default)]
pub struct Sampler {
    candidates: Candidates,
    /// Ids whose logits were changed, with their raw values, in order of change.
    touched: Vec<(TokenId, f32)>,
    /// The row without the tokens that a grammar does not allow.
    masked: Vec<f32>,
    top: Vec<(f32, TokenId)>,
    sums: Vec<u64>,
}

/// What one draw depends on besides the logits.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'a> {
    /// The request's parameters.
    pub params: &'a SamplingParams,
    /// Tokens seen so far, for the penalties.
    pub seen: &'a SeenTokens,
    /// Tokens that may not be chosen here.
    pub banned: &'a [TokenId],
    /// The only tokens that may be chosen here, where a grammar says so.
    pub allowed: Option<&'a TokenMask>,
    /// The request's seed.
    pub seed: u64,
    /// Place of the token in the output, from 0.
    pub position: u64,
}

/// The chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: TokenId,
    /// Its log-probability and its rivals', where asked for.
    pub logprob: Option<TokenLogprob>,
}

impl Sampler {
    /// Chooses a token from `row: [vocab_size]`. The row serves as scratch and is as before on return.
    ///
    /// # Errors
    /// If the row has a NaN or infinity: the model is at fault. [`ErrorKind::InvalidRequest`] if the request leaves no
    /// token that may be chosen. The sequence cannot go on.
    pub fn sample(&mut self, row: &mut [f32], draw: &Draw<'_>) -> Result<Sampled> {
        check(row)?;
        self.touched.clear();
        adjust(row, draw, &mut self.touched);
        let token = match draw.allowed {
            None => self.choose(row, draw),
            Some(allowed) => {
                let mut masked = std::mem::take(&mut self.masked);
                allowed.apply(row, &mut masked);
                let token = self.choose(&masked, draw);
                self.masked = masked;
                token
            }
        };
        while let Some((id, raw)) = self.touched.pop() {
            row[id as usize] = raw;
        }
        let token = token?;
        let logprob = draw.params.top_logprobs.map(|n| self.logprob(row, token, n));
        Ok(Sampled { token, logprob })
    }

    /// The log-probability of a token that was not drawn but is there: a prompt's.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn measure(&mut self, row: &[f32], token: TokenId, num_top: usize) -> Result<TokenLogprob> {
        check(row)?;
        Ok(self.logprob(row, token, num_top))
    }

    fn choose(&mut self, row: &[f32], draw: &Draw<'_>) -> Result<TokenId> {
        let params = draw.params;
        let max = max(row);
        if !max.is_finite() {
            let message =
                "bias, penalties, `min_tokens` and the grammar must leave a token to choose, and leave none here";
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        if params.temperature == 0.0 {
            return Ok(first_of(row, max));
        }
        let row = LogitRow { logits: row, max, temperature: params.temperature };
        let random = random_u64(draw.seed, draw.position);
        let candidates = &mut self.candidates;
        // The first filter looks at the row itself, so that little more than it leaves becomes a list.
        if (1..row.logits.len()).contains(&params.top_k) {
            top::select_top(row.logits, params.top_k, &mut self.top);
            candidates.take_top(&row, &mut self.top);
        } else if params.typical_p < 1.0 {
            candidates.take_all(&row);
        } else if params.top_p < 1.0 {
            candidates.take_for_top_p(&row, params.top_p);
        } else if params.min_p > 0.0 {
            candidates.take_for_min_p(&row, params.min_p);
        } else {
            return Ok(row.draw(random, &mut self.sums));
        }
        if params.typical_p < 1.0 {
            candidates.keep_typical(params.typical_p);
        }
        if params.top_p < 1.0 {
            candidates.keep_top_p(params.top_p);
        }
        if params.min_p > 0.0 {
            candidates.keep_min_p(params.min_p);
        }
        Ok(candidates.draw(random))
    }

    /// Log-probabilities before temperature and filters, from the raw row.
    fn logprob(&mut self, row: &[f32], token: TokenId, num_top: usize) -> TokenLogprob {
        let max = max(row);
        let sum = LogitRow { logits: row, max, temperature: 1.0 }.total();
        let ln_sum = math::ln_f32((sum as f64 / weights::WEIGHT_ONE) as f32);
        let logprob = |logit: f32| (logit - max) - ln_sum;
        top::select_top(row, num_top, &mut self.top);
        self.top.sort_unstable_by(top::order);
        let top = self.top.iter().map(|&(logit, id)| (id, logprob(logit))).collect();
        TokenLogprob { token, logprob: logprob(row[token as usize]), top }
    }
}

fn check(row: &[f32]) -> Result<()> {
    // Neither NaN nor infinity is less than infinity.
    let num_bad: u32 = row.iter().map(|&logit| u32::from(!is_below_infinity(logit))).sum();
    if num_bad > 0 {
        return Err(Error::internal(format!("the model gave {num_bad} logits that are NaN or infinite")));
    }
    if max(row) == f32::NEG_INFINITY {
        return Err(Error::internal("the model gave no token a logit"));
    }
    Ok(())
}

fn is_below_infinity(logit: f32) -> bool {
    logit < f32::INFINITY
}

/// Bias, penalties and bans, each change noted.
fn adjust(row: &mut [f32], draw: &Draw<'_>, touched: &mut Vec<(TokenId, f32)>) {
    let mut change = |id: TokenId, f: &dyn Fn(f32) -> f32| {
        // An id past the vocabulary cannot come up, so there is nothing to make more or less likely.
        if let Some(logit) = row.get_mut(id as usize) {
            touched.push((id, *logit));
            *logit = f(*logit);
        }
    };
    for &(id, bias) in &draw.params.logit_bias {
        change(id, &|logit| logit + bias);
    }
    let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = *draw.params;
    for (id, count) in draw.seen.counts() {
        change(id, &|logit| {
            // Keskar et al., arXiv:1909.05858, section 4.1, with the sign that makes it a penalty for all logits.
            let logit = if logit > 0.0 { logit / repetition_penalty } else { logit * repetition_penalty };
            let presence = if count > 0 { presence_penalty } else { 0.0 };
            logit - count as f32 * frequency_penalty - presence
        });
    }
    for &id in draw.banned {
        change(id, &|_| f32::NEG_INFINITY);
    }
}

/// The lowest id with this logit, which is there. By chunks first: a search that may end at any logit is no vector loop.
fn first_of(row: &[f32], logit: f32) -> TokenId {
    let has = |chunk: &[f32]| chunk.iter().map(|&l| u32::from(l == logit)).sum::<u32>() > 0;
    let chunk = row.chunks(64).position(has).expect("it is there");
    let lane = row[64 * chunk..].iter().position(|&l| l == logit).expect("and in its chunk");
    (64 * chunk + lane) as TokenId
}

/// The largest logit. Sixteen running maxima, so that the loop is a vector loop on any CPU.
fn max(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    lanes.into_iter().fold(rest, larger)
}

#[cfg(test)]
mod tests;
