//! Anthropic Messages: exact bytes, streaming and whole answers that agree, and errors in Anthropic's shape.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tallow::api::ApiKey;
use tallow::error::{Error, ErrorKind};
use tallow::protocol::{FinishReason, OnDisconnect, Owner};

use crate::http::common::sse::SseParser;
use crate::http::common::{Client, Reply, TestServer, get, post, request};

const PATH: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// The prompt of [`asking`] as the template writes it, a byte a token.
const PROMPT: &str = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";

/// A request with `more` instead of, or beside, its own fields.
fn asking(more: &Value) -> Value {
    let mut body = json!({"model": "stub", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn open(server: &TestServer) -> (Client, crate::http::common::Job) {
    let (client, head) = Client::open_post(server.address, PATH, &asking(&json!({"stream": true}))).await;
    assert_eq!(head.status, 200);
    (client, server.backend.job().await)
}

/// The error object, after checking that the envelope has exactly its keys and the id of its header.
#[track_caller]
fn error(reply: &Reply, status: u16) -> Value {
    assert_eq!(reply.status, status, "{}", reply.body);
    assert_eq!(reply.headers["content-type"], "application/json");
    let body = reply.json();
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&body), ["type", "error", "request_id"], "{body}");
    assert_eq!(keys(&body["error"]), ["type", "message"]);
    assert_eq!(body["type"], "error");
    assert_eq!(body["request_id"], reply.headers["request-id"]);
    assert_eq!(reply.headers["request-id"], reply.headers["x-request-id"]);
    body["error"].clone()
}

#[tokio::test]
async fn a_stream_is_these_bytes() {
    let server = TestServer::start().await;
    let (mut client, job) = open(&server).await;
    job.run(&["Hel", "lo\n\"é\""]);
    let text = client.rest().await.replace(&job.log.id().to_string(), "ID");
    let num_uncached = PROMPT.len() - 2;
    let usage = |output: usize| {
        format!(
            r#"{{"input_tokens":{num_uncached},"cache_creation_input_tokens":0,"cache_read_input_tokens":2,"output_tokens":{output}}}"#
        )
    };
    let message = format!(
        r#"{{"id":"msg_ID","type":"message","role":"assistant","model":"stub","content":[],"stop_reason":null,"stop_sequence":null,"usage":{}}}"#,
        usage(0)
    );
    let delta = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"#;
    let end = r#"{"stop_reason":"end_turn","stop_sequence":null}"#;
    let expect = [
        ("message_start", format!(r#"{{"type":"message_start","message":{message}}}"#)),
        ("ping", r#"{"type":"ping"}"#.to_owned()),
        (
            "content_block_start",
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#.to_owned(),
        ),
        ("content_block_delta", format!(r#"{delta}"Hel"}}}}"#)),
        ("content_block_delta", format!(r#"{delta}"lo\n\"é\""}}}}"#)),
        ("content_block_stop", r#"{"type":"content_block_stop","index":0}"#.to_owned()),
        ("message_delta", format!(r#"{{"type":"message_delta","delta":{end},"usage":{}}}"#, usage(3))),
        ("message_stop", r#"{"type":"message_stop"}"#.to_owned()),
    ];
    let expect: String = expect.iter().map(|(name, data)| format!("event: {name}\ndata: {data}\n\n")).collect();
    assert_eq!(text, expect);
}

#[tokio::test]
async fn a_whole_answer_is_these_bytes() {
    let server = TestServer::start().await;
    let body = asking(&json!({}));
    let (reply, job) = tokio::join!(post(server.address, PATH, &body), async {
        let job = server.backend.job().await;
        job.run(&["Hel", "lo"]);
        job
    });
    let expect = format!(
        r#"{{"id":"msg_ID","type":"message","role":"assistant","model":"stub","content":[{{"type":"text","text":"Hello"}}],"stop_reason":"end_turn","stop_sequence":null,"usage":{{"input_tokens":{},"cache_creation_input_tokens":0,"cache_read_input_tokens":2,"output_tokens":3}}}}"#,
        PROMPT.len() - 2
    );
    assert_eq!((reply.status, reply.body.replace(&job.log.id().to_string(), "ID")), (200, expect));
    assert_eq!(reply.headers["x-stream-id"], job.log.id().to_string());
    assert_eq!(reply.headers["request-id"], reply.headers["x-request-id"]);
}

#[tokio::test]
async fn every_end_has_its_reason_streamed_and_whole() {
    let server = TestServer::start().await;
    for (stop, reason, expect) in [
        (None, FinishReason::Stop, json!({"stop_reason": "end_turn", "stop_sequence": null})),
        (None, FinishReason::Length, json!({"stop_reason": "max_tokens", "stop_sequence": null})),
        (Some("END"), FinishReason::Stop, json!({"stop_reason": "stop_sequence", "stop_sequence": "END"})),
    ] {
        let end = |job: &crate::http::common::Job| {
            job.start();
            job.say("x");
            stop.map_or_else(|| job.finish(reason), |stop| job.stop_at(stop));
        };
        let (mut client, job) = open(&server).await;
        end(&job);
        let events = SseParser::parse(&client.rest().await).events;
        let delta = events.iter().find(|e| e.name == "message_delta").expect("an end").json();
        assert_eq!(delta["delta"], expect);
        let body = asking(&json!({}));
        let (reply, ()) = tokio::join!(post(server.address, PATH, &body), async {
            end(&server.backend.job().await);
        });
        let whole = reply.json();
        let got = json!({"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]});
        assert_eq!(got, expect);
    }
}

#[tokio::test]
async fn an_answer_without_text_has_one_empty_block() {
    let server = TestServer::start().await;
    let (mut client, job) = open(&server).await;
    job.run(&[]);
    let names: Vec<String> = SseParser::parse(&client.rest().await).events.into_iter().map(|e| e.name).collect();
    let blocks = ["content_block_start", "content_block_stop"];
    assert_eq!(names, [&["message_start", "ping"][..], &blocks, &["message_delta", "message_stop"]].concat());
    let body = asking(&json!({}));
    let (reply, ()) = tokio::join!(post(server.address, PATH, &body), async {
        server.backend.job().await.run(&[]);
    });
    assert_eq!(reply.json()["content"], json!([{"type": "text", "text": ""}]));
}

#[tokio::test]
async fn a_failure_in_the_middle_is_an_error_event_and_the_end() {
    let server = TestServer::start().await;
    let (mut client, job) = open(&server).await;
    job.start();
    job.say("so far");
    job.fail(ErrorKind::Internal, "the worker failed");
    let parsed = SseParser::parse(&client.rest().await);
    let last = parsed.events.last().unwrap();
    let expect = json!({"type": "error", "error": {"type": "api_error", "message": "the worker failed"}});
    assert_eq!((last.name.as_str(), last.json()), ("error", expect));
}

#[tokio::test]
async fn a_failure_before_the_first_token_has_a_status_also_when_streaming() {
    let server = TestServer::with(|s| s.api.head_wait = Duration::from_secs(600)).await;
    let mut client = Client::connect(server.address).await;
    let text = request("POST", PATH, &[], &asking(&json!({"stream": true})).to_string());
    let (reply, ()) = tokio::join!(client.exchange(&text), async {
        let job = server.backend.job().await;
        job.start();
        job.fail(ErrorKind::Unavailable, "shutting down");
    });
    assert_eq!(error(&reply, 529), json!({"type": "overloaded_error", "message": "shutting down"}));
    assert_eq!(reply.headers["retry-after"], "1");
}

#[tokio::test]
async fn heartbeats_are_comments_while_it_waits_for_a_worker() {
    let server = TestServer::with(|s| s.api.heartbeat = Duration::from_millis(2)).await;
    let (mut client, job) = open(&server).await;
    let waiting = client.until(":\n:\n").await;
    assert!(waiting.lines().all(|line| line == ":"), "{waiting:?}");
    job.run(&["x"]);
    let parsed = SseParser::parse(&(waiting + &client.rest().await));
    assert_eq!(parsed.events.first().unwrap().name, "message_start");
}

#[tokio::test]
async fn parameters_reach_the_backend() {
    let server = TestServer::start().await;
    let cached = json!({"type": "ephemeral"});
    let body = asking(&json!({
        "stream": true, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop_sequences": ["a", "b"],
        "metadata": {"user_id": "u"}, "service_tier": "auto", "thinking": {"type": "disabled"},
        "system": [{"type": "text", "text": "be ", "cache_control": cached}, {"type": "text", "text": "brief"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": cached}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
            {"role": "user", "content": "d"},
        ],
    }));
    let headers = [("anthropic-version", "2023-06-01"), ("anthropic-beta", "x"), ("x-stream-on-disconnect", "detach")];
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", PATH, &headers, &body.to_string())).await;
    assert_eq!(client.head().await.status, 200);
    let request = server.backend.job().await.request;
    let s = &request.sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k, request.max_tokens), (0.5, 0.9, 7, 9));
    assert_eq!(request.stop.strings, ["a", "b"]);
    assert_eq!(request.on_disconnect, OnDisconnect::Detach);
    let text: Vec<u8> = request.prompt.iter().map(|&t| t as u8).collect();
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let turns = [turn("system", "be brief"), turn("user", "ab"), turn("assistant", "c"), turn("user", "d")];
    assert_eq!(String::from_utf8(text).unwrap(), turns.concat() + "<|im_start|>assistant\n");
}

#[tokio::test]
async fn tools_used_before_become_messages_of_their_own() {
    let server = TestServer::with(|s| s.spec.max_model_len = 2048).await;
    let call = json!({"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}});
    let result = json!({"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "no"}], "is_error": true});
    let body = asking(&json!({"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, call]},
        {"role": "user", "content": [result, {"type": "text", "text": "so?"}]},
    ]}));
    let (reply, request) = tokio::join!(post(server.address, PATH, &body), async {
        let job = server.backend.job().await;
        job.run(&["ok"]);
        job.request
    });
    assert_eq!(reply.status, 200, "{}", reply.body);
    let text: Vec<u8> = request.prompt.iter().map(|&t| t as u8).collect();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>"), "{text}");
    assert!(
        text.contains("<tool_response>\nError: no\n</tool_response><|im_end|>\n<|im_start|>user\nso?<|im_end|>"),
        "{text}"
    );
}

#[tokio::test]
async fn tokens_are_counted_as_a_generation_would_have_them() {
    let server = TestServer::start().await;
    let body = json!({"model": "stub", "messages": [{"role": "user", "content": "hi"}]});
    let reply = post(server.address, COUNT, &body).await;
    assert_eq!((reply.status, reply.body), (200, format!("{{\"input_tokens\":{}}}", PROMPT.len())));
    // Longer than the context is no error here, and nothing was started.
    let body = json!({"messages": [{"role": "user", "content": "x".repeat(5000)}]});
    let reply = post(server.address, COUNT, &body).await;
    assert_eq!(reply.json(), json!({"input_tokens": PROMPT.len() - 2 + 5000}));
    assert!(server.backend.has_no_job().await);
}

/// Fields of a request, and what the message says.
type Rule = (Value, &'static str);

fn field_rules() -> Vec<Rule> {
    vec![
        (json!({"max_tokens": null}), "`max_tokens` must be given"),
        (json!({"max_tokens": 0}), "`max_tokens` must be at least 1, got 0"),
        (json!({"max_tokens": "x"}), "`max_tokens` is wrong: invalid type: string \"x\""),
        (json!({"max_tokens": 1000}), "prompt and output must fit the context of 256 tokens"),
        (json!({"temperature": 1.5}), "`temperature` must be 0 to 1, got 1.5"),
        (json!({"top_p": 0}), "`top_p` must be > 0 and <= 1, got 0"),
        (json!({"top_k": -1}), "`top_k` must be at least 0, got -1"),
        (json!({"stop_sequences": [""]}), "`stop_sequences[0]` must have 1 to 1024 bytes, got 0"),
        (json!({"stop_sequences": vec!["a"; 65]}), "`stop_sequences` must have at most 64 strings, got 65"),
        (json!({"stream": 1}), "`stream` is wrong"),
        (json!({"thinking": {"type": "enabled"}}), "`thinking.type` \"enabled\" is not supported by this server"),
        (json!({"thinking": {"type": "x"}}), "`thinking.type` must be one of disabled, adaptive, enabled, got \"x\""),
        (json!({"container": "c"}), "`container` is not supported by this server"),
        (json!({"mcp_servers": [{}]}), "`mcp_servers` is not supported by this server"),
        (json!({"context_management": {"edits": []}}), "`context_management` is not supported by this server"),
        (json!({"output_config": {"effort": "low"}}), "`output_config` is not supported by this server"),
        (json!({"output_format": {"type": "json_schema"}}), "`output_format` is not supported by this server"),
    ]
}

fn message_rules() -> Vec<Rule> {
    let user = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    let assistant = |block: Value| json!({"messages": [{"role": "assistant", "content": [block]}, {"role": "user", "content": "x"}]});
    vec![
        (json!({"messages": null}), "`messages` must be given"),
        (json!({"messages": []}), "`messages` must have at least one message, got none"),
        (json!({"messages": [{"content": "x"}]}), "`messages[0].role` must be given"),
        (json!({"messages": [{"role": "user"}]}), "`messages[0].content` must be given"),
        (
            json!({"messages": [{"role": "system", "content": "x"}]}),
            "`messages[0].role` must be one of user, assistant, got \"system\"",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]}),
            "`messages[1].role` must be \"user\" in the last message",
        ),
        (json!({"messages": [{"role": "user", "content": 5}]}), "expected a string or a list of content blocks"),
        (
            user(json!({"type": "image", "source": {}})),
            "`messages[0].content[0].type` must be one of text, tool_result, got \"image\"",
        ),
        (user(json!({"type": "document"})), "got \"document\""),
        (user(json!({"text": "x"})), "`messages[0].content[0].type` must be one of text, tool_result, got nothing"),
        (user(json!({"type": "text"})), "`messages[0].content[0].text` must be given"),
        (user(json!({"type": "tool_result"})), "`messages[0].content[0].tool_use_id` must be given"),
        (
            user(json!({"type": "tool_result", "tool_use_id": "t"})),
            "`messages[0].content[0].tool_use_id` must be the id of a `tool_use` before it, got \"t\"",
        ),
        (
            assistant(json!({"type": "redacted_thinking"})),
            "`messages[0].content[0].type` must be one of text, thinking, tool_use, got \"redacted_thinking\"",
        ),
        (assistant(json!({"type": "thinking"})), "`messages[0].content[0].thinking` must be given"),
        (assistant(json!({"type": "tool_use"})), "`messages[0].content[0].id` must be given"),
        (assistant(json!({"type": "tool_use", "id": "t"})), "`messages[0].content[0].name` must be given"),
        (
            assistant(json!({"type": "tool_use", "id": "t", "name": "f"})),
            "`messages[0].content[0].input` must be given",
        ),
        (
            assistant(json!({"type": "tool_use", "id": "t", "name": "f", "input": 1})),
            "`messages[0].content[0].input` must be an object, got 1",
        ),
        (json!({"system": [{"type": "image"}]}), "`system[0].type` must be \"text\", got \"image\""),
        (json!({"system": 1}), "`system` is wrong"),
    ]
}

fn tool_rules() -> Vec<Rule> {
    let tool = json!([{"name": "f", "input_schema": {}}]);
    vec![
        (json!({"tools": [{"input_schema": {}}]}), "`tools[0].name` must be given"),
        (json!({"tools": [{"name": "f"}]}), "`tools[0].input_schema` must be given"),
        (json!({"tools": [{"name": "f", "input_schema": 1}]}), "`tools[0].input_schema` must be an object, got 1"),
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            "`tools[0].type` must be \"custom\", got \"web_search_20250305\"",
        ),
        (
            json!({"tools": tool, "tool_choice": {"type": "x"}}),
            "`tool_choice.type` must be one of auto, any, tool, none, got \"x\"",
        ),
        (json!({"tools": tool, "tool_choice": {"type": "tool"}}), "`tool_choice.name` must be given"),
        (
            json!({"tools": tool, "tool_choice": {"type": "tool", "name": "g"}}),
            "`tool_choice.name` must be the name of one of `tools`, got \"g\"",
        ),
        (json!({"tool_choice": {"type": "any"}}), "`tool_choice.type` must come with `tools`, got \"any\""),
    ]
}

#[tokio::test]
async fn every_rule_names_path_and_value() {
    let server = TestServer::start().await;
    for (fields, expect) in [field_rules(), message_rules(), tool_rules()].concat() {
        for stream in [false, true] {
            let mut fields = fields.clone();
            if fields.get("stream").is_none() {
                fields["stream"] = stream.into();
            }
            let error = error(&post(server.address, PATH, &asking(&fields)).await, 400);
            assert_eq!(error["type"], "invalid_request_error");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(expect), "{fields}: {message:?} lacks {expect:?}");
        }
    }
    assert!(server.backend.has_no_job().await);
}

#[tokio::test]
async fn every_kind_of_failure_has_its_type() {
    let server = TestServer::with(|s| s.api.body_bytes_max = 2000).await;
    let wrong_model = post(server.address, PATH, &asking(&json!({"model": "other"}))).await;
    assert_eq!(error(&wrong_model, 404)["type"], "not_found_error");
    let large = post(server.address, PATH, &asking(&json!({"system": "x".repeat(3000)}))).await;
    assert_eq!(error(&large, 413)["type"], "request_too_large");
    let unknown = post(server.address, "/v1/messages/batches", &json!({})).await;
    assert_eq!(error(&unknown, 404)["type"], "not_found_error");
    let method = get(server.address, PATH, &[]).await;
    assert_eq!(error(&method, 405)["type"], "invalid_request_error");
    let mut client = Client::connect(server.address).await;
    let host = client.exchange("GET /v1/messages HTTP/1.1\r\nhost: evil.example\r\n\r\n").await;
    assert_eq!(error(&host, 421)["type"], "invalid_request_error");
    server.backend.panic_next();
    let bug = post(server.address, PATH, &asking(&json!({}))).await;
    assert_eq!(error(&bug, 500)["type"], "api_error");
    for (refusal, status, kind) in [
        (Error::overloaded("full", 2500), 429, "rate_limit_error"),
        (Error::new(ErrorKind::Unavailable, "full"), 529, "overloaded_error"),
    ] {
        server.backend.refuse_next(refusal);
        let reply = post(server.address, PATH, &asking(&json!({}))).await;
        assert_eq!(error(&reply, status), json!({"type": kind, "message": "full"}));
        assert!(reply.headers.contains_key("retry-after-ms"));
    }
}

#[tokio::test]
async fn a_wrong_key_is_an_authentication_error() {
    let owner = Arc::new(Owner::anonymous());
    let server = TestServer::with(|s| s.api.keys = vec![ApiKey::new("sk-one", owner)]).await;
    let refused = post(server.address, PATH, &asking(&json!({}))).await;
    assert_eq!(error(&refused, 401)["type"], "authentication_error");
    let body = json!({"messages": [{"role": "user", "content": "hi"}]}).to_string();
    let text = request("POST", COUNT, &[("x-api-key", "sk-one")], &body);
    assert_eq!(Client::connect(server.address).await.exchange(&text).await.status, 200);
}

#[tokio::test]
async fn errors_elsewhere_keep_their_shape() {
    let server = TestServer::start().await;
    for path in ["/v1/messagesx", "/v1/nothing", "/v1/models/other"] {
        assert!(get(server.address, path, &[]).await.json()["error"].get("code").is_some(), "{path}");
    }
    let version = [("anthropic-version", "2023-06-01")];
    assert_eq!(error(&get(server.address, "/v1/models/other", &version).await, 404)["type"], "not_found_error");
}
