//! `tallow bench --offline` on a tiny random model: the report has every figure that was asked for, and wrong flags
//! are refused.

use crate::tiny;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;
use tiny::Tiny;

fn bench(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tallow"));
    let foreign = std::env::vars_os().map(|(name, _)| name);
    for name in foreign.filter(|name| name.to_string_lossy().starts_with("TALLOW_")) {
        command.env_remove(name);
    }
    command.env("TALLOW_CACHE_DIR", dir.join("cache")).current_dir(dir).stdin(Stdio::null());
    command.arg("bench").args(args).output().expect("the binary runs")
}

/// A model with a vocabulary of letters.
fn write_model(dir: &Path) -> String {
    let strings = |texts: &[&str]| Value::Array(texts.iter().map(|t| Value::String((*t).to_owned())).collect());
    let letters: Vec<String> = ('!'..='~').map(String::from).collect();
    let mut tokens: Vec<&str> = letters.iter().map(String::as_str).collect();
    tokens.push("ab");
    let vocabulary = [
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("gpt-2".to_owned())),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.merges", strings(&["a b"])),
    ];
    let tiny = Tiny { dtype: GgmlDType::Q8_0, vocab: tokens.len(), ..Tiny::new("llama") };
    tiny.write_with(dir, &vocabulary).to_str().expect("UTF-8").to_owned()
}

const SMALL: [&str; 12] = [
    "--offline",
    "--threads",
    "1",
    "--prefill",
    "48",
    "--context",
    "8",
    "--decode=12",
    "--batch=1,3",
    "--repetitions",
    "2",
    "--json",
];

#[test]
fn the_report_has_a_row_for_every_measurement() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = write_model(dir.path());
    let args = ["--model", &model, "--activations", "int8", "--requests-per-seq", "2"];
    let output = bench(dir.path(), &[&args, &SMALL[..]].concat());
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let report: Json = serde_json::from_slice(&output.stdout).expect("standard output is JSON");
    assert_eq!((&report["threads"], &report["activations"]), (&Json::from(1), &Json::from("int8")));
    assert_eq!((&report["context"], &report["repetitions"]), (&Json::from(8), &Json::from(2)));
    assert!(report["isa"].is_string() && report["model"].is_string(), "{report}");
    assert!(report["load_seconds"].as_f64() > Some(0.0), "{report}");

    let rows = report["rows"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().map(|r| (&r["layer"], &r["phase"], &r["batch"], &r["num_tokens"])).collect();
    let row = |layer: &str, phase: &str, batch: u64, tokens: u64| {
        (Json::from(layer), Json::from(phase), Json::from(batch), Json::from(tokens))
    };
    let expected: Vec<_> = ["model", "engine"]
        .into_iter()
        .flat_map(|layer| [row(layer, "prefill", 1, 48), row(layer, "decode", 1, 12), row(layer, "decode", 3, 36)])
        .chain([row("engine", "requests", 1, 24), row("engine", "requests", 3, 72)])
        .collect();
    assert_eq!(names, expected.iter().map(|(a, b, c, d)| (a, b, c, d)).collect::<Vec<_>>());
    for row in rows {
        let samples = row["samples"].as_array().expect("samples");
        assert_eq!(samples.len(), 2, "{row}");
        let mean = samples.iter().map(|s| s.as_f64().expect("a number")).sum::<f64>() / 2.0;
        assert!(mean > 0.0 && (row["tokens_per_second"].as_f64().expect("a number") - mean).abs() <= mean * 1e-9);
    }

    let file_bytes = std::fs::metadata(&model).expect("the model").len();
    assert_eq!(report["file_bytes"].as_u64(), Some(file_bytes));
    #[cfg(target_os = "linux")]
    for resident in ["loaded_resident_bytes", "resident_bytes"] {
        assert!(report[resident].as_u64() > Some(0), "{resident}: {report}");
    }
    let weight_bytes = report["weight_bytes"].as_u64().expect("a number");
    // The file has an output matrix of its own, so the table of embeddings is not read in a step.
    assert!(weight_bytes > file_bytes / 2 && weight_bytes < file_bytes, "{weight_bytes} of {file_bytes}");
    let per_second = rows[1]["tokens_per_second"].as_f64().expect("a number") * weight_bytes as f64 / 1e9;
    let reported = report["weight_gb_per_second"].as_f64().expect("a number");
    assert!((reported - per_second).abs() <= per_second * 1e-9, "{reported}, not {per_second}");
}

#[test]
fn one_layer_can_be_measured_alone_and_the_report_written_to_a_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = write_model(dir.path());
    let args = [&["--model", &model, "--layer", "model"], &SMALL[..], &["report.json"]].concat();
    let output = bench(dir.path(), &args);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("\nfile ") && out.contains("tokens/s, medians of 2 (range)"), "{out}");
    assert!(out.contains("prefill 48") && out.contains("decode, 3 at once") && !out.contains("engine"), "{out}");
    let text = std::fs::read_to_string(dir.path().join("report.json")).expect("the report is a file");
    let report: Json = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["rows"].as_array().map(Vec::len), Some(3));
}

#[test]
fn wrong_flags_and_workloads_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = write_model(dir.path());
    let check = |args: &[&str], code: i32, message: &str| {
        let output = bench(dir.path(), args);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
        assert!(err.contains(message), "{args:?}: `{message}` is not in {err}");
    };
    // Without --offline it would be a load on a server, which knows no such flag.
    check(&["--prefill", "8"], 2, "--offline");
    check(&["--offline", "--batch", "1,0"], 2, "--batch");
    check(&["--offline", "--temperature", "3"], 2, "must be from 0 to 2, got 3");
    check(&["--offline", "--threads", "none"], 2, "--threads must be a whole number");
    // The model's context has 512 tokens.
    check(&["--offline", "--model", &model, "--prefill", "512"], 1, "context of 512, got 513");
}
