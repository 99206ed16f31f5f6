//! Chat Completions: exact bytes, and streaming and whole answers that agree.

use std::time::Duration;

use serde_json::{Value, json};
use tallow::error::ErrorKind;
use tallow::protocol::{FinishReason, OnDisconnect};

use crate::http::common::sse::SseParser;
use crate::http::common::{Client, TestServer, post, request};

const PATH: &str = "/v1/chat/completions";

fn asking(more: &Value) -> Value {
    let mut body = json!({"model": "stub", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Opens a stream, runs it, and returns its bytes with the random id and the time replaced.
async fn streamed(server: &TestServer, more: Value, pieces: &[&str]) -> String {
    let mut body = asking(&json!({"stream": true}));
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (mut client, head) = Client::open_post(server.address, PATH, &body).await;
    assert_eq!(head.status, 200);
    let job = server.backend.job().await;
    job.run(pieces);
    let created = (job.log.created_ms() / 1000).to_string();
    client.rest().await.replace(&job.log.id().to_string(), "ID").replace(&created, "0")
}

#[tokio::test]
async fn a_stream_is_these_bytes() {
    let server = TestServer::start().await;
    let chunk = r#"data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"stub","choices":["#;
    let expect = [
        r#"{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
        r#"{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}"#,
        r#"{"index":0,"delta":{"content":"lo\n\"é\""},"finish_reason":null}]}"#,
        r#"{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    ];
    let expect: String = expect.iter().map(|rest| format!("{chunk}{rest}\n\n")).collect();
    assert_eq!(streamed(&server, json!({}), &["Hel", "lo\n\"é\""]).await, expect + "data: [DONE]\n\n");
}

#[tokio::test]
async fn usage_comes_in_a_chunk_of_its_own_and_is_null_before() {
    let server = TestServer::start().await;
    let text = streamed(&server, json!({"stream_options": {"include_usage": true}}), &["x"]).await;
    let parsed = SseParser::parse(&text);
    let (done, chunks) = parsed.events.split_last().unwrap();
    assert_eq!(done.data, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(crate::http::common::sse::SseEvent::json).collect();
    assert_eq!(chunks.len(), 4, "role, content, finish, usage");
    for chunk in &chunks[..3] {
        assert_eq!(chunk.get("usage"), Some(&Value::Null), "{chunk}");
    }
    assert_eq!(chunks[3]["choices"], json!([]));
    let num_prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n".len();
    let usage = json!({
        "prompt_tokens": num_prompt, "completion_tokens": 3, "total_tokens": num_prompt + 3,
        "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 0},
    });
    assert_eq!(chunks[3]["usage"], usage);
}

#[tokio::test]
async fn a_plain_stream_has_no_ids_no_names_and_no_retry() {
    let server = TestServer::start().await;
    let parsed = SseParser::parse(&streamed(&server, json!({}), &["a", "b"]).await);
    assert_eq!((parsed.last_id.as_str(), parsed.retry), ("", None));
    assert!(parsed.events.iter().all(|e| e.name.is_empty()));
}

#[tokio::test]
async fn logprobs_name_tokens_by_text_and_bytes() {
    let server = TestServer::start().await;
    let text = streamed(&server, json!({"logprobs": true, "top_logprobs": 2}), &["ü"]).await;
    let chunk = SseParser::parse(&text).events[1].json();
    let top = |byte: u8| json!({"token": "\u{fffd}", "logprob": -0.5, "bytes": [byte]});
    let rival = json!({"token": "!", "logprob": -1.25, "bytes": [33]});
    let token = |byte: u8| {
        let mut token = top(byte);
        token["top_logprobs"] = json!([top(byte), rival]);
        token
    };
    assert_eq!(chunk["choices"][0]["logprobs"], json!({"content": [token(0xc3), token(0xbc)], "refusal": null}));
}

#[tokio::test]
async fn a_whole_answer_is_the_stream_folded() {
    let server = TestServer::start().await;
    let pieces = ["Hel", "lo, ", "world"];
    let more = json!({"logprobs": true, "stream_options": null});
    let mut streaming = more.clone();
    streaming["stream_options"] = json!({"include_usage": true});
    let text = streamed(&server, streaming, &pieces).await;
    let chunks: Vec<Value> = SseParser::parse(&text)
        .events
        .iter()
        .filter(|e| e.data != "[DONE]")
        .map(crate::http::common::sse::SseEvent::json)
        .collect();
    let deltas = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap().clone());
    let (mut content, mut logprobs, mut finish) = (String::new(), Vec::new(), Value::Null);
    for choice in deltas {
        content.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        logprobs.extend(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
        finish = choice["finish_reason"].clone();
    }

    let (reply, job) = tokio::join!(post_owned(&server, asking(&more)), async {
        let job = server.backend.job().await;
        job.run(&pieces);
        job
    });
    let whole = reply.json();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["x-stream-id"], job.log.id().to_string());
    assert_eq!(whole["id"], format!("chatcmpl-{}", job.log.id()));
    assert_eq!(whole["object"], "chat.completion");
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": content, "refusal": null}));
    assert_eq!(choice["logprobs"]["content"], json!(logprobs));
    assert_eq!(choice["finish_reason"], finish);
    assert_eq!(whole["usage"], chunks.last().unwrap()["usage"]);
    assert_eq!(content, pieces.concat());
}

async fn post_owned(server: &TestServer, body: Value) -> crate::http::common::Reply {
    post(server.address, PATH, &body).await
}

#[tokio::test]
async fn a_failure_in_the_middle_is_an_error_object_and_the_end() {
    let server = TestServer::start().await;
    let (mut client, _) = Client::open_post(server.address, PATH, &asking(&json!({"stream": true}))).await;
    let job = server.backend.job().await;
    job.start();
    job.say("so far");
    job.fail(ErrorKind::Internal, "the worker failed");
    let parsed = SseParser::parse(&client.rest().await);
    let last = parsed.events.last().unwrap().json();
    let error =
        json!({"message": "the worker failed", "type": "server_error", "param": null, "code": "internal_error"});
    assert_eq!(last, json!({"error": error}));
    assert!(parsed.events.iter().all(|e| e.data != "[DONE]"));
}

#[tokio::test]
async fn a_failure_before_the_first_token_has_a_status_also_when_streaming() {
    let server = TestServer::with(|s| s.api.head_wait = Duration::from_secs(600)).await;
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", PATH, &[], &asking(&json!({"stream": true})).to_string())).await;
    let job = server.backend.job().await;
    job.start();
    job.fail(ErrorKind::Unavailable, "the server is shutting down");
    assert_eq!(client.head().await.status, 503);
    // And with a token the head comes, however long the wait could be.
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", PATH, &[], &asking(&json!({"stream": true})).to_string())).await;
    server.backend.job().await.run(&["hi"]);
    assert_eq!(client.head().await.status, 200);
}

#[tokio::test]
async fn a_failed_call_without_stream_has_a_status() {
    let server = TestServer::start().await;
    for (kind, status) in [(ErrorKind::Internal, 500), (ErrorKind::Unavailable, 503), (ErrorKind::Cancelled, 499)] {
        let (reply, ()) = tokio::join!(post_owned(&server, asking(&json!({}))), async {
            server.backend.job().await.fail(kind, "no");
        });
        assert_eq!(reply.status, status);
        assert_eq!(reply.json()["error"]["message"], "no");
    }
}

#[tokio::test]
async fn heartbeats_are_one_line_and_flow_while_queued() {
    let server = TestServer::with(|s| s.api.heartbeat = Duration::from_millis(2)).await;
    let (mut client, head) = Client::open_post(server.address, PATH, &asking(&json!({"stream": true}))).await;
    assert_eq!(head.headers["content-type"], "text/event-stream");
    assert_eq!(head.headers["cache-control"], "no-cache, no-transform");
    assert_eq!(head.headers["x-accel-buffering"], "no");
    assert!(!head.headers.contains_key("content-encoding"));
    let job = server.backend.job().await;
    assert_eq!(head.headers["x-stream-id"], job.log.id().to_string());
    // Nothing has happened but the acceptance; these come all the same.
    let waiting = client.until("\n\n:\n:\n").await;
    job.run(&["x"]);
    let all = waiting + &client.rest().await;
    assert!(!all.contains(":\n\n"), "a heartbeat must not dispatch: {all:?}");
    let parsed = SseParser::parse(&all);
    assert!(parsed.num_heartbeats >= 2);
    assert_eq!(parsed.events.len(), 4);
}

#[tokio::test]
async fn parameters_reach_the_backend() {
    let server = TestServer::start().await;
    let body = asking(&json!({
        "stream": true, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "typical_p": 0.8,
        "repetition_penalty": 1.1, "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"65": -100},
        "seed": -1, "max_completion_tokens": 9, "max_tokens": 5, "min_tokens": 2, "stop": "end",
        "stop_token_ids": [10], "ignore_eos": true, "n": 1, "user": "u", "metadata": {}, "store": false,
        "service_tier": "auto", "response_format": {"type": "text"}, "tools": [], "tool_choice": "none",
        "modalities": ["text"], "never_heard_of": {"a": [1]},
        "messages": [
            {"role": "developer", "content": "be brief", "name": "x"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
    }));
    let (_client, head) = Client::open_post(server.address, PATH, &body).await;
    assert_eq!(head.status, 200);
    let request = server.backend.job().await.request;
    let s = &request.sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k, s.min_p), (0.5, 0.9, 7, 0.1));
    assert_eq!((s.typical_p, s.repetition_penalty, s.presence_penalty, s.frequency_penalty), (0.8, 1.1, -1.0, 2.0));
    assert_eq!((s.logit_bias.as_slice(), s.seed, s.top_logprobs), ([(65, -100.0)].as_slice(), Some(u64::MAX), None));
    assert_eq!((request.max_tokens, request.stop.min_tokens, request.stop.ignore_eos), (9, 2, true));
    assert_eq!(
        (request.stop.strings.as_slice(), request.stop.token_ids.as_slice()),
        (["end".to_owned()].as_slice(), [10].as_slice())
    );
    assert_eq!(request.on_disconnect, OnDisconnect::Cancel);
    let text: Vec<u8> = request.prompt.iter().map(|&t| t as u8).collect();
    let expect = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(String::from_utf8(text).unwrap(), expect);
}

#[tokio::test]
async fn a_large_prompt_takes_the_same_way() {
    let server = TestServer::with(|s| {
        s.service.inline_bytes_max = 10;
        s.spec.max_model_len = 2048;
    })
    .await;
    let content = "x".repeat(1000);
    let body = json!({"messages": [{"role": "user", "content": content}], "stream": true});
    let (mut client, _) = Client::open_post(server.address, PATH, &body).await;
    let job = server.backend.job().await;
    assert!(job.request.prompt.len() > 1000);
    // Without a bound in the request, the context is the bound.
    assert_eq!(job.request.num_tokens_max(), 2048);
    job.run(&["ok"]);
    assert!(client.rest().await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_reader_far_behind_still_gets_every_byte() {
    let server = TestServer::start().await;
    let job_text: Vec<String> = (0..200).map(|i| format!("{i} ")).collect();
    let body = asking(&json!({}));
    let (reply, ()) = tokio::join!(post_owned(&server, body), async {
        let job = server.backend.job().await;
        job.start();
        for piece in &job_text {
            job.say(piece);
        }
        job.finish(FinishReason::Length);
    });
    assert_eq!(reply.json()["choices"][0]["message"]["content"], job_text.concat());
    let pieces: Vec<&str> = job_text.iter().map(String::as_str).collect();
    let events = SseParser::parse(&streamed(&server, json!({}), &pieces).await).events;
    assert!(events.len() < pieces.len(), "a backlog comes in few frames");
    let deltas =
        events.iter().filter(|e| e.data != "[DONE]").map(|e| e.json()["choices"][0]["delta"]["content"].clone());
    let text: String = deltas.filter_map(|d| d.as_str().map(str::to_owned)).collect();
    assert_eq!(text, job_text.concat());
}

#[tokio::test]
async fn usage_so_far_comes_in_every_chunk_where_asked_for() {
    let server = TestServer::start().await;
    let options = json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let events = SseParser::parse(&streamed(&server, options, &["ab", "c"]).await).events;
    let usage = events.iter().filter(|e| e.data != "[DONE]").map(|e| e.json()["usage"].clone());
    let counts: Vec<Value> = usage.map(|u| json!([u["prompt_tokens"], u["completion_tokens"]])).collect();
    let num_prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n".len();
    // The last two tell the same: the finish chunk and the one of usage alone.
    assert_eq!(counts, [0, 2, 3, 3, 3].map(|n| json!([num_prompt, n])));
    // By itself it changes nothing.
    let text = streamed(&server, json!({"stream_options": {"continuous_usage_stats": true}}), &["x"]).await;
    assert!(!text.contains("usage"), "{text}");
}

#[tokio::test]
async fn the_stop_string_that_ended_the_text_is_named() {
    let server = TestServer::start().await;
    let (mut client, _) = Client::open_post(server.address, PATH, &asking(&json!({"stream": true}))).await;
    let job = server.backend.job().await;
    job.start();
    job.stop_at("END");
    let text = client.rest().await;
    assert!(text.contains(r#""delta":{},"finish_reason":"stop","stop_reason":"END"}]"#), "{text}");
    let (reply, ()) = tokio::join!(post_owned(&server, asking(&json!({}))), async {
        let job = server.backend.job().await;
        job.start();
        job.stop_at("END");
    });
    assert_eq!(reply.json()["choices"][0]["stop_reason"], "END");
}
