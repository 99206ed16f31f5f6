//! Whole numbers in request bodies. JavaScript and Python clients write some of them as `150.0`, which means the same.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A whole number, written with a decimal point or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole(pub(crate) i64);

impl Whole {
    /// In 32 bits; what has no room there becomes the largest or least number, which a rule refuses.
    pub(crate) fn to_i32(self) -> i32 {
        i32::try_from(self.0).unwrap_or(if self.0 < 0 { i32::MIN } else { i32::MAX })
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct WholeVisitor;
        impl Visitor<'_> for WholeVisitor {
            type Value = Whole;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_i64<E>(self, n: i64) -> Result<Whole, E> {
                Ok(Whole(n))
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<Whole, E> {
                i64::try_from(n).map(Whole).map_err(|_| E::invalid_value(Unexpected::Unsigned(n), &self))
            }
            fn visit_f64<E: Error>(self, n: f64) -> Result<Whole, E> {
                // Beyond 2^53 a float no longer says which whole number it is.
                let is_whole = n.fract() == 0.0 && n.abs() <= (1u64 << 53) as f64;
                if is_whole { Ok(Whole(n as i64)) } else { Err(E::invalid_value(Unexpected::Float(n), &self)) }
            }
        }
        d.deserialize_any(WholeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_float_without_a_fraction_is_whole() {
        let read = |json: &str| serde_json::from_str::<Whole>(json).map(|w| w.0).map_err(|e| e.to_string());
        for (json, n) in
            [("150.0", 150), ("-1", -1), ("0", 0), ("-0.0", 0), ("1e3", 1000), ("9007199254740992.0", 1 << 53)]
        {
            assert_eq!(read(json), Ok(n), "{json}");
        }
        for json in ["150.5", "1e300", "18446744073709551615", "\"8\"", "true", "[]"] {
            assert!(read(json).expect_err(json).contains("a whole number"), "{json}");
        }
    }
}
