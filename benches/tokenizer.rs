//! Text to tokens and tokens to text, in bytes of text per second. The corpus is what is hard on tokenizers: many
//! scripts, code, white space. Vocabularies are those of the two test models, where they are in the cache already.
//!
//! `cargo bench --bench tokenizer`

#[path = "../tests/common/corpus.rs"]
#[allow(dead_code)] // It belongs to the tests, which ask more of it.
mod corpus;

use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tallow::hub::{CacheDir, list};
use tallow::model::gguf::Gguf;
use tallow::model::vocab::vocab_from_gguf;
use tallow::protocol::TokenId;
use tallow::text::{Detokenizer, Tokenizer};

const NUM_LINES: usize = 2000;

/// A name and its tokenizer.
fn tokenizers() -> Vec<(String, Tokenizer)> {
    let cached = CacheDir::from_env().and_then(|cache| list(&cache)).unwrap_or_default();
    let files = cached.into_iter().filter_map(|model| Some((model.spec, model.cached?)));
    let mut found: Vec<_> = files.filter_map(|(name, path)| Some((name, read(&path)?))).collect();
    if found.is_empty() {
        println!("no model is cached (`tallow pull`), so bytes are tokens");
        found.push(("bytes".to_owned(), Tokenizer::byte_level()));
    }
    found
}

fn read(path: &Path) -> Option<Tokenizer> {
    let gguf = Gguf::open(path).ok()?;
    Tokenizer::from_vocab(vocab_from_gguf(gguf.metadata()).ok()?).ok()
}

fn text(c: &mut Criterion) {
    let lines = corpus::lines(1, NUM_LINES);
    let num_bytes: usize = lines.iter().map(String::len).sum();
    for (name, tokenizer) in tokenizers() {
        let mut group = c.benchmark_group("tokenizer");
        group.sample_size(10).throughput(Throughput::Bytes(num_bytes as u64));
        let encode = |line: &String| tokenizer.encode(line, false).expect("any text has tokens");
        group.bench_function(BenchmarkId::new("encode", &name), |b| {
            b.iter(|| lines.iter().map(|line| encode(line).len()).sum::<usize>());
        });
        let ids: Vec<TokenId> = lines.iter().flat_map(encode).collect();
        group.bench_function(BenchmarkId::new("detokenise token by token", &name), |b| {
            b.iter(|| detokenise(&tokenizer, &ids));
        });
        group.finish();
    }
}

/// As the engine does: each token's text as soon as it is whole. Gives the bytes of text.
fn detokenise(tokenizer: &Tokenizer, ids: &[TokenId]) -> usize {
    let mut detokenizer = Detokenizer::new();
    let mut num_bytes = 0;
    for id in ids {
        detokenizer.push(tokenizer.token_bytes(*id));
        num_bytes += detokenizer.take().len();
    }
    num_bytes + detokenizer.finish().len()
}

criterion_group!(benches, text);
criterion_main!(benches);
