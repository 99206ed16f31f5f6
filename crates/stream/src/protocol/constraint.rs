//! The form that a text must have. It is kept as the client sent it: `sampling/` compiles it, and compiles it again for
//! a request that outlives the process.

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
