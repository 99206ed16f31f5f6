//! One request of an OpenAI dialect: sent, read to its end or up to the piece after which the client leaves, timed.

use std::time::Instant;

use reqwest::Response;
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use serde_json::Value;

use super::record::{Failure, Record, RequestEnd, TokenUsage};
use super::target::{Prepared, Target, refusal};
use crate::client::SseParser;

/// One event of a stream; a piece of text is a few hundred bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Sends `request`, and reads the answer into `record`. With `cancel_after`, closes the connection after so many
/// pieces of text.
///
/// # Errors
/// Whatever went wrong; what had come until then is in `record`.
pub(crate) async fn exchange(
    target: &Target,
    request: &Prepared,
    cancel_after: Option<usize>,
    record: &mut Record,
) -> Result<RequestEnd, Failure> {
    let response = target.post(request).send().await.map_err(|e| Failure::transport(&e))?;
    let response = event_stream(response).await?;
    record.stream_id = header(&response, "x-stream-id");
    AnswerReading { parser: SseParser::new(EVENT_BYTES_MAX), is_finished: false }
        .read(response, cancel_after, record)
        .await
}

/// The answer, if it is an event stream.
///
/// # Errors
/// A refusal, or an answer of another type.
pub(crate) async fn event_stream(response: Response) -> Result<Response, Failure> {
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    match header(&response, "content-type") {
        Some(kind) if kind.starts_with("text/event-stream") => Ok(response),
        kind => Err(Failure::Protocol(format!("not an event stream but {}", kind.as_deref().unwrap_or("of no type")))),
    }
}

/// A header's text.
pub(crate) fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// A parser for the streams of servers under load.
pub(crate) fn parser() -> SseParser {
    SseParser::new(EVENT_BYTES_MAX)
}

struct AnswerReading {
    parser: SseParser,
    /// A finish reason came, so that a missing end mark is forgiven.
    is_finished: bool,
}

impl AnswerReading {
    async fn read(
        mut self,
        mut response: Response,
        cancel_after: Option<usize>,
        record: &mut Record,
    ) -> Result<RequestEnd, Failure> {
        loop {
            let bytes = match response.chunk().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) | Err(_) if self.is_finished => return Ok(RequestEnd::Complete),
                Ok(None) => return Err(Failure::Truncated("the stream ended in the middle of the answer".to_owned())),
                Err(e) => return Err(Failure::transport(&e)),
            };
            let now = Instant::now();
            self.parser.push(&bytes).map_err(|e| Failure::Protocol(e.to_string()))?;
            while let Some(event) = self.parser.next_event() {
                if event.data == "[DONE]" {
                    // The body's own end is near; read on to it, so that the connection can be used again.
                    while let Ok(Some(_)) = response.chunk().await {}
                    return Ok(RequestEnd::Complete);
                }
                self.chunk(&event.data, now, record)?;
                if cancel_after.is_some_and(|limit| record.timeline.num_pieces() >= limit) {
                    return Ok(RequestEnd::Cancelled);
                }
            }
        }
    }

    fn chunk(&mut self, data: &str, now: Instant, record: &mut Record) -> Result<(), Failure> {
        if data.is_empty() {
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|e| Failure::Protocol(format!("an event that is no chunk of a completion: {e}")))?;
        if let Some(error) = chunk.error {
            let text = error.get("message").and_then(Value::as_str);
            return Err(Failure::Server(text.map_or_else(|| error.to_string(), str::to_owned)));
        }
        if chunk.choices.iter().any(Choice::has_text) {
            record.timeline.piece(now);
        }
        self.is_finished |= chunk.choices.iter().any(|c| c.finish_reason.as_ref().is_some_and(|text| text.0));
        record.usage = chunk.usage.or(record.usage);
        Ok(())
    }
}

/// What is of interest in one chunk, of chats and of plain completions.
#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<TokenUsage>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    delta: Option<Delta>,
    text: Option<HasText>,
    finish_reason: Option<HasText>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<HasText>,
    reasoning_content: Option<HasText>,
}

impl Choice {
    fn has_text(&self) -> bool {
        let delta = self.delta.as_ref();
        let parts = [
            self.text.as_ref(),
            delta.and_then(|d| d.content.as_ref()),
            delta.and_then(|d| d.reasoning_content.as_ref()),
        ];
        parts.into_iter().flatten().any(|text| text.0)
    }
}

/// Whether a text is not empty; the text itself is of no interest, and is not copied.
#[derive(Debug)]
struct HasText(bool);

impl<'de> Deserialize<'de> for HasText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct HasTextVisitor;
        impl Visitor<'_> for HasTextVisitor {
            type Value = HasText;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E>(self, text: &str) -> Result<HasText, E> {
                Ok(HasText(!text.is_empty()))
            }
        }
        d.deserialize_str(HasTextVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(data: &str, num_pieces: usize, is_finished: bool, completion_tokens: Option<u64>) {
        let mut record = Record::begin(Instant::now());
        let mut reading = AnswerReading { parser: parser(), is_finished: false };
        reading.chunk(data, Instant::now(), &mut record).expect("a chunk");
        assert_eq!(record.timeline.num_pieces(), num_pieces, "{data}");
        assert_eq!(reading.is_finished, is_finished, "{data}");
        assert_eq!(record.usage.map(|u| u.completion_tokens), completion_tokens, "{data}");
    }

    #[test]
    fn chunks_of_both_dialects_are_understood() {
        check(r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#, 0, false, None);
        check(r#"{"choices":[{"delta":{"content":"a \"b\""}}],"usage":null}"#, 1, false, None);
        check(r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, 1, false, None);
        check(r#"{"choices":[{"text":"a","finish_reason":"length"}]}"#, 1, true, None);
        check(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, 0, true, None);
        check(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#, 0, false, Some(5));
    }

    #[test]
    fn errors_in_the_stream_are_told_apart() {
        let fail = |data: &str| {
            let mut reading = AnswerReading { parser: parser(), is_finished: false };
            reading.chunk(data, Instant::now(), &mut Record::begin(Instant::now())).expect_err("no chunk").kind()
        };
        assert_eq!(fail("{\"error\":{\"message\":\"out of memory\"}}"), "server_error");
        assert_eq!(fail("not json"), "protocol");
    }
}
