//! A conversation: the history, and one turn at a time. A turn that is stopped keeps what had arrived, as the user
//! has read it; a turn that fails leaves no trace, so that the same line can be sent again.

use std::io::Write;
use std::pin::pin;
use std::time::{Duration, Instant};

use super::api::{ChatClient, ChatParams, ReplyPiece, ReplyStream};
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::protocol::ChatMessage;

/// How often a busy server is asked again.
const RETRIES_MAX: u32 = 3;
/// A longer wait is for the user to decide.
const RETRY_WAIT_MS_MAX: u64 = 30_000;

/// Bytes of one answer, which the history keeps: a server that never ends must not fill the memory.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A conversation with one server.
#[derive(Debug)]
pub struct ChatSession {
    client: ChatClient,
    params: ChatParams,
    system: Option<String>,
    history: Vec<ChatMessage>,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnEnd {
    /// The model ended it.
    Finished(TurnStats),
    /// The user did.
    Stopped(TurnStats),
}

/// What a turn took.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TurnStats {
    /// Tokens, as the server counted them; else pieces of text.
    pub num_tokens: u64,
    /// From sending to the first piece.
    pub(crate) first_piece: Duration,
    /// From the first piece to the last.
    pub streaming: Duration,
    /// The server's word, empty if stopped.
    pub finish_reason: String,
}

impl TurnStats {
    /// Tokens per second after the first; `None` where that means nothing.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.streaming.as_secs_f64();
        (self.num_tokens > 1 && seconds > 0.0).then(|| (self.num_tokens - 1) as f64 / seconds)
    }
}

impl ChatSession {
    /// An empty conversation.
    pub fn new(client: ChatClient, params: ChatParams, system: Option<String>) -> Self {
        Self { client, params, system, history: Vec::new() }
    }

    /// Forgets what was said; the system message stays.
    pub fn reset(&mut self) {
        self.history.clear();
    }

    /// Sets the system message; an empty one removes it.
    pub(crate) fn set_system(&mut self, text: &str) {
        self.system = Some(text.to_owned()).filter(|text| !text.is_empty());
    }

    /// What was said, the system message apart.
    pub fn history(&self) -> &[ChatMessage] {
        &self.history
    }

    /// Sends `text`, writes the answer to `out` as it arrives, and ends early once `stop` is ready. `notice` is told
    /// of waits.
    ///
    /// # Errors
    /// If the server cannot be reached, refuses or fails, or `out` cannot be written.
    pub async fn turn(
        &mut self,
        text: &str,
        out: &mut dyn Write,
        notice: &mut dyn FnMut(&str),
        stop: impl Future<Output = ()>,
    ) -> Result<TurnEnd> {
        let mut messages = Vec::with_capacity(self.history.len() + 2);
        messages.extend(self.system.as_ref().map(|text| message("system", text)));
        messages.extend(self.history.iter().cloned());
        messages.push(message("user", text));

        let mut answer =
            AnswerSoFar { started: Instant::now(), first: None, last: None, text: String::new(), pieces: 0 };
        let mut stats = TurnStats::default();
        let stopped = {
            let mut stop = pin!(stop);
            let mut run = pin!(self.receive(&messages, out, notice, &mut answer, &mut stats));
            tokio::select! {
                biased;
                () = &mut stop => true,
                result = &mut run => { result?; false }
            }
        };
        answer.finish(&mut stats);
        if !stopped || !answer.text.is_empty() {
            self.history.push(message("user", text));
            self.history.push(message("assistant", &answer.text));
        }
        Ok(if stopped { TurnEnd::Stopped(stats) } else { TurnEnd::Finished(stats) })
    }

    async fn receive(
        &self,
        messages: &[ChatMessage],
        out: &mut dyn Write,
        notice: &mut dyn FnMut(&str),
        answer: &mut AnswerSoFar,
        stats: &mut TurnStats,
    ) -> Result<()> {
        let mut reply = self.open(messages, notice).await?;
        while let Some(pieces) = reply.next().await? {
            for piece in pieces {
                match piece {
                    ReplyPiece::Text(text) => {
                        answer.arrived();
                        answer.text.push_str(&text);
                        write(out, &text)?;
                        if answer.text.len() > ANSWER_BYTES_MAX {
                            let message = format!("an answer must have at most {ANSWER_BYTES_MAX} bytes");
                            return Err(Error::new(ErrorKind::Io, message));
                        }
                    }
                    ReplyPiece::Reasoning(text) => {
                        answer.arrived();
                        write(out, &text)?;
                    }
                    ReplyPiece::Finish(reason) => stats.finish_reason = reason,
                    ReplyPiece::CompletionTokens(n) => stats.num_tokens = n,
                }
            }
        }
        Ok(())
    }

    /// Opens the stream, coming back to a busy server when it says so.
    async fn open(&self, messages: &[ChatMessage], notice: &mut dyn FnMut(&str)) -> Result<ReplyStream> {
        let mut tries_left = RETRIES_MAX;
        loop {
            let error = match self.client.chat(&self.params, messages).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            match error.retry_after_ms() {
                Some(ms) if tries_left > 0 && ms <= RETRY_WAIT_MS_MAX => {
                    notice(&format!("{error}; trying again in {:.1} s", ms as f64 / 1000.0));
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    tries_left -= 1;
                }
                Some(ms) => {
                    return Err(Error::new(error.kind(), format!("{error}; try again in {} s", ms.div_ceil(1000))));
                }
                None => return Err(error),
            }
        }
    }
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

fn write(out: &mut dyn Write, text: &str) -> Result<()> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))
}

/// The answer as far as it has come.
struct AnswerSoFar {
    started: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    text: String,
    pieces: u64,
}

impl AnswerSoFar {
    fn arrived(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.pieces += 1;
    }

    fn finish(&self, stats: &mut TurnStats) {
        if stats.num_tokens == 0 {
            stats.num_tokens = self.pieces;
        }
        if let (Some(first), Some(last)) = (self.first, self.last) {
            stats.first_piece = first - self.started;
            stats.streaming = last - first;
        }
    }
}
