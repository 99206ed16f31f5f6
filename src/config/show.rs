//! The resolved configuration as a table for people, printed by `serve` at its start.

use std::fmt;

use super::{Config, SETTINGS};

impl fmt::Display for Config {
    /// One line per setting: key, value with unit, origin.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key_width = SETTINGS.iter().map(|s| s.key.len()).max().unwrap_or(0);
        let shown: Vec<String> = self.resolved.iter().map(|(s, value, _)| s.show(value)).collect();
        // One long path must not push every origin to the far right.
        let value_width = shown.iter().map(|text| text.chars().count()).filter(|n| *n <= 40).max().unwrap_or(0);
        match &self.file {
            Some(path) => writeln!(f, "configuration (file: {})", path.display())?,
            None => writeln!(f, "configuration (no file)")?,
        }
        for ((setting, _, origin), text) in self.resolved.iter().zip(&shown) {
            writeln!(f, "  {:key_width$}  {text:value_width$}  {}", setting.key, origin.as_str())?;
        }
        Ok(())
    }
}
