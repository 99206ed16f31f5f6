//! The cache directory: where files lie, how one comes to be there, and how two starts share it.
//!
//! ```text
//! models/NAME.gguf            the file, complete and verified: it only ever appears by a rename
//! models/NAME.gguf.verified   its sha256, size and time of change when it was verified
//! models/NAME.gguf.partial    what a fetch has so far; a later one goes on from there where the source allows
//! models/NAME.gguf.lock       held while fetching; stays, because removing a lock file is a race of its own
//! ```
//!
//! Hashing 98 MB takes a quarter of a second, a quarter of what a start may take. So a file is hashed when it is
//! fetched and when `pull` asks for it; a start compares size and time of change with the record, and hashes again
//! only when these differ.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Progress, ProgressEvent};
use crate::error::{Error, Result};

/// Bytes moved at a time.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Where tallow keeps what it fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheDir {
    root: PathBuf,
}

/// What a file must be; what is unknown is not checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) size_bytes: Option<u64>,
    pub(super) sha256: Option<String>,
}

/// Whether a cached file can be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cached {
    Missing,
    /// It is there and wrong; the text says how.
    Damaged(String),
    Good,
}

/// Whether to trust the record or to hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    Record,
    Nothing,
}

/// What was known of a file when it was verified.
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
        let root = dirs::cache_dir().ok_or_else(|| {
            Error::new(crate::error::ErrorKind::Io, "this user has no cache directory; set TALLOW_CACHE_DIR")
        })?;
        Ok(Self::new(root.join("tallow")))
    }

    /// The directory of model files.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }
}

/// One file of the cache, there or not.
#[derive(Debug, Clone)]
pub(super) struct CacheFile {
    path: PathBuf,
}

impl CacheFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    /// A directory for the fetch's own use; its owner removes it.
    pub(super) fn scratch(&self) -> PathBuf {
        self.beside(".scratch")
    }

    /// Whether the file is there and is what it must be.
    pub(super) fn check(&self, expected: &Expected, trust: Trust) -> Result<Cached> {
        let stat = match std::fs::metadata(&self.path) {
            Ok(stat) => stat,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Cached::Missing),
            Err(e) => return Err(Error::io(format!("cannot read {}", self.path.display()), e)),
        };
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
        self.write_record(&now)?;
        Ok(Cached::Good)
    }

    /// Waits until no other process fetches this file. The lock ends when the returned file is dropped.
    pub(super) fn lock(&self, progress: Progress<'_>) -> Result<File> {
        let path = self.beside(".lock");
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(format!("cannot create {}", dir.display()), e))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
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

    /// What an earlier fetch left, hashed as far as it goes, or an empty file.
    pub(super) fn partial(&self) -> Result<Partial> {
        Partial::open(self.beside(".partial"))
    }

    /// Makes a complete partial the file, if it is what it must be; else removes it.
    pub(super) fn commit(&self, partial: Partial, expected: &Expected) -> Result<()> {
        let path = partial.path.clone();
        let sha256 = match partial.finish(expected) {
            Ok(sha256) => sha256,
            Err(e) => {
                // The error to report is the mismatch; a file that cannot be removed is overwritten next time.
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
        toml::from_str(&std::fs::read_to_string(self.beside(".verified")).ok()?).ok()
    }

    fn write_record(&self, record: &Verified) -> Result<()> {
        let path = self.beside(".verified");
        let text = toml::to_string(record).map_err(|e| Error::internal(e.to_string()))?;
        std::fs::write(&path, text).map_err(|e| Error::io(format!("cannot write {}", path.display()), e))
    }
}

/// A file that is being fetched, hashed as it grows.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    len: u64,
}

impl Partial {
    fn open(path: PathBuf) -> Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
        // Reading to the end leaves the position where writing goes on.
        let mut hasher = Sha256::new();
        let len = hash_into(&mut hasher, &mut file).map_err(|e| Error::io(path.display(), e))?;
        Ok(Self { path, file, hasher, len })
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
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(format!("cannot write {}", self.path.display()), e))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Empties it.
    pub(super) fn restart(&mut self) -> Result<()> {
        use std::io::Seek;
        let truncated = self.file.set_len(0).and_then(|()| self.file.rewind());
        truncated.map_err(|e| Error::io(format!("cannot write {}", self.path.display()), e))?;
        self.hasher = Sha256::new();
        self.len = 0;
        Ok(())
    }

    /// Ends a fetch that failed. What came so far stays for the next one; an empty file goes.
    pub(super) fn keep_for_later(self) {
        if self.len == 0 {
            // Nothing depends on its absence.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Checks size and hash and makes the bytes durable; the hash in hex.
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

/// Nanoseconds from the epoch to the last change, 0 where the system does not say.
fn changed_ns(stat: &std::fs::Metadata) -> u64 {
    let since = stat.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(0) & (i64::MAX as u64))
}

/// Makes a rename durable where the system lets a directory be synced.
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
            // The entry's own type: a link is not followed, so this cannot walk in circles.
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
