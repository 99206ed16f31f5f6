//! What the service may be asked to do.

/// The served model's name and the bounds of a request. `Default` fits a server of the house; only the name must be
/// given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// The name requests use for the model.
    pub model_name: String,
    /// Other names that requests may use for it.
    pub model_aliases: Vec<String>,
    /// Tokens a request may sample if it does not say; `None` goes on to the context limit.
    pub max_tokens_default: Option<usize>,
    /// Most stop strings.
    pub stop_strings_max: usize,
    /// Longest stop string, in bytes; this much text may be held back.
    pub stop_string_bytes_max: usize,
    /// Most stop tokens.
    pub stop_tokens_max: usize,
    /// Most tokens with a bias.
    pub logit_bias_max: usize,
    /// Most rivals whose log-probability is reported.
    pub top_logprobs_max: usize,
    /// Longest grace time of a lingering stream, in milliseconds.
    pub linger_ms_max: u64,
    /// Prompts of more bytes are templated and tokenised away from the async threads.
    pub inline_bytes_max: usize,
    /// How many prompts are tokenised away from the async threads at once; others wait.
    pub tokenising_max: usize,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            model_name: "default".to_owned(),
            model_aliases: Vec::new(),
            max_tokens_default: None,
            stop_strings_max: 4,
            stop_string_bytes_max: 1024,
            stop_tokens_max: 128,
            logit_bias_max: 1024,
            top_logprobs_max: 20,
            linger_ms_max: 3_600_000,
            // Tokenising runs at some MB/s, so this keeps an async thread for about a millisecond.
            inline_bytes_max: 4096,
            tokenising_max: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}
