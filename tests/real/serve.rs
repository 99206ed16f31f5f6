//! The whole corridor with a real model: the binary, a socket, a stream.

use crate::real;
use crate::server;

use std::process::{Command, Stdio};

use futures_util::future::join_all;
use serde_json::{Value, json};
use server::Server;

fn start() -> Server {
    real::path(real::SMOLLM2);
    Server::start(&["--model", real::SMOLLM2])
}

fn body(prompt: &str, max_tokens: usize, more: &Value) -> Value {
    let mut body = json!({
        "model": real::SMOLLM2,
        "stream": true,
        "max_tokens": max_tokens,
        "messages": [{ "role": "user", "content": prompt }],
    });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// The text of a chat stream, checked to be well formed: a role, text, a reason, `[DONE]`.
fn text_of(stream: &str) -> String {
    let events: Vec<&str> = stream.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"), "{stream}");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }), "{stream}");
    assert!(chunks.last().unwrap()["choices"][0]["finish_reason"].is_string(), "{stream}");
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn real_model_knows_the_capital_of_france() {
    let server = start();
    let body = body("Name the capital of France.", 40, &json!({ "temperature": 0 }));
    let stream = server.chat(&body).await.text().await.unwrap();
    assert!(text_of(&stream).contains("Paris"), "{stream}");
}

#[tokio::test(flavor = "multi_thread")]
async fn real_streams_share_steps_and_each_equals_its_solo_run() {
    let server = start();
    let requests: Vec<Value> = (0..32)
        .map(|i| {
            let prompt = format!("Write {} about the number {i}.{}", ["a poem", "a list", "a story"][i % 3], " Please.".repeat(i));
            body(&prompt, 12 + i, &json!({ "temperature": if i % 4 == 0 { 0.0 } else { 0.9 }, "top_p": 0.95, "seed": i, "ignore_eos": true }))
        })
        .collect();
    let mut alone = Vec::new();
    for request in &requests {
        alone.push(text_of(&server.chat(request).await.text().await.unwrap()));
    }
    let before = (server.metric("tallow_steps_total").await, server.metric("tallow_step_sequences_total").await);
    let together =
        join_all(requests.iter().map(|request| async { text_of(&server.chat(request).await.text().await.unwrap()) }));
    let together = together.await;
    let after = (server.metric("tallow_steps_total").await, server.metric("tallow_step_sequences_total").await);
    for (i, (together, alone)) in together.iter().zip(&alone).enumerate() {
        assert_eq!(together, alone, "stream {i}");
    }
    let mean = (after.1 - before.1) / (after.0 - before.0);
    println!("mean batch size {mean:.1}");
    assert!(mean > 8.0, "mean batch size {mean}");
}

#[tokio::test(flavor = "multi_thread")]
async fn real_curl_that_is_killed_frees_its_slot_and_blocks() {
    let server = start();
    let body = body("Count to ten thousand.", 4000, &json!({ "ignore_eos": true })).to_string();
    let mut curl = Command::new("curl")
        .args(["-N", "-s", "--noproxy", "*", "-H", "content-type: application/json", "-d", &body])
        .arg(format!("{}/v1/chat/completions", server.url))
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl is installed by `make test`");
    let mut stdout = std::io::BufReader::new(curl.stdout.take().unwrap());
    let mut seen = String::new();
    while !seen.contains(r#""delta":{"content":"#) {
        assert!(std::io::BufRead::read_line(&mut stdout, &mut seen).unwrap() > 0, "{seen}");
    }
    assert_eq!(server.metric("tallow_num_running").await, 1.0);
    let killed_at = server.metric("tallow_steps_total").await;
    curl.kill().unwrap();
    curl.wait().unwrap();
    // Each look is a request; a step takes longer than one, so this is far beyond a step.
    for look in 0.. {
        if server.metric("tallow_requests_cancelled_total").await == 1.0 {
            break;
        }
        assert!(look < 1000, "it still runs");
    }
    // What it held is free before its end is told.
    assert_eq!(server.metric("tallow_num_running").await, 0.0);
    assert_eq!(server.metric("tallow_kv_blocks_used").await, 0.0);
    let steps = server.metric("tallow_steps_total").await - killed_at;
    // Steps go on between the reading of the counter, the signal and the close of the socket by the kernel; the exact
    // count of one step is shown with a gated stub in tests/http/engine.rs.
    println!("{steps} steps between the look before the kill and the free slot");
    assert!(steps < 200.0, "{steps} steps after the kill");
}

#[tokio::test(flavor = "multi_thread")]
async fn real_answers_keep_to_their_schemas_alone_and_together() {
    let server = start();
    let schemas = [
        json!({
            "type": "object", "required": ["name", "age", "tags"], "additionalProperties": false,
            "properties": {
                "name": {"type": "string", "maxLength": 20},
                "age": {"type": "integer", "minimum": 0, "maximum": 130},
                "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
            },
        }),
        json!({"type": "array", "minItems": 2, "maxItems": 4, "items": {"type": "string", "pattern": "^[A-Z][a-z]{2,9}$"}}),
        json!({"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"why": {"type": "string", "maxLength": 30}},
            "required": ["why"], "additionalProperties": false}]}),
        json!({"type": "string", "format": "date"}),
    ];
    let requests: Vec<Value> = (0..8)
        .map(|i| {
            let named = json!({"name": "it", "strict": true, "schema": schemas[i % 4]});
            let more = json!({
                "response_format": {"type": "json_schema", "json_schema": named}, "stream": false, "seed": i,
                "temperature": if i < 4 { 0.0 } else { 1.0 },
            });
            body("Describe somebody you know, as JSON.", 200, &more)
        })
        .collect();
    let answer = async |request: &Value| {
        let answer: Value = serde_json::from_str(&server.chat(request).await.text().await.unwrap()).unwrap();
        let choice = &answer["choices"][0];
        (choice["message"]["content"].as_str().unwrap().to_owned(), choice["finish_reason"].clone())
    };
    let mut alone = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let (text, finish_reason) = answer(request).await;
        println!("{text}");
        assert_eq!(finish_reason, "stop", "{text}");
        let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(jsonschema::is_valid(&schemas[i % 4], &value), "{text}");
        alone.push((text, finish_reason));
    }
    assert_eq!(join_all(requests.iter().map(answer)).await, alone);
    assert!(server.metric("tallow_forced_tokens_total").await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn real_server_drains_on_sigterm() {
    let mut server = start();
    let request = body("Tell me a story.", 60, &json!({ "seed": 1, "ignore_eos": true }));
    let mut response = server.chat(&request).await;
    let first = response.chunk().await.unwrap().expect("a first chunk");
    server.signal("TERM");
    let mut stream = String::from_utf8(first.to_vec()).unwrap();
    while let Some(chunk) = response.chunk().await.unwrap() {
        stream.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text_of(&stream);
    assert!(server.wait().success());
}
