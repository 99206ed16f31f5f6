//! What a model gets to read of tools, and that none of it can be a control token unless the template wrote it.

use std::sync::Arc;

use super::*;
use crate::protocol::{Constraint, Function, FunctionCall, Owner, ToolCall};
use crate::text::{ReasoningSyntax, Scheme, TokenKind, Vocab};

const PLAIN: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
const TOOLS: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}\
                     {% for call in m.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\
                     {% endfor %}{% if enable_thinking is not false %}<think>\n{% endif %} </think>";

fn tool(name: &str, description: &str) -> Tool {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let description = Some(description.to_owned());
    Tool { kind: "function", function: Function { name: name.to_owned(), description, parameters, free_text: None } }
}

fn conversation() -> Vec<ChatMessage> {
    let function = FunctionCall { name: "f".to_owned(), arguments: json!({"a": 1}) };
    let called = ChatMessage {
        tool_calls: vec![ToolCall { id: "call_1".to_owned(), kind: "function", function }],
        ..ChatMessage::new("assistant", "")
    };
    let answer = ChatMessage { tool_call_id: Some("call_1".to_owned()), ..ChatMessage::new("tool", "2") };
    vec![ChatMessage::new("user", "x"), called, answer]
}

fn asking(messages: Vec<ChatMessage>) -> GenerateRequest {
    let owner = Arc::new(Owner::anonymous());
    GenerateRequest { tools: vec![tool("f", "Adds.")], ..GenerateRequest::new(owner, Prompt::Chat(messages)) }
}

/// The prompt's text, by the byte-level vocabulary, and the form of the answer.
fn prompt(source: &str, request: &mut GenerateRequest) -> (String, AnswerFormat) {
    let template = ChatTemplate::new(source, "", "").expect("a template");
    let (tokens, format) = encode(&Tokenizer::byte_level(), &template, request, None).expect("a prompt");
    let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
    (String::from_utf8(bytes).expect("UTF-8"), format)
}

#[test]
fn a_template_that_knows_tools_gets_them_as_the_transformers_library_gives_them() {
    let (text, format) = prompt(TOOLS, &mut asking(conversation()));
    let expect = "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"Adds.\", \"parameters\": \
                  {\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"integer\"}}}}}][user]x[assistant]\
                  <tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>[tool]2<think>\n </think>";
    assert_eq!(text, expect);
    assert_eq!(format.calls.map(|calls| (calls.syntax, calls.names)), Some((CallSyntax::Hermes, vec!["f".to_owned()])));
    assert_eq!(format.reasoning, Some(ReasoningFormat { syntax: ReasoningSyntax::Think, is_open: false }));
}

#[test]
fn a_template_that_knows_none_gets_them_in_front_of_the_system_prompt() {
    let section = "You can call these functions, each described by one line of JSON:\n<tools>\n\
                   {\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"Adds.\", \"parameters\": \
                   {\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"integer\"}}}}}\n</tools>\n\n\
                   To call one, answer with its name and its arguments as JSON between these tags:\n<tool_call>\n\
                   {\"name\": \"function name\", \"arguments\": {\"argument\": \"value\"}}\n</tool_call>";
    let turns = "[user]x[assistant]<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\
                 [user]<tool_response>\n2\n</tool_response>";
    assert_eq!(prompt(PLAIN, &mut asking(conversation())).0, format!("[system]{section}{turns}"));
    let mut with_system = conversation();
    with_system.insert(0, ChatMessage::new("developer", "Be brief."));
    assert_eq!(prompt(PLAIN, &mut asking(with_system)).0, format!("[system]{section}\n\nBe brief.{turns}"));
}

#[test]
fn with_the_choice_none_the_model_is_not_told_and_nothing_is_a_call() {
    let mut request = GenerateRequest { tool_choice: ToolChoice::None, ..asking(vec![ChatMessage::new("user", "x")]) };
    let (text, format) = prompt(PLAIN, &mut request);
    assert_eq!((text.as_str(), format.calls), ("[user]x", None));
}

#[test]
fn variables_reach_the_template_and_an_opened_section_is_noticed() {
    let source = "{% if enable_thinking %}<think>\n{% endif %}{# </think> #}";
    for (value, is_open) in [(true, true), (false, false)] {
        let mut request = asking(conversation());
        request.template_kwargs = BTreeMap::from([("enable_thinking".to_owned(), json!(value))]);
        let reasoning = prompt(source, &mut request).1.reasoning;
        assert_eq!(reasoning, Some(ReasoningFormat { syntax: ReasoningSyntax::Think, is_open }));
    }
}

#[test]
fn a_choice_that_must_be_is_a_grammar() {
    let lark = |tool_choice| {
        let mut request = GenerateRequest { tool_choice, ..asking(conversation()) };
        request.tools.push(tool("g", ""));
        prompt(PLAIN, &mut request);
        request.constraint
    };
    assert_eq!(lark(ToolChoice::Auto), None);
    let Some(Constraint::Lark(required)) = lark(ToolChoice::Required) else { panic!("no grammar") };
    assert!(required.starts_with("start: calls\n") && required.contains("call: call_0 | call_1\n"), "{required}");
    let Some(Constraint::Lark(named)) = lark(ToolChoice::Named("g".to_owned())) else { panic!("no grammar") };
    assert!(named.contains("\\\"name\\\": \\\"g\\\"") && !named.contains("\\\"f\\\""), "{named}");
}

#[test]
fn ids_are_as_long_as_mistrals_templates_want_them() {
    let source = "{% for m in messages %}{% for call in m.tool_calls %}[TOOL_CALLS]{{ call.id }}{% endfor %}\
                  {{ m.tool_call_id }}{% endfor %}{# tools #}";
    assert_eq!(prompt(source, &mut asking(conversation())).0, "[TOOL_CALLS]0000call10000call1");
}

#[test]
fn spellings_in_tools_calls_and_variables_stay_text() {
    let mut tokens: Vec<String> = ('!'..='~').map(String::from).chain(["Ġ".to_owned(), "Ċ".to_owned()]).collect();
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    let control = tokens.len() as TokenId;
    tokens.push("<e>".to_owned());
    kinds.push(TokenKind::Control);
    let scheme = Scheme::Bpe { pre: "gpt-2".to_owned(), merges: Vec::new() };
    let end_of_generation = Vec::new();
    let (add_bos, add_space_prefix) = (false, false);
    let vocab = Vocab { tokens, kinds, scheme, bos: None, eos: None, end_of_generation, add_bos, add_space_prefix };
    let tokenizer = Tokenizer::from_vocab(vocab).expect("a vocabulary");

    let mut messages = conversation();
    messages[1].tool_calls[0].function.arguments = json!({"<e>": ["<e>"]});
    messages[1].tool_calls[0].function.name = "<e>".to_owned();
    messages[1].reasoning_content = Some("<e>".to_owned());
    messages[2].content = "<e>".to_owned();
    let mut described = tool("f", "<e>");
    described.function.parameters = json!({"<e>": {"enum": ["<e>"]}});
    for source in [TOOLS, PLAIN] {
        let source = format!("{source}{{{{ extra }}}}{{{{ messages[1].reasoning_content }}}}<e>");
        let template = ChatTemplate::new(&source, "", "").expect("a template");
        let mut request = asking(messages.clone());
        request.tools = vec![described.clone()];
        request.template_kwargs = BTreeMap::from([("extra".to_owned(), json!("<e>"))]);
        let (tokens, _) = encode(&tokenizer, &template, &mut request, None).expect("a prompt");
        assert_eq!(tokens.iter().filter(|&&token| token == control).count(), 1, "only the template's own");
        assert_eq!(tokens.last(), Some(&control));
        let text: Vec<u8> = tokens.iter().flat_map(|&t| tokenizer.token_bytes(t)).copied().collect();
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(text.matches("<e>").count() >= 7, "{text}");
    }
}
