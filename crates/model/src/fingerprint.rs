//! What a model's texts follow from, as a number: everything in its files, and how they are computed with. A stored text goes
//! on only where that is the same; a new release, a moved file or another bound on the context does not change it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::decoder::ARITHMETIC;
use super::vocab::tokenizer_beside;
use tallow_stream::error::{Error, Result};
use xxhash_rust::xxh3::Xxh3;

const PIECE_BYTES: usize = 1 << 20;

/// # Errors
/// If a file cannot be read.
pub(crate) fn of(path: &Path, arithmetic: &str) -> Result<u64> {
    let mut hasher = Xxh3::new();
    hasher.update(&content(path)?.to_le_bytes());
    let vocabulary = tokenizer_beside(path);
    if vocabulary.is_file() {
        hasher.update(&content(&vocabulary)?.to_le_bytes());
    }
    hasher.update(&ARITHMETIC.to_le_bytes());
    hasher.update(arithmetic.as_bytes());
    Ok(hasher.digest())
}

/// The hash of a file's bytes, from the note beside it where that was written for the file as it is.
fn content(path: &Path) -> Result<u64> {
    let io = |e| Error::io(path.display(), e);
    let stamp = stamp(path).map_err(io)?;
    let note = note_of(path);
    if let Some(known) = fs::read_to_string(&note).ok().and_then(|text| noted(&text, &stamp)) {
        return Ok(known);
    }
    let hash = hash(path).map_err(io)?;
    // Where nobody may write, it is read again next time.
    if let Err(e) = fs::write(&note, format!("{stamp} {hash:016x}\n")) {
        tracing::debug!("{}: {e}", note.display());
    }
    Ok(hash)
}

/// Length and time of the last change.
fn stamp(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    let changed = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{} {}", metadata.len(), changed.as_nanos()))
}

fn note_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.xxh3"))
}

fn noted(text: &str, stamp: &str) -> Option<u64> {
    let hash = text.strip_prefix(stamp)?.strip_prefix(' ')?.trim_end();
    u64::from_str_radix(hash, 16).ok().filter(|_| hash.len() == 16)
}

fn hash(path: &Path) -> io::Result<u64> {
    let (mut file, mut hasher, mut piece) = (File::open(path)?, Xxh3::new(), vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.digest()),
            n => hasher.update(&piece[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_every_byte_and_the_vocabulary_beside_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("m.gguf");
        let mut bytes = vec![7_u8; 3 * PIECE_BYTES + 11];
        fs::write(&path, &bytes).expect("written");
        let first = of(&path, "a").expect("readable");
        assert_eq!(of(&path, "a"), Ok(first), "from the note");
        fs::remove_file(note_of(&path)).expect("there was a note");
        assert_eq!(of(&path, "a"), Ok(first), "from the file");
        assert_ne!(of(&path, "b"), Ok(first), "other arithmetic");
        let moved = dir.path().join("moved.gguf");
        fs::copy(&path, &moved).expect("copied");
        assert_eq!(of(&moved, "a"), Ok(first), "the place of the file says nothing");
        fs::write(dir.path().join("tokenizer.json"), "{}").expect("written");
        assert_ne!(of(&path, "a"), Ok(first), "another vocabulary");
        fs::remove_file(dir.path().join("tokenizer.json")).expect("there");
        bytes[2 * PIECE_BYTES] ^= 1;
        fs::write(&path, &bytes).expect("written");
        assert_ne!(of(&path, "a"), Ok(first), "a byte in the middle");
    }

    #[test]
    fn a_damaged_note_is_not_believed() {
        for text in ["", "1 2", "1 2 ", "1 2 xyz", "1 2 12", "1 3 0123456789abcdef", "1 20123456789abcdef"] {
            assert_eq!(noted(text, "1 2"), None, "{text}");
        }
        assert_eq!(noted("1 2 0123456789abcdef\n", "1 2"), Some(0x0123_4567_89ab_cdef));
    }
}
