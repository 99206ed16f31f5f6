//! How far a load has come: a bar on a terminal, nothing elsewhere, as the generator shares the machine with the server.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::bench::RunStep;

/// Between two drawings, at least.
const DRAWS_PER_S: u8 = 5;

/// Shows a run on standard error.
#[derive(Debug)]
pub(super) struct BenchProgress {
    bar: ProgressBar,
}

impl BenchProgress {
    /// For this process's standard error.
    pub(super) fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWS_PER_S));
        let style = "  {msg}  [{bar:30}] {pos} of {len} requests, {elapsed}";
        bar.set_style(ProgressStyle::with_template(style).expect("our own template").progress_chars("=> "));
        Self { bar }
    }

    /// Shows what a run has to say.
    pub(super) fn hear(&mut self, step: &RunStep) {
        match step {
            RunStep::WarmingUp { url } => self.bar.set_message(format!("{url}: warming up")),
            RunStep::LevelBegins { url, level, num_requests } => {
                self.bar.reset();
                self.bar.set_length(*num_requests as u64);
                self.bar.set_message(format!("{url}, {}", level.label()));
                // The clock goes on while long requests keep the bar still.
                self.bar.enable_steady_tick(Duration::from_secs(1));
            }
            RunStep::RequestEnded => self.bar.inc(1),
        }
    }

    /// No more steps.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
