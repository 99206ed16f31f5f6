//! Whole answers, made and held within bounds. A large one is written on the pool of low priority, in blocks that are freed
//! as the client takes them, and counts against the memory that answers may hold at once. How fast a client must take it is
//! the connection's business (`peer`).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use serde::Serialize;

use super::App;
use super::budget::HeldBytes;
use super::problem::Problem;
use crate::error::Error;
use crate::protocol::Tenant;

/// Answers up to this size are neither counted nor hurried: a connection's buffers take as much.
pub(crate) const SMALL_BYTES: usize = 64 << 10;

/// Memory is freed in blocks of this size.
const BLOCK_BYTES: usize = 32 << 10;

/// Answers with the JSON of what `make` makes, which is about `num_bytes` long: made at once if it is short, else on the
/// pool.
///
/// # Errors
/// Those of `make`; 429 and 503 where answers take as much memory as they may, or too much waits for the pool.
pub(crate) async fn json<T: Serialize>(
    app: &App,
    tenant: Tenant,
    num_bytes: usize,
    make: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    let write = || {
        let mut blocks = AnswerBlocks::default();
        serde_json::to_writer(&mut blocks, &make()?).map_err(|e| Error::internal(format!("an answer: {e}")))?;
        Ok::<_, Problem>(blocks)
    };
    let written = app.service.sized(tenant, num_bytes, write).await;
    respond(app, tenant, written.inspect_err(|e| app.service.tell_rejected(e))??)
}

/// Answers with JSON that was written already.
///
/// # Errors
/// 429 and 503 where answers take as much memory as they may.
pub(crate) fn respond(app: &App, tenant: Tenant, blocks: AnswerBlocks) -> Result<Response, Problem> {
    let AnswerBlocks { full, last, num_bytes } = blocks;
    let mut response = if num_bytes <= SMALL_BYTES && full.is_empty() {
        Response::new(Body::from(last))
    } else {
        let mut held = app.answers.hold(tenant);
        held.grow(num_bytes).inspect_err(|e| app.refuse_memory(e))?;
        let mut blocks = full;
        blocks.push_back(last.into());
        Response::new(Body::new(HeldBody { blocks, num_bytes: num_bytes as u64, held }))
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// What was written, in blocks.
#[derive(Default)]
pub(crate) struct AnswerBlocks {
    full: VecDeque<Bytes>,
    last: Vec<u8>,
    num_bytes: usize,
}

impl AnswerBlocks {
    /// A text that is JSON already.
    pub(crate) fn of(json: &str) -> Self {
        let mut blocks = Self::default();
        io::Write::write_all(&mut blocks, json.as_bytes()).expect("memory never refuses");
        blocks
    }
}

impl io::Write for AnswerBlocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES - self.last.len());
        self.last.extend_from_slice(&bytes[..taken]);
        self.num_bytes += taken;
        if self.last.len() == BLOCK_BYTES {
            self.full.push_back(std::mem::take(&mut self.last).into());
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A body that gives its memory back block by block.
struct HeldBody {
    blocks: VecDeque<Bytes>,
    /// Of all blocks that are left.
    num_bytes: u64,
    held: HeldBytes,
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        let block = body.blocks.pop_front();
        if let Some(block) = &block {
            body.num_bytes -= block.len() as u64;
            body.held.shrink(block.len());
        }
        Poll::Ready(block.map(|block| Ok(Frame::data(block))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.num_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn blocks_are_what_was_written() {
        let mut blocks = AnswerBlocks::default();
        let text: Vec<u8> = (0..3 * BLOCK_BYTES + 5).map(|i| i as u8).collect();
        for piece in text.chunks(1000) {
            blocks.write_all(piece).expect("memory");
        }
        assert_eq!((blocks.full.len(), blocks.last.len(), blocks.num_bytes), (3, 5, text.len()));
        assert_eq!([blocks.full.iter().flatten().copied().collect(), blocks.last].concat(), text);
    }
}
