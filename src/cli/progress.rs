//! How far a fetch has come: a bar on a terminal, a few plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::hub::ProgressEvent;
use crate::settings::show_bytes;
use crate::text::printable;

/// Shows one step of a fetch at a time on standard error.
#[derive(Debug)]
pub(super) struct FetchProgress {
    bar: Option<ProgressBar>,
    step: Mutex<ShownStep>,
}

/// The step being shown, as far as it has come.
#[derive(Debug, Default)]
struct ShownStep {
    bytes: u64,
    bytes_total: Option<u64>,
    /// Tenths that have had their line, where there is no terminal.
    tenths: u64,
}

impl FetchProgress {
    /// For this process's standard error.
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::hidden);
        Self { bar, step: Mutex::default() }
    }

    /// Shows what a fetch has to say.
    pub(super) fn hear(&self, event: ProgressEvent) {
        match event {
            ProgressEvent::Message(text) => self.note(&text),
            ProgressEvent::Bytes { done, total } => self.at(done, total),
        }
    }

    fn note(&self, text: &str) {
        // A source's own words are among them: names, headers, what pip says.
        let text = printable(text);
        match &self.bar {
            Some(bar) if !bar.is_hidden() => bar.println(text),
            Some(_) | None => eprintln!("{text}"),
        }
    }

    fn at(&self, bytes: u64, bytes_total: Option<u64>) {
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = step.go_to(bytes, bytes_total);
        match &self.bar {
            Some(bar) => {
                if is_new {
                    draw_anew(bar, bytes_total);
                }
                bar.set_position(bytes);
            }
            None => {
                if let Some(line) = step.line() {
                    eprintln!("{line}");
                }
            }
        }
    }

    /// No more steps.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl ShownStep {
    /// Moves on, and tells whether this is another step: another total, or fewer bytes than before.
    fn go_to(&mut self, bytes: u64, bytes_total: Option<u64>) -> bool {
        let is_new = self.bytes_total != bytes_total || bytes < self.bytes || self.bytes == 0;
        let tenths = if is_new { 0 } else { self.tenths };
        *self = Self { bytes, bytes_total, tenths };
        is_new
    }

    /// A line each time another tenth has arrived, none without a known total.
    fn line(&mut self) -> Option<String> {
        let total = self.bytes_total.filter(|total| *total > 0)?;
        let tenths = (u128::from(self.bytes) * 10 / u128::from(total)).min(10) as u64;
        if tenths <= self.tenths {
            return None;
        }
        self.tenths = tenths;
        Some(format!("  {:3} %  {} of {}", tenths * 10, size(self.bytes), size(total)))
    }
}

/// The bar appears with the first byte, so that a step without bytes shows none.
fn draw_anew(bar: &ProgressBar, bytes_total: Option<u64>) {
    bar.reset();
    bar.set_style(style(bytes_total.is_some()));
    bar.set_length(bytes_total.unwrap_or(0));
    if bar.is_hidden() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
}

fn style(known_length: bool) -> ProgressStyle {
    let template = if known_length {
        "  [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
    } else {
        "  {binary_bytes} in {elapsed}"
    };
    ProgressStyle::with_template(template).expect("our own template").progress_chars("=> ")
}

/// Bytes for people: exact where that is short, else one decimal.
pub(super) fn size(bytes: u64) -> String {
    let exact = show_bytes(bytes);
    if bytes < 1024 || exact.len() <= 7 && !exact.ends_with(" B") {
        return exact;
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1 KiB");
        assert_eq!(size(98_362_432), "93.8 MiB");
        assert_eq!(size(5 << 30), "5 GiB");
    }

    #[test]
    fn without_a_terminal_a_line_comes_with_each_tenth() {
        let mut step = ShownStep::default();
        let mut line = |bytes, total| {
            step.go_to(bytes, total);
            step.line()
        };
        assert_eq!(line(99, Some(1000)), None);
        assert_eq!(line(100, Some(1000)).as_deref(), Some("   10 %  100 B of 1000 B"));
        assert_eq!(line(150, Some(1000)), None);
        assert_eq!(line(1000, Some(1000)).as_deref(), Some("  100 %  1000 B of 1000 B"));
        assert_eq!(line(500, Some(1000)).as_deref(), Some("   50 %  500 B of 1000 B"), "fewer bytes: another step");
        assert_eq!(line(10, None), None);
    }
}
