//! Licences and sources of everything that is linked or run here, against the lists of `deny.toml`. cargo-deny does
//! this and more, but takes minutes to build; this takes none.

use std::process::Command;

use serde_json::Value;

/// What `deny.toml` allows.
struct Allowed {
    licences: Vec<String>,
    /// Crate and licence.
    exceptions: Vec<(String, String)>,
    registries: Vec<String>,
}

fn strings(list: &toml::Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(toml::Value::as_str).map(str::to_owned).collect()
}

impl Allowed {
    fn read(text: &str) -> Self {
        let table: toml::Table = text.parse().expect("deny.toml is TOML");
        let licenses = &table["licenses"];
        let exceptions = licenses["exceptions"].as_array().into_iter().flatten().flat_map(|entry| {
            let name = entry["crate"].as_str().expect("a crate").to_owned();
            strings(&entry["allow"]).into_iter().map(move |licence| (name.clone(), licence))
        });
        Self {
            licences: strings(&licenses["allow"]),
            exceptions: exceptions.collect(),
            registries: strings(&table["sources"]["allow-registry"]),
        }
    }

    /// Whether one licence of each conjunct is allowed. `OR` binds weaker than `AND`; parentheses appear only around
    /// alternatives, so that an expression with them is a conjunction of such groups.
    fn licence(&self, name: &str, expression: &str) -> bool {
        let one = |licence: &str| {
            let licence = licence.trim();
            let excepted = |(crate_name, allowed): &(String, String)| crate_name == name && allowed == licence;
            self.licences.iter().any(|allowed| allowed == licence) || self.exceptions.iter().any(excepted)
        };
        let expression = expression.replace('/', " OR ");
        if expression.contains('(') {
            let mut groups = expression.split(" AND ").map(|group| group.trim_matches(['(', ')', ' ']));
            return groups.all(|group| group.split(" OR ").any(one));
        }
        expression.split(" OR ").any(|all| all.split(" AND ").all(one))
    }

    fn source(&self, source: &str) -> bool {
        source.strip_prefix("registry+").is_some_and(|registry| self.registries.iter().any(|r| r == registry))
    }
}

fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc runs where its tests run");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host line").to_owned()
}

#[test]
fn every_dependency_has_an_allowed_licence_and_source() {
    let allowed = Allowed::read(&std::fs::read_to_string(crate::tidy::root().join("deny.toml")).expect("deny.toml"));
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", &host()])
        .current_dir(crate::tidy::root())
        .output()
        .expect("cargo runs where its tests run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 50, "only {} packages", packages.len());
    let mut findings = Vec::new();
    for package in packages {
        let text = |key: &str| package[key].as_str().unwrap_or("none");
        let (name, version) = (text("name"), text("version"));
        if !allowed.licence(name, text("license")) {
            findings.push(format!("{name} {version}: licence {}", text("license")));
        }
        if !package["source"].is_null() && !allowed.source(text("source")) {
            findings.push(format!("{name} {version}: source {}", text("source")));
        }
    }
    crate::tidy::assert_none("licences and sources", &findings);
}

#[test]
fn licences_are_read_as_expressions() {
    let allowed = Allowed::read(
        "[licenses]\nallow = [\"MIT\", \"Apache-2.0\"]\nexceptions = [{ crate = \"x\", allow = [\"MPL-2.0\"] }]\n\
         [sources]\nallow-registry = [\"https://a.test\"]",
    );
    for good in ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "MIT AND Apache-2.0", "(GPL-3.0 OR MIT) AND Apache-2.0"] {
        assert!(allowed.licence("y", good), "{good}");
    }
    for bad in ["none", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR GPL-3.0) AND GPL-2.0", "MPL-2.0"] {
        assert!(!allowed.licence("y", bad), "{bad}");
    }
    assert!(allowed.licence("x", "MPL-2.0"));
    assert!(allowed.source("registry+https://a.test"));
    assert!(!allowed.source("git+https://a.test/x"));
}
