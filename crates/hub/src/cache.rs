//! The cache directory: where files lie, how a file gets there, and how two processes share the cache.
//!
//! ```text
//! models/NAME.gguf            the file, complete and verified: it only ever appears by a rename
//! models/NAME.gguf.verified   its sha256, size and time of change when it was verified
//! models/NAME.gguf.partial    the bytes of an unfinished fetch; a later fetch resumes from them if the source allows
//! models/NAME.gguf.lock       held while fetching; never removed, because removing a lock file is a race of its own
//! ```
//!
//! A path of the cache is made of checked words below its root ([`CacheDir::file`] is the only way to one), and tallow
//! writes only into the root's own folders: it does not write through a link that leads out of the cache.
//!
//! Hashing 98 MB takes a tenth of a second or more, which a start should not spend. So a file is hashed when it is
//! fetched and when `pull` asks for it. A start compares size and time of change with the record, and hashes again only
//! if these differ.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk::{CHECK_BYTES, Disk};
use super::manifest::check_word;
use super::{Progress, ProgressEvent, bounded};
use tallow_stream::error::{Error, ErrorKind, Result};

/// Bytes moved at a time.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
/// Longest record that is read, in bytes. Real records have about 150.
const RECORD_BYTES_MAX: u64 = 4 << 10;

/// The directory where tallow keeps fetched files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheDir {
    root: PathBuf,
}

/// The expected size and hash of a file. An unknown value is not checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) size_bytes: Option<u64>,
    pub(super) sha256: Option<String>,
}

/// Whether a cached file can be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cached {
    Missing,
    /// The file is there but wrong; the text says how.
    Damaged(String),
    Good,
}

/// Whether to trust the record or to hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    Record,
    Nothing,
}

/// The record of a file at the time when it was verified.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verified {
    sha256: String,
    size_bytes: u64,
    changed_ns: u64,
}

impl CacheDir {
    /// The cache at `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// `$TALLOW_CACHE_DIR`, else `tallow` in the user's cache directory.
    ///
    /// # Errors
    /// If neither is known.
    pub fn from_env() -> Result<Self> {
        if let Some(root) = std::env::var_os("TALLOW_CACHE_DIR").filter(|v| !v.is_empty()) {
            return Ok(Self::new(root));
        }
        let root = dirs::cache_dir()
            .ok_or_else(|| Error::new(ErrorKind::Io, "this user has no cache directory; set TALLOW_CACHE_DIR"))?;
        Ok(Self::new(root.join("tallow")))
    }

    /// The directory of model files.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// The file at `place` below the directory of model files, its parts divided by slashes.
    ///
    /// # Errors
    /// If a part is not a safe word of a path: `..`, an empty part (as before the slash of an absolute path), or one
    /// with other characters.
    pub(super) fn file(&self, place: &str) -> Result<CacheFile> {
        place.split('/').try_for_each(|part| check_word("cache path", part))?;
        let path = place.split('/').fold(self.models(), |path, part| path.join(part));
        Ok(CacheFile { root: self.root.clone(), path })
    }
}

/// One file of the cache, whether it exists or not.
#[derive(Debug, Clone)]
pub(super) struct CacheFile {
    root: PathBuf,
    /// Below `root`.
    path: PathBuf,
}

impl CacheFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    /// A temporary directory for a fetch, which the fetch removes.
    pub(super) fn scratch(&self) -> PathBuf {
        self.beside(".scratch")
    }

    /// Checks whether the file exists and has the expected size and hash.
    pub(super) fn check(&self, expected: &Expected, trust: Trust) -> Result<Cached> {
        let stat = match std::fs::metadata(&self.path) {
            Ok(stat) => stat,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Cached::Missing),
            Err(e) => return Err(Error::io(format!("cannot read {}", self.path.display()), e)),
        };
        if !stat.is_file() {
            return Ok(Cached::Damaged("is not a regular file".to_owned()));
        }
        if let Some(size) = expected.size_bytes.filter(|&size| size != stat.len()) {
            return Ok(Cached::Damaged(format!("has {} bytes, must have {size}", stat.len())));
        }
        let record = self.record();
        let sha256 = match (&expected.sha256, &record) {
            (Some(sha256), _) => sha256.clone(),
            (None, Some(record)) => record.sha256.clone(),
            (None, None) => return Ok(Cached::Damaged("was never verified".to_owned())),
        };
        let now = Verified { sha256: sha256.clone(), size_bytes: stat.len(), changed_ns: changed_ns(&stat) };
        if trust == Trust::Record && record.as_ref() == Some(&now) {
            return Ok(Cached::Good);
        }
        let actual = hash_file(&self.path)?;
        if actual != sha256 {
            return Ok(Cached::Damaged(format!("has sha256 {actual}, must have {sha256}")));
        }
        // If the cache cannot be written, the file is still good; the next start hashes it again.
        let _ = self.write_record(&now);
        Ok(Cached::Good)
    }

    /// Waits until no other process fetches this file. Dropping the returned file releases the lock.
    pub(super) fn lock(&self, progress: Progress<'_>) -> Result<File> {
        self.create_dir()?;
        let path = self.beside(".lock");
        let file = open_own(&path, OpenOptions::new().create(true).truncate(false).write(true))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                progress(ProgressEvent::Message("another tallow is fetching this file, waiting for it".to_owned()));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(format!("cannot lock {}", path.display()), e)),
        }
        file.lock().map_err(|e| Error::io(format!("cannot lock {}", path.display()), e))?;
        Ok(file)
    }

    /// Creates the folder of the file, which must lie in the cache: no folder is created and no file written behind a
    /// link that leads out of the cache.
    fn create_dir(&self) -> Result<()> {
        let dir = self.path.parent().unwrap_or(&self.root);
        let cannot = |e| Error::io(format!("cannot create {}", dir.display()), e);
        std::fs::create_dir_all(&self.root).map_err(cannot)?;
        let root = self.root.canonicalize().map_err(cannot)?;
        let existing = dir.ancestors().find_map(|dir| dir.canonicalize().ok());
        if !existing.is_some_and(|existing| existing.starts_with(&root)) {
            let message = format!(
                "{} leads out of the cache {} by a link; to keep models elsewhere, set the cache's folder",
                dir.display(),
                self.root.display()
            );
            return Err(Error::new(ErrorKind::Io, message));
        }
        std::fs::create_dir_all(dir).map_err(cannot)
    }

    /// The partial file that an earlier fetch left, with its bytes hashed, or an empty one.
    pub(super) fn partial(&self, disk: &Disk) -> Result<Partial> {
        Partial::open(self.beside(".partial"), disk)
    }

    /// Renames a complete partial to the file if its size and hash are right; otherwise removes it.
    pub(super) fn commit(&self, partial: Partial, expected: &Expected) -> Result<()> {
        let path = partial.path.clone();
        let sha256 = match partial.finish(expected) {
            Ok(sha256) => sha256,
            Err(e) => {
                // The mismatch is the error to report. A partial that cannot be removed is overwritten next time.
                let _ = std::fs::remove_file(&path);
                return Err(e);
            }
        };
        let what = || format!("cannot rename {}", path.display());
        std::fs::rename(&path, &self.path).map_err(|e| Error::io(what(), e))?;
        sync_dir(&self.path);
        let stat = std::fs::metadata(&self.path).map_err(|e| Error::io(what(), e))?;
        self.write_record(&Verified { sha256, size_bytes: stat.len(), changed_ns: changed_ns(&stat) })
    }

    fn record(&self) -> Option<Verified> {
        toml::from_str(&bounded::read_text(&self.beside(".verified"), RECORD_BYTES_MAX).ok()?).ok()
    }

    fn write_record(&self, record: &Verified) -> Result<()> {
        let path = self.beside(".verified");
        let text = toml::to_string(record).map_err(|e| Error::internal(e.to_string()))?;
        let mut file = open_own(&path, OpenOptions::new().create(true).truncate(true).write(true))?;
        file.write_all(text.as_bytes()).map_err(|e| Error::io(format!("cannot write {}", path.display()), e))
    }
}

/// A file that is being fetched, hashed as it grows. It accepts no byte before [`Self::allow`] sets how many there may
/// be.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    len: u64,
    len_max: u64,
    disk: Disk,
    /// Bytes written since the last check of the disk.
    unchecked_bytes: u64,
}

impl Partial {
    fn open(path: PathBuf, disk: &Disk) -> Result<Self> {
        let mut file = open_own(&path, OpenOptions::new().create(true).truncate(false).read(true).write(true))?;
        // Reading to the end leaves the file position where writing continues.
        let mut hasher = Sha256::new();
        let len = hash_into(&mut hasher, &mut file).map_err(|e| Error::io(path.display(), e))?;
        Ok(Self { path, file, hasher, len, len_max: 0, disk: disk.clone(), unchecked_bytes: 0 })
    }

    /// Allows the file to grow to `len_max` bytes, if the disk has room for them.
    ///
    /// # Errors
    /// If the disk has no room for them.
    pub(super) fn allow(&mut self, len_max: u64) -> Result<()> {
        self.len_max = len_max;
        self.check_disk()
    }

    /// Checks that the disk has room for the bytes still to come.
    fn check_disk(&mut self) -> Result<()> {
        self.unchecked_bytes = 0;
        let dir = self.path.parent().unwrap_or(&self.path);
        self.disk.check(dir, self.len_max.saturating_sub(self.len))
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Hash of the bytes so far, in hex.
    pub(super) fn sha256_so_far(&self) -> String {
        hex(&self.hasher.clone().finalize())
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// If more bytes come than were allowed, the disk has no room for the rest, or writing fails.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.len + bytes.len() as u64 > self.len_max {
            return Err(Error::new(
                ErrorKind::Io,
                format!("sent more bytes than the file may have ({})", self.len_max),
            ));
        }
        self.unchecked_bytes += bytes.len() as u64;
        if self.unchecked_bytes > CHECK_BYTES {
            self.check_disk()?;
        }
        self.file.write_all(bytes).map_err(|e| Error::io(format!("cannot write {}", self.path.display()), e))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Empties the file.
    pub(super) fn restart(&mut self) -> Result<()> {
        use std::io::Seek;
        let truncated = self.file.set_len(0).and_then(|()| self.file.rewind());
        truncated.map_err(|e| Error::io(format!("cannot write {}", self.path.display()), e))?;
        self.hasher = Sha256::new();
        self.len = 0;
        Ok(())
    }

    /// Ends a fetch that failed. The bytes so far stay for the next fetch. A file that is empty or has no known hash is
    /// removed, because the next fetch would not resume from it.
    pub(super) fn keep_for_later(self, expected: &Expected) {
        if self.len == 0 || expected.sha256.is_none() {
            // Nothing depends on the removal.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Checks size and hash and makes the bytes durable. Returns the hash in hex.
    fn finish(self, expected: &Expected) -> Result<String> {
        if let Some(size) = expected.size_bytes.filter(|&size| size != self.len) {
            return Err(Error::bad_model(format!("sent {} bytes, must be {size}", self.len)));
        }
        let sha256 = hex(&self.hasher.finalize());
        if let Some(expected) = expected.sha256.as_ref().filter(|&expected| *expected != sha256) {
            return Err(Error::bad_model(format!("sent a file with sha256 {sha256}, must be {expected}")));
        }
        self.file.sync_all().map_err(|e| Error::io(format!("cannot write {}", self.path.display()), e))?;
        Ok(sha256)
    }
}

/// Opens a file that tallow itself writes in the cache. A link in its place is refused, because it may lead out of the
/// cache.
fn open_own(path: &Path, options: &mut OpenOptions) -> Result<File> {
    let cannot = |e| Error::io(format!("cannot open {}", path.display()), e);
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = options.custom_flags(flags.bits() as i32).open(path).map_err(cannot)?;
    if file.metadata().map_err(cannot)?.is_file() {
        return Ok(file);
    }
    Err(Error::new(ErrorKind::Io, format!("{} is not a regular file", path.display())))
}

fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let hashed = File::open(path).and_then(|mut file| hash_into(&mut hasher, &mut file));
    hashed.map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?;
    Ok(hex(&hasher.finalize()))
}

fn hash_into(hasher: &mut Sha256, file: &mut File) -> std::io::Result<u64> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut len = 0;
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok(len);
        }
        hasher.update(&chunk[..n]);
        len += n as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut out, b| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// Nanoseconds from the epoch to the last change, 0 if the system does not record it.
fn changed_ns(stat: &std::fs::Metadata) -> u64 {
    let since = stat.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(0) & (i64::MAX as u64))
}

/// Makes a rename durable, if the system can sync a directory.
fn sync_dir(path: &Path) {
    if let Some(dir) = path.parent().and_then(|dir| File::open(dir).ok()) {
        let _ = dir.sync_all();
    }
}

/// All files under `dir` with that extension, in order; none if there is no such directory.
pub(super) fn files_with_extension(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io(format!("cannot read {}", dir.display()), e)),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            // This is the entry's own type: a link is not followed, so the walk cannot run in circles.
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
