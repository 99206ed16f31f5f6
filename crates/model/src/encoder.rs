//! Encoders: models that were trained to turn a text into a vector, and can do nothing else. BERT as candle-transformers
//! has it, which is exact and slow enough beside our own kernels; encoders are small. What is batched raggedly, kept in
//! blocks and timed to the microsecond is the decoder, and not this.
//!
//! candle's operations on a CPU use rayon's pool, which is one for the process and has a thread for each core, or as
//! many as the variable `RAYON_NUM_THREADS` says. One text is computed at a time (`engine::encoder`), so no more than
//! these ever compete with the decoder's own threads. And one alone: filled up to the length of a neighbour, a text
//! would be computed in matrices of another shape, and its vector would differ in the last bits from the one it has by
//! itself.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use serde::Deserialize;

use crate::device::OrDevice;
use crate::text::FramedTokenizer;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

/// A loaded encoder.
pub struct Encoder {
    bert: BertModel,
    tokenizer: FramedTokenizer,
    vocab_size: usize,
    hidden_size: usize,
    num_layers: usize,
    max_model_len: usize,
}

/// What sentence-transformers writes beside a model.
#[derive(Debug, Deserialize)]
struct SentenceConfig {
    /// The longest text that it was trained with.
    max_seq_length: Option<usize>,
}

impl Encoder {
    /// Loads the weights at `path` (safetensors) with `config.json`, `tokenizer.json` and, if there is one,
    /// `sentence_bert_config.json` beside them.
    ///
    /// # Errors
    /// If a file is missing, damaged, or of another architecture; the message begins with its path.
    pub fn load(path: &Path) -> Result<Self> {
        let config_path = path.with_file_name("config.json");
        let config: Config = json(&config_path, &read(&config_path)?)?;
        if config.model_type.as_deref().is_some_and(|kind| kind != "bert") {
            let message = format!("`model_type` must be \"bert\", is {:?}", config.model_type);
            return Err(Error::bad_model(message).context(config_path.display()));
        }
        let tokenizer_path = path.with_file_name("tokenizer.json");
        let tokenizer =
            FramedTokenizer::from_json(&read(&tokenizer_path)?).map_err(|e| e.context(tokenizer_path.display()))?;
        if tokenizer.vocab_size() > config.vocab_size {
            let (ids, rows) = (tokenizer.vocab_size(), config.vocab_size);
            let message = format!("the vocabulary has {ids} tokens, `vocab_size` is {rows}");
            return Err(Error::bad_model(message).context(tokenizer_path.display()));
        }
        let damaged = |e: candle_core::Error| Error::bad_model(format!("{}: {e}", path.display()));
        let weights = VarBuilder::from_buffered_safetensors(read(path)?, DType::F32, &Device::Cpu).map_err(damaged)?;
        let bert = BertModel::load(weights, &config).map_err(damaged)?;
        Ok(Self {
            bert,
            tokenizer,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            num_layers: config.num_hidden_layers,
            max_model_len: max_model_len(path, &config)?,
        })
    }

    /// The tokens of a text, with those that the model wants around it.
    ///
    /// # Errors
    /// If the library fails.
    pub fn tokens(&self, text: &str) -> Result<Vec<TokenId>> {
        self.tokenizer.encode(text)
    }

    /// Its last hidden states, `[tokens.len(), hidden_size]`.
    ///
    /// # Errors
    /// If the device fails. Tokens past the vocabulary, or more than [`Self::max_model_len`], are a bug.
    pub fn hidden_states(&self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        assert!(tokens.len() <= self.max_model_len, "a text that is too long");
        let compute = || {
            let ids = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
            self.bert.forward(&ids, &ids.zeros_like()?, None)?.flatten_all()?.to_vec1()
        };
        compute().or_device()
    }

    /// Tokens are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Tokens of the longest text.
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    /// One line for the log.
    pub fn description(&self) -> String {
        let Self { num_layers, hidden_size, max_model_len, .. } = self;
        format!("bert with {num_layers} layers of {hidden_size}, {max_model_len} tokens of context")
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("hidden_size", &self.hidden_size).finish_non_exhaustive()
    }
}

/// As long as it was trained to, at most as long as it has positions for.
fn max_model_len(path: &Path, config: &Config) -> Result<usize> {
    let path: PathBuf = path.with_file_name("sentence_bert_config.json");
    let trained = match std::fs::read(&path) {
        Ok(text) => json::<SentenceConfig>(&path, &text)?.max_seq_length,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io(path.display(), e)),
    };
    Ok(trained.unwrap_or(usize::MAX).min(config.max_position_embeddings))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path.display(), e))
}

fn json<T: serde::de::DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|e| Error::bad_model(format!("{}: {e}", path.display())))
}
