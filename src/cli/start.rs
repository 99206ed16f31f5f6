//! Everything behind the wires, built from the configuration: fetch, load, start the workers.

use std::sync::Arc;
use std::time::Instant;

use super::{pull, sections};
use crate::config::Config;
use crate::engine::Engine;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::model::load::load;
use crate::model::registry::Progress;
use crate::service::{ChatTemplate, LocalBackend, Service, ServiceConfig};
use crate::stream::StreamTable;

/// Fetches the model if need be, loads it, and starts the workers. Blocks.
///
/// # Errors
/// If any of that fails; the message names the file, the source or the flag.
pub(super) fn service(config: &Config, progress: Progress<'_>) -> Result<Arc<Service>> {
    let file = pull::registry(&config.registry)?.resolve(&config.model.name, progress)?;
    let began = Instant::now();
    let model = load(&file.path, &sections::decoder(config)?)?;
    let (own_template, aliases) = file.manifest.map_or((None, Vec::new()), |m| (m.chat_template, m.aliases));
    let template = own_template.or(model.chat_template);
    let template = template.map(|source| ChatTemplate::new(&source, &model.bos_text, &model.eos_text)).transpose();
    let template = template.map_err(|e| e.context(format!("chat template of {}", file.path.display())))?;

    let metrics = Arc::new(Metrics::default());
    let engine = Engine::start(sections::engine(config), model.factory, model.tokenizer.clone(), metrics.clone())?;
    tracing::info!("loaded {} in {:.2} s: {}", file.name, began.elapsed().as_secs_f64(), model.description);
    let name = config.model.served_name.clone().unwrap_or(file.name);
    Ok(Arc::new(Service::new(
        ServiceConfig { model_aliases: aliases, ..sections::service(config, name) },
        model.tokenizer,
        template,
        model.spec,
        Arc::new(LocalBackend::new(engine)),
        Arc::new(StreamTable::new(sections::streams(config))),
        metrics,
    )))
}
