//! The Responses API's rules: every field that is refused, what is kept and for how long, and for whom.

use std::sync::Arc;

use serde_json::json;
use tallow::api::{ApiKey, ResponseLimits};
use tallow::protocol::{Constraint, FinishReason, Owner, OwnerLimits, StreamId, Tenant};
use tallow::stream::CancelCause;

use crate::http::common::sse::SseParser;
use crate::http::common::{Client, TestServer, get, post, request};
use crate::http::responses::{PATH, asking, path_of, streamed, whole};

#[tokio::test]
async fn tools_and_formats_reach_the_request() {
    // Tools take some room in a prompt.
    let server = TestServer::with(|s| s.spec.max_model_len = 2048).await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let closed = json!({
        "type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": false,
    });
    for (format, expect) in [
        (json!({"type": "text"}), None),
        (json!({"type": "json_object"}), Some(Constraint::JsonObject)),
        (
            json!({"type": "json_schema", "name": "s", "schema": schema, "strict": true}),
            Some(Constraint::JsonSchema(closed.to_string())),
        ),
    ] {
        let (reply, job) = whole(&server, &json!({"text": {"format": format}}), &["{}"]).await;
        assert_eq!(reply.json()["text"]["format"], format, "{}", reply.body);
        assert_eq!(job.request.constraint, expect);
    }
    let tools = json!([{"type": "function", "name": "f", "description": "d", "parameters": schema, "strict": true}]);
    for choice in [json!("auto"), json!("none"), json!("required"), json!({"type": "function", "name": "f"})] {
        let (reply, _) = whole(&server, &json!({"tools": tools, "tool_choice": choice}), &["x"]).await;
        assert_eq!((&reply.json()["tools"], &reply.json()["tool_choice"]), (&tools, &choice), "{}", reply.body);
    }
}

#[tokio::test]
async fn every_rule_is_a_status_and_a_name() {
    let server = TestServer::start().await;
    let tool = json!([{"type": "function", "name": "f"}]);
    for (more, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [5]}), "input[0]"),
        (json!({"input": [{"type": 5}]}), "input[0].type"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input"),
        (json!({"input": [{"content": "x"}]}), "input[0].role"),
        (json!({"input": [{"role": "tool", "content": "x"}]}), "input[0].role"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (json!({"input": [{"role": "user", "content": ["x"]}]}), "input[0].content[0]"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "input[0].content[0].type"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}), "input[0].content[0].text"),
        (json!({"input": [{"type": "function_call", "name": "f", "arguments": ""}]}), "input[0].call_id"),
        (json!({"input": [{"type": "function_call", "call_id": "c", "arguments": ""}]}), "input[0].name"),
        (json!({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}), "input[0].arguments"),
        (json!({"input": [{"type": "function_call_output", "call_id": "c"}]}), "input[0].output"),
        (json!({"input": [{"type": "reasoning", "content": "x"}]}), "input[0].content"),
        (json!({"instructions": 5}), "instructions"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"guided_choice": ["a", "b"]}), "guided_choice"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"truncation": "maybe"}), "truncation"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"top_logprobs": -1}), "top_logprobs"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
        (json!({"include": ["x"]}), "include[0]"),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"background": true, "store": false}), "background"),
        (json!({"tools": [{"name": "f"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"tools": [{"type": "function", "name": "f", "parameters": 5}]}), "tools[0].parameters"),
        (json!({"tools": [{"type": "function", "name": "f", "description": 5}]}), "tools[0].description"),
        (json!({"tools": [{"type": "namespace", "name": "f"}]}), "tools[0].tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": "maybe"}), "tool_choice"),
        (json!({"tool_choice": 5}), "tool_choice"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice.name"),
        (json!({"tools": tool, "tool_choice": {"type": "function", "name": "g"}}), "tool_choice"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema"}}}), "text.format.schema"),
        (json!({"metadata": {"a": 5}}), "metadata.a"),
        (
            json!({"metadata": (0..17).map(|i| (i.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>()}),
            "metadata",
        ),
    ] {
        let reply = post(server.address, PATH, &asking(&more)).await;
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["param"]), (400, &json!(param)), "{more} {}", reply.body);
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains(&format!("`{param}`")), "{more} {}", reply.body);
    }
    assert!(server.backend.has_no_job().await);
    let body = asking(&json!({"background": true})).to_string();
    let text = request("POST", PATH, &[("x-stream-on-disconnect", "cancel")], &body);
    let reply = Client::connect(server.address).await.exchange(&text).await;
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("x-stream-on-disconnect")));
}

#[tokio::test]
async fn a_query_that_breaks_a_rule_is_named() {
    let server = TestServer::start().await;
    let (_, job) = whole(&server, &json!({}), &["x"]).await;
    for (query, param) in [
        ("stream=maybe", "stream"),
        ("starting_after=1", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
    ] {
        let reply = get(server.address, &format!("{}?{query}", path_of(&job)), &[]).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{query}");
    }
}

#[tokio::test]
async fn an_expired_response_is_unknown() {
    let server = TestServer::with(|setup| setup.table.num_streams_max = 1).await;
    let (_, first) = whole(&server, &json!({}), &["x"]).await;
    whole(&server, &json!({}), &["y"]).await;
    assert_eq!(get(server.address, &path_of(&first), &[]).await.status, 404, "the table had room for one");
}

#[tokio::test]
async fn an_owner_keeps_so_many_and_live_ones_stay() {
    let limits = ResponseLimits { num_responses_max: 1, num_bytes_max: 2000 };
    let server = TestServer::with(|setup| setup.api.responses = limits).await;
    let (_, first) = whole(&server, &json!({}), &["x"]).await;
    let background = asking(&json!({"background": true}));
    assert_eq!(post(server.address, PATH, &background).await.status, 200);
    let live = server.backend.job().await;
    assert_eq!(get(server.address, &path_of(&first), &[]).await.status, 404, "it had ended and made room");
    let refused = post(server.address, PATH, &background).await;
    assert_eq!((refused.status, refused.headers.contains_key("retry-after")), (429, true), "{}", refused.body);
    let mut stopped = server.backend.job().await;
    assert_eq!(stopped.cancelled().await, CancelCause::Requested, "nobody could ask for it");
    assert_eq!(get(server.address, &path_of(&live), &[]).await.status, 200);
    live.run(&["x"]);
    let large = post(
        server.address,
        PATH,
        &asking(&json!({"metadata": {"a": "x".repeat(512), "b": "x".repeat(512),
        "c": "x".repeat(512), "d": "x".repeat(512)}})),
    )
    .await;
    assert_eq!((large.status, &large.json()["error"]["param"]), (400, &json!("input")), "{}", large.body);
}

#[tokio::test]
async fn a_log_that_lost_its_beginning_is_refused_and_not_renumbered() {
    let server = TestServer::with(|setup| setup.table.stream_bytes_max = 5000).await;
    let (_, job) = streamed(&server, &json!({"background": true}), |job| {
        job.start();
        (0..40).for_each(|_| job.say("some words that take their place"));
        job.finish(FinishReason::Stop);
    })
    .await;
    assert!(job.log.first_seq() > 0);
    let reply = get(server.address, &path_of(&job), &[]).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (410, &json!("history_trimmed")));
    let text = get(server.address, &format!("{}?stream=true&starting_after=7", path_of(&job)), &[]).await.body;
    let events = SseParser::parse(&text).events;
    assert_eq!(events.len(), 1, "{text}");
    assert_eq!(
        (&events[0].json()["code"], &events[0].json()["sequence_number"]),
        (&json!("history_trimmed"), &json!(8))
    );
}

#[tokio::test]
async fn what_is_another_owners_does_not_exist() {
    let owner = |tenant: u64| {
        let (name, limits) = (format!("owner-{tenant}"), OwnerLimits::default());
        Arc::new(Owner { tenant: Tenant(tenant), name, is_admin: false, limits, ..Owner::anonymous() })
    };
    let server = TestServer::with(|setup| {
        let owners = [owner(1), owner(2)];
        setup.api.keys = vec![ApiKey::new("sk-ann-0", owners[0].clone()), ApiKey::new("sk-bob-0", owners[1].clone())];
        setup.service.owners = owners.to_vec();
    })
    .await;
    let ask = async |key: &str, method: &str, path: &str, body: &str| {
        let bearer = format!("Bearer {key}");
        let text = request(method, path, &[("authorization", &bearer)], body);
        Client::connect(server.address).await.exchange(&text).await
    };
    let created = ask("sk-ann-0", "POST", PATH, &asking(&json!({"background": true})).to_string()).await;
    assert_eq!(created.status, 200, "{}", created.body);
    let job = server.backend.job().await;
    let (own, never) = (path_of(&job), format!("{PATH}/resp_{}", StreamId::random()));
    for (method, rest) in
        [("GET", ""), ("GET", "?stream=true"), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]
    {
        let theirs = ask("sk-bob-0", method, &format!("{own}{rest}"), "").await;
        let unknown = ask("sk-bob-0", method, &format!("{never}{rest}"), "").await;
        assert_eq!((theirs.status, unknown.status), (404, 404), "{method} {rest}");
        let id = |path: &str| path.trim_start_matches("/v1/responses/").to_owned();
        assert_eq!(theirs.body.replace(&id(&own), "ID"), unknown.body.replace(&id(&never), "ID"));
    }
    let chained = asking(&json!({"previous_response_id": created.json()["id"]})).to_string();
    assert_eq!(ask("sk-bob-0", "POST", PATH, &chained).await.status, 404);
    job.run(&["x"]);
    assert_eq!(ask("sk-ann-0", "GET", &own, "").await.json()["status"], "completed");
}
