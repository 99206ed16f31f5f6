//! What the kernel says of a process.

/// Resident memory in bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    status(pid, "VmRSS:") * 1024
}

/// Threads.
pub(crate) fn threads(pid: u32) -> u64 {
    status(pid, "Threads:")
}

/// Open files, sockets among them.
pub(crate) fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// What the kernel holds for each connection of this local port that the other end has not taken, in bytes.
pub(crate) fn send_queues(port: u16) -> Vec<u64> {
    let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let of = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, queues) = (fields[1].rsplit_once(':')?.1, fields[4].split_once(':')?.0);
        let is_ours = u16::from_str_radix(local, 16) == Ok(port);
        is_ours.then(|| u64::from_str_radix(queues, 16).expect("hex"))
    };
    text.lines().skip(1).filter_map(of).collect()
}

/// Raises this process's bound on open files, and its children's, as far as it may; returns what it came to.
pub(crate) fn raise_open_files() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap()
}

fn status(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key} of {pid}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}
