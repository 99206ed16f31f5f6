//! What tests of several rooms share.

#![allow(dead_code, reason = "each test crate uses its part")]

pub mod corpus;

use std::path::PathBuf;

use tallow::model::registry::{CacheDir, resolve};

/// The file of a model that `models/*.toml` names; fetched into the user's cache by the first test that asks.
///
/// # Panics
/// If no source delivers it: a test that needs the model must not pass without it.
#[track_caller]
pub fn real_model(name: &str) -> PathBuf {
    let cache = CacheDir::from_env().expect("a cache directory");
    match resolve(name, &cache, &|_| {}) {
        Ok(file) => file.path,
        Err(error) => panic!("the model {name} is needed for this test: {error}"),
    }
}
