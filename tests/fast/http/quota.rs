//! Tokens per minute over the wire: what is told of them, what is refused, what is given back, and what becomes of a
//! request that does not say how many it wants.

use std::sync::Arc;

use serde_json::{Value, json};
use tallow::api::ApiKey;
use tallow::error::{Error, ErrorKind};
use tallow::protocol::{Owner, OwnerLimits, Tenant};

use crate::http::common::{Client, Reply, TestServer, request};

const KEY: &str = "sk-ann-0123";
const STREAMS: &str = "/v1/streams";
const EMBEDDINGS: &str = "/v1/embeddings";
/// So few that one takes ten seconds to come back: the numbers stand still while a test looks at them.
const FEW: u32 = 6;

fn limits(num_tokens: u32) -> OwnerLimits {
    OwnerLimits { tokens_per_minute: Some(num_tokens), ..OwnerLimits::default() }
}

/// A server with one key, which may use so many tokens a minute.
async fn keyed(num_tokens: u32) -> TestServer {
    TestServer::with(|setup| {
        let (name, limits) = ("ann".to_owned(), limits(num_tokens));
        let owner = Owner { tenant: Tenant(1), name, is_admin: false, limits, ..Owner::anonymous() };
        let owner = Arc::new(owner);
        setup.api.keys = vec![ApiKey::new(KEY, owner.clone())];
        setup.service.owners = vec![owner];
    })
    .await
}

async fn ask(server: &TestServer, body: &Value) -> Reply {
    ask_at(server, STREAMS, body).await
}

async fn ask_at(server: &TestServer, path: &str, body: &Value) -> Reply {
    let text = request("POST", path, &[("x-api-key", KEY)], &body.to_string());
    Client::connect(server.address).await.exchange(&text).await
}

#[track_caller]
fn check(reply: &Reply, status: u16, remaining: &str) {
    let told = reply.headers.get("x-ratelimit-remaining-tokens").map(String::as_str);
    assert_eq!((reply.status, told), (status, Some(remaining)), "{}", reply.body);
}

/// A prompt of one token.
fn asking(max_tokens: u32) -> Value {
    json!({"prompt": "x", "max_tokens": max_tokens, "on_disconnect": "detach"})
}

#[tokio::test]
async fn tokens_are_spent_as_reserved_and_refused_with_a_time_to_come_back() {
    let server = keyed(FEW).await;
    let spent = ask(&server, &asking(3)).await;
    check(&spent, 201, "2");
    assert_eq!(spent.headers["x-ratelimit-limit-tokens"], "6");
    let reset = spent.headers["x-ratelimit-reset-tokens"].strip_suffix('s').unwrap().parse::<f64>().unwrap();
    assert!((20.0..=40.0).contains(&reset), "four are missing, at ten seconds each: {reset}");

    let refused = ask(&server, &asking(3)).await;
    check(&refused, 429, "2");
    let error = &refused.json()["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("rate_limit_exceeded")));
    assert!(error["message"].as_str().unwrap().contains("tokens a minute"), "{error}");
    let of = |name: &str| refused.headers[name].parse::<u64>().unwrap();
    let (seconds, ms) = (of("retry-after"), of("retry-after-ms"));
    assert!(ms <= 20_000 && seconds == ms.div_ceil(1000), "two are missing, at ten seconds each: {ms}");
    // What there is can still be had.
    check(&ask(&server, &asking(1)).await, 201, "0");
}

#[tokio::test]
async fn more_than_a_minutes_worth_is_wrong_and_costs_nothing() {
    let server = keyed(FEW).await;
    for body in [asking(6), json!({"prompt": "xxxxxx"})] {
        let reply = ask(&server, &body).await;
        check(&reply, 400, "6");
        assert_eq!(reply.json()["error"]["param"], "max_tokens", "{body}: {}", reply.body);
    }
    check(&ask(&server, &asking(5)).await, 201, "0");
}

#[tokio::test]
async fn what_was_not_asked_for_is_no_more_than_may_be_had() {
    let server = keyed(FEW).await;
    check(&ask(&server, &json!({"prompt": "x"})).await, 201, "0");
    assert_eq!(server.backend.job().await.request.max_tokens, 5);

    const LIMIT: usize = 120;
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (path, num_choices, body) in [
        ("/v1/chat/completions", 1, json!({"messages": messages, "stream": true})),
        ("/v1/chat/completions", 2, json!({"messages": messages, "stream": true, "n": 2})),
        ("/v1/responses", 1, json!({"input": "hi", "background": true})),
    ] {
        let server = keyed(LIMIT as u32).await;
        let mut client = Client::connect(server.address).await;
        client.send(&request("POST", path, &[("x-api-key", KEY)], &body.to_string())).await;
        assert_eq!(client.head().await.status, 200, "{path} {body}");
        for _ in 0..num_choices {
            let taken = server.backend.job().await.request;
            let num_tokens = taken.prompt.len() + taken.max_tokens;
            assert_eq!(num_tokens, LIMIT / num_choices, "{path} {body}");
        }
    }
}

/// The owner of every request was one without limits, so that nothing was cut to them.
#[tokio::test]
async fn the_same_without_keys() {
    let server = TestServer::with(|setup| {
        setup.service.owners = vec![Arc::new(Owner { limits: limits(FEW), ..Owner::anonymous() })];
    })
    .await;
    check(&ask(&server, &json!({"prompt": "x"})).await, 201, "0");
    assert_eq!(server.backend.job().await.request.max_tokens, 5);
}

/// What a backend refuses with, and the status of that.
fn refusals() -> [(Error, u16); 2] {
    [
        (Error::overloaded("the queue is full", 1500), 429),
        (Error::new(ErrorKind::Unavailable, "the server is shutting down"), 503),
    ]
}

#[tokio::test]
async fn what_the_queue_refuses_is_given_back() {
    let server = keyed(FEW).await;
    for (error, status) in refusals() {
        server.backend.refuse_next(error);
        let refused = ask(&server, &asking(3)).await;
        check(&refused, status, "6");
        assert_ne!(refused.json()["error"]["code"], "rate_limit_exceeded", "{}", refused.body);
    }
    check(&ask(&server, &asking(3)).await, 201, "2");
    // Also when something was spent before.
    server.backend.refuse_next(Error::overloaded("the queue is full", 1500));
    check(&ask(&server, &asking(1)).await, 429, "2");
    check(&ask(&server, &asking(1)).await, 201, "0");
}

#[tokio::test]
async fn what_the_table_has_no_room_for_is_given_back() {
    let server = TestServer::with(|setup| {
        setup.table.num_streams_max = 1;
        setup.service.owners = vec![Arc::new(Owner { limits: limits(FEW), ..Owner::anonymous() })];
    })
    .await;
    check(&ask(&server, &asking(1)).await, 201, "4");
    let refused = ask(&server, &asking(1)).await;
    check(&refused, 429, "4");
    assert_eq!(refused.json()["error"]["code"], "overloaded", "{}", refused.body);
}

#[tokio::test]
async fn texts_to_embed_that_the_queue_refuses_are_given_back() {
    let server = keyed(FEW).await;
    for (error, status) in refusals() {
        server.backend.refuse_next(error);
        let refused = ask_at(&server, EMBEDDINGS, &json!({"input": ["ab", "c"]})).await;
        check(&refused, status, "6");
        assert_ne!(refused.json()["error"]["code"], "rate_limit_exceeded", "{}", refused.body);
    }
}

#[tokio::test]
async fn texts_that_were_embedded_before_one_is_refused_stay_spent() {
    let server = TestServer::with(|setup| {
        setup.service.embedding_inputs_at_once = 1;
        setup.service.owners = vec![Arc::new(Owner { limits: limits(FEW), ..Owner::anonymous() })];
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", EMBEDDINGS, &[], &json!({"input": ["ab", "c", "d"]}).to_string())).await;
    let job = server.backend.embed_job().await;
    server.backend.refuse_next(Error::overloaded("the queue is full", 1500));
    job.answer(&[1.0]);
    check(&client.exchange("").await, 429, "4");
}

/// A text that fails in a worker, or too late, was no refusal: as with what is generated, nothing comes back.
#[tokio::test]
async fn texts_that_fail_once_they_are_accepted_stay_spent() {
    let server = keyed(FEW).await;
    let mut client = Client::connect(server.address).await;
    client.send(&request("POST", EMBEDDINGS, &[("x-api-key", KEY)], &json!({"input": "ab"}).to_string())).await;
    server.backend.embed_job().await.fail(ErrorKind::Internal, "the worker failed");
    check(&client.exchange("").await, 500, "4");
}
