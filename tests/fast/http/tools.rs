//! Tools and reasoning in Chat Completions: what is refused, what the model gets to read, and what clients are told.

use serde_json::{Value, json};
use tallow::protocol::{Constraint, FinishReason};

use crate::http::common::server::TEMPLATE;
use crate::http::common::sse::{SseEvent, SseParser};
use crate::http::common::{Client, Reply, TestServer, post};

const PATH: &str = "/v1/chat/completions";
const CALL: &str = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
/// [`TEMPLATE`] of a model that thinks unless it is told not to.
const THINKING: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        <|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}";

fn weather() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    json!({"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": parameters}})
}

fn asking(more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "tools": [weather()], "max_tokens": 9});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    body
}

async fn start(template: &'static str) -> TestServer {
    TestServer::with(|s| {
        s.template = template;
        s.spec.max_model_len = 2048;
        s.spec.num_blocks = 256;
    })
    .await
}

/// A stream's bytes with the random id and the time replaced.
async fn streamed(server: &TestServer, more: &Value, pieces: &[&str], end: FinishReason) -> String {
    let mut body = asking(more);
    body["stream"] = json!(true);
    let (mut client, head) = Client::open_post(server.address, PATH, &body).await;
    assert_eq!(head.status, 200);
    let job = server.backend.job().await;
    job.start();
    pieces.iter().for_each(|piece| job.say(piece));
    job.finish(end);
    let created = (job.log.created_ms() / 1000).to_string();
    client.rest().await.replace(&job.log.id().to_string(), "ID").replace(&created, "0")
}

/// A whole answer with the random id replaced.
async fn whole(server: &TestServer, more: &Value, pieces: &[&str]) -> Value {
    let body = asking(more);
    let (reply, id) = tokio::join!(post(server.address, PATH, &body), async {
        let job = server.backend.job().await;
        job.run(pieces);
        job.log.id().to_string()
    });
    assert_eq!(reply.status, 200, "{}", reply.body);
    serde_json::from_str(&reply.body.replace(&id, "ID")).unwrap()
}

/// Choices of a stream's chunks as one message, calls by their index.
fn joined(text: &str) -> (Value, Value) {
    let (mut message, mut finish) = (json!({}), Value::Null);
    let events = SseParser::parse(text).events;
    for chunk in events.iter().filter(|e| e.data != "[DONE]").map(SseEvent::json) {
        let Some(choice) = chunk["choices"].get(0) else { continue };
        finish = choice["finish_reason"].clone();
        for (key, value) in choice["delta"].as_object().unwrap() {
            if key != "tool_calls" {
                let so_far = message[key].as_str().unwrap_or_default().to_owned();
                message[key] = json!(so_far + value.as_str().unwrap());
                continue;
            }
            let delta = &value[0];
            let index = delta["index"].as_u64().unwrap() as usize;
            if delta.get("id").is_some() {
                let calls = message[key].as_array().map_or(0, Vec::len);
                assert_eq!(index, calls, "calls begin in order");
                let mut call = delta.clone();
                call.as_object_mut().unwrap().remove("index");
                let mut calls = message[key].as_array().cloned().unwrap_or_default();
                calls.push(call);
                message[key] = json!(calls);
            } else {
                let arguments = &mut message[key][index]["function"]["arguments"];
                *arguments =
                    json!(arguments.as_str().unwrap().to_owned() + delta["function"]["arguments"].as_str().unwrap());
            }
        }
    }
    (message, finish)
}

#[tokio::test]
async fn a_stream_with_a_call_is_these_bytes() {
    let server = start(TEMPLATE).await;
    let pieces = [
        "Let me see.\n<tool",
        "_call>\n{\"name\": \"weather\", \"argu",
        "ments\": {\"city\"",
        ": \"Rome\"}}\n</tool_call>",
    ];
    let chunk = r#"data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"stub","choices":[{"index":0,"#;
    let expect = [
        r#""delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
        r#""delta":{"content":"Let me see."},"finish_reason":null}]}"#,
        r#""delta":{"tool_calls":[{"index":0,"id":"call_ID_0","type":"function","function":{"name":"weather","arguments":""}}]},"finish_reason":null}]}"#,
        r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\""}}]},"finish_reason":null}]}"#,
        r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":": \"Rome\"}"}}]},"finish_reason":null}]}"#,
        r#""delta":{},"finish_reason":"tool_calls"}]}"#,
    ];
    let expect: String = expect.iter().map(|rest| format!("{chunk}{rest}\n\n")).collect();
    let text = streamed(&server, &json!({}), &pieces, FinishReason::Stop).await;
    assert_eq!(text, expect + "data: [DONE]\n\n");
}

#[tokio::test]
async fn a_whole_answer_with_calls_is_the_stream_joined() {
    let server = start(TEMPLATE).await;
    let two = format!("{CALL}\n{CALL}\n");
    let answer = whole(&server, &json!({}), &[&two]).await;
    let choice = &answer["choices"][0];
    let call = |index: usize| {
        let function = json!({"name": "weather", "arguments": "{\"city\": \"Rome\"}"});
        json!({"id": format!("call_ID_{index}"), "type": "function", "function": function})
    };
    let calls = json!([call(0), call(1)]);
    let message = json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": calls});
    assert_eq!((&choice["message"], &choice["finish_reason"]), (&message, &json!("tool_calls")));

    let letters: Vec<&str> = two.split_inclusive(|_| true).collect();
    let (message, finish) = joined(&streamed(&server, &json!({}), &letters, FinishReason::Stop).await);
    let expect = json!({"role": "assistant", "content": "", "tool_calls": calls});
    assert_eq!((message, finish), (expect, json!("tool_calls")));
}

#[tokio::test]
async fn one_call_is_told_where_one_is_allowed_and_none_without_tools() {
    let server = start(TEMPLATE).await;
    let two = format!("{CALL}\n{CALL}");
    let answer = whole(&server, &json!({"parallel_tool_calls": false}), &[&two]).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        (message["tool_calls"].as_array().unwrap().len(), &message["content"]),
        (1, &json!(format!("\n{CALL}")))
    );
    for more in [json!({"tools": null}), json!({"tool_choice": "none"})] {
        let answer = whole(&server, &more, &[CALL]).await;
        let message = json!({"role": "assistant", "content": CALL, "refusal": null});
        assert_eq!(
            (&answer["choices"][0]["message"], &answer["choices"][0]["finish_reason"]),
            (&message, &json!("stop"))
        );
    }
}

#[tokio::test]
async fn a_call_cut_short_ends_for_its_length() {
    let server = start(TEMPLATE).await;
    let text = streamed(&server, &json!({}), &[&CALL[..50]], FinishReason::Length).await;
    let (message, finish) = joined(&text);
    assert_eq!((&message["tool_calls"][0]["function"]["name"], finish), (&json!("weather"), json!("length")));
    let text = streamed(&server, &json!({}), &["<tool_call>\n{\"na"], FinishReason::Length).await;
    let expect = json!({"role": "assistant", "content": "<tool_call>\n{\"na"});
    assert_eq!(joined(&text), (expect, json!("length")));
}

#[tokio::test]
async fn reasoning_has_a_field_of_its_own_and_is_counted() {
    let server = start(THINKING).await;
    let pieces = ["<thi", "nk>\nHm", "m.\n</think>\n", "\nYes."];
    let usage = json!({"stream_options": {"include_usage": true}, "tools": null});
    let text = streamed(&server, &usage, &pieces, FinishReason::Stop).await;
    let expect = json!({"role": "assistant", "content": "Yes.", "reasoning_content": "Hmm."});
    assert_eq!(joined(&text), (expect, json!("stop")));
    let events = SseParser::parse(&text).events;
    let first = events[1].json()["choices"][0]["delta"].clone();
    assert_eq!(first, json!({"reasoning_content": "Hm"}));
    // One token per byte.
    let num_tokens = "<think>\nHmm.\n</think>".len();
    let counted = |usage: &Value| usage["completion_tokens_details"]["reasoning_tokens"].clone();
    assert_eq!(counted(&events[events.len() - 2].json()["usage"]), json!(num_tokens));

    let answer = whole(&server, &json!({"tools": null}), &pieces).await;
    let message = json!({"role": "assistant", "content": "Yes.", "refusal": null, "reasoning_content": "Hmm."});
    assert_eq!(answer["choices"][0]["message"], message);
    assert_eq!(counted(&answer["usage"]), json!(num_tokens));
}

#[tokio::test]
async fn an_answer_that_begins_within_the_reasoning_is_told_so() {
    let server = start("{{ messages[0].content }}<think>\n{# </think> #}").await;
    let answer = whole(&server, &json!({"tools": null}), &["Hm.\n</think>\n\nYes."]).await;
    let message = json!({"role": "assistant", "content": "Yes.", "refusal": null, "reasoning_content": "Hm."});
    assert_eq!(answer["choices"][0]["message"], message);
}

#[tokio::test]
async fn logprobs_wait_for_the_text_of_their_tokens() {
    let server = start(TEMPLATE).await;
    let more = json!({"logprobs": true});
    let text = streamed(&server, &more, &["a<tool", "_x", " "], FinishReason::Stop).await;
    let events = SseParser::parse(&text).events;
    let choices = events.iter().filter(|e| e.data != "[DONE]").map(|e| e.json()["choices"][0].clone());
    let told: Vec<(String, String)> = choices
        .map(|choice| {
            let tokens = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
            let tokens: String = tokens.iter().map(|t| t["token"].as_str().unwrap().to_owned()).collect();
            (choice["delta"]["content"].as_str().unwrap_or_default().to_owned(), tokens)
        })
        .collect();
    let pair = |content: &str, tokens: &str| (content.to_owned(), tokens.to_owned());
    // What was held to the end comes with the chunk before the last.
    assert_eq!(told, [pair("", ""), pair("a", "a<tool"), pair("<tool_x", "_x"), pair(" ", " "), pair("", "")]);
    let text = streamed(&server, &more, &["a", CALL, "\n"], FinishReason::Stop).await;
    let last = SseParser::parse(&text).events.iter().rev().nth(1).unwrap().json();
    assert_eq!(last["choices"][0]["logprobs"]["content"][0]["token"], "\n", "no text, but a token");
}

#[tokio::test]
async fn the_model_reads_tools_calls_and_answers() {
    let server = start(TEMPLATE).await;
    let function = json!({"name": "weather", "arguments": "{\"city\":\"Rome\"}"});
    let broken = json!({"name": "weather", "arguments": "Rome!"});
    let messages = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "a", "type": "function", "function": function}, {"id": "b", "type": "function", "function": broken},
        ]},
        {"role": "tool", "tool_call_id": "b", "content": "what?"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "sun"}], "name": "weather"},
    ]);
    let body = asking(&json!({"messages": messages, "stream": true}));
    let (_client, head) = Client::open_post(server.address, PATH, &body).await;
    assert_eq!(head.status, 200);
    let request = server.backend.job().await.request;
    let prompt = String::from_utf8(request.prompt.iter().map(|&t| t as u8).collect()).unwrap();
    let (system, turns) = prompt.split_once("<|im_end|>\n").unwrap();
    assert!(system.starts_with("<|im_start|>system\nYou can call these functions"), "{system}");
    assert!(
        system.contains("\n{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"description\": "),
        "{system}"
    );
    let expect = format!(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{CALL}\n<tool_call>\n{{\"name\": \"weather\", \
         \"arguments\": \"Rome!\"}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nwhat?\n\
         </tool_response>\n<tool_response>\nsun\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(turns, expect);
    assert_eq!(request.constraint, None);
}

#[tokio::test]
async fn variables_of_the_template_are_the_clients_to_set() {
    let server = start(THINKING).await;
    for (kwargs, is_closed) in [(json!({}), false), (json!({"enable_thinking": false}), true)] {
        let body = asking(&json!({"tools": null, "chat_template_kwargs": kwargs, "stream": true}));
        let (_client, _) = Client::open_post(server.address, PATH, &body).await;
        let prompt = server.backend.job().await.request.prompt;
        let prompt = String::from_utf8(prompt.iter().map(|&t| t as u8).collect()).unwrap();
        assert_eq!(prompt.ends_with("<think>\n\n</think>\n\n"), is_closed);
    }
}

#[tokio::test]
async fn a_call_that_must_come_is_a_constraint() {
    let server = start(TEMPLATE).await;
    let named = json!({"type": "function", "function": {"name": "weather"}});
    for (choice, is_forced) in [(json!("auto"), false), (json!("required"), true), (named, true)] {
        let body = asking(&json!({"tool_choice": choice, "stream": true}));
        let (_client, head) = Client::open_post(server.address, PATH, &body).await;
        assert_eq!(head.status, 200);
        match server.backend.job().await.request.constraint {
            Some(Constraint::Lark(lark)) => assert!(is_forced && lark.contains("<tool_call>"), "{lark}"),
            None => assert!(!is_forced, "{choice}"),
            other => panic!("{other:?}"),
        }
    }
}

/// The fields of a request, the parameter at fault, and what the message says.
type Rule = (Value, &'static str, &'static str);

fn tool_rules() -> Vec<Rule> {
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    vec![
        (json!({"tools": 5}), "tools", "`tools` is wrong: invalid type: integer `5`"),
        (json!({"tools": [{}]}), "tools[0].function", "`tools[0].function` must be given"),
        (json!({"tools": [{"type": "custom"}]}), "tools[0].custom", "`tools[0].custom` must be given"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function", "`tools[0].function` must be given"),
        (tool(json!({})), "tools[0].function.name", "`tools[0].function.name` must be given"),
        (
            tool(json!({"name": "a b"})),
            "tools[0].function.name",
            "must have 1 to 128 of a-z, A-Z, 0-9, _, -, . and :, got \"a b\"",
        ),
        (tool(json!({"name": "x".repeat(129)})), "tools[0].function.name", "must have 1 to 128 of a-z"),
        (
            tool(json!({"name": "f", "parameters": [1]})),
            "tools[0].function.parameters",
            "must be a JSON schema, got \"[1]\"",
        ),
        (
            json!({"tools": [weather(), weather()]}),
            "tools[1].function.name",
            "must be the only tool of this name, got \"weather\" again",
        ),
        (json!({"tools": vec![weather(); 513]}), "tools", "`tools` must have at most 512 tools, got 513"),
    ]
}

fn choice_rules() -> Vec<Rule> {
    vec![
        (json!({"tool_choice": "some"}), "tool_choice", "or an object that names a function, got \"some\""),
        (json!({"tool_choice": {"type": "allowed_tools"}}), "tool_choice.mode", "must be given"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice.function.name", "must be given"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "tool_choice",
            "`tool_choice` must name one of `tools`, got \"g\"",
        ),
        (json!({"tools": [], "tool_choice": "required"}), "tool_choice", "must come with `tools`"),
        (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls", "expected a boolean"),
        (json!({"functions": [{"name": "f"}]}), "functions", "is not supported by this server"),
        (json!({"function_call": {"name": "f"}}), "function_call", "is not supported by this server"),
        (json!({"chat_template_kwargs": 1}), "chat_template_kwargs", "invalid type: integer `1`"),
        (
            json!({"chat_template_kwargs": {"messages": []}}),
            "chat_template_kwargs.messages",
            "to the server, got \"messages\"",
        ),
    ]
}

fn message_rules() -> Vec<Rule> {
    let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let said = |message: Value| json!({"messages": [message]});
    vec![
        (said(json!({"role": "user", "content": null})), "messages[0].content", "must be given"),
        (said(json!({"role": "tool", "content": "x"})), "messages[0].tool_call_id", "must be given"),
        (
            said(json!({"role": "tool", "content": "x", "tool_call_id": "a"})),
            "messages[0].tool_call_id",
            "must be the id of a call in the assistant's message before, got \"a\"",
        ),
        (
            said(json!({"role": "assistant", "tool_calls": [call]})),
            "messages[0].tool_calls",
            "must be followed by an answer to each call, got none for \"a\"",
        ),
        (
            said(json!({"role": "user", "content": "x", "tool_calls": [call]})),
            "messages[0].tool_calls",
            "must be an assistant's, got role \"user\"",
        ),
        (said(json!({"role": "assistant", "tool_calls": [{}]})), "messages[0].tool_calls[0].id", "must be given"),
        (
            said(
                json!({"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]}),
            ),
            "messages[0].tool_calls[0].function.arguments",
            "must be given",
        ),
        (
            said(json!({"role": "assistant", "tool_calls": [{"id": "a", "type": "x"}]})),
            "messages[0].tool_calls[0].function",
            "must be given",
        ),
    ]
}

#[tokio::test]
async fn every_rule_of_tools_names_parameter_and_value() {
    let server = start(TEMPLATE).await;
    for (fields, param, message) in [tool_rules(), choice_rules(), message_rules()].concat() {
        let Reply { status, body, .. } = post(server.address, PATH, &asking(&fields)).await;
        assert_eq!(status, 400, "{fields}: {body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        let error = body["error"].as_object().unwrap();
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert_eq!(
            (&error["type"], &error["param"]),
            (&json!("invalid_request_error"), &json!(param)),
            "{fields}: {body}"
        );
        let got = error["message"].as_str().unwrap();
        assert!(got.contains(message), "{fields}: {got:?} should contain {message:?}");
    }
    assert!(server.backend.has_no_job().await);
}
