//! The `n` largest logits of a row, without sorting the row.
//!
//! One pass keeps the logits above a threshold in a buffer of `2n`. Each time the buffer is full, a selection keeps the
//! `n` largest, and the smallest of those is the new threshold. On real rows almost no logit passes it, so the pass
//! costs one comparison per logit.

use std::cmp::Ordering;

use tallow_stream::protocol::TokenId;

/// Larger logits first, then lower ids.
pub(super) fn order(a: &(f32, TokenId), b: &(f32, TokenId)) -> Ordering {
    // Rows with NaN were refused before.
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
}

/// Puts the first `n` tokens of the row by [`order`] into `top`. The last of them comes last; the others are in no
/// order. Tokens whose logit is minus infinity are left out.
pub(super) fn select_top(row: &[f32], n: usize, top: &mut Vec<(f32, TokenId)>) {
    top.clear();
    if n == 0 {
        return;
    }
    let mut threshold = f32::NEG_INFINITY;
    for (id, &logit) in row.iter().enumerate() {
        // An equal logit that comes later has a higher id, so it ranks after the `n` that are kept.
        if logit > threshold {
            top.push((logit, id as TokenId));
            if top.len() == 2 * n {
                threshold = cut(top, n);
            }
        }
    }
    cut(top, n);
}

fn cut(top: &mut Vec<(f32, TokenId)>, n: usize) -> f32 {
    let Some(last) = n.min(top.len()).checked_sub(1) else { return f32::NEG_INFINITY };
    top.select_nth_unstable_by(last, order);
    top.truncate(n);
    top[last].0
}
