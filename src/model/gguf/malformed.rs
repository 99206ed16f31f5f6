//! Right files are read as written; wrong ones, each broken in one place, are refused with an error that names the
//! place.

use super::builder::{Builder, array, string};
use super::*;
use crate::error::ErrorKind;

/// A small file with one of everything.
pub(super) fn valid() -> Builder {
    Builder::new()
        .str("general.architecture", "llama")
        .u32("general.alignment", 32)
        .f32("llama.rope.freq_base", 10_000.0)
        .bool("tokenizer.ggml.add_bos_token", true)
        .strings("tokenizer.ggml.tokens", &["<s>", "", "ä", "日本"])
        .i32s("tokenizer.ggml.token_type", &[3, 1, 1, 1])
        .f32s("tokenizer.ggml.scores", &[0.0, -1.0, -2.0, -3.0])
        .tensor("token_embd.weight", &[4, 32], GgmlType::Q4_1)
        .tensor("blk.0.ffn_down.weight", &[3, 256], GgmlType::Q6K)
        .tensor("output_norm.weight", &[32], GgmlType::F32)
}

#[track_caller]
fn check(file: &Builder, expected: &str) {
    check_bytes(&file.build(), expected);
}

#[track_caller]
fn check_bytes(bytes: &[u8], expected: &str) {
    let error = Header::parse(bytes).expect_err("a malformed file was accepted");
    assert_eq!(error.kind(), ErrorKind::BadModel);
    assert!(error.message().contains(expected), "expected `{expected}` in: {}", error.message());
}

#[test]
fn a_valid_file_is_read_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    for version in [2, 3] {
        let mut file = valid();
        file.version = version;
        std::fs::write(&path, file.build()).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let m = gguf.metadata();
        assert_eq!(m.get_str("general.architecture").unwrap(), "llama");
        assert_eq!(m.get_f32("llama.rope.freq_base").unwrap(), 10_000.0);
        assert!(m.get_bool("tokenizer.ggml.add_bos_token").unwrap());
        let tokens: Vec<&str> = m.strings("tokenizer.ggml.tokens").unwrap().iter().collect();
        assert_eq!(tokens, ["<s>", "", "ä", "日本"]);
        assert_eq!(m.strings("tokenizer.ggml.tokens").unwrap().get(3), Some("日本"));
        assert_eq!(m.opt_u32s("tokenizer.ggml.token_type").unwrap().unwrap(), [3, 1, 1, 1]);
        assert_eq!(m.opt_f32s("tokenizer.ggml.scores").unwrap().unwrap(), [0.0, -1.0, -2.0, -3.0]);
        let down = gguf.tensor("blk.0.ffn_down.weight").unwrap();
        assert_eq!(down.info.dims, [3, 256]);
        assert_eq!((down.info.dtype, down.info.row_bytes()), (GgmlType::Q6K, 210));
        assert_eq!(down.data, (0..630).map(|i| i as u8).collect::<Vec<_>>());
        let names: Vec<&str> = gguf.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["token_embd.weight", "blk.0.ffn_down.weight", "output_norm.weight"]);
        assert!(gguf.opt_tensor("output.weight").is_none());
        assert!(gguf.tensor("output.weight").unwrap_err().message().contains("`output.weight`"));
    }
}

#[test]
fn errors_of_open_begin_with_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let prefix = format!("{}: ", path.display());
    for (bytes, expected) in [(None, "cannot open"), (Some(&b""[..]), "is empty"), (Some(b"PK\x03\x04"), "`PK")] {
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let error = Gguf::open(&path).unwrap_err();
        assert!(error.message().starts_with(&prefix) && error.message().contains(expected), "{error}");
    }
    assert!(Gguf::open(dir.path()).unwrap_err().message().contains("not a regular file"));
}
