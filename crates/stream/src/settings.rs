//! What a setting is, and how a room declares its own: [`settings!`](crate::settings!) makes a plain struct whose fields have
//! docs and defaults, and those that an operator may set have a key, a flag and a rule beside them. The first paragraph of a
//! field's docs is its help text. A field without a key is for the rooms and their tests.
//!
//! Flags, variables and files are read in the package's `config`; here is only what one text may be and means.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// For bounds.
pub const KIB: u64 = 1024;
/// For bounds.
pub const MIB: u64 = 1024 * KIB;
/// For bounds.
pub const GIB: u64 = 1024 * MIB;
/// For bounds.
pub const HOUR_MS: u64 = 3_600_000;
/// The highest count of anything: large enough to mean "no bound in practice", small enough that sums cannot wrap.
pub const COUNT_MAX: u64 = 1 << 32;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// `section.name` of the TOML file.
    pub key: &'static str,
    /// The flag without its dashes; the environment variable is `TALLOW_` and the same words.
    pub flag: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// Whether the short help shows it.
    pub is_common: bool,
    /// The lines of its field's docs.
    pub docs: &'static [&'static str],
}

/// What a setting may be.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A whole number.
    Number {
        /// Of what.
        unit: Unit,
        /// Least.
        min: u64,
        /// Most.
        max: u64,
        /// What is typed for no number at all; empty if there must be one.
        none: &'static str,
    },
    /// Any text on one line.
    Text,
    /// The same, but not nothing.
    NonEmpty,
    /// `true` or `false`; a bare flag means `true`.
    Bool,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Texts, separated by commas where not in a file.
    List,
    /// The same, never shown.
    Secrets,
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things of this name; empty where the setting's own says it.
    Things(&'static str),
    /// Milliseconds.
    Millis,
    /// Bytes; `KiB`, `MiB` and `GiB` may follow the number.
    Bytes,
}

/// A value that its kind has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of numbers that may be left open.
    None,
    /// Of numbers.
    Number(u64),
    /// Of texts and words.
    Text(String),
    /// Of switches.
    Bool(bool),
    /// Of lists.
    List(Vec<String>),
}

/// Is called for each setting with what its field holds; what it gives takes the field's place.
pub type Visit<'a> = dyn FnMut(&'static Setting, Value) -> Result<Option<Value>> + 'a;

/// A setting that only the long help shows.
pub const fn setting(key: &'static str, flag: &'static str, kind: Kind) -> Setting {
    Setting { key, flag, kind, is_common: false, docs: &[] }
}

/// A setting that many want.
pub const fn common(key: &'static str, flag: &'static str, kind: Kind) -> Setting {
    Setting { is_common: true, ..setting(key, flag, kind) }
}

/// A number of `unit`.
pub const fn count(min: u64, max: u64, unit: &'static str) -> Kind {
    Kind::Number { unit: Unit::Things(unit), min, max, none: "" }
}

/// A time.
pub const fn millis(min: u64, max: u64) -> Kind {
    Kind::Number { unit: Unit::Millis, min, max, none: "" }
}

/// A size.
pub const fn bytes(min: u64, max: u64) -> Kind {
    Kind::Number { unit: Unit::Bytes, min, max, none: "" }
}

impl Kind {
    /// The same number, which may also be left open by typing `none`.
    pub const fn or(self, none: &'static str) -> Self {
        match self {
            Self::Number { unit, min, max, .. } => Self::Number { unit, min, max, none },
            _ => panic!("only a number can be left open"),
        }
    }
}

/// Declares a struct of settings: `field: type = default`, and for what an operator may set `=> setting(key, flag, kind)`.
/// Makes the struct, its `Default`, `visit_settings` and `settings`.
#[macro_export]
macro_rules! settings {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($(#[doc = $doc:literal])+ pub $field:ident: $type:ty = $default:expr $(=> $setting:expr)?;)+
        }
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $name {
            /// Calls `visit` for each setting, in their order.
            ///
            /// # Errors
            /// Those of `visit`, and if a number does not fit its field.
            $vis fn visit_settings(&mut self, visit: &mut $crate::settings::Visit<'_>) -> $crate::error::Result<()> {
                $($crate::settings!(@visit visit, self.$field, [$($doc),+] $(, $setting)?);)+
                Ok(())
            }

            /// The settings, in their order.
            $vis fn settings() -> Vec<&'static $crate::settings::Setting> {
                let mut all = Vec::new();
                let mut list = |setting, _| {
                    all.push(setting);
                    Ok(None)
                };
                Self::default().visit_settings(&mut list).expect("nothing is written, so nothing can fail");
                all
            }
        }
    };
    (@visit $visit:ident, $place:expr, [$($doc:literal),+]) => {};
    (@visit $visit:ident, $place:expr, [$($doc:literal),+], $setting:expr) => {{
        static SETTING: $crate::settings::Setting = $crate::settings::Setting { docs: &[$($doc),+], ..$setting };
        if let Some(value) = $visit(&SETTING, $crate::settings::Value::from(&$place))? {
            $place = value.try_into().map_err(|rule: String| SETTING.invalid(&rule))?;
        }
    }};
}

/// Declares an enum each of whose variants is a word that can be typed.
#[macro_export]
macro_rules! words {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// The words, in their order.
            pub const WORDS: &'static [&'static str] = &[$($word),+];
        }

        impl From<&$name> for $crate::settings::Value {
            fn from(field: &$name) -> Self {
                Self::Text(match field { $($name::$variant => $word,)+ }.to_owned())
            }
        }

        impl TryFrom<$crate::settings::Value> for $name {
            type Error = String;

            fn try_from(value: $crate::settings::Value) -> Result<Self, String> {
                match value {
                    $($crate::settings::Value::Text(word) if word == $word => Ok(Self::$variant),)+
                    other => Err(format!("must be one of {}, got {other:?}", Self::WORDS.join(", "))),
                }
            }
        }
    };
}

pub use words;

/// How types of fields are read and written.
macro_rules! fields {
    ($($type:ty: |$field:ident| $value:expr, $pattern:pat => $read:expr;)+) => {$(
        impl From<&$type> for Value {
            fn from($field: &$type) -> Self {
                $value
            }
        }

        impl TryFrom<Value> for $type {
            type Error = String;

            fn try_from(value: Value) -> Result<Self, String> {
                match value {
                    $pattern => $read,
                    other => unreachable!("a {} is read from {other:?}", stringify!($type)),
                }
            }
        }
    )+};
}

fields! {
    u16: |field| Value::Number(u64::from(*field)), Value::Number(n) => fit(n);
    u32: |field| Value::Number(u64::from(*field)), Value::Number(n) => fit(n);
    u64: |field| Value::Number(*field), Value::Number(n) => Ok(n);
    usize: |field| Value::Number(*field as u64), Value::Number(n) => fit(n);
    Duration: |field| Value::Number(u64::try_from(field.as_millis()).unwrap_or(u64::MAX)),
        Value::Number(n) => Ok(Duration::from_millis(n));
    Option<u32>: |field| open(field), value @ (Value::None | Value::Number(_)) => read_open(value);
    Option<u64>: |field| open(field), value @ (Value::None | Value::Number(_)) => read_open(value);
    Option<usize>: |field| open(field), value @ (Value::None | Value::Number(_)) => read_open(value);
    Option<Duration>: |field| open(field), value @ (Value::None | Value::Number(_)) => read_open(value);
    bool: |field| Value::Bool(*field), Value::Bool(yes) => Ok(yes);
    String: |field| Value::Text(field.clone()), Value::Text(text) => Ok(text);
    Option<String>: |field| Value::Text(field.clone().unwrap_or_default()),
        Value::Text(text) => Ok(Some(text).filter(|text| !text.is_empty()));
    PathBuf: |field| Value::Text(field.to_string_lossy().into_owned()), Value::Text(text) => Ok(text.into());
    Option<PathBuf>: |field| field.as_ref().map_or_else(|| Value::Text(String::new()), Value::from),
        Value::Text(text) => Ok(Some(text).filter(|text| !text.is_empty()).map(PathBuf::from));
    Vec<String>: |field| Value::List(field.clone()), Value::List(items) => Ok(items);
}

fn fit<T: TryFrom<u64>>(number: u64) -> Result<T, String> {
    T::try_from(number).map_err(|_| format!("must fit this machine's word, got {number}"))
}

fn open<'a, T>(field: &'a Option<T>) -> Value
where
    Value: From<&'a T>,
{
    field.as_ref().map_or(Value::None, Value::from)
}

fn read_open<T: TryFrom<Value, Error = String>>(value: Value) -> Result<Option<T>, String> {
    if value == Value::None { Ok(None) } else { value.try_into().map(Some) }
}

impl Setting {
    /// The part of the key before the dot.
    pub fn section(&self) -> &'static str {
        self.key.split_once('.').map_or("", |(section, _)| section)
    }

    /// The part behind it.
    pub fn name(&self) -> &'static str {
        self.key.split_once('.').map_or("", |(_, name)| name)
    }

    /// Its environment variable.
    pub fn env(&self) -> String {
        format!("TALLOW_{}", self.flag.replace('-', "_").to_ascii_uppercase())
    }

    /// The first paragraph of the docs.
    pub fn help(&self) -> String {
        let lines = self.docs.iter().map(|line| line.trim()).take_while(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join(" ").trim_end_matches('.').to_owned()
    }

    /// That the value which the flag gave breaks `rule`.
    pub fn invalid(&self, rule: &str) -> Error {
        Error::invalid(self.key, format!("--{} {rule}", self.flag))
    }

    /// Reads what was typed.
    ///
    /// # Errors
    /// The rule and the value, to be put behind the name by which it was typed: "must be at least 1, got 0".
    pub fn parse(&self, typed: &str) -> Result<Value, String> {
        match self.kind {
            Kind::Number { none, .. } if !none.is_empty() && typed == none => Ok(Value::None),
            Kind::Number { unit, min, max, none } => {
                let or_none = if none.parse::<u64>().is_err() && !none.is_empty() {
                    format!(" or `{none}`")
                } else {
                    String::new()
                };
                let number = match unit {
                    Unit::Bytes => parse_bytes(typed),
                    Unit::Millis => {
                        typed.parse().map_err(|_| format!("must be a whole number of milliseconds, got `{typed}`"))
                    }
                    Unit::Things(_) => {
                        typed.parse().map_err(|_| format!("must be a whole number{or_none}, got `{typed}`"))
                    }
                };
                match number? {
                    // However it was spelled.
                    n if n.to_string() == none => Ok(Value::None),
                    n if n < min => Err(format!("must be at least {min}, got {n}")),
                    n if n > max => Err(format!("must be at most {max}, got {n}")),
                    n => Ok(Value::Number(n)),
                }
            }
            Kind::Text | Kind::NonEmpty if typed.chars().any(char::is_control) => {
                Err(format!("must be one line of text, got {typed:?}"))
            }
            Kind::NonEmpty if typed.is_empty() => Err("must not be empty".to_owned()),
            Kind::Text | Kind::NonEmpty => Ok(Value::Text(typed.to_owned())),
            Kind::Bool => match typed {
                "true" | "1" | "yes" | "on" => Ok(Value::Bool(true)),
                "false" | "0" | "no" | "off" => Ok(Value::Bool(false)),
                _ => Err(format!("must be true or false, got `{typed}`")),
            },
            Kind::OneOf(words) if words.contains(&typed) => Ok(Value::Text(typed.to_owned())),
            Kind::OneOf(words) => Err(format!("must be one of {}, got `{typed}`", words.join(", "))),
            Kind::List | Kind::Secrets => {
                let items = typed.split(',').map(str::trim).filter(|item| !item.is_empty());
                Ok(Value::List(items.map(str::to_owned).collect()))
            }
        }
    }

    /// The value as one would type it.
    pub fn typed(&self, value: &Value) -> String {
        match (value, self.kind) {
            (Value::None, Kind::Number { none, .. }) => none.to_owned(),
            (Value::None, _) => String::new(),
            (Value::Number(n), Kind::Number { unit: Unit::Bytes, .. }) => {
                show_bytes(*n).trim_end_matches(" B").replace(' ', "")
            }
            (Value::Number(n), _) => n.to_string(),
            (Value::Bool(b), _) => b.to_string(),
            (Value::Text(text), _) => text.clone(),
            (Value::List(items), _) => items.join(","),
        }
    }

    /// The value with its unit, for people.
    pub fn show(&self, value: &Value) -> String {
        let number = match value {
            Value::Number(n) => Some(*n),
            // Where none is spelled as a number.
            Value::None => self.typed(value).parse().ok(),
            _ => None,
        };
        match (number, self.kind) {
            (Some(n), Kind::Number { unit: Unit::Bytes, .. }) => show_bytes(n),
            (Some(n), Kind::Number { unit: Unit::Millis, .. }) => format!("{n} ms"),
            (Some(n), Kind::Number { unit: Unit::Things(unit), .. }) => format!("{n} {unit}").trim_end().to_owned(),
            _ => Some(self.typed(value)).filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned()),
        }
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
mod tests;
