//! Ids as types, with their one textual form each.

use std::fmt;
use std::str::FromStr;

/// An index into the model's vocabulary.
pub type TokenId = u32;

/// Names one generation and its log: 128 random bits, shown as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct StreamId(pub u128);

impl StreamId {
    /// A fresh, unguessable id. It combines two UUIDs, since six bits of a UUID are fixed. One of them is rotated, so
    /// that their fixed bits do not coincide.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().as_u128() ^ uuid::Uuid::new_v4().as_u128().rotate_left(64))
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StreamId {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let canonical = s.len() == 32 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !canonical {
            return Err(());
        }
        u128::from_str_radix(s, 16).map(Self).map_err(|_| ())
    }
}

/// Tells one life of the server (or of a stream store) from the next, so that an old cursor is never mistaken for a
/// new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// A fresh one; two lives of a server practically never share it.
    pub fn random() -> Self {
        Self((StreamId::random().0 >> 64) as u64)
    }
}

/// A place in a stream: `<epoch>-<seq>`, the epoch in hex, the sequence number (dense from 0) in decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId {
    /// Which life of the server numbered it.
    pub epoch: Epoch,
    /// Dense from 0 within one stream.
    pub seq: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.epoch.0, self.seq)
    }
}

impl FromStr for EventId {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let (epoch, seq) = s.split_once('-').ok_or(())?;
        let plain_hex = !epoch.is_empty() && epoch.bytes().all(|b| b.is_ascii_hexdigit());
        let plain_dec = !seq.is_empty() && seq.bytes().all(|b| b.is_ascii_digit());
        if !plain_hex || !plain_dec {
            return Err(());
        }
        let epoch = Epoch(u64::from_str_radix(epoch, 16).map_err(|_| ())?);
        Ok(Self { epoch, seq: seq.parse().map_err(|_| ())? })
    }
}

/// The owner of some work. Streams, queues and prefix reuse are kept apart by it. 0 is the anonymous owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
pub struct Tenant(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_stream_id_is_random() {
        // 64 draws reveal a fixed bit (a UUID has six). A free bit looks fixed with probability 2^-63.
        let (mut ones, mut zeros) = (0, 0);
        for _ in 0..64 {
            let StreamId(bits) = StreamId::random();
            (ones, zeros) = (ones | bits, zeros | !bits);
        }
        assert_eq!((ones, zeros), (u128::MAX, u128::MAX));
    }

    #[test]
    fn ids_round_trip_and_reject_other_spellings() {
        let id = StreamId(0xabc);
        assert_eq!(id.to_string().parse(), Ok(id));
        let event = EventId { epoch: Epoch(0x1f), seq: 7 };
        assert_eq!(event.to_string(), "1f-7");
        assert_eq!("1f-7".parse(), Ok(event));
        for bad in ["", "-", "1f", "1f-", "-7", "1f-+7", "+1f-7", "1f--7", "zz-1", "1f-99999999999999999999"] {
            assert_eq!(bad.parse::<EventId>(), Err(()), "{bad:?}");
        }
        for bad in ["", "0", "0000000000000000000000000000000G", "ABCDEF00000000000000000000000000"] {
            assert_eq!(bad.parse::<StreamId>(), Err(()), "{bad:?}");
        }
    }
}
