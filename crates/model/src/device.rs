//! The border to candle: code that computes with candle's tensors returns candle's errors, and functions that other
//! code calls return ours.

use tallow_stream::error::{Error, Result};

/// Converts a result of candle's at the border.
pub(crate) trait OrDevice<T> {
    /// # Errors
    /// If candle's operation failed; the error has candle's own message.
    fn or_device(self) -> Result<T>;
}

impl<T> OrDevice<T> for candle_core::Result<T> {
    fn or_device(self) -> Result<T> {
        self.map_err(|e| Error::internal(format!("tensor operation failed: {e}")))
    }
}

#[test]
fn an_error_of_candle_keeps_its_sentence_and_says_whose_it_is() {
    let failed: candle_core::Result<()> = Err(candle_core::Error::Msg("no room".to_owned()));
    let e = failed.or_device().expect_err("it failed");
    assert_eq!(
        (e.kind(), e.message()),
        (tallow_stream::error::ErrorKind::Internal, "tensor operation failed: no room")
    );
}
