//! Streams with a store behind them: what the server forgets is forgotten on the disk, and what it keeps is served as
//! from memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tallow::stream::{StoreLimits, StoredStream, StreamStore};

use crate::http::common::{TestServer, get};
use crate::http::native::{create, follow_from_far_ahead};

fn open(dir: &Path) -> (Arc<StreamStore>, Vec<StoredStream>) {
    let (commit_interval, stall_time_max) = (Duration::from_millis(1), Duration::from_secs(3600));
    let limits = StoreLimits { commit_interval, num_bytes_max: 1 << 20, stall_time_max };
    StreamStore::open(dir, limits).unwrap()
}

/// Ends a server, which lets go of its store, and opens that again.
async fn reopen(mut server: TestServer, dir: &Path) -> (Arc<StreamStore>, Vec<StoredStream>) {
    server.stop();
    server.stopped().await;
    open(dir)
}

fn paths(stored: &[StoredStream]) -> Vec<String> {
    stored.iter().map(|stream| format!("/v1/streams/{}", stream.record.request.id)).collect()
}

#[tokio::test]
async fn what_others_push_out_is_not_found_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let server = TestServer::with(|s| (s.store, s.table.num_streams_max) = (Some(store), 1)).await;
    let mut created = Vec::new();
    for text in ["first", "second", "third"] {
        let (path, job) = create(&server, json!("detach")).await;
        job.run(&[text]);
        created.push(path);
    }
    assert_eq!(get(server.address, &created[0], &[]).await.status, 410, "the table has room for one");

    let (store, stored) = reopen(server, dir.path()).await;
    assert_eq!(paths(&stored), created[2..]);
    let server = TestServer::with(|s| s.store = Some(store)).await;
    assert_eq!(server.service.restore(stored).num_finished, 1);
    for (path, status) in created.iter().zip([404, 404, 200]) {
        assert_eq!(get(server.address, path, &[]).await.status, status, "{path}");
    }
    let kept = get(server.address, &created[2], &[]).await.body;
    assert!(kept.contains("third") && kept.contains("event: done"), "{kept}");
}

#[tokio::test]
async fn what_is_past_its_retention_is_not_found_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let server = TestServer::with(|s| {
        (s.store, s.table.retention_ms) = (Some(store), 0);
        s.api.sweep_interval = Duration::from_millis(1);
        s.api.drain_timeout = Duration::from_millis(5);
    })
    .await;
    let (_, ended) = create(&server, json!("detach")).await;
    let (unfinished, job) = create(&server, json!("detach")).await;
    job.start();
    ended.run(&["x"]);
    while server.service.table().len() > 1 {
        tokio::task::yield_now().await;
    }
    let (_store, stored) = reopen(server, dir.path()).await;
    assert_eq!(paths(&stored), [unfinished]);
}

#[tokio::test]
async fn a_cursor_far_ahead_of_a_kept_stream_gets_a_gap_and_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    follow_from_far_ahead(&TestServer::with(|s| s.store = Some(store)).await).await;
}
