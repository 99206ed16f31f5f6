//! The border to candle: what computes with its tensors keeps its errors, and what is called from outside has ours.

use tallow_stream::error::{Error, Result};

/// A result of candle's at the border.
pub(crate) trait OrDevice<T> {
    /// # Errors
    /// That the device failed, with candle's own sentence.
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
