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

use super::house::{Config, Origin};
use super::process::ModelSection;
use super::sources::{FileModel, Sources};
use crate::error::{Error, Result};
use crate::settings::Setting;

/// Gives every model its section.
pub(super) fn list(config: &mut Config, sources: &Sources) -> Result<()> {
    config.process.embedding_pinned = config.model.pinned;
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
    let more =
        config.process.more_models.iter().map(|name| ModelSection { name: name.clone(), ..config.model.clone() });
    all.extend(more);
    let (num_models, num_names) = (all.len(), config.process.served_names.len());
    if num_names > num_models {
        let message =
            format!("--served-name must name at most the models that are served ({num_models}), got {num_names}");
        return Err(Error::invalid("model.served_name", message));
    }
    for (model, name) in all.iter_mut().zip(&config.process.served_names) {
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
    let FileModel { name, served_name, aliases, values } = model.clone();
    let mut section = ModelSection { name, served_name, aliases, ..base.clone() };
    let mut read = |setting: &'static Setting, _| {
        let Some((_, text)) = values.iter().find(|(own, _)| own.key == setting.key) else { return Ok(None) };
        let rule = |rule| Error::invalid(setting.key, format!("{} {rule}", setting.name()));
        setting.parse(text).map(Some).map_err(rule)
    };
    section.visit_settings(&mut read)?;
    Ok(section)
}
