//! Matrix products in every format, for 1, 8, 64 and 512 tokens, beside what the machine can do at most: few tokens
//! are bound by reading weights (GB/s), many by multiplying (GMAC/s).
//!
//! `cargo bench --bench kernels [-- FORMAT]`, with `TALLOW_ISA` for a lower instruction set.

mod peak;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tallow::kernels::{Activations, Isa, MatrixInput, MatrixPart, Memory, Packed, Pool, WeightFormat, linear};

/// Inputs of each output: every format's block divides it.
const K: usize = 2048;
/// Output rows of one matrix.
const N: usize = 4096;
/// Shorter samples are not put beside the peaks: they may have found their weights in a cache.
const SAMPLE_MIN: Duration = Duration::from_millis(20);

fn kernels(c: &mut Criterion) {
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let isa = Isa::from_env().expect("TALLOW_ISA names a set of this CPU");
    let peaks = peak::measure(num_threads);
    let gmac = peaks.gmac_per_s.map_or("unknown".to_owned(), |rate| format!("{rate:.0}"));
    println!(
        "{num_threads} threads, {isa}; at most {:.1} GB/s read, {gmac} GMAC/s of bytes (vpdpbusd in registers)",
        peaks.read_gb_per_s
    );
    let mut pool = Pool::new(num_threads);
    let mut group = c.benchmark_group("linear");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
    for format in WeightFormat::ALL {
        let matrices = matrices(format, &mut pool);
        for num_tokens in [1, 8, 64, 512] {
            group.throughput(Throughput::Elements((num_tokens * N * K) as u64));
            let x: Vec<f32> = (0..num_tokens * K).map(|i| ((i * 7919 + 31) % 2003) as f32 / 1000.0 - 1.0).collect();
            let mut quantized = Activations::default();
            quantized.quantize(isa, &mut pool, &x, K);
            let input = MatrixInput { x: &x, quantized: Some(&quantized), num_tokens };
            let mut out = vec![0.0; num_tokens * N];
            let mut fastest = f64::INFINITY;
            // Goes on where the sample before ended, or short samples would see their weights in the cache.
            let mut walk = matrices.iter().cycle();
            group.bench_function(BenchmarkId::new(format.to_string(), num_tokens), |b| {
                b.iter_custom(|num_iterations| {
                    let began = Instant::now();
                    for weights in walk.by_ref().take(num_iterations as usize) {
                        linear(
                            isa,
                            &mut pool,
                            &[MatrixPart { weights, bias: None, column: 0 }],
                            &input,
                            false,
                            &mut out,
                        );
                    }
                    let elapsed = began.elapsed();
                    if elapsed >= SAMPLE_MIN {
                        fastest = fastest.min(elapsed.as_secs_f64() / num_iterations as f64);
                    }
                    elapsed
                });
            });
            if fastest.is_finite() {
                print(format, num_tokens, fastest, matrices[0].num_bytes(), peaks);
            }
        }
    }
    group.finish();
}

/// The fastest sample beside the peaks.
fn print(format: WeightFormat, num_tokens: usize, seconds: f64, weight_bytes: usize, peaks: peak::Peaks) {
    let gmac = (num_tokens * N * K) as f64 / seconds / 1e9;
    let gb = weight_bytes as f64 / seconds / 1e9;
    let share = peaks.gmac_per_s.map_or(String::new(), |peak| format!(" = {:.0} %", 100.0 * gmac / peak));
    println!(
        "{format} x {num_tokens}: {gmac:.1} GMAC/s{share} of the peak, {gb:.1} GB/s of weights = {:.0} %\n",
        100.0 * gb / peaks.read_gb_per_s
    );
}

/// So many that with few tokens weights come from memory, as they do in a model, and not from a cache.
fn matrices(format: WeightFormat, pool: &mut Pool) -> Vec<Packed> {
    let bytes = random_bytes(N * format.row_bytes(K));
    let mut memory = Memory::default();
    let mut pack = || Packed::pack(format, N, K, &bytes, &mut memory, pool).expect("a whole number of blocks");
    let first = pack();
    let num = peak::BUFFER_BYTES.div_ceil(first.num_bytes());
    std::iter::once(first).chain((1..num).map(|_| pack())).collect()
}

/// Random weights whose scales are finite and moderate, whatever the format.
fn random_bytes(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    // Any two bytes may be a scale: without this bit no f16, bf16 or f32 is infinite or absurd.
    (0..len).map(|i| if i % 2 == 1 { next() & 0xbb } else { next() }).collect()
}

criterion_group!(benches, kernels);
criterion_main!(benches);
