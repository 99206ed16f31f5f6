//! Who may follow and end a generation, by whichever name and dialect.

use std::time::Duration;

use serde_json::json;
use tallow::stream::CancelCause;

use crate::http::common::{Client, Reply, TestServer, get, post, request};

const CHAT: &str = "/v1/chat/completions";

async fn cancel(server: &TestServer, id: &str) -> Reply {
    Client::connect(server.address).await.exchange(&request("POST", &format!("{CHAT}/{id}/cancel"), &[], "")).await
}

#[tokio::test]
async fn a_chat_is_cancelled_by_either_of_its_names_as_often_as_one_likes() {
    let server = TestServer::start().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true});
    for prefix in ["", "chatcmpl-"] {
        let (mut chat, head) = Client::open_post(server.address, CHAT, &body).await;
        let mut job = server.backend.job().await;
        let id = &head.headers["x-stream-id"];
        for _ in 0..3 {
            let reply = cancel(&server, &format!("{prefix}{id}")).await;
            assert_eq!((reply.status, reply.body.as_str()), (204, ""));
        }
        assert_eq!(job.cancelled().await, CancelCause::Requested);
        let rest = chat.rest().await;
        assert!(rest.contains("\"code\":\"cancelled\"") && !rest.contains("[DONE]"), "{rest}");
    }
}

#[tokio::test]
async fn cancelling_what_is_not_there_has_a_status() {
    let server = TestServer::with(|s| {
        s.table.retention_ms = 0;
        s.api.sweep_interval = Duration::from_millis(1);
    })
    .await;
    let unknown = "0123456789abcdef0123456789abcdef";
    for id in [unknown, &format!("chatcmpl-{unknown}"), "chatcmpl-", "nonsense", "%ff", "chatcmpl-chatcmpl-1"] {
        assert_eq!(cancel(&server, id).await.status, 404, "{id}");
    }
    assert_eq!(get(server.address, &format!("{CHAT}/{unknown}/cancel"), &[]).await.status, 405);
    post(server.address, "/v1/streams", &json!({"prompt": "hi"})).await;
    let job = server.backend.job().await;
    job.run(&["x"]);
    while !server.service.table().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(cancel(&server, &job.log.id().to_string()).await.status, 410);
}

#[tokio::test]
async fn a_stream_that_ends_with_its_last_reader_ends_without_one_too() {
    let server = TestServer::with(|s| {
        s.table.unread_grace_ms = 5;
        s.api.sweep_interval = Duration::from_millis(1);
    })
    .await;
    for policy in [json!("cancel"), json!({"linger": 0})] {
        post(server.address, "/v1/streams", &json!({"prompt": "hi", "on_disconnect": policy})).await;
        assert_eq!(server.backend.job().await.cancelled().await, CancelCause::ReaderLeft, "nobody ever came");
    }
}
