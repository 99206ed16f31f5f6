//! The real models: fetched once into the user's cache, as `tallow pull` does.
#![allow(dead_code)] // Each test binary uses a part.

use std::path::PathBuf;

use tallow::hub::{CacheDir, ProgressEvent, resolve};

/// The default model, small enough for every test.
pub(crate) const SMOLLM2: &str = "smollm2-135m-instruct";
/// The test model with everything that the other has not.
pub(crate) const GEMMA3: &str = "gemma-3-270m";

/// The file of a model that has a manifest; fetched if it is not there yet.
pub(crate) fn path(name: &str) -> PathBuf {
    let cache = CacheDir::from_env().unwrap();
    let progress = |event: ProgressEvent| {
        if let ProgressEvent::Message(text) = event {
            eprintln!("{text}");
        }
    };
    resolve(name, &cache, &progress).unwrap_or_else(|e| panic!("{name} cannot be fetched: {e}")).path
}
