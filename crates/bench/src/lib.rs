//! `tallow bench`: a load on a server, and what came of it. It stands outside: what it knows of a server came over HTTP,
//! so tallow and others are measured alike, with the same requests.
//!
//! Data flows from a `plan` over `workload` (what is asked) and `target` (how it is said) to `level` (when it is sent);
//! `exchange` and `reconnect` read the answers into a `record` each, `tally` sums records up, `report` is the sum as
//! data, and `table` and `page` show it. Every draw is a function of the seed (`draws`).
//!
//! `offline` is the exception: it drives decoder and engine in this process, without a server.
//!
//! The generator shares the machine with the server: it runs on one thread, makes all bodies before the clock starts,
//! and looks at no more of an answer than it must.

pub mod client;
mod draws;
mod exchange;
mod lengths;
mod level;
mod lookup;
mod newcomer;
pub mod offline;
mod offline_report;
mod page;
mod percentiles;
mod plan;
mod plot;
mod probe;
mod reconnect;
mod record;
mod report;
mod run;
mod slow;
mod table;
mod tally;
mod target;
mod workload;

pub use draws::{Draws, Purpose};
pub use lengths::Lengths;
pub use lookup::LeftReport;
pub use newcomer::NewcomerReport;
pub use page::to_html;
pub use percentiles::Percentiles;
pub use plan::{Api, Ask, Level, Mode, Plan, REQUESTS_MAX, ServerAddress, Slo};
pub use probe::ProbeReport;
pub use record::ResumedReport;
pub use report::{Goodput, LevelReport, LoadReport, Ratios, Report, ServerReport, TokenCounts};
pub use run::{RunStep, run};
pub use slow::SlowReport;
pub use table::to_text;
pub use tally::ErrorCount;
pub use target::base_url;
pub use workload::{DatasetLine, Item, ItemPrompt, Prompts, Workload, read_dataset};
