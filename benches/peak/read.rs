//! Reading memory as fast as it comes: a buffer on large pages, as the weights are, read by all threads at once,
//! each in several streams.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use memmap2::MmapMut;

use super::{BUFFER_BYTES, on_threads};

/// Passes over the buffer; the fastest counts.
const PASSES: usize = 16;
/// What a thread reads at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Places in a piece at which a thread reads in turn: memory gives more when it is asked in several.
const STREAMS: usize = 4;
/// Words that a stream reads at its turn, four cache lines.
const TURN: usize = 32;

/// 10^9 bytes per second of all threads together.
pub(crate) fn gb_per_s(num_threads: usize) -> f64 {
    let mut map = MmapMut::map_anon(BUFFER_BYTES).expect("memory for the buffer");
    #[cfg(target_os = "linux")]
    if let Err(e) = map.advise(memmap2::Advice::HugePage) {
        println!("no large pages ({e}), so less than the memory can give");
    }
    map.fill(1);
    let words: &[u64] = bytemuck::cast_slice(&map);
    let pieces: Vec<&[u64]> = words.chunks_exact(PIECE_BYTES / 8).collect();
    // One counter for each pass: threads claim pieces, as the kernels' do, so that one that loses its core does not
    // hold up the others.
    let claims: Vec<AtomicUsize> = (0..PASSES).map(|_| AtomicUsize::new(0)).collect();
    let barrier = Barrier::new(num_threads);
    let times = on_threads(num_threads, || {
        let pass = |claim: &AtomicUsize| {
            barrier.wait();
            let began = Instant::now();
            while let Some(piece) = pieces.get(claim.fetch_add(1, Ordering::Relaxed)) {
                black_box(sum(piece));
            }
            (began, Instant::now())
        };
        claims.iter().map(pass).collect::<Vec<_>>()
    });
    // From the first thread's beginning to the last one's end: a thread that comes late would otherwise read alone.
    let seconds = |pass: usize| {
        let began = times.iter().map(|of_thread| of_thread[pass].0).min();
        let ended = times.iter().map(|of_thread| of_thread[pass].1).max();
        began.zip(ended).map_or(f64::INFINITY, |(began, ended)| (ended - began).as_secs_f64())
    };
    let fastest = (0..PASSES).map(seconds).fold(f64::INFINITY, f64::min);
    (pieces.len() * PIECE_BYTES) as f64 / fastest / 1e9
}

fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has the instructions.
            #[allow(unsafe_code)]
            return unsafe { sum_avx512(words) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has the instructions.
            #[allow(unsafe_code)]
            return unsafe { sum_avx2(words) };
        }
    }
    sum_here(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(words: &[u64]) -> u64 {
    sum_here(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(words: &[u64]) -> u64 {
    sum_here(words)
}

#[inline(always)]
fn sum_here(words: &[u64]) -> u64 {
    let stream = words.len() / STREAMS;
    let mut turns: [_; STREAMS] = std::array::from_fn(|i| words[i * stream..(i + 1) * stream].chunks_exact(TURN));
    let mut sums = [0u64; TURN];
    for _ in 0..stream / TURN {
        for turn in &mut turns {
            let Some(chunk) = turn.next() else { break };
            for (sum, word) in sums.iter_mut().zip(chunk) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}
