//! What a JSON schema costs, by its keywords.

use std::fmt;

use serde_json::{Map, Value};

use super::{ShapeBudget, joined, regex};

/// A multiple is told by its remainder, which is a state of its own. One digit at a time, each state has ten more.
const MULTIPLE_OF_MAX: u64 = 10_000;
/// Digits behind the decimal point of `multipleOf`.
const DECIMALS_MAX: u32 = 6;
/// Patterns in all `patternProperties`: the compiler tries each pair for a name that both match.
const PATTERNS_MAX: usize = 32;
/// Pairs of such patterns, times the places (`allOf`, `$ref`) where objects are put together and are tried again.
const PATTERN_PAIRS_MAX: usize = 20_000;
/// Characters of property names beside `patternProperties`, times the steps of the patterns: each is matched with each.
const NAME_STEPS_MAX: u64 = 1_000_000;
/// Subschemas, times alternatives that they are put together with: each pair is copied.
const PRODUCT_MAX: usize = 4_000_000;
/// Pairs of `oneOf`: each is looked at, whether a value could satisfy both.
const ONE_OF_PAIRS_MAX: usize = 500_000;

/// Keywords whose value is no schema and says nothing of the texts.
const ANNOTATIONS: [&str; 5] = ["default", "examples", "description", "title", "$comment"];
/// Keywords that are put together with those beside them.
const APPLICATORS: [&str; 6] = ["$ref", "allOf", "anyOf", "oneOf", "enum", "const"];

/// Checks `schema`, whose expressions count against `budget`.
///
/// # Errors
/// A sentence with the keyword, its place, the bound and the value.
pub(in super::super) fn check(schema: &Value, budget: &mut ShapeBudget) -> Result<(), String> {
    let mut walk = SchemaWalk { budget, root: schema, tally: SchemaTally::default(), property_pairs: 0 };
    walk.subschema(schema, &KeywordPlace::ROOT)?;
    walk.tally.check()
}

/// Where a keyword stands.
struct KeywordPlace<'a> {
    parent: Option<&'a KeywordPlace<'a>>,
    name: &'a str,
}

impl KeywordPlace<'_> {
    const ROOT: KeywordPlace<'static> = KeywordPlace { parent: None, name: "#" };

    fn then<'a>(&'a self, name: &'a str) -> KeywordPlace<'a> {
        KeywordPlace { parent: Some(self), name }
    }
}

impl fmt::Display for KeywordPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parent {
            Some(parent) => write!(f, "{parent}/{}", self.name),
            None => f.write_str(self.name),
        }
    }
}

#[derive(Debug, Default)]
struct SchemaTally {
    num_schemas: usize,
    /// Alternatives of `enum`, `anyOf`, `oneOf` and `type`.
    num_alternatives: usize,
    /// Places where schemas are put together: items of `allOf`, and applicators beside other keywords.
    num_joined: usize,
    num_patterns: usize,
    pattern_steps: u64,
    name_chars: u64,
    one_of_pairs: usize,
    /// The least common multiple of all `multipleOf`, with the decimal point left out, and their decimals.
    multiple: Option<(u64, u32)>,
}

impl SchemaTally {
    fn check(&self) -> Result<(), String> {
        let product = if self.num_joined > 0 { self.num_schemas * self.num_alternatives } else { 0 };
        if product > PRODUCT_MAX {
            let (schemas, alternatives) = (self.num_schemas, self.num_alternatives);
            return Err(format!(
                "where schemas are put together (`allOf`, `$ref`, keywords beside `anyOf` or `enum`), its subschemas \
                 times its alternatives must be at most {PRODUCT_MAX}, got {schemas} times {alternatives}"
            ));
        }
        if self.num_patterns > PATTERNS_MAX {
            let num = self.num_patterns;
            return Err(format!("`patternProperties` must have at most {PATTERNS_MAX} patterns in all, got {num}"));
        }
        let pairs = self.num_patterns.pow(2) / 2 * (1 + self.num_joined);
        if pairs > PATTERN_PAIRS_MAX {
            let (num, joined) = (self.num_patterns, self.num_joined);
            return Err(format!(
                "pairs of patterns in `patternProperties`, times the places where schemas are put together, must be \
                 at most {PATTERN_PAIRS_MAX}, got {num} patterns and {joined} places"
            ));
        }
        let name_steps = self.pattern_steps.saturating_mul(self.name_chars);
        if name_steps > NAME_STEPS_MAX {
            let (steps, chars) = (self.pattern_steps, self.name_chars);
            return Err(format!(
                "beside `patternProperties`, characters of property names times steps of the patterns must be at most \
                 {NAME_STEPS_MAX}, got {chars} times {steps}"
            ));
        }
        if self.one_of_pairs > ONE_OF_PAIRS_MAX {
            let num = self.one_of_pairs;
            return Err(format!("pairs of alternatives of `oneOf` must be at most {ONE_OF_PAIRS_MAX}, got {num}"));
        }
        match self.multiple {
            Some((multiple, _)) if self.num_joined > 0 && multiple > MULTIPLE_OF_MAX => Err(format!(
                "where schemas are put together, the least common multiple of all `multipleOf` must be at most \
                 {MULTIPLE_OF_MAX} once its decimal point is left out, got {multiple}"
            )),
            _ => Ok(()),
        }
    }
}

struct SchemaWalk<'a> {
    budget: &'a mut ShapeBudget,
    /// The whole document.
    root: &'a Value,
    tally: SchemaTally,
    property_pairs: usize,
}

impl SchemaWalk<'_> {
    /// A schema, or anything that can have one inside.
    fn subschema(&mut self, value: &Value, place: &KeywordPlace<'_>) -> Result<(), String> {
        match value {
            Value::Object(keywords) => self.object(keywords, place),
            Value::Array(items) => {
                items.iter().enumerate().try_for_each(|(i, item)| self.subschema(item, &place.then(&i.to_string())))
            }
            _ => Ok(()),
        }
    }

    fn object(&mut self, keywords: &Map<String, Value>, place: &KeywordPlace<'_>) -> Result<(), String> {
        self.tally.num_schemas += 1;
        let applied = keywords.keys().filter(|name| APPLICATORS.contains(&name.as_str())).count();
        let others = keywords.keys().any(|name| {
            let name = name.as_str();
            !APPLICATORS.contains(&name) && !ANNOTATIONS.contains(&name) && !name.starts_with('$') && name != "type"
        });
        if applied > 1 || (applied == 1 && others) {
            self.tally.num_joined += 1;
        }
        // A reference that stands alone is compiled where it leads.
        if ["allOf", "minProperties", "maxProperties"].iter().any(|name| keywords.contains_key(*name))
            || (applied > 0 && others)
            || applied > 1
        {
            joined::check(keywords, self.root, &mut self.property_pairs, place)?;
        }
        for (name, value) in keywords {
            if !ANNOTATIONS.contains(&name.as_str()) {
                self.keyword(name, value, &place.then(name))?;
            }
        }
        Ok(())
    }

    fn keyword(&mut self, name: &str, value: &Value, place: &KeywordPlace<'_>) -> Result<(), String> {
        match (name, value) {
            ("multipleOf", Value::Number(number)) => self.multiple_of(number, place),
            ("pattern" | "whitespace_pattern", Value::String(pattern)) => self.pattern(pattern, place).map(|_| ()),
            ("patternProperties", Value::Object(patterns)) => {
                for (pattern, schema) in patterns {
                    self.tally.num_patterns += 1;
                    let inside = place.then(pattern);
                    self.tally.pattern_steps += self.pattern(pattern, &inside)?;
                    self.subschema(schema, &inside)?;
                }
                Ok(())
            }
            ("properties", Value::Object(properties)) => {
                self.tally.name_chars += properties.keys().map(|name| name.len() as u64).sum::<u64>();
                properties.iter().try_for_each(|(name, schema)| self.subschema(schema, &place.then(name)))
            }
            ("enum", Value::Array(values)) => {
                self.tally.num_alternatives += values.len();
                values.iter().for_each(|value| self.constant(value));
                Ok(())
            }
            ("const", value) => {
                self.constant(value);
                Ok(())
            }
            ("type", Value::Array(types)) => {
                self.tally.num_alternatives += types.len();
                Ok(())
            }
            ("allOf", Value::Array(items)) => {
                self.tally.num_joined += items.len();
                self.subschema(value, place)
            }
            ("anyOf" | "oneOf", Value::Array(items)) => {
                self.tally.num_alternatives += items.len();
                if name == "oneOf" {
                    self.tally.one_of_pairs += items.len() * items.len() / 2;
                }
                self.subschema(value, place)
            }
            _ => self.subschema(value, place),
        }
    }

    /// A value becomes schemas of its parts.
    fn constant(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.constant(item)),
            Value::Object(fields) => fields.values().for_each(|field| self.constant(field)),
            _ => {}
        }
        // Plain values are no more than a text each.
        self.tally.num_schemas += usize::from(value.is_array() || value.is_object());
    }

    /// Steps of the pattern.
    fn pattern(&mut self, pattern: &str, place: &KeywordPlace<'_>) -> Result<u64, String> {
        let cost = regex::cost(pattern).map_err(|e| format!("`{place}`: {e}"))?;
        self.budget.spend(&cost, &format_args!("`{place}`"))?;
        Ok(cost.steps)
    }

    fn multiple_of(&mut self, number: &serde_json::Number, place: &KeywordPlace<'_>) -> Result<(), String> {
        let Some((digits, decimals)) = number.as_f64().and_then(decimal) else {
            return Err(format!(
                "`{place}` must have at most {DECIMALS_MAX} decimals, and those in a form that binary fractions hold, \
                 got {number}"
            ));
        };
        if digits > MULTIPLE_OF_MAX {
            return Err(format!(
                "`{place}` must be at most {MULTIPLE_OF_MAX} in a schema once its decimal point is left out, got \
                 {number}"
            ));
        }
        if digits > 0 {
            let known = self.tally.multiple.unwrap_or((1, 0));
            self.tally.multiple = Some(common_multiple(known, (digits, decimals)));
        }
        Ok(())
    }
}

/// A number's digits without the decimal point, and how many stand behind it; `None` if those are too many.
fn decimal(number: f64) -> Option<(u64, u32)> {
    let mut scaled = number.abs();
    for decimals in 0..=DECIMALS_MAX {
        if scaled.fract() == 0.0 {
            // Beyond 2^64 it is the largest.
            return Some((scaled as u64, decimals));
        }
        scaled *= 10.0;
    }
    None
}

/// With as many decimals as the one that has more.
fn common_multiple((a, a_decimals): (u64, u32), (b, b_decimals): (u64, u32)) -> (u64, u32) {
    let decimals = a_decimals.max(b_decimals);
    let a = a.saturating_mul(10u64.pow(decimals - a_decimals));
    let b = b.saturating_mul(10u64.pow(decimals - b_decimals));
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    ((a / x).saturating_mul(b), decimals)
}
