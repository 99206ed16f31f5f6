//! The process's bound on open files. A connection is one; the soft bound of most systems, 1,024, is there for programs that
//! cannot cope with more, and ours can.

/// Files that are open beside connections: the model, the store, the log, the async runtime's own, a fetch.
const NUM_OTHER_FILES: u64 = 64;

/// Raises the soft bound to the hard one, and says so if `connections_max` do not fit: then accepting fails before that
/// bound is reached, where clients should wait in the kernel's queue.
pub(super) fn raise(connections_max: usize) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files_max) if files_max < connections_max as u64 + NUM_OTHER_FILES => {
            let room = files_max.saturating_sub(NUM_OTHER_FILES);
            tracing::warn!(
                "--connections-max {connections_max} does not fit into {files_max} open files; raise the hard bound \
                 (ulimit -Hn), or take --connections-max {room}"
            );
        }
        Ok(_) => {}
        Err(e) => tracing::warn!("the bound on open files cannot be raised: {e}"),
    }
}
