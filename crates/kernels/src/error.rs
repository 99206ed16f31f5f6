//! What can fail here: all of it before the arithmetic begins.

/// Shorthand for results with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why weights, memory or instructions cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A matrix whose bytes or shape do not fit its format; the sentence names both.
    #[error("{0}")]
    BadWeights(String),
    /// The system gives no memory.
    #[error("cannot get {num_bytes} bytes of memory: {cause}")]
    NoMemory {
        /// How much was asked for.
        num_bytes: usize,
        /// What the system said.
        cause: String,
    },
    /// `TALLOW_ISA` names no instruction set of this machine.
    #[error("TALLOW_ISA must be one of {known}, got {got:?}")]
    UnknownIsa {
        /// Those of this machine, with commas between them.
        known: String,
        /// The variable's value.
        got: String,
    },
}
