//! How text is split into words before byte-level BPE, by the name a GGUF file gives in `tokenizer.ggml.pre`.
//!
//! A name stands for one or more expressions. Each in turn cuts what the ones before it left: its matches become
//! pieces of their own, and so does the text between them. The expressions are facts about published models: where a
//! model's `tokenizer.json` is known its spelling is used, else what llama.cpp (`src/llama-vocab.cpp`, the GGUF
//! reference) runs for that name. A name that is not here is an error and never a guess, because a wrong split gives
//! plausible text of poor quality and no other sign.

use regex::{Match, Regex};

use tallow_stream::error::{Error, Result};

/// The rules behind one name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Expressions, applied one after another.
    pub expressions: &'static [&'static str],
    /// A word that is a token as a whole becomes that token, even where merges would not lead there.
    pub(crate) ignore_merges: bool,
}

/// The rules of `pre`.
///
/// # Errors
/// [`tallow_stream::error::ErrorKind::BadModel`] for an unknown name, listing the known ones.
pub(super) fn rules_of(pre: &str) -> Result<Rules> {
    if let Some(family) = FAMILIES.iter().find(|family| family.names.contains(&pre)) {
        return Ok(Rules { expressions: family.expressions, ignore_merges: family.ignore_merges });
    }
    let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.names).copied().collect();
    Err(Error::bad_model(format!("pre-tokenizer `{pre}` is not supported; supported are {}", known.join(", "))))
}

/// One expression, ready to cut text.
///
/// Most end in `\s+(?!\S)|\s+`: a run of white space leaves its last character to the word behind it. That look ahead is
/// all that keeps them from the regex library, which is several times faster than those that can look ahead; so the run is
/// matched as a whole and shortened afterwards.
#[derive(Debug)]
pub(super) struct Splitter {
    regex: Regex,
    /// Whether runs of white space are shortened ...
    shortens_spaces: bool,
    /// ... but for those that end lines, which have an alternative of their own.
    has_line_ends: bool,
}

impl Splitter {
    /// Compiles it.
    ///
    /// # Errors
    /// If it is no expression of the regex library, which is a bug in the table below.
    pub(super) fn new(expression: &str) -> Result<Self> {
        let (body, shortens_spaces) = match expression.strip_suffix(r"\s+(?!\S)|\s+") {
            Some(body) => (format!(r"{body}\s+"), true),
            None => (expression.to_owned(), false),
        };
        let has_line_ends = body.contains(r"\s*[\r\n]+");
        let regex = Regex::new(&body)
            .map_err(|e| Error::internal(format!("the expression `{expression}` does not compile: {e}")))?;
        Ok(Self { regex, shortens_spaces, has_line_ends })
    }

    /// Cuts `words` at its matches, each of which is a word of its own, and so is what lies between them.
    pub(super) fn isolate<'a>(&self, words: &[&'a str]) -> Vec<&'a str> {
        let mut cut = Vec::with_capacity(words.len());
        for word in words {
            let mut rest_at = 0;
            while let Some(found) = self.regex.find_at(word, rest_at) {
                let end = self.end(word, found);
                cut.extend([&word[rest_at..found.start()], &word[found.start()..end]]);
                rest_at = end;
            }
            cut.push(&word[rest_at..]);
        }
        cut.retain(|word| !word.is_empty());
        cut
    }

    /// Where a match ends that nothing looked beyond.
    fn end(&self, word: &str, found: Match<'_>) -> usize {
        let (run, rest) = (found.as_str(), &word[found.end()..]);
        let is_run = self.shortens_spaces
            && rest.starts_with(|c: char| !c.is_whitespace())
            && run.chars().all(char::is_whitespace)
            && !(self.has_line_ends && run.ends_with(['\r', '\n']));
        match run.char_indices().next_back() {
            Some((last, _)) if is_run && last > 0 => found.start() + last,
            _ => found.end(),
        }
    }
}

struct Family {
    names: &'static [&'static str],
    expressions: &'static [&'static str],
    ignore_merges: bool,
}

/// GPT-2's own (`encoder.py` of its release; the tokenizers library's `ByteLevel`).
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Llama 3's `tokenizer.json`.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Qwen2's `tokenizer.json`: Llama 3's with single digits.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Qwen3.5's `tokenizer.json`: marks stay with their letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Mistral Nemo's `tokenizer.json` (tekken).
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The published `o200k_base` pattern, as in the `tokenizer.json` of Llama 4.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// DeepSeek-V3's `tokenizer.json`, third of its three expressions.
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const FAMILIES: &[Family] = &[
    // llama.cpp runs these four for files that name no splitter of their own.
    Family {
        names: &["default"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        ignore_merges: false,
    },
    Family {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "mellum",
        ],
        expressions: &[GPT2],
        ignore_merges: false,
    },
    // SmolLM's and StarCoder's `tokenizer.json` put `Digits` (each number character alone) before `ByteLevel`.
    Family {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        expressions: &[r"\p{N}", GPT2],
        ignore_merges: false,
    },
    Family {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        expressions: &[LLAMA3],
        ignore_merges: true,
    },
    Family { names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], expressions: &[LLAMA3], ignore_merges: false },
    Family {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "kormo", "solar-open", "grok-2"],
        expressions: &[QWEN2],
        ignore_merges: false,
    },
    Family { names: &["qwen35"], expressions: &[QWEN35], ignore_merges: false },
    Family { names: &["tekken"], expressions: &[TEKKEN], ignore_merges: true },
    Family { names: &["gpt-4o", "llama4", "kanana2"], expressions: &[GPT4O], ignore_merges: false },
    // llama.cpp's, after Falcon's `tokenizer.json` (Punctuation, ByteLevel, Digits, groups of three).
    Family {
        names: &["falcon"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
        ignore_merges: false,
    },
    Family {
        names: &["deepseek-coder"],
        expressions: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        ignore_merges: false,
    },
    Family {
        names: &["deepseek-v3", "hunyuan-dense"],
        expressions: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        ignore_merges: false,
    },
    // The published class holds a parenthesis and a bar by accident; it is what the models were trained with.
    Family {
        names: &["bloom", "poro-chat", "gpt3-finnish"],
        expressions: &[r" ?[^(\s|.,!?…。，、।۔،)]+"],
        ignore_merges: false,
    },
    Family {
        names: &["viking"], expressions: &[r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"], ignore_merges: false
    },
];

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    /// Ours for each expression, and a library's that can look ahead.
    static BOTH: LazyLock<Vec<(Splitter, fancy_regex::Regex)>> = LazyLock::new(|| {
        let both = |expression: &&str| (Splitter::new(expression), fancy_regex::Regex::new(expression));
        let expressions = FAMILIES.iter().flat_map(|family| family.expressions);
        expressions.map(both).map(|(ours, other)| (ours.expect("compiles"), other.expect("compiles"))).collect()
    });

    /// The words as the library finds them.
    fn looking_ahead(expression: &fancy_regex::Regex, text: &str) -> Vec<String> {
        let (mut words, mut rest_at) = (Vec::new(), 0);
        for found in expression.find_iter(text) {
            let found = found.expect("it ends");
            words.extend([text[rest_at..found.start()].to_owned(), found.as_str().to_owned()]);
            rest_at = found.end();
        }
        words.push(text[rest_at..].to_owned());
        words.retain(|word| !word.is_empty());
        words
    }

    proptest! {
        #[test]
        fn every_expression_cuts_as_if_it_looked_ahead(text in "[ \t\r\n\u{a0}\u{3000}aZ1'stl.,!/$_(漢नé\u{301}]{0,40}") {
            for (ours, expression) in BOTH.iter() {
                let words = ours.isolate(&[text.as_str()]);
                prop_assert_eq!(words, looking_ahead(expression, &text), "{}", expression);
            }
        }
    }
}
