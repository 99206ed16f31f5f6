//! Encoders: models that were trained to turn a text into a vector, and can do nothing else. BERT as candle-transformers
//! has it, which is exact and slow enough beside our own kernels; encoders are small. What is batched raggedly, kept in
//! blocks and timed to the microsecond is the decoder, and not this.
//!
//! candle's operations on a CPU use rayon's pool, which is one for the process and has a thread for each core, or as
//! many as the variable `RAYON_NUM_THREADS` says. One text is computed at a time (`engine::encoder`), so no more than
//! these ever compete with the decoder's own threads. And one alone: filled up to the length of a neighbour, a text
//! would be computed in matrices of another shape, and its vector would differ in the last bits from the one it has by
//! itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use serde::Deserialize;

use crate::ModelSpec;
use crate::device::OrDevice;
use crate::text::Tokenizer;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

/// The longest header that the safetensors library reads.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Loads the weights of an encoder.
pub type EncoderLoader = Arc<dyn Fn() -> Result<Encoder> + Send + Sync>;

/// An encoder whose files are open, its weights apart.
pub struct OpenEncoder {
    /// What is to be known of it before it is loaded. It has no KV memory that a text must fit.
    pub spec: ModelSpec,
    /// Texts to its tokens, with those that the model wants around them.
    pub tokenizer: Arc<Tokenizer>,
    /// Loads its weights.
    pub loader: EncoderLoader,
    /// About how much memory its weights take.
    pub memory_bytes: u64,
    /// One line for the log.
    pub description: String,
}

/// A loaded encoder.
pub struct Encoder {
    bert: BertModel,
    hidden_size: usize,
    max_model_len: usize,
}

/// What sentence-transformers writes beside a model.
#[derive(Debug, Deserialize)]
struct SentenceConfig {
    /// The longest text that it was trained with.
    max_seq_length: Option<usize>,
}

/// Opens the encoder whose weights are at `path` (safetensors), with `config.json`, `tokenizer.json` and, if there is one,
/// `sentence_bert_config.json` beside them.
///
/// # Errors
/// If a file is missing, damaged, or of another architecture; the message begins with its path.
pub fn open(path: &Path) -> Result<OpenEncoder> {
    let config = config(path)?;
    let tokenizer_path = path.with_file_name("tokenizer.json");
    let tokenizer = Tokenizer::framed(&read(&tokenizer_path)?).map_err(|e| e.context(tokenizer_path.display()))?;
    if tokenizer.vocab_size() > config.vocab_size {
        let (ids, rows) = (tokenizer.vocab_size(), config.vocab_size);
        let message = format!("the vocabulary has {ids} tokens, `vocab_size` is {rows}");
        return Err(Error::bad_model(message).context(tokenizer_path.display()));
    }
    let max_model_len = max_model_len(path, &config)?;
    let spec =
        ModelSpec { vocab_size: config.vocab_size, max_model_len, num_blocks: usize::MAX, attention_span: usize::MAX };
    let (num_layers, hidden_size) = (config.num_hidden_layers, config.hidden_size);
    let description = format!("bert with {num_layers} layers of {hidden_size}, {max_model_len} tokens of context");
    let memory_bytes = weight_bytes(path)?;
    let path = path.to_owned();
    let loader = Arc::new(move || Encoder::load(&path));
    Ok(OpenEncoder { spec, tokenizer: Arc::new(tokenizer), loader, memory_bytes, description })
}

impl Encoder {
    /// Loads the weights at `path`, as [`open`] finds them.
    ///
    /// # Errors
    /// As [`open`].
    pub fn load(path: &Path) -> Result<Self> {
        let config = config(path)?;
        let damaged = |e: candle_core::Error| Error::bad_model(format!("{}: {e}", path.display()));
        let weights = VarBuilder::from_buffered_safetensors(read(path)?, DType::F32, &Device::Cpu).map_err(damaged)?;
        let bert = BertModel::load(weights, &config).map_err(damaged)?;
        Ok(Self { bert, hidden_size: config.hidden_size, max_model_len: max_model_len(path, &config)? })
    }

    /// Its last hidden states, `[tokens.len(), hidden_size]`.
    ///
    /// # Errors
    /// If the device fails. Tokens past the vocabulary, or more of them than its context has, are a bug.
    pub fn hidden_states(&self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        assert!(tokens.len() <= self.max_model_len, "a text that is too long");
        let compute = || {
            let ids = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
            self.bert.forward(&ids, &ids.zeros_like()?, None)?.flatten_all()?.to_vec1()
        };
        compute().or_device()
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("hidden_size", &self.hidden_size).finish_non_exhaustive()
    }
}

fn config(path: &Path) -> Result<Config> {
    let path = path.with_file_name("config.json");
    let config: Config = json(&path, &read(&path)?)?;
    if config.model_type.as_deref().is_some_and(|kind| kind != "bert") {
        let message = format!("`model_type` must be \"bert\", is {:?}", config.model_type);
        return Err(Error::bad_model(message).context(path.display()));
    }
    Ok(config)
}

/// What the weights take once they are f32, by the file's header: its length in 8 bytes, little-endian, then JSON with the
/// shape of every tensor (the format's own description, github.com/huggingface/safetensors).
fn weight_bytes(path: &Path) -> Result<u64> {
    #[derive(Deserialize)]
    struct Shaped {
        shape: Option<Vec<u64>>,
    }
    let failed = |e| Error::io(path.display(), e);
    let damaged = || Error::bad_model(format!("{}: this is no safetensors file", path.display()));
    let mut file = File::open(path).map_err(failed)?;
    let mut len = [0; 8];
    file.read_exact(&mut len).map_err(|_| damaged())?;
    let len = u64::from_le_bytes(len);
    if len > HEADER_BYTES_MAX {
        return Err(damaged());
    }
    let mut header = Vec::new();
    file.take(len).read_to_end(&mut header).map_err(failed)?;
    let tensors: BTreeMap<String, Shaped> = serde_json::from_slice(&header).map_err(|_| damaged())?;
    let num_values = tensors.values().filter_map(|tensor| tensor.shape.as_ref());
    let num_values = num_values.map(|shape| shape.iter().fold(1u64, |n, dim| n.saturating_mul(*dim)));
    Ok(num_values.fold(0u64, u64::saturating_add).saturating_mul(size_of::<f32>() as u64))
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
