//! How long the head of a stream waits: what fails before the first token gets a real status that way.

use std::sync::Arc;

use futures_util::future::select_all;

use super::problem::Problem;
use super::{App, fold};
use crate::protocol::{ErrorInfo, Event};
use crate::stream::{StreamLog, StreamReader};

/// Waits until one of these streams has its first token, or the configured time is over.
///
/// # Errors
/// That of a generation that failed before.
pub(crate) async fn wait(app: &App, logs: impl IntoIterator<Item = &Arc<StreamLog>>) -> Result<(), Problem> {
    // The caller's readers stay while these look ahead: the last to leave would cancel a stream.
    let outcomes: Vec<_> = logs.into_iter().map(|log| Box::pin(outcome(log.reader(0)))).collect();
    if outcomes.is_empty() {
        return Ok(());
    }
    match tokio::time::timeout(app.config.head_wait, select_all(outcomes)).await {
        Ok((Some(info), ..)) => Err(Problem::from(&info)),
        Ok((None, ..)) | Err(_) => Ok(()),
    }
}

/// Waits for the first event that tells whether it goes well.
async fn outcome(mut reader: StreamReader) -> Option<ErrorInfo> {
    loop {
        let Some(next) = reader.next().await else { return fold::suspension(reader.log()) };
        match next {
            (_, Event::Queued { .. } | Event::Started { .. }) => {}
            (_, Event::Error(info)) => return Some(info),
            (_, Event::Prompt { .. } | Event::Token(_) | Event::Done { .. }) => return None,
        }
    }
}
