//! Threads for work that may wait. Compute threads and the threads of the HTTP server must answer quickly. So expensive
//! work for a single request (parsing a large body, compiling a schema, the token masks of an expensive grammar) runs
//! on threads that get only the processor time that the other threads leave.

use std::io;
use std::thread::{Builder, JoinHandle};

/// The nice value of such a thread. Beside one busy thread of normal priority the thread gets 6 % of a core (Linux's
/// weights: 70 against 1024); on an idle core it gets all of it. So a step that shares a core with it takes 7 % longer.
/// A prompt whose preparation takes 10 ms waits for 160 ms on a busy machine; at the lowest priority, 19, that would be
/// 700 ms.
#[cfg(target_os = "linux")]
const BACKGROUND_NICENESS: i32 = 12;

/// Starts a thread of low priority, named `name`, with a stack of `stack_bytes`.
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
    // Only Linux has priorities per thread: on other systems the call would lower the whole process.
    #[cfg(target_os = "linux")]
    if let Err(e) = rustix::process::setpriority_process(None, BACKGROUND_NICENESS) {
        tracing::warn!("a background thread keeps its priority: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_background_thread_has_a_low_priority() {
        let priority = || rustix::process::getpriority_process(None).expect("a thread has a priority");
        let before = priority();
        let inside = spawn_background("background-test", 64 << 10, priority).expect("a thread").join();
        assert_eq!(inside.expect("no panic"), BACKGROUND_NICENESS);
        assert_eq!(priority(), before);
    }
}
