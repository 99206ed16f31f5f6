//! Both ways of multiplying against dot products in f64, for every format, instruction set, batch and pool.

use super::*;
use crate::Memory;
use crate::weights::{WeightFormat, dequantize_row};

fn random_bytes(format: WeightFormat, n: usize, k: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut bytes: Vec<u8> = (0..n * format.row_bytes(k))
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect();
    // Two-byte fields may be scales: keep every odd byte's exponent small enough for finite sums.
    bytes.iter_mut().skip(1).step_by(2).for_each(|b| *b &= 0xbb);
    bytes
}

fn floats(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + 31) % 2003) as f32 / 1000.0 - 1.0).collect()
}

struct Case {
    format: WeightFormat,
    n: usize,
    k: usize,
    bytes: Vec<u8>,
    bias: Vec<f32>,
    /// Inputs go in as bytes.
    quantize: bool,
}

impl Case {
    fn new(format: WeightFormat, n: usize, k: usize) -> Self {
        Self { format, n, k, bytes: random_bytes(format, n, k), bias: floats(n), quantize: true }
    }

    fn run(&self, isa: Isa, num_threads: usize, x: &[f32]) -> Vec<f32> {
        let mut pool = Pool::new(num_threads);
        let weights =
            Packed::pack(self.format, self.n, self.k, &self.bytes, &mut Memory::default(), &mut pool).unwrap();
        let num_tokens = x.len() / self.k;
        let mut quantized = Activations::default();
        quantized.quantize(isa, &mut pool, x, self.k);
        let mut out = vec![0.0; num_tokens * self.n];
        let part = MatrixPart { weights: &weights, bias: Some(&self.bias), column: 0 };
        let input = MatrixInput { x, quantized: self.quantize.then_some(&quantized), num_tokens };
        linear(isa, &mut pool, &[part], &input, false, &mut out);
        out
    }

    /// The dot products in f64, on inputs rounded to the kernel's steps where the weights are quantised, and for each
    /// the sum of its terms' magnitudes.
    fn truth(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let mut row = vec![0.0; self.k];
        let row_bytes = self.format.row_bytes(self.k);
        let rounded: Vec<f64> = if self.quantize && self.format.block_len() > 1 {
            x.chunks(32).flat_map(round).collect()
        } else {
            x.iter().map(|x| f64::from(*x)).collect()
        };
        let mut out = Vec::new();
        for x in rounded.chunks_exact(self.k) {
            for i in 0..self.n {
                dequantize_row(self.format, &self.bytes[i * row_bytes..][..row_bytes], &mut row);
                let terms = row.iter().zip(x).map(|(w, x)| f64::from(*w) * x);
                let (sum, size) = terms
                    .fold((f64::from(self.bias[i]), f64::from(self.bias[i].abs())), |(s, m), t| (s + t, m + t.abs()));
                out.push((sum, size));
            }
        }
        out
    }
}

fn round(block: &[f32]) -> Vec<f64> {
    let max = block.iter().fold(0f32, |m, x| m.max(x.abs()));
    let (scale, inverse) = (max / 127.0, if max > 0.0 { 127.0 / max } else { 0.0 });
    block.iter().map(|x| f64::from((x * inverse).round_ties_even()) * f64::from(scale)).collect()
}

#[test]
fn every_format_is_right_and_the_same_bits_for_every_set_batch_and_pool() {
    for (format, quantize) in WeightFormat::ALL.into_iter().flat_map(|format| [(format, true), (format, false)]) {
        let len = format.block_len();
        let ks = if len == 1 { vec![75, 1] } else { vec![len, 3 * len] };
        // The interpreter takes minutes for all of them.
        let (ns, ks) = if cfg!(miri) { (&[20][..], &ks[..1]) } else { (&[1, 16, 37][..], &ks[..]) };
        for (n, k) in ns.iter().copied().flat_map(|n| ks.iter().map(move |k| (n, *k))) {
            let case = Case { quantize, ..Case::new(format, n, k) };
            let num_tokens_max = if cfg!(miri) { 3 } else { 23 };
            let x = floats(num_tokens_max * k);
            let expected = case.run(Isa::portable(), 1, &x);
            for (got, (truth, size)) in expected.iter().zip(case.truth(&x)) {
                // Half a dozen roundings of sums no greater than `size`.
                let close = (f64::from(*got) - truth).abs() <= 1e-5 * size.max(1e-6);
                assert!(close || !size.is_finite(), "{format} n {n} k {k}: {got} {truth}");
            }
            for (isa, num_threads) in Isa::all_here().into_iter().zip([1, 2, 2, 3, 1]) {
                for num_tokens in [1, 2, 3, 7, 8, 9, 23].into_iter().filter(|n| *n <= num_tokens_max) {
                    let got = case.run(isa, num_threads, &x[..num_tokens * k]);
                    let same =
                        got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
                    assert!(same, "{format} {isa} n {n} k {k} tokens {num_tokens}");
                }
            }
        }
    }
}

#[test]
fn parts_residual_and_gate_land_in_their_columns() {
    let (k, tokens) = (64, 3);
    let isa = Isa::detect();
    let mut pool = Pool::new(2);
    let case = Case { bias: vec![0.0; 20], ..Case::new(WeightFormat::Q8_0, 20, k) };
    let x = floats(tokens * k);
    let single = case.run(isa, 2, &x);
    let weights = Packed::pack(case.format, 20, k, &case.bytes, &mut Memory::default(), &mut pool).unwrap();
    let mut quantized = Activations::default();
    quantized.quantize(isa, &mut pool, &x, k);
    let input = MatrixInput { x: &x, quantized: Some(&quantized), num_tokens: tokens };
    let residual = floats(tokens * 50);
    let mut out = residual.clone();
    let part = MatrixPart { weights: &weights, bias: None, column: 0 };
    let parts = [part, MatrixPart { column: 25, ..part }];
    linear(isa, &mut pool, &parts, &input, true, &mut out);
    let mut gate = vec![0.0; tokens * 20];
    let to = StageOutput { x: &mut gate, quantized: None };
    gated(isa, &mut pool, &weights, &weights, Activation::Silu, &input, to);
    for t in 0..tokens {
        for i in 0..20 {
            let y = single[t * 20 + i];
            for column in [i, i + 25] {
                let r = residual[t * 50 + column];
                assert_eq!(out[t * 50 + column].to_bits(), (y + r).to_bits(), "token {t} column {column}");
            }
            let y = f64::from(y);
            let (expected, got) = (y / (1.0 + (-y).exp()) * y, f64::from(gate[t * 20 + i]));
            assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1e-6), "{got} {expected}");
        }
    }
}

#[test]
fn an_input_that_is_not_finite_shows_in_every_output() {
    let case = Case::new(WeightFormat::Q4_1, 16, 64);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = floats(2 * 64);
        x[40] = bad;
        for isa in Isa::all_here() {
            let out = case.run(isa, 1, &x);
            assert!(out[..16].iter().all(|y| y.is_nan()), "{isa} {bad}");
            assert!(out[16..].iter().all(|y| y.is_finite()), "{isa} {bad}: the neighbour");
        }
    }
}

#[test]
fn a_gate_leaves_in_bytes_what_quantising_its_outputs_would() {
    let k = 64;
    for (n, tokens) in [(20, 3), (32, 1), (48, 2), (96, 1), (352, if cfg!(miri) { 2 } else { 70 })] {
        let case = Case { bias: vec![0.0; n], ..Case::new(WeightFormat::Q8_0, n, k) };
        for isa in Isa::all_here() {
            let mut pool = Pool::new(3);
            let weights = Packed::pack(case.format, n, k, &case.bytes, &mut Memory::default(), &mut pool).unwrap();
            let x = floats(tokens * k);
            let mut quantized = Activations::default();
            quantized.quantize(isa, &mut pool, &x, k);
            let input = MatrixInput { x: &x, quantized: Some(&quantized), num_tokens: tokens };
            let (mut out, mut bytes, mut expected) =
                (vec![0.0; tokens * n], Activations::default(), Activations::default());
            let to = StageOutput { x: &mut out, quantized: Some(&mut bytes) };
            gated(isa, &mut pool, &weights, &weights, Activation::Silu, &input, to);
            expected.quantize(isa, &mut pool, &out, n);
            assert_eq!(format!("{bytes:?}"), format!("{expected:?}"), "{isa} n {n} tokens {tokens}");
        }
    }
}
