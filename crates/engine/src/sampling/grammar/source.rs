//! From what a request asks for to what llguidance compiles.

use llguidance::JsonCompileOptions;
use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use super::shape::regex::NESTING_MAX;
use super::shape::{self, ShapeBudget};
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::Constraint;

/// Bytes of a constraint as it comes.
pub(super) fn num_bytes(constraint: &Constraint) -> usize {
    match constraint {
        Constraint::JsonObject => 0,
        Constraint::JsonSchema(text) | Constraint::Regex(text) | Constraint::Lark(text) => text.len(),
        Constraint::Choice(choices) => choices.iter().map(String::len).sum(),
    }
}

/// The grammar of a constraint.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] if it is not well formed, or refused by its shape.
pub(super) fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar> {
    match constraint {
        Constraint::JsonObject => json(serde_json::json!({"type": "object"})),
        Constraint::JsonSchema(text) => {
            let mut schema = serde_json::from_str(text).map_err(|e| wrong(format!("the schema must be JSON: {e}")))?;
            neutral(&mut schema);
            shape::schema::check(&schema, &mut ShapeBudget::default()).map_err(wrong)?;
            json(schema)
        }
        Constraint::Regex(text) => {
            let cost = shape::regex::cost(text).map_err(wrong)?;
            ShapeBudget::default().spend(&cost, &"it").map_err(wrong)?;
            Ok(TopLevelGrammar::from_regex(text))
        }
        Constraint::Lark(text) => {
            check_nesting(text)?;
            shape::lark::check(text, &mut ShapeBudget::default()).map_err(wrong)?;
            Ok(TopLevelGrammar::from_lark(text.clone()))
        }
        Constraint::Choice(choices) => Ok(TopLevelGrammar::from_lark(choice(choices))),
    }
}

/// Separators as most of what models have read has them, and no other white space: a small model that may go on with
/// blanks does so for ever.
fn json(schema: Value) -> Result<TopLevelGrammar> {
    let mut schema = match schema {
        Value::Bool(true) => Value::Object(serde_json::Map::new()),
        Value::Object(_) => schema,
        other => return Err(wrong(format!("the schema must be an object, got {}", kind(&other)))),
    };
    let options = JsonCompileOptions {
        item_separator: ", ".to_owned(),
        key_separator: ": ".to_owned(),
        whitespace_flexible: false,
        ..JsonCompileOptions::default()
    };
    // In place of any that the schema brings: it could ask for more than its keywords say, or less.
    options.apply_to(&mut schema);
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// Takes out keywords that ask for nothing and that the compiler does not know: a schema made from types in a program has
/// them (`z.record` writes `propertyNames`).
pub fn neutral(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(neutral),
        Value::Object(keywords) => {
            // Every name of a property is a text.
            let is_any_name = keywords.get("propertyNames").is_some_and(|names| {
                *names == serde_json::json!({"type": "string"}) || *names == serde_json::json!({}) || *names == true
            });
            if is_any_name {
                keywords.shift_remove("propertyNames");
            }
            if keywords.get("uniqueItems").is_some_and(|unique| *unique == false) {
                keywords.shift_remove("uniqueItems");
            }
            if keywords.get("additionalProperties").is_some_and(|more| *more == false) {
                keywords.shift_remove("unevaluatedProperties");
            }
            for (keyword, below) in keywords.iter_mut() {
                match (keyword.as_str(), below) {
                    ("const" | "default" | "enum" | "examples", _) => {}
                    ("properties" | "$defs" | "definitions" | "patternProperties", Value::Object(named)) => {
                        named.values_mut().for_each(neutral);
                    }
                    (_, below) => neutral(below),
                }
            }
        }
        _ => {}
    }
}

/// One terminal, so that of two choices of which one begins the other, both can be told.
fn choice(choices: &[String]) -> String {
    let quoted: Vec<String> = choices.iter().map(|choice| Value::from(choice.as_str()).to_string()).collect();
    format!("start: CHOICE\nCHOICE: {}\n", quoted.join(" | "))
}

/// The parser of Lark's notation recurses.
fn check_nesting(text: &str) -> Result<()> {
    let mut depth = 0u32;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_MAX {
            return Err(wrong(format!("it must nest at most {NESTING_MAX} brackets")));
        }
    }
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "false, which nothing satisfies",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

pub(super) fn wrong(message: String) -> Error {
    Error::new(ErrorKind::InvalidRequest, message)
}
