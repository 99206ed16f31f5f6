//! API keys: from the setting itself, `NAME:KEY` or `KEY` each, and from a file. A file that ends in `.toml` has one
//! `[[key]]` table per key; any other has one key per line:
//!
//! ```text
//! # name  key                   what it may (all optional)
//! alice   sk-alice-0123456789   weight=2 requests_per_minute=60 tokens_per_minute=100000 concurrency_max=4
//! batch   sk-batch-0123456789   priority=5
//! ops     sk-ops-0123456789     admin=true
//! ```
//!
//! No message here holds a key.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::api::ApiKey;
use crate::error::{Error, Result};
use crate::protocol::{Owner, OwnerLimits, PRIORITY_MAX, PRIORITY_MIN, Tenant, WEIGHT_MAX, WEIGHT_MIN};
use crate::settings;
use crate::settings::{Kind, common};

/// More would make telling keys apart slow, as each request is compared with all of them.
const KEYS_MAX: usize = 4096;
const NAME_LEN_MAX: usize = 64;
/// Two of `KEYS_MAX` keys have the same with a chance of one in thirty million.
const NAME_DIGEST_BYTES: usize = 6;
const SECRET_LEN_MIN: usize = 8;
const SECRET_LEN_MAX: usize = 512;
/// A file longer than this is no list of keys.
const FILE_BYTES_MAX: u64 = 4 << 20;

settings! {
    /// Who may ask.
    #[derive(Clone, PartialEq, Eq)]
    pub struct KeysConfig {
        /// API keys, KEY or NAME:KEY; other users of this machine can see the command line.
        pub typed: Vec<String> = Vec::new() => common("keys.list", "api-keys", Kind::Secrets);
        /// API keys with their weights and limits: `NAME KEY [...]` lines, or TOML.
        pub file: Option<PathBuf> = None => common("keys.file", "api-keys-file", Kind::Text);
        /// Of a key that does not say, or of everybody together if there are no keys.
        pub limits: OwnerLimits = OwnerLimits::default();
        /// Every key, those of the file too; none lets everybody in.
        pub keys: Vec<KeyConfig> = Vec::new();
    }
}

impl fmt::Debug for KeysConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeysConfig").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl KeysConfig {
    /// Reads the keys, typed and of the file.
    pub(super) fn collect(&mut self) -> Result<()> {
        self.keys = collect(&self.typed, self.file.as_deref(), self.limits)?;
        Ok(())
    }

    /// Everybody who may ask.
    pub(super) fn owners(&self) -> Vec<Arc<Owner>> {
        match self.keys.as_slice() {
            [] => vec![Arc::new(Owner { limits: self.limits, ..Owner::anonymous() })],
            keys => keys.iter().map(|key| Arc::new(key.owner())).collect(),
        }
    }

    /// The keys as the wire compares them.
    pub(super) fn api_keys(&self) -> Vec<ApiKey> {
        self.keys.iter().map(|key| ApiKey::new(&key.secret.0, Arc::new(key.owner()))).collect()
    }
}

impl KeyConfig {
    /// Whose its streams are. The tenant follows from the name alone, so that it outlives the key and the process.
    fn owner(&self) -> Owner {
        let digest = Sha256::digest(format!("tallow owner {}", self.name));
        let tenant = digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte));
        Owner {
            // 0 is the anonymous owner's.
            tenant: Tenant(tenant.max(1)),
            name: self.name.clone(),
            is_admin: self.is_admin,
            weight: self.weight,
            priority: self.priority,
            limits: self.limits,
        }
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// One API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyConfig {
    /// Its owner's name; streams belong to the name, so a key can be replaced. One that was not given follows from the key.
    pub name: String,
    /// What is sent.
    pub secret: Secret,
    /// Share of the machine while others want it too.
    pub weight: u32,
    /// Default priority, and the most urgent one.
    pub priority: i32,
    /// Whether it may see what is not its own.
    pub is_admin: bool,
    /// What it may use.
    pub limits: OwnerLimits,
}

/// A key as a file has it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    key: String,
    weight: Option<u32>,
    priority: Option<i32>,
    admin: Option<bool>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u32>,
    concurrency_max: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

/// All keys of the setting and the file. `defaults` are the limits of a key that does not say; 0 in a file is no limit.
///
/// # Errors
/// The first broken rule, with the number of the key or line that broke it.
pub(super) fn collect(typed: &[String], file: Option<&Path>, defaults: OwnerLimits) -> Result<Vec<KeyConfig>> {
    let mut keys = Vec::new();
    for (i, text) in typed.iter().enumerate() {
        let (name, key) = text.split_once(':').map_or((None, text.as_str()), |(name, key)| (Some(name), key));
        let entry = Entry { name: name.map(str::to_owned), key: key.to_owned(), ..Entry::default() };
        keys.push(entry.check(i, defaults).map_err(|rule| invalid("keys.list", format!("--api-keys: {rule}")))?);
    }
    if let Some(path) = file {
        let wrong = |what: String| invalid("keys.file", format!("{}: {what}", path.display()));
        let text = read(path).map_err(wrong)?;
        let is_toml = path.extension().is_some_and(|extension| extension == "toml");
        let entries = if is_toml { parse_toml(&text) } else { parse_lines(&text) }.map_err(wrong)?;
        for (i, entry) in entries.into_iter().enumerate() {
            keys.push(entry.check(i, defaults).map_err(wrong)?);
        }
        if keys.is_empty() {
            // Without keys everybody may do everything, which is not what who names a file of keys wants.
            return Err(wrong("must have at least one key, has none".to_owned()));
        }
    }
    distinct(&keys).map_err(|rule| invalid("keys.list", rule))?;
    Ok(keys)
}

fn invalid(key: &str, message: String) -> Error {
    Error::invalid(key, message)
}

fn read(path: &Path) -> Result<String, String> {
    let num_bytes = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if num_bytes > FILE_BYTES_MAX {
        return Err(format!("a file of keys has at most {FILE_BYTES_MAX} bytes, this has {num_bytes}"));
    }
    std::fs::read_to_string(path).map_err(|e| e.to_string())
}

fn distinct(keys: &[KeyConfig]) -> Result<(), String> {
    if keys.len() > KEYS_MAX {
        return Err(format!("there must be at most {KEYS_MAX} API keys, got {}", keys.len()));
    }
    let (mut names, mut secrets) = (HashSet::new(), HashSet::new());
    for key in keys {
        if !names.insert(&key.name) {
            return Err(format!("the API keys must have different names, got {:?} twice", key.name));
        }
        if !secrets.insert(&key.secret) {
            return Err(format!("the API keys must be different, that of {:?} comes twice", key.name));
        }
    }
    Ok(())
}

/// The error's own text would quote the line, key and all.
fn parse_toml(text: &str) -> Result<Vec<Entry>, String> {
    let file: File = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", e.message())
    })?;
    Ok(file.key)
}

fn parse_lines(text: &str) -> Result<Vec<Entry>, String> {
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
    let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    keys.map(|(number, line)| parse_line(line).map_err(|rule| format!("line {number}: {rule}"))).collect()
}

fn parse_line(line: &str) -> Result<Entry, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (name, key, options) = match words.as_slice() {
        [key] => (None, *key, [].as_slice()),
        [name, key, options @ ..] => (Some((*name).to_owned()), *key, options),
        [] => return Err("must have a key".to_owned()),
    };
    let mut entry = Entry { name, key: key.to_owned(), ..Entry::default() };
    for option in options {
        // The word itself is not shown: it may be a key in the wrong place.
        let (what, value) = option.split_once('=').ok_or("after name and key must come OPTION=VALUE")?;
        let number = || value.parse().map(Some).map_err(|_| format!("`{what}` must be a whole number"));
        match what {
            "weight" => entry.weight = number()?,
            "requests_per_minute" => entry.requests_per_minute = number()?,
            "tokens_per_minute" => entry.tokens_per_minute = number()?,
            "concurrency_max" => entry.concurrency_max = number()?,
            "priority" => {
                entry.priority = Some(value.parse().map_err(|_| "`priority` must be a whole number".to_owned())?);
            }
            "admin" => entry.admin = Some(value.parse().map_err(|_| "`admin` must be true or false".to_owned())?),
            _ => {
                let known = "weight, priority, admin, requests_per_minute, tokens_per_minute, concurrency_max";
                return Err(format!("an option must be one of {known}"));
            }
        }
    }
    Ok(entry)
}

impl Entry {
    fn check(self, index: usize, defaults: OwnerLimits) -> Result<KeyConfig, String> {
        let number = index + 1;
        let name = self.name.unwrap_or_else(|| name_of(&self.key));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(is_name) {
            let rule = format!("must have 1 to {NAME_LEN_MAX} letters, digits and -_.@");
            return Err(format!("the name of key {number} {rule}"));
        }
        let is_long_enough = (SECRET_LEN_MIN..=SECRET_LEN_MAX).contains(&self.key.len());
        if !is_long_enough || !self.key.chars().all(|c| c.is_ascii_graphic()) {
            let rule = format!("must have {SECRET_LEN_MIN} to {SECRET_LEN_MAX} visible ASCII characters");
            return Err(format!("the key of {name:?} {rule}"));
        }
        let (weight, priority) = (self.weight.unwrap_or(WEIGHT_MIN), self.priority.unwrap_or(0));
        if !(WEIGHT_MIN..=WEIGHT_MAX).contains(&weight) {
            return Err(format!("`weight` of {name:?} must be {WEIGHT_MIN} to {WEIGHT_MAX}, got {weight}"));
        }
        if !(PRIORITY_MIN..=PRIORITY_MAX).contains(&priority) {
            return Err(format!("`priority` of {name:?} must be {PRIORITY_MIN} to {PRIORITY_MAX}, got {priority}"));
        }
        let limit = |own: Option<u32>, default: Option<u32>| own.map_or(default, |n| Some(n).filter(|n| *n > 0));
        let limits = OwnerLimits {
            requests_per_minute: limit(self.requests_per_minute, defaults.requests_per_minute),
            tokens_per_minute: limit(self.tokens_per_minute, defaults.tokens_per_minute),
            concurrency_max: limit(self.concurrency_max, defaults.concurrency_max),
        };
        let (secret, is_admin) = (Secret(self.key), self.admin.unwrap_or(false));
        Ok(KeyConfig { name, secret, weight, priority, is_admin, limits })
    }
}

/// Of a key without a name. It follows from the key alone: were it the key's place among others, who gets the place of
/// one that was taken away would get its streams too.
fn name_of(key: &str) -> String {
    let digest = Sha256::digest(format!("tallow key {key}"));
    digest.iter().take(NAME_DIGEST_BYTES).fold("key-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: OwnerLimits =
        OwnerLimits { requests_per_minute: Some(9), tokens_per_minute: None, concurrency_max: None };

    fn of_file(name: &str, text: &str) -> Result<Vec<KeyConfig>> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("the file is written");
        collect(&[], Some(&path), DEFAULTS)
    }

    #[track_caller]
    fn check_error(name: &str, text: &str, expect: &str) {
        let error = of_file(name, text).expect_err("a rule is broken");
        assert!(error.message().contains(expect), "expected `{expect}`, got `{error}`");
        assert!(!error.message().contains("sk-secret"), "it shows the key: {error}");
    }

    #[test]
    fn both_kinds_of_file_say_the_same() {
        let lines = "# people\nalice sk-secret-1 weight=2 tokens_per_minute=5000 requests_per_minute=0\n\n\
                     ops   sk-secret-2 admin=true priority=-3 concurrency_max=4\n";
        let toml = "[[key]]\nname = \"alice\"\nkey = \"sk-secret-1\"\nweight = 2\ntokens_per_minute = 5000\n\
                    requests_per_minute = 0\n[[key]]\nname = \"ops\"\nkey = \"sk-secret-2\"\nadmin = true\n\
                    priority = -3\nconcurrency_max = 4\n";
        let keys = of_file("keys", lines).expect("good keys");
        assert_eq!(keys, of_file("keys.toml", toml).expect("good keys"));
        let [alice, ops] = keys.as_slice() else { panic!("two keys: {keys:?}") };
        assert_eq!((alice.name.as_str(), alice.weight, alice.is_admin), ("alice", 2, false));
        assert_eq!(alice.limits, OwnerLimits { tokens_per_minute: Some(5000), ..OwnerLimits::default() });
        assert_eq!((ops.priority, ops.is_admin, ops.limits.requests_per_minute), (-3, true, Some(9)));
        assert!(!format!("{keys:?}").contains("sk-secret"));
    }

    #[test]
    fn typed_keys_may_have_names() {
        let typed = ["alice:sk-secret-1".to_owned(), "sk-secret-2".to_owned()];
        let keys = collect(&typed, None, DEFAULTS).expect("good keys");
        let named: Vec<_> = keys.iter().map(|k| (k.name.as_str(), k.secret.0.as_str())).collect();
        assert_eq!(named, [("alice", "sk-secret-1"), (name_of("sk-secret-2").as_str(), "sk-secret-2")]);
        // Wherever it stands.
        assert_eq!(collect(&typed[1..], None, DEFAULTS).expect("a good key"), keys[1..]);
    }

    #[test]
    fn broken_rules_are_told_without_the_key() {
        check_error("keys", "a short", "the key of \"a\" must have 8 to 512 visible ASCII characters");
        check_error("keys", "a/b sk-secret-1", "the name of key 1 must have");
        check_error("keys", "# none", "must have at least one key");
        check_error("keys", "a sk-secret-1\na sk-secret-2", "must have different names, got \"a\" twice");
        check_error("keys", "a sk-secret-1\nb sk-secret-1", "must be different, that of \"b\" comes twice");
        check_error("keys", "a b sk-secret-1", "line 1: after name and key must come OPTION=VALUE");
        check_error("keys", "\na sk-secret-1 weigth=2", "line 2: an option must be one of weight, priority");
        check_error("keys", "a sk-secret-1 weight=0", "`weight` of \"a\" must be 1 to 1000, got 0");
        check_error("keys", "a sk-secret-1 priority=11", "`priority` of \"a\" must be -10 to 10, got 11");
        check_error("keys.toml", "[[key]]\nname = \"a\"\nkey = \"sk-secret-1\nx", "line 4: ");
        check_error("keys.toml", "[[key]]\nkey = \"sk-secret-1\"\nwieght = 1", "line 3: unknown field `wieght`");
    }
}
