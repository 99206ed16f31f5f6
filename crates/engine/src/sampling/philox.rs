//! Philox4x32-10: random numbers as a function of a key and a counter, with no state in between. Salmon, Moraes, Dror,
//! Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The number for output position 17 does not need the
//! numbers before it, so preemption, batching and failover cannot shift a draw.

/// 64 random bits for the draw at output position `position` of a generation with seed `seed`.
pub fn random_u64(seed: u64, position: u64) -> u64 {
    let counter = [position as u32, (position >> 32) as u32, 0, 0];
    let [a, b, ..] = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(a) | u64::from(b) << 32
}

/// Ten rounds: two 32 x 32 bit products, their halves crossed over and mixed with a key that steps by Weyl constants.
fn philox4x32_10(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xd251_1f53;
        let p1 = u64::from(c[2]) * 0xcd9e_8d57;
        c = [(p1 >> 32) as u32 ^ c[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The authors' known answers (Random123, `tests/kat_vectors`, rows `philox4x32 10`).
    #[test]
    fn published_vectors() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn both_halves_of_seed_and_position_count() {
        let x = random_u64(1, 2);
        assert_eq!(x, random_u64(1, 2));
        for other in [random_u64(2, 2), random_u64(1 << 32 | 1, 2), random_u64(1, 3), random_u64(1, 1 << 32 | 2)] {
            assert_ne!(x, other);
        }
    }
}
