//! How many patterns one text would have to match at once: what `allOf`, `$ref` and keywords beside them put together. The
//! library intersects them before it counts its steps, and twenty that do not fit each other take hundreds of megabytes.

use std::fmt;

use serde_json::{Map, Value};

/// Most patterns that one text may have to match.
const JOINED_PATTERNS_MAX: usize = 8;
/// References within references that are followed.
const DEPTH_MAX: usize = 16;
/// Subschemas that are looked at; a schema that needs more for one place is refused.
const STEPS_MAX: usize = 20_000;

struct Count<'a> {
    root: &'a Value,
    num_steps: usize,
}

/// Checks the schema `keywords` of the document `root`, which stands at `place`.
///
/// # Errors
/// A sentence with the place, the bound and the value.
pub(super) fn check(keywords: &Map<String, Value>, root: &Value, place: &impl fmt::Display) -> Result<(), String> {
    let mut count = Count { root, num_steps: 0 };
    let num = count.of_keywords(keywords, 0);
    if num > JOINED_PATTERNS_MAX || count.num_steps > STEPS_MAX {
        let got = if num > JOINED_PATTERNS_MAX { num.to_string() } else { "too many references".to_owned() };
        return Err(format!(
            "`{place}` must put together at most {JOINED_PATTERNS_MAX} patterns for one text (by `allOf` and `$ref`), got {got}"
        ));
    }
    Ok(())
}

impl Count<'_> {
    fn patterns(&mut self, value: &Value, depth: usize) -> usize {
        self.num_steps += 1;
        match value {
            Value::Object(keywords) if self.num_steps <= STEPS_MAX => self.of_keywords(keywords, depth),
            _ => 0,
        }
    }

    fn of_keywords(&mut self, keywords: &Map<String, Value>, depth: usize) -> usize {
        let mut num = 0;
        for (name, value) in keywords {
            num += match (name.as_str(), value) {
                ("pattern", _) => 1,
                ("allOf", Value::Array(items)) => items.iter().map(|item| self.patterns(item, depth)).sum(),
                // One of them, whichever.
                ("anyOf" | "oneOf", Value::Array(items)) => {
                    items.iter().map(|item| self.patterns(item, depth)).max().unwrap_or_default()
                }
                ("$ref", Value::String(to)) if depth < DEPTH_MAX => {
                    let target = to.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
                    target.map_or(0, |target| self.patterns(target, depth + 1))
                }
                _ => 0,
            };
        }
        num
    }
}
