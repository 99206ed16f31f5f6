//! How long the head of a stream waits: what fails before the first token gets a real status that way.

use std::time::Duration;

use futures_util::future::select_all;

use crate::api::fold;
use crate::protocol::{ErrorInfo, Event};
use crate::stream::StreamReader;

/// The error of a generation that fails before any of these has its first token, and within `patience`.
pub async fn early_error(readers: Vec<StreamReader>, patience: Duration) -> Option<ErrorInfo> {
    if readers.is_empty() {
        return None;
    }
    let (first, ..) =
        tokio::time::timeout(patience, select_all(readers.into_iter().map(|r| Box::pin(outcome(r))))).await.ok()?;
    first
}

/// Waits for the first event that tells whether it goes well.
async fn outcome(mut reader: StreamReader) -> Option<ErrorInfo> {
    loop {
        let Some(next) = reader.next().await else { return fold::suspension(reader.log()) };
        match next {
            (_, Event::Queued { .. } | Event::Started { .. }) => {}
            (_, Event::Error(info)) => return Some(info),
            (_, Event::Prompt { .. } | Event::Token(_) | Event::Embedding { .. } | Event::Done { .. }) => return None,
        }
    }
}
