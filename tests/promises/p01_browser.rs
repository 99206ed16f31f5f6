//! P1 with a client of browser grade: the package `eventsource` (the standard's EventSource, for Node.js), behind a proxy
//! that gives it byte by byte and cuts it. Its reconnections are its own; it stops when the server says 204.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::host::{create, native};
use crate::common::{Fault, Figure, Host, Options, Proxy, Random, SseParser, http, scale};

const SEED: u64 = 102;
const MAX_TOKENS: usize = 60;
const FILES: [&str; 3] = ["package.json", "package-lock.json", "read.mjs"];

/// The client with its package, installed where it is not yet. `.ci/tools` sees to Node.js and npm.
fn client() -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises/eventsource");
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("eventsource");
    std::fs::create_dir_all(&to).unwrap();
    let is_same = |name| std::fs::read(from.join(name)).ok() == std::fs::read(to.join(name)).ok();
    let is_installed = FILES.into_iter().all(is_same) && to.join("node_modules/eventsource").is_dir();
    if !is_installed {
        for name in FILES {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&to);
        let status = npm.status().expect("npm is here: `make tools` installs it");
        assert!(status.success(), "npm could not install the eventsource package");
    }
    to.join("read.mjs")
}

/// Each connection trickles; the first two of a stream are cut where the seed says.
fn plan(mut random: Random, num_cut: usize) -> impl FnMut() -> Fault + Send {
    let mut num_connections = 0;
    move || {
        num_connections += 1;
        let cut_at = (num_connections <= num_cut).then(|| random.below(6000));
        Fault { cut_at, by_reset: random.one_in(2), is_trickle: true, ..Fault::NONE }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_an_eventsource_reads_the_same_through_a_trickle_and_cuts() {
    let num_streams = scale(8, 32);
    println!("seed {SEED}");
    let host = Host::start(&Options { step_delay_us: 2_000, ..Options::default() }).await;
    let proxy = Proxy::start(host.address, plan(Random::new(SEED), 2 * num_streams)).await;
    let script = client();
    let mut paths = Vec::new();
    for seed in 0..num_streams {
        paths.push(create(host.address, &native(MAX_TOKENS, seed as u64, &json!("detach"))).await);
    }
    let urls = paths.iter().map(|path| format!("http://{}{path}", proxy.address));
    let mut node = Command::new("node");
    node.arg(script).args(urls);
    let output = tokio::task::spawn_blocking(move || node.output().expect("node is here: `make tools` installs it"));
    let output = output.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let heard: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();

    assert_eq!(heard.len(), num_streams);
    let mut num_differences = 0;
    for (path, heard) in paths.iter().zip(&heard) {
        let events = SseParser::parse(&http(host.address, "GET", path, &[], "").await.unwrap().body);
        let text: String = events.iter().filter_map(|e| e.json()["text"].as_str().map(str::to_owned)).collect();
        let ids: Vec<&str> = events.iter().map(|e| e.id.as_str()).collect();
        let expect = json!({"text": text, "ids": ids, "last": "done", "status": 204});
        let got = json!({"text": heard["text"], "ids": heard["ids"], "last": heard["last"], "status": heard["status"]});
        if got != expect {
            num_differences += 1;
            println!("{path}: got {got}\nexpected {expect}");
        }
    }
    let num_cuts = proxy.num_cuts();
    let measured = format!("{num_differences} in {num_streams} streams with {num_cuts} cuts");
    let (what, asked) = ("an EventSource, byte by byte and cut", "0 differences");
    Figure { promise: "P1", what, asked, measured, is_reached: num_differences == 0 }.record();
    assert!(num_cuts >= num_streams, "only {num_cuts} cuts");
    assert_eq!(num_differences, 0);
}
