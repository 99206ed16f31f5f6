//! The log on standard error, as lines for people or as JSON, and the hook that reports a panic once. Called by the
//! command line before anything else runs; the rooms below only emit `tracing` events.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::{MakeVisitor, VisitFmt, VisitOutput};
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::{Error, Result};
use crate::settings;
use crate::settings::{Kind, common, words};
use crate::text::{printable, printable_json, printable_line};

words! {
    /// Shape of the log.
    pub enum LogFormat {
        /// Lines for people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

settings! {
    /// The log.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct LogConfig {
        /// error, warn, info, debug, trace, or a filter like tallow::api=debug.
        pub level: String = "info".to_owned() => common("log.level", "log-level", Kind::NonEmpty);
        /// Whether the level was typed; if not, `RUST_LOG` may say otherwise.
        pub level_given: bool = false;
        /// Format of the log on standard error.
        pub format: LogFormat = LogFormat::Text => common("log.format", "log-format", Kind::OneOf(LogFormat::WORDS));
    }
}

/// Starts the log. A typed level wins over `RUST_LOG`, which wins over the default.
///
/// # Errors
/// If the level is neither a word nor a filter, or the log was started before.
pub fn start(config: &LogConfig) -> Result<()> {
    let filter = filter(config, std::env::var("RUST_LOG").ok().as_deref())?;
    // Colours are for eyes, not for files.
    let is_terminal = std::io::stderr().is_terminal();
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(is_terminal && !no_colour)
        .with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => builder.fmt_fields(PrintableFields).finish().try_init(),
        LogFormat::Json => {
            builder.json().flatten_event(true).with_writer(|| JsonWriter(std::io::stderr())).finish().try_init()
        }
    };
    started.map_err(|e| Error::internal(format!("the log cannot be started: {e}")))
}

/// Fields as the library writes them, but each in one line and without anything that a terminal obeys: values and
/// messages hold text from requests, servers and files, which could otherwise look like another line of the log. The
/// library escapes some controls of messages, and line ends of neither.
struct PrintableFields;

struct PrintableVisitor<'a>(DefaultVisitor<'a>);

impl<'a> MakeVisitor<Writer<'a>> for PrintableFields {
    type Visitor = PrintableVisitor<'a>;

    fn make_visitor(&self, writer: Writer<'a>) -> Self::Visitor {
        PrintableVisitor(DefaultVisitor::new(writer, true))
    }
}

impl Visit for PrintableVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        self.0.record_debug(field, &format_args!("{}", printable_line(&text)));
    }
}

impl VisitOutput<std::fmt::Result> for PrintableVisitor<'_> {
    fn finish(self) -> std::fmt::Result {
        self.0.finish()
    }
}

impl VisitFmt for PrintableVisitor<'_> {
    fn writer(&mut self) -> &mut dyn std::fmt::Write {
        self.0.writer()
    }
}

/// What JSON leaves to its writer: line ends and the other controls below 32 are escaped already, those from 127 on not.
struct JsonWriter<W>(W);

impl<W: std::io::Write> std::io::Write for JsonWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // The library writes an event in one piece.
        self.0.write_all(printable_json(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

fn filter(config: &LogConfig, rust_log: Option<&str>) -> Result<EnvFilter> {
    let from_env = rust_log.filter(|text| !config.level_given && !text.is_empty());
    let (name, text) = from_env.map_or(("--log-level", config.level.as_str()), |text| ("RUST_LOG", text));
    EnvFilter::builder().parse(text).map_err(|e| {
        let message = format!(
            "{name} must be error, warn, info, debug, trace or a filter like tallow::api=debug, got `{text}`: {e}"
        );
        Error::invalid("log.level", message)
    })
}

/// Makes a panic one log record with its place and, if `RUST_BACKTRACE` asks, its backtrace. Workers catch panics and
/// go on, so the default hook's several lines would bury the log; whoever catches one must not report it again.
pub fn report_panics_once() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let line = describe(info);
        // Before the log starts (and in `pull`, `chat`) there is nobody to take the record.
        if tracing::enabled!(tracing::Level::ERROR) {
            tracing::error!(thread, "{line}");
        } else {
            eprintln!("tallow: thread {thread}: {}", printable(&line));
        }
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            eprintln!("{backtrace}");
        }
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("a value that is no text");
    match info.location() {
        Some(place) => format!("panicked at {place}: {message}"),
        None => format!("panicked: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn config(level: &str, level_given: bool) -> LogConfig {
        LogConfig { level: level.to_owned(), format: LogFormat::Text, level_given }
    }

    #[test]
    fn a_typed_level_beats_the_environment_and_the_environment_the_default() {
        let shown = |level, given, env| filter(&config(level, given), env).expect("a filter").to_string();
        assert_eq!(shown("info", false, None), "info");
        assert_eq!(shown("info", false, Some("debug")), "debug");
        assert_eq!(shown("warn", true, Some("debug")), "warn");
        assert_eq!(shown("info", false, Some("")), "info");
        assert_eq!(shown("tallow::api=debug", true, None), "tallow::api=debug");
    }

    #[test]
    fn a_level_that_is_no_filter_names_its_source() {
        let error = filter(&config("tallow=loud", true), None).expect_err("not a level");
        assert!(error.message().starts_with("--log-level must be"), "{error}");
        let error = filter(&config("info", false), Some("a=b=c")).expect_err("not a filter");
        assert!(error.message().starts_with("RUST_LOG must be"), "{error}");
    }

    #[test]
    fn text_from_outside_is_one_line_of_the_log_and_drives_no_terminal() {
        let evil = "a\u{1b}]0;pwned\u{7}\n2030-01-01T00:00:00Z ERROR forged\u{9b}31m\u{202e}";
        for format in [LogFormat::Text, LogFormat::Json] {
            let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
            let written = bytes.clone();
            let builder = tracing_subscriber::fmt().with_ansi(false);
            let emit = || {
                let span = tracing::info_span!("request", id = evil, shown = %evil);
                let error = Error::bad_model(evil);
                let error: &dyn std::error::Error = &error;
                tracing::info!(parent: &span, path = %evil, ?evil, error, "said {evil}");
                tracing::info!(message = evil, "request failed");
            };
            match format {
                LogFormat::Text => {
                    let builder = builder.with_writer(move || Tee(written.clone())).fmt_fields(PrintableFields);
                    tracing::subscriber::with_default(builder.finish(), emit);
                }
                LogFormat::Json => {
                    let builder = builder.json().with_writer(move || JsonWriter(Tee(written.clone())));
                    tracing::subscriber::with_default(builder.finish(), emit);
                }
            }
            let text = String::from_utf8(bytes.lock().expect("no panic while held").clone()).expect("UTF-8");
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
            match format {
                LogFormat::Text => {
                    let expected = [r"said a\u{1b}]0;pwned\u{7}\n2030", r"shown=a\u{1b}]0;"];
                    assert!(expected.iter().all(|e| text.contains(e)), "{text}");
                }
                LogFormat::Json => {
                    assert!(text.lines().all(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()), "{text}");
                }
            }
        }
    }

    struct Tee(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Tee {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic while held").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
