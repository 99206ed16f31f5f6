//! Every field of a request body, with its schema, the bodies that have it, and a value that is accepted.

use super::routes::Body::{self, Chat, Completions, Streams};

/// One field.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// As it is written.
    pub name: &'static str,
    /// The bodies that have it.
    pub on: &'static [Body],
    /// Its JSON schema.
    pub schema: &'static str,
    /// A value that is accepted beside the least that a body must have, as JSON.
    pub example: &'static str,
    /// What it does.
    pub summary: &'static str,
}

const EVERY: &[Body] = &Body::ALL;
const OPENAI: &[Body] = &[Chat, Completions];
const CHATS: &[Body] = &[Chat, Streams];

const fn field(
    name: &'static str,
    on: &'static [Body],
    schema: &'static str,
    example: &'static str,
    summary: &'static str,
) -> Field {
    Field { name, on, schema, example, summary }
}

const FLAG: &str = r#"{"type":["boolean","null"]}"#;
const COUNT: &str = r#"{"type":["integer","null"],"minimum":0}"#;
const POSITIVE: &str = r#"{"type":["integer","null"],"minimum":1}"#;
const SHARE: &str = r#"{"type":["number","null"],"exclusiveMinimum":0,"maximum":1}"#;
const PENALTY: &str = r#"{"type":["number","null"],"minimum":-2,"maximum":2}"#;
const TEXT: &str = r#"{"type":["string","null"]}"#;
const TOKENS: &str = r#"{"type":["array","null"],"items":{"type":"integer","minimum":0}}"#;
const MESSAGES: &str = r##"{"type":"array","minItems":1,"items":{"$ref":"#/components/schemas/Message"}}"##;
const PROMPTS: &str = r#"{"anyOf":[{"type":"string"},{"type":"array","items":{"type":"string"}},{"type":"array","items":{"type":"integer","minimum":0}},{"type":"array","items":{"type":"array","items":{"type":"integer","minimum":0}}}]}"#;
const STOP: &str = r#"{"anyOf":[{"type":"null"},{"type":"string"},{"type":"array","items":{"type":"string"}}]}"#;
const BIAS: &str =
    r#"{"type":["object","null"],"additionalProperties":{"type":"number","minimum":-100,"maximum":100}}"#;
const OPTIONS: &str = r#"{"type":["object","null"],"properties":{"include_usage":{"type":["boolean","null"]}}}"#;
const POLICY: &str = r#"{"anyOf":[{"type":"null"},{"enum":["cancel","linger","detach"]},{"type":"object","properties":{"linger":{"type":"number","minimum":0}},"required":["linger"],"additionalProperties":false}]}"#;
const ANY: &str = "{}";

/// All fields, by what they are about.
pub const FIELDS: &[Field] = &[
    field("model", EVERY, TEXT, "null", "The served model's name; may be left out"),
    field("messages", CHATS, MESSAGES, "", "The conversation"),
    field("prompt", &[Completions], PROMPTS, "", "One text or token ids, or a list of either"),
    field("prompt", &[Streams], TEXT, "", "The text to go on from; or `messages`, or `tokens`"),
    field("tokens", &[Streams], TOKENS, "", "Token ids to go on from"),
    field("stream", OPENAI, FLAG, "false", "Events as they come, or one answer"),
    field("stream_options", OPENAI, OPTIONS, "null", "`include_usage`: a last chunk with token counts"),
    field("max_tokens", EVERY, POSITIVE, "8", "Most tokens of the answer; 0 with `echo` on completions"),
    field("max_completion_tokens", EVERY, POSITIVE, "8", "The newer name of `max_tokens`, which it beats"),
    field("min_tokens", EVERY, COUNT, "1", "Fewest tokens before the text may end"),
    field("n", OPENAI, POSITIVE, "2", "Choices; choice i is the text of `seed` + i"),
    field("best_of", &[Completions], POSITIVE, "3", "Choices that are made, of which the likeliest `n` are given"),
    field("echo", &[Completions], FLAG, "true", "The prompt before the text, measured if there are `logprobs`"),
    field("temperature", EVERY, r#"{"type":["number","null"],"minimum":0,"maximum":2}"#, "0.5", "0 is greedy"),
    field("top_p", EVERY, SHARE, "0.9", "The smallest set of tokens whose probabilities reach this"),
    field(
        "top_k",
        EVERY,
        r#"{"type":["integer","null"],"minimum":-1}"#,
        "40",
        "So many of the likeliest; 0 and -1 are all",
    ),
    field(
        "min_p",
        EVERY,
        r#"{"type":["number","null"],"minimum":0,"maximum":1}"#,
        "0.05",
        "At least so likely relative to the likeliest",
    ),
    field("typical_p", EVERY, SHARE, "0.9", "Locally typical sampling"),
    field("presence_penalty", EVERY, PENALTY, "0.5", "Taken from tokens that came before"),
    field("frequency_penalty", EVERY, PENALTY, "0.5", "Taken for every time that they came"),
    field(
        "repetition_penalty",
        EVERY,
        r#"{"type":["number","null"],"exclusiveMinimum":0}"#,
        "1.1",
        "Divides the logits of tokens in prompt and output",
    ),
    field("logit_bias", EVERY, BIAS, r#"{"65":-100}"#, "Added to logits, by token id"),
    field("seed", EVERY, r#"{"type":["integer","null"]}"#, "7", "Same request, same seed, same bytes"),
    field("stop", EVERY, STOP, r#"["END"]"#, "The text ends before any of these"),
    field("stop_token_ids", EVERY, TOKENS, "[10]", "Tokens that end the text"),
    field("ignore_eos", EVERY, FLAG, "true", "Goes on past the model's own end"),
    field("logprobs", CHATS, FLAG, "true", "The log-probability of every token"),
    field("top_logprobs", CHATS, COUNT, "0", "And of so many rivals"),
    field("logprobs", &[Completions], COUNT, "2", "Log-probabilities, of so many rivals too"),
    field(
        "priority",
        EVERY,
        r#"{"type":["integer","null"],"minimum":-10,"maximum":10}"#,
        "1",
        "Lower goes first, within what the key may",
    ),
    field(
        "on_disconnect",
        &[Streams],
        POLICY,
        r#""detach""#,
        "What becomes of it when the last reader leaves; elsewhere the header `x-stream-on-disconnect`",
    ),
    field("user", OPENAI, ANY, r#""me""#, "Accepted, without effect"),
    field("metadata", OPENAI, ANY, r#"{"a":"b"}"#, "Accepted, without effect"),
    field("service_tier", OPENAI, ANY, r#""auto""#, "Accepted, without effect"),
    field("store", OPENAI, ANY, "false", "Accepted, without effect"),
];

/// The table of fields as Markdown: a row per field, a column per body.
pub fn field_table() -> String {
    let mut out = "| field |".to_owned();
    Body::ALL.iter().for_each(|body| out += &format!(" `{}` |", body.path()));
    out += " |\n|---|";
    Body::ALL.iter().for_each(|_| out += "---|");
    out += "---|\n";
    for field in FIELDS {
        out += &format!("| `{}` |", field.name);
        Body::ALL.iter().for_each(|body| out += if field.on.contains(body) { " yes |" } else { " |" });
        out += &format!(" {} |\n", field.summary);
    }
    out
}
