//! The compute threads of one worker. A job is a number of tiles and a function of neighbouring tiles. Every thread has
//! a home, an even share of neighbours: it claims a part of what is left there, then of what is left elsewhere. So a
//! thread reads memory in order, as it streams fastest, and one that loses its core holds up a part of its share only.
//! Between jobs the helpers spin for a moment (a step is some hundred jobs back to back), then park. Who spins fetches
//! what its home will read in the next job: memory would idle otherwise while few tiles or one thread still compute.
//!
//! ```text
//! claim = generation << 24 | next tile         one atomic word for each home
//! run:    close the claims, publish the function, then claim = (generation + 1, first tile) for each home
//! claim:  read claim, read the function, compare-and-swap claim + n, n a part of the tiles left, at least 1
//! ```
//! The swap succeeds only if no newer job was published since the first read, and a job cannot end while one of its
//! tiles is still running, so a function is never called after its job has ended.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

const TILE_BITS: u32 = 24;
const TILE_MASK: u64 = (1 << TILE_BITS) - 1;
/// Spins before a thread parks: about 30 us, several times the gap between two jobs of a step.
const SPINS_BEFORE_PARK: u32 = if cfg!(miri) { 4 } else { 2_000 };

/// Of what is left at home a thread claims one part in so many, elsewhere one in as many for every thread.
const PARTS: usize = 2;
/// A thread that has no helpers takes a job in so many parts: one beat for each, as often as one of two threads.
const PARTS_ALONE: usize = 4;

/// Tiles of rows are this much smaller than even shares.
const ROW_TILES_PER_THREAD: usize = 4;

/// Most that an idle thread fetches for the next job: a part of a second-level cache.
const AHEAD_BYTES: usize = 256 << 10;
/// Bytes fetched between two looks for a new job.
const AHEAD_STEP: usize = 256;

/// Threads that run tiles. The calling thread is one of them.
pub struct Pool {
    shared: Arc<PoolShared>,
    helpers: Vec<JoinHandle<()>>,
    /// Counts the calling thread's claims of all jobs. Nobody else writes it, so it costs nothing.
    beat: Arc<AtomicU64>,
}

struct PoolShared {
    homes: Box<[Home]>,
    num_tiles: AtomicUsize,
    num_done: AtomicUsize,
    /// The job's function as an erased closure and the shim that calls it.
    closure: AtomicPtr<()>,
    call: AtomicPtr<()>,
    /// Memory that the next job reads.
    ahead: [Ahead; 2],
    caller: Mutex<Option<Thread>>,
    caller_parked: AtomicBool,
    /// Helpers that are parked or about to park.
    num_parked: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

/// The claims of one home, on cache lines of their own.
#[repr(align(128))]
struct Home {
    /// Generation and next tile of the current job.
    claim: AtomicU64,
}

#[derive(Default)]
struct Ahead {
    start: AtomicPtr<u8>,
    len: AtomicUsize,
}

type TileCall = unsafe fn(*const (), Range<usize>);

impl Pool {
    /// A pool of `num_threads`, the caller included.
    ///
    /// # Panics
    /// If `num_threads` is 0 or a thread cannot be started.
    pub fn new(num_threads: usize) -> Self {
        assert!(num_threads > 0, "a pool needs a thread");
        let shared = Arc::new(PoolShared {
            homes: (0..num_threads).map(|_| Home { claim: AtomicU64::new(TILE_MASK) }).collect(),
            num_tiles: AtomicUsize::new(0),
            num_done: AtomicUsize::new(0),
            closure: AtomicPtr::default(),
            call: AtomicPtr::default(),
            ahead: Default::default(),
            caller: Mutex::default(),
            caller_parked: AtomicBool::new(false),
            num_parked: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::default(),
        });
        let helpers = (1..num_threads)
            .map(|i| {
                let shared = shared.clone();
                let builder = std::thread::Builder::new().name(format!("compute-{i}"));
                builder.spawn(move || shared.help(i)).expect("cannot start a compute thread")
            })
            .collect();
        Self { shared, helpers, beat: Arc::default() }
    }

    /// Number of threads, the caller included.
    pub fn num_threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// A count that rises several times in every job, so that a long one is told from one that hangs.
    pub fn beat(&self) -> Arc<AtomicU64> {
        self.beat.clone()
    }

    /// Says what the next job will read: each tile its part of each range. Threads that wait fetch it meanwhile.
    pub fn set_ahead(&mut self, ranges: [Range<*const u8>; 2]) {
        for (ahead, range) in self.shared.ahead.iter().zip(ranges) {
            ahead.start.store(range.start.cast_mut(), Ordering::Relaxed);
            ahead.len.store((range.end as usize).saturating_sub(range.start as usize), Ordering::Relaxed);
        }
    }

    /// Calls `f(tile)` once for every tile in `0..num_tiles`, on all threads; returns when all are done. Tiles run in
    /// any order and must not depend on each other. `&mut self` because one job runs at a time.
    ///
    /// # Panics
    /// With the first panic of a tile, after the other threads are done.
    pub fn run<F: Fn(usize) + Sync>(&mut self, num_tiles: usize, f: F) {
        self.run_ranges(num_tiles, |tiles| tiles.for_each(&f));
    }

    /// The same for a function of neighbouring tiles, so that it can prepare once for several.
    ///
    /// # Panics
    /// As `run`.
    pub(crate) fn run_ranges<F: Fn(Range<usize>) + Sync>(&mut self, num_tiles: usize, f: F) {
        if self.helpers.is_empty() || num_tiles <= 1 {
            let part = num_tiles.div_ceil(PARTS_ALONE).max(1);
            for start in (0..num_tiles).step_by(part) {
                f(start..num_tiles.min(start + part));
                self.beat.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        assert!((num_tiles as u64) < TILE_MASK, "too many tiles in one job: {num_tiles}");
        let s = &*self.shared;
        let call: TileCall = call_closure::<F>;
        // Close the old claims first: a helper that read one before and reads the new `num_tiles` now would otherwise
        // take the old job's end for a tile of the new one. Its swap fails on the closed word.
        let old = s.homes[0].claim.load(Ordering::Relaxed);
        for home in &s.homes {
            home.claim.store(old | TILE_MASK, Ordering::SeqCst);
        }
        s.closure.store((&raw const f).cast_mut().cast(), Ordering::Release);
        s.call.store(call as *mut (), Ordering::Release);
        s.num_tiles.store(num_tiles, Ordering::Release);
        s.num_done.store(0, Ordering::Release);
        let generation = (old >> TILE_BITS).wrapping_add(1) << TILE_BITS;
        for (i, home) in s.homes.iter().enumerate() {
            home.claim.store(generation | s.share(i, num_tiles).start as u64, Ordering::SeqCst);
        }
        if s.num_parked.load(Ordering::SeqCst) > 0 {
            self.helpers.iter().for_each(|h| h.thread().unpark());
        }
        while s.run_tiles(0) {
            self.beat.fetch_add(1, Ordering::Relaxed);
        }
        s.wait_until_done(num_tiles);
        self.beat.fetch_add(1, Ordering::Relaxed);
        if let Some(panic) = s.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper catches the panics of its tiles, so it has none of its own to report.
            let _ = helper.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("num_threads", &self.num_threads()).finish()
    }
}

/// # Safety
/// `closure` points to a live `F`.
unsafe fn call_closure<F: Fn(Range<usize>) + Sync>(closure: *const (), tiles: Range<usize>) {
    // SAFETY: the caller vouches for the type and the life of the closure.
    unsafe { (*closure.cast::<F>())(tiles) }
}

/// Calls `f(row)` for every row, neighbouring rows in one tile: `max` of them where there are many.
pub(super) fn for_rows(pool: &mut Pool, num_rows: usize, max: usize, f: impl Fn(usize) + Sync) {
    let per_tile = (num_rows / (ROW_TILES_PER_THREAD * pool.num_threads())).clamp(1, max);
    pool.run(num_rows.div_ceil(per_tile), |tile| {
        (tile * per_tile..num_rows.min((tile + 1) * per_tile)).for_each(&f);
    });
}

impl PoolShared {
    /// Thread `i`'s part of `0..n`.
    fn share(&self, i: usize, n: usize) -> Range<usize> {
        let num_threads = self.homes.len();
        i * n / num_threads..(i + 1) * n / num_threads
    }

    /// Claims and runs some tiles, those of thread `me`'s home first; `false` if there is none left to claim.
    fn run_tiles(&self, me: usize) -> bool {
        let num_threads = self.homes.len();
        (0..num_threads).any(|i| {
            let parts = if i == 0 { PARTS } else { PARTS * num_threads };
            self.run_tiles_of((me + i) % num_threads, parts)
        })
    }

    /// The same for one home: one part in `parts` of what is left.
    fn run_tiles_of(&self, home: usize, parts: usize) -> bool {
        let word = &self.homes[home].claim;
        let claim = word.load(Ordering::Acquire);
        let tile = (claim & TILE_MASK) as usize;
        let num_tiles = self.num_tiles.load(Ordering::Acquire);
        let closure = self.closure.load(Ordering::Acquire);
        let call = self.call.load(Ordering::Acquire);
        let end = self.share(home, num_tiles).end;
        if tile >= end {
            return false;
        }
        let n = ((end - tile) / parts).max(1);
        if word.compare_exchange_weak(claim, claim + n as u64, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return true; // Somebody else was faster, or a newer job came: look again.
        }
        // SAFETY: the swap proves that the words read after `claim` belong to its job (a newer job changes `claim`
        // for good), and that job waits in `run` for these tiles, so the closure is alive and `call` is its shim.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe {
            let call = std::mem::transmute::<*mut (), TileCall>(call);
            call(closure, tile..tile + n);
        }));
        if let Err(panic) = result {
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
        // SeqCst orders this against `caller_parked`: one side always sees the other.
        let is_last = self.num_done.fetch_add(n, Ordering::SeqCst) + n == num_tiles;
        if is_last
            && self.caller_parked.load(Ordering::SeqCst)
            && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
        {
            caller.unpark();
        }
        true
    }

    /// Fetches a little of what thread `me` reads in the next job, from `at` on in its part of each range.
    fn fetch_ahead(&self, me: usize, at: usize) {
        for ahead in &self.ahead {
            let share = self.share(me, ahead.len.load(Ordering::Relaxed));
            let start = ahead.start.load(Ordering::Relaxed);
            for offset in (at..share.len().min(at + AHEAD_STEP)).step_by(64) {
                prefetch(start.wrapping_add(share.start + offset));
            }
        }
    }

    fn wait_until_done(&self, num_tiles: usize) {
        for spins in 0..SPINS_BEFORE_PARK {
            if self.num_done.load(Ordering::Acquire) == num_tiles {
                return;
            }
            self.spin(0, spins);
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        self.caller_parked.store(true, Ordering::SeqCst);
        while self.num_done.load(Ordering::SeqCst) != num_tiles {
            std::thread::park();
        }
        self.caller_parked.store(false, Ordering::SeqCst);
    }

    /// Waits for a moment, usefully at first.
    fn spin(&self, me: usize, spins: u32) {
        let at = spins as usize * AHEAD_STEP;
        if at < AHEAD_BYTES {
            self.fetch_ahead(me, at);
        }
        std::hint::spin_loop();
    }

    fn help(&self, me: usize) {
        let mut spins = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.run_tiles(me) {
                spins = 0;
            } else if spins < SPINS_BEFORE_PARK {
                self.spin(me, spins);
                spins += 1;
            } else {
                self.num_parked.fetch_add(1, Ordering::SeqCst);
                // Looked at once more after saying so: a job published before that was seen is not slept through.
                let idle = (0..self.homes.len()).all(|i| {
                    let claim = self.homes[i].claim.load(Ordering::SeqCst);
                    (claim & TILE_MASK) as usize >= self.share(i, self.num_tiles.load(Ordering::SeqCst)).end
                });
                if idle && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.num_parked.fetch_sub(1, Ordering::SeqCst);
                spins = 0;
            }
        }
    }
}

/// Hints that the line at `p` will be read soon, near enough for the second-level cache. Any address is allowed.
fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has the instruction, and it does not fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: every AArch64 CPU has the instruction, and it does not fault. (Its intrinsic is not stable.)
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) p, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// A slice that several tiles write at once, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    ptr: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts only through `slice`, whose callers vouch that the parts do not overlap.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), life: std::marker::PhantomData }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// Nobody else uses it meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, index: usize, value: T) {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: in bounds; the caller vouches that nobody else uses it.
        unsafe { self.ptr.add(index).write(value) }
    }

    /// The part `start..start + len`, to be read.
    ///
    /// # Safety
    /// Nobody writes it meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn read(&self, start: usize, len: usize) -> &[T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {}", self.len);
        // SAFETY: in bounds; the caller vouches that nobody writes it.
        unsafe { std::slice::from_raw_parts(self.ptr.add(start), len) }
    }

    /// The address of an element, to be fetched: it may lie outside.
    #[inline(always)]
    pub(crate) fn address(&self, index: usize) -> *const T {
        self.ptr.wrapping_add(index)
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// No other live part overlaps it.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {}", self.len);
        // SAFETY: in bounds; the caller vouches that it is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_runs_once() {
        for num_threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(num_threads);
            for num_tiles in (0..70).chain([1000]).cycle().take(if cfg!(miri) { 72 } else { 3000 }) {
                let counts: Vec<AtomicUsize> = (0..num_tiles).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_tiles, |tile| {
                    counts[tile].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{num_threads} threads, {num_tiles}");
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(2);
        for _ in 0..50 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(16, |tile| assert_ne!(tile, 7, "tile seven"));
            }));
            assert!(result.is_err());
            let sum = AtomicUsize::new(0);
            pool.run(10, |tile| {
                sum.fetch_add(tile, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn the_beat_rises_with_every_job_and_within_one() {
        for num_threads in [1, 2, 3] {
            let mut pool = Pool::new(num_threads);
            let (beat, caller) = (pool.beat(), std::thread::current().id());
            for _ in 0..20 {
                let before = beat.load(Ordering::Relaxed);
                pool.run(60, |_| {
                    // A helper is slow: it goes on only when the caller was seen to advance.
                    while std::thread::current().id() != caller && beat.load(Ordering::Relaxed) < before + 2 {
                        std::hint::spin_loop();
                    }
                });
                assert!(beat.load(Ordering::Relaxed) > before, "{num_threads} threads");
            }
        }
    }

    #[test]
    fn parked_helpers_wake_for_a_job() {
        let mut pool = Pool::new(2);
        for _ in 0..20 {
            while pool.shared.num_parked.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            // Two tiles that wait for each other end only if both threads are awake.
            let both = std::sync::Barrier::new(2);
            pool.run(2, |_| {
                both.wait();
            });
        }
    }
}
