//! Answers of every family, cut anywhere, and answers that are none.

use proptest::prelude::*;

use super::*;

fn calling(syntax: CallSyntax) -> AnswerFormat {
    let names = vec!["f".to_owned(), "g".to_owned()];
    AnswerFormat { calls: Some(CallFormat { syntax, names, is_parallel: true, whole: None }), reasoning: None }
}

fn thinking(is_open: bool) -> AnswerFormat {
    let reasoning = Some(ReasoningFormat { syntax: ReasoningSyntax::Think, is_open });
    AnswerFormat { reasoning, ..calling(CallSyntax::Hermes) }
}

/// Pieces with neighbours of one kind as one: `c:` content, `r:` reasoning, `f(` ... `)` a call.
fn told(pieces: Vec<Piece>) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    for piece in pieces {
        let (kind, text) = match piece {
            Piece::Content(text) => ("c:", text),
            Piece::Reasoning(text) => ("r:", text),
            Piece::CallBegin { name } => {
                told.push(format!("{name}("));
                continue;
            }
            Piece::CallArguments(text) => ("", text),
        };
        match told.last_mut() {
            Some(last) if kind.is_empty() => last.push_str(&text),
            Some(last) if last.starts_with(kind) => last.push_str(&text),
            _ => told.push(format!("{kind}{text}")),
        }
    }
    told
}

fn read<'a>(format: &AnswerFormat, chunks: impl Iterator<Item = &'a str>) -> (Vec<String>, usize) {
    let mut parser = AnswerParser::new(format);
    let mut pieces = Vec::new();
    for chunk in chunks {
        pieces.extend(parser.push(chunk));
    }
    pieces.extend(parser.finish());
    (told(pieces), parser.num_calls())
}

/// Whole, and character by character.
#[track_caller]
fn check(format: &AnswerFormat, text: &str, expect: &[&str]) {
    assert_eq!(read(format, [text].into_iter()).0, expect, "whole: {text}");
    assert_eq!(read(format, text.split_inclusive(|_| true)).0, expect, "by characters: {text}");
}

#[test]
fn plain_text_is_taken_as_it_is() {
    check(&AnswerFormat::default(), " <think>x</think> <tool_call>{} \n", &["c: <think>x</think> <tool_call>{} \n"]);
    check(&calling(CallSyntax::Hermes), " a <tool b\n\n", &["c: a <tool b\n\n"]);
    check(&calling(CallSyntax::Llama3), " a {\"name\": \"f\"} ", &["c: a {\"name\": \"f\"} "]);
    check(&calling(CallSyntax::Mistral), "[TOOL_CALL] [x]", &["c:[TOOL_CALL] [x]"]);
}

#[test]
fn hermes_calls() {
    let format = calling(CallSyntax::Hermes);
    check(
        &format,
        "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"{\", \"b\": [1, {}]}}\n</tool_call>\n\
         <tool_call>{\"arguments\":{\"x\":1},\"name\":\"other\"}</tool_call>\n",
        &["c:Let me see.", "f({\"a\": \"}\\\"{\", \"b\": [1, {}]}", "other({\"x\":1}"],
    );
    check(&format, "<tool_call>{\"name\":\"f\"}</tool_call>", &["f({}"]);
    check(&format, "<tool_call>{\"name\":\"f\",\"id\":7,\"arguments\":null}</tool_call> ok", &["f({}", "c: ok"]);
    check(&format, r#"<tool_call>{"name":"f","arguments":"{\"a\":1}"}</tool_call>"#, &["f({\"a\":1}"]);
    check(&format, "<tool_call>{\"name\":\"f\",\"arguments\":{}}<tool_call>{\"name\":\"g\"}", &["f({}", "g({}"]);
    check(&format, "<tool_call>{\"name\":\"f\",\"arguments\":{}\n</tool_call>\n", &["f({}"]);
}

#[test]
fn a_call_that_is_none_is_content() {
    let format = calling(CallSyntax::Hermes);
    for text in [
        "x <tool_call>",
        "x\n<tool_call>\nf(1)\n</tool_call>",
        "<tool_call>{\"name\": f}</tool_call>",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"argum",
        "<tool_call>{\"arguments\": {\"a\": 1}, \"na",
        "<tool_call>{'name': 'f'}</tool_call>",
    ] {
        check(&format, text, &[&format!("c:{text}")]);
    }
    let broken = "<tool_call>no<tool_call>{\"name\":\"f\"}</tool_call>";
    check(&format, broken, &["c:<tool_call>no", "f({}"]);
}

#[test]
fn a_call_that_breaks_off_keeps_what_was_told() {
    let format = calling(CallSyntax::Hermes);
    check(&format, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": \"b", &["f({\"a\": \"b"]);
    check(&format, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": <b", &["f({\"a\": ", "c:<b"]);
}

#[test]
fn of_several_calls_only_the_first_where_one_is_allowed() {
    let mut format = calling(CallSyntax::Hermes);
    format.calls.as_mut().unwrap().is_parallel = false;
    let call = "<tool_call>{\"name\":\"f\"}</tool_call>";
    check(&format, &format!("{call}\n{call}"), &["f({}", &format!("c:\n{call}")]);
    check(&format, &format!("{call}\n"), &["f({}"]);
}

#[test]
fn llama_calls_need_no_marker_but_a_tool_of_the_request() {
    let format = calling(CallSyntax::Llama3);
    let call = r#"{"name": "f", "parameters": {"a": 1}}"#;
    check(&format, call, &["f({\"a\": 1}"]);
    check(&format, &format!("\n<|python_tag|>{call}"), &["f({\"a\": 1}"]);
    check(&format, &format!("{call}; {call}\n"), &["f({\"a\": 1}", "f({\"a\": 1}"]);
    for json in [
        r#"{"name": "Ann", "parameters": {}}"#,
        r#"{"name": "f", "age": 3}"#,
        r#"{"name": "f", "parameters": 3}"#,
        r#"{"answer": {"name": "f"}}"#,
        "<|python_tag|>print(1)",
    ] {
        check(&format, json, &[&format!("c:{json}")]);
    }
}

#[test]
fn mistral_calls_old_and_new() {
    let format = calling(CallSyntax::Mistral);
    check(
        &format,
        r#"Hm. [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}] "#,
        &["c:Hm.", "f({\"a\": 1}", "g({}"],
    );
    check(&format, r#"[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{"b": 2}"#, &["f({\"a\": 1}", "g({\"b\": 2}"]);
    check(&format, r#"[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}"#, &["f({\"a\": 1}"]);
    check(&format, r#"[TOOL_CALLS]{"name": "f", "arguments": {}}"#, &["f({}"]);
    for text in ["[TOOL_CALLS]", "[TOOL_CALLS] []", "[TOOL_CALLS]f(1)", "[TOOL_CALLS]f[ARGS]5", "[TOOL_CALLS]f"] {
        check(&format, text, &[&format!("c:{text}")]);
    }
}

#[test]
fn reasoning_is_taken_from_the_beginning() {
    let closed = thinking(false);
    check(&closed, "\n<think>\nhm <thi </think x\n</think>\n\nYes.", &["r:hm <thi </think x", "c:Yes."]);
    check(&closed, "<think>\n\n</think>\n\nYes. ", &["c:Yes. "]);
    check(&closed, "No <think>x</think>", &["c:No <think>x</think>"]);
    check(&closed, "<think>cut", &["r:cut"]);
    check(&closed, "  <thin", &["c:  <thin"]);
    check(&closed, "<think>a</think> <tool_call>{\"name\":\"f\"}</tool_call>", &["r:a", "f({}"]);
    let open = thinking(true);
    check(&open, "hm\n</think>\n\nYes.", &["r:hm", "c:Yes."]);
    check(&open, "<think>\nhm</think>Yes.", &["r:hm", "c:Yes."]);
    check(&open, "</think>Yes.", &["c:Yes."]);
    let llama = AnswerFormat { calls: calling(CallSyntax::Llama3).calls, ..thinking(false) };
    check(&llama, "<think>a</think>\n{\"name\": \"g\", \"parameters\": {}}", &["r:a", "g({}"]);
}

#[test]
fn tokens_of_reasoning_are_counted_with_their_markers() {
    for (format, text, expect) in [
        (thinking(false), "<think>abc</think>\n\nYes.", 18),
        (thinking(true), "abc</think>Yes.", 11),
        (thinking(true), "abc", 3),
        (thinking(false), "  Yes.", 0),
        (AnswerFormat::default(), "<think>a</think>", 0),
    ] {
        let (mut parser, mut count) = (AnswerParser::new(&format), ReasoningCount::default());
        for c in text.split_inclusive(|_| true) {
            parser.push(c);
            count.push(std::iter::once(c.len()), &parser);
        }
        parser.finish();
        assert_eq!(count.num_tokens(&parser), expect, "{text}");
    }
}

#[test]
fn families_are_known_by_their_markers() {
    let syntax = |source| (CallSyntax::of_template(source), ReasoningSyntax::of_template(source));
    assert_eq!(syntax("{{ messages }}"), (None, None));
    assert_eq!(
        syntax("<tool_call> ... content.split('</think>')"),
        (Some(CallSyntax::Hermes), Some(ReasoningSyntax::Think))
    );
    assert_eq!(syntax("<|python_tag|>").0, Some(CallSyntax::Llama3));
    assert_eq!(syntax("[TOOL_CALLS] [THINK][/THINK]"), (Some(CallSyntax::Mistral), Some(ReasoningSyntax::Bracket)));
}

fn syntaxes() -> impl Strategy<Value = CallSyntax> {
    prop::sample::select(vec![CallSyntax::Hermes, CallSyntax::Llama3, CallSyntax::Mistral])
}

fn formats() -> impl Strategy<Value = AnswerFormat> {
    (syntaxes(), any::<bool>(), any::<Option<bool>>()).prop_map(|(syntax, is_parallel, is_open)| {
        let mut format = calling(syntax);
        format.calls.as_mut().unwrap().is_parallel = is_parallel;
        format.reasoning = is_open.map(|is_open| ReasoningFormat { syntax: ReasoningSyntax::Think, is_open });
        format
    })
}

/// Words that are often calls, and often nearly.
fn texts() -> impl Strategy<Value = String> {
    let words = [
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
        "{\"name\": \"f\", \"arguments\": {\"a\": 1}}",
        "{\"name\": \"g\", \"parameters\": {}}",
        "{\"name\": \"f\"",
        "\"arguments\":",
        "\"name\": \"f\"",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\"",
        "\\",
        "f",
        "null",
        " ",
        "\n",
        "é",
        "<",
        "; ",
    ];
    let word = prop_oneof![
        4 => prop::sample::select(words.to_vec()).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(word, 0..16).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_cut_reads_the_same(
        format in formats(),
        text in texts(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| ends[cut.index(ends.len())]).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let whole = read(&format, [text.as_str()].into_iter());
        let cut = read(&format, cuts.windows(2).map(|w| &text[w[0]..w[1]]));
        prop_assert_eq!(&cut, &whole);
        let single = read(&format, text.split_inclusive(|_| true));
        prop_assert_eq!(&single, &whole);
    }

    #[test]
    fn text_without_calls_is_never_lost(syntax in syntaxes(), text in texts()) {
        let (told, num_calls) = read(&calling(syntax), text.split_inclusive(|_| true));
        if num_calls == 0 {
            let expect: Vec<String> = Some(format!("c:{text}")).filter(|_| !text.is_empty()).into_iter().collect();
            prop_assert_eq!(told, expect);
        }
    }
}
