//! The grammar of an answer that must be calls, in llguidance's dialect of Lark: the family's markers around the JSON
//! that the tools' schemas allow. Written so that a model meets what it was trained on: one way to put spaces.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::protocol::{Constraint, Tool};
use crate::sampling::grammar::neutral;
use crate::text::{CallSyntax, ReasoningFormat, Tokenizer};

/// Most calls of one answer that must have some: a small model that likes the form would otherwise never stop.
const CALLS_MAX: usize = 16;

/// What a forced answer is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct ToolGrammar<'a> {
    /// Those that may be called; at least one.
    pub tools: &'a [Tool],
    pub syntax: CallSyntax,
    /// Whether several calls may come.
    pub is_parallel: bool,
    pub tokenizer: &'a Tokenizer,
}

impl ToolGrammar<'_> {
    /// The rules of the calls, beginning with `calls`.
    pub(super) fn calls(&self) -> String {
        let opening = self.marker(self.syntax.opening());
        let (is_new_mistral, more) = (self.tokenizer.marker_token("[ARGS]").is_some(), CALLS_MAX - 1);
        let (first, item, last) = match self.syntax {
            CallSyntax::Hermes => {
                let item = format!("{opening} \"\\n\" call \"\\n\" {}", self.marker("</tool_call>"));
                (String::new(), item, String::new())
            }
            CallSyntax::Llama3 => (String::new(), "call".to_owned(), String::new()),
            CallSyntax::Mistral if is_new_mistral => (String::new(), format!("{opening} call"), String::new()),
            CallSyntax::Mistral => (format!("{opening} \"[\" "), "call".to_owned(), " \"]\"".to_owned()),
        };
        let between = match self.syntax {
            CallSyntax::Hermes => "\"\\n\" ",
            CallSyntax::Llama3 => "\"; \" ",
            CallSyntax::Mistral if is_new_mistral => "",
            CallSyntax::Mistral => "\", \" ",
        };
        let others = if self.is_parallel { format!(" ({between}item){{0,{more}}}") } else { String::new() };
        let names: Vec<String> = (0..self.tools.len()).map(|i| format!("call_{i}")).collect();
        let mut rules = format!("calls: {first}item{others}{last}\nitem: {item}\ncall: {}\n", names.join(" | "));
        for (i, tool) in self.tools.iter().enumerate() {
            let (before, after) = self.around(&tool.function.name, is_new_mistral);
            let schema = schema(&tool.function.parameters);
            let _infallible = writeln!(rules, "call_{i}: {before} arguments_{i}{after}\narguments_{i}: %json {schema}");
        }
        rules
    }

    /// What stands before and behind the arguments.
    fn around(&self, name: &str, is_new_mistral: bool) -> (String, &'static str) {
        if self.syntax == CallSyntax::Mistral && is_new_mistral {
            return (format!("{} {}", literal(name), self.marker("[ARGS]")), "");
        }
        let key = if self.syntax == CallSyntax::Llama3 { "parameters" } else { "arguments" };
        (literal(&format!("{{\"name\": \"{name}\", \"{key}\": ")), " \"}\"")
    }

    /// A marker is a token where the vocabulary makes it a control token, else its letters.
    fn marker(&self, spelling: &str) -> String {
        self.tokenizer.marker_token(spelling).map_or_else(|| literal(spelling), |id| format!("<[{id}]>"))
    }
}

/// The constraint of an answer that is `calls`; if the prompt has opened a reasoning section, behind its end.
pub(super) fn constraint(calls: &str, reasoning: Option<ReasoningFormat>, tokenizer: &Tokenizer) -> Constraint {
    let Some(reasoning) = reasoning.filter(|reasoning| reasoning.is_open) else {
        return Constraint::Lark(format!("start: calls\n{calls}"));
    };
    let closing = reasoning.syntax.closing();
    let thought = match tokenizer.marker_token(closing) {
        Some(id) => format!("thought: /(.|\\n)*/ <[{id}]>"),
        None => format!("thought[suffix={}]: /(.|\\n)*/", literal(closing)),
    };
    Constraint::Lark(format!("start: thought \"\\n\\n\" calls\n{thought}\n{calls}"))
}

/// The rule that a call's arguments keep.
pub(super) fn arguments(parameters: &Value) -> Constraint {
    Constraint::JsonSchema(schema(parameters).to_string())
}

fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// The schema of arguments, which are always an object, with Python's spaces.
fn schema(parameters: &Value) -> Value {
    let style = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    let mut schema = serde_json::Map::from_iter([("x-guidance".to_owned(), style)]);
    let mut parameters = parameters.clone();
    super::schema::close(&mut parameters);
    neutral(&mut parameters);
    if let Value::Object(given) = &parameters {
        schema.extend(given.clone());
        if !["type", "$ref", "anyOf", "oneOf", "allOf"].iter().any(|key| given.contains_key(*key)) {
            schema.insert("type".to_owned(), json!("object"));
        }
    }
    Value::Object(schema)
}

#[cfg(test)]
mod tests;
