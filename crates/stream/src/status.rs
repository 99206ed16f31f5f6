//! Words for how a generation stands and why it ends.

/// Why a generation was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CancelCause {
    /// Its last reader left, and its policy says stop.
    ReaderLeft,
    /// Its owner asked.
    Requested,
}

impl CancelCause {
    /// Its word in metrics and feeds.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReaderLeft => "reader_left",
            Self::Requested => "requested",
        }
    }
}

/// How far a generation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamStatus {
    /// Accepted; no worker has begun.
    Queued,
    /// A worker is on it.
    Running,
    /// Ended as it should.
    Done,
    /// Ended because it was cancelled.
    Cancelled,
    /// Ended by a failure.
    Failed,
}

impl StreamStatus {
    /// The wire word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}
