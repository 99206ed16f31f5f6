//! Every field of a request body, with its schema, the bodies that have it, and a value that is accepted.

use super::routes::Body::{
    self, Chat, Completions, CountTokens, Detokenize, Embeddings, Messages, Responses, Streams, Tokenize,
};

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

const ALL: &[Body] = &Body::ALL;
/// Sampled as vLLM and llama.cpp have it.
const SAMPLED: &[Body] = &[Chat, Completions, Responses, Streams];
const PLAIN: &[Body] = &[Chat, Completions, Streams];
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
const PRIORITY: &str = r#"{"type":["integer","null"],"minimum":-10,"maximum":10}"#;
const TEXT: &str = r#"{"type":["string","null"]}"#;
const TOKENS: &str = r#"{"type":["array","null"],"items":{"type":"integer","minimum":0}}"#;
const MESSAGES: &str = r##"{"type":"array","minItems":1,"items":{"$ref":"#/components/schemas/Message"}}"##;
const PROMPTS: &str = r#"{"anyOf":[{"type":"string"},{"type":"array","items":{"type":"string"}},{"type":"array","items":{"type":"integer","minimum":0}},{"type":"array","items":{"type":"array","items":{"type":"integer","minimum":0}}}]}"#;
const STOP: &str = r#"{"anyOf":[{"type":"null"},{"type":"string"},{"type":"array","items":{"type":"string"}}]}"#;
const BIAS: &str =
    r#"{"type":["object","null"],"additionalProperties":{"type":"number","minimum":-100,"maximum":100}}"#;
const OPTIONS: &str = r#"{"type":["object","null"],"properties":{"include_usage":{"type":["boolean","null"]},"continuous_usage_stats":{"type":["boolean","null"]}}}"#;
const POLICY: &str = r#"{"anyOf":[{"type":"null"},{"enum":["cancel","linger","detach"]},{"type":"string","pattern":"^linger=[0-9]+(\\.[0-9]+)?$"},{"type":"object","properties":{"linger":{"type":"number","minimum":0}},"required":["linger"],"additionalProperties":false}]}"#;
const ANY: &str = "{}";

const OBJECT: &str = r#"{"type":["object","null"]}"#;
const OBJECTS: &str = r#"{"type":["array","null"],"items":{"type":"object"}}"#;
const BLOCKS: &str = r#"{"anyOf":[{"type":"null"},{"type":"string"},{"type":"array","items":{"type":"object"}}]}"#;
const TURNS: &str = r#"{"type":"array","minItems":1,"items":{"type":"object"}}"#;
const CHOICE: &str = r#"{"anyOf":[{"type":"null"},{"enum":["auto","none","required"]},{"type":"object"}]}"#;
const TOOL: &str = r#"[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]"#;
const FLAT_TOOL: &str = r#"[{"type":"function","name":"f","parameters":{"type":"object"}}]"#;
const CUSTOM_TOOL: &str = r#"[{"name":"f","input_schema":{"type":"object"}}]"#;

/// All fields, by what they are about.
pub const FIELDS: &[Field] = &[
    field("model", ALL, TEXT, "null", "The served model's name; may be left out"),
    field("messages", &[Chat, Streams, Tokenize], MESSAGES, "", "The conversation"),
    field("messages", &[Messages, CountTokens], TURNS, "", "The conversation, in Anthropic's blocks"),
    field("system", &[Messages, CountTokens], BLOCKS, r#""Be brief.""#, "What the model is told first"),
    field("input", &[Responses], BLOCKS, "", "A text, or items: messages, calls and their outputs"),
    field("input", &[Embeddings], PROMPTS, "", "One text or token ids, or a list of either"),
    field(
        "encoding_format",
        &[Embeddings],
        r#"{"enum":["float","base64",null]}"#,
        r#""base64""#,
        "`float`, or `base64` of little-endian f32",
    ),
    field("dimensions", &[Embeddings], COUNT, "null", "Refused: no model here may be cut short"),
    field("instructions", &[Responses], TEXT, r#""Be brief.""#, "What the model is told first, in this turn only"),
    field("previous_response_id", &[Responses], TEXT, "null", "The response that this one goes on from"),
    field("prompt", &[Completions], PROMPTS, "", "One text or token ids, or a list of either"),
    field("prompt", &[Streams, Tokenize], TEXT, "", "The text; or `messages`, or on streams `tokens`"),
    field("tokens", &[Streams], TOKENS, "", "Token ids to go on from"),
    field("tokens", &[Detokenize], TOKENS, "", "Token ids"),
    field("add_special_tokens", &[Tokenize], FLAG, "false", "With the token that begins a text"),
    field("return_token_strs", &[Tokenize], FLAG, "true", "How each token is spelled"),
    field("stream", &[Chat, Completions, Responses, Messages], FLAG, "false", "Events as they come, or one answer"),
    field(
        "stream_options",
        OPENAI,
        OPTIONS,
        "null",
        "`include_usage`: a last chunk with token counts; on chats and completions `continuous_usage_stats`: in every chunk",
    ),
    field("background", &[Responses], FLAG, "true", "Answers at once and goes on by itself"),
    field("store", &[Responses], FLAG, "false", "Whether it can be asked for again"),
    field("max_tokens", PLAIN, POSITIVE, "8", "Most tokens of the answer; 0 with `echo` on completions"),
    field("max_tokens", &[Messages], r#"{"type":"integer","minimum":1}"#, "8", "Most tokens of the answer"),
    field("max_completion_tokens", PLAIN, POSITIVE, "8", "The newer name of `max_tokens`, which it beats"),
    field("max_output_tokens", &[Responses], POSITIVE, "8", "Most tokens of the answer"),
    field("min_tokens", SAMPLED, COUNT, "1", "Fewest tokens before the text may end"),
    field("n", OPENAI, POSITIVE, "2", "Choices; choice i is the text of `seed` + i"),
    field("best_of", &[Completions], POSITIVE, "3", "Choices that are made, of which the likeliest `n` are given"),
    field("echo", &[Completions], FLAG, "true", "The prompt before the text, measured if there are `logprobs`"),
    field("temperature", SAMPLED, r#"{"type":["number","null"],"minimum":0,"maximum":2}"#, "0.5", "0 is greedy"),
    field("temperature", &[Messages], r#"{"type":["number","null"],"minimum":0,"maximum":1}"#, "0.5", "0 is greedy"),
    field(
        "top_p",
        &[Chat, Completions, Responses, Messages, Streams],
        SHARE,
        "0.9",
        "The smallest set of tokens whose probabilities reach this",
    ),
    field(
        "top_k",
        SAMPLED,
        r#"{"type":["integer","null"],"minimum":-1}"#,
        "40",
        "So many of the likeliest; 0 and -1 are all",
    ),
    field("top_k", &[Messages], COUNT, "40", "So many of the likeliest; 0 is all"),
    field(
        "min_p",
        SAMPLED,
        r#"{"type":["number","null"],"minimum":0,"maximum":1}"#,
        "0.05",
        "At least so likely relative to the likeliest",
    ),
    field("typical_p", SAMPLED, SHARE, "0.9", "Locally typical sampling"),
    field("presence_penalty", SAMPLED, PENALTY, "0.5", "Taken from tokens that came before"),
    field("frequency_penalty", SAMPLED, PENALTY, "0.5", "Taken for every time that they came"),
    field(
        "repetition_penalty",
        SAMPLED,
        r#"{"type":["number","null"],"minimum":0.01,"maximum":100}"#,
        "1.1",
        "Divides the logits of tokens in prompt and output",
    ),
    field("logit_bias", SAMPLED, BIAS, r#"{"65":-100}"#, "Added to logits, by token id"),
    field("seed", SAMPLED, r#"{"type":["integer","null"]}"#, "7", "Same request, same seed, same bytes"),
    field("stop", SAMPLED, STOP, r#"["END"]"#, "The text ends before any of these"),
    field(
        "stop_sequences",
        &[Messages],
        r#"{"type":["array","null"],"items":{"type":"string"}}"#,
        r#"["END"]"#,
        "The text ends before any of these",
    ),
    field("stop_token_ids", SAMPLED, TOKENS, "[10]", "Tokens that end the text"),
    field("ignore_eos", SAMPLED, FLAG, "true", "Goes on past the model's own end"),
    field("logprobs", CHATS, FLAG, "true", "The log-probability of every token"),
    field("top_logprobs", CHATS, COUNT, "0", "And of so many rivals"),
    field("logprobs", &[Completions], COUNT, "2", "Log-probabilities, of so many rivals too"),
    field("top_logprobs", &[Responses], COUNT, "1", "Log-probabilities, of so many rivals too"),
    field(
        "include",
        &[Responses],
        r#"{"type":["array","null"],"items":{"type":"string"}}"#,
        r#"["message.output_text.logprobs"]"#,
        "What else to tell: `message.output_text.logprobs`",
    ),
    field("tools", &[Chat], OBJECTS, TOOL, "Functions that the model may call"),
    field("tools", &[Responses], OBJECTS, FLAT_TOOL, "Functions that the model may call"),
    field("tools", &[Messages, CountTokens], OBJECTS, CUSTOM_TOOL, "Functions that the model may call"),
    field(
        "tool_choice",
        &[Chat, Responses],
        CHOICE,
        "null",
        "`auto`, `none`, `required`, or one by name, which a grammar enforces",
    ),
    field(
        "tool_choice",
        &[Messages, CountTokens],
        OBJECT,
        "null",
        "`auto`, `any`, `tool` or `none`; `disable_parallel_tool_use`",
    ),
    field("parallel_tool_calls", &[Chat, Responses], FLAG, "null", "Whether more than one call may come"),
    field("chat_template_kwargs", &[Chat], OBJECT, r#"{"enable_thinking":false}"#, "Variables of the model's template"),
    field(
        "response_format",
        PLAIN,
        OBJECT,
        r#"{"type":"json_object"}"#,
        "`json_object`, or `json_schema` with a schema",
    ),
    field(
        "text",
        &[Responses],
        OBJECT,
        r#"{"format":{"type":"json_object"}}"#,
        "`format`: `text`, `json_object` or `json_schema`",
    ),
    field("guided_json", PLAIN, OBJECT, r#"{"type":"object"}"#, "JSON of this schema"),
    field("guided_regex", PLAIN, TEXT, r#""[a-z]{3}""#, "What this expression matches"),
    field("guided_grammar", PLAIN, TEXT, r#""start: /[a-z]{3}/""#, "A text of this grammar (Lark)"),
    field(
        "guided_choice",
        PLAIN,
        r#"{"type":["array","null"],"items":{"type":"string"}}"#,
        r#"["yes","no"]"#,
        "One of these",
    ),
    field("structured_outputs", PLAIN, OBJECT, r#"{"choice":["yes","no"]}"#, "The same in one field, as vLLM has it"),
    field("priority", SAMPLED, PRIORITY, "1", "Lower goes first, within what the key may"),
    field("priority", &[Embeddings], PRIORITY, "1", "Lower goes first, within what the key may"),
    field(
        "on_disconnect",
        &[Streams],
        POLICY,
        r#""detach""#,
        "What becomes of it when the last reader leaves; elsewhere the header `x-stream-on-disconnect`",
    ),
    field("reasoning", &[Responses], OBJECT, "null", "Accepted; whether to think is the model's template's"),
    field(
        "thinking",
        &[Messages, CountTokens],
        OBJECT,
        r#"{"type":"disabled"}"#,
        "`disabled` and `adaptive`, which change nothing",
    ),
    field("truncation", &[Responses], TEXT, r#""disabled""#, "`disabled`: what is too long is refused"),
    field("max_tool_calls", &[Responses], COUNT, "null", "Accepted: no tools run on the server"),
    field("metadata", &[Responses], OBJECT, r#"{"a":"b"}"#, "Given back with the response"),
    field("user", &[Responses], TEXT, r#""me""#, "Given back with the response"),
    field("service_tier", &[Responses], TEXT, r#""auto""#, "Accepted"),
    field("user", &[Chat, Completions, Embeddings], ANY, r#""me""#, "Accepted, without effect"),
    field("metadata", &[Chat, Completions, Messages], ANY, r#"{"a":"b"}"#, "Accepted, without effect"),
    field("service_tier", &[Chat, Completions, Messages], ANY, r#""auto""#, "Accepted, without effect"),
    field("store", OPENAI, ANY, "false", "Accepted, without effect"),
];

/// The table of fields as Markdown: a row per field, a column per body that begins a generation.
pub fn field_table() -> String {
    let mut out = "| field |".to_owned();
    Body::GENERATING.iter().for_each(|body| out += &format!(" `{}` |", body.path().trim_start_matches("/v1")));
    out += " |\n|---|";
    Body::GENERATING.iter().for_each(|_| out += "---|");
    out += "---|\n";
    for field in FIELDS.iter().filter(|field| field.on.iter().any(|body| Body::GENERATING.contains(body))) {
        out += &format!("| `{}` |", field.name);
        Body::GENERATING.iter().for_each(|body| out += if field.on.contains(body) { " yes |" } else { " |" });
        out += &format!(" {} |\n", field.summary);
    }
    out
}
