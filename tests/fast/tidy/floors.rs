//! The floors: who may import whom, and which words belong to one room only.

use crate::tidy::Finding;
use crate::tidy::source::{Source, is_test_file};

/// Rooms from the ground up; the tens are the floors of ARCHITECTURE.md, the units order what shares one.
pub(crate) const FLOORS: &[(&str, u32)] = &[
    ("error", 0),
    ("settings", 1),
    ("protocol", 2),
    ("kernels", 10),
    ("stream", 10),
    ("text", 20),
    ("hub", 21),
    ("model", 21),
    ("threads", 30),
    ("metrics", 30),
    ("cache", 31),
    ("sampling", 31),
    ("engine", 40),
    ("service", 50),
    ("api", 60),
    ("cluster", 60),
    ("telemetry", 70),
    ("config", 71),
    ("client", 71),
    ("bench", 72),
    ("cli", 73),
    ("main", 79),
];

/// Rooms within crates; a crate's other files are the room of its name.
const ROOMS_IN_CRATES: &[(&str, &[&str])] = &[
    ("stream", &["error", "protocol", "settings"]),
    ("model", &["text"]),
    ("engine", &["cache", "metrics", "sampling", "threads"]),
    ("bench", &["client"]),
];

/// Words that only one room may use, and why.
const ROOM_WORDS: &[(&str, &[&str], &str)] = &[
    ("axum", &["api"], "only api/ knows the HTTP framework"),
    ("tower", &["api"], "only api/ knows the HTTP framework"),
    ("tower_http", &["api"], "only api/ knows the HTTP framework"),
    ("hyper", &["api"], "only api/ knows the HTTP framework"),
    ("hyper_util", &["api"], "only api/ knows the HTTP framework"),
    ("socket2", &["api"], "only api/ tunes sockets"),
    ("async_nats", &["cluster"], "only cluster/ knows NATS"),
    ("reqwest", &["client", "bench"], "only the client calls servers over HTTP"),
    ("anyhow", &["main", "cli", "bench"], "anyhow is for main, cli and bench"),
    ("rayon", &[], "compute threads are ours"),
];

/// Spellings of the dialects' JSON. They stand in literals, so they are looked for in the text.
const DIALECT_TEXTS: &[&str] = &[
    "\"chat.completion",
    "\"text_completion",
    "\"response.created",
    "\"response.output",
    "\"message_start",
    "\"content_block",
    "\"[DONE]",
];

/// The room of a file: its first folder, or its own name; in a crate, the crate or one of its rooms.
pub(crate) fn room(path: &str) -> Option<&str> {
    let (krate, inside) = match path.strip_prefix("crates/") {
        Some(path) => path.split_once("/src/").map(|(krate, inside)| (Some(krate), inside))?,
        None => (None, path.strip_prefix("src/")?),
    };
    let first = inside.split('/').next()?;
    let room = first.strip_suffix(".rs").unwrap_or(first);
    match krate {
        Some(krate) if !has_room(krate, room) => Some(krate),
        _ => Some(room).filter(|room| *room != "lib"),
    }
}

fn has_room(krate: &str, room: &str) -> bool {
    ROOMS_IN_CRATES.iter().any(|(name, rooms)| *name == krate && rooms.contains(&room))
}

fn floor(room: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

/// Imports go down, or stay in the folder.
pub(crate) fn imports_go_down(source: &Source) -> Vec<Finding> {
    let Some(room) = room(&source.path) else { return Vec::new() };
    let Some(own) = floor(room) else {
        return vec![Finding::new(source, 0, format!("`{room}` has no floor; give it one in tests/tidy/floors.rs"))];
    };
    let mut findings = Vec::new();
    let prefix = if room == "main" { "tallow::" } else { "crate::" };
    for at in source.words(prefix) {
        let krate = source.path.strip_prefix("crates/").and_then(|path| path.split('/').next());
        for (offset, name) in first_segments(source, at + prefix.len()) {
            match floor(name) {
                // What a crate has beside its rooms is the crate's own; what it takes from others is in its manifest.
                _ if krate.is_some_and(|krate| krate == room && !has_room(krate, name)) => {}
                _ if name == room => {}
                Some(theirs) if theirs < own => {}
                Some(_) => {
                    findings.push(Finding::new(
                        source,
                        offset,
                        format!("`{room}` may not import `{name}`: not below it"),
                    ));
                }
                // Macros and items at the crate's root would be a way around the floors; there are none.
                None => findings.push(Finding::new(source, offset, format!("`{name}` has no floor"))),
            }
        }
    }
    findings.extend(supers_stay_inside(source));
    findings
}

/// Dependencies in a crate's manifest that are not below it. Its tests may use any.
pub(crate) fn dependencies_go_down(own: &str, manifest: &str) -> Vec<String> {
    let manifest = manifest.split("[dev-dependencies]").next().unwrap_or("");
    let others = manifest.lines().filter_map(|line| line.strip_prefix("tallow-")?.split_once([' ', '.', '=']));
    let above = others.map(|(other, _)| other).filter(|other| floor(other) >= floor(own));
    above.map(|other| format!("crate `{own}` may not depend on `{other}`: not below it")).collect()
}

/// The module names right after `crate::`: one, or each of a brace group.
fn first_segments(source: &Source, from: usize) -> Vec<(usize, &str)> {
    let code = &source.code;
    if !code[from..].starts_with('{') {
        let name = identifier(&code[from..]);
        return if name.is_empty() { Vec::new() } else { vec![(from, name)] };
    }
    let Some(block) = source.block_after(from) else { return Vec::new() };
    let mut names = Vec::new();
    let (mut depth, mut expects) = (0, true);
    for (i, byte) in code.bytes().enumerate().take(block.end).skip(block.start) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 1 => expects = true,
            b if depth == 1 && expects && !b.is_ascii_whitespace() => {
                expects = false;
                names.push((i, identifier(&code[i..])));
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}

/// `super::` may not climb out of the room, where it would be an import that nobody counts.
fn supers_stay_inside(source: &Source) -> Vec<Finding> {
    let inner = source.inline_modules();
    // The compiler sees to it that nothing leaves a crate.
    if source.path.starts_with("crates/") {
        return Vec::new();
    }
    let folders = source.path.trim_end_matches("/mod.rs").matches('/').count();
    let mut findings = Vec::new();
    let mut covered = 0;
    for at in source.words("super::") {
        if at < covered {
            continue;
        }
        let steps = source.code[at..].split("super::").skip(1).take_while(|part| part.is_empty()).count() + 1;
        covered = at + steps * "super::".len();
        let depth = folders + inner.iter().filter(|block| block.contains(&at)).count();
        if steps >= depth {
            findings.push(Finding::new(source, at, "`super` leaves the room; say `crate::tidy::room` instead"));
        }
    }
    findings
}

/// Frameworks and dialects stay in their rooms.
pub(crate) fn words_stay_in_their_rooms(source: &Source) -> Vec<Finding> {
    let Some(room) = room(&source.path) else { return Vec::new() };
    let mut findings = Vec::new();
    for (word, rooms, why) in ROOM_WORDS.iter().filter(|(_, rooms, _)| !rooms.contains(&room)) {
        let _ = rooms;
        findings.extend(source.words(word).map(|at| Finding::new(source, at, format!("`{word}`: {why}"))));
    }
    // Client and bench read what the wire writes; they may know the end mark.
    let reads_wire = matches!(room, "client" | "bench");
    let texts = DIALECT_TEXTS.iter().filter(|text| room != "api" && !(reads_wire && **text == "\"[DONE]"));
    for text in texts.filter(|_| !is_test_file(&source.path)) {
        let hits = source.text.match_indices(text).map(|(at, _)| at);
        findings.extend(hits.map(|at| Finding::new(source, at, "only api/ knows the dialects' JSON")));
    }
    findings
}

/// Below the service nothing is async, except that a reader of a stream can wait. Tests may be.
pub(crate) fn no_async_below_the_service(source: &Source) -> Vec<Finding> {
    let Some(room) = room(&source.path).filter(|room| *room != "stream") else { return Vec::new() };
    if is_test_file(&source.path) || floor(room).is_none_or(|floor| floor >= 50) {
        return Vec::new();
    }
    let plain = Source { path: source.path.clone(), text: source.text.clone(), code: source.without_tests() };
    let hits = plain.words("async").chain(plain.words("await"));
    hits.map(|at| Finding::new(source, at, format!("`{room}` is blocking code; async begins at service/"))).collect()
}
