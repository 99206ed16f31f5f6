//! The settings of all rooms in one place, and the list of them that flags, files, help and docs are made from.

use std::path::PathBuf;
use std::sync::LazyLock;

use super::keys::KeysConfig;
use super::process::{ModelSection, ProcessConfig};
use crate::api::ApiConfig;
use crate::engine::EngineConfig;
use crate::error::Result;
use crate::service::{ModelLimits, ServiceConfig};
use crate::settings::{Setting, Value, Visit};
use crate::stream::{StoreLimits, TableLimits};
use crate::telemetry::LogConfig;

/// Sections of the file with their headings in the help, in the order in which all lists show them.
pub const SECTIONS: &[(&str, &str)] = &[
    ("server", "Server"),
    ("streams", "Streams"),
    ("responses", "Responses"),
    ("requests", "Requests"),
    ("engine", "Engine"),
    ("registry", "Weights"),
    ("log", "Log"),
    ("keys", "API keys"),
    ("memory", "Memory"),
    ("embeddings", "Embeddings"),
    ("model", "Model"),
];

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The TOML file.
    File,
    /// A `TALLOW_` variable.
    Env,
    /// The command line.
    Flag,
}

impl Origin {
    /// One word for the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Env => "env",
            Self::Flag => "flag",
        }
    }
}

/// Everything a server must be told, resolved and checked.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Where it listens, what it serves, where things are kept.
    pub process: ProcessConfig,
    /// The HTTP wires.
    pub api: ApiConfig,
    /// The table of streams.
    pub streams: TableLimits,
    /// The streams on disk, if there are any.
    pub store: StoreLimits,
    /// What a request may ask for.
    pub service: ServiceConfig,
    /// When models are loaded and unloaded.
    pub models: ModelLimits,
    /// Workers, scheduler, queue.
    pub engine: EngineConfig,
    /// The log.
    pub log: LogConfig,
    /// Who may ask.
    pub keys: KeysConfig,
    /// The model that is meant where a request names none, and how it is run.
    pub model: ModelSection,
    /// Further models.
    pub more_models: Vec<ModelSection>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Each setting's final value and where it came from, in the order of [`SETTINGS`].
    pub resolved: Vec<(&'static Setting, Value, Origin)>,
}

impl Config {
    /// Calls `visit` for each setting of each room.
    pub(super) fn visit_settings(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        self.process.visit_settings(visit)?;
        self.api.visit_settings(visit)?;
        self.api.responses.visit_settings(visit)?;
        self.streams.visit_settings(visit)?;
        self.store.visit_settings(visit)?;
        self.service.visit_settings(visit)?;
        self.service.background.visit_settings(visit)?;
        self.engine.visit_settings(visit)?;
        self.engine.grammars.visit_settings(visit)?;
        self.log.visit_settings(visit)?;
        self.keys.visit_settings(visit)?;
        self.keys.limits.visit_settings(visit)?;
        self.model.visit_settings(visit)?;
        self.models.visit_settings(visit)
    }

    /// Where the value of `key` came from.
    ///
    /// # Panics
    /// If there is no such setting.
    pub fn origin(&self, key: &str) -> Origin {
        let entry = self.resolved.iter().find(|(s, _, _)| s.key == key);
        entry.map_or_else(|| panic!("no setting {key}"), |(_, _, origin)| *origin)
    }
}

/// All settings with their defaults, by section.
pub static SETTINGS: LazyLock<Vec<(&'static Setting, Value)>> = LazyLock::new(|| {
    let mut all = Vec::new();
    let mut list = |setting: &'static Setting, default| {
        all.push((setting, default));
        Ok(None)
    };
    Config::default().visit_settings(&mut list).expect("nothing is written, so nothing can fail");
    all.sort_by_key(|(setting, _)| place(setting));
    all
});

/// Where a setting's section stands in [`SECTIONS`].
///
/// # Panics
/// If it is not there, which every start would show.
pub(super) fn place(setting: &Setting) -> usize {
    let place = SECTIONS.iter().position(|(section, _)| *section == setting.section());
    place.unwrap_or_else(|| panic!("{} is in no section", setting.key))
}

/// The setting of `key`.
///
/// # Panics
/// If there is none: keys are written by us.
pub fn setting(key: &str) -> &'static Setting {
    SETTINGS.iter().find(|(s, _)| s.key == key).unwrap_or_else(|| panic!("no setting {key}")).0
}
