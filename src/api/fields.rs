//! Request fields that dialects share: sampling and stopping, as OpenAI, vLLM and llama.cpp name them, and the fields
//! that would change the output and are not supported, which are refused by name rather than ignored.
//!
//! A body is parsed once per group of fields, each time from the same bytes. Merging the groups with serde's `flatten`
//! would buffer the values and lose the paths that errors are reported with.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value, json};

use super::body;
use super::many::{CALLS_MAX, Many, PARTS_MAX};
use super::numbers::Whole;
use super::parts;
use super::problem::Problem;
use super::tool_fields::{self, CallFields};
use crate::error::Error;
use crate::protocol::{ChatMessage, SamplingParams, StopParams, TokenId};

/// Fields that would change the output, with the values that ask for nothing (beside `null`, `false`, `0` and empty ones,
/// which never do).
const UNSUPPORTED: [(&str, &[&str]); 38] = [
    ("allowed_token_ids", &[]),
    ("audio", &[]),
    ("bad_words", &[]),
    ("best_of", &["1"]),
    ("chat_template", &[]),
    ("chat_template_kwargs", &[]),
    ("documents", &[]),
    ("dry_multiplier", &[]),
    ("dynatemp_range", &[]),
    ("echo", &[]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &[]),
    ("grammar", &[]),
    ("guided_whitespace_pattern", &[]),
    ("include_stop_str_in_output", &[]),
    ("json_schema", &[]),
    ("length_penalty", &["1", "1.0"]),
    ("logits_processors", &[]),
    ("lora", &[]),
    ("mirostat", &[]),
    ("modalities", &["[\"text\"]"]),
    ("n_probs", &[]),
    ("prompt_logprobs", &[]),
    // 64 is llama.cpp's own default, which its clients repeat; here a penalty is about the whole text.
    ("repeat_last_n", &["64", "-1"]),
    ("return_token_ids", &[]),
    ("return_tokens_as_token_ids", &[]),
    ("samplers", &[]),
    ("skip_special_tokens", &["true"]),
    ("suffix", &[]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("tools", &[]),
    ("top_n_sigma", &["-1", "-1.0"]),
    ("truncate_prompt_tokens", &[]),
    ("use_beam_search", &[]),
    ("web_search_options", &[]),
    ("xtc_probability", &[]),
    ("enable_thinking", &["true"]),
    ("continue_final_message", &[]),
];

/// Sampling and stopping fields as they came. Counts are wide so that a negative one meets its rule; `L` is what a
/// dialect means by `logprobs`.
#[derive(Debug, serde::Deserialize)]
struct SamplingFields<L> {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<Whole>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    /// llama.cpp's name of it.
    typ_p: Option<f32>,
    repetition_penalty: Option<f32>,
    /// The name of it in llama.cpp, Ollama and LM Studio.
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<Number>,
    logprobs: Option<L>,
    top_logprobs: Option<Whole>,
    n: Option<Whole>,
    max_tokens: Option<Whole>,
    max_completion_tokens: Option<Whole>,
    /// llama.cpp's name of it.
    n_predict: Option<Whole>,
    min_tokens: Option<Whole>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<TokenId>>,
    ignore_eos: Option<bool>,
}

/// Refuses a body that asks for something unsupported.
///
/// # Errors
/// 400 that names the field, or for a body that is no object.
pub(crate) fn check_supported(json: &[u8], supported: &[&str]) -> Result<(), Problem> {
    let Unsupported(found) = body::parse(json)?;
    match found.iter().find(|name| !supported.contains(&name.as_str())) {
        Some(name) => Err(Problem::unsupported(name, "is not supported by this server")),
        None => Ok(()),
    }
}

/// What the shared fields of `json` ask for, of a dialect with one choice. Parse these first: this is where a body that
/// is no object is found.
///
/// # Errors
/// 400 for a wrong type, a rule that only JSON can break, or a field that is not supported.
pub(crate) fn sampling(json: &[u8]) -> Result<(SamplingParams, StopParams), Problem> {
    sampling_beside(json, &[])
}

/// As [`sampling`], for a dialect that implements `supported` of the fields that others refuse.
///
/// # Errors
/// As [`sampling`].
pub(crate) fn sampling_beside(json: &[u8], supported: &[&str]) -> Result<(SamplingParams, StopParams), Problem> {
    let SharedFields { sampling, stop, num_choices } = chat(json, supported)?;
    if num_choices != 1 {
        return Err(Error::invalid("n", format!("`n` must be 1, got {num_choices}")).into());
    }
    Ok((sampling, stop))
}

/// What the shared fields ask for.
pub(crate) struct SharedFields {
    /// How to draw.
    pub sampling: SamplingParams,
    /// When to end.
    pub stop: StopParams,
    /// How many answers.
    pub num_choices: usize,
}

/// As [`sampling_beside`], with any number of choices; `logprobs` is a switch.
///
/// # Errors
/// As [`sampling`].
pub(crate) fn chat(json: &[u8], supported: &[&str]) -> Result<SharedFields, Problem> {
    shared(json, supported, 1, |logprobs: Option<bool>, top_logprobs| match (logprobs.unwrap_or(false), top_logprobs) {
        (false, Some(n)) if n > 0 => {
            let message = format!("`top_logprobs` must come with `logprobs: true`, got {n} without");
            Err(Error::invalid("top_logprobs", message).into())
        }
        (false, _) => Ok(None),
        (true, n) => Ok(Some(n.unwrap_or(0))),
    })
}

/// As [`sampling`], of the older completions: `logprobs` is the number of rivals, and `supported` are fields that only
/// they have.
///
/// # Errors
/// As [`sampling`].
pub(crate) fn completions(json: &[u8], supported: &[&str]) -> Result<SharedFields, Problem> {
    // 0 with `echo` asks for the prompt alone.
    shared(json, supported, 0, |logprobs: Option<Whole>, _| count("logprobs", logprobs, 0))
}

fn shared<L: for<'de> Deserialize<'de>>(
    json: &[u8],
    supported: &[&str],
    max_tokens_min: i64,
    top_logprobs: impl FnOnce(Option<L>, Option<usize>) -> Result<Option<usize>, Problem>,
) -> Result<SharedFields, Problem> {
    check_supported(json, supported)?;
    let f: SamplingFields<L> = body::parse(json)?;
    let top_logprobs = top_logprobs(f.logprobs, count("top_logprobs", f.top_logprobs, 0)?)?;
    let default = SamplingParams::default();
    let sampling = SamplingParams {
        temperature: f.temperature.unwrap_or(default.temperature),
        top_p: f.top_p.unwrap_or(default.top_p),
        // -1 is vLLM's spelling of "all".
        top_k: count("top_k", f.top_k.filter(|k| k.0 != -1), 0)?.unwrap_or(default.top_k),
        min_p: f.min_p.unwrap_or(default.min_p),
        typical_p: f.typical_p.or(f.typ_p).unwrap_or(default.typical_p),
        repetition_penalty: f.repetition_penalty.or(f.repeat_penalty).unwrap_or(default.repetition_penalty),
        presence_penalty: f.presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: f.frequency_penalty.unwrap_or(default.frequency_penalty),
        logit_bias: logit_bias(f.logit_bias.unwrap_or_default())?,
        seed: f.seed.as_ref().map(seed).transpose()?,
        top_logprobs,
        prompt_logprobs: None,
    };
    let max_tokens = match (f.max_completion_tokens, f.max_tokens.or(f.n_predict)) {
        (Some(n), _) => ceiling("max_completion_tokens", Some(n), max_tokens_min)?,
        (None, n) => ceiling("max_tokens", n, max_tokens_min)?,
    };
    let stop = StopParams {
        max_tokens,
        min_tokens: count("min_tokens", f.min_tokens, 0)?.unwrap_or(0),
        // An empty string in place of a list is how some clients say that there is none.
        strings: f.stop.map_or_else(Vec::new, |s| s.0),
        token_ids: f.stop_token_ids.unwrap_or_default(),
        ignore_eos: f.ignore_eos.unwrap_or(false),
    };
    Ok(SharedFields { sampling, stop, num_choices: count("n", f.n, 1)?.unwrap_or(1) })
}

/// One message of a chat as it came.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct MessageFields {
    role: Option<String>,
    content: Option<Content>,
    name: Option<String>,
    /// What the assistant thought, under each of the names that servers hand it out with.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    thinking: Option<String>,
    /// Whether this is the beginning of the answer: Mistral's and DeepSeek's.
    prefix: Option<bool>,
    refusal: Option<String>,
    tool_calls: Option<Many<CallFields, CALLS_MAX>>,
    tool_call_id: Option<String>,
    function_call: Option<IgnoredAny>,
}

/// The messages, each as one text.
///
/// # Errors
/// 400 for a missing role or content and for content that is not text.
pub(crate) fn messages(messages: Vec<MessageFields>) -> Result<Vec<ChatMessage>, Problem> {
    // What the user asks about now; what came before it is history, in which nothing is refused.
    let asked = messages.iter().rposition(|m| m.role.as_deref() == Some("user"));
    messages.into_iter().enumerate().map(|(i, m)| message(i, m, asked == Some(i))).collect()
}

/// Whether the last message says that it is the beginning of the answer.
pub(crate) fn has_prefix(messages: &[MessageFields]) -> bool {
    messages.last().is_some_and(|m| m.prefix == Some(true))
}

fn message(i: usize, m: MessageFields, is_asked: bool) -> Result<ChatMessage, Problem> {
    let missing = |field: &str| {
        let param = format!("messages[{i}].{field}");
        Problem::from(Error::invalid(param.clone(), format!("`{param}` must be given")))
    };
    let role = m.role.ok_or_else(|| missing("role"))?;
    if m.function_call.is_some() {
        let param = format!("messages[{i}].function_call");
        return Err(Problem::unsupported(&param, "is not supported by this server; `tool_calls` is"));
    }
    let tool_calls = tool_fields::calls(m.tool_calls.unwrap_or_default().0, &format!("messages[{i}].tool_calls"))?;
    if role != "assistant" && !tool_calls.is_empty() {
        let param = format!("messages[{i}].tool_calls");
        let message = format!("`{param}` must be an assistant's, got role {role:?}");
        return Err(Error::invalid(param, message).into());
    }
    if role == "tool" && m.tool_call_id.is_none() {
        return Err(missing("tool_call_id"));
    }
    let content = match m.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let mut text = String::new();
            for (j, part) in parts.0.into_iter().enumerate() {
                text.push_str(&part.into_text(&format!("messages[{i}].content[{j}]"), is_asked)?);
            }
            text
        }
        None => match m.refusal {
            Some(refusal) => refusal,
            // An assistant that only called, or was cut before its first word, has said nothing.
            None if role == "assistant" => String::new(),
            None => return Err(missing("content")),
        },
    };
    let reasoning_content = m.reasoning_content.or(m.reasoning).or(m.thinking);
    let (tool_call_id, name) = (m.tool_call_id, m.name);
    Ok(ChatMessage { role, content, reasoning_content, tool_calls, tool_call_id, name })
}

/// A string, or a list of parts.
#[derive(Debug)]
enum Content {
    Text(String),
    Parts(Many<Part, PARTS_MAX>),
}

#[derive(Debug, serde::Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    refusal: Option<String>,
}

impl Part {
    /// What a model that reads text sees of it. `is_asked`: in the message that the answer is about.
    fn into_text(self, path: &str, is_asked: bool) -> Result<String, Problem> {
        let given = |text: Option<String>, field: &str| {
            let param = format!("{path}.{field}");
            text.ok_or_else(|| Error::invalid(param.clone(), format!("`{param}` must be given")).into())
        };
        match self.kind.as_deref() {
            Some("text" | "input_text" | "output_text") => given(self.text, "text"),
            Some("refusal") => given(self.refusal, "refusal"),
            Some(kind) => parts::foreign(kind, &format!("{path}.type"), is_asked),
            None => given(None, "type"),
        }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of content parts")
            }
            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Content, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
            }
        }
        d.deserialize_any(ContentVisitor)
    }
}

/// A string, or a list of strings.
#[derive(Debug)]
struct OneOrMany(Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor;
        impl<'de> Visitor<'de> for OneOrManyVisitor {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E>(self, one: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(if one.is_empty() { Vec::new() } else { vec![one.to_owned()] }))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, many: A) -> Result<OneOrMany, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(many)).map(OneOrMany)
            }
        }
        d.deserialize_any(OneOrManyVisitor)
    }
}

/// The fields of an object that ask for something unsupported. Everything else is skipped, not stored.
struct Unsupported(Vec<String>);

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct UnsupportedVisitor;
        impl<'de> Visitor<'de> for UnsupportedVisitor {
            type Value = Unsupported;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unsupported, A::Error> {
                let mut found = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    match UNSUPPORTED.iter().find(|(known, _)| *known == name) {
                        Some((known, neutral)) => {
                            let value: Value = map.next_value()?;
                            let is_new = asks_for_something(&value, neutral) && !found.contains(&name);
                            found.extend(is_new.then(|| (*known).to_owned()));
                        }
                        None => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Unsupported(found))
            }
        }
        d.deserialize_map(UnsupportedVisitor)
    }
}

fn asks_for_something(value: &Value, neutral: &[&str]) -> bool {
    let is_empty = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) => false,
    };
    let is_neutral = neutral.iter().any(|n| serde_json::from_str::<Value>(n).is_ok_and(|n| n == *value));
    // `false` is what asks for something where `true` does not.
    let is_on_by_default = neutral.contains(&"true");
    !(is_neutral || value.is_null() || (is_empty && !is_on_by_default))
}

/// A number of things.
///
/// # Errors
/// 400 if it is less than `min`.
pub(crate) fn count(name: &str, value: Option<Whole>, min: i64) -> Result<Option<usize>, Problem> {
    match value {
        Some(Whole(n)) if n < min => {
            Err(Error::invalid(name, format!("`{name}` must be at least {min}, got {n}")).into())
        }
        n => Ok(n.map(|n| n.0 as usize)),
    }
}

/// How long an answer may be; -1 is how some clients say that they set no bound.
///
/// # Errors
/// 400 if it is less than `min`.
pub(crate) fn ceiling(name: &str, value: Option<Whole>, min: i64) -> Result<Option<usize>, Problem> {
    count(name, value.filter(|n| n.0 != -1), min)
}

/// Any 64 bits do, written with a sign or without.
fn seed(value: &Number) -> Result<u64, Problem> {
    let whole =
        || value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= (1u64 << 53) as f64).map(|x| x as i64 as u64);
    let bits = value.as_u64().or_else(|| value.as_i64().map(|n| n as u64)).or_else(whole);
    bits.ok_or_else(|| Error::invalid("seed", format!("`seed` must be a 64-bit integer, got {value}")).into())
}

fn logit_bias(biases: BTreeMap<String, f32>) -> Result<Vec<(TokenId, f32)>, Problem> {
    let entry = |(key, bias): (String, f32)| match key.parse() {
        Ok(token) => Ok((token, bias)),
        Err(_) => {
            let message = format!("the keys of `logit_bias` must be token ids, got {}", json!(key));
            Err(Error::invalid("logit_bias", message).into())
        }
    };
    biases.into_iter().map(entry).collect()
}
