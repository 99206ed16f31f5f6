//! The write half of attention: queries and keys are normed and rotated in place, queries scaled, and keys and values
//! go to their slots of the KV memory as half floats, in the layout that `attention` reads.

use super::attention_shape::{AttentionShape, KV_BLOCK, KvLayer, Ragged, RopePairs};
use super::norm::scale_of;
use super::pool::SharedMut;
use super::simd::{Isa, LANES, Simd, simd_kernel};

/// A layer's KV memory and a batch's queries, keys and values, which threads use at once, each its own part.
pub(super) struct Shares<'a> {
    /// See [`KvLayer`].
    pub(super) keys: SharedMut<'a, u16>,
    pub(super) values: SharedMut<'a, u16>,
    /// `[num_tokens, (num_heads + 2 num_kv_heads) * head_dim]`
    pub(super) qkv: SharedMut<'a, f32>,
    width: usize,
    /// Angles per token.
    num_angles: usize,
}

impl<'a> Shares<'a> {
    /// # Panics
    /// If a length does not fit, or a slot or a block lies outside the memory.
    pub(super) fn new(shape: &AttentionShape, batch: &Ragged<'_>, kv: &'a mut KvLayer, qkv: &'a mut [f32]) -> Self {
        let width = shape.check(batch, kv, qkv.len());
        let num_tokens = batch.positions.len();
        let num_angles = batch.cos.len() / num_tokens.max(1);
        let num_all = num_tokens * num_angles;
        assert!(2 * num_angles <= shape.head_dim && batch.sin.len() == num_all && batch.cos.len() == num_all);
        let (keys, values) = (SharedMut::new(&mut kv.keys), SharedMut::new(&mut kv.values));
        Self { keys, values, qkv: SharedMut::new(qkv), width, num_angles }
    }

    /// Where query head `head` of `token` begins.
    #[inline(always)]
    pub(super) fn query(&self, shape: &AttentionShape, token: usize, head: usize) -> usize {
        token * self.width + head * shape.head_dim
    }

    /// Norms, rotates and scales the queries of a token that go with a KV head; norms and rotates its key; writes key
    /// and value to the token's slot.
    ///
    /// # Safety
    /// Nobody else uses these queries, this key and value, and this slot of this head meanwhile.
    pub(super) unsafe fn store(&self, isa: Isa, shape: &AttentionShape, batch: &Ragged<'_>, token: usize, head: usize) {
        let &AttentionShape { num_heads, num_kv_heads, head_dim, .. } = shape;
        let group = num_heads / num_kv_heads;
        let key = self.query(shape, token, num_heads + head);
        // SAFETY: the caller vouches for these parts, which are apart.
        let parts = unsafe {
            HeadParts {
                queries: self.qkv.slice(self.query(shape, token, head * group), group * head_dim),
                key: self.qkv.slice(key, head_dim),
                value: self.qkv.slice(key + num_kv_heads * head_dim, head_dim),
            }
        };
        let angles = token * self.num_angles..(token + 1) * self.num_angles;
        let slot = batch.slots[token] as usize;
        let begin = ((slot / KV_BLOCK) * num_kv_heads + head) * head_dim * KV_BLOCK;
        let place = HeadSlot { shares: self, begin, offset: slot % KV_BLOCK };
        store_head(isa, shape, (&batch.cos[angles.clone()], &batch.sin[angles]), parts, &place);
    }
}

/// What a token has for one KV head.
struct HeadParts<'a> {
    /// `[num_heads / num_kv_heads, head_dim]`
    queries: &'a mut [f32],
    /// `[head_dim]`
    key: &'a mut [f32],
    /// `[head_dim]`
    value: &'a [f32],
}

/// A slot of one head.
struct HeadSlot<'a> {
    shares: &'a Shares<'a>,
    /// Where the block begins.
    begin: usize,
    /// Position in the block.
    offset: usize,
}

simd_kernel! {
    fn store_head(shape: &AttentionShape, angles: (&[f32], &[f32]), parts: HeadParts<'_>, place: &HeadSlot<'_>) = store_head_body
}

#[inline(always)]
fn store_head_body<S: Simd>(
    s: S,
    shape: &AttentionShape,
    angles: (&[f32], &[f32]),
    parts: HeadParts<'_>,
    place: &HeadSlot<'_>,
) {
    let HeadParts { queries, key, value } = parts;
    let norms = shape.qk_norm.as_ref();
    for query in queries.chunks_exact_mut(shape.head_dim) {
        turn(s, shape, norms.map(|n| (&n.q_weight[..], n.eps)), angles, query);
        for i in 0..query.len() {
            query[i] *= shape.scale;
        }
    }
    turn(s, shape, norms.map(|n| (&n.k_weight[..], n.eps)), angles, key);
    let head_dim = key.len();
    assert_eq!(value.len(), head_dim);
    let HeadSlot { shares, begin, offset } = *place;
    // SAFETY: the caller of `Shares::store` vouches for the slot.
    let out = unsafe { shares.values.slice(begin + offset * head_dim, head_dim) };
    for d in (0..head_dim).step_by(LANES) {
        let mut half = [0u16; LANES];
        // SAFETY: `head_dim` is a multiple of 16, and `half` has sixteen. The keys' elements are this slot's own,
        // one at a time because their neighbours belong to other slots.
        unsafe {
            s.store_f16(out.as_mut_ptr().add(d), clamp(s, s.load(value.as_ptr().add(d))));
            s.store_f16(half.as_mut_ptr(), clamp(s, s.load(key.as_ptr().add(d))));
            for i in 0..LANES {
                shares.keys.write(begin + (d + i) * KV_BLOCK + offset, half[i]);
            }
        }
    }
}

/// Norms a head where there is a norm (its weight and what is added to the mean square), and rotates it.
#[inline(always)]
fn turn<S: Simd>(
    s: S,
    shape: &AttentionShape,
    norm: Option<(&[f32], f32)>,
    (cos, sin): (&[f32], &[f32]),
    x: &mut [f32],
) {
    if let Some((weight, eps)) = norm {
        let scale = scale_of(s, x, eps);
        assert_eq!(weight.len(), x.len());
        for i in 0..x.len() {
            x[i] = x[i] * scale * weight[i];
        }
    }
    rotate(shape.rope_pairs, x, cos, sin);
}

/// Into the range of half floats: an infinity would make a score that softmax cannot tell from a position that is not
/// seen. NaN stays.
#[inline(always)]
fn clamp<S: Simd>(s: S, x: S::F) -> S::F {
    const MAX: f32 = 65_504.0;
    s.max(s.splat(-MAX), s.min(s.splat(MAX), x))
}

/// Rotates the first `2 * cos.len()` dimensions of a head.
#[inline(always)]
fn rotate(pairs: RopePairs, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    assert!(sin.len() == half && 2 * half <= head.len());
    match pairs {
        RopePairs::Interleaved => {
            let (head, _) = head.as_chunks_mut::<2>();
            for i in 0..half {
                let [x, y] = head[i];
                head[i] = [x * cos[i] - y * sin[i], x * sin[i] + y * cos[i]];
            }
        }
        RopePairs::Halves => {
            let (first, second) = head.split_at_mut(half);
            for i in 0..half {
                let (x, y) = (first[i], second[i]);
                first[i] = x * cos[i] - y * sin[i];
                second[i] = x * sin[i] + y * cos[i];
            }
        }
    }
}

/// What is left of a value in the KV memory.
#[cfg(test)]
pub(super) fn clamped_f16(x: f32) -> f64 {
    half::f16::from_f32(x.clamp(-65_504.0, 65_504.0)).to_f64()
}
