//! The bytes of every token in one arena, and an index from bytes back to the token. Two flat arrays and one table of
//! ids, so that a quarter of a million pieces load in milliseconds and a lookup touches one cache line of each.

use xxhash_rust::xxh3::xxh3_64;

use tallow_stream::protocol::TokenId;

/// The bytes of each token, by id.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where the token before ends.
    ends: Vec<usize>,
    longest: usize,
}

impl Pieces {
    /// Appends the next id's bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.longest = self.longest.max(bytes.len());
    }

    /// The bytes of `token`; empty for ids beyond the last.
    pub(crate) fn get(&self, token: TokenId) -> &[u8] {
        let index = token as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..end]
    }

    /// Bytes of the longest token.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Number of ids.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// Bytes to token: open addressing with linear probing over ids, at most half full. The bytes stay in [`Pieces`].
#[derive(Debug)]
pub(super) struct PieceIndex {
    /// A power of two long; `EMPTY` or a token id.
    slots: Vec<TokenId>,
    /// No piece is longer, so no longer text needs a look.
    piece_bytes_max: usize,
}

const EMPTY: TokenId = TokenId::MAX;

impl PieceIndex {
    /// Indexes the tokens `ids` of `pieces`. Of two tokens with the same bytes the first given wins.
    pub(crate) fn new(pieces: &Pieces, ids: impl Iterator<Item = TokenId>) -> Self {
        let mut index = Self { slots: vec![EMPTY; (pieces.len() * 2).next_power_of_two()], piece_bytes_max: 0 };
        for id in ids {
            let bytes = pieces.get(id);
            let slot = index.find_slot(pieces, bytes);
            if index.slots[slot] == EMPTY {
                index.slots[slot] = id;
                index.piece_bytes_max = index.piece_bytes_max.max(bytes.len());
            }
        }
        index
    }

    /// The token with exactly these bytes.
    pub(crate) fn get(&self, pieces: &Pieces, bytes: &[u8]) -> Option<TokenId> {
        if bytes.len() > self.piece_bytes_max {
            return None;
        }
        let id = self.slots[self.find_slot(pieces, bytes)];
        (id != EMPTY).then_some(id)
    }

    /// The slot that holds `bytes`, or the empty one where they would go.
    fn find_slot(&self, pieces: &Pieces, bytes: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = xxh3_64(bytes) as usize & mask;
        while self.slots[slot] != EMPTY && pieces.get(self.slots[slot]) != bytes {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// The byte a byte token's spelling names: `<0x0A>` is 10.
pub(super) fn byte_of_spelling(spelling: &str) -> Option<u8> {
    let hex = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_piece_and_nothing_else() {
        let words = ["", "a", "ab", "b", "a", "\u{2581}", "日本"];
        let mut pieces = Pieces::default();
        for word in words {
            pieces.push(word.as_bytes());
        }
        let index = PieceIndex::new(&pieces, 1..words.len() as TokenId);
        assert_eq!(index.get(&pieces, b"a"), Some(1), "the first of two equal pieces");
        assert_eq!(index.get(&pieces, b"ab"), Some(2));
        assert_eq!(index.get(&pieces, "日本".as_bytes()), Some(6));
        assert_eq!(index.get(&pieces, b""), None, "not indexed");
        assert_eq!(index.get(&pieces, b"abc"), None);
        assert_eq!(pieces.get(99), b"");
    }

    #[test]
    fn reads_byte_spellings() {
        assert_eq!(byte_of_spelling("<0x0A>"), Some(10));
        assert_eq!(byte_of_spelling("<0xff>"), Some(255));
        for other in ["<0x0>", "<0x+1>", "<0x000>", "0x0A", "<0xGG>", "<0x0A", ""] {
            assert_eq!(byte_of_spelling(other), None, "{other}");
        }
    }
}
