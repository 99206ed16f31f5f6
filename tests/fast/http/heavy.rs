//! Requests made to cost much: what grows with a body, a prompt or an answer is bounded, and is worked on where it holds
//! nobody up. Nothing here is timed: the pool of low priority is held by a gate, and whoever does not need it is answered.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use serde_json::{Value, json};
use tallow::api::ApiKey;
use tallow::protocol::{FinishReason, Tenant};
use tallow::protocol::{Owner, OwnerLimits};
use tallow::service::BackgroundLimits;
use tokio::task::JoinHandle;

use crate::http::common::{Client, Reply, Setup, TestServer, get, post, request};

/// A server whose pool has one thread, which works for the anonymous owner only when it is let.
async fn one_thread(change: impl FnOnce(&mut Setup)) -> TestServer {
    TestServer::with(|setup| {
        setup.service.background = BackgroundLimits { num_threads: Some(1), waiting_per_owner_max: 8 };
        change(setup);
    })
    .await
}

/// Holds the thread until the sender is dropped.
async fn hold(server: &TestServer) -> (Sender<()>, JoinHandle<()>) {
    let (sender, gate) = mpsc::channel::<()>();
    let (began, begun) = tokio::sync::oneshot::channel();
    let service = server.service.clone();
    let held = tokio::spawn(async move {
        let work = move || {
            began.send(()).unwrap();
            gate.recv().unwrap_err();
        };
        service.sized(Tenant(0), usize::MAX, work).await.unwrap();
    });
    begun.await.unwrap();
    (sender, held)
}

fn text(num_bytes: usize) -> String {
    "x".repeat(num_bytes)
}

/// A long body that is answered with an error, for each route that takes one.
fn long_and_wrong() -> Vec<(&'static str, Value)> {
    let long = text(10_000);
    let chat = json!([{"role": "nobody", "content": long}]);
    vec![
        ("/v1/chat/completions", json!({"messages": chat})),
        ("/v1/completions", json!({"prompt": long, "n": 1000})),
        ("/v1/messages", json!({"messages": chat, "max_tokens": 1})),
        ("/v1/messages/count_tokens", json!({"messages": chat})),
        ("/v1/responses", json!({"input": chat})),
        ("/v1/embeddings", json!({"input": long, "dimensions": 3})),
        ("/v1/streams", json!({"prompt": long, "temperature": 9})),
        ("/tokenize", json!({"prompt": long, "messages": []})),
        ("/detokenize", json!({"tokens": vec![999; 5000]})),
    ]
}

#[tokio::test]
async fn a_long_body_is_read_on_the_pool_on_every_route_and_others_are_served_meanwhile() {
    let server = one_thread(|_| {}).await;
    for (path, body) in long_and_wrong() {
        let (gate, held) = hold(&server).await;
        let address = server.address;
        let waiting = tokio::spawn(async move { post(address, path, &body).await });
        // The body has come when a later one is answered: short ones need no pool.
        for _ in 0..10 {
            assert_eq!(get(address, "/health/live", &[]).await.status, 200);
            assert_eq!(post(address, "/tokenize", &json!({"prompt": "hi"})).await.status, 200);
        }
        assert!(!waiting.is_finished(), "{path}");
        drop(gate);
        held.await.unwrap();
        assert_eq!(waiting.await.unwrap().status, 400, "{path}");
    }
}

#[tokio::test]
async fn long_texts_and_long_answers_are_worked_on_there_too() {
    let server = one_thread(|setup| setup.service.inline_bytes_max = 256).await;
    // Short to read, long to tokenise together; long to answer.
    let inputs = vec!["x"; 100];
    let (gate, held) = hold(&server).await;
    let address = server.address;
    let embedding = tokio::spawn(async move { post(address, "/v1/embeddings", &json!({"input": inputs})).await });
    assert_eq!(post(address, "/tokenize", &json!({"prompt": "hi"})).await.status, 200);
    assert!(server.backend.has_no_job().await, "none of the texts was tokenised");
    embedding.abort();
    assert!(embedding.await.unwrap_err().is_cancelled());
    drop(gate);
    held.await.unwrap();
    // What waited behind it has left with its client: the next one comes first.
    assert_eq!(post(address, "/tokenize", &json!({"prompt": text(1000)})).await.status, 200);
    assert!(server.backend.has_no_job().await);
}

#[tokio::test]
async fn who_leaves_takes_the_work_along_that_has_not_begun() {
    let server = one_thread(|_| {}).await;
    let (gate, held) = hold(&server).await;
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", "/v1/completions", &[], &json!({"prompt": text(10_000)}).to_string())).await;
    assert_eq!(get(server.address, "/health/live", &[]).await.status, 200);
    client.reset();
    assert_eq!(get(server.address, "/health/live", &[]).await.status, 200);
    drop(gate);
    held.await.unwrap();
    assert_eq!(post(server.address, "/tokenize", &json!({"prompt": text(10_000)})).await.status, 200);
    assert!(server.backend.has_no_job().await);
}

/// The bodies of the attacks, each at the limit of 4 MiB, took one to three seconds of an async thread.
#[tokio::test]
async fn counts_are_bounded_while_they_are_read() {
    let server = TestServer::start().await;
    let many = |n: usize, element: &str| vec![element; n].join(",");
    let message = r#"{"role":"user","content":"x"}"#;
    let part = r#"{"type":"text","text":"x"}"#;
    let call = r#"{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}"#;
    let chat = "/v1/chat/completions";
    let rows = [
        ("/v1/responses", format!(r#"{{"input":[{}]}}"#, many(120_000, "{}")), "65536 texts, arrays and objects"),
        ("/v1/embeddings", format!(r#"{{"input":[{}]}}"#, many(1_300_000, r#""""#)), "65536 texts, arrays and objects"),
        ("/v1/completions", format!(r#"{{"prompt":[{}]}}"#, many(1_300_000, "[]")), "65536 texts, arrays and objects"),
        (chat, format!(r#"{{"more":{{{}}}}}"#, many(400_000, r#""a":{}"#)), "65536 texts, arrays and objects"),
        ("/v1/embeddings", format!(r#"{{"input":[{}]}}"#, many(2049, r#""x""#)), "at most 2048 texts, got 2049"),
        ("/v1/completions", format!(r#"{{"prompt":[{}]}}"#, many(129, r#""x""#)), "at most 128 texts"),
        (chat, format!(r#"{{"messages":[{}]}}"#, many(4097, message)), "`messages` is wrong: must have at most 4096"),
        (
            chat,
            format!(r#"{{"messages":[{{"role":"user","content":[{}]}}]}}"#, many(1025, part)),
            "`messages[0].content` is wrong: must have at most 1024",
        ),
        (
            chat,
            format!(r#"{{"messages":[{{"role":"assistant","tool_calls":[{}]}}]}}"#, many(129, call)),
            "`messages[0].tool_calls` is wrong: must have at most 128",
        ),
        (
            "/v1/messages",
            format!(r#"{{"max_tokens":1,"messages":[{}]}}"#, many(4097, message)),
            "`messages` is wrong: must have at most 4096",
        ),
        (
            "/v1/messages",
            format!(r#"{{"max_tokens":1,"messages":[{{"role":"user","content":[{}]}}]}}"#, many(1025, part)),
            "`messages[0].content` is wrong: must have at most 1024",
        ),
        (
            "/v1/responses",
            format!(r#"{{"input":[{}]}}"#, many(4097, message)),
            "`input` is wrong: must have at most 4096",
        ),
        ("/v1/streams", format!(r#"{{"messages":[{}]}}"#, many(4097, message)), "`messages` is wrong"),
        ("/tokenize", format!(r#"{{"messages":[{}]}}"#, many(4097, message)), "`messages` is wrong"),
    ];
    for (path, body, expect) in rows {
        assert!(body.len() < 4 << 20);
        let reply = Client::connect(server.address).await.exchange(&request("POST", path, &[], &body)).await;
        let start = &body[..body.len().min(100)];
        assert_eq!(reply.status, 400, "{path} {start}: {}", reply.body);
        assert!(reply.body.contains(expect), "{path} {start}: {} lacks {expect:?}", reply.body);
    }
}

/// An error repeated the value that broke a rule, however long it was.
#[tokio::test]
async fn an_error_does_not_repeat_megabytes() {
    let server = TestServer::start().await;
    let long = text(1 << 20);
    let chat = json!([{"role": "user", "content": "x"}]);
    let rows = [
        ("/v1/chat/completions", json!({"messages": chat, "model": long})),
        ("/v1/chat/completions", json!({"messages": [{"role": long, "content": "x"}]})),
        ("/v1/chat/completions", json!({"messages": chat, "tool_choice": [long]})),
        ("/v1/chat/completions", json!({"messages": chat, "temperature": long})),
        ("/v1/responses", json!({"input": "x", "metadata": {long.clone(): 1}})),
        ("/v1/embeddings", json!({"input": "x", "encoding_format": long})),
        ("/v1/messages", json!({"messages": [{"role": long, "content": "x"}], "max_tokens": 1})),
    ];
    for (path, body) in rows {
        let reply = post(server.address, path, &body).await;
        assert!(matches!(reply.status, 400 | 404), "{path}: {}", reply.status);
        assert!(reply.body.len() < 8192, "{path}: {} bytes", reply.body.len());
    }
}

#[tokio::test]
async fn bodies_on_their_way_have_their_memory_and_no_more() {
    let server = TestServer::with(|setup| {
        setup.api.body_bytes_max = 100_000;
        setup.api.bodies_bytes_max = 200_000;
    })
    .await;
    let body = json!({"prompt": text(90_000)}).to_string();
    let whole = request("POST", "/tokenize", &[], &body);
    let mut first = Client::connect(server.address).await;
    first.send(&whole[..60_000]).await;
    // It must have come before the other is tried: the server takes it as it comes.
    let refused = loop {
        let reply = Client::connect(server.address).await.exchange(&whole).await;
        if reply.status != 200 {
            break reply;
        }
    };
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("overloaded")), "{}", refused.body);
    assert_eq!(refused.headers["retry-after"], "1");
    first.send(&whole[60_000..]).await;
    assert_eq!(first.head().await.status, 200);
    drop(first);
    assert_eq!(Client::connect(server.address).await.exchange(&whole).await.status, 200);
}

#[tokio::test]
async fn answers_that_nobody_reads_have_their_memory_and_no_more() {
    let server = TestServer::with(|setup| setup.api.answers_bytes_max = 2_000_000).await;
    let whole = request("POST", "/tokenize", &[], &json!({"prompt": text(200_000)}).to_string());
    let mut unread = Client::connect_narrow(server.address).await;
    unread.send(&whole).await;
    assert_eq!(unread.head().await.status, 200);
    let refused = Client::connect(server.address).await.exchange(&whole).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("overloaded")), "{}", refused.body);
    // A small answer is always given.
    assert_eq!(post(server.address, "/tokenize", &json!({"prompt": "hi"})).await.status, 200);
    unread.reset();
    let mut reply = Client::connect(server.address).await.exchange(&whole).await;
    while reply.status != 200 {
        reply = Client::connect(server.address).await.exchange(&whole).await;
    }
    assert_eq!(reply.json()["count"], 200_000);
}

#[tokio::test]
async fn counting_tokens_costs_a_request() {
    let limits = OwnerLimits { requests_per_minute: Some(3), ..OwnerLimits::default() };
    let owner = Owner { tenant: Tenant(1), name: "ann".to_owned(), is_admin: false, limits, ..Owner::anonymous() };
    let owner = Arc::new(owner);
    let server = TestServer::with(|setup| {
        setup.api.keys = vec![ApiKey::new("sk-ann", owner.clone())];
        setup.service.owners = vec![owner.clone()];
    })
    .await;
    let chat = json!([{"role": "user", "content": "hi"}]);
    let asked = [
        ("/tokenize", json!({"prompt": "hi"})),
        ("/detokenize", json!({"tokens": [1]})),
        ("/v1/messages/count_tokens", json!({"messages": chat})),
        ("/tokenize", json!({"prompt": "hi"})),
    ];
    let mut statuses = Vec::new();
    for (path, body) in asked {
        let text = request("POST", path, &[("x-api-key", "sk-ann")], &body.to_string());
        statuses.push(Client::connect(server.address).await.exchange(&text).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429]);
}

/// 500 with "the chat template wrote more than 4194304 bytes", for what a client had sent.
#[tokio::test]
async fn a_prompt_that_outgrows_the_template_is_the_clients_error() {
    let server = TestServer::with(|setup| {
        setup.template = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}";
    })
    .await;
    let body = json!({"messages": [{"role": "user", "content": text(3 << 20)}]});
    let reply = post(server.address, "/v1/chat/completions", &body).await;
    let error = &reply.json()["error"];
    assert_eq!((reply.status, &error["param"]), (400, &json!("messages")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("at most 4194304 bytes"), "{error}");
}

#[tokio::test]
async fn a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised() {
    let server = TestServer::start().await;
    let reply = post(server.address, "/v1/streams", &json!({"prompt": text(3 << 20)})).await;
    let error = &reply.json()["error"];
    assert_eq!((reply.status, &error["code"]), (400, &json!("context_length_exceeded")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("and the prompt has 3145728 tokens"), "{error}");
    // Whoever only counts may.
    assert_eq!(post(server.address, "/tokenize", &json!({"prompt": text(100_000)})).await.status, 200);
}

async fn events_read(server: &TestServer) -> u64 {
    let metrics = get(server.address, "/metrics", &[]).await.body;
    let line = metrics.lines().find(|line| line.starts_with("tallow_response_events_read_total ")).expect("a metric");
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

/// Each poll read the response from its beginning, and made 1.7 MB anew.
#[tokio::test]
async fn a_poll_costs_what_is_new() {
    let server = TestServer::start().await;
    let body = json!({
        "input": "hi", "background": true, "include": ["message.output_text.logprobs"], "top_logprobs": 2,
    });
    let created = post(server.address, "/v1/responses", &body).await.json();
    let path = format!("/v1/responses/{}", created["id"].as_str().unwrap());
    let job = server.backend.job().await;
    job.start();
    let poll = async || -> Reply { get(server.address, &path, &[]).await };
    for n in 1..=50 {
        job.say("a");
        for _ in 0..3 {
            let seen = poll().await.json();
            let part = &seen["output"][0]["content"][0];
            assert_eq!(part["text"].as_str().unwrap().len(), n, "{seen}");
            assert_eq!(part["logprobs"].as_array().unwrap().len(), n, "{seen}");
        }
    }
    job.finish(FinishReason::Stop);
    let last = poll().await.json();
    assert_eq!(last["status"], "completed");
    assert_eq!(poll().await.json(), last);
    // Queued, started, what was said, done.
    assert_eq!(events_read(&server).await, 1 + 1 + 50 + 1);
}
