//! Room on the disk: a fetch may take all free space except a reserve. It checks before the first byte and again while
//! bytes arrive, because other programs write to the same disk.

use std::path::Path;
use std::sync::Arc;

use tallow_stream::error::{Error, ErrorKind, Result};

/// The space that stays free, so that a fetch never brings down the programs that share the disk: enough for their logs
/// until an operator notices. It is more than [`CHECK_BYTES`], which a fetch writes between two checks.
const RESERVE_BYTES: u64 = 128 << 20;

/// Bytes written between two checks of the disk.
pub(super) const CHECK_BYTES: u64 = 8 << 20;

/// Returns the bytes that a user may still write to the disk of a directory.
type FreeBytes = dyn Fn(&Path) -> std::io::Result<u64> + Send + Sync;

/// The disk that the cache lies on.
#[derive(Clone)]
pub struct Disk {
    free_bytes: Arc<FreeBytes>,
    reserve_bytes: u64,
}

impl Default for Disk {
    /// The real disk, with the usual reserve.
    fn default() -> Self {
        Self { free_bytes: Arc::new(system_free_bytes), reserve_bytes: RESERVE_BYTES }
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("reserve_bytes", &self.reserve_bytes).finish_non_exhaustive()
    }
}

impl Disk {
    /// A disk whose free space a test decides, without a reserve.
    #[cfg(test)]
    pub(super) fn of_test(free_bytes: impl Fn(&Path) -> u64 + Send + Sync + 'static) -> Self {
        Self::with_reserve(0, free_bytes)
    }

    /// A disk whose free space a test decides.
    #[cfg(test)]
    pub(super) fn with_reserve(reserve_bytes: u64, free_bytes: impl Fn(&Path) -> u64 + Send + Sync + 'static) -> Self {
        Self { free_bytes: Arc::new(move |dir| Ok(free_bytes(dir))), reserve_bytes }
    }

    /// Checks that `more_bytes` can be written in `dir`, which exists.
    ///
    /// # Errors
    /// If the reserve would be touched, or the system does not answer.
    pub(super) fn check(&self, dir: &Path, more_bytes: u64) -> Result<()> {
        let free = (self.free_bytes)(dir)
            .map_err(|e| Error::io(format!("cannot read the free space of {}", dir.display()), e))?;
        let reserve = self.reserve_bytes;
        if reserve.saturating_add(more_bytes) <= free {
            return Ok(());
        }
        let message = format!(
            "{more_bytes} bytes more do not fit on the disk of {}: {free} are free, and {reserve} must stay free",
            dir.display()
        );
        Err(Error::new(ErrorKind::Io, message))
    }
}

fn system_free_bytes(dir: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    // Some network file systems report no size at all; writing to one fails when it is full.
    Ok(if stat.f_blocks == 0 { u64::MAX } else { stat.f_bavail.saturating_mul(stat.f_frsize) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_not_given_away() {
        let disk = Disk::with_reserve(100, |_| 1000);
        assert_eq!(disk.check(Path::new("x"), 900), Ok(()));
        let error = disk.check(Path::new("x"), 901).expect_err("too much");
        let expected = "901 bytes more do not fit on the disk of x: 1000 are free, and 100 must stay free";
        assert_eq!(error.message(), expected);
        let disk = Disk { reserve_bytes: 2000, ..disk };
        assert!(disk.check(Path::new("x"), 0).is_err(), "another program has taken from the reserve");
    }

    #[test]
    fn the_system_tells_the_free_space() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert!(system_free_bytes(dir.path()).expect("a disk") > 0);
        let error = Disk::default().check(dir.path(), u64::MAX).expect_err("no such disk");
        assert!(error.message().contains("do not fit on the disk"), "{error}");
        assert!(Disk::default().check(&dir.path().join("none"), 1).is_err());
    }
}
