//! How far a fetch has come: a bar on a terminal, a few plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};

use crate::config::show_bytes;

/// Shows one fetch at a time on standard error.
#[derive(Debug)]
pub(super) struct FetchProgress {
    bar: Option<ProgressBar>,
    /// The tenth last printed where there is no terminal.
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    bytes_total: Option<u64>,
    tenth: u64,
}

impl FetchProgress {
    /// For this process's standard error.
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::no_length().with_style(style(false)));
        Self { bar, shown: Mutex::default() }
    }

    /// A fetch begins (again, from the next source). `bytes_total` is unknown for some sources.
    pub(super) fn begin(&self, what: &str, bytes_total: Option<u64>) {
        *self.lock() = Shown { bytes_total, tenth: 0 };
        match &self.bar {
            Some(bar) => {
                bar.reset();
                bar.set_style(style(bytes_total.is_some()));
                bar.set_length(bytes_total.unwrap_or(0));
                bar.set_message(what.to_owned());
                bar.enable_steady_tick(std::time::Duration::from_millis(120));
            }
            None => match bytes_total {
                Some(total) => eprintln!("{what}: {}", size(total)),
                None => eprintln!("{what}"),
            },
        }
    }

    /// `bytes` of it are here.
    pub(super) fn at(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            return;
        }
        let mut shown = self.lock();
        if let Some(line) = shown.line_at(bytes) {
            eprintln!("{line}");
        }
    }

    /// Something worth a line: a source that failed, a check that passed.
    pub(super) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// No more fetches.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    /// A line each time another tenth has arrived, none without a known total.
    fn line_at(&mut self, bytes: u64) -> Option<String> {
        let total = self.bytes_total.filter(|total| *total > 0)?;
        let tenth = (u128::from(bytes) * 10 / u128::from(total)).min(10) as u64;
        if tenth <= self.tenth {
            return None;
        }
        self.tenth = tenth;
        Some(format!("  {:3} %  {} of {}", tenth * 10, size(bytes), size(total)))
    }
}

fn style(known_length: bool) -> ProgressStyle {
    let template = if known_length {
        "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
    } else {
        "{spinner} {msg} {binary_bytes} in {elapsed}"
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
        let mut shown = Shown { bytes_total: Some(1000), tenth: 0 };
        assert_eq!(shown.line_at(99), None);
        assert_eq!(shown.line_at(100).as_deref(), Some("   10 %  100 B of 1000 B"));
        assert_eq!(shown.line_at(150), None);
        assert_eq!(shown.line_at(2000).as_deref(), Some("  100 %  2.0 KiB of 1000 B"));
        let mut unknown = Shown::default();
        assert_eq!(unknown.line_at(10), None);
    }
}
