//! Small vocabularies made by hand, for the rules that no single real file covers.

use super::*;
use TokenKind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
use tallow_stream::error::ErrorKind;

fn vocab(scheme: Scheme, tokens: &[(&str, TokenKind)]) -> Vocab {
    Vocab {
        tokens: tokens.iter().map(|(token, _)| (*token).to_owned()).collect(),
        kinds: tokens.iter().map(|(_, kind)| *kind).collect(),
        scheme,
        bos: None,
        eos: None,
        end_of_generation: Vec::new(),
        add_bos: false,
        add_space_prefix: false,
    }
}

/// Byte-level: `<end>` is control, `<tab>` user-defined.
fn bpe() -> Vocab {
    let tokens = [
        ("a", Normal),
        ("b", Normal),
        ("c", Normal),
        ("ab", Normal),
        ("Ġ", Normal),
        ("Ġab", Normal),
        ("<end>", Control),
        ("<tab>", UserDefined),
        ("<", Normal),
        (">", Normal),
        ("e", Normal),
        ("n", Normal),
        ("d", Normal),
    ];
    let merges = ["a b", "Ġ ab", "x y"].map(str::to_owned).to_vec();
    Vocab { eos: Some(6), bos: Some(6), ..vocab(Scheme::Bpe { pre: "gpt-2".to_owned(), merges }, &tokens) }
}

/// SentencePiece: byte tokens for `é`, and an unused piece on the way to `abc`.
fn sentencepiece() -> Vocab {
    let tokens = [
        ("<unk>", Unknown),
        ("<s>", Control),
        ("</s>", Control),
        ("<0xC3>", Byte),
        ("<0xA9>", Byte),
        ("▁", Normal),
        ("a", Normal),
        ("b", Normal),
        ("c", Normal),
        ("ab", Unused),
        ("abc", Normal),
        ("▁a", Normal),
        ("  ", UserDefined),
        ("bc", Normal),
        ("\n", UserDefined),
    ];
    let scores = vec![0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, 0.0, -4.0, 0.0];
    Vocab { bos: Some(1), eos: Some(2), add_bos: true, ..vocab(Scheme::SentencePiece { scores }, &tokens) }
}

#[track_caller]
fn check(tokenizer: &Tokenizer, text: &str, parse_special: bool, expect: &[TokenId]) {
    let ids = tokenizer.encode(text, parse_special).expect("encodes");
    assert_eq!(ids, expect, "{text:?}");
}

#[test]
fn byte_level_bpe_merges_and_keeps_control_tokens_out_of_text() {
    let tokenizer = Tokenizer::from_vocab(bpe()).expect("builds");
    check(&tokenizer, "ab ab", false, &[3, 5]);
    check(&tokenizer, "a<end>", true, &[0, 6]);
    check(&tokenizer, "a<end>", false, &[0, 8, 10, 11, 12, 9]);
    check(&tokenizer, "a<tab>b", false, &[0, 7, 1]);
    assert_eq!(tokenizer.decode(&[3, 5, 6, 7]), "ab ab<tab>");
    assert_eq!(tokenizer.token_bytes(5), b" ab");
    assert_eq!((tokenizer.token_bytes(6), tokenizer.special_spelling(6)), (&b""[..], Some("<end>")));
    assert_eq!(tokenizer.token_bytes(99), b"");
    assert!(tokenizer.is_end_of_generation(6), "eos ends a generation without being listed");
}

#[test]
fn a_whole_word_wins_over_merges_where_the_family_says_so() {
    let with_pre = |pre: &str| {
        let mut vocab = bpe();
        vocab.tokens.push("cab".to_owned());
        vocab.kinds.push(Normal);
        vocab.scheme = Scheme::Bpe { pre: pre.to_owned(), merges: vec!["a b".to_owned()] };
        Tokenizer::from_vocab(vocab).expect("builds")
    };
    check(&with_pre("gpt-2"), "cab", false, &[2, 3]);
    check(&with_pre("llama-bpe"), "cab", false, &[13]);
}

#[test]
fn sentencepiece_takes_unused_pieces_apart_and_spells_unknown_characters_in_bytes() {
    let tokenizer = Tokenizer::from_vocab(sentencepiece()).expect("builds");
    check(&tokenizer, "abc", false, &[10]);
    check(&tokenizer, "ab", false, &[6, 7]);
    check(&tokenizer, "bc", false, &[13]);
    check(&tokenizer, "é", false, &[3, 4]);
    check(&tokenizer, "ü", false, &[0]);
    check(&tokenizer, "üü", false, &[0]);
    check(&tokenizer, "a   a\n", false, &[6, 12, 11, 14]);
    check(&tokenizer, "a▁▁a", false, &[6, 12, 6]);
    check(&tokenizer, "<s>", true, &[1]);
    check(&tokenizer, "<s>", false, &[0]);
    assert_eq!(tokenizer.token_bytes(11), b" a");
    assert_eq!(tokenizer.token_bytes(3), b"\xC3");
}

#[test]
fn the_space_in_front_goes_in_and_comes_out() {
    let vocab = Vocab { add_space_prefix: true, ..sentencepiece() };
    let tokenizer = Tokenizer::from_vocab(vocab).expect("builds");
    check(&tokenizer, "a", false, &[11]);
    check(&tokenizer, "a<s>a", true, &[11, 1, 11]);
    check(&tokenizer, "", true, &[]);
    for text in ["a", " a", "  a", "abc abc", "a\na"] {
        let ids = tokenizer.encode(text, false).expect("encodes");
        assert_eq!(tokenizer.decode(&ids), text, "{ids:?}");
    }
    // Generated text follows the prompt, so its space is content.
    assert_eq!(tokenizer.token_bytes(11), b" a");
}

/// Tokenises a prompt in the same way as a request's prompt.
fn prompt(tokenizer: &Tokenizer, text: &str) -> Vec<TokenId> {
    let mut ids = tokenizer.encode(text, true).expect("encodes");
    tokenizer.begin(&mut ids);
    ids
}

#[test]
fn a_prompt_begins_with_one_bos() {
    let tokenizer = Tokenizer::from_vocab(sentencepiece()).expect("builds");
    assert!(tokenizer.adds_bos());
    assert_eq!(prompt(&tokenizer, "a"), [1, 6]);
    assert_eq!(prompt(&tokenizer, "<s>a"), [1, 6], "the template wrote it");
    assert_eq!(prompt(&tokenizer, "<s><s>a"), [1, 1, 6], "what the text asks for stays");
    assert_eq!(prompt(&tokenizer, ""), [1]);
    let plain = Tokenizer::from_vocab(Vocab { add_bos: false, ..sentencepiece() }).expect("builds");
    assert_eq!(prompt(&plain, "a"), [6]);
}

#[test]
fn a_vocabulary_that_cannot_spell_says_so() {
    let scores = vec![0.0];
    let tokenizer = Tokenizer::from_vocab(vocab(Scheme::SentencePiece { scores }, &[("a", Normal)])).expect("builds");
    let error = tokenizer.encode("ab", false).expect_err("no token for b");
    assert_eq!(
        (error.kind(), error.message()),
        (ErrorKind::InvalidRequest, "this model's vocabulary cannot spell \"b\"")
    );
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let refused = |vocab: Vocab, part: &str| {
        let error = Tokenizer::from_vocab(vocab).expect_err("does not fit");
        assert_eq!(error.kind(), ErrorKind::BadModel);
        assert!(error.message().contains(part), "{error}");
    };
    refused(Vocab { tokens: Vec::new(), ..bpe() }, "got 0");
    refused(Vocab { kinds: vec![Normal], ..bpe() }, "got 1");
    refused(Vocab { scheme: Scheme::SentencePiece { scores: vec![0.0] }, ..bpe() }, "scores");
    refused(Vocab { scheme: Scheme::SentencePiece { scores: vec![f32::NAN; 13] }, ..bpe() }, "not a number");
    refused(Vocab { eos: Some(13), ..bpe() }, "beyond the 13 tokens");
    refused(Vocab { bos: None, add_bos: true, ..bpe() }, "names none");
    refused(
        Vocab { scheme: Scheme::Bpe { pre: "gpt-2".to_owned(), merges: vec!["ab".to_owned()] }, ..bpe() },
        "merge 0",
    );
}

/// Byte-level, with a special and a plain added token.
const BYTE_LEVEL_JSON: &str = r#"{
  "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
  "added_tokens": [
    {"id": 4, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 5, "content": "<tab>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}
  ],
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "post_processor": null,
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
    "fuse_unk": false, "byte_fallback": false, "vocab": {"a": 0, "Ġ": 1, "Ġa": 2, "<": 3}, "merges": ["Ġ a"]}
}"#;

/// SentencePiece as converted: a normaliser that marks spaces, byte fallback, a template that writes bos.
const SENTENCEPIECE_JSON: &str = r#"{
  "version": "1.0", "truncation": null, "padding": null,
  "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
  "added_tokens": [
    {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
  ],
  "pre_tokenizer": null,
  "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
  "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
    "fuse_unk": true, "byte_fallback": true, "vocab": {"<s>": 0, "</s>": 1, "<0xC3>": 2, "<0xA9>": 3, "▁": 4, "a": 5, "▁a": 6}, "merges": ["▁ a"]}
}"#;

#[test]
fn a_tokenizer_json_of_bytes() {
    let tokenizer = Tokenizer::from_json(BYTE_LEVEL_JSON.as_bytes(), None).expect("reads");
    check(&tokenizer, "a a<|im_end|>", true, &[0, 2, 4]);
    check(&tokenizer, "a<|im_end|>", false, &[0, 3]);
    check(&tokenizer, "a<tab>", false, &[0, 5]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()), (6, None, Some(4)));
    assert!(tokenizer.is_end_of_generation(4) && !tokenizer.adds_bos());
    assert_eq!((tokenizer.token_bytes(2), tokenizer.token_bytes(4)), (&b" a"[..], &b""[..]));
    assert_eq!(tokenizer.decode(&[0, 2, 4, 5]), "a a<tab>");
}

#[test]
fn a_tokenizer_json_of_pieces() {
    let tokenizer = Tokenizer::from_json(SENTENCEPIECE_JSON.as_bytes(), None).expect("reads");
    check(&tokenizer, "a aé", false, &[6, 6, 2, 3]);
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos(), tokenizer.eos()), (Some(0), true, Some(1)));
    assert_eq!(tokenizer.decode(&[0, 6, 6, 2, 3]), "a aé");
    assert_eq!(prompt(&tokenizer, "<s>a"), [0, 6]);
}

#[test]
fn the_model_files_word_on_ends_wins_over_the_jsons() {
    let mut vocab = bpe();
    vocab.end_of_generation = vec![3];
    let tokenizer = Tokenizer::from_json(BYTE_LEVEL_JSON.as_bytes(), Some(vocab)).expect("reads");
    assert_eq!((tokenizer.eos(), tokenizer.vocab_size()), (Some(6), 13), "padded to the model's vocabulary");
    assert!(tokenizer.is_end_of_generation(3) && !tokenizer.is_end_of_generation(4));
    let mut short = bpe();
    short.tokens.truncate(3);
    short.kinds.truncate(3);
    (short.bos, short.eos) = (None, None);
    let error = Tokenizer::from_json(BYTE_LEVEL_JSON.as_bytes(), Some(short)).expect_err("fewer than the json");
    assert_eq!(error.message(), "tokenizer.json has 6 tokens, the model file 3");
    for damaged in ["", "{}", "null", &BYTE_LEVEL_JSON.replace("\"Ġ a\"", "\"Ġ z\"")] {
        assert_eq!(
            Tokenizer::from_json(damaged.as_bytes(), None).map_err(|e| e.kind()).err(),
            Some(ErrorKind::BadModel)
        );
    }
}

#[test]
fn the_stubs_vocabulary_is_bytes() {
    let tokenizer = Tokenizer::byte_level();
    assert_eq!(tokenizer.vocab_size(), 257);
    assert!(tokenizer.is_end_of_generation(256) && tokenizer.token_bytes(256).is_empty());
    let ids = tokenizer.encode("é!", true).expect("bytes always encode");
    assert_eq!((&ids[..], tokenizer.decode(&ids)), (&[0xC3, 0xA9, 33][..], "é!".to_owned()));
}

#[test]
fn markers_that_are_control_tokens_have_text_in_the_output_only() {
    let mut vocab = bpe();
    vocab.tokens.extend(["[TOOL_CALLS]", "<think>"].map(str::to_owned));
    vocab.kinds.extend([Control, UserDefined]);
    let tokenizer = Tokenizer::from_vocab(vocab).expect("builds");
    assert_eq!((tokenizer.token_bytes(13), tokenizer.output_bytes(13)), (&b""[..], &b"[TOOL_CALLS]"[..]));
    assert_eq!(tokenizer.output_bytes(14), b"<think>");
    assert!(tokenizer.output_bytes(6).is_empty(), "an end has no text");
    assert_eq!((tokenizer.marker_token("[TOOL_CALLS]"), tokenizer.marker_token("<think>")), (Some(13), None));
    let mark = Tokenizer::mark_for(&["[TOOL_CALLS]"].into_iter()).expect("a mark");
    let shielded = tokenizer.shield("[TOOL_CALLS]", mark);
    assert!(!tokenizer.encode_shielded(&shielded, mark).is_ok_and(|ids| ids.contains(&13)), "a user's stays text");
}
