//! How the codes of a block (16 rows x 32 k) are laid in 64-byte vectors. Four consecutive codes of a row share a
//! 32-bit lane, because the byte dot products of every instruction set expect that layout; code `4g + i` of row `r` is
//! byte `4r + i` of k group `g`, of which there are eight.
//!
//! ```text
//! byte plane     8 vectors: group g is vector g
//! nibble plane   4 vectors: group g is the low (g < 4) or high nibbles of vector g % 4
//! pair plane     2 vectors: group g is bits 2 (g % 4) of vector g / 4
//! bit plane      1 vector:  group g is bit g
//! ```
//! Codes of 8 bits take a byte plane, of 4 a nibble plane, of 2 a pair plane; 5 = nibble + bit, 6 = nibble + pair,
//! 3 = pair + bit, the wider plane holding the low bits. So packed codes take no more memory than the file's.

use super::WeightFormat;
use crate::simd::Simd;

/// Which planes hold a format's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planes {
    Byte,
    NibblePair,
    NibbleBit,
    Nibble,
    PairBit,
    Pair,
}

const VECTOR: usize = 64;

impl Planes {
    pub(super) const fn of(format: WeightFormat) -> Self {
        match format {
            WeightFormat::Q6K => Self::NibblePair,
            WeightFormat::Q5_0 | WeightFormat::Q5_1 | WeightFormat::Q5K => Self::NibbleBit,
            WeightFormat::Q4_0 | WeightFormat::Q4_1 | WeightFormat::Q4K => Self::Nibble,
            WeightFormat::Q3K => Self::PairBit,
            WeightFormat::Q2K => Self::Pair,
            WeightFormat::Q8_0 | WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => Self::Byte,
        }
    }

    /// Bytes of a block.
    pub(crate) const fn num_bytes(self) -> usize {
        VECTOR
            * match self {
                Self::Byte => 8,
                Self::NibblePair => 6,
                Self::NibbleBit => 5,
                Self::Nibble => 4,
                Self::PairBit => 3,
                Self::Pair => 2,
            }
    }
}

/// Adds one row's 32 codes to a zeroed block.
pub(super) fn pack_codes(planes: Planes, codes: &[u8], lane: usize, block: &mut [u8]) {
    for (i, &code) in codes.iter().enumerate() {
        let (group, byte) = (i / 4, lane * 4 + i % 4);
        let mut nibble = |code: u8| block[group % 4 * VECTOR + byte] |= (code & 15) << (4 * (group / 4));
        match planes {
            Planes::Byte => block[group * VECTOR + byte] = code,
            Planes::Nibble => nibble(code),
            Planes::NibbleBit => {
                nibble(code);
                block[4 * VECTOR + byte] |= (code >> 4 & 1) << group;
            }
            Planes::NibblePair => {
                nibble(code);
                block[(4 + group / 4) * VECTOR + byte] |= (code >> 4 & 3) << (2 * (group % 4));
            }
            Planes::Pair => block[group / 4 * VECTOR + byte] |= (code & 3) << (2 * (group % 4)),
            Planes::PairBit => {
                block[group / 4 * VECTOR + byte] |= (code & 3) << (2 * (group % 4));
                block[2 * VECTOR + byte] |= (code >> 2 & 1) << group;
            }
        }
    }
}

/// The eight k groups of a block, a byte per code.
///
/// # Safety
/// A whole block of these planes at `p`.
#[inline(always)]
pub(crate) unsafe fn unpack_codes<S: Simd>(s: S, planes: Planes, p: *const u8) -> [S::B; 8] {
    // SAFETY: the caller vouches for the block; every vector read is one of its planes.
    unsafe {
        match planes {
            Planes::Byte => load_8(s, p),
            Planes::Nibble => nibbles(s, p),
            Planes::NibbleBit => {
                let (low, bit) = (nibbles(s, p), s.load_bytes(p.add(4 * VECTOR)));
                [
                    s.or(low[0], s.bits_up::<4, 1>(bit)),
                    s.or(low[1], s.bits_up::<3, 2>(bit)),
                    s.or(low[2], s.bits_up::<2, 4>(bit)),
                    s.or(low[3], s.bits_up::<1, 8>(bit)),
                    s.or(low[4], s.bits::<0, 16>(bit)),
                    s.or(low[5], s.bits::<1, 16>(bit)),
                    s.or(low[6], s.bits::<2, 16>(bit)),
                    s.or(low[7], s.bits::<3, 16>(bit)),
                ]
            }
            Planes::NibblePair => {
                let low = nibbles(s, p);
                let pair = [s.load_bytes(p.add(4 * VECTOR)), s.load_bytes(p.add(5 * VECTOR))];
                [
                    s.or(low[0], s.bits_up::<4, 3>(pair[0])),
                    s.or(low[1], s.bits_up::<2, 12>(pair[0])),
                    s.or(low[2], s.bits::<0, 48>(pair[0])),
                    s.or(low[3], s.bits::<2, 48>(pair[0])),
                    s.or(low[4], s.bits_up::<4, 3>(pair[1])),
                    s.or(low[5], s.bits_up::<2, 12>(pair[1])),
                    s.or(low[6], s.bits::<0, 48>(pair[1])),
                    s.or(low[7], s.bits::<2, 48>(pair[1])),
                ]
            }
            Planes::Pair => pairs(s, p),
            Planes::PairBit => {
                let (low, bit) = (pairs(s, p), s.load_bytes(p.add(2 * VECTOR)));
                [
                    s.or(low[0], s.bits_up::<2, 1>(bit)),
                    s.or(low[1], s.bits_up::<1, 2>(bit)),
                    s.or(low[2], s.bits::<0, 4>(bit)),
                    s.or(low[3], s.bits::<1, 4>(bit)),
                    s.or(low[4], s.bits::<2, 4>(bit)),
                    s.or(low[5], s.bits::<3, 4>(bit)),
                    s.or(low[6], s.bits::<4, 4>(bit)),
                    s.or(low[7], s.bits::<5, 4>(bit)),
                ]
            }
        }
    }
}

/// Loads eight vectors. The array is written out, like the others in this file, because closures given to `array::map`
/// are compiled without the caller's instruction set and called one by one.
///
/// # Safety
/// Eight vectors at `p`.
#[inline(always)]
pub(crate) unsafe fn load_8<S: Simd>(s: S, p: *const u8) -> [S::B; 8] {
    // SAFETY: the caller vouches for eight vectors.
    unsafe {
        [
            s.load_bytes(p),
            s.load_bytes(p.add(VECTOR)),
            s.load_bytes(p.add(2 * VECTOR)),
            s.load_bytes(p.add(3 * VECTOR)),
            s.load_bytes(p.add(4 * VECTOR)),
            s.load_bytes(p.add(5 * VECTOR)),
            s.load_bytes(p.add(6 * VECTOR)),
            s.load_bytes(p.add(7 * VECTOR)),
        ]
    }
}

/// # Safety
/// A nibble plane at `p`.
#[inline(always)]
unsafe fn nibbles<S: Simd>(s: S, p: *const u8) -> [S::B; 8] {
    // SAFETY: four vectors make the plane.
    let (a, b, c, d) = unsafe {
        (s.load_bytes(p), s.load_bytes(p.add(VECTOR)), s.load_bytes(p.add(2 * VECTOR)), s.load_bytes(p.add(3 * VECTOR)))
    };
    [
        s.bits::<0, 15>(a),
        s.bits::<0, 15>(b),
        s.bits::<0, 15>(c),
        s.bits::<0, 15>(d),
        s.bits::<4, 15>(a),
        s.bits::<4, 15>(b),
        s.bits::<4, 15>(c),
        s.bits::<4, 15>(d),
    ]
}

/// # Safety
/// A pair plane at `p`.
#[inline(always)]
unsafe fn pairs<S: Simd>(s: S, p: *const u8) -> [S::B; 8] {
    // SAFETY: two vectors make the plane.
    let (a, b) = unsafe { (s.load_bytes(p), s.load_bytes(p.add(VECTOR))) };
    [
        s.bits::<0, 3>(a),
        s.bits::<2, 3>(a),
        s.bits::<4, 3>(a),
        s.bits::<6, 3>(a),
        s.bits::<0, 3>(b),
        s.bits::<2, 3>(b),
        s.bits::<4, 3>(b),
        s.bits::<6, 3>(b),
    ]
}
