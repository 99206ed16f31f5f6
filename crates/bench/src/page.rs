//! A report as one HTML page that needs nothing else: styles within, charts as SVG, no script.

use std::fmt::Write;

use super::percentiles::Percentiles;
use super::plot::{Chart, Series, XAxis, YAxis, escape};
use super::report::{LevelReport, Report};
use super::table::{level_notes, number};

const STYLE: &str = include_str!("page.css");

/// Picks a distribution of a level.
type Pick = fn(&LevelReport) -> &Percentiles;

/// The times of which there are charts and columns.
const TIMES: [(&str, &str, Pick); 4] = [
    ("TTFT", "time to the first token", |l| &l.ttft_ms),
    ("ITL", "time between pieces of text", |l| &l.itl_ms),
    ("TPOT", "time per further token", |l| &l.tpot_ms),
    ("E2E", "time to the end of the answer", |l| &l.e2e_ms),
];

/// The page.
pub fn to_html(report: &Report) -> String {
    let mut body = head(report);
    body.push_str("<section class=\"charts\">");
    figure(&mut body, "Throughput", &throughput(report));
    for (name, what, pick) in &TIMES[..2] {
        figure(&mut body, &format!("{name}: {what}"), &percentiles(report, *pick));
    }
    for (name, _, pick) in [TIMES[0], TIMES[1], TIMES[3]] {
        figure(&mut body, &format!("Distribution of {name}"), &distribution(report, pick));
    }
    body.push_str("</section>");
    body += &ratios(report);
    for server in &report.servers {
        let _ = write!(body, "<h2>{} <small>{}</small></h2>", escape(&server.url), escape(&server.model));
        body += &table(&server.levels);
        body += &notes(&server.levels);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>tallow bench</title><style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )
}

fn head(report: &Report) -> String {
    let load = &report.load;
    let servers: Vec<String> =
        report.servers.iter().map(|s| format!("{} ({})", escape(&s.url), escape(&s.model))).collect();
    let mut facts = vec![
        ("Server", servers.join("<br>")),
        ("Requests", format!("{}, {}", load.api, load.mode)),
        ("Prompts", load.prompts.clone()),
        ("Output", format!("{} tokens{}", load.output_tokens, if load.ignore_eos { ", end ignored" } else { "" })),
        ("Seed, warm-up", format!("{}, {} requests", load.seed, load.num_warmup)),
        ("Began", format!("{} UTC", utc(report.began_unix_s))),
    ];
    let limits = [("TTFT", load.slo.ttft_ms), ("TPOT", load.slo.tpot_ms)];
    let limits: Vec<String> = limits.iter().filter_map(|(n, l)| l.map(|l| format!("{n} ≤ {l} ms"))).collect();
    if !limits.is_empty() {
        facts.push(("Goodput", limits.join(", ")));
    }
    let mut out = String::from("<h1>tallow bench</h1><dl>");
    for (name, text) in facts {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{text}</dd></div>");
    }
    out + "</dl>"
}

fn figure(body: &mut String, title: &str, chart: &Chart) {
    if let Some(drawn) = chart.to_html() {
        let _ = write!(body, "<figure><figcaption>{}</figcaption>{drawn}</figure>", escape(title));
    }
}

fn level_axis(report: &Report) -> (String, XAxis) {
    let levels = report.servers.first().map_or(&[][..], |server| &server.levels);
    let names = levels.iter().map(|level| level.level.to_string()).collect();
    (levels.first().map_or("", |level| level.level.axis()).to_owned(), XAxis::Places(names))
}

/// Whose lines are whole and whose are dashed, if there are two servers.
fn lines(report: &Report) -> Vec<String> {
    match report.servers.as_slice() {
        [first, second] => vec![first.url.clone(), second.url.clone()],
        _ => Vec::new(),
    }
}

fn throughput(report: &Report) -> Chart {
    let (x_label, x) = level_axis(report);
    let series = report.servers.iter().enumerate().map(|(at, server)| {
        let rates = server.levels.iter().enumerate().map(|(i, level)| (i as f64, level.tokens_per_s));
        Series { name: server.url.clone(), colour: at, is_dashed: false, points: rates.collect() }
    });
    Chart {
        x_label,
        y_label: "tokens per second".to_owned(),
        x,
        y: YAxis::FromZero,
        series: series.collect(),
        lines: Vec::new(),
    }
}

fn percentiles(report: &Report, pick: Pick) -> Chart {
    let (x_label, x) = level_axis(report);
    let mut series = Vec::new();
    for (at, server) in report.servers.iter().enumerate() {
        for (colour, name) in ["p50", "p90", "p99"].into_iter().enumerate() {
            let levels = server.levels.iter().enumerate().filter(|(_, level)| pick(level).count > 0);
            let points = levels.map(|(i, level)| (i as f64, pick(level).shown()[colour])).collect();
            series.push(Series { name: name.to_owned(), colour, is_dashed: at > 0, points });
        }
    }
    Chart { x_label, y_label: "milliseconds".to_owned(), x, y: YAxis::FromZero, series, lines: lines(report) }
}

fn distribution(report: &Report, pick: Pick) -> Chart {
    let mut series = Vec::new();
    for (at, server) in report.servers.iter().enumerate() {
        for (colour, level) in server.levels.iter().enumerate() {
            let name = level.level.label();
            let times = pick(level);
            let mut points = times.cdf.clone();
            if let Some((first, _)) = points.first().copied() {
                points.insert(0, (first, 0.0));
            }
            series.push(Series { name, colour, is_dashed: at > 0, points });
        }
    }
    let (x_label, y_label) = ("milliseconds".to_owned(), "requests or gaps within".to_owned());
    Chart { x_label, y_label, x: XAxis::Log, y: YAxis::Percent, series, lines: lines(report) }
}

fn table(levels: &[LevelReport]) -> String {
    let axis = levels.first().map_or("", |level| level.level.axis());
    let mut out = format!(
        "<div class=\"scroll\"><table><thead><tr><th rowspan=\"2\">{axis}</th><th colspan=\"2\">requests</th><th \
         rowspan=\"2\">req/s</th><th rowspan=\"2\">tok/s</th>"
    );
    let has_limits = levels.iter().any(|level| level.goodput.is_some());
    if has_limits {
        out.push_str("<th colspan=\"2\">goodput</th>");
    }
    for (name, _, _) in TIMES {
        let _ = write!(out, "<th colspan=\"3\">{name}, ms</th>");
    }
    out.push_str("<th colspan=\"3\">queue wait, ms</th></tr><tr><th>ok</th><th>failed</th>");
    out.push_str(if has_limits { "<th>req/s</th><th>%</th>" } else { "" });
    out.push_str(&"<th>p50</th><th>p90</th><th>p99</th>".repeat(TIMES.len() + 1));
    out.push_str("</tr></thead><tbody>");
    for level in levels {
        let mut cells = vec![
            level.level.to_string(),
            (level.completed + level.cancelled).to_string(),
            level.failed.to_string(),
            number(level.requests_per_s),
            number(level.tokens_per_s),
        ];
        if let Some(good) = level.goodput {
            cells.extend([number(good.requests_per_s), format!("{:.0}", good.fraction * 100.0)]);
        }
        let times = TIMES.iter().map(|(_, _, pick)| Some(pick(level))).chain([level.queue_wait_ms.as_ref()]);
        for times in times.map(|times| times.filter(|times| times.count > 0)) {
            cells.extend(match times {
                Some(t) => t.shown().map(number),
                None => std::array::from_fn(|_| "–".to_owned()),
            });
        }
        let _ = write!(out, "<tr><td>{}</td></tr>", cells.join("</td><td>"));
    }
    out + "</tbody></table></div>"
}

fn notes(levels: &[LevelReport]) -> String {
    let mut out = String::new();
    for level in levels {
        for note in level_notes(level) {
            let _ = write!(out, "<li>{}: {}</li>", level.level.label(), escape(&note));
        }
    }
    if out.is_empty() { out } else { format!("<ul>{out}</ul>") }
}

fn ratios(report: &Report) -> String {
    let [first, second] = report.servers.as_slice() else { return String::new() };
    let mut out = format!(
        "<h2>Ratios <small>{} / {}</small></h2><p>tok/s above 1 and times below 1: the first is faster.</p><div \
         class=\"scroll\"><table><thead><tr>",
        escape(&first.url),
        escape(&second.url)
    );
    let axis = report.ratios.first().map_or("", |r| r.level.axis());
    for name in [axis, "tok/s", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "E2E p50"] {
        let _ = write!(out, "<th>{name}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for r in &report.ratios {
        let _ = write!(out, "<tr><td>{}</td>", r.level);
        for value in [r.tokens_per_s, r.ttft_p50, r.ttft_p99, r.itl_p50, r.itl_p99, r.e2e_p50] {
            let _ = write!(out, "<td>{}</td>", value.map_or_else(|| "–".to_owned(), |v| format!("{v:.2}")));
        }
        out.push_str("</tr>");
    }
    out + "</tbody></table></div>"
}

/// `2026-01-31 23:59` of seconds since the epoch. Days to a date after Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`.
fn utc(unix_s: u64) -> String {
    let (days, seconds) = (unix_s / 86_400 + 719_468, unix_s % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", seconds / 3600, seconds / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [(0, "1970-01-01 00:00"), (951_868_799, "2000-02-29 23:59"), (1_735_689_600, "2025-01-01 00:00")];
        for (seconds, expect) in cases {
            assert_eq!(utc(seconds), expect);
        }
    }
}
