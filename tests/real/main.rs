//! What needs real models: each is fetched by its manifest, or the test says that it is skipped.

#[path = "../common/corpus.rs"]
mod corpus;
#[path = "../common/oracle.rs"]
mod oracle;
#[path = "../common/real.rs"]
mod real;
#[path = "../common/server.rs"]
mod server;
#[path = "../common/steps.rs"]
mod steps;
#[path = "../common/tiny.rs"]
mod tiny;

mod accuracy;
mod decoder;
mod encoder;
mod golden;
mod serve;
mod tokenizer;
