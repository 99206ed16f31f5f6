//! The tools of a request in OpenAI's newer form: functions, tools that take free text, and namespaces of either. A model knows
//! them by one name each, `NAMESPACE.NAME`; a call is told of, and taken back, in the client's own terms.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::input::{given, wrong};
use crate::api::problem::Problem;
use crate::api::tool_fields::{self, Offered};

/// What a client calls the tools that the model is told of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ToolNames {
    /// By the model's name: namespace and name.
    namespaces: BTreeMap<String, (String, String)>,
    /// The model's names of those that take free text.
    custom: BTreeSet<String>,
}

impl ToolNames {
    /// Namespace, if it is in one, and name of the tool that the model calls `called`.
    pub(super) fn of<'a>(&'a self, called: &'a str) -> (Option<&'a str>, &'a str) {
        match self.namespaces.get(called) {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, called),
        }
    }

    /// Whether a tool takes free text.
    pub(super) fn is_custom(&self, called: &str) -> bool {
        self.custom.contains(called)
    }
}

/// The model's name of a tool.
pub(super) fn model_name(namespace: Option<&str>, name: &str) -> String {
    namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}.{name}"))
}

/// Reads `tools`.
///
/// # Errors
/// 400 with the path of what is missing or of a wrong type.
pub(super) fn read(tools: &[Value]) -> Result<(Offered, ToolNames), Problem> {
    let (mut offered, mut names) = (Offered::default(), ToolNames::default());
    for (i, tool) in tools.iter().enumerate() {
        self::tool(tool, None, format!("tools[{i}]"), &mut offered, &mut names)?;
    }
    Ok((offered, names))
}

fn tool(
    tool: &Value,
    namespace: Option<&str>,
    path: String,
    offered: &mut Offered,
    names: &mut ToolNames,
) -> Result<(), Problem> {
    let Some(kind) = tool["type"].as_str() else {
        return Err(given(&format!("{path}.type"), "a string", tool.get("type")));
    };
    if !["function", "custom", "namespace"].contains(&kind) || (kind == "namespace" && namespace.is_some()) {
        offered.left_out.push(path);
        return Ok(());
    }
    let Some(name) = tool["name"].as_str().filter(|name| !name.is_empty()) else {
        return Err(given(&format!("{path}.name"), "a string that is not empty", tool.get("name")));
    };
    if kind == "namespace" {
        let tools = tool["tools"].as_array();
        let tools = tools.ok_or_else(|| given(&format!("{path}.tools"), "a list of tools", tool.get("tools")))?;
        return tools
            .iter()
            .enumerate()
            .try_for_each(|(i, inner)| self::tool(inner, Some(name), format!("{path}.tools[{i}]"), offered, names));
    }
    let description = match tool.get("description") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => return Err(wrong(&format!("{path}.description"), "a string", other)),
    };
    let called = model_name(namespace, name);
    if let Some(namespace) = namespace {
        names.namespaces.insert(called.clone(), (namespace.to_owned(), name.to_owned()));
    }
    if kind == "custom" {
        let grammar = tool_fields::grammar(tool.get("format"), &format!("{path}.format"))?;
        names.custom.insert(called.clone());
        offered.push(path, tool_fields::custom(called, description, grammar));
        return Ok(());
    }
    let parameters = match tool.get("parameters") {
        None | Some(Value::Null) => None,
        Some(schema @ Value::Object(_)) => Some(schema.clone()),
        Some(other) => return Err(wrong(&format!("{path}.parameters"), "an object", other)),
    };
    offered.push(path, tool_fields::function(called, description, parameters));
    Ok(())
}
