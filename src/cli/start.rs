//! Everything behind the wires, built from the configuration: fetch, open, load, start the workers, take up stored streams.

use std::sync::Arc;

use super::decoder::decoder;
use super::pull;
use crate::config::{Config, ModelSection};
use crate::engine::encoder::{EncoderLimits, EncoderPool, StatesOf};
use crate::engine::{Engine, PRIORITY_STEP_TOKENS, Turns};
use crate::error::{Error, Result};
use crate::hub::{ModelFile, ModelKind, Progress};
use crate::metrics::Metrics;
use crate::model::encoder::{self, OpenEncoder};
use crate::model::load::{OpenModel, open};
use crate::model::stub;
use crate::service::{ChatTemplate, EncoderBackend, LocalBackend, Models, Residence, Served, ServedConfig, Service};
use crate::stream::{StoredStream, StreamStore, StreamTable};
use crate::text::{CallSyntax, ReasoningSyntax};

/// A model, and what it is called.
struct Found {
    model: OpenModel,
    name: String,
    aliases: Vec<String>,
    /// Takes the place of the file's own.
    chat_template: Option<String>,
}

/// An encoder, and what it is called.
struct FoundEncoder {
    model: OpenEncoder,
    name: String,
    aliases: Vec<String>,
}

/// Fetches and opens all models, loads those that are to be there from the start, and starts what serves them. Blocks.
///
/// # Errors
/// If any of that fails; the message names the file, the source or the flag.
pub(super) fn service(config: &Config, progress: Progress<'_>) -> Result<Arc<Service>> {
    // First, because it fails at once if another process has it.
    let (table, stored) = streams(config)?;
    let sections: Vec<&ModelSection> = std::iter::once(&config.model).chain(&config.more_models).collect();
    let found = sections.iter().map(|section| find(config, section, progress)).collect::<Result<Vec<_>>>()?;
    let encoder = find_encoder(config, progress)?;
    let names: Vec<&str> =
        found.iter().map(|found| &*found.name).chain(encoder.iter().map(|encoder| &*encoder.name)).collect();
    let (metrics, by_model) = Metrics::by_model(&names);
    let turns = Turns::new(config.engine.num_workers);
    let mut models = Vec::with_capacity(found.len());
    for ((found, section), metrics) in found.into_iter().zip(&sections).zip(&by_model) {
        models.push(Arc::new(served(config, section, found, metrics, &turns)?));
    }
    if let (Some(encoder), Some(metrics)) = (encoder, by_model.last()) {
        models.push(Arc::new(served_encoder(config, encoder, &models, metrics)?));
    }
    let models = Models::new(models, config.models)?;
    // An encoder has no section: it is loaded at start.
    let is_wanted = |index: usize| sections.get(index).is_none_or(|section| section.preload);
    let wanted = models.all().iter().enumerate().filter(|(index, _)| is_wanted(*index));
    let wanted: Vec<&Arc<Served>> = wanted.map(|(_, served)| served).collect();
    let bytes: u64 = wanted.iter().map(|served| served.backend().memory_bytes()).sum();
    if let Some(max) = config.models.memory_bytes_max.filter(|max| bytes > *max) {
        let message =
            format!("--memory-max must hold the models that are loaded at start, about {bytes} bytes, got {max}");
        return Err(Error::invalid("model.memory_max", message));
    }
    wanted.into_iter().try_for_each(|served| preload(served))?;
    let service = Service::new(config.service.clone(), models, Arc::new(table), metrics)?;
    let num_stored = stored.len();
    if num_stored > 0 {
        let restored = service.restore(stored);
        tracing::info!("{num_stored} streams of the store: {restored:?}");
    }
    Ok(Arc::new(service))
}

/// A model with its engine, its weights not loaded yet.
fn served(
    config: &Config,
    section: &ModelSection,
    found: Found,
    metrics: &Arc<Metrics>,
    turns: &Arc<Turns>,
) -> Result<Served> {
    let Found { model, name, aliases, chat_template } = found;
    let template = chat_template.or_else(|| model.chat_template.clone());
    let template = template.map(|source| ChatTemplate::new(&source, &model.bos_text, &model.eos_text)).transpose();
    let template = template.map_err(|e| e.context(format!("chat template of {name}")))?;
    // Only a stored stream asks for it, and it takes the reading of the whole file.
    let fingerprint = if config.process.store.is_some() { fingerprint(&model, &name)? } else { 0 };
    let served_config = ServedConfig { aliases, fingerprint, ..served_config(section, &name) };
    tracing::info!("{name}: {}", model.description);
    let engine = Engine::open(
        config.engine.clone(),
        model.spec.clone(),
        model.tokenizer.clone(),
        metrics.clone(),
        turns.clone(),
    )?;
    let backend = LocalBackend::on_demand(engine, &name, model.loader.clone(), model.memory_bytes);
    let OpenModel { tokenizer, spec, .. } = model;
    Ok(Served::new(served_config, tokenizer, template, spec, Arc::new(backend), metrics.clone()))
}

/// What one model is called, and how its answers are read.
fn served_config(section: &ModelSection, name: &str) -> ServedConfig {
    ServedConfig {
        is_pinned: section.pinned,
        call_syntax: match section.call_format.as_str() {
            "hermes" => Some(CallSyntax::Hermes),
            "llama3" => Some(CallSyntax::Llama3),
            "mistral" => Some(CallSyntax::Mistral),
            _ => None,
        },
        reasoning_syntax: match section.reasoning_format.as_str() {
            "none" => Some(None),
            "think" => Some(Some(ReasoningSyntax::Think)),
            "bracket" => Some(Some(ReasoningSyntax::Bracket)),
            _ => None,
        },
        ..ServedConfig::named(name)
    }
}

/// Several stubs have no weights that tell them apart, but names.
fn fingerprint(model: &OpenModel, name: &str) -> Result<u64> {
    let of_weights = model.fingerprint()?;
    Ok(if of_weights == 0 && name != STUB { xxhash_rust::xxh3::xxh3_64(name.as_bytes()) } else { of_weights })
}

/// Loads a model now.
fn preload(served: &Served) -> Result<()> {
    let Some(mut residence) = served.backend().watch_residence() else { return Ok(()) };
    served.backend().begin_load();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|e| Error::io("cannot wait for the model", e))?;
    let is_over = |state: &Residence| matches!(state, Residence::Loaded | Residence::Failed(_));
    let after = runtime.block_on(residence.wait_for(is_over)).map(|state| state.clone());
    match after {
        Ok(Residence::Failed(message)) => Err(Error::bad_model(message)),
        _ => Ok(()),
    }
}

/// The encoder, if one is to be served.
fn find_encoder(config: &Config, progress: Progress<'_>) -> Result<Option<FoundEncoder>> {
    let Some(spec) = &config.process.embedding_model else { return Ok(None) };
    let ModelFile { name, path, manifest } = pull::registry(&config.process)?.resolve(spec, progress)?;
    if manifest.as_ref().is_some_and(|m| m.kind != ModelKind::Encoder) {
        let message = format!("--embedding-model must be an encoder; {name} embeds as it is served, with --model");
        return Err(Error::invalid("embeddings.model", message));
    }
    // Every encoder's file has the same name; its folder tells which it is.
    let folder = path.parent().and_then(|folder| folder.file_name());
    let name = match (&manifest, folder) {
        (None, Some(folder)) => folder.to_string_lossy().into_owned(),
        _ => name,
    };
    let model = encoder::open(&path)?;
    tracing::info!("{name}: {}", model.description);
    let aliases = manifest.map_or_else(Vec::new, |m| m.aliases);
    Ok(Some(FoundEncoder { model, name, aliases }))
}

/// The encoder with its queue, its weights not loaded yet.
fn served_encoder(
    config: &Config,
    encoder: FoundEncoder,
    models: &[Arc<Served>],
    metrics: &Arc<Metrics>,
) -> Result<Served> {
    let FoundEncoder { model, name, aliases } = encoder;
    if models.iter().any(|served| served.answers_to(&name)) {
        let message = format!("--embedding-model and --model must have different names, got {name} twice");
        return Err(Error::invalid("embeddings.model", message));
    }
    let OpenEncoder { spec, tokenizer, loader, memory_bytes, .. } = model;
    let limits =
        EncoderLimits { queue_max: config.process.embedding_queue_max, priority_step_tokens: PRIORITY_STEP_TOKENS };
    let pool = EncoderPool::open(limits, metrics.clone());
    let loader = move || -> Result<StatesOf> {
        let encoder = loader()?;
        Ok(Box::new(move |tokens| encoder.hidden_states(tokens)))
    };
    let backend = EncoderBackend::new(pool, &name, Arc::new(loader), memory_bytes);
    let served_config =
        ServedConfig { aliases, is_pinned: config.process.embedding_pinned, ..ServedConfig::named(&name) };
    Ok(Served::encoder(served_config, tokenizer, spec, Arc::new(backend), metrics.clone()))
}

/// An empty table, and what its store has.
fn streams(config: &Config) -> Result<(StreamTable, Vec<StoredStream>)> {
    let limits = config.streams;
    let Some(dir) = &config.process.store else { return Ok((StreamTable::new(limits), Vec::new())) };
    let (store, stored) = StreamStore::open(dir, config.store)?;
    Ok((StreamTable::with_store(limits, store), stored))
}

/// The stub's name where it is given none.
const STUB: &str = "stub";

fn find(config: &Config, section: &ModelSection, progress: Progress<'_>) -> Result<Found> {
    let own_name = |name: String| section.served_name.clone().unwrap_or(name);
    let aliases = |more: Vec<String>| [section.aliases.clone(), more].concat();
    if let Some(model) = stub::from_spec(&section.name)? {
        return Ok(Found { model, name: own_name(STUB.to_owned()), aliases: aliases(Vec::new()), chat_template: None });
    }
    let file = pull::registry(&config.process)?.resolve(&section.name, progress)?;
    if file.manifest.as_ref().is_some_and(|m| m.kind != ModelKind::Decoder) {
        let message = format!("--model must go on from texts; {} only embeds them, with --embedding-model", file.name);
        return Err(Error::invalid("model.name", message));
    }
    let model = open(&file.path, &decoder(config, section)?)?;
    let (chat_template, more) = file.manifest.map_or((None, Vec::new()), |m| (m.chat_template, m.aliases));
    Ok(Found { model, name: own_name(file.name), aliases: aliases(more), chat_template })
}
