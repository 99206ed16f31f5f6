//! The supported tensor types, by their ids in a file. The kernels know the block layout of each type
//! ([`WeightFormat`]).

use tallow_kernels::WeightFormat;

/// The type with this id in a file, if it is supported.
pub(super) fn from_id(id: u32) -> Option<WeightFormat> {
    WeightFormat::ALL.into_iter().find(|t| id_of(*t) == id)
}

/// A type's id in a file.
pub(super) fn id_of(format: WeightFormat) -> u32 {
    match format {
        WeightFormat::F32 => 0,
        WeightFormat::F16 => 1,
        WeightFormat::Q4_0 => 2,
        WeightFormat::Q4_1 => 3,
        WeightFormat::Q5_0 => 6,
        WeightFormat::Q5_1 => 7,
        WeightFormat::Q8_0 => 8,
        WeightFormat::Q2K => 10,
        WeightFormat::Q3K => 11,
        WeightFormat::Q4K => 12,
        WeightFormat::Q5K => 13,
        WeightFormat::Q6K => 14,
        WeightFormat::BF16 => 30,
    }
}

/// The supported types as a list for error messages.
pub(super) fn supported() -> String {
    WeightFormat::ALL.map(|t| t.to_string()).join(", ")
}

/// The format's name for a type that is not supported, for error messages.
pub(super) fn unsupported_name(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_found_again() {
        for t in WeightFormat::ALL {
            assert_eq!(from_id(id_of(t)), Some(t));
            assert_eq!(unsupported_name(id_of(t)), None);
        }
        assert_eq!(from_id(u32::MAX), None);
    }
}
