//! What a setting is: where it is typed, what it may be, and how one value of it is read and shown. Flags, the
//! environment and the file are all read through this, so a setting has one spelling, one rule and one help text
//! wherever it comes from. The rows are in `table`; they know nothing of each other (see `check`).

use Kind::{Bytes, Count, List, Millis, OneOf, Text};

use super::{table, table_embeddings, table_keys, table_memory, table_models};

pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;
pub(super) const GIB: u64 = 1024 * MIB;

/// The tables, in the order of [`SETTINGS`].
const TABLES: [&[Setting]; 5] =
    [table::ROWS, table_keys::ROWS, table_memory::ROWS, table_embeddings::ROWS, table_models::ROWS];

/// All rows of all tables.
pub static SETTINGS: &[Setting] = &{
    let mut all = [table::ROWS[0];
        table::ROWS.len()
            + table_keys::ROWS.len()
            + table_memory::ROWS.len()
            + table_embeddings::ROWS.len()
            + table_models::ROWS.len()];
    let (mut at, mut table) = (0, 0);
    while table < TABLES.len() {
        let mut row = 0;
        while row < TABLES[table].len() {
            all[at] = TABLES[table][row];
            (at, row) = (at + 1, row + 1);
        }
        table += 1;
    }
    all
};

/// One setting. The key is `section.name`, as in the file; the flag is spelled apart because it lacks the section.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// `section.name` of the TOML file.
    pub key: &'static str,
    /// The flag without its dashes; the environment variable is `TALLOW_` and the same words.
    pub flag: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// As one would type it; empty for none.
    pub default: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
}

/// What a setting may be.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A whole number of `unit`.
    Count {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
        /// What is counted; empty where the name says it.
        unit: &'static str,
        /// Whether `auto` (chosen at start) is a value too.
        auto: bool,
    },
    /// Milliseconds.
    Millis {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// Bytes; `KiB`, `MiB` and `GiB` may follow the number.
    Bytes {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// Any text on one line.
    Text,
    /// `true` or `false`; a bare flag means `true`.
    Bool,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Texts, separated by commas where not in a file.
    List,
    /// The same, never shown.
    Secrets,
}

/// A value that its kind has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Chosen at start.
    Auto,
    /// Of counts, milliseconds and bytes.
    Number(u64),
    /// Of texts and words.
    Text(String),
    /// Of switches.
    Bool(bool),
    /// Of lists.
    List(Vec<String>),
}

/// The row of `key`.
///
/// # Panics
/// If there is none: keys are written by us.
pub fn setting(key: &str) -> &'static Setting {
    SETTINGS.iter().find(|s| s.key == key).unwrap_or_else(|| panic!("no setting {key}"))
}

impl Setting {
    /// The part of the key before the dot.
    pub fn section(&self) -> &'static str {
        self.key.split_once('.').map_or("", |(section, _)| section)
    }

    /// Its environment variable.
    pub fn env(&self) -> String {
        format!("TALLOW_{}", self.flag.replace('-', "_").to_ascii_uppercase())
    }

    /// Reads what was typed.
    ///
    /// # Errors
    /// The rule and the value, to be put behind the name by which it was typed: "must be at least 1, got 0".
    pub fn parse(&self, typed: &str) -> Result<Value, String> {
        match self.kind {
            Count { auto: true, .. } if typed == "auto" => Ok(Value::Auto),
            Count { min, max, auto, .. } => {
                let number = typed.parse().map_err(|_| {
                    let or_auto = if auto { " or `auto`" } else { "" };
                    format!("must be a whole number{or_auto}, got `{typed}`")
                })?;
                within(number, min, max).map(Value::Number)
            }
            Millis { min, max } => {
                let number =
                    typed.parse().map_err(|_| format!("must be a whole number of milliseconds, got `{typed}`"))?;
                within(number, min, max).map(Value::Number)
            }
            Bytes { min, max } => within(parse_bytes(typed)?, min, max).map(Value::Number),
            Text if typed.chars().any(char::is_control) => Err(format!("must be one line of text, got {typed:?}")),
            Text => Ok(Value::Text(typed.to_owned())),
            Kind::Bool => match typed {
                "true" | "1" | "yes" | "on" => Ok(Value::Bool(true)),
                "false" | "0" | "no" | "off" => Ok(Value::Bool(false)),
                _ => Err(format!("must be true or false, got `{typed}`")),
            },
            OneOf(words) if words.contains(&typed) => Ok(Value::Text(typed.to_owned())),
            OneOf(words) => Err(format!("must be one of {}, got `{typed}`", words.join(", "))),
            List | Kind::Secrets => {
                let items = typed.split(',').map(str::trim).filter(|item| !item.is_empty());
                Ok(Value::List(items.map(str::to_owned).collect()))
            }
        }
    }

    /// The default, read.
    ///
    /// # Panics
    /// If a default breaks its own rule, which a test excludes.
    pub fn default_value(&self) -> Value {
        self.parse(self.default).unwrap_or_else(|rule| panic!("default of {}: {rule}", self.key))
    }

    /// The value with its unit, for people.
    pub fn show(&self, value: &Value) -> String {
        match (value, self.kind) {
            (Value::Auto, _) => "auto".to_owned(),
            (Value::Number(n), Bytes { .. }) => show_bytes(*n),
            (Value::Number(n), Millis { .. }) => format!("{n} ms"),
            (Value::Number(n), Count { unit, .. }) if !unit.is_empty() => format!("{n} {unit}"),
            (Value::Number(n), _) => n.to_string(),
            (Value::Bool(b), _) => b.to_string(),
            (Value::Text(s), _) if s.is_empty() => "-".to_owned(),
            (Value::Text(s), _) => s.clone(),
            (Value::List(items), _) if items.is_empty() => "-".to_owned(),
            (Value::List(items), _) => items.join(","),
        }
    }
}

fn within(number: u64, min: u64, max: u64) -> Result<u64, String> {
    match number {
        n if n < min => Err(format!("must be at least {min}, got {n}")),
        n if n > max => Err(format!("must be at most {max}, got {n}")),
        n => Ok(n),
    }
}

fn parse_bytes(typed: &str) -> Result<u64, String> {
    let digits = typed.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match typed[digits.len()..].trim() {
        "" | "B" => Some(1),
        "KiB" => Some(KIB),
        "MiB" => Some(MIB),
        "GiB" => Some(GIB),
        _ => None,
    };
    let number: Option<u64> = digits.parse().ok();
    match (number, unit) {
        (Some(number), Some(unit)) => {
            number.checked_mul(unit).ok_or_else(|| format!("must be a number of bytes below 2^64, got `{typed}`"))
        }
        _ => Err(format!("must be a number of bytes such as 4096 or 8MiB, got `{typed}`")),
    }
}

/// Bytes in the largest unit that divides them.
pub fn show_bytes(bytes: u64) -> String {
    match bytes {
        0 => "0 B".to_owned(),
        b if b % GIB == 0 => format!("{} GiB", b / GIB),
        b if b % MIB == 0 => format!("{} MiB", b / MIB),
        b if b % KIB == 0 => format!("{} KiB", b / KIB),
        b => format!("{b} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_defaults_keep_their_own_rules() {
        let mut keys = std::collections::HashSet::new();
        let mut flags = std::collections::HashSet::new();
        for s in SETTINGS {
            assert!(keys.insert(s.key), "{} twice", s.key);
            assert!(flags.insert(s.flag), "--{} twice", s.flag);
            assert!(!s.section().is_empty(), "{}", s.key);
            s.default_value();
        }
    }

    #[track_caller]
    fn check(key: &str, typed: &str, expect: &str) {
        let s = setting(key);
        let got = match s.parse(typed) {
            Ok(value) => s.show(&value),
            Err(rule) => rule,
        };
        assert_eq!(got, expect);
    }

    #[test]
    fn values_are_read_by_kind_or_refused_by_rule() {
        check("engine.max_num_seqs", "8", "8 sequences");
        check("engine.max_num_seqs", "0", "must be at least 1, got 0");
        check("engine.max_num_seqs", "-1", "must be a whole number, got `-1`");
        check("engine.max_num_seqs", "99999999999", "must be at most 4096, got 99999999999");
        check("engine.threads", "auto", "auto");
        check("engine.threads", "many", "must be a whole number or `auto`, got `many`");
        check("server.port", "65536", "must be at most 65535, got 65536");
        check("server.heartbeat_ms", "15s", "must be a whole number of milliseconds, got `15s`");
        check("server.body_bytes_max", "2MiB", "2 MiB");
        check("server.body_bytes_max", "2 KiB", "2 KiB");
        check("server.body_bytes_max", "1500", "1500 B");
        check("server.body_bytes_max", "2MB", "must be a number of bytes such as 4096 or 8MiB, got `2MB`");
        check("server.body_bytes_max", "MiB", "must be a number of bytes such as 4096 or 8MiB, got `MiB`");
        check("model.kv_cache_bytes", "99999999999GiB", "must be a number of bytes below 2^64, got `99999999999GiB`");
        check("engine.prefix_cache", "off", "false");
        check("engine.prefix_cache", "maybe", "must be true or false, got `maybe`");
        check("model.device", "tpu", "must be one of cpu, cuda, metal, got `tpu`");
        check("server.cors_origins", " http://a.test , ", "http://a.test");
        check("server.cors_origins", "", "-");
        check("model.name", "a\nb", "must be one line of text, got \"a\\nb\"");
    }
}
