//! Every number of every body at the ends of its type and beyond: whatever comes, it is an answer or the client's error.

use serde_json::Value;
use tallow::engine::EngineConfig;
use tallow::model::stub::StubConfig;

use crate::http::common::sse::SseParser;
use crate::http::common::{Client, Setup, request};
use crate::http::engine::start;

/// As JSON, so that what no `Value` holds is among them.
const EXTREMES: [&str; 30] = [
    "0",
    "-0",
    "-0.0",
    "1",
    "-1",
    "2",
    "0.5",
    "1e-45",
    "-1e-45",
    "1e-40",
    "1.17549435e-38",
    "1e-7",
    "0.99999994",
    "1.0000001",
    "1e38",
    "-1e38",
    "3.4028235e38",
    "3.5e38",
    "1e308",
    "1e999",
    "-1e999",
    "2147483647",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "\"NaN\"",
    "\"Infinity\"",
    "[]",
];

const SAMPLED: [&str; 13] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "min_tokens",
    "priority",
    "n",
];

/// A route, a body without its closing brace, and its own numbers.
fn routes() -> Vec<(&'static str, String, Vec<&'static str>)> {
    let chat = r#""messages": [{"role": "user", "content": "hi"}]"#;
    let with = |more: &[&'static str]| [&SAMPLED[..], more].concat();
    vec![
        (
            "/v1/chat/completions",
            format!(r#"{{{chat}, "logprobs": true, "max_tokens": 3"#),
            with(&["top_logprobs", "max_completion_tokens", "logit_bias.65", "stop_token_ids.0"]),
        ),
        (
            "/v1/completions",
            r#"{"prompt": "hi", "max_tokens": 3"#.to_owned(),
            with(&["logprobs", "best_of", "logit_bias.65", "stop_token_ids.0", "prompt.0"]),
        ),
        ("/v1/streams", r#"{"prompt": "hi", "max_tokens": 3"#.to_owned(), with(&["logit_bias.65", "stop_token_ids.0"])),
        (
            "/v1/responses",
            r#"{"input": "hi", "max_output_tokens": 3"#.to_owned(),
            with(&["max_output_tokens", "top_logprobs", "max_tool_calls", "logit_bias.65"]),
        ),
        ("/v1/messages", format!(r#"{{{chat}, "max_tokens": 3"#), vec!["temperature", "top_p", "top_k", "max_tokens"]),
        ("/v1/embeddings", r#"{"input": "hi""#.to_owned(), vec!["dimensions", "priority", "input.0"]),
        ("/detokenize", r#"{"tokens": [1]"#.to_owned(), vec!["tokens.0"]),
    ]
}

/// `"field": value`, in a list or an object where the field says so. A second one of its name is an error of its own.
fn with_field(body: &str, field: &str, value: &str) -> String {
    let (name, value) = match field.split_once('.') {
        Some((name, "0")) => (name, format!("[{value}]")),
        Some((name, key)) => (name, format!(r#"{{"{key}": {value}}}"#)),
        None => (field, value.to_owned()),
    };
    let mut fields: serde_json::Map<String, Value> = serde_json::from_str(&format!("{body}}}")).unwrap();
    fields.remove(name);
    let rest = Value::Object(fields).to_string();
    let comma = if rest == "{}" { "" } else { ", " };
    format!(r#"{}{comma}"{name}": {value}}}"#, &rest[..rest.len() - 1])
}

#[tokio::test]
async fn no_number_is_the_servers_error() {
    let server = start(EngineConfig::default(), StubConfig::default(), Setup::default()).await;
    let mut client = Client::connect(server.address).await;
    for (path, body, fields) in routes() {
        for field in fields {
            for value in EXTREMES {
                let body = with_field(&body, field, value);
                let reply = client.exchange(&request("POST", path, &[("x-on-disconnect", "cancel")], &body)).await;
                assert!(reply.status < 500 && reply.status != 429, "{path} {body}: {} {}", reply.status, reply.body);
            }
        }
    }
}

/// What fails behind the head has no status.
#[tokio::test]
async fn no_number_breaks_a_stream() {
    let server = start(EngineConfig::default(), StubConfig::default(), Setup::default()).await;
    let body = r#"{"messages": [{"role": "user", "content": "hi"}], "logprobs": true, "max_tokens": 3, "stream": true"#;
    for field in SAMPLED {
        for value in EXTREMES {
            let body = with_field(body, field, value);
            let mut client = Client::connect(server.address).await;
            let text = request("POST", "/v1/chat/completions", &[], &body);
            let reply = client.exchange(&text).await;
            assert!(reply.status < 500, "{body}: {} {}", reply.status, reply.body);
            if reply.status == 200 {
                let events = SseParser::parse(&reply.body).events;
                assert!(events.iter().all(|e| !e.data.contains("server_error")), "{body}: {}", reply.body);
            }
        }
    }
}
