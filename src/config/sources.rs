//! Stage one: what was typed, and where. Flags beat the environment, the environment beats the file, the file beats
//! the default. Nothing is interpreted here except that a file's keys must exist.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::house::{Origin, SETTINGS};
use super::process::ModelSection;
use crate::error::{Error, Result};
use crate::settings::{Kind, Setting, Unit, Value};

/// The file read when none is named and it exists in the working directory.
pub const DEFAULT_FILE: &str = "tallow.toml";
/// Names the file from the environment.
pub const CONFIG_ENV: &str = "TALLOW_CONFIG";
/// A file longer than this is not a configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What stood on the command line, as typed.
#[derive(Debug, Clone, Default)]
pub struct Typed {
    /// Setting and text.
    pub values: Vec<(&'static Setting, String)>,
    /// `--config`.
    pub file: Option<PathBuf>,
}

/// Everything that can be asked for a setting's text.
#[derive(Debug)]
pub struct Sources {
    typed: Typed,
    env: Vec<(&'static Setting, OsString)>,
    file: Option<FileLayer>,
}

#[derive(Debug)]
struct FileLayer {
    path: PathBuf,
    values: Vec<(&'static Setting, String)>,
    models: Vec<FileModel>,
}

/// One of the file's `[[models]]`, as if each of its settings had been typed.
#[derive(Debug, Clone)]
pub(super) struct FileModel {
    pub(super) name: String,
    pub(super) aliases: Vec<String>,
    pub(super) served_name: Option<String>,
    pub(super) values: Vec<(&'static Setting, String)>,
}

impl Sources {
    /// Collects the layers. `env` looks a variable up; `dir` is where `tallow.toml` is looked for. An empty variable
    /// counts as absent, as compose files and CI systems pass those for "not set".
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, or has a key that is no setting.
    pub fn collect(typed: Typed, env: &dyn Fn(&str) -> Option<OsString>, dir: &Path) -> Result<Self> {
        let env_path = env(CONFIG_ENV).filter(|value| !value.is_empty()).map(PathBuf::from);
        let named = typed.file.clone().or(env_path);
        let path = named.or_else(|| Some(dir.join(DEFAULT_FILE)).filter(|path| path.is_file()));
        let file = path.map(read_file).transpose()?;
        let env = SETTINGS.iter().filter_map(|(s, _)| Some((*s, env(&s.env()).filter(|v| !v.is_empty())?))).collect();
        Ok(Self { typed, env, file })
    }

    /// The file that was read.
    pub fn file_path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    /// The file's `[[models]]`.
    pub(super) fn file_models(&self) -> &[FileModel] {
        self.file.as_ref().map_or(&[], |file| &file.models)
    }

    /// The value of `setting` from the strongest layer that has one; `None` leaves the default.
    ///
    /// # Errors
    /// If it breaks its rule; the message begins with the name by which it was given and, where that was not the
    /// flag, ends with the flag.
    pub fn value(&self, setting: &'static Setting) -> Result<Option<(Value, Origin)>> {
        let is = |entry: &Setting| entry.key == setting.key;
        if let Some((_, text)) = self.typed.values.iter().find(|(s, _)| is(s)) {
            return accept(setting, text, "", Origin::Flag);
        }
        if let Some((_, text)) = self.env.iter().find(|(s, _)| is(s)) {
            let name = setting.env();
            let text = text.to_str().ok_or_else(|| invalid(setting, format!("{name} must be UTF-8, got {text:?}")))?;
            return accept(setting, text, &name, Origin::Env);
        }
        if let Some(file) = &self.file
            && let Some((_, text)) = file.values.iter().find(|(s, _)| is(s))
        {
            return accept(setting, text, &format!("{}: {}", file.path.display(), setting.key), Origin::File);
        }
        Ok(None)
    }
}

fn accept(setting: &Setting, text: &str, name: &str, origin: Origin) -> Result<Option<(Value, Origin)>> {
    match setting.parse(text) {
        Ok(value) => Ok(Some((value, origin))),
        Err(rule) if origin == Origin::Flag => Err(setting.invalid(&rule)),
        Err(rule) => Err(invalid(setting, format!("{name} {rule} (the flag is --{})", setting.flag))),
    }
}

fn invalid(setting: &Setting, message: String) -> Error {
    Error::invalid(setting.key, message)
}

fn read_file(path: PathBuf) -> Result<FileLayer> {
    let length = std::fs::metadata(&path).map_err(|e| Error::invalid("config", format!("{}: {e}", path.display())))?;
    if length.len() > FILE_BYTES_MAX {
        let message = format!("{}: a configuration is at most 1 MiB, this is {} bytes", path.display(), length.len());
        return Err(Error::invalid("config", message));
    }
    let text =
        std::fs::read_to_string(&path).map_err(|e| Error::invalid("config", format!("{}: {e}", path.display())))?;
    let (values, models) = parse_file(&text).map_err(|message| {
        let message = format!("{}: {}", path.display(), message.trim_end());
        Error::invalid("config", message)
    })?;
    Ok(FileLayer { path, values, models })
}

/// Settings with their texts, and models.
type Parsed = (Vec<(&'static Setting, String)>, Vec<FileModel>);

/// Reads TOML into texts, as if each had been typed. Every key must be a setting.
fn parse_file(text: &str) -> Result<Parsed, String> {
    let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let models = table.remove("models").map_or_else(|| Ok(Vec::new()), |models| parse_models(&models))?;
    let mut values = Vec::new();
    for (section, entry) in &table {
        let sections = SETTINGS.iter().map(|(s, _)| s.section());
        if !sections.clone().any(|known| known == section) {
            let whole = keys().find(|key| key.ends_with(&format!(".{section}")));
            return Err(unknown("section", section, whole.or_else(|| nearest(section, sections))));
        }
        let toml::Value::Table(entries) = entry else {
            return Err(format!("`{section}` must be a table: write `[{section}]` on a line of its own"));
        };
        for (name, value) in entries {
            let key = format!("{section}.{name}");
            let Some((setting, _)) = SETTINGS.iter().find(|(s, _)| s.key == key) else {
                return Err(unknown("key", &key, nearest(&key, keys())));
            };
            values.push((*setting, text_of(setting, value)?));
        }
    }
    Ok((values, models))
}

fn keys() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|(s, _)| s.key)
}

/// Reads `[[models]]`.
fn parse_models(models: &toml::Value) -> Result<Vec<FileModel>, String> {
    let tables: Option<Vec<&toml::Table>> =
        models.as_array().map(|all| all.iter().filter_map(toml::Value::as_table).collect());
    let tables = tables.filter(|tables| Some(tables.len()) == models.as_array().map(Vec::len));
    let tables = tables.ok_or("`models` must be tables: write `[[models]]` above each")?;
    tables.into_iter().enumerate().map(|(index, table)| parse_model(index, table)).collect()
}

fn parse_model(index: usize, table: &toml::Table) -> Result<FileModel, String> {
    let place = |key: &str| format!("models[{index}].{key}");
    let text = |key: &str, value: &toml::Value| {
        let text = value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        text.ok_or_else(|| format!("{} must be a string, got {value} ({})", place(key), value.type_str()))
    };
    let own = ModelSection::settings();
    let (mut name, mut served_name, mut aliases, mut values) = (None, None, Vec::new(), Vec::new());
    for (key, value) in table {
        match (key.as_str(), value) {
            ("name", value) => name = Some(text("name", value)?),
            ("aliases", toml::Value::Array(all)) => {
                aliases = all.iter().map(|alias| text("aliases", alias)).collect::<Result<_, _>>()?;
            }
            ("served_name", value) => served_name = Some(text("served_name", value)?),
            (key, value) => {
                let Some(setting) = own.iter().find(|own| own.name() == key) else {
                    let known = own.iter().map(|own| own.name()).chain(["served_name", "aliases"]);
                    return Err(unknown("key", &place(key), nearest(key, known)));
                };
                values.push((*setting, text_of(setting, value)?));
            }
        }
    }
    let name = name.ok_or_else(|| format!("{} is missing", place("name")))?;
    Ok(FileModel { name, served_name, aliases, values })
}

fn unknown(what: &str, name: &str, near: Option<&str>) -> String {
    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("unknown {what} `{name}`{hint}")
}

/// A TOML value as it would be typed; its type must suit the setting, so that `port = "8080"` is told from `8080`.
fn text_of(setting: &Setting, value: &toml::Value) -> Result<String, String> {
    use toml::Value as Toml;
    let text = match (setting.kind, value) {
        (Kind::Number { .. }, Toml::Integer(n)) => Some(n.to_string()),
        (Kind::Number { unit: Unit::Bytes, .. } | Kind::Text | Kind::NonEmpty | Kind::OneOf(_), Toml::String(s)) => {
            Some(s.clone())
        }
        (Kind::Number { none: "auto", .. }, Toml::String(s)) => Some(s.clone()),
        (Kind::Bool, Toml::Boolean(b)) => Some(b.to_string()),
        (Kind::List | Kind::Secrets, Toml::Array(items)) => {
            let texts: Option<Vec<&str>> = items.iter().map(Toml::as_str).collect();
            texts.map(|texts| texts.join(","))
        }
        _ => None,
    };
    let wanted = match setting.kind {
        Kind::Number { unit: Unit::Bytes, .. } => "a whole number or a string such as \"8MiB\"",
        Kind::Number { none: "auto", .. } => "a whole number or \"auto\"",
        Kind::Number { .. } => "a whole number",
        Kind::Text | Kind::NonEmpty | Kind::OneOf(_) => "a string",
        Kind::Bool => "true or false",
        Kind::List | Kind::Secrets => "an array of strings",
    };
    text.ok_or_else(|| match setting.kind {
        Kind::Secrets => format!("{} must be {wanted}, got another {}", setting.key, value.type_str()),
        _ => format!("{} must be {wanted}, got {value} ({})", setting.key, value.type_str()),
    })
}

/// The candidate with the fewest edits, if that is a plausible slip: at most a third of the letters.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, best) = candidates.map(|c| (edit_distance(name, c), c)).min()?;
    (distance * 3 <= name.chars().count().max(3)).then_some(best)
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_file(text: &str, expect: &str) {
        let error = parse_file(text).expect_err("the file is wrong");
        assert!(error.contains(expect), "expected `{expect}` in:\n{error}");
    }

    #[test]
    fn a_file_with_a_foreign_key_is_refused_with_a_hint() {
        check_file(
            "[engine]\nmax_num_seq = 3",
            "unknown key `engine.max_num_seq`; did you mean `engine.max_num_seqs`?",
        );
        check_file("[enginee]\n", "unknown section `enginee`; did you mean `engine`?");
        check_file("port = 80", "unknown section `port`; did you mean `server.port`?");
        check_file("[engine]\nflux_capacitor = 3", "unknown key `engine.flux_capacitor`");
        check_file("engine = 3", "`engine` must be a table");
        check_file("[engine", "line 1");
    }

    #[test]
    fn a_file_with_a_value_of_the_wrong_type_is_refused_with_its_key() {
        check_file("[server]\nport = \"80\"", "server.port must be a whole number, got \"80\" (string)");
        check_file("[server]\nport = 1.5", "server.port must be a whole number, got 1.5 (float)");
        check_file("[engine]\nprefix_cache = 1", "engine.prefix_cache must be true or false, got 1 (integer)");
        check_file("[server]\ncors_origins = [1]", "server.cors_origins must be an array of strings, got [1] (array)");
        check_file("[model]\nname = 3", "model.name must be a string, got 3 (integer)");
    }

    #[test]
    fn distances_count_edits() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
        assert_eq!(nearest("prot", ["port", "host"].into_iter()), None, "two edits in four letters is a guess");
        assert_eq!(nearest("hosts", ["port", "host"].into_iter()), Some("host"));
    }
}
