//! Requests as clients send them, with what only other servers have in them. Each case is one of a kind: a hint that no model
//! here follows, a tool that only its vendor's servers run, a ceiling that is larger than the context, an item of another
//! model's history. Docs: `docs/clients.md`.

use serde_json::{Value, json};
use tallow::engine::EngineConfig;
use tallow::model::stub::StubConfig;
use tallow::service::LocalBackend;

use crate::http::common::{Client, Reply, Setup, TestServer, get, post, request};
use crate::http::engine;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// The engine on the stub, whose text is reproducible and says nothing.
async fn start() -> TestServer<LocalBackend> {
    engine::start(EngineConfig::default(), StubConfig::default(), Setup::default()).await
}

/// `more` beside the least that a request of `path` has.
fn asking(path: &str, more: &Value) -> Value {
    let hi = json!([{"role": "user", "content": "hi"}]);
    let mut body = match path {
        RESPONSES => json!({"input": "hi", "max_output_tokens": 8}),
        COMPLETIONS => json!({"prompt": "hi", "max_tokens": 8}),
        COUNT | "/tokenize" => json!({"messages": hi}),
        _ => json!({"messages": hi, "max_tokens": 8}),
    };
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    body
}

/// The answer to `more`, which must be a success that names `ignored` in its header.
#[track_caller]
fn check(reply: &Reply, ignored: &str) {
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.headers.get("x-tallow-ignored").map_or("", String::as_str), ignored, "{}", reply.body);
}

async fn accepted(server: &TestServer<LocalBackend>, path: &str, more: &Value, ignored: &str) -> Value {
    let reply = post(server.address, path, &asking(path, more)).await;
    check(&reply, ignored);
    reply.json()
}

async fn refused(server: &TestServer<LocalBackend>, path: &str, more: &Value) -> String {
    let reply = post(server.address, path, &asking(path, more)).await;
    assert_eq!(reply.status, 400, "{}", reply.body);
    reply.json()["error"]["message"].as_str().unwrap().to_owned()
}

fn function(name: &str) -> Value {
    json!({"type": "function", "name": name, "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}})
}

fn chat_tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"a": {}}}}})
}

#[tokio::test]
async fn hints_that_no_model_follows_are_named_and_change_nothing() {
    let server = start().await;
    for (path, hint, ignored) in [
        (MESSAGES, json!({"output_config": {"effort": "high"}}), "output_config.effort"),
        (
            MESSAGES,
            json!({"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}),
            "context_management",
        ),
        (MESSAGES, json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "thinking.budget_tokens"),
        (MESSAGES, json!({"thinking": {"type": "adaptive"}}), ""),
        (COUNT, json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), ""),
        (RESPONSES, json!({"truncation": "auto", "text": {"verbosity": "low"}}), "text.verbosity"),
        (RESPONSES, json!({"reasoning": {"effort": "medium", "summary": "auto"}}), "reasoning.summary"),
        (CHAT, json!({"verbosity": "low", "prediction": {"type": "content", "content": "x"}}), "verbosity, prediction"),
        (CHAT, json!({"reasoning_effort": "high"}), ""),
        (CHAT, json!({"tool_choice": "auto", "parallel_tool_calls": true}), ""),
    ] {
        accepted(&server, path, &hint, ignored).await;
    }
}

#[tokio::test]
async fn a_ceiling_above_the_context_is_cut_to_it() {
    let server = start().await;
    for (path, field) in [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        (COMPLETIONS, "max_tokens"),
        (RESPONSES, "max_output_tokens"),
        (MESSAGES, "max_tokens"),
        ("/v1/streams", "max_tokens"),
    ] {
        for ceiling in [json!(32_000), json!(-1), json!(8.0)] {
            let more = json!({"max_tokens": null, "max_output_tokens": null, field: ceiling});
            let mut body = asking(path, &more);
            body[field] = ceiling.clone();
            let reply = post(server.address, path, &body).await;
            assert!(matches!(reply.status, 200 | 201), "{path} {field} {ceiling}: {}", reply.body);
        }
        let message = refused(&server, path, &json!({field: 8.5})).await;
        assert!(message.contains(field) && message.contains("whole number"), "{message}");
    }
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_told_in_the_sentences_that_clients_look_for() {
    let server = start().await;
    let long = json!([{"role": "user", "content": "word ".repeat(20_000)}]);
    let reply = post(server.address, MESSAGES, &json!({"messages": long, "max_tokens": 8})).await;
    assert_eq!(reply.status, 400, "{}", reply.body);
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    let numbers = message.strip_prefix("prompt is too long: ").and_then(|rest| rest.strip_suffix(" maximum"));
    let (have, most) = numbers.and_then(|rest| rest.split_once(" tokens > ")).unwrap_or_else(|| panic!("{message}"));
    assert!(have.parse::<usize>().unwrap() > most.parse::<usize>().unwrap(), "{message}");
    for (path, field) in [(CHAT, "messages"), (RESPONSES, "input")] {
        let reply = post(server.address, path, &json!({field: long, "max_tokens": 8})).await;
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, error["code"].as_str()), (400, Some("context_length_exceeded")), "{}", reply.body);
        assert_eq!(error["param"], field);
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with("This model's maximum context length is "), "{message}");
        assert!(message.contains("context_length_exceeded"), "{message}");
    }
}

#[tokio::test]
async fn tools_of_others_are_left_out_and_named() {
    let server = start().await;
    let web = json!({"type": "web_search_20250305", "name": "web_search"});
    let own = json!({"name": "f", "input_schema": {"type": "object"}});
    accepted(&server, MESSAGES, &json!({"tools": [web, own]}), "tools[0]").await;
    let tools = json!([function("f"), {"type": "namespace", "name": "multi", "tools": [function("f")]}, {"type": "web_search"}]);
    let response = accepted(&server, RESPONSES, &json!({"tools": tools}), "tools[2]").await;
    assert_eq!(response["tools"], tools);
    let chosen = json!({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}});
    accepted(&server, RESPONSES, &chosen, "tools[0]").await;
    let long = format!("mcp__{}", "a".repeat(100));
    accepted(&server, MESSAGES, &json!({"tools": [{"name": long, "input_schema": {"type": "object"}}]}), "").await;
}

#[tokio::test]
async fn a_choice_of_tools_may_be_written_in_every_way() {
    let server = start().await;
    let tools = json!([chat_tool("f"), chat_tool("g")]);
    let allowed = json!({"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]});
    for choice in [
        json!("any"),
        json!({"type": "auto"}),
        json!({"type": "none"}),
        json!({"type": "allowed_tools", "allowed_tools": allowed}),
        json!({"type": "function", "function": {"name": "g"}}),
    ] {
        accepted(&server, CHAT, &json!({"tools": tools, "tool_choice": choice}), "").await;
    }
    let message = refused(&server, CHAT, &json!({"tool_choice": "required"})).await;
    assert_eq!(message, "`tool_choice` must come with `tools`, got it without");
    let only = json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]});
    let body = json!({"tools": [function("f"), function("g")], "tool_choice": only, "max_output_tokens": 60});
    let response = accepted(&server, RESPONSES, &body, "").await;
    assert_eq!(response["output"][0]["name"], "g", "{response}");
}

#[tokio::test]
async fn a_call_into_a_namespace_names_it_and_is_taken_back() {
    let server = start().await;
    let tools = json!([{"type": "namespace", "name": "multi", "tools": [function("f")]}]);
    let asked =
        json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "max_output_tokens": 200});
    let response = accepted(&server, RESPONSES, &asked, "").await;
    let call = response["output"][0].clone();
    assert_eq!(
        (&call["type"], &call["name"], &call["namespace"]),
        (&json!("function_call"), &json!("f"), &json!("multi"))
    );
    let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "done"});
    let again = json!({"input": [{"role": "user", "content": "hi"}, call, output], "tools": tools});
    accepted(&server, RESPONSES, &again, "").await;
}

#[tokio::test]
async fn a_tool_of_free_text_keeps_to_its_grammar() {
    let server = start().await;
    let lark = json!({"type": "grammar", "syntax": "lark", "definition": "start: /[a-z\"\\n]{3,8}/"});
    let tool = json!({"type": "custom", "name": "patch", "description": "d", "format": lark});
    let asked = json!({"tools": [tool], "tool_choice": "required", "max_output_tokens": 40});
    let response = accepted(&server, RESPONSES, &asked, "").await;
    let call = &response["output"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("custom_tool_call"), &json!("patch")), "{response}");
    let input = call["input"].as_str().unwrap();
    assert!((3..=8).contains(&input.len()), "{input:?}");
    assert!(input.bytes().all(|b| b.is_ascii_lowercase() || b"\"\n".contains(&b)), "{input:?}");
    let output = json!({"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "ok"});
    let again = json!({"input": [{"role": "user", "content": "hi"}, call, output], "tools": [tool]});
    accepted(&server, RESPONSES, &again, "").await;

    let grammar = json!({"type": "grammar", "grammar": {"syntax": "regex", "definition": "[a-z]{3,8}"}});
    let tool = json!({"type": "custom", "custom": {"name": "patch", "format": grammar}});
    let chat =
        json!({"tools": [tool], "tool_choice": {"type": "custom", "custom": {"name": "patch"}}, "max_tokens": 80});
    let answer = accepted(&server, CHAT, &chat, "").await;
    let call = &answer["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["type"], "custom", "{answer}");
    let input = call["custom"]["input"].as_str().unwrap();
    assert!((3..=8).contains(&input.len()) && input.bytes().all(|b| b.is_ascii_lowercase()), "{input:?}");
}

#[tokio::test]
async fn nothing_in_history_is_refused() {
    let server = start().await;
    let foreign = json!([
        {"role": "user", "content": "hi"},
        {"type": "custom_tool_call", "call_id": "c1", "name": "x", "input": "y"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "z"},
        {"type": "local_shell_call", "call_id": "c2", "status": "completed", "action": {"command": ["ls"]}},
        {"type": "local_shell_call_output", "call_id": "c2", "output": "a.txt"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "reasoning", "encrypted_content": "xxx", "summary": []},
        {"type": "compaction", "encrypted_content": "xxx"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": "go"},
    ]);
    accepted(&server, RESPONSES, &json!({"input": foreign}), "").await;
    let image =
        json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}});
    let turns = |last: Value| {
        json!({"messages": [
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [
                {"type": "redacted_thinking", "data": "xxx"},
                {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
                {"type": "tool_use", "id": "t1", "name": "f", "input": "{\"a\": "},
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [image]}]},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": last},
        ]})
    };
    accepted(&server, MESSAGES, &turns(json!("go")), "").await;
    let message = refused(&server, MESSAGES, &turns(json!([image]))).await;
    assert!(message.starts_with("`messages[4].content[0].type` must be text"), "{message}");
    let called = json!({"messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": null, "thinking": "hm",
         "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"a": "b"}}}]},
        {"role": "tool", "tool_call_id": "c", "content": "ok"},
        {"role": "user", "content": "go"},
    ]});
    accepted(&server, CHAT, &called, "").await;
}

#[tokio::test]
async fn what_was_handed_out_is_taken_back() {
    let server = start().await;
    let first = accepted(&server, RESPONSES, &json!({}), "").await;
    let item = first["output"][0]["id"].clone();
    let by_reference = json!({"input": [
        {"role": "user", "content": "hi"}, {"type": "item_reference", "id": item}, {"role": "user", "content": "go"},
    ]});
    let second = accepted(&server, RESPONSES, &by_reference, "").await;
    let items = get(server.address, &format!("{RESPONSES}/{}/input_items", second["id"].as_str().unwrap()), &[]).await;
    assert_eq!(items.json()["data"][1]["content"], first["output"][0]["content"]);
    let message = refused(&server, RESPONSES, &json!({"input": [{"type": "item_reference", "id": "msg_0_0"}]})).await;
    assert_eq!(message, "`input` must refer to an item of a stored response, got \"msg_0_0\"");
}

#[tokio::test]
async fn a_forced_call_that_is_cut_is_an_object_or_left_out() {
    let server = start().await;
    let schema =
        json!({"type": "object", "properties": {"t": {"type": "string", "minLength": 200}}, "required": ["t"]});
    let asked =
        json!({"tools": [{"name": "w", "input_schema": schema}], "tool_choice": {"type": "any"}, "max_tokens": 60});
    let message = accepted(&server, MESSAGES, &asked, "").await;
    assert_eq!(message["stop_reason"], "max_tokens", "{message}");
    let blocks = message["content"].as_array().unwrap();
    assert!(blocks.iter().all(|b| b["type"] != "tool_use" || b["input"].is_object()), "{message}");
}

#[tokio::test]
async fn a_text_that_has_begun_goes_on_in_every_dialect() {
    let server = start().await;
    let begun = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The answer is"}]);
    let marked = json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "The answer is", "prefix": true},
    ]);
    let prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nThe answer is";
    let expect =
        accepted(&server, COMPLETIONS, &json!({"prompt": prompt, "seed": 5}), "").await["choices"][0]["text"].clone();
    for more in [
        json!({"messages": begun, "seed": 5}),
        json!({"messages": marked, "seed": 5}),
        json!({"messages": begun, "seed": 5, "continue_final_message": true, "add_generation_prompt": false}),
    ] {
        let answer = accepted(&server, CHAT, &more, "").await;
        assert_eq!(answer["choices"][0]["message"]["content"], expect, "{more}");
    }
    let response = accepted(&server, RESPONSES, &json!({"input": begun, "seed": 5}), "").await;
    assert_eq!(response["output"][0]["content"][0]["text"], expect);
    // Anthropic's wire has no seed: the same prompt is told by its length.
    let counted = accepted(&server, COUNT, &json!({"messages": begun}), "").await;
    let tokens = accepted(&server, "/tokenize", &json!({"messages": null, "prompt": prompt}), "").await;
    assert_eq!(counted["input_tokens"], tokens["count"]);
    let ended = json!({"messages": begun, "seed": 5, "continue_final_message": false});
    assert_ne!(accepted(&server, CHAT, &ended, "").await["choices"][0]["message"]["content"], expect);
}

#[tokio::test]
async fn other_servers_names_and_spellings_mean_the_same() {
    let server = start().await;
    let text = |answer: Value| answer["choices"][0]["message"]["content"].clone();
    for (name, other, value) in [
        ("repetition_penalty", "repeat_penalty", json!(1.8)),
        ("max_tokens", "n_predict", json!(5)),
        ("typical_p", "typ_p", json!(0.5)),
    ] {
        let own = text(accepted(&server, CHAT, &json!({"max_tokens": 30, "seed": 3, name: value}), "").await);
        let mut more = json!({"max_tokens": 30, "seed": 3, other: value});
        if name == "max_tokens" {
            more["max_tokens"] = Value::Null;
        }
        assert_eq!(text(accepted(&server, CHAT, &more, "").await), own, "{other}");
    }
    accepted(&server, CHAT, &json!({"max_tokens": 8.0, "seed": 42.0, "top_k": 40.0, "n": 1.0, "stop": ""}), "").await;
    for unknown in ["mirostat", "top_n_sigma", "samplers", "n_probs", "lora", "return_token_ids"] {
        let message = refused(&server, CHAT, &json!({unknown: 2})).await;
        assert!(message.contains(unknown), "{message}");
    }
}

#[tokio::test]
async fn keywords_of_a_schema_that_ask_for_nothing_pass() {
    let server = start().await;
    let schema = json!({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}, "maxProperties": 2});
    let format = json!({"type": "json_schema", "json_schema": {"name": "r", "schema": schema}});
    accepted(&server, CHAT, &json!({"response_format": format, "max_tokens": 60}), "").await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let format = json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}, "max_tokens": 60});
    let message = accepted(&server, MESSAGES, &format, "").await;
    let text: Value = serde_json::from_str(message["content"][0]["text"].as_str().unwrap()).unwrap();
    assert!(text["a"].is_i64() && text.as_object().unwrap().len() == 1, "{text}");
}

#[tokio::test]
async fn an_error_names_the_field_as_its_dialect_does() {
    let server = start().await;
    let message = refused(&server, RESPONSES, &json!({"tools": [{"type": "function", "name": "a b"}]})).await;
    assert!(message.starts_with("`tools[0].name` must have"), "{message}");
    let message = refused(&server, RESPONSES, &json!({"max_output_tokens": 0})).await;
    assert!(message.starts_with("`max_output_tokens` must be at least 1"), "{message}");
    let message = refused(&server, MESSAGES, &json!({"tools": [{"name": "a b", "input_schema": {}}]})).await;
    assert!(message.starts_with("`tools[0].name` must have"), "{message}");
    let message = refused(&server, MESSAGES, &json!({"stop_sequences": [""]})).await;
    assert!(message.starts_with("`stop_sequences[0]` must have"), "{message}");
    // By the place in the request, of which the model is told a part.
    let web = json!({"type": "web_search"});
    let wrong = json!({"name": "a b", "input_schema": {}});
    let message = refused(&server, MESSAGES, &json!({"tools": [web, wrong]})).await;
    assert!(message.starts_with("`tools[1].name` must have"), "{message}");
    let wrong = json!({"type": "function", "function": {"name": "a b"}});
    let message = refused(&server, CHAT, &json!({"tools": [web, wrong]})).await;
    assert!(message.starts_with("`tools[1].function.name` must have"), "{message}");
    let wrong = json!([web, {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "a b"}]}]);
    let message = refused(&server, RESPONSES, &json!({"tools": wrong})).await;
    assert!(message.starts_with("`tools[1].tools[0].name` must have"), "{message}");
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": 3}}});
    let message = refused(&server, CHAT, &json!({"tools": [tool], "tool_choice": "required"})).await;
    assert!(message.starts_with("`tools[0].function.parameters` "), "{message}");
}

#[tokio::test]
async fn a_chat_with_tools_can_be_counted() {
    let server = start().await;
    let more = json!({"tools": [chat_tool("f")]});
    let counted = accepted(&server, "/tokenize", &more, "").await;
    let answer = accepted(&server, CHAT, &more, "").await;
    assert_eq!(counted["count"], answer["usage"]["prompt_tokens"]);
    let counted = accepted(
        &server,
        "/v1/responses/input_tokens",
        &json!({"input": "hi", "messages": null, "max_tokens": null, "tools": [function("f")]}),
        "",
    )
    .await;
    let response = accepted(&server, RESPONSES, &json!({"tools": [function("f")]}), "").await;
    assert_eq!(counted["input_tokens"], response["usage"]["input_tokens"]);
}

#[tokio::test]
async fn vectors_may_be_asked_for_in_their_own_length() {
    let server = start().await;
    let vectors = post(server.address, "/v1/embeddings", &json!({"input": "a"})).await.json();
    let own = vectors["data"][0]["embedding"].as_array().unwrap().len();
    let reply = post(server.address, "/v1/embeddings", &json!({"input": "a", "dimensions": own})).await;
    assert_eq!((reply.status, &reply.json()["data"]), (200, &vectors["data"]));
    let reply = post(server.address, "/v1/embeddings", &json!({"input": "a", "dimensions": own + 1})).await;
    let error = reply.json()["error"].clone();
    assert_eq!((reply.status, error["param"].as_str()), (400, Some("dimensions")), "{error}");
    assert!(error["message"].as_str().unwrap().contains(&format!("must be the {own} that")), "{error}");
}

#[tokio::test]
async fn routes_without_a_version_and_probes_answer() {
    let server = start().await;
    accepted(&server, "/chat/completions", &json!({}), "").await;
    for path in ["/health", "/v1/health", "/ping", "/version", "/models"] {
        assert_eq!(get(server.address, path, &[]).await.status, 200, "{path}");
    }
    assert_eq!(get(server.address, "/version", &[]).await.json()["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn a_body_may_come_compressed_and_is_bounded_as_it_unfolds() {
    let server = TestServer::with(|s| s.api.body_bytes_max = 4096).await;
    let send = async |json: String| {
        let mut gzip = std::process::Command::new("gzip");
        let mut child =
            gzip.arg("-c").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), json.as_bytes()).unwrap();
        let packed = child.wait_with_output().unwrap().stdout;
        let length = packed.len().to_string();
        let headers =
            [("content-encoding", "gzip"), ("content-type", "application/json"), ("content-length", length.as_str())];
        let mut client = Client::connect(server.address).await;
        client.send(&request("POST", "/tokenize", &headers, "")).await;
        client.send_bytes(&packed).await;
        let head = client.head().await;
        client.body(&head.headers).await;
        head.status
    };
    assert_eq!(send(json!({"prompt": "hi"}).to_string()).await, 200);
    assert_eq!(send(json!({"prompt": "a".repeat(100_000)}).to_string()).await, 413);
}

#[tokio::test]
async fn desktop_apps_may_call_from_their_own_origins() {
    let server = TestServer::with(|s| s.api.cors_origins = vec!["app://obsidian.md".to_owned()]).await;
    let asking = |origin| {
        [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-private-network", "true"),
        ]
    };
    let preflight = request("OPTIONS", CHAT, &asking("app://obsidian.md"), "");
    let reply = Client::connect(server.address).await.exchange(&preflight).await;
    assert_eq!(reply.headers.get("access-control-allow-origin").map(String::as_str), Some("app://obsidian.md"));
    assert_eq!(reply.headers.get("access-control-allow-private-network").map(String::as_str), Some("true"));
    let preflight = request("OPTIONS", CHAT, &asking("https://elsewhere.example"), "");
    let reply = Client::connect(server.address).await.exchange(&preflight).await;
    assert_eq!(reply.headers.get("access-control-allow-private-network"), None);
}
