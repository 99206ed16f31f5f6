//! Configuration in two stages: what was typed ([`Typed`] flags, the environment, a file: `sources`) becomes one
//! [`Config`] of plain, checked values. Each room declares its own settings ([`settings!`](crate::settings!)), and what belongs
//! to no room is in `process`; `house` has them all, and `resolve` reads each once. Config is passed down, never global.

mod check;
mod house;
mod keys;
mod models;
mod process;
mod resolve;
mod show;
mod sources;

pub use house::{Config, Origin, SECTIONS, SETTINGS, setting};
pub use keys::KeysConfig;
pub use process::{DeviceKind, ModelSection, ProcessConfig};
pub use sources::{CONFIG_ENV, DEFAULT_FILE, Sources, Typed};

#[cfg(test)]
mod tests;
