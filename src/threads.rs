//! Threads for work that may wait. Compute threads and the threads of the HTTP server are latency-bound: what a single
//! request brings (a large body to parse, a schema to compile, the token masks of an expensive grammar) runs on threads
//! that only get the processor time that the others leave.

use std::io;
use std::thread::{Builder, JoinHandle};

/// The lowest priority that the system has. Beside one busy thread of normal priority such a thread gets about 1.5 % of
/// a core (Linux's weights: 15 against 1024); on an idle core it runs at full speed.
#[cfg(target_os = "linux")]
const LOWEST_PRIORITY: i32 = 19;

/// Starts a thread of the lowest priority, named `name`, with a stack of `stack_bytes`.
///
/// # Errors
/// If the system gives no thread.
pub fn spawn_background<T: Send + 'static>(
    name: &str,
    stack_bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).stack_size(stack_bytes).spawn(move || {
        lower_priority();
        work()
    })
}

/// Lowers the priority of the calling thread. It cannot be raised again without privileges, so call this on threads
/// that do nothing else.
fn lower_priority() {
    // Elsewhere the call would lower the whole process: only Linux has priorities per thread.
    #[cfg(target_os = "linux")]
    if let Err(e) = rustix::process::setpriority_process(None, LOWEST_PRIORITY) {
        tracing::warn!("a background thread keeps its priority: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_background_thread_has_the_lowest_priority() {
        let priority = || rustix::process::getpriority_process(None).expect("a thread has a priority");
        let before = priority();
        let inside = spawn_background("background-test", 64 << 10, priority).expect("a thread").join();
        assert_eq!(inside.expect("no panic"), LOWEST_PRIORITY);
        assert_eq!(priority(), before);
    }
}
