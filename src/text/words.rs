//! How long a stretch of text may be that merges run over as a whole. Memory and time of a merge grow with its stretch, by
//! about 150 bytes and 2 microseconds a byte, and nothing can be done in between; ordinary text has a break after a few
//! bytes.

use crate::error::{Error, Result};

/// The parameter of an error about a text, for a caller to replace: here nobody knows where the text came from.
pub const TEXT_PARAM: &str = "text";

/// Longest word, which is what a splitter leaves: 128 KiB cost 20 MB and a quarter of a second. Text in scripts without
/// spaces has punctuation long before.
pub(super) const WORD_BYTES_MAX: usize = 128 << 10;

/// Longest text of a scheme that has no words (SentencePiece): 1 MiB cost 110 MB, and are more tokens than any published
/// model of this scheme takes.
pub(super) const STRETCH_BYTES_MAX: usize = 1 << 20;

/// Refuses a longer one.
///
/// # Errors
/// [`crate::error::ErrorKind::InvalidRequest`] about [`TEXT_PARAM`].
pub(super) fn check(text: &str, bytes_max: usize) -> Result<()> {
    if text.len() <= bytes_max {
        return Ok(());
    }
    let message = format!("a run of text without a break must have at most {bytes_max} bytes, got {}", text.len());
    Err(Error::invalid(TEXT_PARAM, message))
}
