//! What this machine can do at most, measured: bytes read per second from memory, and products of bytes per second in
//! registers. Kernels are put beside these.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Much more than the caches hold that a few cores share.
pub const BUFFER_BYTES: usize = 256 << 20;
/// Passes over the buffer; the fastest counts.
const PASSES: usize = 16;
/// What a thread reads at a time.
const PIECE_BYTES: usize = 64 << 10;
/// How long a thread multiplies.
const MULTIPLY_TIME: Duration = Duration::from_millis(200);

/// Peaks of all threads together.
#[derive(Debug, Clone, Copy)]
pub struct Peaks {
    /// 10^9 bytes per second read from memory.
    pub read_gb_per_s: f64,
    /// 10^9 multiplications of a byte by a byte, added up in 32 bits, per second; `None` where there is no such
    /// instruction to measure.
    pub gmac_per_s: Option<f64>,
}

/// Measures both with `num_threads` threads.
pub fn measure(num_threads: usize) -> Peaks {
    let gmac: Vec<Option<f64>> = on_threads(num_threads, multiply);
    Peaks { read_gb_per_s: read(num_threads), gmac_per_s: gmac.into_iter().sum() }
}

fn on_threads<T: Send>(num_threads: usize, f: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let f = &f;
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(f)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it only measures")).collect()
    })
}

/// Threads claim pieces, as the kernels' do, so that one that loses its core does not hold up the pass.
fn read(num_threads: usize) -> f64 {
    let buffer = vec![1u64; BUFFER_BYTES / 8];
    let pieces: Vec<&[u64]> = buffer.chunks(PIECE_BYTES / 8).collect();
    let pass = || {
        let next = AtomicUsize::new(0);
        let began = Instant::now();
        let claim = || pieces.get(next.fetch_add(1, Ordering::Relaxed));
        let sums = on_threads(num_threads, || std::iter::from_fn(claim).map(|piece| sum(piece)).sum::<u64>());
        black_box(sums);
        BUFFER_BYTES as f64 / began.elapsed().as_secs_f64() / 1e9
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the instructions.
        #[allow(unsafe_code)]
        return unsafe { sum_avx2(words) };
    }
    sum_here(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(words: &[u64]) -> u64 {
    sum_here(words)
}

/// Wide enough that adding is never what it waits for.
#[inline(always)]
fn sum_here(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in words.chunks_exact(32) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// One thread's 10^9 byte products per second.
fn multiply() -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the CPU has the instructions.
            #[allow(unsafe_code)]
            return Some(timed(|n| unsafe { vnni512(n) }));
        }
        if is_x86_feature_detected!("avxvnni") {
            // SAFETY: the CPU has the instructions.
            #[allow(unsafe_code)]
            return Some(timed(|n| unsafe { vnni256(n) }));
        }
    }
    None
}

/// `run(n)` does n rounds and says how many products one round is.
fn timed(run: impl Fn(u64) -> u64) -> f64 {
    const ROUNDS: u64 = 10_000;
    let began = Instant::now();
    let mut products = 0;
    while began.elapsed() < MULTIPLY_TIME {
        products += ROUNDS * run(ROUNDS);
    }
    products as f64 / began.elapsed().as_secs_f64() / 1e9
}

/// Independent sums, enough to hide the latency of every implementation so far.
#[cfg(target_arch = "x86_64")]
const CHAINS: usize = 16;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni512(rounds: u64) -> u64 {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi8, _mm512_setzero_si512};
    let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-1)));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    for sum in sums {
        black_box(_mm512_reduce_add_epi32(sum));
    }
    (CHAINS * 64) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avxvnni")]
fn vnni256(rounds: u64) -> u64 {
    use std::arch::x86_64::{_mm256_dpbusd_avx_epi32, _mm256_extract_epi32, _mm256_set1_epi8, _mm256_setzero_si256};
    let (a, b) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(-1)));
    let mut sums = [_mm256_setzero_si256(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
        }
    }
    for sum in sums {
        black_box(_mm256_extract_epi32::<0>(sum));
    }
    (CHAINS * 32) as u64
}
