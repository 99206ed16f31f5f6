//! No circles between the files of a folder: files that use each other can only be read together, and are one file in
//! several pieces.
//!
//! ```text
//! each path `crate::`, `super::`, `self::` in a file -> the module that it names, through `pub use` -> the two siblings
//!     below the last folder that both share -> an edge; a file and the folder of its name are one sibling
//! ```
//! A module and the modules that it declares are no siblings: a child may use what its parent has, and the parent the child.
//! Tests are left out. Paths that begin with the name of a module (`queue::Entry`) are used by parents only.

use std::collections::{BTreeMap, BTreeSet};

use crate::tidy::source::{Source, is_test_file};

/// Circles that stand, with the reason.
const KNOWN_CIRCLES: &[(&str, &[&str], &str)] =
    &[("crates/stream/src/", &["log", "store"], "a log hands its events to the store, which tells it what is durable")];

/// A module: the folder of its crate's root file, and its path from there.
type Module = (String, Vec<String>);

/// The modules that other ones name, and what they name again from elsewhere.
struct Tree {
    modules: BTreeSet<Module>,
    /// Module and name to the module and the name that stand behind it.
    renamed: BTreeMap<(Module, String), Module>,
}

/// The circles among the files of each folder, as `folder: a b c`, without the known ones.
pub(crate) fn circles(sources: &[Source]) -> Vec<String> {
    let is_known = |folder: &str, circle: &[String]| {
        KNOWN_CIRCLES.iter().any(|(known, names, _)| *known == folder && circle.iter().eq(names.iter()))
    };
    let found = all_circles(sources).into_iter().filter(|(folder, circle)| !is_known(folder, circle));
    found.map(|(folder, circle)| format!("{folder}: {} use each other", circle.join(", "))).collect()
}

/// Known circles that are none any more.
pub(crate) fn broken_circles(sources: &[Source]) -> Vec<String> {
    let all = all_circles(sources);
    let is_there = |folder: &str, names: &[&str]| all.iter().any(|(f, circle)| f == folder && circle.iter().eq(names));
    let gone = KNOWN_CIRCLES.iter().filter(|(folder, names, _)| !is_there(folder, names));
    gone.map(|(folder, names, _)| format!("{folder}: {} are no circle any more", names.join(", "))).collect()
}

fn all_circles(sources: &[Source]) -> Vec<(String, Vec<String>)> {
    let files: Vec<(Module, String)> = sources
        .iter()
        .filter(|source| !is_test_file(&source.path))
        .filter_map(|source| Some((module_of(&source.path)?, source.without_tests())))
        .collect();
    let mut tree = Tree { modules: files.iter().map(|(module, _)| module.clone()).collect(), renamed: BTreeMap::new() };
    for (module, code) in &files {
        tree.note_renamed(module, code);
    }
    let mut edges: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
    for (module, code) in &files {
        for path in paths_in(code, &["crate::", "super::", "self::"]) {
            let Some((folder, from, to)) = tree.siblings(module, &path) else { continue };
            edges.entry(folder).or_default().insert((from, to));
        }
    }
    let in_folder = |(folder, edges): (&String, &BTreeSet<_>)| {
        components(edges).into_iter().map(|circle| (folder.clone(), circle)).collect::<Vec<_>>()
    };
    edges.iter().flat_map(in_folder).collect()
}

/// `crates/engine/src/core/embed.rs` is `core::embed` of the crate in `crates/engine/src/`.
fn module_of(path: &str) -> Option<Module> {
    let at = if path.starts_with("src/") { 0 } else { path.find("/src/")? + 1 };
    let (root, inside) = path.split_at(at + "src/".len());
    let mut names: Vec<String> = inside.strip_suffix(".rs")?.split('/').map(str::to_owned).collect();
    if names.last().is_some_and(|name| name == "mod") || matches!(inside, "lib.rs" | "main.rs") {
        names.pop();
    }
    Some((root.to_owned(), names))
}

impl Tree {
    /// Notes what `pub use` gives a second place, so that a path through it leads to the file behind it.
    fn note_renamed(&mut self, module: &Module, code: &str) {
        for path in paths_in(code, &["pub use ", "pub(crate) use ", "pub(super) use "]) {
            let Some((path, name)) = path.split_last().map(|(name, rest)| (rest, name)) else { continue };
            let is_child = path.first().is_some_and(|first| self.modules.contains(&child(module, first)));
            let target = match path.first().map(String::as_str) {
                Some("crate" | "self" | "super") => self.absolute(module, path),
                _ if is_child => Some((module.0.clone(), [&module.1, path].concat())),
                _ => None,
            };
            if let Some(target) = target {
                self.renamed.insert((module.clone(), name.clone()), child(&target, name));
            }
        }
    }

    /// A path as it stands in `module`, from the root of its crate.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Module> {
        let (root, own) = module;
        let num_up = path.iter().take_while(|name| *name == "super").count();
        let names = match path.first()?.as_str() {
            "crate" => path[1..].to_vec(),
            "self" => [own, &path[1..]].concat(),
            _ => [&own[..own.len().checked_sub(num_up)?], &path[num_up..]].concat(),
        };
        Some((root.clone(), names))
    }

    /// The file that a path names, as a module: where `pub use` leads on, the last one.
    fn module_named(&self, module: &Module, path: &[String]) -> Option<Module> {
        let mut named = self.absolute(module, path)?;
        // A name goes through few hands; a circle of them would not compile.
        for _ in 0..path.len() + 8 {
            let len = (0..=named.1.len()).rev().find(|len| self.modules.contains(&cut(&named, *len)))?;
            let holder = cut(&named, len);
            let Some(name) = named.1.get(len) else { return Some(holder) };
            match self.renamed.get(&(holder.clone(), name.clone())) {
                Some(next) if *next != named => named = next.clone(),
                _ => return Some(holder),
            }
        }
        None
    }

    /// The folder in which a path leads from one sibling to another, and the two.
    fn siblings(&self, module: &Module, path: &[String]) -> Option<(String, String, String)> {
        let (root, own) = module;
        let (_, named) = self.module_named(module, path)?;
        let num_shared = own.iter().zip(&named).take_while(|(a, b)| a == b).count();
        let (from, to) = (own.get(num_shared)?, named.get(num_shared)?);
        let folder: String = own[..num_shared].iter().map(|name| format!("{name}/")).collect();
        Some((format!("{root}{folder}"), from.clone(), to.clone()))
    }
}

fn child(module: &Module, name: &str) -> Module {
    let mut names = module.1.clone();
    names.push(name.to_owned());
    (module.0.clone(), names)
}

fn cut(module: &Module, len: usize) -> Module {
    (module.0.clone(), module.1[..len].to_vec())
}

/// The paths that begin with one of `openings`, a group in braces as one path for each of its members. A path after `use `
/// begins behind it.
fn paths_in(code: &str, openings: &[&str]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for opening in openings {
        for (at, _) in code.match_indices(opening) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':')) {
                continue;
            }
            let begin = if opening.ends_with("use ") { at + opening.len() } else { at };
            read_path(&code[begin..], &mut Vec::new(), &mut paths);
        }
    }
    paths
}

/// Reads a path or a group of them; returns what follows.
fn read_path<'a>(code: &'a str, before: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> &'a str {
    let code = code.trim_start();
    if let Some(mut rest) = code.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
            if rest.is_empty() || rest.starts_with('}') {
                return rest.strip_prefix('}').unwrap_or(rest);
            }
            let len = rest.len();
            rest = read_path(rest, before, paths);
            assert!(rest.len() < len, "a group in braces has something else than paths in it");
        }
    }
    let len = code.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(code.len());
    let (name, rest) = if code.starts_with('*') { code.split_at(1) } else { code.split_at(len) };
    before.push(name.to_owned());
    let goes_on = rest.strip_prefix("::").filter(|rest| !rest.starts_with('<'));
    let rest = match goes_on {
        Some(rest) => read_path(rest, before, paths),
        None => {
            // `a::{self}` is `a`.
            let whole = if before.len() > 1 && name == "self" { &before[..before.len() - 1] } else { &before[..] };
            paths.push(whole.to_vec());
            match rest.trim_start().strip_prefix("as ") {
                Some(alias) => alias.trim_start().trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
                None => rest,
            }
        }
    };
    before.pop();
    rest
}

/// The names that can reach each other both ways, each such set sorted.
fn components(edges: &BTreeSet<(String, String)>) -> Vec<Vec<String>> {
    let reach = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(name) = next.pop() {
            let more = edges.iter().filter(|(a, _)| *a == name).map(|(_, b)| b);
            next.extend(more.filter(|b| seen.insert((*b).clone())).cloned());
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = edges.iter().map(|(a, _)| (a, reach(a))).collect();
    let in_circle = |a: &String, b: &String| reached[a].contains(b) && reached.get(b).is_some_and(|r| r.contains(a));
    let circles: BTreeSet<Vec<String>> = reached
        .keys()
        .map(|a| reached[*a].iter().filter(|b| in_circle(a, b)).cloned().collect::<Vec<_>>())
        .filter(|circle| !circle.is_empty())
        .collect();
    circles.into_iter().collect()
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let found = |files: &[(&str, &str)]| {
        let sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        circles(&sources)
    };
    let check = |files: &[(&str, &str)], expect: &[&str]| assert_eq!(found(files), expect, "{files:?}");
    check(
        &[("src/api/a.rs", "use super::b::B;"), ("src/api/b.rs", "use crate::{error::E, api::{a::{self, A}, c}};")],
        &["src/api/: a, b use each other"],
    );
    // Over a third file, by a path in the code, and by a file below one of them.
    check(
        &[
            ("crates/x/src/a.rs", "fn f() { super::b::<u8>() }"),
            ("crates/x/src/a/inner.rs", "fn f() { crate::b::g() }"),
            ("crates/x/src/b.rs", "use super::c as d;"),
            ("crates/x/src/c.rs", "fn f(a: crate::a::inner::A) {}"),
        ],
        &["crates/x/src/: a, b, c use each other"],
    );
    // Through names that the parent gives a second place.
    check(
        &[
            ("crates/x/src/lib.rs", "mod a;\nmod b;\npub use a::{A, A2};\npub(crate) use self::b::B as C;"),
            ("crates/x/src/a.rs", "use crate::b;"),
            ("crates/x/src/b.rs", "use crate::A2;"),
        ],
        &["crates/x/src/: a, b use each other"],
    );
    // Down only; a parent and its child; tests and comments; the same names in another crate.
    check(
        &[
            ("crates/x/src/lib.rs", "mod a;\nmod b;\npub use a::A;\nuse b::B;"),
            ("crates/x/src/a.rs", "mod inner;\nuse self::inner::I;\nuse super::b::B; // super::c"),
            ("crates/x/src/a/inner.rs", "use super::A;"),
            ("crates/x/src/b.rs", "#[cfg(test)]\nmod tests { use crate::a; }\nuse super::Other;"),
            ("crates/x/src/b/tests.rs", "use crate::a::A;"),
            ("crates/y/src/b.rs", "use crate::a::A;"),
        ],
        &[],
    );
}
