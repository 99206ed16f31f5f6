//! The contents of requests. Request number `i` of a load depends only on the seed and on `i`. Prompts are words from a
//! list, of about one token each, or lines of a file.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::draws::{Draws, Purpose};
use super::lengths::{Lengths, TOKENS_MAX};

/// Most lines of a data set.
const DATASET_LINES_MAX: usize = 1_000_000;
/// Largest file of a data set.
const DATASET_BYTES_MAX: u64 = 256 << 20;

/// Common words that most vocabularies hold as one token each, with the space before it.
const WORDS: &str = "the of and to in a is that for it as was with be by on not he his but at are this have from or \
    had an they which one you were all her she there would their we him been has when who will no more if out so up \
    said what its about than into them can only other time new some could these two may first then do any like my now \
    over such our man me even most made after also did many off before must well back through years where much your \
    way down should because long each just state those people too mr how little good world make very year still see \
    own work men day get here old between both life being under three never know same last another while us might \
    great go come since against right came take used himself few house use during without again place around however \
    home small found school part once every number high war water night left head end public eyes system set better \
    room young light far side next area open field king road river story music paper table letter winter summer";

/// The source of requests.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The source of prompts.
    pub prompts: Prompts,
    /// `max_tokens`, if the data set does not set it.
    pub output_tokens: Lengths,
    /// Seed of all random draws.
    pub seed: u64,
}

/// The source of prompts.
#[derive(Debug, Clone)]
pub enum Prompts {
    /// Words in random order, about this many tokens.
    Synthetic(Lengths),
    /// Lines of a file, in turn.
    Dataset(Arc<[DatasetLine]>),
}

/// A line of a data set: one of `prompt` and `messages`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DatasetLine {
    prompt: Option<String>,
    messages: Option<Vec<Value>>,
    max_tokens: Option<usize>,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The prompt.
    pub prompt: ItemPrompt,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// The sampling seed that the server uses.
    pub seed: u64,
}

/// The prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum ItemPrompt {
    /// Plain text.
    Text(String),
    /// A chat.
    Messages(Vec<Value>),
}

impl ItemPrompt {
    /// The prompt as messages of a chat. Plain text becomes one message of the user.
    pub fn messages(&self) -> Value {
        match self {
            Self::Text(text) => json!([{ "role": "user", "content": text }]),
            Self::Messages(messages) => json!(messages),
        }
    }
}

impl Workload {
    /// Request number `index`.
    pub fn item(&self, index: u64) -> Item {
        let mut draws = Draws::new(self.seed, Purpose::Request, index);
        let seed = draws.bits() >> 1;
        let max_tokens = self.output_tokens.draw(&mut draws);
        match &self.prompts {
            Prompts::Synthetic(lengths) => {
                let num_words = lengths.draw(&mut draws);
                Item { prompt: ItemPrompt::Text(words(num_words, &mut draws)), max_tokens, seed }
            }
            Prompts::Dataset(lines) => {
                let line = &lines[(index % lines.len() as u64) as usize];
                let prompt = match (&line.prompt, &line.messages) {
                    (Some(text), _) => ItemPrompt::Text(text.clone()),
                    (None, messages) => ItemPrompt::Messages(messages.clone().unwrap_or_default()),
                };
                Item { prompt, max_tokens: line.max_tokens.unwrap_or(max_tokens), seed }
            }
        }
    }

    /// Whether every prompt is plain text, as the Completions API requires.
    pub fn is_plain_text(&self) -> bool {
        match &self.prompts {
            Prompts::Synthetic(_) => true,
            Prompts::Dataset(lines) => lines.iter().all(|line| line.prompt.is_some()),
        }
    }
}

fn words(num_words: usize, draws: &mut Draws) -> String {
    let list: Vec<&str> = WORDS.split_whitespace().collect();
    let mut text = String::with_capacity(num_words * 6);
    for i in 0..num_words {
        if i > 0 {
            text.push(' ');
        }
        text.push_str(list[draws.between(0, list.len() - 1)]);
    }
    text
}

/// Reads a data set of one JSON object per line.
///
/// # Errors
/// If it cannot be read, is empty or too large, or a line has another shape; the message has the line's number.
pub fn read_dataset(path: &Path) -> anyhow::Result<Arc<[DatasetLine]>> {
    let shown = path.display();
    let bytes = std::fs::metadata(path).with_context(|| format!("--dataset: {shown}"))?.len();
    ensure!(bytes <= DATASET_BYTES_MAX, "--dataset: {shown} must be at most {DATASET_BYTES_MAX} bytes, got {bytes}");
    let text = std::fs::read_to_string(path).with_context(|| format!("--dataset: {shown}"))?;
    let mut lines = Vec::new();
    for (i, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let at = || format!("--dataset: {shown}:{}", i + 1);
        let line: DatasetLine = serde_json::from_str(text).with_context(at)?;
        if line.prompt.is_some() == line.messages.is_some() {
            bail!("{}: exactly one of `prompt` and `messages` must be given", at());
        }
        if let Some(n) = line.max_tokens.filter(|n| !(1..=TOKENS_MAX).contains(n)) {
            bail!("{}: `max_tokens` must be from 1 to {TOKENS_MAX}, got {n}", at());
        }
        lines.push(line);
        ensure!(lines.len() <= DATASET_LINES_MAX, "--dataset: {shown} must be at most {DATASET_LINES_MAX} lines");
    }
    ensure!(!lines.is_empty(), "--dataset: {shown} is empty");
    Ok(lines.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synthetic(seed: u64) -> Workload {
        Workload {
            prompts: Prompts::Synthetic(Lengths::Uniform(40, 120)),
            output_tokens: Lengths::Uniform(8, 64),
            seed,
        }
    }

    #[test]
    fn a_request_depends_on_seed_and_number_alone() {
        let load = synthetic(1);
        assert_eq!(load.item(17), synthetic(1).item(17));
        assert_ne!(load.item(17), load.item(18));
        assert_ne!(load.item(17), synthetic(2).item(17));
        for i in 0..100 {
            let item = load.item(i);
            let ItemPrompt::Text(text) = &item.prompt else { panic!("words are text") };
            assert!((40..=120).contains(&text.split(' ').count()));
            assert!((8..=64).contains(&item.max_tokens));
        }
    }

    #[test]
    fn a_data_set_is_gone_through_in_turn() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "{\"prompt\": \"one\", \"max_tokens\": 3}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"two\"}]}\n";
        std::fs::write(file.path(), text).expect("written");
        let lines = read_dataset(file.path()).expect("well-formed");
        let load = Workload { prompts: Prompts::Dataset(lines), ..synthetic(1) };
        assert_eq!((load.item(0).prompt, load.item(0).max_tokens), (ItemPrompt::Text("one".into()), 3));
        assert_eq!(load.item(3).prompt.messages()[0]["content"], "two");
        assert!(!load.is_plain_text());
    }

    #[test]
    fn a_bad_line_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (text, expect) in [
            ("", "is empty"),
            ("{\"prompt\": \"a\"}\n{\"max_tokens\": 1}", ":2: exactly one of `prompt` and `messages`"),
            ("{\"prompt\": 3}", ":1: invalid type"),
            ("{\"prompt\": \"a\", \"max_tokens\": 0}", ":1: `max_tokens` must be from 1"),
        ] {
            std::fs::write(file.path(), text).expect("written");
            let error = format!("{:#}", read_dataset(file.path()).expect_err("a bad file"));
            assert!(error.starts_with("--dataset: ") && error.contains(expect), "{error}");
        }
    }
}
