//! Two stages together: layers beat each other in order, and every broken rule is told by its name.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::*;
use crate::api::ApiConfig;
use crate::engine::EngineConfig;
use crate::error::Result;
use crate::service::{ModelLimits, ServiceConfig};
use crate::settings::Value;
use crate::stream::{StoreLimits, TableLimits};

/// Flags, variables and a file's text in; a config or its error out.
fn resolve(flags: &[(&str, &str)], env: &[(&str, &str)], file: Option<&str>) -> Result<Config> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    if let Some(text) = file {
        std::fs::write(dir.path().join(DEFAULT_FILE), text).expect("the file is written");
    }
    resolve_in(dir.path(), flags, env, None)
}

fn resolve_in(dir: &Path, flags: &[(&str, &str)], env: &[(&str, &str)], file: Option<PathBuf>) -> Result<Config> {
    let row = |flag: &str| SETTINGS.iter().find(|(s, _)| s.flag == flag).expect("a flag of ours").0;
    let values = flags.iter().map(|(flag, text)| (row(flag), (*text).to_owned())).collect();
    let env: HashMap<String, OsString> = env.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
    Config::resolve(&Sources::collect(Typed { values, file }, &|name| env.get(name).cloned(), dir)?)
}

#[track_caller]
fn check_error(flags: &[(&str, &str)], env: &[(&str, &str)], file: Option<&str>, expect: &str) {
    let error = resolve(flags, env, file).expect_err("a rule is broken");
    assert!(error.message().ends_with(expect), "expected `{expect}`, got `{error}`");
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = Some("[server]\nport = 1\nhost = \"file\"\n[engine]\nmax_num_seqs = 7\n");
    let env = [("TALLOW_PORT", "2"), ("TALLOW_HOST", "env"), ("TALLOW_LOG_LEVEL", "")];
    let config = resolve(&[("port", "3")], &env, file).expect("a good configuration");
    assert_eq!((config.process.port, config.origin("server.port")), (3, Origin::Flag));
    assert_eq!((config.process.host.as_str(), config.origin("server.host")), ("env", Origin::Env));
    assert_eq!((config.engine.max_num_seqs, config.origin("engine.max_num_seqs")), (7, Origin::File));
    assert_eq!((config.log.level.as_str(), config.origin("log.level")), ("info", Origin::Default));
}

#[test]
fn every_setting_is_resolved_once_and_in_order() {
    let config = resolve(&[], &[], None).expect("defaults are good");
    let keys: Vec<_> = config.resolved.iter().map(|(s, _, _)| s.key).collect();
    let table: Vec<_> = SETTINGS.iter().map(|(s, _)| s.key).collect();
    assert_eq!(keys, table);
}

#[test]
fn names_are_unique_and_defaults_keep_their_own_rules() {
    let (mut keys, mut flags) = (HashSet::new(), HashSet::new());
    for (s, default) in SETTINGS.iter() {
        assert!(keys.insert(s.key), "{} twice", s.key);
        assert!(flags.insert(s.flag), "--{} twice", s.flag);
        assert!(!s.help().is_empty(), "--{} has no help", s.flag);
        if *default != Value::Text(String::new()) {
            assert_eq!(s.parse(&s.typed(default)).as_ref(), Ok(default), "--{}", s.flag);
        }
    }
}

#[test]
fn without_sources_every_room_has_its_defaults() {
    let config = resolve(&[], &[], None).expect("defaults are good");
    assert_eq!(config.engine, EngineConfig::default());
    assert_eq!(config.api, ApiConfig::default());
    assert_eq!(config.service, ServiceConfig::default());
    assert_eq!(config.models, ModelLimits::default());
    assert_eq!((config.streams, config.store), (TableLimits::default(), StoreLimits::default()));
}

#[test]
fn a_setting_of_a_nested_room_arrives() {
    let flags = [("responses-max", "7"), ("grammar-bytes-max", "1KiB"), ("background-threads", "3")];
    let limits = [("key-concurrency-max", "2"), ("key-tokens-per-minute", "0"), ("stream-store-interval-ms", "5")];
    let config = resolve(&[&flags[..], &limits].concat(), &[], None).expect("a good configuration");
    assert_eq!(config.api.responses.num_responses_max, 7);
    assert_eq!(config.engine.grammars.source_bytes_max, 1024);
    assert_eq!(config.service.background.num_threads, Some(3));
    let limits = config.service.owners[0].limits;
    assert_eq!((limits.concurrency_max, limits.tokens_per_minute), (Some(2), None));
    assert_eq!(config.store.commit_interval.as_millis(), 5);
}

#[test]
fn errors_name_what_was_typed() {
    check_error(&[("max-num-seqs", "0")], &[], None, "--max-num-seqs must be at least 1, got 0");
    let env = [("TALLOW_MAX_NUM_SEQS", "x")];
    check_error(&[], &env, None, "TALLOW_MAX_NUM_SEQS must be a whole number, got `x` (the flag is --max-num-seqs)");
    let file = Some("[engine]\nmax_num_seqs = 0");
    check_error(
        &[],
        &[],
        file,
        "tallow.toml: engine.max_num_seqs must be at least 1, got 0 (the flag is --max-num-seqs)",
    );
    check_error(&[("model", "")], &[], None, "--model must not be empty");
}

#[test]
fn rules_between_settings_hold() {
    let flags = [("max-num-seqs", "64"), ("max-num-batched-tokens", "16")];
    check_error(&flags, &[], None, "--max-num-batched-tokens must be at least --max-num-seqs (64), got 16");
    let flags = [("prefill-tokens-per-step-max", "600")];
    check_error(&flags, &[], None, "must be at most --max-num-batched-tokens (512), got 600");
    let flags = [("workers", "4"), ("threads", "2")];
    check_error(&flags, &[], None, "--threads must be at least --workers (4), got 2");
    let config = resolve(&[("queue-requests-max", "8")], &[], None).expect("so much of one request fits the queue");
    assert_eq!(config.service.embedding_inputs_at_once, 7);
    check_error(&[("cors-origins", "http://a.test/x")], &[], None, "https://chat.example, got `http://a.test/x`");
    let config = resolve(&[("max-num-batched-tokens", "64")], &[], None).expect("the default share follows the step");
    assert_eq!(config.engine.prefill_tokens_per_step_max, 64);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_compiled_in_is_an_error() {
    let expect = "--device cuda: this binary has no cuda support; build it with `--features cuda`";
    check_error(&[("device", "cuda")], &[], None, expect);
    let file = Some("[[models]]\nname = \"stub\"\n[[models]]\nname = \"stub:1\"\ndevice = \"cuda\"\n");
    check_error(&[], &[], file, expect);
}

#[test]
fn a_named_file_must_exist_and_a_default_one_need_not() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let missing = dir.path().join("missing.toml");
    let error = resolve_in(dir.path(), &[], &[], Some(missing.clone())).expect_err("no such file");
    assert!(error.message().starts_with(missing.to_str().expect("UTF-8")), "{error}");
    let env = [(CONFIG_ENV, missing.to_str().expect("UTF-8"))];
    assert!(resolve_in(dir.path(), &[], &env, None).is_err());
    std::fs::write(&missing, "[server]\nport = 9").expect("the file is written");
    assert_eq!(resolve_in(dir.path(), &[], &env, None).expect("a good file").process.port, 9);
}

#[test]
fn the_table_is_aligned_and_says_where_values_came_from() {
    let config = resolve(&[("port", "9"), ("cache-dir", "/x")], &[], None).expect("a good configuration");
    let table = config.to_string();
    let line = |key: &str| table.lines().find(|l| l.contains(key)).expect("a line per setting");
    assert!(line("server.port").ends_with("flag"), "{table}");
    assert!(line("server.body_bytes_max").contains("4 MiB"), "{table}");
    let column = |key: &str, word: &str| line(key).find(word).expect("the word is in its line");
    assert_eq!(column("server.port", "flag"), column("server.host", "default"), "{table}");
}
