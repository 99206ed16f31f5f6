//! The resolved configuration as a table for people: all of it for `tallow config`, and for `serve` at its start what somebody
//! has set.

use std::fmt;

use super::house::{Config, Origin};

/// What differs from the defaults.
#[derive(Debug)]
pub struct Changes<'a>(&'a Config);

impl Config {
    /// What differs from the defaults, as a table.
    pub fn changes(&self) -> Changes<'_> {
        Changes(self)
    }

    /// One line per setting that `is_shown`: key, value with unit, origin. Gives how many are left out.
    fn write(&self, f: &mut fmt::Formatter<'_>, is_shown: impl Fn(Origin) -> bool) -> Result<usize, fmt::Error> {
        match &self.file {
            Some(path) => writeln!(f, "configuration (file: {})", path.display())?,
            None => writeln!(f, "configuration (no file)")?,
        }
        let rows = self.resolved.iter().filter(|(_, _, origin)| is_shown(*origin));
        let rows: Vec<(&str, String, &str)> = rows.map(|(s, v, origin)| (s.key, s.show(v), origin.as_str())).collect();
        let key_width = rows.iter().map(|(key, ..)| key.len()).max().unwrap_or(0);
        // One long path must not push every origin to the far right.
        let widths = rows.iter().map(|(_, text, _)| text.chars().count());
        let value_width = widths.filter(|n| *n <= 40).max().unwrap_or(0);
        for (key, text, origin) in &rows {
            writeln!(f, "  {key:key_width$}  {text:value_width$}  {origin}")?;
        }
        Ok(self.resolved.len() - rows.len())
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, |_| true).map(|_| ())
    }
}

impl fmt::Display for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let num_defaults = self.0.write(f, |origin| origin != Origin::Default)?;
        writeln!(f, "  {num_defaults} settings are at their defaults; `tallow config` shows all")
    }
}
