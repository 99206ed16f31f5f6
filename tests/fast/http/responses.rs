//! The Responses API: exact events, numbers that hold on resuming, chains, cancelling and deleting.

use serde_json::{Value, json};
use tallow::error::ErrorKind;
use tallow::protocol::{FinishReason, OnDisconnect, StreamId};
use tallow::stream::CancelCause;

use crate::http::common::sse::{SseEvent, SseParser};
use crate::http::common::{Client, Job, Reply, TestServer, get, post, request};

pub(crate) const PATH: &str = "/v1/responses";

pub(crate) fn asking(more: &Value) -> Value {
    let mut body = json!({"model": "stub", "input": "hi"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

pub(crate) fn path_of(job: &Job) -> String {
    format!("{PATH}/resp_{}", job.log.id())
}

/// Text with the random id and the time of `job` replaced.
fn plain(text: &str, job: &Job) -> String {
    let created = format!("\"created_at\":{}", job.log.created_ms() / 1000);
    text.replace(&job.log.id().to_string(), "ID").replace(&created, "\"created_at\":0")
}

async fn send(server: &TestServer, method: &str, path: &str) -> Reply {
    Client::connect(server.address).await.exchange(&request(method, path, &[], "")).await
}

/// Opens a stream, runs it, and returns its bytes and its job.
pub(crate) async fn streamed(server: &TestServer, more: &Value, run: impl FnOnce(&Job)) -> (String, Job) {
    let mut body = asking(&json!({"stream": true}));
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (mut client, head) = Client::open_post(server.address, PATH, &body).await;
    assert_eq!(head.status, 200);
    let job = server.backend.job().await;
    run(&job);
    let text = client.rest().await;
    assert_eq!(head.headers["x-stream-id"], job.log.id().to_string());
    (text, job)
}

/// Asks without `stream`, and runs it.
pub(crate) async fn whole(server: &TestServer, more: &Value, pieces: &[&str]) -> (Reply, Job) {
    let body = asking(more);
    tokio::join!(post(server.address, PATH, &body), async {
        let job = server.backend.job().await;
        job.run(pieces);
        job
    })
}

fn names(text: &str) -> Vec<String> {
    SseParser::parse(text).events.iter().map(|e| e.name.clone()).collect()
}

/// The object with what differs in this test from a plain request.
fn object(status: &str, output: &Value, usage: &Value) -> String {
    let object = json!({
        "id": "resp_ID", "object": "response", "created_at": 0, "status": status, "error": null,
        "incomplete_details": null, "model": "stub", "output": output, "usage": usage, "background": false,
        "instructions": null, "max_output_tokens": null, "max_tool_calls": null, "parallel_tool_calls": true,
        "previous_response_id": null, "reasoning": {"effort": null, "summary": null}, "service_tier": "default",
        "store": true, "temperature": 1.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto",
        "tools": [], "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled", "user": null, "metadata": {},
    });
    object.to_string()
}

#[tokio::test]
async fn a_stream_is_these_bytes() {
    let server = TestServer::start().await;
    let (text, job) = streamed(&server, &json!({}), |job| job.run(&["Hel", "lo\n"])).await;
    let num = job.request.prompt.len();
    let item = |status: &str, content: &str| {
        let head = r#"{"id":"msg_ID_0","type":"message","status":""#;
        format!(r#"{head}{status}","role":"assistant","content":[{content}]}}"#)
    };
    let part = |text: &str| format!(r#"{{"type":"output_text","text":"{text}","annotations":[],"logprobs":[]}}"#);
    let done: Value = serde_json::from_str(&item("completed", &part(r"Hello\n"))).unwrap();
    let usage = json!({
        "input_tokens": num, "input_tokens_details": {"cached_tokens": 2}, "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": num + 3,
    });
    let response =
        |status: &str, output: Value, usage: Value| format!(r#""response":{}"#, object(status, &output, &usage));
    let at = r#""item_id":"msg_ID_0","output_index":0,"content_index":0"#;
    let expect = [
        ("response.created", response("queued", json!([]), Value::Null)),
        ("response.queued", response("queued", json!([]), Value::Null)),
        ("response.in_progress", response("in_progress", json!([]), Value::Null)),
        ("response.output_item.added", format!(r#""output_index":0,"item":{}"#, item("in_progress", ""))),
        ("response.content_part.added", format!(r#"{at},"part":{}"#, part(""))),
        ("response.output_text.delta", format!(r#"{at},"delta":"Hel","logprobs":[]"#)),
        ("response.output_text.delta", format!(r#"{at},"delta":"lo\n","logprobs":[]"#)),
        ("response.output_text.done", format!(r#"{at},"text":"Hello\n","logprobs":[]"#)),
        ("response.content_part.done", format!(r#"{at},"part":{}"#, part(r"Hello\n"))),
        ("response.output_item.done", format!(r#""output_index":0,"item":{done}"#)),
        ("response.completed", response("completed", json!([done]), usage)),
    ];
    let frame = |(number, (name, more)): (usize, &(&str, String))| {
        format!("event: {name}\ndata: {{\"type\":\"{name}\",\"sequence_number\":{number},{more}}}\n\n")
    };
    let expect: String = expect.iter().enumerate().map(frame).collect();
    assert_eq!(plain(&text, &job), expect);
}

#[tokio::test]
async fn whole_streamed_and_retrieved_are_one_object() {
    let server = TestServer::start().await;
    let more = json!({"instructions": "be brief", "metadata": {"a": "b"}, "user": "u", "temperature": 0.3, "top_p": 0.9,
        "max_output_tokens": 9, "reasoning": {"effort": "low"}, "service_tier": "auto", "truncation": "disabled"});
    let (text, streamed_job) = streamed(&server, &more, |job| job.run(&["a", "b"])).await;
    let last = SseParser::parse(&text).events.last().unwrap().json()["response"].clone();
    let (reply, job) = whole(&server, &more, &["a", "b"]).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(plain(&reply.body, &job), plain(&last.to_string(), &streamed_job));
    assert_eq!(get(server.address, &path_of(&job), &[]).await.body, reply.body);
    let object = reply.json();
    for (name, value) in more.as_object().unwrap().iter().filter(|(name, _)| *name != "reasoning") {
        assert_eq!(&object[name], value, "{name}");
    }
    assert_eq!(object["output"][0]["content"][0]["text"], "ab");
    assert_eq!(job.request.max_tokens, 9);
    let prompt: Vec<u8> = job.request.prompt.iter().map(|t| *t as u8).collect();
    assert!(
        String::from_utf8_lossy(&prompt).starts_with("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi")
    );
}

#[tokio::test]
async fn resuming_after_every_number_gives_exactly_the_rest() {
    let server = TestServer::start().await;
    let more = json!({"background": true});
    let (text, job) = streamed(&server, &more, |job| {
        // Its place is told again while it waits, and makes no further event.
        job.log.append(tallow::protocol::Event::Queued { position: 0, wait_ms: Some(5) });
        job.run(&["one", " two"]);
    })
    .await;
    let frames: Vec<&str> = text.split_inclusive("\n\n").collect();
    assert_eq!(frames.len(), 11);
    let path = path_of(&job);
    assert_eq!(get(server.address, &format!("{path}?stream=true"), &[]).await.body, text);
    for number in 0..frames.len() {
        let path = format!("{path}?stream=true&starting_after={number}");
        assert_eq!(get(server.address, &path, &[]).await.body, frames[number + 1..].concat(), "{number}");
    }
}

#[tokio::test]
async fn a_background_response_outlives_its_client_and_goes_on_where_it_left() {
    let server = TestServer::start().await;
    let body = asking(&json!({"background": true, "stream": true}));
    let (mut client, _) = Client::open_post(server.address, PATH, &body).await;
    let job = server.backend.job().await;
    assert_eq!(job.request.on_disconnect, OnDisconnect::Detach);
    job.start();
    job.say("one");
    let seen = client.until("\"one\"").await;
    client.close();
    let running = get(server.address, &path_of(&job), &[]).await.json();
    assert_eq!((&running["status"], &running["background"]), (&json!("in_progress"), &json!(true)));
    assert_eq!(running["output"][0]["content"][0]["text"], "one");
    let path = format!("{}?stream=true&starting_after={}", path_of(&job), names(&seen).len() - 1);
    let (mut client, _) = Client::open(server.address, &path, &[]).await;
    job.say(" two");
    job.finish(FinishReason::Stop);
    let rest = client.rest().await;
    assert_eq!(seen + &rest, get(server.address, &format!("{}?stream=true", path_of(&job)), &[]).await.body);
}

#[tokio::test]
async fn a_background_response_answers_at_once_and_can_be_cancelled_again_and_again() {
    let server = TestServer::start().await;
    let created = post(server.address, PATH, &asking(&json!({"background": true}))).await;
    let mut job = server.backend.job().await;
    assert_eq!((created.status, &created.json()["status"]), (200, &json!("queued")), "{}", created.body);
    job.start();
    job.say("so far");
    let cancel = format!("{}/cancel", path_of(&job));
    let first = send(&server, "POST", &cancel).await;
    assert_eq!(job.cancelled().await, CancelCause::Requested);
    assert_eq!((first.status, &first.json()["status"]), (200, &json!("cancelled")), "{}", first.body);
    assert_eq!(first.json()["output"][0]["status"], "incomplete");
    assert_eq!(first.json()["output"][0]["content"][0]["text"], "so far");
    assert_eq!(send(&server, "POST", &cancel).await.body, first.body);
    assert_eq!(get(server.address, &path_of(&job), &[]).await.body, first.body);
    let text = get(server.address, &format!("{}?stream=true", path_of(&job)), &[]).await.body;
    assert_eq!(names(&text).last().unwrap(), "response.cancelled");
}

#[tokio::test]
async fn only_a_background_response_can_be_cancelled() {
    let server = TestServer::start().await;
    let (_, job) = whole(&server, &json!({}), &["x"]).await;
    let reply = send(&server, "POST", &format!("{}/cancel", path_of(&job))).await;
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (400, &json!("invalid_request_error")));
    assert!(reply.body.contains("background"), "{}", reply.body);
}

#[tokio::test]
async fn a_length_is_incomplete_and_says_why() {
    let server = TestServer::start().await;
    let (text, job) = streamed(&server, &json!({}), |job| {
        job.start();
        job.say("x");
        job.finish(FinishReason::Length);
    })
    .await;
    let last = SseParser::parse(&text).events.last().unwrap().json();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
    assert_eq!(get(server.address, &path_of(&job), &[]).await.json(), last["response"]);
}

#[tokio::test]
async fn a_failure_in_the_middle_is_an_error_event_and_a_failed_response() {
    let server = TestServer::start().await;
    let (text, job) = streamed(&server, &json!({}), |job| {
        job.start();
        job.say("x");
        job.fail(ErrorKind::Internal, "it broke");
    })
    .await;
    let events = SseParser::parse(&text).events;
    let [.., error, failed] = &events[..] else { panic!("{text}") };
    let number = events.len() - 2;
    assert_eq!(error.name, "error");
    let expect = json!({
        "type": "error", "sequence_number": number, "code": "server_error", "message": "it broke", "param": null,
    });
    assert_eq!(error.json(), expect);
    assert_eq!(failed.name, "response.failed");
    assert_eq!(failed.json()["response"]["error"], json!({"code": "server_error", "message": "it broke"}));
    assert_eq!(get(server.address, &path_of(&job), &[]).await.json()["status"], "failed");
}

#[tokio::test]
async fn a_failure_before_the_first_token_has_a_status() {
    let server = TestServer::with(|setup| setup.api.head_wait = std::time::Duration::from_secs(60)).await;
    for more in [json!({"stream": true}), json!({})] {
        let body = asking(&more);
        let (reply, ()) = tokio::join!(post(server.address, PATH, &body), async {
            server.backend.job().await.fail(ErrorKind::QueueTimeout, "too long");
        });
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("queue_timeout")));
    }
}

#[tokio::test]
async fn an_answer_without_text_is_a_message_all_the_same() {
    let server = TestServer::start().await;
    let (reply, _) = whole(&server, &json!({}), &[]).await;
    assert_eq!(reply.json()["output"][0]["content"][0]["text"], "");
}

#[tokio::test]
async fn logprobs_come_where_they_are_included() {
    let server = TestServer::start().await;
    let more = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let (text, _) = streamed(&server, &more, |job| job.run(&["a", "b"])).await;
    let spelled = |token: &str, logprob: f64| json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()});
    let token = |token: &str| {
        let mut all = spelled(token, -0.5);
        all["top_logprobs"] = json!([spelled(token, -0.5), spelled("!", -1.25)]);
        all
    };
    let events = SseParser::parse(&text).events;
    let of = |name: &str| events.iter().find(|e| e.name == name).map(SseEvent::json).unwrap();
    assert_eq!(of("response.output_text.delta")["logprobs"], json!([token("a")]));
    assert_eq!(of("response.output_text.done")["logprobs"], json!([token("a"), token("b")]));
    let output = &of("response.completed")["response"]["output"];
    assert_eq!(output[0]["content"][0]["logprobs"], json!([token("a"), token("b")]));
}

#[tokio::test]
async fn without_store_a_response_is_cancelled_by_its_client_and_not_kept() {
    let server = TestServer::start().await;
    let (mut client, _) =
        Client::open_post(server.address, PATH, &asking(&json!({"stream": true, "store": false}))).await;
    let mut job = server.backend.job().await;
    job.start();
    client.until("in_progress").await;
    assert_eq!(get(server.address, &path_of(&job), &[]).await.status, 404);
    client.close();
    assert_eq!(job.cancelled().await, CancelCause::ReaderLeft);
}

#[tokio::test]
async fn deleting_ends_and_forgets() {
    let server = TestServer::start().await;
    post(server.address, PATH, &asking(&json!({"background": true}))).await;
    let mut job = server.backend.job().await;
    let path = path_of(&job);
    let deleted = send(&server, "DELETE", &path).await;
    assert_eq!(job.cancelled().await, CancelCause::Requested);
    assert_eq!(
        deleted.json(),
        json!({"id": path.trim_start_matches("/v1/responses/"), "object": "response", "deleted": true})
    );
    for (method, rest) in [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")] {
        let reply = send(&server, method, &format!("{path}{rest}")).await;
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("not_found")), "{method} {rest}");
    }
    assert_eq!(get(server.address, &format!("/v1/streams/{}", job.log.id()), &[]).await.status, 404);
}

#[tokio::test]
async fn a_chain_answers_all_that_was_said() {
    let server = TestServer::start().await;
    let (first, _) = whole(&server, &json!({"instructions": "once"}), &["hello"]).await;
    let call = json!([
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"x\":1}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "ok"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "and "}, {"type": "input_text", "text": "now?"}]},
    ]);
    let more = json!({"previous_response_id": first.json()["id"], "input": call});
    let (second, job) = whole(&server, &more, &["!"]).await;
    assert_eq!(second.json()["previous_response_id"], first.json()["id"]);
    let prompt: Vec<u8> = job.request.prompt.iter().map(|t| *t as u8).collect();
    let prompt = String::from_utf8_lossy(&prompt).into_owned();
    for said in ["user\nhi<", "assistant\nhello\n<tool_call>", "<tool_response>\nok\n<", "user\nand now?<"] {
        assert!(prompt.contains(said), "{said:?} in {prompt:?}");
    }
    assert!(!prompt.contains("once"), "instructions are each request's own: {prompt:?}");
    let path = format!("{}/input_items", path_of(&job));
    let items = get(server.address, &format!("{path}?order=asc"), &[]).await.json();
    let data = items["data"].as_array().unwrap();
    let kinds: Vec<_> = data.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["message", "message", "function_call", "function_call_output", "message"]);
    assert_eq!(data[1], first.json()["output"][0]);
    assert_eq!((&items["object"], &items["has_more"]), (&json!("list"), &json!(false)));

    let newest = get(server.address, &format!("{path}?limit=2"), &[]).await.json();
    assert_eq!(newest["data"], json!([data[4], data[3]]));
    assert_eq!((&newest["first_id"], &newest["last_id"]), (&data[4]["id"], &data[3]["id"]));
    assert_eq!(newest["has_more"], true);
    let after = format!("{path}?limit=3&after={}", data[3]["id"].as_str().unwrap());
    let rest = get(server.address, &after, &[]).await.json();
    assert_eq!(rest["data"], json!([data[2], data[1], data[0]]));
    assert_eq!(rest["has_more"], false);
    for (query, param) in
        [("limit=0", "limit"), ("limit=101", "limit"), ("order=up", "order"), ("after=msg_x", "after")]
    {
        let reply = get(server.address, &format!("{path}?{query}"), &[]).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{query}");
    }
}

#[tokio::test]
async fn an_earlier_response_must_be_kept_and_have_ended() {
    let server = TestServer::start().await;
    post(server.address, PATH, &asking(&json!({"background": true}))).await;
    let job = server.backend.job().await;
    let running = format!("resp_{}", job.log.id());
    let unknown = format!("resp_{}", StreamId::random());
    for (id, status) in [(running, 400), (unknown, 404), ("x".to_owned(), 404)] {
        let reply = post(server.address, PATH, &asking(&json!({"previous_response_id": id}))).await;
        assert_eq!(reply.status, status, "{}", reply.body);
        assert_eq!(reply.json()["error"]["param"], "previous_response_id");
        assert!(reply.body.contains(&id), "{}", reply.body);
    }
}
