//! The write half of attention: queries and keys are normed and rotated in place, queries scaled, and keys and values
//! go to their slots of the KV memory as half floats, in the layout that `attention` reads.

use super::attention::{AttentionShape, KV_BLOCK, KvLayer, Ragged, RopePairs};
use super::norm::scale_of;
use super::pool::{Pool, SharedMut, for_rows};
use super::simd::{Isa, LANES, Simd, simd_kernel};

/// Most tokens that a thread takes at a time.
const TOKENS_PER_TILE_MAX: usize = 16;

/// Norms and rotates queries and keys of `qkv` in place, scales the queries, and writes keys and values to their slots.
///
/// `qkv: [num_tokens, (num_heads + 2 num_kv_heads) * head_dim]`.
///
/// # Panics
/// If a length does not fit, or a slot lies outside the memory.
pub fn rotate_and_store(
    isa: Isa,
    pool: &mut Pool,
    shape: &AttentionShape,
    batch: &Ragged<'_>,
    kv: &mut KvLayer,
    qkv: &mut [f32],
) {
    let width = shape.check(batch, kv, qkv.len());
    let num_tokens = batch.positions.len();
    let half = batch.cos.len() / num_tokens.max(1);
    assert!(2 * half <= shape.head_dim && batch.sin.len() == num_tokens * half && batch.cos.len() == num_tokens * half);
    let qkv = SharedMut::new(qkv);
    let memory = Memory { keys: SharedMut::new(&mut kv.keys), values: SharedMut::new(&mut kv.values) };
    for_rows(pool, num_tokens, TOKENS_PER_TILE_MAX, |token| {
        // SAFETY: every token belongs to one tile.
        let row = unsafe { qkv.slice(token * width, width) };
        let angles = (&batch.cos[token * half..][..half], &batch.sin[token * half..][..half]);
        store_token(isa, shape, angles, batch.slots[token] as usize, row, &memory);
    });
}

struct Memory<'a> {
    keys: SharedMut<'a, u16>,
    values: SharedMut<'a, u16>,
}

simd_kernel! {
    fn store_token(
        shape: &AttentionShape,
        angles: (&[f32], &[f32]),
        slot: usize,
        row: &mut [f32],
        memory: &Memory<'_>,
    ) = store_token_body
}

#[inline(always)]
fn store_token_body<S: Simd>(
    s: S,
    shape: &AttentionShape,
    angles: (&[f32], &[f32]),
    slot: usize,
    row: &mut [f32],
    memory: &Memory<'_>,
) {
    let &AttentionShape { num_heads, num_kv_heads, head_dim, scale, rope_pairs, .. } = shape;
    for head in 0..num_heads + num_kv_heads {
        let x = &mut row[head * head_dim..][..head_dim];
        let is_query = head < num_heads;
        if let Some(norm) = &shape.qk_norm {
            let weight = if is_query { &norm.q_weight[..] } else { &norm.k_weight[..] };
            let scale = scale_of(s, x, norm.eps);
            assert_eq!(weight.len(), head_dim);
            for i in 0..head_dim {
                x[i] = x[i] * scale * weight[i];
            }
        }
        rotate(rope_pairs, x, angles.0, angles.1);
        if is_query {
            for i in 0..head_dim {
                x[i] *= scale;
            }
        }
    }
    let (block, offset) = (slot / KV_BLOCK, slot % KV_BLOCK);
    let (keys, values) = row[num_heads * head_dim..].split_at(num_kv_heads * head_dim);
    for head in 0..num_kv_heads {
        let at = (block * num_kv_heads + head) * head_dim * KV_BLOCK;
        let (k, v) = (&keys[head * head_dim..][..head_dim], &values[head * head_dim..][..head_dim]);
        // SAFETY: no two tokens of a batch share a slot, and a slot's values are not touched by others.
        let out = unsafe { memory.values.slice(at + offset * head_dim, head_dim) };
        for d in (0..head_dim).step_by(LANES) {
            let mut half = [0u16; LANES];
            // SAFETY: `head_dim` is a multiple of 16, and `half` has sixteen. The keys' elements are this slot's own,
            // one at a time because their neighbours belong to other slots.
            unsafe {
                s.store_f16(out.as_mut_ptr().add(d), clamp(s, s.load(v.as_ptr().add(d))));
                s.store_f16(half.as_mut_ptr(), clamp(s, s.load(k.as_ptr().add(d))));
                for i in 0..LANES {
                    memory.keys.write(at + (d + i) * KV_BLOCK + offset, half[i]);
                }
            }
        }
    }
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
