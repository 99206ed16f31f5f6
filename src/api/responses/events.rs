//! The stream of a response: named events without ids, no `[DONE]`. A client that comes back names the last number it
//! has; the log is read from its beginning all the same, and what that client has is left out.

use serde_json::json;

use super::assembly::Assembly;
use crate::api::event_body::Dialect;
use crate::api::fold;
use crate::api::sse::SseWriter;
use crate::stream::{Entry, Gap, StreamLog};

/// One client's view of a generation as a response's events.
pub(super) struct ResponseEvents {
    pub(super) assembly: Assembly,
    /// The first number that this client wants.
    pub(super) from: u64,
}

impl Dialect for ResponseEvents {
    fn open(&mut self, _out: &mut SseWriter) {}

    fn event(&mut self, entry: &Entry, out: &mut SseWriter) {
        for event in self.assembly.take(entry) {
            out.named_json(event.name, &event.data);
        }
    }

    /// Numbers are counted from the beginning, so what follows a hole has none that could be told.
    fn gap(&mut self, gap: Gap, out: &mut SseWriter) -> bool {
        let message = format!("{} entries of this response's log are no longer kept, so it cannot go on", gap.num_lost);
        let number = self.assembly.next_number().max(self.from);
        let data = json!({
            "type": "error", "sequence_number": number, "code": "history_trimmed", "message": message, "param": null,
        });
        out.named("error", &data);
        false
    }

    fn suspended(&mut self, log: &StreamLog, out: &mut SseWriter) {
        if let Some(info) = fold::suspension(log) {
            let number = self.assembly.next_number().max(self.from);
            let data = json!({
                "type": "error", "sequence_number": number, "code": "server_error", "message": info.message,
                "param": null,
            });
            out.named("error", &data);
        }
    }

    fn merge_backlog(&self) -> Option<usize> {
        None
    }
}
