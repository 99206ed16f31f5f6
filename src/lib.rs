#![doc = include_str!("../ARCHITECTURE.md")]

pub mod api;
pub mod cli;
pub mod config;
pub mod service;
pub mod telemetry;

pub use tallow_bench as bench;
pub use tallow_bench::client;
pub use tallow_engine as engine;
pub use tallow_engine::{cache, metrics, sampling, threads};
pub use tallow_hub as hub;
pub use tallow_kernels as kernels;
pub use tallow_model as model;
pub use tallow_model::text;
pub use tallow_stream as stream;
pub use tallow_stream::{error, protocol, settings};
