//! Reads small files that other programs may have written: regular files only, and never more than a given number of
//! bytes.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tallow_stream::error::{Error, ErrorKind, Result};

/// The text of a file of at most `bytes_max` bytes. Links are followed; a device or a pipe at their end is refused.
///
/// # Errors
/// If the file cannot be read, is no regular file, is longer, or is not UTF-8; the message names the file.
pub(super) fn read_text(path: &Path, bytes_max: u64) -> Result<String> {
    let cannot = |e| Error::io(format!("cannot read {}", path.display()), e);
    let refuse = |rule: String| Error::new(ErrorKind::Io, format!("{} {rule}", path.display()));
    // Without this flag, opening a pipe would wait for its other end.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(refuse("is not a regular file".to_owned()));
    }
    // The length that the system reports is no bound: the file may grow, and some files report length 0 but have
    // content.
    let mut text = String::new();
    file.take(bytes_max + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > bytes_max {
        return Err(refuse(format!("must have at most {bytes_max} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_regular_file_is_read_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("small"), "text").expect("a file");
        std::os::unix::fs::symlink(path("small"), path("link")).expect("a link");
        for name in ["small", "link"] {
            assert_eq!(read_text(&path(name), 4).as_deref(), Ok("text"));
        }
        let error = read_text(&path("small"), 3).expect_err("too long");
        assert!(error.message().ends_with("small must have at most 3 bytes"), "{error}");

        std::os::unix::fs::symlink("/dev/zero", path("zero")).expect("a link");
        let fifo = std::process::Command::new("mkfifo").arg(path("pipe")).status().expect("mkfifo runs");
        assert!(fifo.success());
        std::fs::create_dir(path("dir")).expect("a folder");
        for name in ["zero", "pipe", "dir"] {
            let error = read_text(&path(name), 1 << 20).expect_err("not regular");
            assert!(error.message().ends_with(&format!("{name} is not a regular file")), "{error}");
        }
        assert!(read_text(&path("none"), 9).expect_err("missing").message().starts_with("cannot read"));
    }
}
