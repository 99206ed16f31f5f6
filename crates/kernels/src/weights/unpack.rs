//! From a file's blocks to plain codes: `weight = scale * sub_scale * (code - zero) - min * sub_min`, with one scale and
//! min per block and, in the K formats, a small integer for each group of 16 or 32 weights. Products of scales are
//! exact in f32 (11 bits of f16 times at most 7 of a sub-scale), so packed and unpacked weights are equal to the bit.

use half::{bf16, f16};

use super::WeightFormat;

/// One block, unpacked. Only the first `block_len` codes and `block_len / group_len` groups count.
pub(super) struct UnpackedBlock {
    pub(super) codes: [u8; 256],
    pub(super) scale: f32,
    /// Subtracted; where the format has none, nobody looks at the value.
    pub(super) min: f32,
    /// 1 where the format has none.
    pub(super) sub_scales: [i8; 16],
    pub(super) sub_mins: [i8; 16],
}

impl UnpackedBlock {
    pub(super) fn new() -> Self {
        Self { codes: [0; 256], scale: 0.0, min: 0.0, sub_scales: [1; 16], sub_mins: [1; 16] }
    }
}

impl WeightFormat {
    /// Weights that share a scale.
    pub(crate) const fn group_len(self) -> usize {
        match self {
            Self::Q2K | Self::Q3K | Self::Q6K => 16,
            _ => 32,
        }
    }

    /// The code that stands for zero (before `min`).
    pub(crate) const fn zero(self) -> u8 {
        match self {
            Self::Q3K => 4,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6K => 32,
            Self::Q8_0 => 128,
            _ => 0,
        }
    }

    pub(crate) const fn has_min(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q2K | Self::Q4K | Self::Q5K)
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Unpacks one block of a quantised format.
pub(super) fn unpack(format: WeightFormat, bytes: &[u8], out: &mut UnpackedBlock) {
    match format {
        WeightFormat::Q4_0 => legacy(bytes, 2, None, out),
        WeightFormat::Q4_1 => legacy(bytes, 4, None, out),
        WeightFormat::Q5_0 => legacy(bytes, 6, Some(2), out),
        WeightFormat::Q5_1 => legacy(bytes, 8, Some(4), out),
        WeightFormat::Q8_0 => {
            out.scale = f16_at(bytes, 0);
            for (code, &q) in out.codes.iter_mut().zip(&bytes[2..34]) {
                *code = q ^ 0x80;
            }
        }
        WeightFormat::Q2K => q2_k(bytes, out),
        WeightFormat::Q3K => q3_k(bytes, out),
        WeightFormat::Q4K => q4_k_or_q5_k(bytes, None, &bytes[16..], out),
        WeightFormat::Q5K => q4_k_or_q5_k(bytes, Some(&bytes[16..48]), &bytes[48..], out),
        WeightFormat::Q6K => q6_k(bytes, out),
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => unreachable!("floats have no codes"),
    }
}

/// d, then m where the format has one, then the fifth bits (32 of them), then 16 bytes of nibbles: the low nibbles
/// are weights 0..16, the high ones 16..32.
fn legacy(bytes: &[u8], nibbles_at: usize, fifth_bits_at: Option<usize>, out: &mut UnpackedBlock) {
    out.scale = f16_at(bytes, 0);
    // The file adds m, we subtract it. Without a min these two bytes are something else.
    out.min = -f16_at(bytes, 2);
    let fifth_bits =
        fifth_bits_at.map_or(0, |at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
    for j in 0..16 {
        let byte = bytes[nibbles_at + j];
        out.codes[j] = byte & 15 | (fifth_bits >> j << 4) as u8 & 16;
        out.codes[j + 16] = byte >> 4 | (fifth_bits >> (j + 16) << 4) as u8 & 16;
    }
}

/// scales 16 x (4-bit scale, 4-bit min), 64 bytes of 2-bit codes, d, dmin. Each 32 bytes hold 128 weights: bits 2j of
/// byte l are weight 32j + l.
fn q2_k(bytes: &[u8], out: &mut UnpackedBlock) {
    (out.scale, out.min) = (f16_at(bytes, 80), f16_at(bytes, 82));
    for g in 0..16 {
        out.sub_scales[g] = (bytes[g] & 15) as i8;
        out.sub_mins[g] = (bytes[g] >> 4) as i8;
    }
    for i in 0..256 {
        out.codes[i] = two_bits(&bytes[16..80], i);
    }
}

/// The 2-bit code of weight `i` in the order that Q2_K and Q3_K share.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    let (half, rest) = (i / 128, i % 128);
    bytes[32 * half + rest % 32] >> (2 * (rest / 32)) & 3
}

/// 32 bytes of third bits (bit j of byte l: weight 32j + l), 64 bytes of 2-bit codes, 12 bytes of 6-bit scales, d.
fn q3_k(bytes: &[u8], out: &mut UnpackedBlock) {
    let (high, low, packed) = (&bytes[0..32], &bytes[32..96], &bytes[96..108]);
    out.scale = f16_at(bytes, 108);
    for g in 0..16 {
        // Low four bits: a nibble of bytes 0..8; high two bits: two bits of bytes 8..12.
        let low4 = packed[g % 8] >> (4 * (g / 8)) & 15;
        let high2 = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
        out.sub_scales[g] = (low4 | high2 << 4) as i8 - 32;
    }
    for i in 0..256 {
        out.codes[i] = two_bits(low, i) | (high[i % 32] >> (i / 32) & 1) << 2;
    }
}

/// d, dmin, 12 bytes of 6-bit scales and mins for 8 groups of 32, for Q5_K 32 bytes of fifth bits, 128 bytes of
/// nibbles: each 32 bytes hold group 2j in their low nibbles and group 2j + 1 in their high ones.
fn q4_k_or_q5_k(bytes: &[u8], fifth_bits: Option<&[u8]>, nibbles: &[u8], out: &mut UnpackedBlock) {
    (out.scale, out.min) = (f16_at(bytes, 0), f16_at(bytes, 2));
    let packed = &bytes[4..16];
    for g in 0..8 {
        let (scale, min) = if g < 4 {
            (packed[g] & 63, packed[g + 4] & 63)
        } else {
            (packed[g + 4] & 15 | packed[g - 4] >> 6 << 4, packed[g + 4] >> 4 | packed[g] >> 6 << 4)
        };
        (out.sub_scales[g], out.sub_mins[g]) = (scale as i8, min as i8);
        for l in 0..32 {
            let nibble = nibbles[32 * (g / 2) + l] >> (4 * (g % 2)) & 15;
            let fifth = fifth_bits.map_or(0, |bits| bits[l] >> g & 1);
            out.codes[32 * g + l] = nibble | fifth << 4;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of high pairs, 16 signed scales, d. Half h (128 weights): weight 32j + l takes
/// nibble j / 2 of byte l + 32 (j % 2) and bits 2j of byte l.
fn q6_k(bytes: &[u8], out: &mut UnpackedBlock) {
    let (low, high, scales) = (&bytes[0..128], &bytes[128..192], &bytes[192..208]);
    out.scale = f16_at(bytes, 208);
    for g in 0..16 {
        out.sub_scales[g] = scales[g] as i8;
    }
    for i in 0..256 {
        let (half, j, l) = (i / 128, i % 128 / 32, i % 32);
        let nibble = low[64 * half + 32 * (j % 2) + l] >> (4 * (j / 2)) & 15;
        let pair = high[32 * half + l] >> (2 * j) & 3;
        out.codes[i] = nibble | pair << 4;
    }
}

/// Writes a row of a matrix as f32: the embedding lookup, and the oracle of the packed kernels.
///
/// # Panics
/// If `bytes` is not a row of `out.len()` weights.
pub fn dequantize_row(format: WeightFormat, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), format.row_bytes(out.len()), "bytes of a {format} row of {} weights", out.len());
    match format {
        WeightFormat::F32 => {
            for (x, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        WeightFormat::F16 => {
            for (x, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *x = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        WeightFormat::BF16 => {
            for (x, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *x = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        _ => {
            let mut block = UnpackedBlock::new();
            let zero = f32::from(format.zero());
            let blocks = bytes.chunks_exact(format.block_bytes());
            for (out, bytes) in out.chunks_exact_mut(format.block_len()).zip(blocks) {
                unpack(format, bytes, &mut block);
                for (i, x) in out.iter_mut().enumerate() {
                    let group = i / format.group_len();
                    let scale = block.scale * f32::from(block.sub_scales[group]);
                    let min = if format.has_min() { -block.min * f32::from(block.sub_mins[group]) } else { 0.0 };
                    *x = scale.mul_add(f32::from(block.codes[i]) - zero, min);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};
    use candle_core::{Device, Tensor};

    fn candle_dtype(format: WeightFormat) -> GgmlDType {
        match format {
            WeightFormat::F32 => GgmlDType::F32,
            WeightFormat::F16 => GgmlDType::F16,
            WeightFormat::BF16 => GgmlDType::BF16,
            WeightFormat::Q4_0 => GgmlDType::Q4_0,
            WeightFormat::Q4_1 => GgmlDType::Q4_1,
            WeightFormat::Q5_0 => GgmlDType::Q5_0,
            WeightFormat::Q5_1 => GgmlDType::Q5_1,
            WeightFormat::Q8_0 => GgmlDType::Q8_0,
            WeightFormat::Q2K => GgmlDType::Q2K,
            WeightFormat::Q3K => GgmlDType::Q3K,
            WeightFormat::Q4K => GgmlDType::Q4K,
            WeightFormat::Q5K => GgmlDType::Q5K,
            WeightFormat::Q6K => GgmlDType::Q6K,
        }
    }

    /// candle quantises a random row, then both dequantise it: the values must be equal, not close.
    #[test]
    fn every_format_dequantises_as_candle_does() {
        for format in WeightFormat::ALL {
            let k = 1024;
            let values: Vec<f32> = (0..k).map(|i| ((i * 7919 + 13) % 1009) as f32 / 250.0 - 2.0).collect();
            let tensor = Tensor::from_vec(values, (1, k), &Device::Cpu).unwrap();
            let quantized = QTensor::quantize(&tensor, candle_dtype(format)).unwrap();
            let expected: Vec<f32> =
                quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let bytes = quantized.data().unwrap();
            assert_eq!(bytes.len(), format.row_bytes(k), "{format}");
            let theirs = candle_dtype(format);
            assert_eq!(
                (format.block_len(), format.block_bytes()),
                (theirs.block_size(), theirs.type_size()),
                "{format}"
            );
            let mut got = vec![0.0; k];
            dequantize_row(format, &bytes, &mut got);
            assert_eq!(got, expected, "{format}");
        }
    }

    /// Random bytes reach codes and scales that a quantiser never writes.
    #[test]
    fn every_format_dequantises_random_blocks_as_candle_does() {
        for format in WeightFormat::ALL {
            let k = 256 * 16;
            let mut state = 1u64;
            let mut bytes: Vec<u8> = (0..format.row_bytes(k))
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) as u8
                })
                .collect();
            tame_scales(format, &mut bytes);
            let storage = QStorage::from_data((&bytes[..]).into(), &Device::Cpu, candle_dtype(format)).unwrap();
            let tensor = QTensor::new(storage, (1, k)).unwrap();
            let expected: Vec<f32> = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let mut got = vec![0.0; k];
            dequantize_row(format, &bytes, &mut got);
            let same = got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits() || (*a == 0.0 && *b == 0.0));
            assert!(same || format == WeightFormat::F32, "{format}");
        }
    }

    /// Replaces f16 scales by finite ones: infinities and NaNs have no oracle.
    fn tame_scales(format: WeightFormat, bytes: &mut [u8]) {
        let places: &[usize] = match format {
            WeightFormat::Q2K => &[80, 82],
            WeightFormat::Q3K => &[108],
            WeightFormat::Q6K => &[208],
            WeightFormat::Q4K | WeightFormat::Q5K | WeightFormat::Q4_1 | WeightFormat::Q5_1 => &[0, 2],
            WeightFormat::F32 => &[],
            _ => &[0],
        };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in places {
                let value = f16::from_f32(f32::from(block[at]) / 100.0 - 1.0);
                block[at..at + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}
