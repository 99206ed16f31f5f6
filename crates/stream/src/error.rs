//! The one error of the house. It carries a kind (what a caller can do about it) and a sentence (what went wrong,
//! with the rule and the value in it). It knows nothing of HTTP: `api/` turns a kind into a status.

use std::fmt;

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

/// An error: a kind, a sentence, and for requests the parameter at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    param: Option<String>,
    retry_after_ms: Option<u64>,
}

impl Error {
    /// An error of `kind`, described by one sentence that names the rule and the value.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, retry_after_ms: None }
    }

    /// A request that breaks a rule about `param` (a JSON path such as `messages[0].role`).
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(ErrorKind::InvalidRequest, message) }
    }

    /// A damaged or unsupported model file.
    pub fn bad_model(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadModel, message)
    }

    /// A failed read, write or fetch; `what` names the file or address.
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

    /// A limit of the owner is used up, and when there should be room again.
    pub fn rate_limited(message: impl Into<String>, retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(ErrorKind::RateLimited, message) }
    }

    /// Names the parameter at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Puts `what` (a path, a model name) and a colon in front of the message.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
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
