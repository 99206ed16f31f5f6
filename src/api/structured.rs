//! Request fields that say what the text must look like, as OpenAI and vLLM name them, for every dialect that has them:
//! `response_format`, the `guided_` fields, `structured_outputs`. At most one of them; what it says is checked here as
//! far as it is JSON, and by compiling it in the service.

use serde::Deserialize;
use serde_json::Value;

use super::body;
use super::problem::Problem;
use crate::error::Error;
use crate::protocol::Constraint;

/// Longest name of a schema, as with OpenAI.
const NAME_LEN_MAX: usize = 64;

/// A constraint, and the field that it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Structured {
    /// What the text must look like; `None` if that was not said.
    pub constraint: Option<Constraint>,
    /// The field, for errors.
    pub param: &'static str,
}

#[derive(Debug, Deserialize)]
struct Fields {
    response_format: Option<ResponseFormat>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_grammar: Option<String>,
    guided_choice: Option<Vec<String>>,
    structured_outputs: Option<StructuredOutputs>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
    json_schema: Option<NamedSchema>,
    /// llama.cpp's, with `json_object`.
    schema: Option<Value>,
}

/// `strict` says how hard to try; here there is only one way, and the text always keeps to the schema.
#[derive(Debug, Deserialize)]
struct NamedSchema {
    name: Option<String>,
    schema: Option<Value>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct StructuredOutputs {
    json: Option<Value>,
    regex: Option<String>,
    grammar: Option<String>,
    choice: Option<Vec<String>>,
    json_object: Option<bool>,
    structural_tag: Option<Value>,
    whitespace_pattern: Option<String>,
}

/// What the fields of `json` ask for.
///
/// # Errors
/// 400 for a wrong type, a value that is none of its kind, or more than one field.
pub(crate) fn constraint(json: &[u8]) -> Result<Structured, Problem> {
    let f: Fields = body::parse(json)?;
    let given = [
        ("response_format", f.response_format.map(response_format).transpose()?.flatten()),
        ("guided_json", f.guided_json.map(|v| schema("guided_json", v)).transpose()?),
        ("guided_regex", f.guided_regex.map(|t| text("guided_regex", t).map(Constraint::Regex)).transpose()?),
        ("guided_grammar", f.guided_grammar.map(|t| text("guided_grammar", t).map(Constraint::Lark)).transpose()?),
        ("guided_choice", f.guided_choice.map(|c| choice("guided_choice", c)).transpose()?),
        ("structured_outputs", f.structured_outputs.map(structured_outputs).transpose()?),
    ];
    let mut found = Structured { constraint: None, param: "response_format" };
    for (param, constraint) in given.into_iter().filter(|(_, constraint)| constraint.is_some()) {
        if found.constraint.is_some() {
            let message = format!("`{param}` must not come with `{}`, got both", found.param);
            return Err(Error::invalid(param, message).into());
        }
        found = Structured { constraint, param };
    }
    Ok(found)
}

fn response_format(format: ResponseFormat) -> Result<Option<Constraint>, Problem> {
    match (format.kind.as_deref(), format.json_schema) {
        (Some("text"), _) => Ok(None),
        (Some("json_object"), _) => match format.schema {
            Some(value) => schema("response_format.schema", value).map(Some),
            None => Ok(Some(Constraint::JsonObject)),
        },
        (Some("json_schema"), Some(named)) => {
            name(named.name)?;
            let param = "response_format.json_schema.schema";
            schema(param, named.schema.ok_or_else(|| missing(param))?).map(Some)
        }
        (Some("json_schema"), None) => Err(missing("response_format.json_schema")),
        (Some(other), _) => {
            let message =
                format!("`response_format.type` must be \"text\", \"json_object\" or \"json_schema\", got {other:?}");
            Err(Error::invalid("response_format.type", message).into())
        }
        (None, _) => Err(missing("response_format.type")),
    }
}

fn name(name: Option<String>) -> Result<(), Problem> {
    let param = "response_format.json_schema.name";
    let name = name.ok_or_else(|| missing(param))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(is_plain) {
        let message = format!("`{param}` must be 1 to {NAME_LEN_MAX} letters, digits, `_` and `-`, got {name:?}");
        return Err(Error::invalid(param, message).into());
    }
    Ok(())
}

fn structured_outputs(s: StructuredOutputs) -> Result<Constraint, Problem> {
    let unsupported = [
        ("structured_outputs.structural_tag", s.structural_tag.is_some()),
        ("structured_outputs.whitespace_pattern", s.whitespace_pattern.is_some()),
    ];
    if let Some((param, _)) = unsupported.iter().find(|(_, is_used)| *is_used) {
        return Err(Problem::unsupported(param, "is not supported by this server"));
    }
    let json_object = s.json_object.filter(|asked| *asked).map(|_| Constraint::JsonObject);
    let text = |param, t: Option<String>| t.map(|t| text(param, t)).transpose();
    let given = [
        s.json.map(|v| schema("structured_outputs.json", v)).transpose()?,
        text("structured_outputs.regex", s.regex)?.map(Constraint::Regex),
        text("structured_outputs.grammar", s.grammar)?.map(Constraint::Lark),
        s.choice.map(|c| choice("structured_outputs.choice", c)).transpose()?,
        json_object,
    ];
    let mut given: Vec<Constraint> = given.into_iter().flatten().collect();
    match (given.len(), given.pop()) {
        (1, Some(constraint)) => Ok(constraint),
        (n, _) => {
            let message = format!(
                "`structured_outputs` must have exactly one of json, regex, grammar, choice and json_object, got {n}"
            );
            Err(Error::invalid("structured_outputs", message).into())
        }
    }
}

/// A schema, as JSON or as a text that holds JSON.
fn schema(param: &str, value: Value) -> Result<Constraint, Problem> {
    match value {
        Value::Object(_) | Value::Bool(_) => Ok(Constraint::JsonSchema(value.to_string())),
        Value::String(text) => Ok(Constraint::JsonSchema(text)),
        other => {
            let message = format!("`{param}` must be a JSON schema, which is an object, got {other}");
            Err(Error::invalid(param, message).into())
        }
    }
}

fn text(param: &str, text: String) -> Result<String, Problem> {
    if text.is_empty() {
        return Err(Error::invalid(param, format!("`{param}` must have at least one character, got none")).into());
    }
    Ok(text)
}

fn choice(param: &str, choices: Vec<String>) -> Result<Constraint, Problem> {
    if choices.is_empty() {
        return Err(Error::invalid(param, format!("`{param}` must have at least one choice, got none")).into());
    }
    if let Some(i) = choices.iter().position(String::is_empty) {
        let param = format!("{param}[{i}]");
        return Err(
            Error::invalid(param.clone(), format!("`{param}` must have at least one character, got none")).into()
        );
    }
    Ok(Constraint::Choice(choices))
}

fn missing(param: &str) -> Problem {
    Error::invalid(param, format!("`{param}` must be given")).into()
}
