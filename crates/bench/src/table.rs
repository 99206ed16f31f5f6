//! A report as text for a terminal: right-aligned columns, units in the heads.

use std::fmt::Write;

use super::newcomer::NewcomerReport;
use super::percentiles::Percentiles;
use super::report::{LevelReport, Report, ServerReport};
use tallow_stream::excerpt;

/// The report as text.
pub fn to_text(report: &Report) -> String {
    let mut out = String::new();
    let load = &report.load;
    let ignore_eos = if load.ignore_eos { ", end ignored" } else { "" };
    let _ = writeln!(
        out,
        "{}, {}; prompts {}, output {} tokens{ignore_eos}; seed {}, {} warm-up",
        load.api, load.mode, load.prompts, load.output_tokens, load.seed, load.num_warmup
    );
    for server in &report.servers {
        let _ = write!(out, "\n{}  {}\n\n", server.url, excerpt(&server.model));
        out += &throughput(server).to_text();
        out.push('\n');
        out += &further_times(server).to_text();
        notes(server, &mut out);
    }
    if let [first, second] = report.servers.as_slice() {
        let _ = write!(out, "\nratios: {} / {}\n", first.url, second.url);
        out += "tok/s above 1 and times below 1: the first is faster\n\n";
        out += &ratios(report).to_text();
    }
    out
}

fn throughput(server: &ServerReport) -> Grid {
    let axis = server.levels.first().map_or("", |level| level.level.axis());
    let has_limits = server.levels.iter().any(|level| level.goodput.is_some());
    let mut grid = Grid::new(&[("", &[axis]), ("requests", &["ok", "failed"]), ("throughput", &["req/s", "tok/s"])]);
    if has_limits {
        grid.group("goodput", &["req/s", "%"]);
    }
    grid.group("TTFT, ms", &PERCENTILES);
    grid.group("ITL, ms", &PERCENTILES);
    for level in &server.levels {
        let ok = level.completed + level.cancelled;
        let mut row = vec![level.level.to_string(), ok.to_string(), level.failed.to_string()];
        // Answers that were all left, as in mode cancel, have no throughput.
        let rates = [level.requests_per_s, level.tokens_per_s];
        row.extend(rates.map(|rate| if level.completed > 0 { number(rate) } else { dash() }));
        if has_limits {
            row.push(level.goodput.map_or_else(dash, |g| number(g.requests_per_s)));
            row.push(level.goodput.map_or_else(dash, |g| format!("{:.0}", g.fraction * 100.0)));
        }
        row.extend(percentiles(Some(&level.ttft_ms)));
        row.extend(percentiles(Some(&level.itl_ms)));
        grid.rows.push(row);
    }
    grid
}

fn further_times(server: &ServerReport) -> Grid {
    let axis = server.levels.first().map_or("", |level| level.level.axis());
    let mut grid = Grid::new(&[("", &[axis]), ("TPOT, ms", &PERCENTILES), ("E2E, ms", &PERCENTILES)]);
    let has_waits = server.levels.iter().any(|level| level.queue_wait_ms.is_some());
    if has_waits {
        grid.group("queue wait, ms", &PERCENTILES);
    }
    for level in &server.levels {
        let mut row = vec![level.level.to_string()];
        row.extend(percentiles(Some(&level.tpot_ms)));
        row.extend(percentiles(Some(&level.e2e_ms)));
        if has_waits {
            row.extend(percentiles(level.queue_wait_ms.as_ref()));
        }
        grid.rows.push(row);
    }
    grid
}

/// What a table has no room for.
fn notes(server: &ServerReport, out: &mut String) {
    for level in &server.levels {
        for text in level_notes(level) {
            let _ = write!(out, "\n{}: {text}", level.level.label());
        }
    }
    if !server.levels.iter().any(|level| level.queue_wait_ms.is_some()) {
        out.push_str("\nqueue wait: not reported by this server");
    }
    out.push('\n');
}

fn newcomer_note(new: &NewcomerReport) -> String {
    let p99 = |times: &Percentiles| if times.count > 0 { number(times.p99) } else { dash() };
    let mut note = format!(
        "{} newcomers with {} prompt tokens in all, TTFT p50 {} ms; ITL p99 beside them {} ms, else {} ms",
        new.answered,
        new.prompt_tokens,
        number(new.ttft_ms.p50),
        p99(&new.itl_beside_ms),
        p99(&new.itl_quiet_ms)
    );
    if let Some(ratio) = new.itl_p99_ratio {
        let _ = write!(note, " = {ratio:.2} x");
    }
    if let Some(error) = &new.error {
        let _ = write!(note, "; the last failed: {}", excerpt(error));
    }
    note
}

/// What is special about a level, in sentences.
pub(crate) fn level_notes(level: &LevelReport) -> Vec<String> {
    let mut notes = Vec::new();
    for (kind, error) in &level.errors {
        notes.push(format!("{} failed, {kind}: {}", error.count, excerpt(&error.example)));
    }
    let tokens = level.tokens;
    if tokens.requests_without_usage > 0 {
        let n = tokens.requests_without_usage;
        notes.push(format!("{n} answers without usage: pieces of text were counted as tokens"));
    }
    if tokens.cached > 0 {
        notes.push(format!("{} of {} prompt tokens came from a cache", tokens.cached, tokens.prompt));
    }
    if level.held_arrivals > 0 {
        notes.push(format!("{} arrivals waited in the generator", level.held_arrivals));
    }
    if let Some(r) = level.resumed {
        notes.push(format!(
            "{} streams, {} cuts, {} events: {} lost, {} doubled, {} different, {} gaps",
            r.streams, r.cuts, r.events, r.lost, r.doubled, r.different, r.gaps
        ));
    }
    if let Some(left) = level.left.filter(|left| left.looked_up > 0) {
        notes.push(format!(
            "{} left: {} freed by the server after {} tokens in all, {} had finished, {} unknown",
            level.cancelled, left.freed, left.tokens, left.finished, left.unknown
        ));
    }
    if let Some(slow) = level.slow_readers {
        notes.push(format!(
            "{} slow readers beside it took {} bytes: {} had the whole answer, {} were ended before it",
            slow.readers, slow.bytes, slow.finished, slow.ended_early
        ));
    }
    notes.extend(level.newcomers.as_ref().map(newcomer_note));
    if let Some(probe) = &level.probe {
        let [p50, p90, p99] = probe.ms.shown().map(number);
        let answered = probe.ms.count;
        let last = probe.last_failure.iter().map(|last| format!(", the last with {last}")).collect::<String>();
        notes.push(format!("{} x {answered}: {p50} / {p90} / {p99} ms; {} failed{last}", probe.path, probe.failed));
    }
    notes
}

fn ratios(report: &Report) -> Grid {
    let axis = report.ratios.first().map_or("", |ratios| ratios.level.axis());
    let mut grid = Grid::new(&[("", &[axis, "tok/s"]), ("TTFT", &["p50", "p99"])]);
    grid.group("ITL", &["p50", "p99"]);
    grid.group("E2E", &["p50"]);
    for r in &report.ratios {
        let values = [r.tokens_per_s, r.ttft_p50, r.ttft_p99, r.itl_p50, r.itl_p99, r.e2e_p50];
        let values = values.into_iter().map(|v| v.map_or_else(dash, |v| format!("{v:.2}")));
        grid.rows.push(std::iter::once(r.level.to_string()).chain(values).collect());
    }
    grid
}

const PERCENTILES: [&str; 3] = ["p50", "p90", "p99"];

fn percentiles(times: Option<&Percentiles>) -> [String; 3] {
    match times.filter(|times| times.count > 0) {
        Some(times) => times.shown().map(number),
        None => [dash(), dash(), dash()],
    }
}

fn dash() -> String {
    "-".to_owned()
}

/// Three digits or more.
pub(crate) fn number(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// Columns in groups; the head has two rows.
struct Grid {
    /// Name and first column of each group.
    groups: Vec<(String, usize)>,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    fn new(groups: &[(&str, &[&str])]) -> Self {
        let mut grid = Self { groups: Vec::new(), columns: Vec::new(), rows: Vec::new() };
        groups.iter().for_each(|(name, columns)| grid.group(name, columns));
        grid
    }

    fn group(&mut self, name: &str, columns: &[&str]) {
        self.groups.push((name.to_owned(), self.columns.len()));
        self.columns.extend(columns.iter().map(|c| (*c).to_owned()));
    }

    /// A group is set apart by two more spaces, and its name ends where its last column does.
    fn to_text(&self) -> String {
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(at)).chain([&self.columns[at]]);
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(5)
        };
        let begins_group = |at: usize| at > 0 && self.groups.iter().any(|(_, first)| *first == at);
        let lead = |at: usize| {
            if at == 0 {
                0
            } else if begins_group(at) {
                4
            } else {
                2
            }
        };
        let mut head = String::new();
        for (i, (name, first)) in self.groups.iter().enumerate() {
            let end = self.groups.get(i + 1).map_or(self.columns.len(), |(_, next)| *next);
            let group_width: usize = (*first..end).map(|at| lead(at) + width(at)).sum();
            let _ = write!(head, "{name:>group_width$}");
        }
        let mut out = format!("{}\n", head.trim_end());
        for row in std::iter::once(&self.columns).chain(&self.rows) {
            for (at, cell) in row.iter().enumerate() {
                let _ = write!(out, "{:lead$}{cell:>width$}", "", lead = lead(at), width = width(at));
            }
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_under_their_groups() {
        let mut grid = Grid::new(&[("", &["level"]), ("times, ms", &["p50", "p99"])]);
        grid.rows.push(vec!["1".into(), "0.12".into(), "123456".into()]);
        let expect = "            times, ms\nlevel      p50     p99\n    1     0.12  123456\n";
        assert_eq!(grid.to_text(), expect.replace("            times", "             times"));
    }

    #[test]
    fn numbers_have_three_digits() {
        let cases =
            [(0.0, "0.00"), (9.99, "9.99"), (9.999, "10.0"), (99.94, "99.9"), (99.96, "100"), (12345.6, "12346")];
        for (value, expect) in cases {
            assert_eq!(number(value), expect);
        }
    }
}
