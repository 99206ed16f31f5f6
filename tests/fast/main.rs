//! What needs no foreign weights and no foreign programs: one folder or file for each subject.

#[path = "../common/gated.rs"]
mod gated;
#[path = "../common/oracle.rs"]
mod oracle;
#[path = "../common/record.rs"]
mod record;
#[path = "../common/server.rs"]
mod server;
#[path = "../common/steps.rs"]
mod steps;
#[path = "../common/tiny.rs"]
mod tiny;

mod bench;
mod bench_offline;
mod cli;
mod decoder;
mod engine;
mod engine_decoder;
mod http;
mod keys;
mod logs;
mod models;
mod simulation;
mod structured;
mod tidy;
