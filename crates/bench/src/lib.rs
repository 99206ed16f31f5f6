//! `tallow bench`: puts a load on a server and reports the results. It knows a server only over HTTP, so tallow and
//! other servers are measured in the same way, with the same requests.
//!
//! Data flows from a `plan` over `workload` (the contents of requests) and `target` (their form) to `level` (the time
//! of sending). `exchange` and `reconnect` read each answer into a `record`, `tally` sums up the records, `report`
//! holds the sums as data, and `table` and `page` show them. Every draw is a function of the seed (`draws`).
//!
//! `offline` is the exception: it drives decoder and engine in this process, without a server.
//!
//! The generator shares the machine with the server: it runs on one thread, makes all bodies before the clock starts,
//! and reads only the necessary parts of an answer.

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
