//! The tables of `docs/` against what they show. Each is between two marks; `TALLOW_DOCS=write` writes it anew.

use std::fmt::Write as _;

use tallow::api::openapi::field_table;
use tallow::config::SETTINGS;
use tallow::metrics::Metrics;
use tallow::settings::{Kind, Setting, Unit};

#[track_caller]
fn check(file: &str, name: &str, table: &str) {
    let path = format!("{}/docs/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
    let (before, rest) = text.split_once(&begin).expect("a mark where the table begins");
    let (found, after) = rest.split_once(&end).expect("a mark where the table ends");
    if std::env::var("TALLOW_DOCS").is_ok_and(|v| v == "write") {
        std::fs::write(path, [before, &begin, table, &end, after].concat()).unwrap();
    } else {
        assert!(found == table, "docs/{file} is behind: run this test with TALLOW_DOCS=write");
    }
}

#[test]
fn every_field_of_a_request_is_documented() {
    check("api.md", "fields", &field_table());
}

#[test]
fn every_metric_is_documented() {
    let text = Metrics::default().render();
    let mut rows: Vec<String> = Vec::new();
    for lines in text.lines().collect::<Vec<_>>().windows(2) {
        let (help, kind) = (lines[0].strip_prefix("# HELP "), lines[1].strip_prefix("# TYPE "));
        if let (Some((name, help)), Some((_, kind))) =
            (help.and_then(|h| h.split_once(' ')), kind.and_then(|k| k.split_once(' ')))
        {
            // A counter's sample is its name and `_total`.
            let suffix = if kind == "counter" { "_total" } else { "" };
            let is_by_model = Metrics::BY_MODEL.iter().any(|field| name.strip_prefix("tallow_") == Some(field));
            let label = if is_by_model { "`model`" } else { "" };
            rows.push(format!("| `{name}{suffix}` | {kind} | {label} | {} |\n", help.trim_end_matches('.')));
        }
    }
    let num_helps = text.lines().filter(|line| line.starts_with("# HELP ")).count();
    assert!(rows.len() == num_helps && num_helps > 30, "{} rows of {num_helps}", rows.len());
    rows.sort();
    let head = "| metric | type | of each | |\n|---|---|---|---|\n".to_owned();
    check("metrics.md", "metrics", &(head + &rows.concat()));
}

#[test]
fn every_setting_is_documented() {
    let mut table = "| flag | key in the file | default | |\n|---|---|---|---|\n".to_owned();
    for (setting, default) in SETTINGS.iter() {
        let Setting { key, flag, kind, .. } = setting;
        let default = match (setting.typed(default).as_str(), kind) {
            ("", _) => "none".to_owned(),
            (ms, Kind::Number { unit: Unit::Millis, .. }) => format!("{ms} ms"),
            (text, _) => format!("`{text}`"),
        };
        writeln!(table, "| `--{flag}` | `{key}` | {default} | {} |", setting.help()).unwrap();
    }
    check("settings.md", "settings", &table);
}
