//! Compiling and matching on the stub's vocabulary and on a small one: which rules texts keep, which grammars are
//! refused, and which are cached.

use super::*;
use crate::sampling::random_u64;
use tallow_model::text::{Scheme, TokenKind, Vocab};
use tallow_stream::error::ErrorKind;
use tallow_stream::protocol::TokenId;

fn compiler(limits: GrammarLimits) -> Arc<GrammarCompiler> {
    GrammarCompiler::new(Arc::new(Tokenizer::byte_level()), limits, Arc::default())
}

fn schema(text: &str) -> Constraint {
    Constraint::JsonSchema(text.to_owned())
}

#[track_caller]
fn grammar(constraint: &Constraint) -> Arc<Grammar> {
    compiler(GrammarLimits::default()).compile(constraint).expect("it compiles")
}

/// A text that draws its tokens from the allowed ones; `None` if it does not end within a thousand.
fn random_text(grammar: &Grammar, seed: u64, fast_forward: bool) -> Option<String> {
    let (mut matcher, mut tokens) = Matcher::start(grammar, &[], fast_forward).expect("a beginning");
    let mut position = 0;
    while tokens.len() < 1000 {
        let mask = match matcher.allowed().expect("it goes on") {
            Next::Complete => return Some(tokens.iter().map(|t| char::from(*t as u8)).collect()),
            Next::Sample(mask) => mask,
            Next::Forced(_) => panic!("only the engine makes these"),
        };
        let ids: Vec<TokenId> = (0..257).filter(|id| mask.contains(*id) && !(128..256).contains(id)).collect();
        let token = ids[random_u64(seed, position) as usize % ids.len()];
        position += 1;
        matcher.accept(token).expect("an allowed token");
        tokens.extend((token < 256).then_some(token));
        tokens.extend(matcher.forced().expect("it goes on"));
    }
    None
}

#[track_caller]
fn check(constraint: &Constraint, is_right: impl Fn(&str) -> bool) {
    let grammar = grammar(constraint);
    let texts: Vec<String> = (0..20).filter_map(|seed| random_text(&grammar, seed, seed % 2 == 0)).collect();
    assert!(!texts.is_empty(), "every text of {constraint:?} goes on for ever");
    for text in texts {
        assert!(is_right(&text), "{text:?} is none of {constraint:?}");
    }
}

#[test]
fn every_kind_of_constraint_is_kept_to() {
    let is_json = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok();
    check(
        &schema(
            r#"{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}"#,
        ),
        |t| is_json(t) && t.starts_with(r#"{"a": "#) && t.ends_with('}'),
    );
    // The schema has no numbers, since one could be too large for the parser.
    check(&schema(r#"{"type": ["string", "boolean", "null"]}"#), is_json);
    check(&Constraint::JsonObject, |t| t.starts_with('{') && t.ends_with('}'));
    check(&Constraint::Regex("[a-c]{3}-(x|yy)/?".to_owned()), |t| t.len() >= 5 && t.as_bytes()[3] == b'-');
    check(&Constraint::Lark("start: \"<\" inner* \">\"\ninner: \"ab\" | start".to_owned()), |t| {
        t.matches('<').count() == t.matches('>').count()
    });
    let choices = ["yes", "yes, please", "\"no\"\n", "{}"];
    check(&Constraint::Choice(choices.map(str::to_owned).to_vec()), |t| choices.contains(&t));
}

#[test]
fn of_choices_that_begin_alike_each_can_be_told() {
    let grammar = grammar(&Constraint::Choice(vec!["a".to_owned(), "ab".to_owned()]));
    let texts: Vec<_> = (0..20).filter_map(|seed| random_text(&grammar, seed, true)).collect();
    assert!(texts.contains(&"a".to_owned()) && texts.contains(&"ab".to_owned()), "{texts:?}");
}

#[test]
fn a_text_is_taken_up_at_any_token() {
    let grammar = grammar(&schema(
        r#"{"properties": {"name": {"type": "string", "maxLength": 3}, "b": {"type": "boolean"}}, "required": ["name", "b"], "additionalProperties": false, "type": "object"}"#,
    ));
    let text: Vec<TokenId> = br#"{"name": "xy", "b": true}"#.iter().map(|b| TokenId::from(*b)).collect();
    for at in 0..=text.len() {
        let (matcher, forced) = Matcher::start(&grammar, &text[..at], true).expect("a beginning of a text");
        assert!(text[at..].starts_with(&forced), "at {at}: {forced:?}");
        assert_eq!(matcher.is_complete(), at + forced.len() == text.len(), "at {at}");
    }
    assert_eq!(Matcher::start(&grammar, &[], true).expect("a beginning").1, text[..10], "{{\"name\": \" is forced");
    let e = Matcher::start(&grammar, &[97], true).expect_err("no text of this grammar");
    assert_eq!(e.kind(), ErrorKind::Internal);
}

#[track_caller]
fn refused(constraint: &Constraint, expect: &str) {
    let e = compiler(GrammarLimits::default()).compile(constraint).expect_err("refused");
    assert_eq!(e.kind(), ErrorKind::InvalidRequest, "{e}");
    assert!(e.message().contains(expect), "{e}");
}

#[test]
fn what_cannot_be_compiled_is_refused_with_the_reason() {
    refused(&schema("{"), "the schema must be JSON");
    refused(&schema("[]"), "the schema must be an object, got an array");
    refused(&schema("false"), "nothing satisfies");
    refused(&schema(r#"{"type": "integer", "minimum": 3, "maximum": 2}"#), "nsatisfiable");
    refused(&schema(r#"{"type": "object", "if": {}}"#), "Unimplemented keys");
    refused(
        &schema(r#"{"oneOf": [{"type": "integer"}, {"minimum": 2}]}"#),
        "oneOf constraints are not supported, anyOf is",
    );
    refused(&schema(r#"{"$ref": "https://example.com/schema"}"#), "");
    refused(&Constraint::Regex("(".to_owned()), "");
    refused(&Constraint::Regex(r"(?=a)b".to_owned()), "");
    refused(&Constraint::Lark("start: other".to_owned()), "");
    refused(&Constraint::Lark("start: start \"a\"".to_owned()), "");
    refused(&Constraint::Regex("x".repeat(70_000)), "at most 65536 bytes, got 70000");
    refused(&Constraint::Lark(format!("start: {}\"a\"{}", "(".repeat(5000), ")".repeat(5000))), "nest at most");
}

#[test]
fn what_would_take_too_much_is_refused_with_its_place_the_bound_and_the_value() {
    let number =
        |value: &str| schema(&format!(r#"{{"properties": {{"a": {{"type": "integer", "multipleOf": {value}}}}}}}"#));
    refused(
        &number("9999991"),
        "`#/properties/a/multipleOf` must be at most 10000 in a schema once its decimal point is left out, got 9999991",
    );
    refused(&number("0.123456789"), "must have at most 6 decimals");
    refused(&Constraint::Regex(r"[\p{Lu}\p{Nd}]?".repeat(3400)), "at one place, got");
    refused(&Constraint::Regex("[a-z]?".repeat(3400)), "steps per character, got");
    refused(&Constraint::Regex(r"\w".repeat(1000)), "at most 512 Unicode classes such as `\\w` or `\\p{L}`, got 1000");
    refused(&Constraint::Regex("(abcd){100000}".to_owned()), "at most 10000 characters, got 400000");
    let doubling: String = (0..40).map(|i| format!("T{i}: T{n} /[ab]/ T{n}\n", n = i + 1)).collect();
    refused(&Constraint::Lark(format!("start: T0\n{doubling}T40: \"a\"\n")), "steps per character");
    let patterns: Vec<String> = (0..100).map(|i| format!(r#""^p{i}": {{}}"#)).collect();
    refused(
        &schema(&format!(r#"{{"patternProperties": {{{}}}}}"#, patterns.join(", "))),
        "at most 32 patterns in all, got 100",
    );
}

#[test]
fn few_patterns_are_put_together_for_one_text() {
    let all =
        |num: usize| (0..num).map(|i| format!(r#"{{"type": "string", "pattern": "a.{{{i}}}b"}}"#)).collect::<Vec<_>>();
    refused(&schema(&format!(r#"{{"allOf": [{}]}}"#, all(60).join(", "))), "at most 8 patterns for one text");
    let defs: Vec<String> = all(60).iter().enumerate().map(|(i, s)| format!(r#""d{i}": {s}"#)).collect();
    let refs: Vec<String> = (0..60).map(|i| format!(r##"{{"$ref": "#/$defs/d{i}"}}"##)).collect();
    let halves = format!(r#"{{"allOf": [{}]}}, {{"allOf": [{}]}}"#, refs[..6].join(", "), refs[6..12].join(", "));
    refused(&schema(&format!(r#"{{"allOf": [{halves}], "$defs": {{{}}}}}"#, defs.join(", "))), "at most 8 patterns");
    grammar(&schema(&format!(r#"{{"anyOf": [{}]}}"#, all(30).join(", "))));
}

#[test]
fn errors_are_in_words_of_ours() {
    // No token of the model's vocabulary can begin a text of this grammar.
    refused(&Constraint::Lark("start: /a/ & /b/".to_owned()), "");
    for (constraint, theirs) in [
        (Constraint::Lark("start: A\nA: /a/ & /b/".to_owned()), "NoExtension"),
        (Constraint::Regex("[a&&b]".to_owned()), "NoExtension"),
        (schema(r#"{"type": "string", "pattern": "^a$", "minLength": 2}"#), "SearchRegex"),
        (Constraint::Lark("start: s\ns: s".to_owned()), "Internal error"),
        (Constraint::Regex("((a|b|[a-z ]){1,900}x?[a-z]{1,900}y?){1,900}(.*a.{900}){9}".to_owned()), "fuel"),
    ] {
        if let Err(e) = compiler(GrammarLimits::default()).compile(&constraint) {
            assert!(!e.message().contains(theirs), "{e}");
        }
    }
}

#[test]
fn the_cache_keeps_what_was_used_last_and_what_is_in_use() {
    let compiler = compiler(GrammarLimits { cached_max: 2, ..GrammarLimits::default() });
    let of = |text: &str| Constraint::Regex(text.to_owned());
    let held = compiler.compile(&of("a")).expect("fine");
    for text in ["b", "c", "b", "d"] {
        compiler.compile(&of(text)).expect("fine");
    }
    let is_kept = |text: &str| compiler.cached(&of(text)).is_some();
    assert!(is_kept("a") && is_kept("d") && !is_kept("c") && !is_kept("b"), "{:?}", compiler.cache());
    assert_eq!(compiler.metrics.grammar_cache_hits.get(), 0);
    drop(held);
    compiler.compile(&of("d")).expect("fine");
    assert_eq!(compiler.metrics.grammar_cache_hits.get(), 1);
    compiler.compile(&of("e")).expect("fine");
    assert_eq!(compiler.cache().len(), 2);
}

#[test]
fn no_owner_flushes_what_another_has_compiled() {
    let compiler = compiler(GrammarLimits { cached_max: 8, ..GrammarLimits::default() });
    let of = |owner: u64, number: usize| Constraint::Regex(format!("{}{number}", ["a", "b"][owner as usize]));
    for number in 0..3 {
        compiler.compile_here(Tenant(0), &of(0, number)).expect("fine");
    }
    for number in 0..100 {
        compiler.compile_here(Tenant(1), &of(1, number)).expect("fine");
    }
    assert!((0..3).all(|number| compiler.cached(&of(0, number)).is_some()), "{:?}", compiler.cache());
    assert!((95..100).all(|number| compiler.cached(&of(1, number)).is_some()));
    assert_eq!(compiler.cache().len(), 8);
}

#[test]
fn control_tokens_are_no_text_and_forced_text_is_cut_as_the_model_would() {
    let tokens = ["{", "\"", "a", ":", "Ġ", "}", "\":", "\":Ġ", "<|im_end|>", "1", "2"].map(str::to_owned).to_vec();
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    kinds[8] = TokenKind::Control;
    let merges = vec![("\" :").to_owned(), ("\": Ġ").to_owned()];
    let vocab = Vocab {
        tokens,
        kinds,
        scheme: Scheme::Bpe { pre: "gpt-2".to_owned(), merges },
        bos: None,
        eos: Some(8),
        end_of_generation: Vec::new(),
        add_bos: false,
        add_space_prefix: false,
    };
    let tokenizer = Arc::new(Tokenizer::from_vocab(vocab).expect("a small vocabulary"));
    let compiler = GrammarCompiler::new(tokenizer.clone(), GrammarLimits::default(), Arc::default());
    let grammar = compiler.compile(&schema(r#"{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false}"#));
    let (mut matcher, forced) = Matcher::start(&grammar.expect("fine"), &[], true).expect("a beginning");
    let expect = tokenizer.encode("{\"a\":", false).expect("it can be spelled");
    assert!(forced.starts_with(&expect[..3]), "{forced:?} and {expect:?}");
    let Ok(Next::Sample(mask)) = matcher.allowed() else { panic!("a choice") };
    assert!(!mask.contains(8), "the end is not allowed here");
}
