//! Lists in request bodies whose length is bounded while they are read: one element too many is an error at once, with the
//! path of the list, and nothing behind it is looked at.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

/// Messages of a chat, turns of a conversation, items of a response. Templates loop over them, some of them twice.
pub(crate) const MESSAGES_MAX: usize = 4096;

/// Content parts of one message, blocks of one turn.
pub(crate) const PARTS_MAX: usize = 1024;

/// Calls of one message. Each is looked for among the answers behind it.
pub(crate) const CALLS_MAX: usize = 128;

/// A list of at most `MAX`.
#[derive(Debug)]
pub(crate) struct Many<T, const MAX: usize>(pub Vec<T>);

impl<T, const MAX: usize> Default for Many<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Many<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_seq(ManyVisitor::<T, MAX>(PhantomData))
    }
}

struct ManyVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ManyVisitor<T, MAX> {
    type Value = Many<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while all.len() < MAX {
            match elements.next_element()? {
                Some(element) => all.push(element),
                None => return Ok(Many(all)),
            }
        }
        match elements.next_element::<IgnoredAny>()? {
            Some(_) => Err(A::Error::custom(format!("must have at most {MAX} elements, got more"))),
            None => Ok(Many(all)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::body;

    #[test]
    fn one_too_many_is_told_with_the_list_and_what_comes_behind_is_not_read() {
        #[derive(Debug, serde::Deserialize)]
        struct Fields {
            list: Many<u8, 3>,
        }
        let read = |json: &str| body::parse::<Fields>(json.as_bytes()).map(|f| f.list.0);
        assert_eq!(read(r#"{"list": [1, 2, 3]}"#), Ok(vec![1, 2, 3]));
        for json in [r#"{"list": [1, 2, 3, 4]}"#, r#"{"list": [1, 2, 3, {}, not even JSON"#] {
            let problem = read(json).expect_err("one too many");
            let expect = "`list` is wrong: must have at most 3 elements, got more";
            assert!(problem.message().starts_with(expect), "{json}: {}", problem.message());
        }
    }
}
