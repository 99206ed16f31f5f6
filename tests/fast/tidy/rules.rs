//! Rules about single files: sizes, `unsafe`, channels, leftovers, and what may be named in the tree.

use std::ops::Range;

use crate::tidy::Finding;
use crate::tidy::source::{Source, is_test_file};

/// A longer file is a smell: most have two ideas in them. One that has a single idea stands in [`LONG_FILES`], since a file that
/// exists because its neighbour was full is worse.
const FILE_LINES_WANTED: usize = 500;
/// No idea is longer.
const FILE_LINES_MAX: usize = 700;
/// Files with more than the wanted lines, each with the reason why it is not cut.
pub(crate) const LONG_FILES: &[(&str, &str)] = &[
    ("crates/stream/src/log.rs", "one log: what is appended, who may see it and how it ends, under one lock"),
    ("tests/fast/simulation/world.rs", "the simulated world and what must hold after each of its steps"),
];
const FUNCTION_LINES_MAX: usize = 70;

pub(crate) fn opens_with_docs(source: &Source) -> Vec<Finding> {
    let first = source.text.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
    if first.starts_with("//!") || first.starts_with("#![doc") {
        return Vec::new();
    }
    vec![Finding::new(source, 0, "must open with `//!`: what it is and what it must not know".to_owned())]
}

pub(crate) fn file_is_short(source: &Source) -> Vec<Finding> {
    let num_lines = source.text.lines().count();
    let is_listed = LONG_FILES.iter().any(|(path, _)| *path == source.path);
    let finding = |what: String| vec![Finding::new(source, 0, what)];
    if num_lines > FILE_LINES_MAX {
        return finding(format!("{num_lines} lines; at most {FILE_LINES_MAX} fit in a head"));
    }
    match (num_lines > FILE_LINES_WANTED, is_listed) {
        (true, false) => finding(format!("{num_lines} lines: cut it by ideas, or say in LONG_FILES why it has one")),
        (false, true) => finding(format!("{num_lines} lines are no more than {FILE_LINES_WANTED}: not for LONG_FILES")),
        (true, true) | (false, false) => Vec::new(),
    }
}

pub(crate) fn functions_are_short(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for at in source.words("fn") {
        // `fn(u32) -> u32` is a type.
        if !source.code[at + 2..].trim_start().starts_with(|c: char| c.is_alphabetic() || c == '_') {
            continue;
        }
        let Some(block) = source.block_after(at) else { continue };
        let num_lines = source.line_of(block.end - 1) - source.line_of(at) + 1;
        if num_lines > FUNCTION_LINES_MAX {
            findings.push(Finding::new(
                source,
                at,
                format!("a function of {num_lines} lines; at most {FUNCTION_LINES_MAX}"),
            ));
        }
    }
    findings
}

/// `unsafe` lives in kernels/, and in one function of model/gguf that maps a file (counted over all its files).
pub(crate) fn unsafe_has_a_home(source: &Source) -> Vec<Finding> {
    if source.path.starts_with("crates/kernels/") || source.path.starts_with("crates/model/src/gguf/") {
        return Vec::new();
    }
    let hits = source.words("unsafe");
    hits.map(|at| Finding::new(source, at, "`unsafe` outside kernels/ and the mapping of a file")).collect()
}

pub(crate) fn one_unsafe_block_maps_files(sources: &[Source]) -> Vec<Finding> {
    let gguf = sources.iter().filter(|s| s.path.starts_with("crates/model/src/gguf/"));
    let blocks: Vec<Finding> =
        gguf.flat_map(|s| s.words("unsafe").map(|at| Finding::new(s, at, "a second `unsafe` in model/gguf"))).collect();
    blocks.into_iter().skip(1).collect()
}

/// Each `unsafe` block or impl stands under (or behind) a `// SAFETY:` comment; or in a block for which one comment
/// that begins with `// SAFETY of` speaks: the block around it, or at the top level the one after it.
pub(crate) fn unsafe_says_why(source: &Source) -> Vec<Finding> {
    let lines: Vec<&str> = source.text.lines().collect();
    let spoken_for: Vec<Range<usize>> = source
        .text
        .match_indices("// SAFETY of ")
        .filter_map(|(at, _)| {
            let block = source.block_around(at).or_else(|| source.block_after(at))?;
            Some(at..block.end)
        })
        .collect();
    let mut findings = Vec::new();
    for at in source.words("unsafe") {
        let next = source.code[at + "unsafe".len()..].trim_start();
        let wants_reason = next.starts_with('{') || next.starts_with("impl");
        let is_spoken_for = spoken_for.iter().any(|range| range.contains(&at));
        if wants_reason && !is_spoken_for && !has_reason(&lines, source.line_of(at) - 1) {
            findings.push(Finding::new(source, at, "`unsafe` without a `// SAFETY:` comment above it"));
        }
    }
    findings
}

/// Walks up from the line of `unsafe` over comments, attributes and the earlier lines of the same statement.
fn has_reason(lines: &[&str], line: usize) -> bool {
    if lines[line].contains("// SAFETY:") {
        return true;
    }
    for text in lines[..line].iter().rev().map(|text| text.trim()) {
        if text.starts_with("//") && text.contains("SAFETY:") {
            return true;
        }
        let goes_on = text.starts_with("//") || text.starts_with("#[");
        let ends_statement = text.is_empty() || text.ends_with([';', '{', '}', ',']);
        if !goes_on && ends_statement {
            return false;
        }
    }
    false
}

/// Every channel has a bound, except in tests.
pub(crate) fn channels_are_bounded(source: &Source) -> Vec<Finding> {
    if is_test_file(&source.path) {
        return Vec::new();
    }
    let source = &Source { path: source.path.clone(), text: source.text.clone(), code: source.without_tests() };
    let mut findings = Vec::new();
    let mut find =
        |at, what: &str| findings.push(Finding::new(source, at, format!("`{what}`: every channel has a bound")));
    for name in ["unbounded", "unbounded_channel", "UnboundedSender", "UnboundedReceiver", "LinkedList"] {
        source.words(name).for_each(|at| find(at, name));
    }
    for at in source.words("channel") {
        let rest = &source.code[at + "channel".len()..];
        let call = match rest.strip_prefix("::<") {
            Some(types) => types.split_once(">(").map_or("", |(_, call)| call),
            None => rest.strip_prefix('(').unwrap_or("-"),
        };
        // A oneshot channel is called without a bound too, and holds one message.
        let is_oneshot = source.code[..at].trim_end().ends_with("oneshot::");
        if call.trim_start().starts_with(')') && !is_oneshot {
            find(at, "channel()");
        }
    }
    findings
}

/// A function that is named as a question changes nothing: its reader would not look for a change there.
pub(crate) fn questions_change_nothing(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for at in source.words("fn") {
        let rest = source.code[at + "fn".len()..].trim_start();
        let Some((name, parameters)) = rest.split_once('(') else { continue };
        let is_question = name.starts_with("is_") || name.starts_with("has_");
        let receiver = parameters.split([',', ')']).next().unwrap_or("").trim();
        if is_question && receiver.starts_with('&') && receiver.ends_with("mut self") {
            findings.push(Finding::new(source, at, format!("`{name}` asks and changes: name what it does")));
        }
    }
    findings
}

/// Nothing half-done.
pub(crate) fn nothing_is_left_over(source: &Source) -> Vec<Finding> {
    let macros = ["todo!", "unimplemented!", "dbg!"].into_iter().flat_map(|word| source.words(word));
    let ignored = source.code.match_indices("#[ignore").map(|(at, _)| at);
    macros.chain(ignored).map(|at| Finding::new(source, at, "left over from building")).collect()
}

/// What ARCHITECTURE.md names in backticks and looks like a file or a folder of the tree is there: by its whole path,
/// below `src/`, below its crate's `src/`, or, as the rest of a list, by its last part alone.
pub(crate) fn named_paths_exist(text: &str, paths: &[String]) -> Vec<String> {
    let is_there = |name: &str| {
        let in_crate = name.split_once('/').map(|(krate, rest)| format!("crates/{krate}/src/{rest}"));
        let places = [Some(name.to_owned()), Some(format!("src/{name}")), in_crate];
        let is_below = |path: &String, place: &str| path == place || (place.ends_with('/') && path.starts_with(place));
        let is_end = |path: &String| !name.contains('/') && path.ends_with(&format!("/{name}"));
        paths.iter().any(|path| places.iter().flatten().any(|place| is_below(path, place)) || is_end(path))
    };
    let is_path = |name: &&str| {
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        plain && !name.starts_with('/') && (name.ends_with(".rs") || name.ends_with('/'))
    };
    let names = text.split('`').skip(1).step_by(2).filter(is_path).filter(|name| !is_there(name));
    names.map(|name| format!("{name}: named, and not there")).collect()
}

/// What may stand at the top of the tree.
const TOP_LEVEL: &[&str] = &[
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "benches",
    "crates",
    "deny.toml",
    "docs",
    "models",
    "rustfmt.toml",
    "src",
    "tests",
    "web",
];

pub(crate) fn top_level_is_known(paths: &[String]) -> Vec<String> {
    let mut names: Vec<&str> = paths.iter().map(|path| path.split('/').next().unwrap_or(path)).collect();
    names.dedup();
    names.retain(|name| !TOP_LEVEL.contains(name));
    names.iter().map(|name| format!("{name}: not a file or folder of the top level")).collect()
}

/// Hosts that a tracked file may name: standards, the forge and the hub, and names reserved for examples.
const HOSTS: &[&str] = &[
    "127.0.0.1",
    "0.0.0.0",
    "[::1]",
    "[::]",
    "localhost",
    "arxiv.org",
    "datatracker.ietf.org",
    "doc.rust-lang.org",
    "docs.rs",
    "example.com",
    "github.com",
    "html.spec.whatwg.org",
    "huggingface.co",
    "json-schema.org",
    "keepachangelog.com",
    "semver.org",
    "unicode.org",
    "www.apache.org",
    "www.rfc-editor.org",
    "www.unicode.org",
    "www.w3.org",
];

pub(crate) fn hosts_are_public(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (at, scheme) in text.match_indices("://") {
        let before = &text[..at];
        if !before.ends_with("http") && !before.ends_with("https") {
            continue;
        }
        let rest = &text[at + scheme.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || ".-[]:".contains(c))).unwrap_or(rest.len());
        let host = rest[..end].trim_end_matches(['.', ':']);
        let host = match host.find(']') {
            Some(end) => &host[..=end],
            None => host.split(':').next().unwrap_or(host),
        };
        // Format strings (`http://{address}`) and shell variables have no host to check.
        let reserved = [".test", ".example", ".invalid", ".localhost"].iter().any(|tld| host.ends_with(tld));
        if host.contains(['.', ':']) && !reserved && !HOSTS.contains(&host) {
            findings.push(format!("{path}: names the host {host}"));
        }
    }
    findings
}

/// Folders that exist on somebody's machine only. Spelled in halves, as this file is checked too.
const MACHINE_PATHS: &[(&str, &str)] =
    &[("/ro", "ot/"), ("/ho", "me/"), ("/Us", "ers/"), ("/wo", "rk/"), ("/tmp", "/wt/"), ("C:\\", "Users")];

pub(crate) fn paths_are_relative(path: &str, text: &str) -> Vec<String> {
    let needles = MACHINE_PATHS.iter().map(|(a, b)| format!("{a}{b}"));
    let is_path = |needle: &str| {
        text.match_indices(needle).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            // `network/` and URLs hold the same letters.
            !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | '}' | ')'))
        })
    };
    needles.filter(|needle| is_path(needle)).map(|needle| format!("{path}: names the machine path {needle}")).collect()
}
