//! `/tokenize`, `/detokenize` and the list of models.

use serde_json::{Value, json};

use crate::http::common::{TestServer, get, post};

const CHAT: &str = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";

#[tokio::test]
async fn a_prompt_and_its_tokens_are_these_bytes() {
    let server = TestServer::start().await;
    let reply = post(server.address, "/tokenize", &json!({"prompt": "hé"})).await;
    let expect = r#"{"count":3,"max_model_len":256,"tokens":[104,195,169],"token_strs":null}"#;
    assert_eq!((reply.status, reply.body.as_str()), (200, expect));
    let reply = post(server.address, "/detokenize", &json!({"tokens": [104, 195, 169]})).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, r#"{"prompt":"hé"}"#));
}

#[tokio::test]
async fn tokens_are_spelled_where_asked_for() {
    let server = TestServer::start().await;
    let body = json!({"model": "stub", "prompt": "hé", "return_token_strs": true, "add_special_tokens": false});
    let reply = post(server.address, "/tokenize", &body).await.json();
    assert_eq!(reply["token_strs"], json!(["h", "\u{fffd}", "\u{fffd}"]));
}

#[tokio::test]
async fn a_chat_has_the_tokens_that_a_generation_begins_with() {
    let server = TestServer::start().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": true});
    let reply = post(server.address, "/tokenize", &body).await.json();
    assert_eq!(reply["count"], CHAT.len());
    let back = post(server.address, "/detokenize", &json!({"tokens": reply["tokens"]})).await.json();
    assert_eq!(back, json!({"prompt": CHAT}));
    assert!(server.backend.has_no_job().await);
}

#[tokio::test]
async fn large_ones_take_the_same_way() {
    let server = TestServer::with(|s| s.service.inline_bytes_max = 10).await;
    let text = "x".repeat(5000);
    let reply = post(server.address, "/tokenize", &json!({"prompt": text})).await.json();
    assert_eq!(reply["count"], 5000);
    let back = post(server.address, "/detokenize", &json!({"tokens": reply["tokens"]})).await.json();
    assert_eq!(back, json!({"prompt": text}));
}

#[tokio::test]
async fn every_rule_names_parameter_and_value() {
    let server = TestServer::start().await;
    let chat = json!([{"role": "user", "content": "hi"}]);
    let rules = [
        ("/tokenize", json!({}), "prompt", "`prompt` or `messages` must be given"),
        ("/tokenize", json!({"prompt": "", "messages": chat}), "prompt", "must come without `messages`, got both"),
        ("/tokenize", json!({"prompt": 1}), "prompt", "`prompt` is wrong: invalid type: integer `1`"),
        ("/tokenize", json!({"messages": []}), "messages", "must have at least one message"),
        (
            "/tokenize",
            json!({"messages": chat, "add_special_tokens": true}),
            "add_special_tokens",
            "must be false with `messages`",
        ),
        (
            "/tokenize",
            json!({"messages": chat, "chat_template": "x"}),
            "chat_template",
            "is not supported by this server",
        ),
        ("/detokenize", json!({}), "tokens", "`tokens` must be given"),
        ("/detokenize", json!({"tokens": [1, 257]}), "tokens[1]", "must be a token id below 257, got 257"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens[0]", "`tokens[0]` is wrong"),
    ];
    for (path, body, param, expect) in rules {
        let reply = post(server.address, path, &body).await;
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["param"]), (400, &json!(param)), "{body}: {error}");
        assert!(error["message"].as_str().unwrap().contains(expect), "{body}: {error} lacks {expect:?}");
    }
    for path in ["/tokenize", "/detokenize"] {
        let reply = post(server.address, path, &json!({"model": "other", "prompt": "x", "tokens": [1]})).await;
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("model_not_found")));
    }
}

#[tokio::test]
async fn models_are_listed_as_each_client_knows_them() {
    let server = TestServer::start().await;
    let version = [("anthropic-version", "2023-06-01")];
    let openai = get(server.address, "/v1/models/stub", &[]).await.json();
    let keys: Vec<&String> = openai.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["id", "object", "created", "owned_by", "max_model_len", "chat", "state"]);
    let model = get(server.address, "/v1/models/stub", &version).await.json();
    let created_at = model["created_at"].as_str().unwrap().to_owned();
    assert!(created_at.starts_with("20") && created_at.ends_with('Z'), "{created_at}");
    let expect = json!({
        "type": "model", "id": "stub", "display_name": "stub", "created_at": created_at,
        "max_input_tokens": 256, "max_tokens": 256,
    });
    assert_eq!(model, expect);
    let list: Value = get(server.address, "/v1/models", &version).await.json();
    assert_eq!(list, json!({"data": [expect], "has_more": false, "first_id": "stub", "last_id": "stub"}));
}
