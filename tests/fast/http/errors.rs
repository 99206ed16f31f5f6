//! Every refusal: its status, and a body of the one shape.

use serde_json::{Value, json};
use tallow::error::Error;
use tallow::service::Readiness;

use crate::http::common::{Client, Reply, TestServer, get, post, request};

const CHAT: &str = "/v1/chat/completions";

/// The error object, after checking that it has exactly the four keys.
#[track_caller]
fn error(reply: &Reply, status: u16) -> Value {
    assert_eq!(reply.status, status, "{}", reply.body);
    assert_eq!(reply.headers["content-type"], "application/json");
    let body = reply.json();
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&body), ["error"]);
    assert_eq!(keys(&body["error"]), ["message", "type", "param", "code"]);
    body["error"].clone()
}

/// Fields of a chat request, the parameter at fault, and what the message says.
type Rule = (Value, &'static str, &'static str);

fn sampling_rules() -> Vec<Rule> {
    vec![
        (json!({"temperature": 2.5}), "temperature", "`temperature` must be 0 to 2, got 2.5"),
        (json!({"temperature": -0.1}), "temperature", "`temperature` must be 0 to 2, got -0.1"),
        (json!({"top_p": 1.7}), "top_p", "`top_p` must be > 0 and <= 1, got 1.7"),
        (json!({"top_p": 0}), "top_p", "`top_p` must be > 0 and <= 1, got 0"),
        (json!({"typical_p": 0}), "typical_p", "`typical_p` must be > 0 and <= 1, got 0"),
        (json!({"min_p": -1}), "min_p", "`min_p` must be 0 to 1, got -1"),
        (json!({"top_k": -2}), "top_k", "`top_k` must be at least 0, got -2"),
        (json!({"repetition_penalty": 0}), "repetition_penalty", "`repetition_penalty` must be 0.01 to 100, got 0"),
        (json!({"presence_penalty": 2.5}), "presence_penalty", "`presence_penalty` must be -2 to 2, got 2.5"),
        (json!({"frequency_penalty": -3}), "frequency_penalty", "`frequency_penalty` must be -2 to 2, got -3"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5", "`logit_bias.5` must be -100 to 100, got 101"),
        (json!({"logit_bias": {"999": 1}}), "logit_bias.999", "`logit_bias.999` must be a token id below 257, got 999"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias", "the keys of `logit_bias` must be token ids, got \"x\""),
        (json!({"top_logprobs": 3}), "top_logprobs", "`top_logprobs` must come with `logprobs: true`, got 3 without"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "`top_logprobs` must be at most 20, got 21"),
    ]
}

fn length_rules() -> Vec<Rule> {
    vec![
        (json!({"max_tokens": 0}), "max_tokens", "`max_tokens` must be at least 1, got 0"),
        (
            json!({"max_completion_tokens": -4}),
            "max_completion_tokens",
            "`max_completion_tokens` must be at least 1, got -4",
        ),
        (json!({"max_tokens": 3, "min_tokens": 4}), "min_tokens", "`min_tokens` must be at most max_tokens (3), got 4"),
        (json!({"stop": vec!["a"; 65]}), "stop", "`stop` must have at most 64 strings, got 65"),
        (json!({"stop": ["a", ""]}), "stop[1]", "`stop[1]` must have 1 to 1024 bytes, got 0"),
        (
            json!({"stop_token_ids": [1, 257]}),
            "stop_token_ids[1]",
            "`stop_token_ids[1]` must be a token id below 257, got 257",
        ),
        (json!({"n": 129}), "n", "`n` must be 1 to 128, got 129"),
        (json!({"n": 0}), "n", "`n` must be at least 1, got 0"),
        (json!({"seed": 1e30}), "seed", "`seed` must be a 64-bit integer, got 1e+30"),
        (json!({"stream_options": {}}), "stream_options", "`stream_options` must come with `stream: true`"),
    ]
}

fn message_rules() -> Vec<Rule> {
    vec![
        (json!({"messages": []}), "messages", "`messages` must have at least one message, got none"),
        (json!({"messages": null}), "messages", "`messages` must be given"),
        (
            json!({"messages": [{"role": "robot", "content": ""}]}),
            "messages[0].role",
            "must be one of system, user, assistant, tool, developer, got \"robot\"",
        ),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role", "`messages[0].role` must be given"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "`messages[0].content` must be given"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0].type",
            "must be \"text\", got \"image_url\"",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
            "must be given",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]}),
            "messages[0].function_call",
            "is not supported by this server; `tool_calls` is",
        ),
    ]
}

fn type_rules() -> Vec<Rule> {
    vec![
        // Wrong types, by their path.
        (json!({"temperature": "hot"}), "temperature", "`temperature` is wrong: invalid type: string \"hot\""),
        (json!({"messages": "hi"}), "messages", "`messages` is wrong: invalid type: string \"hi\""),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            "messages[0].content",
            "expected a string or a list of content parts",
        ),
        (json!({"messages": [{"role": 5, "content": ""}]}), "messages[0].role", "expected a string"),
        (json!({"stop": [1]}), "stop[0]", "expected a string"),
        (json!({"stop": 1}), "stop", "expected a string or a list of strings"),
        (json!({"logit_bias": {"5": "x"}}), "logit_bias.5", "expected f32"),
        (json!({"max_tokens": 1.5}), "max_tokens", "expected i64"),
        (json!({"stream": "yes"}), "stream", "expected a boolean"),
    ]
}

#[tokio::test]
async fn every_rule_names_parameter_and_value() {
    let server = TestServer::start().await;
    let rules = [sampling_rules(), length_rules(), message_rules(), type_rules()];
    for (fields, param, message) in rules.concat() {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let error = error(&post(server.address, CHAT, &body).await, 400);
        assert_eq!(error["type"], "invalid_request_error", "{fields}");
        assert_eq!(error["param"], param, "{fields}: {error}");
        let got = error["message"].as_str().unwrap();
        assert!(got.contains(message), "{fields}: {got:?} should contain {message:?}");
    }
    assert!(server.backend.has_no_job().await);
    assert!(server.service.table().is_empty());
}

#[tokio::test]
async fn fields_that_would_change_the_output_are_refused_by_name() {
    let server = TestServer::start().await;
    for (field, value) in [
        ("functions", json!([{}])),
        ("function_call", json!("auto")),
        ("guided_whitespace_pattern", json!(" ?")),
        ("audio", json!({"voice": "x"})),
        ("modalities", json!(["text", "audio"])),
        ("echo", json!(true)),
        ("best_of", json!(2)),
        ("add_generation_prompt", json!(false)),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        body[field] = value;
        let error = error(&post(server.address, CHAT, &body).await, 400);
        assert_eq!((error["param"].as_str(), error["code"].as_str()), (Some(field), Some("unsupported_parameter")));
    }
}

#[tokio::test]
async fn native_requests_have_rules_of_their_own() {
    let server = TestServer::start().await;
    for (body, param) in [
        // Its text is the model's own, calls and all.
        (json!({"prompt": "a", "tools": [{"type": "function"}]}), "tools"),
        (json!({"prompt": "a", "tool_choice": "auto"}), "tool_choice"),
        (json!({"prompt": "a", "chat_template_kwargs": {"enable_thinking": false}}), "chat_template_kwargs"),
        (json!({}), "prompt"),
        (json!({"prompt": "a", "tokens": [1]}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"tokens": []}), "tokens"),
        (json!({"tokens": [1, 300]}), "tokens[1]"),
        (json!({"tokens": [-1]}), "tokens[0]"),
        (json!({"prompt": "a", "on_disconnect": "never"}), "on_disconnect"),
        (json!({"prompt": "a", "on_disconnect": {"linger": -1}}), "on_disconnect"),
        (json!({"prompt": "a", "on_disconnect": {"linger": 1, "x": 2}}), "on_disconnect"),
        (json!({"prompt": "a", "on_disconnect": {"linger": 1e9}}), "on_disconnect"),
    ] {
        let error = error(&post(server.address, "/v1/streams", &body).await, 400);
        assert_eq!(error["param"], param, "{body}: {error}");
    }
    let headers = [("x-stream-on-disconnect", "sometimes"), ("content-type", "application/json")];
    let reply = Client::connect(server.address).await.exchange(&request("POST", "/v1/streams", &headers, "")).await;
    assert_eq!(error(&reply, 400)["param"], "x-stream-on-disconnect");
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_told_the_numbers() {
    let server = TestServer::start().await;
    let long = post(server.address, "/v1/streams", &json!({"prompt": "x".repeat(256)})).await;
    let long = error(&long, 400);
    assert_eq!((long["code"].as_str(), long["param"].as_str()), (Some("context_length_exceeded"), Some("prompt")));
    let numbers = "the context of 256 tokens, got 256 prompt tokens";
    assert!(long["message"].as_str().unwrap().contains(numbers), "{long}");

    let both = post(server.address, "/v1/streams", &json!({"prompt": "x".repeat(200), "max_tokens": 57})).await;
    let both = error(&both, 400);
    assert_eq!(both["code"], "context_length_exceeded");
    assert!(both["message"].as_str().unwrap().contains("got 257 (200 of prompt + 57 of `max_tokens`)"), "{both}");
}

#[tokio::test]
async fn kv_memory_smaller_than_the_context_is_the_limit() {
    let server = TestServer::with(|s| s.spec.num_blocks = 2).await;
    let reply = post(server.address, "/v1/streams", &json!({"prompt": "x".repeat(64)})).await;
    assert_eq!(error(&reply, 400)["code"], "context_length_exceeded");
    assert_eq!(get(server.address, "/v1/models", &[]).await.json()["data"][0]["max_model_len"], 64);
}

#[tokio::test]
async fn another_model_is_not_found() {
    let server = TestServer::start().await;
    let body = json!({"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]});
    let chat = error(&post(server.address, CHAT, &body).await, 404);
    assert_eq!((chat["code"].as_str(), chat["param"].as_str()), (Some("model_not_found"), Some("model")));
    let model = error(&get(server.address, "/v1/models/a/b", &[]).await, 404);
    assert_eq!(model["code"], "model_not_found");
    let found = get(server.address, "/v1/models/stub", &[]).await;
    assert_eq!((found.status, found.json()["object"].as_str()), (200, Some("model")));
}

#[tokio::test]
async fn a_model_without_template_refuses_chats_only() {
    let server = TestServer::with(|s| s.with_template = false).await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(error(&post(server.address, CHAT, &body).await, 400)["param"], "messages");
    assert_eq!(post(server.address, "/v1/streams", &json!({"prompt": "hi"})).await.status, 201);
}

#[tokio::test]
async fn a_body_that_is_no_json_is_told_where() {
    let server = TestServer::start().await;
    for (body, message) in [
        ("{\"messages\": [}", "line 1 column 15"),
        ("{\"a\": 1", "EOF while parsing"),
        ("{} x", "trailing characters"),
        ("[]", "invalid type: sequence, expected an object"),
        ("5", "the body is wrong: invalid type"),
    ] {
        let reply = Client::connect(server.address).await.exchange(&request("POST", CHAT, &[], body)).await;
        let error = error(&reply, 400);
        let got = error["message"].as_str().unwrap();
        assert!(got.contains(message), "{body:?}: {got:?}");
    }
    let empty = request("POST", CHAT, &[("content-type", "application/json"), ("content-length", "0")], "");
    let reply = Client::connect(server.address).await.exchange(&empty).await;
    assert_eq!(error(&reply, 400)["code"], "invalid_json");
}

#[tokio::test]
async fn another_content_type_is_refused_like_openai_does() {
    let server = TestServer::start().await;
    for given in [vec![("content-type", "text/plain")], vec![]] {
        let head = request("POST", CHAT, &[given, vec![("content-length", "2")]].concat(), "") + "{}";
        let reply = Client::connect(server.address).await.exchange(&head).await;
        assert_eq!(error(&reply, 400)["code"], "unsupported_content_type");
    }
    let charset = [("content-type", "application/json; charset=utf-8"), ("content-length", "2")];
    let reply = Client::connect(server.address).await.exchange(&(request("POST", CHAT, &charset, "") + "{}")).await;
    assert_eq!(error(&reply, 400)["param"], "messages");
}

#[tokio::test]
async fn a_body_over_the_bound_is_too_large() {
    let server = TestServer::with(|s| s.api.body_bytes_max = 100).await;
    let body = json!({"prompt": "x".repeat(200)}).to_string();
    let declared = Client::connect(server.address).await.exchange(&request("POST", "/v1/streams", &[], &body)).await;
    assert_eq!(error(&declared, 413)["code"], "body_too_large");
    let chunked = [("content-type", "application/json"), ("transfer-encoding", "chunked")];
    let text = request("POST", "/v1/streams", &chunked, "") + &format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(error(&Client::connect(server.address).await.exchange(&text).await, 413)["code"], "body_too_large");
}

#[tokio::test]
async fn a_body_that_never_comes_times_out() {
    let server = TestServer::with(|s| s.api.body_read_timeout = std::time::Duration::from_millis(5)).await;
    let head = [("content-type", "application/json"), ("content-length", "10")];
    let reply = Client::connect(server.address).await.exchange(&request("POST", CHAT, &head, "")).await;
    error(&reply, 408);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let server = TestServer::start().await;
    server.backend.refuse_next(Error::overloaded("the queue is full", 1234));
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true});
    let reply = post(server.address, CHAT, &body).await;
    assert_eq!(error(&reply, 429)["type"], "rate_limit_error");
    assert_eq!((reply.headers["retry-after"].as_str(), reply.headers["retry-after-ms"].as_str()), ("2", "1234"));
}

#[tokio::test]
async fn a_full_table_refuses_too() {
    let server = TestServer::with(|s| s.table.num_streams_max = 1).await;
    let body = json!({"prompt": "hi", "on_disconnect": "detach"});
    assert_eq!(post(server.address, "/v1/streams", &body).await.status, 201);
    let reply = post(server.address, "/v1/streams", &body).await;
    assert_eq!(error(&reply, 429)["code"], "overloaded");
    assert!(reply.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn readiness_is_a_status() {
    let server = TestServer::start().await;
    assert_eq!(get(server.address, "/health/ready", &[]).await.status, 200);
    for readiness in [Readiness::Starting, Readiness::Draining] {
        server.backend.set_readiness(readiness);
        let reply = get(server.address, "/health/ready", &[]).await;
        assert_eq!(error(&reply, 503)["type"], "server_error");
        assert!(reply.headers.contains_key("retry-after"));
        assert_eq!(get(server.address, "/health/live", &[]).await.status, 200);
        let body = json!({"prompt": "hi"});
        assert_eq!(error(&post(server.address, "/v1/streams", &body).await, 503)["code"], "unavailable");
    }
}

#[tokio::test]
async fn a_panic_is_a_500_of_the_same_shape_and_leaves_nothing() {
    let server = TestServer::start().await;
    let mut client = Client::connect(server.address).await;
    let body = json!({"prompt": "hi"}).to_string();
    server.backend.panic_next();
    let reply = client.exchange(&request("POST", "/v1/streams", &[], &body)).await;
    assert_eq!(error(&reply, 500)["code"], "internal_error");
    assert!(reply.headers.contains_key("x-request-id"));
    assert!(server.service.table().is_empty());
    // The connection and the server go on.
    assert_eq!(client.exchange(&request("POST", "/v1/streams", &[], &body)).await.status, 201);
}
