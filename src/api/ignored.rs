//! What a request asked for and this server leaves out without harm: hints that the model cannot follow, and tools that only
//! somebody else's servers run. The answer names them in the header `x-tallow-ignored`.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use serde_json::Value;

/// Where they are named, with commas between them.
pub(crate) const IGNORED: HeaderName = HeaderName::from_static("x-tallow-ignored");

/// Longest value of the header; what has no room is not named.
const VALUE_BYTES_MAX: usize = 1024;

/// Paths of what is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ignored(Vec<String>);

impl Ignored {
    /// Adds `path`.
    pub(crate) fn push(&mut self, path: impl Into<String>) {
        self.0.push(path.into());
    }

    /// Adds all of `paths`.
    pub(crate) fn extend(&mut self, paths: Vec<String>) {
        self.0.extend(paths);
    }

    /// Adds `path` if there is a value that asks for something.
    pub(crate) fn hint(&mut self, path: &str, value: Option<&Value>) {
        let asks = |value: &&Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            _ => true,
        };
        if value.filter(asks).is_some() {
            self.push(path);
        }
    }

    /// Names them in `response`.
    pub(crate) fn tell(&self, mut response: Response) -> Response {
        let mut value = String::new();
        for path in self.0.iter().filter(|path| path.bytes().all(|b| b.is_ascii_graphic())) {
            let separator = if value.is_empty() { "" } else { ", " };
            if value.len() + separator.len() + path.len() <= VALUE_BYTES_MAX {
                value.push_str(separator);
                value.push_str(path);
            }
        }
        if let Some(value) = HeaderValue::try_from(value).ok().filter(|value| !value.is_empty()) {
            response.headers_mut().insert(IGNORED, value);
        }
        response
    }
}
