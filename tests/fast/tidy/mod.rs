//! The house rules as a test: floors, rooms, sizes, `unsafe`, channels, leftovers. Each rule is a function from
//! sources to findings, run over the tree, and run over a bad snippet to show that it can fail.

mod circles;
mod floors;
mod licences;
mod rules;
mod source;
mod words;

use std::path::Path;
use std::process::Command;

use source::Source;

/// A broken rule, as `path:line: what`.
#[derive(Debug)]
pub(crate) struct Finding(String);

impl Finding {
    pub(crate) fn new(source: &Source, offset: usize, what: impl std::fmt::Display) -> Self {
        Self(format!("{}:{}: {what}", source.path, source.line_of(offset)))
    }
}

type Rule = fn(&Source) -> Vec<Finding>;

/// Rules for code of the program, each with a snippet that must break it and one that must not.
const SRC_RULES: &[(&str, Rule, Example, Example)] = &[
    (
        "imports go down the floors",
        floors::imports_go_down,
        ("src/service/a.rs", "use crate::{error::Result, api::Server};"),
        ("src/service/a.rs", "use crate::{error::{Error, Result}, cache};\nuse super::queue;\nuse crate::service::x;"),
    ),
    (
        "imports go down the floors",
        floors::imports_go_down,
        ("src/api/mod.rs", "use super::cluster;"),
        (
            "crates/model/src/gguf/types.rs",
            "use super::super::vocab;\nmod tests { use super::*; use super::super::mod_x; }",
        ),
    ),
    (
        "imports go down the floors",
        floors::imports_go_down,
        ("crates/engine/src/cache/a.rs", "use crate::queue;"),
        ("crates/engine/src/a.rs", "use crate::queue;\nuse crate::sampling::x;"),
    ),
    (
        "imports go down the floors",
        floors::imports_go_down,
        ("src/nowhere.rs", ""),
        ("src/api/openai/chat.rs", "fn f() { crate::service::submit() } // crate::cli"),
    ),
    (
        "frameworks and dialects stay in their rooms",
        floors::words_stay_in_their_rooms,
        ("src/service/a.rs", "use axum::Json;"),
        ("src/api/a.rs", "use axum::Json; const O: &str = \"chat.completion.chunk\";"),
    ),
    (
        "frameworks and dialects stay in their rooms",
        floors::words_stay_in_their_rooms,
        ("src/engine/a.rs", "const O: &str = \"chat.completion.chunk\";"),
        ("src/engine/a.rs", "// axum would be wrong here"),
    ),
    (
        "no async below the service",
        floors::no_async_below_the_service,
        ("src/engine/a.rs", "async fn f() {}"),
        ("src/engine/a.rs", "fn f() {}\n#[cfg(test)]\nmod tests { async fn t() {} }"),
    ),
    ("files open with docs", rules::opens_with_docs, ("src/a.rs", "use x;"), ("src/a.rs", "//! An a.\nuse x;")),
    (
        "unsafe has a home",
        rules::unsafe_has_a_home,
        ("src/engine/a.rs", "unsafe { f() }"),
        ("crates/kernels/src/a.rs", "unsafe { f() }"),
    ),
    (
        "unsafe says why",
        rules::unsafe_says_why,
        ("crates/kernels/src/a.rs", "// fast\nlet x = unsafe { f() };"),
        (
            "crates/kernels/src/a.rs",
            "// SAFETY: f is fine\n// with this.\n#[rustfmt::skip]\nlet x =\n    unsafe { f() };\nunsafe fn g() {}",
        ),
    ),
    (
        "unsafe says why",
        rules::unsafe_says_why,
        ("crates/kernels/src/a.rs", "fn g() {\n// SAFETY of this one\n}\nlet x = unsafe { f() };"),
        (
            "crates/kernels/src/a.rs",
            "// SAFETY of all below: f is fine\nimpl A {\n fn a() {}\n fn b() { unsafe { f() } }\n}",
        ),
    ),
    (
        "channels are bounded",
        rules::channels_are_bounded,
        ("src/engine/a.rs", "let (a, b) = mpsc::channel::<Vec<u8>>();"),
        ("src/engine/a.rs", "let (a, b) = mpsc::sync_channel(4); let c = oneshot::channel(); let d = channel(8);"),
    ),
    (
        "channels are bounded",
        rules::channels_are_bounded,
        ("src/engine/a.rs", "let (a, b) = mpsc::unbounded_channel();"),
        ("src/engine/a.rs", "// nothing here is unbounded"),
    ),
    (
        "questions change nothing",
        rules::questions_change_nothing,
        ("src/api/a.rs", "async fn is_over(&'a mut self) -> bool { true }"),
        ("src/api/a.rs", "fn is_over(&self, with: &mut Self) {}\nfn take(&mut self) {}\ntype F = fn(&mut A);"),
    ),
];

type Example = (&'static str, &'static str);

/// Rules for every Rust file of ours.
const ALL_RULES: &[(&str, Rule)] = &[
    ("files open with docs", rules::opens_with_docs),
    ("files are short", rules::file_is_short),
    ("nothing is left over", rules::nothing_is_left_over),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of the tree by path from the top: git's list (with what is new and not ignored) or, in an unpacked archive,
/// everything but what builds leave behind.
fn tracked() -> Vec<String> {
    let git = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let listed = match git {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).expect("paths are UTF-8"),
        Ok(_) | Err(_) => {
            eprintln!("tidy: no git here, so every file outside target/ is checked");
            let mut found = Vec::new();
            walk(root(), &mut found);
            found.join("\0")
        }
    };
    // A file that was deleted and not yet committed is listed and absent.
    let mut paths: Vec<String> = listed.split('\0').filter(|p| root().join(p).is_file()).map(str::to_owned).collect();
    paths.sort();
    paths
}

fn walk(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if path.is_dir() {
            if !matches!(name, "target" | ".git" | "node_modules" | "__pycache__") {
                walk(&path, found);
            }
        } else if let Ok(inside) = path.strip_prefix(root()) {
            found.push(inside.to_string_lossy().into_owned());
        }
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let inside = |path: &String| folders.iter().any(|f| path.starts_with(f)) && path.ends_with(".rs");
    let read = |path: String| {
        let text = std::fs::read_to_string(root().join(&path)).expect("a readable source");
        Source::new(&path, &text)
    };
    let sources: Vec<Source> = tracked().into_iter().filter(inside).map(read).collect();
    assert!(sources.len() > 10, "only {} sources under {folders:?}: the walk is broken", sources.len());
    sources
}

#[track_caller]
fn assert_none(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}: {} findings\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn src_keeps_the_rules() {
    let sources = sources(&["src/", "crates/"]);
    let mut findings = Vec::new();
    for (_, rule, _, _) in SRC_RULES {
        findings.extend(sources.iter().flat_map(rule).map(|f| f.0));
    }
    findings.extend(sources.iter().flat_map(rules::functions_are_short).map(|f| f.0));
    findings.extend(rules::one_unsafe_block_maps_files(&sources).into_iter().map(|f| f.0));
    findings.sort();
    findings.dedup();
    assert_none("rules of src/", &findings);
}

#[test]
fn files_of_a_folder_do_not_go_in_circles() {
    let sources = sources(&["src/", "crates/"]);
    assert_none("circles", &circles::circles(&sources));
    assert_none("circles that the rule excuses", &circles::broken_circles(&sources));
}

#[test]
fn a_name_of_a_type_leads_to_one_place() {
    let sources = sources(&["src/", "crates/"]);
    assert_none("names of types", &words::names_are_unique(&sources));
    assert_none("names that the rule excuses", &words::excuses_are_needed(&sources));
}

#[test]
fn all_rust_files_keep_the_rules() {
    let sources = sources(&["src/", "crates/", "tests/", "benches/"]);
    for (name, rule) in ALL_RULES {
        let findings: Vec<String> = sources.iter().flat_map(rule).map(|f| f.0).collect();
        assert_none(name, &findings);
    }
}

#[test]
fn every_floor_is_a_room_and_every_room_has_a_floor() {
    let modules = std::fs::read_to_string(root().join("src/lib.rs")).expect("the crate's root");
    let modules: Vec<&str> = modules.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let crates = tracked();
    let crates: Vec<&str> =
        crates.iter().filter_map(|path| path.strip_prefix("crates/")?.strip_suffix("/Cargo.toml")).collect();
    assert!(modules.contains(&"service") && crates.contains(&"engine"), "{modules:?} {crates:?}");
    for room in modules.into_iter().chain(crates) {
        assert!(floors::FLOORS.iter().any(|(name, _)| *name == room), "{room} has no floor");
    }
}

/// What a crate may import its manifest says, so the floors are checked there.
#[test]
fn crates_depend_on_lower_ones_only() {
    let manifests: Vec<String> =
        tracked().into_iter().filter(|path| path.starts_with("crates/") && path.ends_with("/Cargo.toml")).collect();
    for path in manifests {
        let text = std::fs::read_to_string(root().join(&path)).expect("a manifest");
        let own = path.split('/').nth(1).expect("a crate's folder");
        assert_none("floors of crates", &floors::dependencies_go_down(own, &text));
    }
    assert_eq!(floors::dependencies_go_down("kernels", "tallow-engine = { path = \"x\" }").len(), 1);
    assert!(floors::dependencies_go_down("engine", "tallow-kernels = { path = \"x\" }").is_empty());
}

#[test]
fn the_tree_holds_only_what_belongs_to_it() {
    let paths = tracked();
    assert_none("top level", &rules::top_level_is_known(&paths));
    let mut findings = Vec::new();
    for path in paths.iter().filter(|path| *path != "Cargo.lock") {
        // What is no text has no names in it that anybody reads.
        let Ok(text) = std::fs::read_to_string(root().join(path)) else { continue };
        findings.extend(rules::hosts_are_public(path, &text));
        findings.extend(rules::paths_are_relative(path, &text));
    }
    assert_none("names of hosts and machines", &findings);
}

#[test]
fn the_map_of_the_house_names_what_is_there() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    assert_none("ARCHITECTURE.md", &rules::named_paths_exist(&map, &tracked()));
    let paths = ["crates/engine/src/queue.rs", "src/api/sse.rs"].map(str::to_owned);
    let missing = |text: &str| rules::named_paths_exist(text, &paths).len();
    assert_eq!(missing("`engine/queue.rs` `api/sse.rs` `sse.rs` `src/api/` `a/b` `/v1/` `pNN_*.rs`"), 0);
    assert_eq!(missing("`engine/fair.rs` and `cli/` and `queues.rs`"), 3);
}

#[test]
fn rules_can_fail_and_can_pass() {
    for (name, rule, bad, good) in SRC_RULES {
        assert!(!rule(&Source::new(bad.0, bad.1)).is_empty(), "{name}: passed {bad:?}");
        let found = rule(&Source::new(good.0, good.1));
        assert!(found.is_empty(), "{name}: {found:?}");
    }
}

#[test]
fn sizes_are_counted() {
    let num_found = |path: &str, n: usize| rules::file_is_short(&Source::new(path, &"//! x\n".repeat(n))).len();
    assert_eq!([500, 501].map(|n| num_found("src/a.rs", n)), [0, 1]);
    let (listed, _) = rules::LONG_FILES[0];
    assert_eq!([500, 501, 700, 701].map(|n| num_found(listed, n)), [1, 0, 0, 1], "{listed}");
    let function =
        |n: usize| Source::new("src/a.rs", &format!("type F = fn(u8);\nfn f() {{{}}}\n", "\n".repeat(n - 1)));
    assert!(rules::functions_are_short(&function(70)).is_empty());
    assert_eq!(rules::functions_are_short(&function(71)).len(), 1);
}

#[test]
fn leftovers_are_found() {
    // Put together here, so that this file keeps its own rule.
    for word in ["todo", "unimplemented", "dbg"] {
        let source = Source::new("src/a.rs", &format!("fn f() {{ {word}!() }}"));
        assert_eq!(rules::nothing_is_left_over(&source).len(), 1, "{word}");
    }
    let source = Source::new("src/a.rs", &format!("#[{}]\nfn f() {{}}", "ignore"));
    assert_eq!(rules::nothing_is_left_over(&source).len(), 1);
}

#[test]
fn a_second_unsafe_in_the_reader_is_found() {
    let source = |path: &str| Source::new(path, "unsafe { map() }");
    let both = [
        source("crates/model/src/gguf/mod.rs"),
        source("crates/model/src/gguf/tensor.rs"),
        source("crates/kernels/src/a.rs"),
    ];
    assert_eq!(rules::one_unsafe_block_maps_files(&both).len(), 1);
    assert!(rules::one_unsafe_block_maps_files(&both[1..]).is_empty());
}

#[test]
fn foreign_names_in_the_tree_are_found() {
    let top = |path: &str| rules::top_level_is_known(&[path.to_owned()]).len();
    assert_eq!((top("notes.txt"), top("scripts/x.sh"), top("src/lib.rs"), top(".ci/run")), (1, 1, 0, 0));
    let hosts = |text: &str| rules::hosts_are_public("x", text).len();
    assert_eq!(hosts(&format!("http{}mirror.corp.net:8081/simple", "://")), 1);
    assert_eq!(
        hosts(
            "https://huggingface.co/x http://127.0.0.1:8080/ http://{address}/ http://a.test:1/ http://$HOST http://127.0.0.1:PORT http://[::1]:8/"
        ),
        0
    );
    let paths = |text: &str| rules::paths_are_relative("x", text).len();
    assert_eq!(paths(&format!("cd /{}/me/x", "home")), 1);
    assert_eq!(paths("see src/network/home/x and ~/.cache"), 0);
}
