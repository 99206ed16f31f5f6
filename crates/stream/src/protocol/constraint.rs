//! What a text must look like. Kept as it came: compiling is `sampling/`'s, and a request that outlives the process is
//! compiled again.

/// A rule that every token of the output keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that validates against this schema, which is JSON itself.
    JsonSchema(String),
    /// A text that this regular expression matches as a whole (Rust's syntax, no look-around).
    Regex(String),
    /// A text of this grammar, in llguidance's dialect of Lark.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}
