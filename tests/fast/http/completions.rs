//! Completions: every shape of prompt, choices, echo and log-probabilities; exact bytes; rules.

use serde_json::{Value, json};
use tallow::engine::EngineConfig;
use tallow::error::ErrorKind;
use tallow::model::stub::{StubConfig, StubGate};
use tallow::service::LocalBackend;
use tallow::stream::CancelCause;

use crate::http::admission::arrived;
use crate::http::common::sse::{SseEvent, SseParser};
use crate::http::common::{Client, Setup, TestServer, post, request};
use crate::http::engine::start;
use crate::http::feed::{happenings, metric};

const PATH: &str = "/v1/completions";

async fn real() -> TestServer<LocalBackend> {
    start(EngineConfig::default(), StubConfig::default(), Setup::default()).await
}

async fn answer(server: &TestServer<LocalBackend>, body: Value) -> Value {
    let reply = post(server.address, PATH, &body).await;
    assert_eq!(reply.status, 200, "{body}: {}", reply.json());
    reply.json()
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap();
    assert!(choices.iter().enumerate().all(|(i, c)| c["index"] == i), "{choices:?}");
    choices.iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_stream_is_these_bytes() {
    let server = TestServer::start().await;
    let body = json!({"prompt": "Say", "stream": true, "echo": true, "stream_options": {"include_usage": true}});
    let (mut client, head) = Client::open_post(server.address, PATH, &body).await;
    assert_eq!(head.status, 200);
    let job = server.backend.job().await;
    assert_eq!((job.request.max_tokens, job.request.leader), (16, None), "OpenAI's default");
    job.run(&["Hel", "lo"]);
    let created = (job.log.created_ms() / 1000).to_string();
    let text = client.rest().await.replace(&job.log.id().to_string(), "ID").replace(&created, "0");
    let chunk = r#"data: {"id":"cmpl-ID","object":"text_completion","created":0,"model":"stub","choices":["#;
    let choice = |text: &str, finish: &str| {
        format!(r#"{{"text":"{text}","index":0,"logprobs":null,"finish_reason":{finish}}}],"usage":null}}"#)
    };
    let usage = r#"],"usage":{"prompt_tokens":3,"completion_tokens":3,"total_tokens":6,"prompt_tokens_details":{"cached_tokens":2},"completion_tokens_details":{"reasoning_tokens":0}}}"#;
    let rest = [choice("Say", "null"), choice("Hel", "null"), choice("lo", "null"), choice("", "\"stop\"")];
    let expect: String = rest.iter().map(|rest| format!("{chunk}{rest}\n\n")).collect();
    assert_eq!(text, expect + chunk + usage + "\n\ndata: [DONE]\n\n");
}

#[tokio::test]
async fn every_chunk_tells_what_was_spent_if_asked() {
    let server = real().await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"prompt": "abc", "n": 2, "seed": 5, "max_tokens": 4, "ignore_eos": true, "stream": true,
        "stream_options": options});
    let (mut client, _) = Client::open_post(server.address, PATH, &body).await;
    let events = SseParser::parse(&client.rest().await).events;
    let (end, chunks) = events.split_last().unwrap();
    let (sum, chunks) = chunks.split_last().unwrap();
    assert_eq!(end.data, "[DONE]");
    assert_eq!(sum.json()["usage"]["completion_tokens"], 8);
    for index in 0..2 {
        let of_choice = chunks.iter().map(SseEvent::json).filter(|c| c["choices"][0]["index"] == index);
        let spent: Vec<u64> = of_choice.map(|c| c["usage"]["completion_tokens"].as_u64().unwrap()).collect();
        assert!(spent.is_sorted() && spent.last() == Some(&4), "{spent:?}");
    }
    assert!(chunks.iter().all(|c| c.json()["usage"]["prompt_tokens"] == 3), "{chunks:?}");
}

#[tokio::test]
async fn every_shape_of_prompt_is_the_same_text() {
    let server = real().await;
    let shapes = [json!("abc"), json!([97, 98, 99]), json!(["abc"]), json!([[97, 98, 99]])];
    let mut all = Vec::new();
    for prompt in shapes {
        let body = json!({"prompt": prompt, "seed": 5, "max_tokens": 12, "ignore_eos": true});
        let answer = answer(&server, body).await;
        assert_eq!((&answer["object"], &answer["usage"]["total_tokens"]), (&json!("text_completion"), &json!(15)));
        all.push(texts(&answer));
    }
    assert!(all.iter().all(|texts| *texts == all[0]), "{all:?}");
}

#[tokio::test]
async fn choices_are_the_texts_of_the_seeds_that_follow_and_prompts_stand_in_order() {
    let server = real().await;
    let asking = |prompt: Value, seed: u64, n: u64| json!({"prompt": prompt, "seed": seed, "n": n, "max_tokens": 20});
    let mut alone = Vec::new();
    for prompt in ["first", "second one"] {
        for seed in 7..10 {
            alone.extend(texts(&answer(&server, asking(json!(prompt), seed, 1)).await));
        }
    }
    let both = answer(&server, asking(json!(["first", "second one"]), 7, 3)).await;
    assert_eq!(texts(&both), alone);
    let num_prompt = "first".len() + "second one".len();
    assert_eq!(both["usage"]["prompt_tokens"], num_prompt, "each prompt counts once");

    let mut body = asking(json!(["first", "second one"]), 7, 3);
    body["stream"] = json!(true);
    let (mut client, _) = Client::open_post(server.address, PATH, &body).await;
    let events = SseParser::parse(&client.rest().await).events;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done.data, "[DONE]");
    let (mut streamed, mut ends) = (vec![String::new(); 6], [0; 6]);
    for choice in chunks.iter().map(|e| e.json()["choices"][0].clone()) {
        let index = choice["index"].as_u64().unwrap() as usize;
        streamed[index].push_str(choice["text"].as_str().unwrap());
        ends[index] += usize::from(choice["finish_reason"].is_string());
    }
    assert_eq!((streamed, ends), (alone, [1; 6]));
}

#[tokio::test]
async fn best_of_gives_the_likeliest() {
    let server = real().await;
    let asking = |n: u64, best_of: u64| json!({"prompt": "x", "seed": 3, "n": n, "best_of": best_of, "max_tokens": 6, "logprobs": 0});
    let mean = |choice: &Value| {
        let all: Vec<f64> =
            choice["logprobs"]["token_logprobs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
        all.iter().sum::<f64>() / all.len() as f64
    };
    let all = answer(&server, asking(5, 5)).await;
    let mut expect: Vec<Value> = all["choices"].as_array().unwrap().clone();
    expect.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let best = answer(&server, asking(2, 5)).await;
    let text = |choice: &Value| choice["text"].clone();
    let expect: Vec<Value> = expect.iter().take(2).map(text).collect();
    assert_eq!(best["choices"].as_array().unwrap().iter().map(text).collect::<Vec<_>>(), expect);
    assert_eq!(best["usage"]["completion_tokens"], all["usage"]["completion_tokens"], "all of them were made");
}

#[tokio::test]
async fn echo_measures_the_prompt_whatever_the_chunks() {
    // 3 tokens a step cut the prompt in every way that matters; a whole step computes it at once.
    let mut answers = Vec::new();
    for tokens in [512, 3] {
        let config = EngineConfig { max_num_batched_tokens: tokens, max_num_seqs: 3, ..EngineConfig::default() };
        let server = start(config, StubConfig::default(), Setup::default()).await;
        // Twice, so that the second could find the prompt in the cache, and must not lose its logits by that.
        for _ in 0..2 {
            let prompt = "how likely is this text, which is longer than one block of the cache, é";
            let body =
                json!({"prompt": prompt, "echo": true, "logprobs": 2, "max_tokens": 4, "seed": 1, "ignore_eos": true});
            let answer = answer(&server, body).await;
            let choice = &answer["choices"][0];
            assert!(texts(&answer)[0].starts_with(prompt));
            let logprobs = &choice["logprobs"];
            let list = |name: &str| logprobs[name].as_array().unwrap().clone();
            let num_tokens = prompt.len() + 4;
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                assert_eq!(list(name).len(), num_tokens, "{name}");
            }
            assert_eq!(
                (&list("tokens")[0], &list("token_logprobs")[0], &list("text_offset")[1]),
                (&json!("h"), &Value::Null, &json!(1))
            );
            assert!(list("token_logprobs")[1..].iter().all(|p| p.as_f64().is_some_and(|p| p <= 0.0)));
            assert!(list("top_logprobs")[1..].iter().all(|t| (2..=3).contains(&t.as_object().unwrap().len())));
            assert_eq!(list("tokens")[prompt.len() - 1], "bytes:\\xa9");
            answers.push(answer["choices"].clone());
        }
    }
    assert!(answers.iter().all(|a| *a == answers[0]), "{answers:#?}");
}

#[tokio::test]
async fn a_prompt_can_be_measured_without_a_text() {
    let server = real().await;
    let body = json!({"prompt": "abc", "echo": true, "logprobs": 1, "max_tokens": 0});
    let whole = answer(&server, body.clone()).await;
    assert_eq!((texts(&whole), &whole["usage"]["completion_tokens"]), (vec!["abc".to_owned()], &json!(0)));
    assert_eq!(whole["choices"][0]["logprobs"]["tokens"], json!(["a", "b", "c"]));
    let mut streaming = body;
    streaming["stream"] = json!(true);
    let (mut client, _) = Client::open_post(server.address, PATH, &streaming).await;
    let events = SseParser::parse(&client.rest().await).events;
    let chunks: Vec<Value> = events.iter().filter(|e| e.data != "[DONE]").map(SseEvent::json).collect();
    assert_eq!(chunks[0]["choices"][0]["logprobs"], whole["choices"][0]["logprobs"]);
    assert_eq!(chunks.len(), 2, "the prompt, then the end: {chunks:?}");
}

#[tokio::test]
async fn a_failing_choice_ends_all_of_them() {
    let server = TestServer::start().await;
    let body = json!({"prompt": "x", "n": 2, "stream": true});
    let (mut client, _) = Client::open_post(server.address, PATH, &body).await;
    let (first, mut second) = (server.backend.job().await, server.backend.job().await);
    assert_eq!(second.request.leader, Some(first.request.id));
    first.start();
    first.say("a");
    client.until("\"a\"").await;
    first.fail(ErrorKind::Internal, "the worker failed");
    let events = SseParser::parse(&client.rest().await).events;
    assert_eq!(events.last().unwrap().json()["error"]["message"], "the worker failed");
    second.cancelled().await;
}

#[tokio::test]
async fn cancelling_by_name_cancels_every_choice() {
    let server = TestServer::start().await;
    let body = json!({"prompt": "x", "n": 3, "stream": true});
    let (mut client, _) = Client::open_post(server.address, PATH, &body).await;
    let mut jobs = [server.backend.job().await, server.backend.job().await, server.backend.job().await];
    let path = format!("{PATH}/cmpl-{}/cancel", jobs[0].log.id());
    assert_eq!(post(server.address, &path, &json!({})).await.status, 204);
    for job in &mut jobs {
        job.cancelled().await;
    }
    client.rest().await;
}

#[tokio::test]
async fn cancelling_by_name_cancels_the_texts_of_every_prompt() {
    for (num_choices, is_stream) in [(1, false), (1, true), (2, false), (2, true)] {
        let server = TestServer::start().await;
        let body = json!({"prompt": ["a", "b", "c"], "n": num_choices, "stream": is_stream, "max_tokens": 100});
        let mut client = Client::connect(server.address).await;
        client.send(&request("POST", PATH, &[], &body.to_string())).await;
        if is_stream {
            assert_eq!(client.head().await.status, 200);
        }
        let mut jobs = Vec::new();
        for _ in 0..3 * num_choices {
            jobs.push(server.backend.job().await);
        }
        let path = format!("{PATH}/cmpl-{}/cancel", jobs[0].log.id());
        assert_eq!(post(server.address, &path, &json!({})).await.status, 204);
        for job in &mut jobs {
            assert_eq!(job.cancelled().await, CancelCause::Requested, "{body}");
        }
        if is_stream {
            assert!(client.rest().await.contains("\"code\":\"cancelled\""), "{body}");
        } else {
            assert_eq!(client.head().await.status, 499, "{body}");
        }
    }
}

#[tokio::test]
async fn a_cancelled_answer_to_several_prompts_leaves_nothing_running() {
    let gate = StubGate::new();
    let stub = StubConfig { gate: Some(gate.clone()), ..StubConfig::default() };
    let server = start(EngineConfig::default(), stub, Setup::default()).await;
    let body = json!({"prompt": ["a", "b", "c"], "max_tokens": 4000, "ignore_eos": true});
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", PATH, &[], &body.to_string())).await;
    let mut num_steps = 1;
    arrived(&gate, num_steps).await;
    while server.service.metrics().num_running.get() < 3 {
        gate.allow(1);
        num_steps += 1;
        arrived(&gate, num_steps).await;
    }
    // The answer is named as the first of its streams, which only the feed tells before there is an answer.
    let path = format!("/v1/events?last_event_id={:x}-start", server.service.table().feed_epoch().0);
    let (mut feed, _) = Client::open(server.address, &path, &[]).await;
    let told = happenings(&feed.until("event: queued").await);
    let first = told.into_iter().find(|(name, _)| name == "queued").and_then(|(_, stream)| stream).unwrap();
    assert_eq!(post(server.address, &format!("{PATH}/cmpl-{first}/cancel"), &json!({})).await.status, 204);
    gate.open();
    assert_eq!(client.head().await.status, 499);
    server.service.drained().await;
    assert_eq!(metric(&server, "tallow_cancels_total{cause=\"requested\"}").await, 3.0);
    for name in ["num_running", "num_waiting", "kv_blocks_used", "requests_done_total", "requests_failed_total"] {
        assert_eq!(metric(&server, &format!("tallow_{name}")).await, 0.0, "{name}");
    }
}

#[tokio::test]
async fn a_prompt_that_is_refused_takes_those_before_it_along() {
    let server = TestServer::with(|s| s.table.num_streams_max = 2).await;
    let body = json!({"prompt": ["a", "b", "c"]}).to_string();
    let text = request("POST", PATH, &[("x-stream-on-disconnect", "detach")], &body);
    let refused = Client::connect(server.address).await.exchange(&text).await;
    assert_eq!((refused.status, refused.headers.contains_key("retry-after")), (429, true), "{}", refused.body);
    for _ in 0..2 {
        assert_eq!(server.backend.job().await.cancelled().await, CancelCause::Requested);
    }
}

#[tokio::test]
async fn rules_are_told_with_their_field() {
    let server = TestServer::with(|s| s.service.choices_max = 4).await;
    let cases = [
        (json!({}), "prompt", "`prompt` must be given"),
        (json!({"prompt": []}), "prompt", "must have at least one token"),
        (json!({"prompt": ""}), "prompt", "must have at least one token"),
        (json!({"prompt": ["a", 1]}), "prompt", "token ids or prompts, not both"),
        (json!({"prompt": {"a": 1}}), "prompt", "expected a string, a list of token ids"),
        (json!({"prompt": [[1, -1]]}), "prompt[0][1]", "invalid value: integer `-1`"),
        (json!({"prompt": [999_999]}), "prompt[0]", "`prompt[0]` must be a token id below"),
        (json!({"prompt": "x", "n": 0}), "n", "must be at least 1"),
        (json!({"prompt": "x", "n": 5}), "prompt", "at most 4 texts, got 1 prompts with 5 choices"),
        (json!({"prompt": ["x", "y", "z"], "n": 2}), "prompt", "at most 4 texts"),
        (json!({"prompt": "x", "best_of": 1, "n": 2}), "best_of", "must be at least `n` (2), got 1"),
        (json!({"prompt": "x", "best_of": 2, "stream": true}), "best_of", "with `stream: true`"),
        (json!({"prompt": "x", "suffix": "y"}), "suffix", "not supported"),
        (json!({"prompt": "x", "logprobs": -1}), "logprobs", "must be at least 0"),
        (json!({"prompt": "x", "logprobs": true}), "logprobs", "expected a whole number"),
        (json!({"prompt": "x", "logprobs": 21}), "top_logprobs", "must be at most 20"),
        (json!({"prompt": "x", "max_tokens": 0}), "max_tokens", "must be at least 1"),
        (json!({"prompt": "x", "max_tokens": -2}), "max_tokens", "must be at least 0"),
        (json!({"prompt": "x", "stream_options": {}}), "stream_options", "must come with `stream: true`"),
    ];
    for (body, param, message) in cases {
        let reply = post(server.address, PATH, &body).await;
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["type"]), (400, &json!("invalid_request_error")), "{body}: {error}");
        assert_eq!(error["param"], param, "{body}: {error}");
        assert!(error["message"].as_str().unwrap().contains(message), "{body}: {error}");
    }
    assert!(server.backend.has_no_job().await);
}

/// It was told in the digits of an `f64` in one list and of an `f32` in the other, so that to clients that compare them,
/// as lm-evaluation-harness does, no token was ever the likeliest one.
#[tokio::test]
async fn a_log_probability_is_the_same_number_in_both_lists() {
    let server = real().await;
    let body = json!({"prompt": "abc", "temperature": 0, "logprobs": 1, "max_tokens": 8, "ignore_eos": true});
    let logprobs = &answer(&server, body).await["choices"][0]["logprobs"];
    for i in 0..8 {
        let (own, top) = (&logprobs["token_logprobs"][i], logprobs["top_logprobs"][i].as_object().unwrap());
        assert!(own.is_f64() && top.values().all(|p| p == own), "token {i}: {logprobs}");
    }
}

#[tokio::test]
async fn every_echo_is_of_its_own_prompt() {
    let server = real().await;
    let body = json!({"prompt": [[97, 98], "xyz"], "echo": true, "logprobs": 0, "max_tokens": 0, "n": 2});
    let answer = answer(&server, body).await;
    assert_eq!(texts(&answer), ["ab", "ab", "xyz", "xyz"]);
    let (ab, xyz) = (json!(["a", "b"]), json!(["x", "y", "z"]));
    for (index, tokens) in [&ab, &ab, &xyz, &xyz].into_iter().enumerate() {
        assert_eq!(&answer["choices"][index]["logprobs"]["tokens"], tokens, "choice {index}");
    }
}

/// What is echoed of a prompt was made before the prompt was looked at.
#[tokio::test]
async fn a_prompt_to_be_echoed_that_is_refused_takes_those_before_it_along() {
    let server = TestServer::start().await;
    for wrong in [json!([97, 999_999]), json!("x".repeat(300))] {
        let body = json!({"prompt": ["a", wrong], "echo": true}).to_string();
        let text = request("POST", PATH, &[("x-stream-on-disconnect", "detach")], &body);
        let refused = Client::connect(server.address).await.exchange(&text).await;
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert_eq!(server.backend.job().await.cancelled().await, CancelCause::Requested);
        assert!(server.backend.has_no_job().await);
    }
}
