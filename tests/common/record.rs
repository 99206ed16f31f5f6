//! What a proof measured, as a line of JSON in a file of its own under `target/promises/`; `tests/promises/table` makes
//! the table of them.
#![allow(dead_code)] // Each test binary uses a part.

use std::path::PathBuf;

use serde_json::json;

/// Whether the long versions are asked for.
pub(crate) fn is_long() -> bool {
    match std::env::var("TALLOW_PROMISES").as_deref() {
        Ok("long") => true,
        Ok("short") | Err(_) => false,
        Ok(other) => panic!("TALLOW_PROMISES must be short or long, got {other:?}"),
    }
}

/// How many of something: as the promise says, or as many as every change can wait for.
pub(crate) fn scale(short: usize, long: usize) -> usize {
    if is_long() { long } else { short }
}

/// One figure of a promise.
pub(crate) struct Figure<'a> {
    /// `P3`.
    pub promise: &'a str,
    /// What was measured, in a few words.
    pub what: &'a str,
    /// As the promise has it.
    pub asked: &'a str,
    /// With its unit.
    pub measured: String,
    pub is_reached: bool,
}

impl Figure<'_> {
    /// Prints it and writes it down.
    pub(crate) fn record(&self) {
        self.write(None);
    }

    /// The same for one that may be missed for a reason that was measured too; the test asserts the bound that follows
    /// from the reason.
    pub(crate) fn record_with_reason(&self, reason: &str) {
        self.write((!self.is_reached).then_some(reason));
    }

    fn write(&self, reason: Option<&str>) {
        let Self { promise, what, asked, measured, is_reached } = self;
        println!("{promise}: {what}: {measured}, asked {asked}: {}", if *is_reached { "reached" } else { "missed" });
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("promises");
        std::fs::create_dir_all(&folder).unwrap();
        let slug: String = what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let scale = if is_long() { "long" } else { "short" };
        let line = json!({
            "promise": promise, "what": what, "asked": asked, "measured": measured, "reached": is_reached,
            "reason": reason, "scale": scale, "build": if cfg!(debug_assertions) { "debug" } else { "optimised" },
        });
        std::fs::write(folder.join(format!("{promise}-{slug}.json")), format!("{line}\n")).unwrap();
    }
}

/// The value that `quantile` of all do not exceed.
pub(crate) fn quantile(values: &mut [f64], quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() as f64 * quantile).ceil() as usize;
    values.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
