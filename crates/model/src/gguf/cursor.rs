//! A position in foreign bytes. Every read is checked against what is left, so that a length in the file is never
//! believed before its bytes are there.

use tallow_stream::error::{Error, Result};

/// Reads little-endian values from front to back.
#[derive(Debug)]
pub(super) struct ByteCursor<'a> {
    data: &'a [u8],
    position: usize,
}

impl<'a> ByteCursor<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Bytes not yet read.
    pub(super) fn remaining(&self) -> u64 {
        (self.data.len() - self.position) as u64
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        if len > self.remaining() {
            return Err(Error::bad_model(format!(
                "{what} needs {len} bytes at offset {}, but the file has only {} left",
                self.position,
                self.remaining()
            )));
        }
        // `len <= remaining <= usize::MAX`, so neither the cast nor the sum can wrap.
        let start = self.position;
        self.position += len as usize;
        Ok(&self.data[start..self.position])
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A string: its length as `u64`, then UTF-8.
    pub(super) fn str(&mut self, len_max: u64, what: &str) -> Result<&'a str> {
        let len = self.u64(what)?;
        if len > len_max {
            return Err(Error::bad_model(format!("{what} is {len} bytes long, at most {len_max} are allowed")));
        }
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes)
            .map_err(|e| Error::bad_model(format!("{what} is not UTF-8 at its byte {}", e.valid_up_to())))
    }
}
