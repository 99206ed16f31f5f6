//! Products of bytes in registers, nothing read or written: what no kernel can be faster than.

#[cfg(target_arch = "x86_64")]
use std::hint::black_box;
#[cfg(target_arch = "x86_64")]
use std::time::{Duration, Instant};

/// How long a thread multiplies.
#[cfg(target_arch = "x86_64")]
const TIME: Duration = Duration::from_millis(200);
/// Independent sums: two instructions a cycle of up to five cycles each, with room to spare.
#[cfg(target_arch = "x86_64")]
const CHAINS: usize = 12;

/// One thread's 10^9 products per second.
pub(crate) fn gmac_per_s() -> Option<f64> {
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
#[cfg(target_arch = "x86_64")]
fn timed(run: impl Fn(u64) -> u64) -> f64 {
    const ROUNDS: u64 = 10_000;
    let began = Instant::now();
    let mut products = 0;
    while began.elapsed() < TIME {
        products += ROUNDS * run(ROUNDS);
    }
    products as f64 / began.elapsed().as_secs_f64() / 1e9
}

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
