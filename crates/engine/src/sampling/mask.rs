//! The tokens that may come next, one bit each.

use tallow_stream::protocol::TokenId;

/// A set of tokens. Ids beyond it are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `id % 32` of word `id / 32`.
    words: Vec<u32>,
}

impl TokenMask {
    /// From words of 32 ids each, the lowest bit first.
    pub(crate) fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// Whether `token` is in it.
    pub fn contains(&self, token: TokenId) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Whether no token is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Takes tokens out; those that are not in it do not matter.
    pub fn remove(&mut self, tokens: &[TokenId]) {
        for token in tokens {
            if let Some(word) = self.words.get_mut(*token as usize / 32) {
                *word &= !(1 << (token % 32));
            }
        }
    }

    /// Puts `row` into `masked`, with minus infinity for all tokens that are not in the set. Whole words of it are
    /// most often all in or all out, so this costs little more than a copy.
    pub(super) fn apply(&self, row: &[f32], masked: &mut Vec<f32>) {
        masked.clear();
        masked.resize(row.len(), f32::NEG_INFINITY);
        let parts = row.chunks(32).zip(masked.chunks_mut(32));
        for (&word, (logits, masked)) in self.words.iter().zip(parts) {
            match word {
                0 => {}
                u32::MAX => masked.copy_from_slice(logits),
                word => {
                    let pairs = masked.iter_mut().zip(logits).enumerate();
                    for (_, (masked, logit)) in pairs.filter(|(bit, _)| word >> bit & 1 == 1) {
                        *masked = *logit;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_the_set_keeps_its_logit() {
        let mut mask = TokenMask::from_words(vec![u32::MAX, 0b101, 1 << 31]);
        assert!(mask.contains(31) && mask.contains(34) && !mask.contains(33) && !mask.contains(960));
        mask.remove(&[34, 960]);
        let row: Vec<f32> = (0..100u16).map(f32::from).collect();
        let mut masked = vec![7.0; 3];
        mask.apply(&row, &mut masked);
        for (id, (logit, masked)) in row.iter().zip(&masked).enumerate() {
            let expect = if mask.contains(id as TokenId) { *logit } else { f32::NEG_INFINITY };
            assert_eq!(*masked, expect, "token {id}");
        }
        assert_eq!(masked.len(), row.len());
        mask.remove(&(0..100).collect::<Vec<_>>());
        assert!(mask.is_empty());
    }
}
