//! JSON schemas as their authors mean them.

use serde_json::{Value, json};

/// Keywords whose value is data, or a name for something else: nothing below them is a schema.
const DATA: [&str; 5] = ["const", "default", "enum", "examples", "required"];

/// Closes every object of `schema` that lists properties and does not say whether there may be others. In a tool's schema, and
/// in a strict one, a property that is not named is none; a small model that may add some adds them until it is cut.
pub(crate) fn close(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(close),
        Value::Object(keywords) => {
            // An object that is put together of several (`allOf`) would be closed to the others' properties.
            let is_alone = !["allOf", "anyOf", "oneOf", "$ref", "patternProperties", "unevaluatedProperties"]
                .iter()
                .any(|keyword| keywords.contains_key(*keyword));
            for (keyword, below) in keywords.iter_mut() {
                match (keyword.as_str(), below) {
                    (keyword, _) if DATA.contains(&keyword) => {}
                    // Branches describe one object together with what stands beside them.
                    ("allOf" | "if" | "then" | "else" | "not", _) => {}
                    ("properties" | "$defs" | "definitions" | "patternProperties", Value::Object(named)) => {
                        named.values_mut().for_each(close);
                    }
                    (_, below) => close(below),
                }
            }
            if is_alone && keywords.get("properties").is_some_and(Value::is_object) {
                keywords.entry("additionalProperties").or_insert(json!(false));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mut schema: Value, expect: Value) {
        close(&mut schema);
        assert_eq!(schema, expect);
    }

    #[test]
    fn objects_that_list_their_properties_are_closed_and_no_others() {
        check(
            json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"properties": {}}}}}),
            json!({
                "type": "object",
                "properties": {
                    "a": {"type": "object", "properties": {"properties": {}}, "additionalProperties": false},
                },
                "additionalProperties": false,
            }),
        );
        for open in [
            json!({"type": "object"}),
            json!({"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "integer"}}),
            json!({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
            json!({"properties": {"a": {}}, "$ref": "#/$defs/b"}),
            json!({"const": {"properties": {"a": 1}}}),
        ] {
            check(open.clone(), open);
        }
        check(
            json!({"anyOf": [{"properties": {"a": {}}}, {"type": "null"}]}),
            json!({"anyOf": [{"properties": {"a": {}}, "additionalProperties": false}, {"type": "null"}]}),
        );
    }
}
