//! Right files are read as written; wrong ones, each broken in one place, are refused with an error that names the
//! place.

use super::builder::{Builder, array, string};
use super::types;
use super::*;
use tallow_kernels::WeightFormat;
use tallow_stream::error::ErrorKind;

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
        .tensor("token_embd.weight", &[4, 32], WeightFormat::Q4_1)
        .tensor("blk.0.ffn_down.weight", &[3, 256], WeightFormat::Q6K)
        .tensor("output_norm.weight", &[32], WeightFormat::F32)
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
        assert_eq!(m.opt_f32("llama.rope.freq_base").unwrap().unwrap(), 10_000.0);
        assert!(m.opt_bool("tokenizer.ggml.add_bos_token").unwrap().unwrap());
        let tokens: Vec<&str> = m.strings("tokenizer.ggml.tokens").unwrap().iter().collect();
        assert_eq!(tokens, ["<s>", "", "ä", "日本"]);
        assert_eq!(m.strings("tokenizer.ggml.tokens").unwrap().get(3), Some("日本"));
        assert_eq!(m.opt_i32s("tokenizer.ggml.token_type").unwrap().unwrap(), [3, 1, 1, 1]);
        assert_eq!(m.opt_f32s("tokenizer.ggml.scores").unwrap().unwrap(), [0.0, -1.0, -2.0, -3.0]);
        let down = gguf.tensor("blk.0.ffn_down.weight").unwrap();
        assert_eq!(down.info.dims, [3, 256]);
        assert_eq!((down.info.dtype, down.info.row_bytes()), (WeightFormat::Q6K, 210));
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

#[test]
fn what_is_no_gguf_file_of_ours() {
    check_bytes(b"", "magic number needs 4 bytes");
    check_bytes(b"GG", "magic number needs 4 bytes");
    check_bytes(b"\x80\x02ab", "begins with `\\x80\\x02ab`");
    check_bytes(b"GGUF\x03\0", "version needs 4 bytes");
    for version in [0, 1, 4, u32::MAX] {
        check(&Builder { version, ..valid() }, &format!("version {version} is not supported; versions 2 and 3 are"));
    }
    for version in [2_u32, 3] {
        check(&Builder { version: version.swap_bytes(), ..valid() }, "big-endian");
    }
    check(&valid().raw("split.count", 2, &[3, 0]), "key `split.count` is 3");
}

#[test]
fn counts_that_the_file_cannot_hold() {
    for n in [limits::METADATA_ENTRIES_MAX + 1, u64::MAX] {
        check(&Builder { num_entries: Some(n), ..valid() }, &format!("metadata entries must be at most 65536, is {n}"));
    }
    check(&Builder { num_entries: Some(60_000), ..valid() }, "metadata entries is 60000, but the file has only");
    for n in [limits::TENSORS_MAX + 1, u64::MAX] {
        check(&Builder { num_tensors: Some(n), ..valid() }, &format!("tensors must be at most 65536, is {n}"));
    }
    check(&Builder { num_tensors: Some(60_000), ..valid() }, "tensors is 60000, but the file has only");
    // One entry too many swallows a part of the first tensor; what is left of it is no name.
    check(&Builder { num_entries: Some(8), ..valid() }, "tensor number 0: the name is");
}

#[test]
fn keys() {
    check(&valid().u32("general.alignment", 32), "key `general.alignment` occurs twice");
    check(&valid().raw([0xff, b'x'], 4, &[0; 4]), "entry 7 (after key `tokenizer.ggml.scores`): the key is not UTF-8");
    check(&valid().u32("", 1), "metadata entry 7 (after key `tokenizer.ggml.scores`) has an empty key");
    check(&valid().u32(&"k".repeat(65_536), 1), "the key is 65536 bytes long, at most 65535 are allowed");
}

#[test]
fn scalar_values() {
    check(&valid().raw("a.b", 13, &[0; 8]), "key `a.b`: unknown value type 13");
    check(&valid().raw("a.b", 7, &[2]), "key `a.b`: a boolean must be 0 or 1, is 2");
    check(&valid().raw("a.b", 8, &string([b'x', 0xc3])), "key `a.b`: the value is not UTF-8 at its byte 1");
    let lie = |len: u64| [&len.to_le_bytes()[..], b"x"].concat();
    check(&valid().raw("a.b", 8, &lie(1 << 20)), "key `a.b`: the value needs 1048576 bytes");
    check(&valid().raw("a.b", 8, &lie(u64::MAX)), "key `a.b`: the value is 18446744073709551615 bytes long");
    // Without tensors behind it, a number that is cut short meets the end of the file.
    check_bytes(&Builder::new().raw("a.b", 10, &[0; 7]).build(), "key `a.b`: the value needs 8 bytes");
}

#[test]
fn array_values() {
    let file = |type_id, len, elements: &[u8]| valid().raw("a.b", 9, &array(type_id, len, elements));
    check(&file(13, 1, &[0]), "key `a.b`: unknown element type 13");
    for type_id in [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12] {
        check(&file(type_id, 1 << 20, &[0]), "key `a.b`: the array needs");
        check(&file(type_id, u64::MAX, &[0]), "key `a.b`: an array of 18446744073709551615 elements is too long");
    }
    for type_id in [8, 9] {
        check(&file(type_id, 1 << 20, &[0]), "key `a.b`: an array of 1048576 elements cannot fit");
    }
    check(&file(7, 3, &[0, 1, 9]), "key `a.b`: element 2: a boolean must be 0 or 1, is 9");
    check(&file(8, 2, &[string("x"), string([0xff])].concat()), "key `a.b`: element 1: the string is not UTF-8");
}

#[test]
fn nested_arrays() {
    let nest = |depth: usize| (1..depth).fold(array(4, 1, &[1, 0, 0, 0]), |inner, _| array(9, 1, &inner));
    let file = Header::parse(&valid().raw("a.b", 9, &nest(4)).build()).unwrap();
    assert!(matches!(file.metadata.get("a.b"), Some(Value::Array(Array::Nested(a))) if a.len() == 1));
    check(&valid().raw("a.b", 9, &nest(5)), "arrays nest deeper than 4");
    check(&valid().raw("a.b", 9, &nest(1000)), "arrays nest deeper than 4");
    let inner = [array(4, 0, &[]), array(7, 1, &[5])].concat();
    check(&valid().raw("a.b", 9, &array(9, 2, &inner)), "key `a.b`: element 1: element 0: a boolean must be");
    // Together the inner arrays are longer than one key may be, though each is within the limit.
    let half = limits::ARRAY_ELEMENTS_MAX / 2 + 1;
    let first = array(0, half, &vec![0; half as usize]);
    let both = [first.clone(), first].concat();
    check(&valid().raw("a.b", 9, &array(9, 2, &both)), "key `a.b`: element 1: an array of 8388609 elements is too");
}

#[test]
fn alignment() {
    for bad in [0, 3, 33, 1 << 21, u32::MAX] {
        let file = Builder::new().u32("general.alignment", bad).tensor("t", &[32], WeightFormat::F32);
        check(&file, &format!("key `general.alignment` must be a power of two up to 1048576, is {bad}"));
    }
    check(&Builder::new().str("general.alignment", "32"), "key `general.alignment` must be an integer");
    for good in [1, 8, 4096] {
        let file = Builder { alignment: good as usize, ..Builder::new() }
            .u32("general.alignment", good)
            .tensor("a", &[3], WeightFormat::F32)
            .tensor("b", &[3], WeightFormat::F32);
        let header = Header::parse(&file.build()).unwrap();
        assert!(header.tensors.iter().all(|t| t.data_range().start.is_multiple_of(good as usize)));
    }
}

#[test]
fn tensor_shapes() {
    let file = |dims: &[u64], type_id| valid().raw_tensor(b"t.x", dims, type_id, 0, Vec::new());
    check(&file(&[], 0), "tensor `t.x`: must have 1 to 4 dimensions, has 0");
    check(&file(&[1, 1, 1, 1, 1], 0), "tensor `t.x`: must have 1 to 4 dimensions, has 5");
    check(&file(&[32, 0], 0), "tensor `t.x`: dimensions [0, 32] must not contain 0");
    check(&file(&[0, 32], 0), "tensor `t.x`: dimensions [32, 0] must not contain 0");
    check(
        &file(&[4, 33], types::id_of(WeightFormat::Q4_0)),
        "tensor `t.x`: rows of 33 elements must be a multiple of 32",
    );
    check(
        &file(&[4, 128], types::id_of(WeightFormat::Q4K)),
        "rows of 128 elements must be a multiple of 256, the block length of Q4_K",
    );
    for dims in [[1 << 32, 1 << 32], [u64::MAX, 32], [1 << 57, 32], [1 << 31, 1 << 31]] {
        check(&file(&dims, 0), "tensor `t.x`: dimensions");
        check(&file(&dims, 0), "overflow");
    }
}

#[test]
fn tensor_names_and_types() {
    let file = |name: &[u8], type_id| valid().raw_tensor(name, &[32], type_id, 0, Vec::new());
    check(&file(b"output_norm.weight", 0), "tensor `output_norm.weight` is listed twice");
    check(&file(b"", 0), "tensor number 3 has an empty name");
    check(&file(&[0xc0], 0), "tensor number 3: the name is not UTF-8");
    check(&file(&[b'n'; 256], 0), "tensor number 3: the name is 256 bytes long");
    let supported = "supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";
    check(&file(b"t.x", 23), &format!("tensor `t.x`: type IQ4_XS (23) is not supported; {supported}"));
    check(&file(b"t.x", 777), "tensor `t.x`: type 777 is not supported");
}

#[test]
fn tensor_places() {
    let file = |offset, len| valid().raw_tensor(b"t.x", &[32], 0, offset, vec![0; len]);
    check(&file(33, 128), "tensor `t.x`: offset 33 must be a multiple of the alignment 32");
    check(&file(1 << 40, 0), "tensor `t.x`: its 128 bytes at offset 1099511627776 end beyond the file");
    check(&file(u64::MAX - 31, 0), "tensor `t.x`: its 128 bytes at offset 18446744073709551584 end beyond the file");
    check(&file(0, 128), "tensors `token_embd.weight` and `t.x` overlap");
    let mut cut_short = valid().build();
    cut_short.pop();
    check_bytes(&cut_short, "tensor `output_norm.weight`: its 128 bytes");
    check_bytes(&valid().header(), "tensor `token_embd.weight`: its 80 bytes");
}

#[test]
fn every_truncation_is_an_error() {
    let whole = valid().build();
    for len in 0..whole.len() {
        let error = Header::parse(&whole[..len]).expect_err("a truncated file was accepted");
        assert!(!error.message().is_empty());
    }
}

#[test]
fn getters_name_the_key() {
    let bytes = valid().raw("nan", 6, &f32::NAN.to_le_bytes()).raw("minus", 11, &(-1_i64).to_le_bytes()).build();
    let m = Header::parse(&bytes).unwrap().metadata;
    let message = |e: tallow_stream::error::Error| e.message().to_owned();
    assert_eq!(message(m.get_str("no").unwrap_err()), "key `no` is missing");
    assert_eq!(
        message(m.opt_u32("general.architecture").unwrap_err()),
        "key `general.architecture` must be an integer from 0 to 4294967295, is the string \"llama\""
    );
    assert_eq!(
        message(m.opt_u32("minus").unwrap_err()),
        "key `minus` must be an integer from 0 to 4294967295, is the integer -1"
    );
    assert!(message(m.opt_f32("nan").unwrap_err()).starts_with("key `nan` must be a finite"));
    assert!(message(m.opt_bool("general.alignment").unwrap_err()).contains("must be a boolean, is the integer 32"));
    assert!(message(m.strings("tokenizer.ggml.scores").unwrap_err()).contains("is an array of 4 floating-point"));
    assert!(message(m.opt_i32s("tokenizer.ggml.tokens").unwrap_err()).contains("is an array of 4 strings"));
    assert_eq!(m.opt_u32("no").unwrap(), None);
    assert_eq!(m.opt_u32("general.alignment").unwrap(), Some(32));
}
