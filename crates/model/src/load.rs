//! From a file on disk to everything that serving it takes: tokenizer, template, and a factory of decoders.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decoder::{DecoderOptions, DecoderWeights};
use super::gguf::Gguf;
use super::vocab::vocab_from_gguf;
use super::{Model, ModelFactory, ModelSpec};
use crate::text::Tokenizer;
use tallow_stream::error::{Error, Result};
use tallow_stream::protocol::TokenId;
use xxhash_rust::xxh3::Xxh3;

/// A served model's parts.
pub struct LoadedModel {
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
    /// Makes one decoder per worker, each with its own KV memory and threads.
    pub factory: ModelFactory,
    /// Changes with whatever changes its texts: the file, and how it is computed with.
    pub fingerprint: u64,
    /// One line for the log: architecture, sizes, instruction set.
    pub description: String,
}

/// Loads a GGUF file. A `tokenizer.json` in the same folder takes the place of the file's own vocabulary.
///
/// # Errors
/// If the file is damaged or of a kind that is not supported; the message begins with the path and names the key or
/// tensor.
pub fn load(path: &Path, options: &DecoderOptions) -> Result<LoadedModel> {
    load_inner(path, options).map_err(|e| match e.message().starts_with(&path.display().to_string()) {
        true => e,
        false => e.context(path.display()),
    })
}

fn load_inner(path: &Path, options: &DecoderOptions) -> Result<LoadedModel> {
    let gguf = Arc::new(Gguf::open(path)?);
    let weights = DecoderWeights::load(&gguf, options)?;
    let tokenizer = tokenizer(path, &gguf)?;
    let (spec, config) = (weights.spec().clone(), weights.config());
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
        weights.isa(),
    );
    let spelling =
        |token: Option<TokenId>| token.and_then(|id| tokenizer.special_spelling(id)).unwrap_or_default().to_owned();
    Ok(LoadedModel {
        chat_template: gguf.metadata().opt_str("tokenizer.chat_template")?.map(str::to_owned),
        bos_text: spelling(tokenizer.bos()),
        eos_text: spelling(tokenizer.eos()),
        spec,
        description,
        fingerprint: fingerprint(path, options)?,
        factory: Arc::new(move || Ok(Box::new(weights.decoder()?) as Box<dyn Model>)),
        tokenizer: Arc::new(tokenizer),
    })
}

/// Bytes at the beginning and the end of a file that stand for it, beside its size: what was read in full was checked
/// when it was fetched.
const FINGERPRINT_BYTES: u64 = 1 << 20;

fn fingerprint(path: &Path, options: &DecoderOptions) -> Result<u64> {
    let read = || -> std::io::Result<u64> {
        let mut file = std::fs::File::open(path)?;
        let len = file.metadata()?.len();
        let mut hasher = Xxh3::new();
        let mut bytes = Vec::new();
        (&mut file).take(FINGERPRINT_BYTES).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::Start(len.saturating_sub(FINGERPRINT_BYTES)))?;
        file.read_to_end(&mut bytes)?;
        hasher.update(&bytes);
        hasher.update(&len.to_le_bytes());
        // A version may change a rounding; that it did not is not for the store to find out.
        hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
        hasher.update(options.arithmetic().as_bytes());
        Ok(hasher.digest())
    };
    read().map_err(|e| Error::io(path.display(), e))
}

fn tokenizer(path: &Path, gguf: &Gguf) -> Result<Tokenizer> {
    let beside: PathBuf = path.with_file_name("tokenizer.json");
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
