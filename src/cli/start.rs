//! Everything behind the wires, built from the configuration: fetch, load, start the workers, take up stored streams.

use std::sync::Arc;
use std::time::Instant;

use super::{pull, sections};
use crate::config::Config;
use crate::engine::Engine;
use crate::engine::encoder::EncoderPool;
use crate::error::{Error, Result};
use crate::hub::{ModelFile, ModelKind, Progress};
use crate::metrics::Metrics;
use crate::model::encoder::Encoder;
use crate::model::load::{LoadedModel, load};
use crate::model::stub;
use crate::service::{ChatTemplate, LocalBackend, ServedEncoder, Service, ServiceConfig};
use crate::stream::{StoredStream, StreamStore, StreamTable};

/// A model, and what it is called.
struct Found {
    model: LoadedModel,
    name: String,
    aliases: Vec<String>,
    /// Takes the place of the file's own.
    chat_template: Option<String>,
    /// Of the weights.
    fingerprint: u64,
}

/// Fetches the model if need be, loads it, and starts the workers. Blocks.
///
/// # Errors
/// If any of that fails; the message names the file, the source or the flag.
pub(super) fn service(config: &Config, progress: Progress<'_>) -> Result<Arc<Service>> {
    // First, because it fails at once if another process has it.
    let (table, stored) = streams(config)?;
    let began = Instant::now();
    let found = find(config, progress)?;
    let Found { model, name, aliases, .. } = found;
    let template = found.chat_template.or(model.chat_template);
    let template = template.map(|source| ChatTemplate::new(&source, &model.bos_text, &model.eos_text)).transpose();
    let template = template.map_err(|e| e.context(format!("chat template of {name}")))?;

    let metrics = Arc::new(Metrics::default());
    let encoder = encoder(config, &metrics, progress)?;
    let engine = Engine::start(sections::engine(config), model.factory, model.tokenizer.clone(), metrics.clone())?;
    tracing::info!("loaded {name} in {:.2} s: {}", began.elapsed().as_secs_f64(), model.description);
    let service = Service::new(
        ServiceConfig {
            model_aliases: aliases,
            fingerprint: found.fingerprint,
            ..sections::service(config, config.model.served_name.clone().unwrap_or(name))
        },
        model.tokenizer,
        template,
        model.spec,
        Arc::new(LocalBackend::new(engine)),
        Arc::new(table),
        metrics,
    )?;
    let service = match encoder {
        Some(encoder) if service.check_model(Some(&encoder.name)).is_ok() => {
            let message =
                format!("--embedding-model and --model must have different names, got {} twice", encoder.name);
            return Err(Error::invalid("embeddings.model", message));
        }
        Some(encoder) => service.with_encoder(encoder),
        None => service,
    };
    let num_stored = stored.len();
    if num_stored > 0 {
        let restored = service.restore(stored);
        tracing::info!("{num_stored} streams of the store: {restored:?}");
    }
    Ok(Arc::new(service))
}

/// The encoder, if one is to be served.
fn encoder(config: &Config, metrics: &Arc<Metrics>, progress: Progress<'_>) -> Result<Option<ServedEncoder>> {
    let Some(spec) = &config.embeddings.model else { return Ok(None) };
    let began = Instant::now();
    let ModelFile { name, path, manifest } = pull::registry(&config.registry)?.resolve(spec, progress)?;
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
    let model = Encoder::load(&path)?;
    tracing::info!("loaded {name} in {:.2} s: {}", began.elapsed().as_secs_f64(), model.description());
    let pool = EncoderPool::start(model, config.embeddings.queue_max, metrics.clone())?;
    let aliases = manifest.map_or_else(Vec::new, |m| m.aliases);
    Ok(Some(ServedEncoder { name, aliases, pool }))
}

/// An empty table, and what its store has.
fn streams(config: &Config) -> Result<(StreamTable, Vec<StoredStream>)> {
    let limits = sections::streams(config);
    let Some((dir, store_limits)) = sections::store(config) else { return Ok((StreamTable::new(limits), Vec::new())) };
    let (store, stored) = StreamStore::open(&dir, store_limits)?;
    Ok((StreamTable::with_store(limits, store), stored))
}

fn find(config: &Config, progress: Progress<'_>) -> Result<Found> {
    if let Some(model) = stub::from_spec(&config.model.name)? {
        let name = "stub".to_owned();
        return Ok(Found { model, name, aliases: Vec::new(), chat_template: None, fingerprint: 0 });
    }
    let file = pull::registry(&config.registry)?.resolve(&config.model.name, progress)?;
    if file.manifest.as_ref().is_some_and(|m| m.kind != ModelKind::Decoder) {
        let message = format!("--model must go on from texts; {} only embeds them, with --embedding-model", file.name);
        return Err(Error::invalid("model.name", message));
    }
    let options = sections::decoder(config)?;
    let model = load(&file.path, &options)?;
    let fingerprint = model.fingerprint;
    let (chat_template, aliases) = file.manifest.map_or((None, Vec::new()), |m| (m.chat_template, m.aliases));
    Ok(Found { model, name: file.name, aliases, chat_template, fingerprint })
}
