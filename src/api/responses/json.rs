//! JSON as text, written once and joined: what a response has said does not change, and whoever asks for it again gets a copy
//! of the bytes rather than a tree built anew.

use serde::Serialize;

/// An object, written field by field.
#[derive(Debug)]
pub(super) struct ObjectText(String);

impl ObjectText {
    /// Without a field yet.
    pub(super) fn new() -> Self {
        Self("{".to_owned())
    }

    /// With one field more.
    pub(super) fn field(self, name: &str, value: &(impl Serialize + ?Sized)) -> Self {
        self.joined(name, &text(value))
    }

    /// With one field more, whose value is JSON already.
    pub(super) fn joined(mut self, name: &str, json: &str) -> Self {
        self.key(name);
        self.0.push_str(json);
        self
    }

    /// With one field more, a list whose elements are JSON already.
    pub(super) fn list<'a>(mut self, name: &str, elements: impl IntoIterator<Item = &'a str>) -> Self {
        self.key(name);
        self.0.push('[');
        for (i, element) in elements.into_iter().enumerate() {
            if i > 0 {
                self.0.push(',');
            }
            self.0.push_str(element);
        }
        self.0.push(']');
        self
    }

    /// The whole object.
    pub(super) fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }

    fn key(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push_str(&text(name));
        self.0.push(':');
    }
}

/// A value as JSON.
pub(super) fn text(value: &(impl Serialize + ?Sized)) -> String {
    // Our types have string keys, and a String never refuses.
    serde_json::to_string(value).expect("wire types serialise")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_joined_from_values_and_text() {
        let object = ObjectText::new().field("a\"", &1).joined("b", "{}").list("c", ["1", "[2]"]).list("d", []);
        assert_eq!(object.end(), r#"{"a\"":1,"b":{},"c":[1,[2]],"d":[]}"#);
        assert_eq!(ObjectText::new().end(), "{}");
    }
}
