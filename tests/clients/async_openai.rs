//! The Rust client that most programs use for OpenAI's API, async-openai. It reads every answer into types of its own, so
//! a field that is missing or has another type fails here, where clients in Python would go on.

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::{ApiErrorResponse, OpenAIError};
use async_openai::traits::RequestOptionsBuilder;
use async_openai::types::chat::{ChatCompletionMessageToolCalls, CreateChatCompletionRequest, FinishReason};
use async_openai::types::responses::{CreateResponse, Response, ResponseStreamEvent, Status};
use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::server::Server;

/// All of it against one server.
pub(crate) async fn check(server: &Server, model: &str) {
    let host = Host { client: client(server), server, model };
    host.lists_its_model().await;
    host.streams_a_chat_as_it_answers().await;
    host.cancels_a_stream_that_is_dropped().await;
    host.calls_the_tool_that_it_must().await;
    host.keeps_to_a_schema().await;
    host.completes_texts().await;
    host.keeps_responses().await;
    host.says_what_is_wrong().await;
}

/// Refused by a server that is full, it asks again. What is in its way is ended as soon as it was refused; `server` must
/// run one stream at a time and let one wait.
pub(crate) async fn comes_back(server: &Server) {
    let in_the_way = fill(server).await;
    let mut feed = server.http.get(format!("{}/v1/events", server.url)).send().await.unwrap();
    let ask = json!({"model": "stub", "max_completion_tokens": 2, "messages": [{"role": "user", "content": "Hello."}]});
    let client = client(server);
    let answer = async { client.chat().create(asked(ask)).await };
    let make_room = async {
        until(&mut feed, "event: rejected").await;
        for url in &in_the_way {
            assert_eq!(server.http.delete(url).send().await.unwrap().status(), 204);
        }
    };
    let (answer, ()) = tokio::join!(answer, make_room);
    assert!(answer.unwrap().usage.unwrap().completion_tokens > 0);
}

/// One stream that runs for sure, and one that waits for it.
async fn fill(server: &Server) -> [String; 2] {
    let begin = async || {
        let ask = json!({"prompt": "x", "max_tokens": 1500, "ignore_eos": true, "on_disconnect": "detach"});
        let response = server.http.post(format!("{}/v1/streams", server.url)).json(&ask).send().await.unwrap();
        assert_eq!(response.status(), 201);
        format!("{}{}", server.url, response.headers()["location"].to_str().unwrap())
    };
    let running = begin().await;
    until(&mut server.http.get(&running).send().await.unwrap(), "event: token").await;
    [running, begin().await]
}

/// Reads until this line has come.
async fn until(events: &mut reqwest::Response, line: &str) {
    let mut text = Vec::new();
    while !text.split(|byte| *byte == b'\n').any(|l| l == line.as_bytes()) {
        text.extend(events.chunk().await.unwrap().expect("it goes on"));
    }
}

/// The client as its users make it, but for proxies: a test talks to this machine alone.
pub(crate) fn client(server: &Server) -> Client<OpenAIConfig> {
    let config = OpenAIConfig::new().with_api_base(format!("{}/v1", server.url)).with_api_key("none");
    Client::build(server.http.clone(), config)
}

/// A request of the client's own type; half of its fields cannot be set otherwise without a warning.
pub(crate) fn asked<T: DeserializeOwned>(fields: Value) -> T {
    serde_json::from_value(fields).expect("fields that the client knows")
}

struct Host<'a> {
    client: Client<OpenAIConfig>,
    server: &'a Server,
    model: &'a str,
}

impl Host<'_> {
    fn chat(&self, more: &Value) -> CreateChatCompletionRequest {
        let ask = [json!({"role": "user", "content": "What is the capital of France?"})];
        asked(with(json!({"model": self.model, "messages": ask, "seed": 3}), more))
    }

    fn response(&self, more: &Value) -> CreateResponse {
        asked(with(json!({"model": self.model, "input": "Hello.", "max_output_tokens": 8}), more))
    }

    async fn lists_its_model(&self) {
        let list = self.client.models().list().await.unwrap();
        assert_eq!(list.data.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), [self.model]);
        assert_eq!(self.client.models().retrieve(self.model).await.unwrap().object, "model");
    }

    async fn streams_a_chat_as_it_answers(&self) {
        let fields = json!({"max_completion_tokens": 12, "stream_options": {"include_usage": true}});
        let whole = self.client.chat().create(self.chat(&json!({"max_completion_tokens": 12}))).await.unwrap();
        let chunks = all(self.client.chat().create_stream(self.chat(&fields)).await.unwrap()).await;
        let deltas =
            chunks.iter().flat_map(|chunk| &chunk.choices).filter_map(|choice| choice.delta.content.as_deref());
        assert_eq!(deltas.collect::<String>(), whole.choices[0].message.content.clone().unwrap());
        assert!(chunks.iter().all(|chunk| chunk.id == chunks[0].id && chunk.object == "chat.completion.chunk"));
        let reasons: Vec<_> = chunks.iter().flat_map(|c| &c.choices).filter_map(|c| c.finish_reason).collect();
        assert_eq!(reasons, [whole.choices[0].finish_reason.unwrap()]);
        let usage = chunks.last().unwrap().usage.as_ref().expect("counts in the last chunk");
        assert_eq!(usage.completion_tokens, whole.usage.unwrap().completion_tokens);
    }

    /// Nobody else may follow it meanwhile: a reader that came before the other is seen to have left would keep it alive. So
    /// the count of cancellations is what is waited for, a look at a time, and then the log is read.
    async fn cancels_a_stream_that_is_dropped(&self) {
        // A schema that forbids an early end.
        let long = json!({"type": "string", "minLength": 1000, "maxLength": 1100});
        let fields = json!({"max_completion_tokens": 1200, "response_format": form(&long)});
        let mut stream = self.client.chat().create_stream(self.chat(&fields)).await.unwrap();
        let first = stream.next().await.expect("it begins").unwrap();
        let before = self.server.metric("tallow_requests_cancelled_total").await;
        drop(stream);
        let mut num_looks = 0;
        while self.server.metric("tallow_requests_cancelled_total").await == before {
            num_looks += 1;
            assert!(num_looks < 1000, "it still runs");
        }
        let id = first.id.strip_prefix("chatcmpl-").expect("a chat's id");
        let log = self.server.http.get(format!("{}/v1/streams/{id}", self.server.url)).send().await.unwrap();
        let log = log.text().await.unwrap();
        assert!(log.contains("event: error") && log.contains("cancelled"), "{log}");
    }

    async fn calls_the_tool_that_it_must(&self) {
        let tool = json!({"type": "function", "function": {"name": "find_city", "parameters": schema()}});
        let fields = json!({"tools": [tool], "tool_choice": "required", "max_completion_tokens": 400});
        let choice = self.client.chat().create(self.chat(&fields)).await.unwrap().choices.remove(0);
        if choice.finish_reason == Some(FinishReason::Length) {
            return;
        }
        assert_eq!(choice.finish_reason, Some(FinishReason::ToolCalls));
        let calls = choice.message.tool_calls.expect("calls");
        let whole: Vec<_> = calls
            .into_iter()
            .map(|call| match call {
                ChatCompletionMessageToolCalls::Function(call) => (call.function.name, call.function.arguments),
                other => panic!("{other:?}"),
            })
            .collect();
        for (name, arguments) in &whole {
            assert_eq!(name, "find_city");
            is_city(arguments);
        }
        let mut parts = Vec::new();
        for chunk in all(self.client.chat().create_stream(self.chat(&fields)).await.unwrap()).await {
            for call in chunk.choices.into_iter().filter_map(|choice| choice.delta.tool_calls).flatten() {
                parts.resize((call.index as usize + 1).max(parts.len()), (String::new(), String::new()));
                let (name, arguments) = &mut parts[call.index as usize];
                let function = call.function.unwrap_or_default();
                *name += &function.name.unwrap_or_default();
                *arguments += &function.arguments.unwrap_or_default();
            }
        }
        assert_eq!(parts, whole);
    }

    async fn keeps_to_a_schema(&self) {
        let fields = json!({"max_completion_tokens": 200, "response_format": form(&schema())});
        let choice = self.client.chat().create(self.chat(&fields)).await.unwrap().choices.remove(0);
        if choice.finish_reason != Some(FinishReason::Length) {
            is_city(&choice.message.content.unwrap());
        }
    }

    async fn completes_texts(&self) {
        let fields = json!({"model": self.model, "prompt": "one two", "seed": 1, "max_tokens": 6});
        let whole = self.client.completions().create(asked(fields.clone())).await.unwrap();
        let pieces = all(self.client.completions().create_stream(asked(fields)).await.unwrap()).await;
        let text: String = pieces.iter().flat_map(|piece| &piece.choices).map(|choice| choice.text.as_str()).collect();
        assert_eq!(text, whole.choices[0].text);
        let measure = json!({"model": self.model, "prompt": ["one two"], "echo": true, "logprobs": 1, "max_tokens": 1});
        let measured = self.client.completions().create(asked(measure)).await.unwrap().choices.remove(0);
        let logprobs = measured.logprobs.expect("log-probabilities");
        assert_eq!((logprobs.token_logprobs[0], logprobs.tokens.len()), (None, logprobs.token_logprobs.len()));
        assert!(logprobs.token_logprobs[1..].iter().all(|p| p.is_some_and(|p| p <= 0.0)), "{logprobs:?}");
    }

    async fn keeps_responses(&self) {
        let responses = self.client.responses();
        let first = responses.create(self.response(&json!({"instructions": "Be brief."}))).await.unwrap();
        assert_eq!(responses.retrieve(&first.id).await.unwrap().output_text(), first.output_text());
        let more = json!({"previous_response_id": first.id});
        let second = responses.create(self.response(&more)).await.unwrap();
        assert_eq!(second.previous_response_id.as_deref(), Some(first.id.as_str()));
        assert!(responses.list_input_items(&second.id).await.unwrap().data.len() >= 2);

        let events = all(responses.create_stream(self.response(&json!({}))).await.unwrap()).await;
        assert!(matches!(events[0], ResponseStreamEvent::ResponseCreated(_)), "{:?}", events[0]);
        let deltas = events.iter().filter_map(|event| match event {
            ResponseStreamEvent::ResponseOutputTextDelta(delta) => Some(delta.delta.as_str()),
            _ => None,
        });
        assert_eq!(deltas.collect::<String>(), ended(&events).output_text().unwrap_or_default());

        // In the background: left, then followed from where it was left; and another one is cancelled.
        let slow = json!({"background": true});
        let mut left = responses.create_stream(self.response(&slow)).await.unwrap();
        let Some(Ok(ResponseStreamEvent::ResponseCreated(created))) = left.next().await else { panic!("no beginning") };
        drop(left);
        let follow = self.client.responses().query(&[("starting_after", "0")]).unwrap();
        let rest = all(follow.retrieve_stream(&created.response.id).await.unwrap()).await;
        assert!(matches!(&rest[0], ResponseStreamEvent::ResponseQueued(e) if e.sequence_number == 1), "{:?}", rest[0]);
        assert_eq!(ended(&rest).id, created.response.id);
        let forever = json!({"background": true, "max_output_tokens": 1200, "text": {"format": {
            "type": "json_schema", "name": "long", "schema": {"type": "string", "minLength": 1000, "maxLength": 1100},
        }}});
        let running = responses.create(self.response(&forever)).await.unwrap();
        assert_eq!(responses.cancel(&running.id).await.unwrap().status, Status::Cancelled);

        assert!(responses.delete(&first.id).await.unwrap().deleted);
        let gone = refusal(responses.retrieve(&first.id).await);
        assert_eq!(gone.status_code, 404);
    }

    async fn says_what_is_wrong(&self) {
        let unknown = self.chat(&json!({"model": "no such"}));
        let e = refusal(self.client.chat().create(unknown).await);
        assert_eq!((e.status_code.as_u16(), e.api_error.code.as_deref()), (404, Some("model_not_found")));
        let e = refusal(self.client.chat().create(self.chat(&json!({"temperature": 9.0}))).await);
        assert_eq!((e.status_code.as_u16(), e.api_error.param.as_deref()), (400, Some("temperature")));
        assert!(e.api_error.message.contains("got 9"), "{e}");
        let suffix = json!({"model": self.model, "prompt": "x", "suffix": "y"});
        let e = refusal(self.client.completions().create(asked(suffix)).await);
        assert_eq!((e.status_code.as_u16(), e.api_error.param.as_deref()), (400, Some("suffix")));
    }
}

fn with(mut fields: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().expect("fields") {
        fields[name] = value.clone();
    }
    fields
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": false,
    })
}

fn form(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": true}})
}

#[track_caller]
fn is_city(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let names: Vec<&String> = value.as_object().expect("an object").keys().collect();
    assert_eq!(names, ["city", "people"]);
}

async fn all<T>(stream: impl Stream<Item = Result<T, OpenAIError>>) -> Vec<T> {
    stream.map(|item| item.expect("an event that the client can read")).collect().await
}

/// The response in the last event.
#[track_caller]
fn ended(events: &[ResponseStreamEvent]) -> &Response {
    match events.last() {
        Some(ResponseStreamEvent::ResponseCompleted(end)) => &end.response,
        Some(ResponseStreamEvent::ResponseIncomplete(end)) => &end.response,
        other => panic!("ended with {other:?}"),
    }
}

#[track_caller]
fn refusal<T>(result: Result<T, OpenAIError>) -> ApiErrorResponse {
    match result {
        Err(OpenAIError::ApiError(e)) => e,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was accepted"),
    }
}
