//! From hidden states to the vector of a text: the mean over all tokens, scaled to length 1.
//!
//! vLLM's default for decoders is the last token's state. That is right for models that were trained to gather a text
//! in its last token. In a model that was trained to generate, the last state holds what comes next, and little of what
//! the text is about. Without such training the mean, which sentence-transformers uses too, is the better choice. With
//! length 1, the product of two vectors is their cosine.
//!
//! States come in chunks and are added one by one in order of position, so neither the chunks nor the other sequences
//! of a batch change a bit of the sum. When the sequence is preempted, the sum is kept: states computed again would be
//! the same.

use tallow_stream::error::{Error, Result};

/// The states of a sequence so far.
#[derive(Debug, Default)]
pub(super) struct Pooling {
    /// `[hidden_size]`; in f64, so that thousands of tokens cost no digits.
    sums: Vec<f64>,
    num_tokens: usize,
}

impl Pooling {
    /// How many tokens' states have been added, which is the position of the next token.
    pub(super) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Adds the states of the next tokens, `[num_tokens, hidden_size]`.
    pub(super) fn add(&mut self, states: &[f32], num_tokens: usize) {
        let hidden_size = states.len() / num_tokens;
        self.sums.resize(hidden_size, 0.0);
        for state in states.chunks_exact(hidden_size) {
            self.sums.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        self.num_tokens += num_tokens;
    }

    /// The vector.
    ///
    /// # Errors
    /// If the model gave states that are no numbers, or nothing but zeros.
    pub(super) fn finish(&self) -> Result<Vec<f32>> {
        // Dividing by the number of tokens would change nothing: the sum is scaled to length 1 anyway.
        let length = self.sums.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !length.is_finite() || length == 0.0 {
            return Err(Error::internal(format!("the model gave hidden states whose sum has the length {length}")));
        }
        Ok(self.sums.iter().map(|x| (x / length) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_do_not_show_and_the_length_is_1() {
        let states: Vec<f32> = (0..7 * 5).map(|i| ((i * 37 % 19) as f32 - 8.5) * 1.7f32.powi(i % 9)).collect();
        let vector = |chunks: &[usize]| {
            let (mut pooling, mut rest) = (Pooling::default(), &states[..]);
            for &num_tokens in chunks {
                let (chunk, left) = rest.split_at(num_tokens * 5);
                pooling.add(chunk, num_tokens);
                rest = left;
            }
            assert_eq!(pooling.num_tokens(), 7);
            pooling.finish().expect("numbers")
        };
        let whole = vector(&[7]);
        assert_eq!(vector(&[1, 4, 2]), whole);
        assert!((whole.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_no_direction_is_an_error() {
        for states in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            let mut pooling = Pooling::default();
            pooling.add(&states, 1);
            assert!(pooling.finish().is_err(), "{states:?}");
        }
    }
}
