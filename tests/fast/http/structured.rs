//! Structured output: what the fields may say, and that texts keep to it, over the whole corridor but for the weights.

use serde_json::{Value, json};
use tallow::engine::EngineConfig;
use tallow::model::stub::StubConfig;
use tallow::protocol::{Constraint, FinishReason};

use crate::http::common::sse::SseParser;
use crate::http::common::{Client, Setup, TestServer, get, post};
use crate::http::engine::start;

const CHAT: &str = "/v1/chat/completions";

fn asking(fields: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "seed": 1});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": false,
    })
}

fn format_of(schema: &Value) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "it", "strict": true, "schema": schema}}})
}

/// Fields, the parameter at fault, and what the message says.
fn rules() -> Vec<(Value, &'static str, &'static str)> {
    let named = |named: Value| json!({"response_format": {"type": "json_schema", "json_schema": named}});
    vec![
        (json!({"response_format": {}}), "response_format.type", "`response_format.type` must be given"),
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
            "\"json_object\" or \"json_schema\", got \"xml\"",
        ),
        (json!({"response_format": "json"}), "response_format", "`response_format` is wrong: invalid type: string"),
        (json!({"response_format": {"type": 1}}), "response_format.type", "expected a string"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
            "`response_format.json_schema` must be given",
        ),
        (named(json!({"schema": {}})), "response_format.json_schema.name", "must be given"),
        (named(json!({"name": "a b", "schema": {}})), "response_format.json_schema.name", "got \"a b\""),
        (named(json!({"name": "x".repeat(65), "schema": {}})), "response_format.json_schema.name", "1 to 64 letters"),
        (named(json!({"name": "x"})), "response_format.json_schema.schema", "must be given"),
        (
            named(json!({"name": "x", "schema": 5})),
            "response_format.json_schema.schema",
            "must be a JSON schema, which is an object, got 5",
        ),
        (named(json!({"name": "x", "strict": 5})), "response_format.json_schema.strict", "expected a boolean"),
        (
            named(json!({"name": "x", "schema": {"if": {}}})),
            "response_format",
            "`response_format` cannot be used: Unimplemented keys: [\"if\"]",
        ),
        (json!({"guided_json": [1]}), "guided_json", "must be a JSON schema, which is an object, got [1]"),
        (json!({"guided_json": "{"}), "guided_json", "`guided_json` cannot be used: the schema must be JSON"),
        (json!({"guided_json": {"type": "integer", "minimum": 2, "maximum": 1}}), "guided_json", "nsatisfiable"),
        (json!({"guided_regex": ""}), "guided_regex", "must have at least one character, got none"),
        (json!({"guided_regex": "("}), "guided_regex", "`guided_regex` cannot be used"),
        (json!({"guided_regex": 1}), "guided_regex", "expected a string"),
        (json!({"guided_grammar": ""}), "guided_grammar", "must have at least one character, got none"),
        (json!({"guided_grammar": "start: other"}), "guided_grammar", "`guided_grammar` cannot be used"),
        (json!({"guided_choice": []}), "guided_choice", "must have at least one choice, got none"),
        (json!({"guided_choice": ["a", ""]}), "guided_choice[1]", "must have at least one character, got none"),
        (json!({"guided_choice": ["a", 1]}), "guided_choice[1]", "expected a string"),
        (json!({"guided_choice": ["x".repeat(70_000)]}), "guided_choice", "at most 65536 bytes, got 70000"),
        (
            json!({"structured_outputs": {}}),
            "structured_outputs",
            "must have exactly one of json, regex, grammar, choice and json_object, got 0",
        ),
        (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), "structured_outputs", "got 2"),
        (json!({"structured_outputs": {"json": 1}}), "structured_outputs.json", "which is an object, got 1"),
        (json!({"structured_outputs": {"regex": ""}}), "structured_outputs.regex", "at least one character"),
        (json!({"structured_outputs": {"grammar": ""}}), "structured_outputs.grammar", "at least one character"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice", "at least one choice"),
        (
            json!({"structured_outputs": {"structural_tag": {}}}),
            "structured_outputs.structural_tag",
            "is not supported",
        ),
        (
            json!({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}),
            "structured_outputs.whitespace_pattern",
            "is not supported",
        ),
        (
            json!({"guided_regex": "a", "response_format": {"type": "json_object"}}),
            "guided_regex",
            "`guided_regex` must not come with `response_format`, got both",
        ),
        (
            json!({"guided_json": {}, "structured_outputs": {"regex": "a"}}),
            "structured_outputs",
            "`structured_outputs` must not come with `guided_json`, got both",
        ),
    ]
}

#[tokio::test]
async fn every_rule_of_structured_output_names_parameter_and_value() {
    let server = TestServer::start().await;
    for (fields, param, message) in rules() {
        let mut native = fields.clone();
        native["prompt"] = json!("hi");
        for (path, body) in [(CHAT, asking(&fields)), ("/v1/streams", native)] {
            let reply = post(server.address, path, &body).await;
            assert_eq!(reply.status, 400, "{fields}: {}", reply.body);
            let error = &reply.json()["error"];
            assert_eq!((&error["type"], &error["param"]), (&json!("invalid_request_error"), &json!(param)), "{error}");
            let got = error["message"].as_str().unwrap();
            assert!(got.contains(message), "{fields}: {got:?} should contain {message:?}");
        }
    }
    assert!(server.backend.has_no_job().await);
    assert!(server.service.table().is_empty());
}

#[tokio::test]
async fn every_field_reaches_the_backend_as_its_constraint() {
    let server = TestServer::start().await;
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let as_text = Constraint::JsonSchema(schema.to_string());
    for (fields, constraint) in [
        (json!({"response_format": {"type": "text"}}), None),
        (json!({"response_format": null, "guided_json": null, "structured_outputs": null}), None),
        (json!({"response_format": {"type": "json_object"}}), Some(Constraint::JsonObject)),
        (json!({"response_format": {"type": "json_object", "schema": schema}}), Some(as_text.clone())),
        (format_of(&schema), Some(as_text.clone())),
        (json!({"guided_json": schema}), Some(as_text.clone())),
        (json!({"guided_json": schema.to_string()}), Some(as_text.clone())),
        (json!({"guided_regex": "a+"}), Some(Constraint::Regex("a+".to_owned()))),
        (json!({"guided_grammar": "start: \"a\""}), Some(Constraint::Lark("start: \"a\"".to_owned()))),
        (json!({"guided_choice": ["a", "b"]}), Some(Constraint::Choice(vec!["a".to_owned(), "b".to_owned()]))),
        (json!({"structured_outputs": {"json": schema}}), Some(as_text)),
        (json!({"structured_outputs": {"regex": "a+"}}), Some(Constraint::Regex("a+".to_owned()))),
        (json!({"structured_outputs": {"grammar": "start: \"a\""}}), Some(Constraint::Lark("start: \"a\"".to_owned()))),
        (json!({"structured_outputs": {"choice": ["a"]}}), Some(Constraint::Choice(vec!["a".to_owned()]))),
        (json!({"structured_outputs": {"json_object": true}}), Some(Constraint::JsonObject)),
    ] {
        let (reply, got) = tokio::join!(async { post(server.address, CHAT, &asking(&fields)).await }, async {
            let job = server.backend.job().await;
            job.run(&["x"]);
            job.request.constraint.clone()
        });
        assert_eq!((reply.status, got), (200, constraint), "{fields}");
    }
}

async fn whole(address: std::net::SocketAddr, fields: &Value) -> (String, String, u64) {
    let reply = post(address, CHAT, &asking(fields)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer = reply.json();
    let choice = &answer["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap().to_owned();
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
    (text, choice["finish_reason"].as_str().unwrap().to_owned(), tokens)
}

#[tokio::test]
async fn an_answer_keeps_to_its_schema_and_ends_with_it() {
    let server = start(EngineConfig::default(), StubConfig::default(), Setup::default()).await;
    let (text, finish_reason, tokens) = whole(server.address, &format_of(&person())).await;
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(jsonschema::is_valid(&person(), &value), "{text}");
    assert_eq!((finish_reason.as_str(), tokens), ("stop", text.len() as u64), "forced tokens count");
    let metrics = server.service.metrics();
    assert!(metrics.forced_tokens.get() >= "{\"name\": \"".len() as u64, "{}", metrics.forced_tokens.get());
    assert!(metrics.steps.get() < tokens, "what is forced is computed several tokens at once");

    // The same as a stream, and natively.
    let mut fields = format_of(&person());
    fields["stream"] = json!(true);
    let (mut client, _) = Client::open_post(server.address, CHAT, &asking(&fields)).await;
    let events = SseParser::parse(&client.rest().await).events;
    let chunks = events[..events.len() - 1].iter().map(|e| e.json()["choices"][0]["delta"]["content"].clone());
    assert_eq!(chunks.filter_map(|c| c.as_str().map(str::to_owned)).collect::<String>(), text);
    let native = json!({"prompt": "x", "seed": 3, "guided_choice": ["yes", "no"], "max_tokens": 9});
    let created = post(server.address, "/v1/streams", &native).await;
    let events = SseParser::parse(&get(server.address, &created.headers["location"], &[]).await.body).events;
    let text: String = events.iter().filter_map(|e| e.json()["text"].as_str().map(str::to_owned)).collect();
    assert!(text == "yes" || text == "no", "{text}");
}

#[tokio::test]
async fn a_text_that_is_cut_says_length_and_one_that_just_fits_says_stop() {
    let server = start(EngineConfig::default(), StubConfig::default(), Setup::default()).await;
    let of = |max_tokens| json!({"guided_choice": ["abcdef"], "max_tokens": max_tokens});
    let cut = whole(server.address, &of(4)).await;
    assert_eq!(cut, ("abcd".to_owned(), FinishReason::Length.as_str().to_owned(), 4));
    let fits = whole(server.address, &of(6)).await;
    assert_eq!(fits, ("abcdef".to_owned(), FinishReason::Stop.as_str().to_owned(), 6));
}

#[tokio::test]
async fn the_other_rules_of_a_text_hold_beside_its_grammar() {
    let server = start(EngineConfig::default(), StubConfig::default(), Setup::default()).await;
    let stopped = whole(server.address, &json!({"guided_choice": ["abcdef"], "stop": "d"})).await;
    assert_eq!((stopped.0.as_str(), stopped.1.as_str()), ("abc", "stop"));
    // The grammar ends the text, whatever else asks for more.
    for fields in
        [json!({"min_tokens": 50}), json!({"ignore_eos": true}), json!({"stop_token_ids": [97], "min_tokens": 60})]
    {
        let mut fields = fields;
        fields["guided_regex"] = json!("a{3,5}");
        let (text, finish_reason, _) = whole(server.address, &fields).await;
        assert_eq!((text.as_str(), finish_reason.as_str()), ("aaaaa", "stop"), "{fields}");
    }
    // Each token is told with its log-probability, so none is skipped.
    let logprobs = asking(&json!({"guided_choice": ["abc"], "logprobs": true, "top_logprobs": 1}));
    let answer = post(server.address, CHAT, &logprobs).await.json();
    let told = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(told.iter().map(|t| t["token"].as_str().unwrap()).collect::<String>(), "abc");
    let is_forced = |t: &Value| t["top_logprobs"][0]["token"] != t["token"];
    assert!(told.iter().any(is_forced), "probabilities are the model's, not the grammar's: {told:?}");
}
