//! Stage two: each setting's value from the strongest source into its room's struct; then what follows from several.

use super::check;
use super::house::{Config, Origin, place};
use super::models;
use super::sources::Sources;
use crate::error::Result;
use crate::settings::{Kind, Setting, Value};

impl Config {
    /// Reads every setting from `sources` and checks them one by one, then together.
    ///
    /// # Errors
    /// The first broken rule, with the name by which the value was given.
    pub fn resolve(sources: &Sources) -> Result<Self> {
        let mut config = Self { file: sources.file_path().map(Into::into), ..Self::default() };
        let mut resolved = Vec::new();
        let mut read = |setting: &'static Setting, default: Value| {
            let given = sources.value(setting)?;
            let (value, origin) = given.clone().unwrap_or((default, Origin::Default));
            resolved.push((setting, shown(setting, value), origin));
            Ok(given.map(|(value, _)| value))
        };
        config.visit_settings(&mut read)?;
        resolved.sort_by_key(|(setting, _, _)| place(setting));
        config.resolved = resolved;
        config.log.level_given = config.origin("log.level") != Origin::Default;
        config.keys.collect()?;
        config.api.keys = config.keys.api_keys();
        config.service.owners = config.keys.owners();
        models::list(&mut config, sources)?;
        check::together(config)
    }
}

/// What is kept to be shown: of secrets their number and nothing else.
fn shown(setting: &Setting, value: Value) -> Value {
    match (setting.kind, value) {
        (Kind::Secrets, Value::List(items)) if items.is_empty() => Value::Text(String::new()),
        (Kind::Secrets, Value::List(items)) => Value::Text(format!("{} given", items.len())),
        (_, value) => value,
    }
}
