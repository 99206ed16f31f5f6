//! A word stands for one thing: a search for a type's name leads to one place.

use std::collections::{BTreeMap, BTreeSet};

use crate::tidy::source::{Source, is_test_file};

/// Names of several types, with the reason.
const SHARED_NAMES: &[(&str, &str)] = &[
    ("Asked", "what a body asks for, in each route"),
    ("Block", "a tile's in the kernels, a message's in Anthropic's words"),
    ("Choice", "a word of Chat Completions, written by the server and read by the load generator"),
    ("Chunk", "a word of Chat Completions, written by the server and read by the load generator"),
    ("Content", "a message's, in two dialects"),
    ("ContentVisitor", "reads Content"),
    ("Data", "what an SSE frame's data says, written by the server and read by the load generator"),
    ("Delta", "a word of two dialects"),
    ("Error", "a crate's own; the kernels know no other crate"),
    ("Kind", "of a content block and of an output item, private to their dialects"),
    ("Layer", "of a model, in the two ways to compute"),
    ("Result", "a crate's own; the kernels know no other crate"),
    ("Spelled", "a token as each dialect spells it"),
    ("ToolFields", "a tool in the words of each dialect"),
    ("Usage", "token counts: ours, and as servers tell them"),
    ("UsageObject", "token counts in the words of each dialect"),
    ("Value", "of a key in a model's file, and of a setting"),
    ("Vector", "to come from the encoder, and as the wire writes it"),
    ("Weights", "of a model, in the two ways to compute"),
];

/// Types of the settings are not looked at: they are being redrawn.
const NOT_LOOKED_AT: &str = "src/config/";

/// The files that define a type of each name, where they are several.
fn doubles(sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        if is_test_file(&source.path) || source.path.starts_with(NOT_LOOKED_AT) {
            continue;
        }
        let plain = Source { path: source.path.clone(), text: source.text.clone(), code: source.without_tests() };
        let words = ["struct ", "enum ", "trait ", "type "];
        for (word, at) in words.iter().flat_map(|word| plain.words(word).map(move |at| (*word, at))) {
            let rest = &plain.code[at + word.len()..];
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            // A type in a trait or in its `impl` has that trait's name.
            let line = plain.code[..at].rsplit('\n').next().unwrap_or("");
            if !(name.is_empty() || word == "type " && line.starts_with(' ')) {
                files.entry(name).or_default().insert(source.path.clone());
            }
        }
    }
    files.retain(|_, files| files.len() > 1);
    files
}

pub(crate) fn names_are_unique(sources: &[Source]) -> Vec<String> {
    let found = doubles(sources).into_iter().filter(|(name, _)| !SHARED_NAMES.iter().any(|(known, _)| known == name));
    found.map(|(name, files)| format!("`{name}` is defined in {}", Vec::from_iter(files).join(", "))).collect()
}

/// Names that the list excuses and that stand for one type.
pub(crate) fn excuses_are_needed(sources: &[Source]) -> Vec<String> {
    let doubles = doubles(sources);
    let unneeded = SHARED_NAMES.iter().filter(|(name, _)| !doubles.contains_key(*name));
    unneeded.map(|(name, _)| format!("`{name}` is defined in one file")).collect()
}

#[test]
fn a_second_type_of_a_name_is_found() {
    let num_found = |first: &str, second: (&str, &str)| {
        let sources = [Source::new("src/api/a.rs", first), Source::new(second.0, second.1)];
        names_are_unique(&sources).len()
    };
    let check = |first: &str, second: (&str, &str), expect: usize| {
        assert_eq!(num_found(first, second), expect, "{first} {second:?}");
    };
    check("struct State<T> {}", ("crates/engine/src/b.rs", "pub(crate) enum State { A }"), 1);
    check("type Place = u8;", ("src/api/b.rs", "pub trait Place {}"), 1);
    check("struct State;", ("src/api/b.rs", "struct QueueState; // struct State"), 0);
    check("struct State;", ("src/api/b.rs", "#[cfg(test)]\nmod tests { struct State; }"), 0);
    check("struct State;", ("src/api/b/tests.rs", "struct State;"), 0);
    check("impl A for B {\n    type Err = u8;\n}", ("src/api/b.rs", "impl A for C {\n    type Err = u8;\n}"), 0);
    check("struct Delta;", ("src/api/b.rs", "struct Delta;"), 0);
}
