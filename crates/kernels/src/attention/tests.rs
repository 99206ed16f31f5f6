//! Against attention written plainly in f64, on every instruction set, in batches and alone.

use super::*;
use crate::Activations;
use crate::kv_write::clamped_f16;
use crate::{DistinctSlots, Memory, QkNorm, RopePairs};

/// Not random, but irregular.
fn value(i: usize) -> f32 {
    ((i * 7919 + 13) % 4001) as f32 / 1000.0 - 2.0
}

struct Case {
    shape: AttentionShape,
    num_angles: usize,
}

/// Tokens `first..last` of a sequence whose blocks are `table`.
struct Chunk {
    seq: usize,
    positions: Range<usize>,
    table: Vec<u32>,
}

impl Case {
    fn new(num_heads: usize, num_kv_heads: usize, head_dim: usize, window: Option<usize>, pairs: RopePairs) -> Self {
        let norm = |k: usize| (0..head_dim).map(|i| 1.0 + value(i + k) / 10.0).collect();
        let qk_norm = window.is_some().then(|| QkNorm { q_weight: norm(1), k_weight: norm(2), eps: 1e-6 });
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = AttentionShape { num_heads, num_kv_heads, head_dim, scale, window, rope_pairs: pairs, qk_norm };
        Self { shape, num_angles: head_dim / 2 - if window.is_some() { 0 } else { 4 } }
    }

    fn width(&self) -> usize {
        (self.shape.num_heads + 2 * self.shape.num_kv_heads) * self.shape.head_dim
    }

    /// Queries, keys and values of a token.
    fn row(&self, seq: usize, position: usize) -> Vec<f32> {
        (0..self.width()).map(|i| value(i + 977 * position + 31 * seq)).collect()
    }

    fn angle(&self, position: usize, i: usize) -> f32 {
        position as f32 * 10f32.powf(-4.0 * i as f32 / self.num_angles as f32)
    }

    fn memory(&self, num_blocks: usize) -> KvLayer {
        let AttentionShape { num_kv_heads, head_dim, .. } = self.shape;
        KvLayer::new(num_blocks, num_kv_heads, head_dim, &mut Memory::in_small_pages()).expect("memory")
    }

    /// Outputs of one step, `[num_tokens, num_heads * head_dim]`, which are also left in bytes as they should be.
    fn step(&self, isa: Isa, num_threads: usize, kv: &mut KvLayer, chunks: &[Chunk]) -> Vec<f32> {
        let (mut qkv, mut positions, mut slots, mut tables) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut cu_seqlens, mut cu_blocks) = (vec![0], vec![0]);
        for chunk in chunks {
            for position in chunk.positions.clone() {
                qkv.extend(self.row(chunk.seq, position));
                positions.push(position as u32);
                slots.push(chunk.table[position / KV_BLOCK] * KV_BLOCK as u32 + (position % KV_BLOCK) as u32);
            }
            tables.extend(&chunk.table);
            cu_seqlens.push(positions.len() as u32);
            cu_blocks.push(tables.len() as u32);
        }
        let angles = |f: fn(f32) -> f32| -> Vec<f32> {
            let each = |p: &u32| (0..self.num_angles).map(|i| f(self.angle(*p as usize, i))).collect::<Vec<_>>();
            positions.iter().flat_map(each).collect()
        };
        let (cos, sin) = (angles(f32::cos), angles(f32::sin));
        let batch = Ragged {
            positions: &positions,
            slots: DistinctSlots::new(&slots),
            cu_seqlens: &cu_seqlens,
            block_tables: &tables,
            cu_blocks: &cu_blocks,
            cos: &cos,
            sin: &sin,
        };
        let out_width = self.shape.num_heads * self.shape.head_dim;
        let mut out = vec![f32::NAN; positions.len() * out_width];
        let (mut bytes, mut expected) = (Activations::default(), Activations::default());
        let mut pool = Pool::new(num_threads);
        let to = StageOutput { x: &mut out, quantized: Some(&mut bytes) };
        attention(isa, &mut pool, &self.shape, &batch, kv, &mut qkv, to);
        expected.quantize(isa, &mut pool, &out, out_width);
        assert_eq!(format!("{bytes:?}"), format!("{expected:?}"), "{isa}: outputs in bytes");
        out
    }

    /// A head after its norm and rotation, in f64.
    fn turned(&self, x: &[f32], weight: Option<&[f32]>, position: usize) -> Vec<f64> {
        let mut x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        if let Some(weight) = weight {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            x.iter_mut().zip(weight).for_each(|(x, w)| *x *= f64::from(*w) / (mean + 1e-6).sqrt());
        }
        for i in 0..self.num_angles {
            let (a, b) = match self.shape.rope_pairs {
                RopePairs::Interleaved => (2 * i, 2 * i + 1),
                RopePairs::Halves => (i, i + self.num_angles),
            };
            let angle = self.angle(position, i);
            let (sin, cos) = (f64::from(angle.sin()), f64::from(angle.cos()));
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
        }
        x
    }

    /// What a token's output should be.
    fn plain(&self, seq: usize, position: usize) -> Vec<f64> {
        let &AttentionShape { num_heads, num_kv_heads, head_dim, scale, window, .. } = &self.shape;
        let norm = self.shape.qk_norm.as_ref();
        let row = self.row(seq, position);
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        let mut out = Vec::new();
        for head in 0..num_heads {
            let q = self.turned(&row[head * head_dim..][..head_dim], norm.map(|n| &n.q_weight[..]), position);
            let at = (num_heads + head / (num_heads / num_kv_heads)) * head_dim;
            let (mut sum, mut weighed) = (0.0, vec![0.0; head_dim]);
            for p in first..=position {
                let seen = self.row(seq, p);
                let k = self.turned(&seen[at..][..head_dim], norm.map(|n| &n.k_weight[..]), p);
                let score = q.iter().zip(&k).map(|(q, k)| q * clamped_f16(*k as f32)).sum::<f64>() * f64::from(scale);
                sum += score.exp();
                let v = &seen[at + num_kv_heads * head_dim..][..head_dim];
                weighed.iter_mut().zip(v).for_each(|(o, v)| *o += score.exp() * clamped_f16(*v));
            }
            out.extend(weighed.iter().map(|o| o / sum));
        }
        out
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
fn check(case: &Case) {
    let sequences = [(70, vec![5, 0, 3]), (1, vec![1]), (33, vec![7, 2])];
    let width = case.shape.num_heads * case.shape.head_dim;
    // One sequence at a time, in one thread, on the narrowest instruction set.
    let mut expected = Vec::new();
    for (seq, (len, table)) in sequences.iter().enumerate() {
        let chunk = Chunk { seq, positions: 0..*len, table: table.clone() };
        expected.push(case.step(Isa::portable(), 1, &mut case.memory(8), &[chunk]));
        for (position, got) in expected[seq].chunks_exact(width).enumerate() {
            let plain = case.plain(seq, position);
            let is_close = |(got, plain): (&f32, &f64)| (f64::from(*got) - plain).abs() < 2e-3;
            assert!(got.iter().zip(&plain).all(is_close), "sequence {seq} position {position}\n{got:?}\n{plain:?}");
        }
    }
    for isa in Isa::all_here() {
        for num_threads in [1, 3] {
            // In chunks that end at odd places, and then token by token beside each other.
            let mut kv = case.memory(8);
            let mut done = [0; 3];
            for lens in [[31, 1, 1], [34, 0, 17], [1, 0, 1], [1, 0, 1], [3, 0, 13]] {
                let chunks: Vec<_> = (0..3)
                    .filter(|seq| lens[*seq] > 0)
                    .map(|seq| Chunk {
                        seq,
                        positions: done[seq]..done[seq] + lens[seq],
                        table: sequences[seq].1.clone(),
                    })
                    .collect();
                let out = case.step(isa, num_threads, &mut kv, &chunks);
                let mut rows = out.chunks_exact(width);
                for chunk in &chunks {
                    for position in chunk.positions.clone() {
                        let expected = &expected[chunk.seq][position * width..][..width];
                        let got = rows.next().expect("a row per token");
                        assert_eq!(bits(got), bits(expected), "{isa}, sequence {} position {position}", chunk.seq);
                    }
                    done[chunk.seq] = chunk.positions.end;
                }
            }
            assert_eq!(done, [70, 1, 33]);
        }
    }
}

#[test]
fn attention_is_right_and_the_same_bits_for_every_set_batch_chunk_and_pool() {
    check(&Case::new(4, 2, 16, None, RopePairs::Interleaved));
    if cfg!(miri) {
        return; // The interpreter takes minutes for each.
    }
    check(&Case::new(3, 1, 64, None, RopePairs::Halves));
    check(&Case::new(5, 1, 32, Some(20), RopePairs::Halves));
    check(&Case::new(2, 2, 48, Some(64), RopePairs::Interleaved));
    check(&Case::new(4, 1, 80, Some(1), RopePairs::Halves));
}

#[test]
#[should_panic(expected = "two tokens share the slot")]
fn two_tokens_cannot_be_written_to_one_slot() {
    let _ = DistinctSlots::new(&[3, 17, 3]);
}
