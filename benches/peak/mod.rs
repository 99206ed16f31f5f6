//! What this machine can do at most, measured: bytes read per second from memory, and products of bytes per second in
//! registers. Kernels are put beside these.

mod multiply;
mod read;

/// Much more than the caches hold that a few cores share.
pub(crate) const BUFFER_BYTES: usize = 512 << 20;

/// Peaks of all threads together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peaks {
    /// 10^9 bytes per second read from memory.
    pub read_gb_per_s: f64,
    /// 10^9 multiplications of a byte by a byte, added up in 32 bits, per second; `None` where there is no such
    /// instruction to measure.
    pub gmac_per_s: Option<f64>,
}

/// Measures both with `num_threads` threads.
pub(crate) fn measure(num_threads: usize) -> Peaks {
    let gmac: Vec<Option<f64>> = on_threads(num_threads, multiply::gmac_per_s);
    Peaks { read_gb_per_s: read::gb_per_s(num_threads), gmac_per_s: gmac.into_iter().sum() }
}

fn on_threads<T: Send>(num_threads: usize, f: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let f = &f;
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(f)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it only measures")).collect()
    })
}
