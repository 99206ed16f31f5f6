//! From a file on disk to everything that serving it takes. What a request needs before it is computed (tokenizer, template,
//! bounds) is there once the file is open; the weights are loaded apart from it, as often as they are wanted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decoder::{DecoderOptions, DecoderWeights};
use super::fingerprint;
use super::gguf::Gguf;
use super::vocab::{tokenizer_beside, vocab_from_gguf};
use super::{Model, ModelFactory, ModelSpec};
use crate::text::Tokenizer;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;

/// Loads the weights and makes a factory of decoders, one per worker. They are in memory as long as the factory or one of
/// its decoders is.
pub type Loader = Arc<dyn Fn() -> Result<ModelFactory> + Send + Sync>;

/// A model whose file is open, its weights apart.
pub struct OpenModel {
    /// What the engine must know of it.
    pub spec: ModelSpec,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Source of its chat template, if the file has one.
    pub chat_template: Option<String>,
    /// Spelling of its beginning-of-text token, which templates use; empty if it has none.
    pub bos_text: String,
    /// Spelling of its end-of-text token.
    pub eos_text: String,
    /// Loads its weights.
    pub loader: Loader,
    /// About how much memory it takes when it is loaded: weights, keys and values.
    pub memory_bytes: u64,
    /// One line for the log: architecture, sizes, instruction set.
    pub description: String,
    /// Its file, and how it is computed with; none for the stub.
    pub(crate) source: Option<(PathBuf, String)>,
}

impl OpenModel {
    /// Loads the weights.
    ///
    /// # Errors
    /// If a tensor is missing or misshapen, or the memory does not suffice.
    pub fn load(&self) -> Result<ModelFactory> {
        (self.loader)()
    }

    /// Changes with whatever changes its texts: what is in its files, and how they are computed with. Reads the whole file,
    /// unless that was done before and is noted beside it.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn fingerprint(&self) -> Result<u64> {
        self.source.as_ref().map_or(Ok(0), |(path, arithmetic)| fingerprint::of(path, arithmetic))
    }
}

/// Opens a GGUF file. A `tokenizer.json` in the same folder takes the place of the file's own vocabulary.
///
/// # Errors
/// If the file is damaged or of a kind that is not supported; the message begins with the path and names the key or
/// tensor.
pub fn open(path: &Path, options: &DecoderOptions) -> Result<OpenModel> {
    open_inner(path, options).map_err(|e| with_path(e, path))
}

fn open_inner(path: &Path, options: &DecoderOptions) -> Result<OpenModel> {
    let gguf = Arc::new(Gguf::open(path)?);
    let described = DecoderWeights::describe(&gguf, options)?;
    let tokenizer = tokenizer(path, &gguf)?;
    let (spec, config) = (described.spec, described.config);
    if tokenizer.vocab_size() > spec.vocab_size {
        let (ids, rows) = (tokenizer.vocab_size(), spec.vocab_size);
        return Err(Error::bad_model(format!("the vocabulary has {ids} tokens, `token_embd.weight` only {rows} rows")));
    }
    let description = format!(
        "{} with {} layers of {}, {} tokens of context, {} KV blocks, {}",
        config.architecture,
        config.layers.len(),
        config.hidden_size,
        spec.max_model_len,
        spec.num_blocks,
        described.isa,
    );
    let spelling =
        |token: Option<TokenId>| token.and_then(|id| tokenizer.special_spelling(id)).unwrap_or_default().to_owned();
    let weights_bytes: u64 = gguf.tensors().iter().map(|t| t.num_bytes() as u64).sum();
    let kv_bytes = (config.kv_block_bytes() as u64).saturating_mul(spec.num_blocks as u64);
    let (loaded_from, options) = (path.to_owned(), options.clone());
    let arithmetic = options.arithmetic(&config);
    let loader = move || {
        let gguf = Arc::new(Gguf::open(&loaded_from)?);
        let weights = DecoderWeights::load(&gguf, &options).map_err(|e| with_path(e, &loaded_from))?;
        Ok(Arc::new(move || Ok(Box::new(weights.decoder()?) as Box<dyn Model>)) as ModelFactory)
    };
    Ok(OpenModel {
        chat_template: gguf.metadata().opt_str("tokenizer.chat_template")?.map(str::to_owned),
        bos_text: spelling(tokenizer.bos()),
        eos_text: spelling(tokenizer.eos()),
        spec,
        description,
        memory_bytes: weights_bytes + kv_bytes,
        source: Some((path.to_owned(), arithmetic)),
        loader: Arc::new(loader),
        tokenizer: Arc::new(tokenizer),
    })
}

fn with_path(e: Error, path: &Path) -> Error {
    if e.message().starts_with(&path.display().to_string()) { e } else { e.context(path.display()) }
}

fn tokenizer(path: &Path, gguf: &Gguf) -> Result<Tokenizer> {
    let beside = tokenizer_beside(path);
    match std::fs::read(&beside) {
        Ok(json) => {
            let vocab = vocab_from_gguf(gguf.metadata());
            tracing::info!(own = ?vocab.as_ref().err(), "{} takes the place of the file's own vocabulary", beside.display());
            let vocab = vocab.ok();
            Tokenizer::from_json(&json, vocab).map_err(|e| e.context(beside.display()))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Tokenizer::from_vocab(vocab_from_gguf(gguf.metadata())?),
        Err(e) => Err(Error::io(beside.display(), e)),
    }
}
