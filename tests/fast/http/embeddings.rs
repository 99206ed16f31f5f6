//! Embeddings: every shape of input, exact bytes, rules, bounds; the same vector alone, in a batch, in chunks and after
//! a preemption.

use futures_util::future::join_all;
use serde_json::{Value, json};
use tallow::engine::EngineConfig;
use tallow::error::{Error, ErrorKind};
use tallow::model::stub::{StubConfig, StubFaults};
use tallow::service::{Backend, LocalBackend};

use crate::http::common::{Client, Setup, TestServer, post, request};
use crate::http::engine::start;

const PATH: &str = "/v1/embeddings";

async fn real() -> TestServer<LocalBackend> {
    start(EngineConfig::default(), StubConfig::default(), Setup::default()).await
}

async fn answer<B: Backend + 'static>(server: &TestServer<B>, body: Value) -> Value {
    let reply = post(server.address, PATH, &body).await;
    assert_eq!(reply.status, 200, "{body}: {}", reply.body);
    reply.json()
}

/// The vectors of an answer, by index.
fn vectors(answer: &Value) -> Vec<Value> {
    let data = answer["data"].as_array().unwrap();
    assert!(data.iter().enumerate().all(|(i, d)| d["index"] == i && d["object"] == "embedding"), "{data:?}");
    data.iter().map(|d| d["embedding"].clone()).collect()
}

#[tokio::test]
async fn an_answer_is_these_bytes() {
    let server = TestServer::start().await;
    for (format, vector) in [(Value::Null, "[0.6,-0.8]"), (json!("base64"), r#""mpkZP83MTL8=""#)] {
        let body = json!({"model": "stub", "input": "Say", "encoding_format": format, "user": "me"});
        let mut client = Client::connect(server.address).await;
        client.send(&request("POST", PATH, &[], &body.to_string())).await;
        let job = server.backend.embed_job().await;
        assert_eq!(job.input.tokens, b"Say".map(u32::from));
        job.answer(&[0.6, -0.8]);
        let reply = client.exchange("").await;
        assert_eq!((reply.status, reply.headers["content-type"].as_str()), (200, "application/json"));
        let expect = format!(
            r#"{{"object":"list","data":[{{"object":"embedding","index":0,"embedding":{vector}}}],"model":"stub","usage":{{"prompt_tokens":3,"total_tokens":3}}}}"#
        );
        assert_eq!(reply.body, expect);
    }
}

#[tokio::test]
async fn every_shape_of_input_is_the_same_vector_of_length_1() {
    let server = real().await;
    let mut all = Vec::new();
    for input in [json!("abc"), json!([97, 98, 99]), json!(["abc", "x"]), json!([[97, 98, 99], [120]])] {
        let answer = answer(&server, json!({"input": input})).await;
        let num_tokens = if answer["data"].as_array().unwrap().len() == 2 { 4 } else { 3 };
        assert_eq!(answer["usage"], json!({"prompt_tokens": num_tokens, "total_tokens": num_tokens}));
        all.push(vectors(&answer)[0].clone());
    }
    assert!(all.iter().all(|vector| *vector == all[0]), "{all:?}");
    let squares = all[0].as_array().unwrap().iter().map(|x| x.as_f64().unwrap().powi(2));
    assert!((squares.sum::<f64>() - 1.0).abs() < 1e-5);
    let metrics = server.service.metrics();
    assert_eq!((metrics.embeddings.get(), metrics.embedding_tokens.get()), (6, 14));
    assert_eq!((metrics.completion_tokens.get(), metrics.kv_blocks_used.get()), (0, 0));
}

#[tokio::test]
async fn what_breaks_a_rule_is_told() {
    let server = TestServer::with(|s| s.service.embedding_inputs_max = 3).await;
    let long = "x".repeat(257);
    let rules = [
        (json!({}), "input", "`input` must be given"),
        (json!({"input": null}), "input", "`input` must be given"),
        (json!({"input": ""}), "input", "`input` must not be empty"),
        (json!({"input": []}), "input", "`input` must not be empty"),
        (json!({"input": ["a", ""]}), "input[1]", "`input[1]` must not be empty"),
        (json!({"input": [[1], []]}), "input[1]", "`input[1]` must not be empty"),
        (json!({"input": ["a", "b", "c", "d"]}), "input", "`input` must have at most 3 texts, got 4"),
        (json!({"input": [1, 257]}), "input[1]", "`input[1]` must be a token id below 257, got 257"),
        (json!({"input": [[1], [257]]}), "input[1][0]", "`input[1][0]` must be a token id below 257, got 257"),
        (json!({"input": [1, "a"]}), "input", "`input` is wrong"),
        (json!({"input": {"text": "a"}}), "input", "`input` is wrong"),
        (json!({"input": 7}), "input", "`input` is wrong"),
        (json!({"input": "a", "encoding_format": "int8"}), "encoding_format", "must be float or base64, got \"int8\""),
        (json!({"input": "a", "encoding_format": 1}), "encoding_format", "`encoding_format` is wrong"),
        (json!({"input": "a", "dimensions": 8}), "dimensions", "its vectors have one length, got 8"),
        (json!({"input": "a", "dimensions": "8"}), "dimensions", "`dimensions` is wrong"),
        (json!({"input": "a", "priority": 11}), "priority", "`priority` must be -10 to 10"),
        (json!({"input": long}), "input", "`input` must have at most the model's 256 tokens, got 257"),
        (json!({"input": ["a", long]}), "input[1]", "`input[1]` must have at most the model's 256 tokens, got 257"),
    ];
    for (body, param, message) in rules {
        let reply = post(server.address, PATH, &body).await;
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["param"]), (400, &json!(param)), "{body}: {}", reply.body);
        assert!(error["message"].as_str().unwrap().contains(message), "{body}: {}", reply.body);
        assert_eq!(error["type"], "invalid_request_error");
        let code = match param {
            "dimensions" if body["dimensions"] == 8 => json!("unsupported_parameter"),
            _ if message.contains("256 tokens") => json!("context_length_exceeded"),
            _ => Value::Null,
        };
        assert_eq!(error["code"], code, "{body}");
    }
    let reply = post(server.address, PATH, &json!({"input": "a", "model": "other"})).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("model_not_found")));
    assert!(server.backend.has_no_job().await, "nothing of that was run");
}

#[tokio::test]
async fn a_text_may_fill_the_context() {
    let stub = StubConfig { num_blocks: 8, max_model_len: 256, ..StubConfig::default() };
    let server = start(EngineConfig::default(), stub, Setup::default()).await;
    let answer = answer(&server, json!({"input": "x".repeat(256)})).await;
    assert_eq!(answer["usage"]["total_tokens"], 256);
}

fn text(n: usize) -> String {
    (0..20 + n * 13).map(|i| char::from(b'a' + ((i * 7 + n * i / 5) % 26) as u8)).collect()
}

#[tokio::test]
async fn neighbours_chunks_the_cache_and_preemption_do_not_change_a_byte() {
    const NUM_TEXTS: usize = 12;
    let alone = real().await;
    let mut solo = Vec::new();
    for n in 0..NUM_TEXTS {
        solo.extend(vectors(&answer(&alone, json!({"input": text(n)})).await));
    }
    // What the cache has of a text is computed all the same.
    post(alone.address, "/v1/completions", &json!({"prompt": text(9), "max_tokens": 4})).await;
    assert_eq!(vectors(&answer(&alone, json!({"input": text(9)})).await), solo[9..10]);
    assert_eq!(alone.service.metrics().cached_tokens.get(), 0);

    let chunked =
        EngineConfig { max_num_batched_tokens: 64, prefill_tokens_per_step_max: 5, ..EngineConfig::default() };
    let tight = StubConfig { num_blocks: 12, max_model_len: 384, poison: true, ..StubConfig::default() };
    for (name, stub) in [("chunked", StubConfig::default()), ("tight", tight)] {
        let server = start(chunked.clone(), stub, Setup::default()).await;
        let texts: Vec<String> = (0..NUM_TEXTS).map(text).collect();
        let together = answer(&server, json!({"input": texts}));
        // Neighbours that grow, and cost others their blocks.
        let generating = (0..6).map(async |seed| {
            let body = json!({"prompt": "go", "seed": seed, "max_tokens": 200, "ignore_eos": true});
            post(server.address, "/v1/completions", &body).await.status
        });
        let (together, generated) = tokio::join!(together, join_all(generating));
        assert_eq!(generated, [200; 6]);
        assert_eq!(vectors(&together), solo, "{name}");
        assert!(server.service.metrics().step_sequences.get() > server.service.metrics().steps.get());
    }
}

#[tokio::test]
async fn no_more_than_the_window_of_one_request_stands_in_line() {
    let mut setup = Setup::default();
    setup.service.embedding_inputs_at_once = 4;
    // Without the window the sixth of them would be refused.
    let config = EngineConfig { max_num_seqs: 1, queue_requests_max: 4, ..EngineConfig::default() };
    let server = start(config, StubConfig::default(), setup).await;
    let many = answer(&server, json!({"input": (0..40).map(text).collect::<Vec<_>>()})).await;
    assert_eq!(vectors(&many).len(), 40);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let server = TestServer::start().await;
    server.backend.refuse_next(Error::overloaded("the queue is full", 2500));
    let reply = post(server.address, PATH, &json!({"input": ["a", "b"]})).await;
    assert_eq!((reply.status, reply.headers["retry-after"].as_str()), (429, "3"));
    assert_eq!(reply.json()["error"]["code"], "overloaded");
}

#[tokio::test]
async fn a_failure_of_one_is_the_answer_and_ends_the_others() {
    let server = TestServer::start().await;
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", PATH, &[], &json!({"input": ["a", "b"]}).to_string())).await;
    let (first, mut second) = (server.backend.embed_job().await, server.backend.embed_job().await);
    first.fail(ErrorKind::QueueTimeout, "no worker took it in time");
    let reply = client.exchange("").await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("queue_timeout")));
    second.cancelled().await;

    let faults = StubFaults { nan_on_token: Some(35), ..StubFaults::default() };
    let server = start(EngineConfig::default(), StubConfig { faults, ..StubConfig::default() }, Setup::default()).await;
    let reply = post(server.address, PATH, &json!({"input": "a # b"})).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (500, &json!("internal_error")));
    answer(&server, json!({"input": "a b"})).await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_texts_along() {
    let server = TestServer::start().await;
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", PATH, &[], &json!({"input": ["a", "b"]}).to_string())).await;
    let mut jobs = [server.backend.embed_job().await, server.backend.embed_job().await];
    client.close();
    for job in &mut jobs {
        job.cancelled().await;
    }
}

#[tokio::test]
async fn the_end_of_the_server_waits_for_it() {
    let mut server = TestServer::start().await;
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", PATH, &[], &json!({"input": "a"}).to_string())).await;
    let job = server.backend.embed_job().await;
    server.stop();
    // Answered while it drains, so the end has begun.
    let mut late = Client::connect(server.address).await;
    assert_eq!(late.exchange(&request("GET", "/health/ready", &[], "")).await.status, 503);
    job.answer(&[1.0]);
    assert_eq!(client.exchange("").await.status, 200);
    server.stopped().await;
}
