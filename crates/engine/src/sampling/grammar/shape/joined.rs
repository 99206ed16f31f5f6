//! What is put together for one text, by `allOf`, `$ref` and keywords beside them: how many patterns it would have to match at
//! once, and how many ways there are to leave out properties. The library works both out before it counts its steps.
//! Twenty patterns that do not fit each other take hundreds of megabytes, 1,500 optional properties with `minProperties`
//! five gigabytes: each property that may be the one that is there is a rule with all the others.

use std::collections::HashSet;
use std::fmt;
use std::ops::AddAssign;

use serde_json::{Map, Value};

/// Most patterns that one text may have to match.
const PATTERNS_MAX: usize = 8;
/// Most pairs of optional properties in all objects with `minProperties` or `maxProperties`. 140 such properties of one
/// object are as many symbols as a grammar may have.
const PROPERTY_PAIRS_MAX: usize = 20_000;
/// References within references that are followed.
const DEPTH_MAX: usize = 16;
/// Subschemas that are looked at; a schema that needs more for one place is refused.
const STEPS_MAX: usize = 20_000;

/// What one text is put together from.
#[derive(Debug, Default, Clone, Copy)]
struct Parts {
    num_patterns: usize,
    /// Properties that are not required where they stand.
    num_optional: usize,
    /// `minProperties` or `maxProperties` is among its keywords.
    is_counted: bool,
}

impl AddAssign for Parts {
    fn add_assign(&mut self, other: Self) {
        self.num_patterns += other.num_patterns;
        self.num_optional += other.num_optional;
        self.is_counted |= other.is_counted;
    }
}

struct PieceCount<'a> {
    root: &'a Value,
    num_steps: usize,
}

/// Adds the schema `keywords` of the document `root`, which stands at `place`, to the pairs of properties of those before.
///
/// # Errors
/// A sentence with the place, the bound and the value.
pub(super) fn check(
    keywords: &Map<String, Value>,
    root: &Value,
    property_pairs: &mut usize,
    place: &impl fmt::Display,
) -> Result<(), String> {
    let mut count = PieceCount { root, num_steps: 0 };
    let parts = count.of_keywords(keywords, 0);
    if parts.num_patterns > PATTERNS_MAX || count.num_steps > STEPS_MAX {
        let got = if parts.num_patterns > PATTERNS_MAX {
            parts.num_patterns.to_string()
        } else {
            "too many references".to_owned()
        };
        return Err(format!(
            "`{place}` must put together at most {PATTERNS_MAX} patterns for one text (by `allOf` and `$ref`), got {got}"
        ));
    }
    if parts.is_counted {
        *property_pairs = property_pairs.saturating_add(parts.num_optional.saturating_pow(2));
    }
    if *property_pairs > PROPERTY_PAIRS_MAX {
        return Err(format!(
            "`{place}`: with `minProperties` or `maxProperties`, the squares of the numbers of optional properties of all \
             objects must come to at most {PROPERTY_PAIRS_MAX}, got {property_pairs}"
        ));
    }
    Ok(())
}

impl PieceCount<'_> {
    fn parts(&mut self, value: &Value, depth: usize) -> Parts {
        self.num_steps += 1;
        match value {
            Value::Object(keywords) if self.num_steps <= STEPS_MAX => self.of_keywords(keywords, depth),
            _ => Parts::default(),
        }
    }

    fn of_keywords(&mut self, keywords: &Map<String, Value>, depth: usize) -> Parts {
        let mut sum = Parts::default();
        for (name, value) in keywords {
            match (name.as_str(), value) {
                ("pattern", _) => sum.num_patterns += 1,
                ("properties", Value::Object(properties)) => {
                    let required = keywords.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                    let required: HashSet<&str> = required.iter().filter_map(Value::as_str).collect();
                    sum.num_optional += properties.keys().filter(|name| !required.contains(name.as_str())).count();
                }
                ("minProperties" | "maxProperties", _) => sum.is_counted = true,
                ("allOf", Value::Array(items)) => items.iter().for_each(|item| sum += self.parts(item, depth)),
                // One of them, whichever: the most patterns. Each is put together with what stands beside it.
                ("anyOf" | "oneOf", Value::Array(items)) => {
                    let mut all = Parts::default();
                    let mut num_patterns = 0;
                    for item in items {
                        let one = self.parts(item, depth);
                        num_patterns = num_patterns.max(one.num_patterns);
                        all += one;
                    }
                    sum += Parts { num_patterns, ..all };
                }
                ("$ref", Value::String(to)) if depth < DEPTH_MAX => {
                    let target = to.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
                    if let Some(target) = target {
                        sum += self.parts(target, depth + 1);
                    }
                }
                _ => {}
            }
        }
        sum
    }
}
