//! Random answers of a hub and of the server that it redirects to: valid ones with statuses, headers, names, sizes and
//! bytes changed. For any answer, nothing outside the cache changes, only the hub sees the token, no more bytes are
//! kept than the disk has, and a fetched file with a known hash has that hash.
//!
//! `TALLOW_FUZZ_CASES` sets the number of cases, in thousands, as one takes milliseconds; a failure prints the seed,
//! which replays it with `TALLOW_FUZZ_SEED`.

use std::sync::{Arc, OnceLock};

use super::*;
use crate::fake_hub::{COMMIT, FakeHub, Request};

/// Cases if the environment does not set a number; they take a few seconds.
const CASES_DEFAULT: u64 = 300;
const CASES_PER_ENVIRONMENTS: u64 = 1000;
/// Size of the simulated disk.
const DISK_BYTES: u64 = 64 << 10;
/// Bytes of the record of a file, which is written without a check of the disk.
const RECORD_BYTES: u64 = 1 << 10;
const TOKEN: &str = "hf_secret";

#[test]
fn whatever_a_hub_answers_the_invariants_hold() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seed = number("TALLOW_FUZZ_SEED");
    let cases = number("TALLOW_FUZZ_CASES").map_or(CASES_DEFAULT, |n| n.div_ceil(CASES_PER_ENVIRONMENTS));
    let (first, cases) = seed.map_or((0, cases), |seed| (seed, 1));
    let (mut fetched, mut redirected) = (0, 0);
    for seed in first..first + cases {
        // The panic is caught because its own message would not name the seed.
        let outcome = std::panic::catch_unwind(|| run(seed));
        let Ok(Ok(seen)) = outcome else { panic!("TALLOW_FUZZ_SEED={seed}: {outcome:?}") };
        fetched += u64::from(seen.is_fetched);
        redirected += u64::from(seen.num_elsewhere > 0);
    }
    println!("{cases} cases from seed {first} on: {fetched} fetched the file, {redirected} came to the other server");
    assert!(cases < CASES_DEFAULT || (fetched > 0 && redirected > 0), "the cases are too hostile to reach all code");
}

#[derive(Debug)]
struct Seen {
    is_fetched: bool,
    num_elsewhere: usize,
}

fn run(seed: u64) -> Result<Seen, String> {
    let mut draw = Draw(seed);
    let data = weights(5_000);
    let spec = draw.pick(&["hub:acme/tiny-GGUF", "hub:acme/tiny-GGUF:tiny.gguf", "tiny"]);
    let mut f = Fixture::new(refusing_endpoint(), vec![manifest(&data, vec![hub_source()])]);
    let places = Arc::new(Places {
        outside: f.dir.path().join("outside/pwned.gguf").display().to_string(),
        hub: OnceLock::new(),
        elsewhere: OnceLock::new(),
    });
    let start = |seed: u64| {
        let (places, data, draw) = (places.clone(), data.clone(), Mutex::new(Draw(seed)));
        FakeHub::scripted(move |request| answer(&mut draw.lock().unwrap(), request, &data, &places))
    };
    let (hub, elsewhere) = (start(draw.next()), start(draw.next()));
    places.hub.set(hub.endpoint()).unwrap();
    places.elsewhere.set(elsewhere.endpoint()).unwrap();
    f.registry.hub.endpoint = hub.endpoint();
    f.registry.hub.token = Some(TOKEN.to_owned());
    let cache = f.dir.path().join("cache");
    let used = move || walk(&cache).iter().map(|(_, content)| content.len() as u64).sum::<u64>();
    f.registry.disk = Disk::of_test(move |_| DISK_BYTES.saturating_sub(used()));
    let before = f.files_outside();
    let outcome = f.resolve(spec);

    if f.files_outside() != before {
        return Err("files outside the cache changed".to_owned());
    }
    if !elsewhere.tokens().is_empty() {
        return Err(format!("the token was seen elsewhere: {:?}", elsewhere.requests()));
    }
    if f.bytes_in_cache() > DISK_BYTES + RECORD_BYTES {
        return Err(format!("{} bytes in the cache", f.bytes_in_cache()));
    }
    match &outcome {
        Ok(model) if !model.path.starts_with(f.registry.cache.models()) => {
            return Err(format!("{} is not in the cache", model.path.display()));
        }
        Ok(model) if spec == "tiny" && std::fs::read(&model.path).unwrap() != data => {
            return Err("a file with another hash was taken".to_owned());
        }
        Err(e) if e.message().chars().any(char::is_control) => return Err(format!("{:?} is not shown", e.message())),
        Ok(_) | Err(_) => {}
    }
    Ok(Seen { is_fetched: outcome.is_ok(), num_elsewhere: elsewhere.requests().len() })
}

/// The places that answers can point to.
struct Places {
    /// A file outside the cache.
    outside: String,
    hub: OnceLock<String>,
    elsewhere: OnceLock<String>,
}

impl Places {
    fn hub(&self) -> &str {
        self.hub.get().map_or("", String::as_str)
    }

    fn elsewhere(&self) -> &str {
        self.elsewhere.get().map_or("", String::as_str)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

/// The parts of an answer before they become bytes.
struct Parts {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// The bytes of an answer: a valid one, changed in up to three ways.
fn answer(draw: &mut Draw, request: &Request, data: &[u8], places: &Places) -> Vec<u8> {
    let mut parts = valid(draw, request, data, places);
    parts.headers.push(("content-length".to_owned(), parts.body.len().to_string()));
    for _ in 0..draw.pick(&[0, 0, 1, 1, 2, 3]) {
        change(draw, &mut parts, places);
    }
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", parts.status).into_bytes();
    for (name, value) in parts.headers {
        head.extend(format!("{name}: {value}\r\n").into_bytes());
    }
    if draw.below(20) == 0 {
        let at = draw.below(head.len());
        head[at] = draw.next() as u8;
    }
    [&head[..], b"\r\n", &parts.body].concat()
}

fn valid(draw: &mut Draw, request: &Request, data: &[u8], places: &Places) -> Parts {
    let header = |name: &str, value: String| (name.to_owned(), value);
    if request.path.starts_with("/api/") {
        let num_files = draw.pick(&[1, 1, 1, 2]);
        let names: Vec<String> = (0..num_files).map(|_| name(draw, places)).collect();
        let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes();
        return Parts { status: 200, headers: Vec::new(), body };
    }
    if request.path.contains("/resolve/") {
        let storage = draw.pick(&["", places.elsewhere()]);
        let headers = vec![
            header("location", format!("{storage}/storage/tiny.gguf")),
            header("x-repo-commit", COMMIT.to_owned()),
            header("x-linked-etag", format!("\"{}\"", sha256_hex(data))),
            header("x-linked-size", data.len().to_string()),
        ];
        return Parts { status: 302, headers, body: b"moved".to_vec() };
    }
    let range = request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.split_once('-'));
    let begin = range.and_then(|(begin, _)| begin.parse().ok()).filter(|&begin: &usize| begin < data.len());
    let Some(begin) = begin else { return Parts { status: 200, headers: Vec::new(), body: data.to_vec() } };
    let content_range = format!("bytes {begin}-{}/{}", data.len() - 1, data.len());
    Parts { status: 206, headers: vec![header("content-range", content_range)], body: data[begin..].to_vec() }
}

/// A name; half of the names are valid.
fn name(draw: &mut Draw, places: &Places) -> String {
    if draw.below(2) == 0 {
        return draw.pick(&["tiny.gguf", "q/tiny.gguf", "tiny.GGUF"]).to_owned();
    }
    draw.pick(&[
        places.outside.as_str(),
        "../../../../../outside/pwned.gguf",
        "a/../../../../../../outside/pwned.gguf",
        "../tiny-GGUF/tiny.gguf",
        "..%2f..%2fpwned.gguf",
        "\u{1b}]0;x\u{7}.gguf",
        "a\r\nhost: x.gguf",
        "?.gguf",
        ".gguf",
        "/.gguf",
        "tiny.gguf\0.gguf",
    ])
    .to_owned()
}

fn change(draw: &mut Draw, parts: &mut Parts, places: &Places) {
    const HEADERS: [&str; 9] = [
        "location",
        "content-range",
        "content-length",
        "content-encoding",
        "transfer-encoding",
        "x-linked-size",
        "x-linked-etag",
        "x-repo-commit",
        "etag",
    ];
    let at = draw.below(parts.body.len());
    match draw.below(8) {
        0 => parts.status = draw.pick(&[200, 201, 204, 206, 301, 302, 304, 307, 308, 401, 404, 416, 500]),
        1 | 2 => {
            let name = draw.pick(&HEADERS);
            parts.headers.retain(|(n, _)| n != name);
            parts.headers.push((name.to_owned(), value(draw, places)));
        }
        3 => {
            let name = draw.pick(&HEADERS);
            parts.headers.retain(|(n, _)| n != name);
        }
        4 => parts.body.truncate(at),
        5 => {
            // More bytes than the disk has, without a length that would end the body.
            parts.body.resize(parts.body.len() + draw.pick(&[1, 5_000, 200_000]), b'x');
            parts.headers.retain(|(n, _)| n != "content-length");
        }
        6 if !parts.body.is_empty() => parts.body[at] = draw.next() as u8,
        _ => {
            let to = draw.pick(&[places.elsewhere(), places.hub()]);
            let path = draw.pick(&["/", "/storage/tiny.gguf", "/api/models/x", "/a/b/resolve/main/tiny.gguf"]);
            parts.status = draw.pick(&[301, 302, 307]);
            parts.headers.retain(|(n, _)| n != "location");
            parts.headers.push(("location".to_owned(), format!("{to}{path}")));
        }
    }
}

/// A value that no header should have, or one that a header may have.
fn value(draw: &mut Draw, places: &Places) -> String {
    let text = draw.pick(&[
        "",
        "0",
        "1",
        "-1",
        "20000",
        "19999",
        "60000",
        "18446744073709551615",
        "18446744073709551616",
        "1e9",
        "bytes 0-0/1",
        "bytes 0-19999/*",
        "bytes 0-19999/18446744073709551615",
        "bytes 9-1/2",
        "bytes */20000",
        "../../../../outside/pwned",
        "main/../../..",
        "file:///outside/pwned",
        "http://[::1",
        "http://user@127.0.0.1/",
        "//127.0.0.1:1/",
        "gzip",
        "chunked",
        "\u{9b}31m",
        "0000000000000000000000000000000000000000000000000000000000000000",
        places.outside.as_str(),
        places.elsewhere(),
    ]);
    text.to_owned()
}
