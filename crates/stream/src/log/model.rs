//! Which model writes a log: whoever reads it must know with which vocabulary, also once the model is unloaded.

use std::sync::Arc;

use super::StreamLog;

impl StreamLog {
    /// Says which model writes it; the first one said stays.
    pub fn set_model(&self, name: Arc<str>) {
        let _ = self.model.set(name);
    }

    /// Which model writes it, where that was said.
    pub fn model(&self) -> Option<&str> {
        self.model.get().map(|name| &**name)
    }
}
