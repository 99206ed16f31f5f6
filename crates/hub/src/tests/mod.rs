//! A registry with an empty cache, a local hub and a fake pip, for the tests in this folder.

mod fetch;
mod find;
mod fuzz;
mod hostile;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::fake_hub::{REPO, sha256_hex};
use super::*;

/// Bytes that differ everywhere, so that a part in the wrong place is noticed. They need not be a model.
fn weights(len: u32) -> Vec<u8> {
    (0..len).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn manifest(data: &[u8], sources: Vec<Source>) -> Manifest {
    Manifest {
        name: "tiny".to_owned(),
        aliases: vec!["small".to_owned()],
        description: "For tests.".to_owned(),
        licence: "none".to_owned(),
        size_bytes: data.len() as u64,
        sha256: sha256_hex(data),
        sources,
        chat_template: None,
        kind: ModelKind::Decoder,
        beside: Vec::new(),
    }
}

fn hub_source() -> Source {
    Source::Hub(HubSource { repo: REPO.to_owned(), file: "tiny.gguf".to_owned(), revision: "main".to_owned() })
}

fn package_source() -> Source {
    let part = |name: &str, member: &str| PackagePart {
        name: name.to_owned(),
        version: "1.0".to_owned(),
        member: member.to_owned(),
    };
    Source::Package(vec![part("tiny-one", "tiny_one/a"), part("tiny-two", "tiny_two/b")])
}

/// Compares without printing kilobytes.
#[track_caller]
fn check_content(path: &Path, expected: &[u8]) {
    let actual = std::fs::read(path).unwrap();
    assert!(actual == expected, "{} has {} bytes, sha256 {}", path.display(), actual.len(), sha256_hex(&actual));
}

struct Fixture {
    dir: tempfile::TempDir,
    registry: Registry,
    said: Mutex<Vec<String>>,
}

impl Fixture {
    /// An empty cache, a hub at `endpoint`, and no Python.
    fn new(endpoint: String, manifests: Vec<Manifest>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A path that leaves the cache would hit this folder.
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/kept"), "kept").unwrap();
        let hub = HubConfig {
            endpoint,
            token: None,
            cache: dir.path().join("hf/hub"),
            connect_timeout: Duration::from_secs(10),
            silence_timeout: Duration::from_secs(10),
        };
        let package = PackageConfig { pythons: vec!["/nowhere/python".to_owned()], ..PackageConfig::default() };
        let cache = CacheDir::new(dir.path().join("cache"));
        Self {
            registry: Registry { cache, manifests, hub, package, disk: Disk::default() },
            dir,
            said: Mutex::default(),
        }
    }

    fn resolve(&self, spec: &str) -> Result<ModelFile> {
        self.registry.resolve(spec, &|event| self.hear(event))
    }

    fn pull(&self, spec: &str) -> Result<ModelFile> {
        self.registry.pull(spec, &|event| self.hear(event))
    }

    fn hear(&self, event: ProgressEvent) {
        if let ProgressEvent::Message(text) = event {
            self.said.lock().unwrap().push(text);
        }
    }

    fn said(&self, what: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(what))
    }

    /// Names in the models directory, without lock files, which stay by design.
    fn cached(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.registry.cache.models()) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.ends_with(".lock"));
        names.sort();
        names
    }

    /// Everything in the test's folder outside the cache: paths, and contents of files.
    fn files_outside(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = walk(self.dir.path());
        all.retain(|(path, _)| !path.starts_with(self.dir.path().join("cache")));
        all
    }

    /// Bytes of all files of the cache.
    fn bytes_in_cache(&self) -> u64 {
        walk(&self.dir.path().join("cache")).iter().map(|(_, content)| content.len() as u64).sum()
    }

    /// Installs `script` as Python. The script finds the directory for the wheels in `$wheels`.
    fn python(&mut self, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join("python");
        let find = "while [ $# -gt 0 ]; do [ \"$1\" = -d ] && wheels=$2; shift; done";
        std::fs::write(&path, format!("#!/bin/sh\n{find}\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        self.registry.package.pythons = vec!["/nowhere/python".to_owned(), path.display().to_string()];
    }

    /// Writes the wheels of [`package_source`] and a Python that delivers them.
    fn python_with_wheels(&mut self, a: &[u8], b: &[u8]) {
        let from = self.dir.path().join("index");
        std::fs::create_dir_all(&from).unwrap();
        for (wheel, member, data) in [("tiny_one", "tiny_one/a", a), ("Tiny.Two", "tiny_two/b", b)] {
            write_wheel(&from.join(format!("{wheel}-1.0-py3-none-any.whl")), member, data);
        }
        self.python(&format!("cp {}/* \"$wheels\"", from.display()));
    }
}

/// Everything under `dir`, in order; links are not followed.
fn walk(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return found };
    for entry in entries {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        let content = if kind.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        if kind.is_dir() {
            found.extend(walk(&path));
        }
        found.push((path, content));
    }
    found.sort();
    found
}

fn write_wheel(path: &Path, member: &str, data: &[u8]) {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    zip.start_file(member, options).unwrap();
    zip.write_all(data).unwrap();
    zip.finish().unwrap();
}

/// An address at which nothing listens: a port that was free a moment ago.
fn refusing_endpoint() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
