//! The text of the grammars, and that it is one.

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};

use super::*;
use crate::protocol::Function;
use crate::text::{ReasoningSyntax, Scheme, TokenKind, Vocab};

fn tool(name: &str, parameters: Value) -> Tool {
    Tool {
        kind: "function",
        function: Function { name: name.to_owned(), description: None, parameters, free_text: None },
    }
}

fn tools() -> Vec<Tool> {
    let city = json!({"properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
        "additionalProperties": false, "$defs": {"city": {"enum": ["Rome", "Bonn"]}}});
    vec![tool("weather", city), tool("now", json!({"type": "object", "additionalProperties": false}))]
}

fn lark(syntax: CallSyntax, is_parallel: bool, reasoning: Option<ReasoningFormat>, tokenizer: &Tokenizer) -> String {
    let tools = tools();
    let calls = ToolGrammar { tools: &tools, syntax, is_parallel, tokenizer }.calls();
    match constraint(&calls, reasoning, tokenizer) {
        Constraint::Lark(text) => text,
        other => panic!("{other:?}"),
    }
}

/// Whether `text` is a whole answer, by bytes.
fn accepts(lark: &str, text: &str) -> bool {
    let factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).expect("a factory");
    let mut matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(lark.to_owned())));
    assert!(!matcher.is_error(), "{:?} in {lark}", matcher.get_error());
    let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
    matcher.try_consume_tokens(&bytes).expect("a live grammar") == bytes.len() && matcher.is_accepting().expect("alive")
}

#[track_caller]
fn check(lark: &str, good: &[&str], bad: &[&str]) {
    for text in good {
        assert!(accepts(lark, text), "{text} should be of {lark}");
    }
    for text in bad {
        assert!(!accepts(lark, text), "{text} should not be of {lark}");
    }
}

#[test]
fn the_text_of_a_grammar() {
    let tools = [tool("now", json!({"properties": {}}))];
    let tokenizer = Tokenizer::byte_level();
    let text = |syntax, is_parallel| ToolGrammar { tools: &tools, syntax, is_parallel, tokenizer: &tokenizer }.calls();
    let style = r#"{"x-guidance":{"whitespace_flexible":false,"item_separator":", ","key_separator":": "}"#;
    let arguments = format!("arguments_0: %json {style},\"properties\":{{}},\"type\":\"object\"}}\n");
    assert_eq!(
        text(CallSyntax::Hermes, true),
        format!(
            "calls: item (\"\\n\" item){{0,15}}\nitem: \"<tool_call>\" \"\\n\" call \"\\n\" \"</tool_call>\"\n\
             call: call_0\ncall_0: \"{{\\\"name\\\": \\\"now\\\", \\\"arguments\\\": \" arguments_0 \"}}\"\n{arguments}"
        )
    );
    assert_eq!(
        text(CallSyntax::Mistral, false),
        format!(
            "calls: \"[TOOL_CALLS]\" \"[\" item \"]\"\nitem: call\n\
             call: call_0\ncall_0: \"{{\\\"name\\\": \\\"now\\\", \\\"arguments\\\": \" arguments_0 \"}}\"\n{arguments}"
        )
    );
}

#[test]
fn answers_are_calls_in_the_familys_form() {
    let t = Tokenizer::byte_level();
    let rome = r#"{"name": "weather", "arguments": {"city": "Rome"}}"#;
    let hermes = format!("<tool_call>\n{rome}\n</tool_call>");
    let now = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let both = format!("{hermes}\n{now}");
    check(
        &lark(CallSyntax::Hermes, true, None, &t),
        &[&hermes, now, &both],
        &["", "Hi", rome, &hermes.replace("Rome", "Oslo"), &hermes.replace("weather", "other"), &hermes[1..]],
    );
    check(&lark(CallSyntax::Hermes, false, None, &t), &[&hermes, now], &[&both]);
    let llama = rome.replace("arguments", "parameters");
    let twice = format!("{llama}; {llama}");
    check(&lark(CallSyntax::Llama3, true, None, &t), &[&llama, &twice], &[rome]);
    let mistral = format!("[TOOL_CALLS][{rome}, {rome}]");
    check(&lark(CallSyntax::Mistral, true, None, &t), &[&mistral], &[rome, "[TOOL_CALLS][]"]);
}

#[test]
fn reasoning_that_the_prompt_opened_comes_first() {
    let t = Tokenizer::byte_level();
    let reasoning = |is_open| Some(ReasoningFormat { syntax: ReasoningSyntax::Think, is_open });
    let now = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let thought = format!("Hm.\nNow?\n</think>\n\n{now}");
    check(&lark(CallSyntax::Hermes, false, reasoning(true), &t), &[&thought], &[now]);
    check(&lark(CallSyntax::Hermes, false, reasoning(false), &t), &[now], &[&thought]);
}

/// Letters, and these control tokens behind them.
fn with_controls(controls: &[&str]) -> Tokenizer {
    let mut tokens: Vec<String> = ('!'..='~').map(String::from).collect();
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    tokens.extend(controls.iter().map(|&text| text.to_owned()));
    kinds.resize(tokens.len(), TokenKind::Control);
    let scheme = Scheme::Bpe { pre: "gpt-2".to_owned(), merges: Vec::new() };
    let end_of_generation = Vec::new();
    let (add_bos, add_space_prefix) = (false, false);
    let vocab = Vocab { tokens, kinds, scheme, bos: None, eos: None, end_of_generation, add_bos, add_space_prefix };
    Tokenizer::from_vocab(vocab).expect("a vocabulary")
}

#[test]
fn markers_are_the_tokens_that_a_vocabulary_makes_of_them() {
    let tokenizer = with_controls(&["[TOOL_CALLS]", "[ARGS]"]);
    let text = lark(CallSyntax::Mistral, true, None, &tokenizer);
    assert!(text.contains("\nitem: <[94]> call\n"), "{text}");
    assert!(text.contains("\ncall_1: \"now\" <[95]> arguments_1\n"), "{text}");
}
