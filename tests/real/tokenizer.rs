//! The vocabularies of real model files: every id equals that of independent implementations, and text comes back.
//!
//! `tests/data/tokens_*.json` holds what the reference gave: the ids of the first lines, and one digest over all lines.
//! `tests/data/make_tokens.py` makes these files: python `tokenizers` set up from SmolLM2's published pipeline
//! (individual digits, then byte-level), and python `sentencepiece` on a model made of Gemma's pieces and scores.
//! shimmytok, a third implementation, runs here.

use crate::corpus;
use crate::real;

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tallow::model::gguf::Gguf;
use tallow::model::vocab::vocab_from_gguf;
use tallow::text::{Detokenizer, Scheme, TokenKind, Tokenizer, Vocab};

use real::{GEMMA3, SMOLLM2};

const SEED: u64 = 20_241_124;
const NUM_LINES: usize = 1_500;

fn tokenizer(path: &Path) -> Tokenizer {
    let file = Gguf::open(path).expect("the file opens");
    Tokenizer::from_vocab(vocab_from_gguf(file.metadata()).expect("it has a vocabulary")).expect("it tokenises")
}

/// One line per prompt: ids in decimal, as the reference script writes them.
fn digest(ids: &[Vec<u32>]) -> String {
    let mut hash = Sha256::new();
    for line in ids {
        let line: Vec<String> = line.iter().map(u32::to_string).collect();
        hash.update(line.join(" ") + "\n");
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn check_against_reference(tokenizer: &Tokenizer, golden: &str) {
    let golden: Value = serde_json::from_str(golden).expect("golden files are JSON");
    let lines = corpus::lines(SEED, NUM_LINES);
    let ids: Vec<Vec<u32>> =
        lines.iter().map(|line| tokenizer.encode(line, false).expect("every line encodes")).collect();
    let shown = golden["ids"].as_array().expect("ids of the first lines");
    assert!(shown.len() >= 200);
    for (index, expect) in shown.iter().enumerate() {
        let expect: Vec<u32> = serde_json::from_value(expect.clone()).expect("ids");
        assert_eq!(ids[index], expect, "seed {SEED} line {index}: {:?}", lines[index]);
    }
    assert_eq!(golden["num_lines"].as_u64(), Some(NUM_LINES as u64));
    assert_eq!(digest(&ids), golden["sha256"].as_str().expect("a digest"), "a line beyond the first {}", shown.len());
}

/// With `TALLOW_CORPUS=lines.json` it also writes the corpus for `make_tokens.py`.
#[test]
fn the_corpus_is_as_long_as_it_says() {
    let lines = corpus::lines(SEED, NUM_LINES);
    assert_eq!(lines.len(), NUM_LINES);
    if let Ok(path) = std::env::var("TALLOW_CORPUS") {
        let json = serde_json::to_string(&lines).expect("lines are JSON");
        std::fs::write(path, json).expect("the corpus is written");
    }
}

#[test]
fn smollm2_ids_equal_the_tokenizers_package() {
    check_against_reference(&tokenizer(&real::path(SMOLLM2)), include_str!("../data/tokens_smollm2.json"));
}

#[test]
fn gemma_ids_equal_the_sentencepiece_package() {
    check_against_reference(&tokenizer(&real::path(GEMMA3)), include_str!("../data/tokens_gemma3.json"));
}

/// SentencePiece with Llama 2's settings, trained on the corpus (`make_tokens.py` says how).
fn llama_like() -> Tokenizer {
    let rows: Vec<(String, f32, u8)> =
        serde_json::from_str(include_str!("../data/llama_like.json")).expect("rows of piece, score, type");
    let kind = |kind: u8| match kind {
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => TokenKind::Normal,
    };
    let vocab = Vocab {
        tokens: rows.iter().map(|row| row.0.clone()).collect(),
        kinds: rows.iter().map(|row| kind(row.2)).collect(),
        scheme: Scheme::SentencePiece { scores: rows.iter().map(|row| row.1).collect() },
        bos: Some(1),
        eos: Some(2),
        end_of_generation: vec![2],
        add_bos: true,
        add_space_prefix: true,
    };
    Tokenizer::from_vocab(vocab).expect("it tokenises")
}

#[test]
fn llama_like_ids_equal_the_sentencepiece_package() {
    check_against_reference(&llama_like(), include_str!("../data/tokens_llama_like.json"));
}

/// SmolLM2's vocabulary has no token for some bytes: six control characters, and the leading bytes of planes that hold
/// no characters.
fn smollm2_can_spell(c: char) -> bool {
    !matches!(c, '\u{4}' | '\u{6}' | '\u{13}' | '\u{14}' | '\u{16}' | '\u{1d}' | '\u{40000}'..='\u{bffff}')
}

/// Where SmolLM2 cannot spell a byte shimmytok puts the unknown token, which is `<|endoftext|>`; llama.cpp drops the byte,
/// and so do we: no text should end a text. Those characters are left out here.
#[test]
fn smollm2_ids_equal_shimmytok() {
    let path = real::path(SMOLLM2);
    let (ours, theirs) = (tokenizer(&path), shimmytok::Tokenizer::from_gguf_file(&path).expect("shimmytok opens it"));
    for (index, line) in corpus::lines(SEED, NUM_LINES).iter().enumerate() {
        let line: String = line.chars().filter(|c| smollm2_can_spell(*c)).collect();
        let expect = theirs.encode(&line, false).expect("shimmytok encodes");
        assert_eq!(ours.encode(&line, false).as_deref(), Ok(&expect[..]), "seed {SEED} line {index}: {line:?}");
    }
}

/// shimmytok does not look for user-defined tokens (runs of white space, tags) before it merges, which the sentencepiece
/// package and llama.cpp do. So it is asked about the stretches between them.
#[test]
fn gemma_ids_equal_shimmytok() {
    let path = real::path(GEMMA3);
    let (ours, theirs) = (tokenizer(&path), shimmytok::Tokenizer::from_gguf_file(&path).expect("shimmytok opens it"));
    let is_user_defined = |ids: &[u32]| ids.iter().any(|&id| ours.special_spelling(id).is_some());
    let mut num_stretches = 0;
    for line in corpus::lines(SEED, NUM_LINES) {
        for stretch in line.split_inclusive(['\n', '\t', ' ']) {
            let stretch = stretch.trim_end_matches(['\n', '\t']);
            let ids = ours.encode(stretch, false).expect("encodes");
            if stretch.is_empty() || is_user_defined(&ids) {
                continue;
            }
            num_stretches += 1;
            assert_eq!(theirs.encode(stretch, false).as_ref().ok(), Some(&ids), "seed {SEED}: {stretch:?}");
        }
    }
    assert!(num_stretches > 1_000, "{num_stretches}");
}

#[track_caller]
fn check_round_trip(tokenizer: &Tokenizer, is_spelled: fn(char) -> bool) {
    for (index, line) in corpus::lines(SEED, NUM_LINES).iter().enumerate() {
        let line: String = line.chars().filter(|c| is_spelled(*c)).collect();
        let ids = tokenizer.encode(&line, false).expect("every line encodes");
        assert_eq!(tokenizer.decode(&ids), line, "seed {SEED} line {index}");
        let is_control = |id: &u32| tokenizer.token_bytes(*id).is_empty();
        assert!(!ids.iter().any(is_control), "seed {SEED} line {index}: no text becomes a control token, {ids:?}");
    }
}

#[test]
fn text_comes_back_and_never_becomes_control() {
    check_round_trip(&tokenizer(&real::path(SMOLLM2)), smollm2_can_spell);
    check_round_trip(&tokenizer(&real::path(GEMMA3)), |_| true);
    check_round_trip(&llama_like(), |_| true);
}

/// With special tokens parsed, their spellings and the other tokens' bytes give the text back; tokens stream out
/// through the detokenizer as they do in a generation.
#[test]
fn rendered_text_comes_back_token_by_token() {
    for name in [SMOLLM2, GEMMA3] {
        let tokenizer = tokenizer(&real::path(name));
        let mut num_special = 0;
        for (index, line) in corpus::lines(SEED, NUM_LINES).iter().enumerate() {
            let line: String = line.chars().filter(|c| smollm2_can_spell(*c)).collect();
            let mut detokenizer = Detokenizer::new();
            let mut text = String::new();
            for id in tokenizer.encode(&line, true).expect("every line encodes") {
                match tokenizer.special_spelling(id) {
                    Some(spelling) => {
                        num_special += 1;
                        detokenizer.push(spelling.as_bytes());
                    }
                    None => detokenizer.push(tokenizer.token_bytes(id)),
                }
                text.push_str(&detokenizer.take());
            }
            text.push_str(&detokenizer.finish());
            assert_eq!(text, line, "{name}, seed {SEED} line {index}");
        }
        assert!(num_special > 100, "{name}: {num_special}");
    }
}

#[test]
fn prompts_of_the_real_models() {
    let smollm2 = tokenizer(&real::path(SMOLLM2));
    let prompt = |tokenizer: &Tokenizer, text: &str| {
        let mut ids = tokenizer.encode(text, true).expect("encodes");
        tokenizer.begin(&mut ids);
        ids
    };
    let ids = prompt(&smollm2, "<|im_start|>user\nHi<|im_end|>\n");
    assert_eq!(ids, [1, 4093, 198, 26843, 2, 198], "ChatML, and no bos: the file says so");
    assert!(smollm2.is_end_of_generation(2) && !smollm2.is_end_of_generation(198));

    let gemma = tokenizer(&real::path(GEMMA3));
    let written = prompt(&gemma, "<bos>Hi");
    assert_eq!(prompt(&gemma, "Hi"), written, "one bos, whoever wrote it");
    assert_eq!(written.iter().filter(|id| Some(**id) == gemma.bos()).count(), 1);
    assert_eq!(
        gemma.decode(&gemma.encode("a\u{2581}b", false).expect("encodes")),
        "a b",
        "SentencePiece's own ambiguity"
    );
}

/// SmolLM2's vocabulary written out as the `tokenizer.json` that was published with it.
#[test]
fn a_tokenizer_json_gives_the_same_ids() {
    let path = real::path(SMOLLM2);
    let file = Gguf::open(&path).expect("the file opens");
    let vocab = vocab_from_gguf(file.metadata()).expect("it has a vocabulary");
    let Scheme::Bpe { merges, .. } = &vocab.scheme else { panic!("SmolLM2 is byte-level") };
    let ids: serde_json::Map<String, Value> =
        vocab.tokens.iter().cloned().zip((0..).map(|id: u32| id.into())).collect();
    let added: Vec<Value> = (0..17)
        .map(|id: usize| {
            json!({"id": id, "content": vocab.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added, "decoder": byte_level,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level]},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": ids, "merges": merges},
    });
    let from_json = Tokenizer::from_json(json.to_string().as_bytes(), Some(vocab.clone())).expect("reads");
    let from_file = Tokenizer::from_vocab(vocab).expect("it tokenises");
    for (index, line) in corpus::lines(SEED, NUM_LINES).iter().enumerate() {
        for parse_special in [false, true] {
            let (ours, theirs) = (from_file.encode(line, parse_special), from_json.encode(line, parse_special));
            assert_eq!(ours, theirs, "seed {SEED} line {index}: {line:?}");
        }
    }
    for id in 0..from_file.vocab_size() as u32 {
        assert_eq!(from_json.token_bytes(id), from_file.token_bytes(id), "token {id}");
        assert_eq!(from_json.special_spelling(id), from_file.special_spelling(id), "token {id}");
    }
}
