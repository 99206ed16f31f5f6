//! The one error of the house. It carries a kind (what a caller can do about it) and a sentence (what went wrong,
//! with the rule and the value in it). It knows nothing of HTTP: `api/` turns a kind into a status.

use std::fmt;

use crate::protocol::Field;

/// Shorthand for results with tallow's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error; code branches on this and on nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ErrorKind {
    /// The request breaks a rule; sending it again unchanged cannot help.
    InvalidRequest,
    /// The prompt, or prompt plus requested tokens, does not fit the model's context.
    ContextLengthExceeded,
    /// No model of that name is served here.
    ModelNotFound,
    /// No such stream, or it belongs to somebody else (the two are never told apart).
    NotFound,
    /// The stream existed, and its retention time is over.
    Expired,
    /// A bounded resource is full; the error says when to come back.
    Overloaded,
    /// The owner's own limit is used up; the error says when to come back.
    RateLimited,
    /// The request waited for a worker for longer than it was willing to.
    QueueTimeout,
    /// The server is starting, loading or draining.
    Unavailable,
    /// The request was cancelled before it could finish.
    Cancelled,
    /// A file, a manifest or a model is damaged or of a kind tallow does not support.
    BadModel,
    /// Reading, writing or fetching failed.
    Io,
    /// A bug on our side or a fault of the machine.
    Internal,
}

/// A kind, a sentence, and for requests the parameter at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    param: Option<String>,
    fault: Option<Box<Fault>>,
    retry_after_ms: Option<u64>,
}

/// A broken rule as data, where dialects say it in different words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The field that it is about.
    pub field: Field,
    /// What is wrong with it.
    pub broken: Broken,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The rule and the value, without the field: "must be at least 1, got 0".
    Rule(String),
    /// The prompt does not fit the context.
    PromptTooLong {
        /// Tokens of the prompt.
        num_tokens: usize,
        /// Tokens of the context.
        num_tokens_max: usize,
    },
}

impl Error {
    /// An error of `kind`, described by one sentence that names the rule and the value.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, fault: None, retry_after_ms: None }
    }

    /// A request that breaks a rule about `param` (a JSON path such as `messages[0].role`).
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(ErrorKind::InvalidRequest, message) }
    }

    /// A request that breaks `rule` about `field`; `rule` goes on from the field's name: "must be at least 1, got 0".
    pub fn rule(field: Field, rule: impl Into<String>) -> Self {
        let rule = rule.into();
        let message = format!("`{field}` {rule}");
        let fault = Box::new(Fault { field, broken: Broken::Rule(rule) });
        Self { fault: Some(fault), ..Self::invalid(field.to_string(), message) }
    }

    /// A prompt of `num_tokens` that a context of `num_tokens_max` has no room for.
    pub fn prompt_too_long(field: Field, num_tokens: usize, num_tokens_max: usize) -> Self {
        let message = format!(
            "`{field}` must leave room for output in the context of {num_tokens_max} tokens, got {num_tokens} tokens"
        );
        let fault = Box::new(Fault { field, broken: Broken::PromptTooLong { num_tokens, num_tokens_max } });
        let error = Self::new(ErrorKind::ContextLengthExceeded, message).with_param(field.to_string());
        Self { fault: Some(fault), ..error }
    }

    /// A damaged or unsupported model file.
    pub fn bad_model(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadModel, message)
    }

    /// A failed read, write or fetch; `what` says of which file or address.
    pub fn io(what: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Io, format!("{what}: {cause}"))
    }

    /// A bug or a fault of the machine.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// A full queue or table, and when there should be room again.
    pub fn overloaded(message: impl Into<String>, retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(ErrorKind::Overloaded, message) }
    }

    /// A limit of the owner's is used up, and when there should be room again.
    pub fn rate_limited(message: impl Into<String>, retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(ErrorKind::RateLimited, message) }
    }

    /// Names the parameter at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self.fault = None;
        self
    }

    /// Puts `what` (a path, a model name) and a colon in front of the message.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self.fault = None;
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The parameter at fault, as a JSON path.
    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    /// The broken rule as data, where dialects say it in different words.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_deref()
    }

    /// When to try again, in milliseconds, where that is known.
    pub fn retry_after_ms(&self) -> Option<u64> {
        self.retry_after_ms
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
