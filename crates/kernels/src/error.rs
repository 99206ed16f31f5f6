//! The errors of this crate. All of them occur before the arithmetic begins.

/// Shorthand for results with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why weights, memory or an instruction set are not available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A matrix whose bytes or shape do not fit its format; the sentence names both.
    #[error("{0}")]
    BadWeights(String),
    /// The system gives no memory.
    #[error("cannot get {num_bytes} bytes of memory: {cause}")]
    NoMemory {
        /// The size of the request.
        num_bytes: usize,
        /// The system's message.
        cause: String,
    },
    /// `TALLOW_ISA` names no instruction set of this machine.
    #[error("TALLOW_ISA must be one of {known}, got {got:?}")]
    UnknownIsa {
        /// The instruction sets of this machine, separated by commas.
        known: String,
        /// The variable's value.
        got: String,
    },
}
