//! Which models are served: those named on the command line or in the environment; else the file's `[[models]]`, each of which
//! may have settings of its own:
//!
//! ```toml
//! [[models]]
//! name = "smollm2-135m-instruct"
//! aliases = ["small"]
//! pinned = true
//!
//! [[models]]
//! name = "hub:OWNER/REPO:FILE.gguf"
//! served_name = "large"
//! max_model_len = 8192
//! ```

use super::sources::FileModel;
use super::{Config, ModelSection, Origin, Sources, Value, setting};
use crate::error::{Error, Result};

/// Names of models as they were typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelNames {
    pub(super) more: Vec<String>,
    pub(super) served: Vec<String>,
}

/// What `[[models]]` can say of a model, beside `name` and `aliases`.
pub(super) const OWN_KEYS: &[&str] = &[
    "served_name",
    "preload",
    "pinned",
    "device",
    "activations",
    "reference",
    "call_format",
    "reasoning_format",
    "max_model_len",
    "kv_cache_bytes",
];

/// Gives every model its section.
pub(super) fn list(config: &mut Config, sources: &Sources) -> Result<()> {
    config.embeddings.pinned = config.model.pinned;
    let is_typed = ["model.name", "model.more"].iter().any(|key| config.origin(key) > Origin::File);
    let in_file = if is_typed { &[] } else { sources.file_models() };
    let mut all = Vec::new();
    for (index, model) in in_file.iter().enumerate() {
        let place = format!("models[{index}]");
        all.push(of_file(&config.model, model).map_err(|e| e.context(place))?);
    }
    if all.is_empty() {
        all.push(config.model.clone());
    } else if config.origin("model.name") == Origin::File {
        let message = "models must be named in `[[models]]` or in `[model]`, not in both";
        return Err(Error::invalid("model.name", message));
    }
    let more = config.names.more.iter().map(|name| ModelSection { name: name.clone(), ..config.model.clone() });
    all.extend(more);
    let (num_models, num_names) = (all.len(), config.names.served.len());
    if num_names > num_models {
        let message =
            format!("--served-name must name at most the models that are served ({num_models}), got {num_names}");
        return Err(Error::invalid("model.served_name", message));
    }
    for (model, name) in all.iter_mut().zip(&config.names.served) {
        model.served_name = Some(name.clone());
    }
    // Who asks for one model waits for it at start, where an error has a person who reads it.
    if num_models == 1 {
        all[0].preload = true;
    }
    config.model = all.remove(0);
    config.more_models = all;
    Ok(())
}

/// What the file says of one, over what holds for all.
fn of_file(base: &ModelSection, model: &FileModel) -> Result<ModelSection> {
    let mut section = ModelSection { name: model.name.clone(), aliases: model.aliases.clone(), ..base.clone() };
    for (key, text) in &model.values {
        let rule = |rule: String| Error::invalid(format!("model.{key}"), format!("{key} {rule}"));
        let value = setting(&format!("model.{key}")).parse(text).map_err(rule)?;
        section.set(key, value);
    }
    Ok(section)
}

impl ModelSection {
    /// Replaces what one of [`OWN_KEYS`] stands for.
    fn set(&mut self, key: &str, value: Value) {
        match (key, value) {
            ("served_name", Value::List(names)) => self.served_name = names.into_iter().next(),
            ("preload", Value::Bool(yes)) => self.preload = yes,
            ("pinned", Value::Bool(yes)) => self.pinned = yes,
            ("reference", Value::Bool(yes)) => self.reference = yes,
            ("device", Value::Text(word)) => self.device = super::resolve::device(&word),
            ("activations", Value::Text(word)) => self.activations = super::resolve::activations(&word),
            ("call_format", Value::Text(word)) => self.call_format = word,
            ("reasoning_format", Value::Text(word)) => self.reasoning_format = word,
            ("max_model_len", Value::Auto) => self.max_model_len = None,
            ("max_model_len", Value::Number(n)) => self.max_model_len = usize::try_from(n).ok(),
            ("kv_cache_bytes", Value::Number(n)) => self.kv_cache_bytes = n,
            (key, value) => unreachable!("{key} is read as {value:?}"),
        }
    }
}
