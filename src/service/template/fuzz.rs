//! Random templates of the constructs that cost something: loops within loops, strings that double, filters over lists,
//! macros that call each other. Whatever the template, rendering ends within its bounds of output and of work.
//!
//! `TALLOW_FUZZ_CASES` sets the number of cases (a hundredth of it); a failure prints the template.

use std::time::{Duration, Instant};

use super::*;
use crate::sampling::random_u64;

const CASES_DEFAULT: u64 = 500;
const SEED: u64 = 15;
/// P15 asks for 100 ms with optimisation and a free machine; here either may be missing, and what this is to find takes
/// minutes.
const TIME_MAX: Duration = Duration::from_secs(5);

struct Random {
    position: u64,
}

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.position += 1;
        random_u64(SEED, self.position) % n
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len() as u64) as usize]
    }
}

/// One that is a text, or now and then anything: templates whose types do not fit end at once and cost nothing.
fn text(r: &mut Random, depth: u64) -> String {
    if depth == 0 {
        return r.of(&["'ab'", "messages[0].content", "x", "'a' * 1000", "messages | tojson"]).to_owned();
    }
    let (a, b) = (text(r, depth - 1), text(r, depth - 1));
    match r.below(8) {
        0 | 1 => format!("({a} ~ {b})"),
        2 => format!("({a}) * {}", r.of(&["3", "1000", "1000000", "10 ** 9"])),
        3 | 4 => format!(
            "({a}) | {}",
            r.of(&["tojson", "upper", "string", "trim", "replace('a', 'bb')", "list | join('-')"])
        ),
        5 => format!("({a} if {b} else x)"),
        6 => format!("({}) | tojson", list(r, depth - 1)),
        _ => format!("({a}) + {}", r.of(&["7", "'b'", "none", "[1]"])),
    }
}

fn list(r: &mut Random, depth: u64) -> String {
    if depth == 0 {
        return r.of(&["messages", "range(1000)", "[1, 2, 3]"]).to_owned();
    }
    match r.below(3) {
        0 => format!("[{}, {}]", text(r, depth - 1), list(r, depth - 1)),
        1 => format!("({}) | list", text(r, depth - 1)),
        _ => format!("({}) | list | reverse | list", list(r, depth - 1)),
    }
}

fn statement(r: &mut Random, depth: u64) -> String {
    let height = 1 + r.below(2);
    let (value, all) = (text(r, height), list(r, height));
    if depth == 0 {
        return format!("{{{{ {value} }}}}");
    }
    let inner: String = (0..1 + r.below(2)).map(|_| statement(r, depth - 1)).collect();
    match r.below(6) {
        0 | 1 => format!("{{% for y in {all} %}}{inner}{{% endfor %}}"),
        2 => format!("{{% for m in range({}) %}}{inner}{{% endfor %}}", r.of(&["10", "1000", "100000"])),
        3 => format!("{{% set x = {value} ~ {value} %}}{inner}"),
        4 => format!("{{% macro f(x) %}}{inner}{{{{ f(x) }}}}{{% endmacro %}}{{{{ f({value}) }}}}"),
        _ => format!("{{% if {value} %}}{inner}{{% endif %}}"),
    }
}

#[test]
fn random_templates_end_within_their_bounds() {
    let cases = std::env::var("TALLOW_FUZZ_CASES").ok().and_then(|n| n.parse::<u64>().ok());
    let cases = cases.map_or(CASES_DEFAULT, |n| n.div_ceil(100));
    let chat = vec![ChatMessage::new("user", "Hi!"), ChatMessage::new("assistant", "long ".repeat(200))];
    let (mut num_rendered, mut num_refused) = (0, 0);
    for case in 0..cases {
        let mut r = Random { position: case << 16 };
        let depth = 1 + r.below(4);
        let source = format!("{{% set x = 'x' %}}{}", statement(&mut r, depth));
        let began = Instant::now();
        match ChatTemplate::new(&source, "", "").and_then(|template| template.render(&chat, true)) {
            Ok(text) => {
                num_rendered += 1;
                assert!(text.len() <= OUTPUT_BYTES_MAX, "case {case}: {} bytes of {source}", text.len());
            }
            Err(e) => {
                num_refused += 1;
                assert!(e.message().len() > 7, "case {case}: {e} of {source}");
            }
        }
        assert!(began.elapsed() < TIME_MAX, "case {case}: {:?} for {source}", began.elapsed());
    }
    assert!(num_rendered > cases / 10 && num_refused > cases / 10, "{num_rendered} rendered, {num_refused} refused");
}
