#![doc = include_str!("../ARCHITECTURE.md")]

pub mod api;
pub mod bench;
pub mod cache;
pub mod cli;
pub mod client;
pub mod config;
pub mod engine;
pub mod metrics;
pub mod model;
pub mod sampling;
pub mod service;
pub mod telemetry;
pub mod text;
pub mod threads;

pub use tallow_kernels as kernels;
pub use tallow_stream as stream;
pub use tallow_stream::{error, protocol};
