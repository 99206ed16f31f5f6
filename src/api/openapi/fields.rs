//! Every field of a request body, with its schema, the bodies that have it, and a value that is accepted.

use super::routes::BodyKind::{
    self, Chat, Completions, CountTokens, Detokenize, Embeddings, Messages, Responses, Streams, Tokenize,
};

/// One field.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// As it is written.
    pub name: &'static str,
    /// The bodies that have it.
    pub on: &'static [BodyKind],
    /// Its JSON schema.
    pub schema: &'static str,
    /// A value that is accepted beside the least that a body must have, as JSON.
    pub example: &'static str,
    /// What it does.
    pub summary: &'static str,
}

const ALL: &[BodyKind] = &BodyKind::ALL;
/// Sampled as vLLM and llama.cpp have it.
const SAMPLED: &[BodyKind] = &[Chat, Completions, Responses, Streams];
const PLAIN: &[BodyKind] = &[Chat, Completions, Streams];
const OPENAI: &[BodyKind] = &[Chat, Completions];
const CHATS: &[BodyKind] = &[Chat, Streams];

const fn field(
    name: &'static str,
    on: &'static [BodyKind],
    schema: &'static str,
    example: &'static str,
    summary: &'static str,
) -> Field {
    Field { name, on, schema, example, summary }
}

const FLAG: &str = r#"{"type":["boolean","null"]}"#;
const COUNT: &str = r#"{"type":["integer","null"],"minimum":0}"#;
const POSITIVE: &str = r#"{"type":["integer","null"],"minimum":1}"#;
const CEILING: &str = r#"{"type":["integer","null"],"minimum":-1}"#;
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
    field("model", ALL, TEXT, "null", "Name of a served model; the first one if left out"),
    field("messages", &[Chat, Streams, Tokenize], MESSAGES, "", "The conversation"),
    field("messages", &[Messages, CountTokens], TURNS, "", "The conversation, in Anthropic's blocks"),
    field("system", &[Messages, CountTokens], BLOCKS, r#""Be brief.""#, "System prompt"),
    field("input", &[Responses], BLOCKS, "", "A text, or items: messages, calls and their outputs"),
    field("input", &[Embeddings], PROMPTS, "", "One text or token ids, or a list of either"),
    field(
        "encoding_format",
        &[Embeddings],
        r#"{"enum":["float","base64",null]}"#,
        r#""base64""#,
        "`float`, or `base64` of little-endian f32",
    ),
    field("dimensions", &[Embeddings], COUNT, "null", "The length of the model's vectors; they cannot be cut"),
    field("instructions", &[Responses], TEXT, r#""Be brief.""#, "System prompt for this turn only"),
    field("previous_response_id", &[Responses], TEXT, "null", "The response to continue"),
    field("prompt", &[Completions], PROMPTS, "", "One text or token ids, or a list of either"),
    field("prompt", &[Streams, Tokenize], TEXT, "", "The text; or `messages`, or on streams `tokens`"),
    field("tokens", &[Streams], TOKENS, "", "Prompt as token ids"),
    field("tokens", &[Detokenize], TOKENS, "", "Token ids"),
    field("add_special_tokens", &[Tokenize], FLAG, "false", "Whether to add the beginning-of-text token"),
    field("return_token_strs", &[Tokenize], FLAG, "true", "Whether to return each token's text too"),
    field(
        "stream",
        &[Chat, Completions, Responses, Messages],
        FLAG,
        "false",
        "Whether to stream events instead of sending one answer",
    ),
    field(
        "stream_options",
        OPENAI,
        OPTIONS,
        "null",
        "`include_usage`: a last chunk with token counts; on chats and completions `continuous_usage_stats`: in every chunk",
    ),
    field("background", &[Responses], FLAG, "true", "Whether to answer at once and generate in the background"),
    field("store", &[Responses], FLAG, "false", "Whether the response can be retrieved later"),
    field(
        "max_tokens",
        PLAIN,
        CEILING,
        "8",
        "Maximum number of tokens to generate, cut to the context; -1 sets none; may be 0 with `echo`",
    ),
    field(
        "max_tokens",
        &[Messages],
        r#"{"type":"integer","minimum":-1}"#,
        "8",
        "Maximum number of tokens to generate, cut to the context; -1 sets none",
    ),
    field(
        "max_completion_tokens",
        PLAIN,
        CEILING,
        "8",
        "The newer name of `max_tokens`, over which it takes precedence",
    ),
    field(
        "max_output_tokens",
        &[Responses],
        CEILING,
        "8",
        "Maximum number of tokens to generate, cut to the context; -1 sets none",
    ),
    field("min_tokens", SAMPLED, COUNT, "1", "Minimum number of tokens before the text may end"),
    field("n", OPENAI, POSITIVE, "2", "Number of choices; choice i is generated with `seed` + i"),
    field(
        "best_of",
        &[Completions],
        POSITIVE,
        "3",
        "Number of choices to generate, of which the `n` most likely are returned",
    ),
    field(
        "echo",
        &[Completions],
        FLAG,
        "true",
        "Whether to return the prompt before the text, with its log-probabilities if `logprobs` is set",
    ),
    field("temperature", SAMPLED, r#"{"type":["number","null"],"minimum":0,"maximum":2}"#, "0.5", "0 is greedy"),
    field("temperature", &[Messages], r#"{"type":["number","null"],"minimum":0,"maximum":1}"#, "0.5", "0 is greedy"),
    field(
        "top_p",
        &[Chat, Completions, Responses, Messages, Streams],
        SHARE,
        "0.9",
        "Samples from the smallest set of tokens whose probabilities add up to this",
    ),
    field(
        "top_k",
        SAMPLED,
        r#"{"type":["integer","null"],"minimum":-1}"#,
        "40",
        "Samples from this many of the most likely tokens; 0 and -1 mean all",
    ),
    field("top_k", &[Messages], COUNT, "40", "Samples from this many of the most likely tokens; 0 means all"),
    field(
        "min_p",
        SAMPLED,
        r#"{"type":["number","null"],"minimum":0,"maximum":1}"#,
        "0.05",
        "Samples only tokens at least this likely relative to the most likely one",
    ),
    field("typical_p", SAMPLED, SHARE, "0.9", "Locally typical sampling"),
    field("presence_penalty", SAMPLED, PENALTY, "0.5", "Lowers the logit of every token that has occurred"),
    field("frequency_penalty", SAMPLED, PENALTY, "0.5", "Lowers the logit once per earlier occurrence"),
    field(
        "repetition_penalty",
        SAMPLED,
        r#"{"type":["number","null"],"minimum":0.01,"maximum":100}"#,
        "1.1",
        "Divides the logits of tokens that occur in the prompt or the output",
    ),
    field("logit_bias", SAMPLED, BIAS, r#"{"65":-100}"#, "Added to logits, by token id"),
    field("seed", SAMPLED, r#"{"type":["integer","null"]}"#, "7", "Same request, same seed, same bytes"),
    field("stop", SAMPLED, STOP, r#"["END"]"#, "Strings before which the text ends"),
    field(
        "stop_sequences",
        &[Messages],
        r#"{"type":["array","null"],"items":{"type":"string"}}"#,
        r#"["END"]"#,
        "Strings before which the text ends",
    ),
    field("stop_token_ids", SAMPLED, TOKENS, "[10]", "Tokens that end the text"),
    field("ignore_eos", SAMPLED, FLAG, "true", "Whether to continue past the model's end-of-text token"),
    field("logprobs", CHATS, FLAG, "true", "Whether to return the log-probability of every token"),
    field("top_logprobs", CHATS, COUNT, "0", "Number of alternatives to return for every token"),
    field(
        "logprobs",
        &[Completions],
        COUNT,
        "2",
        "Returns log-probabilities, with this many alternatives for every token",
    ),
    field(
        "top_logprobs",
        &[Responses],
        COUNT,
        "1",
        "Returns log-probabilities, with this many alternatives for every token",
    ),
    field(
        "include",
        &[Responses],
        r#"{"type":["array","null"],"items":{"type":"string"}}"#,
        r#"["message.output_text.logprobs"]"#,
        "Additional output: `message.output_text.logprobs`",
    ),
    field("tools", &[Chat], OBJECTS, TOOL, "Functions the model may call"),
    field("tools", &[Responses], OBJECTS, FLAT_TOOL, "Functions the model may call"),
    field("tools", &[Messages, CountTokens], OBJECTS, CUSTOM_TOOL, "Functions the model may call"),
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
    field("parallel_tool_calls", &[Chat, Responses], FLAG, "null", "Whether the model may make more than one call"),
    field(
        "chat_template_kwargs",
        &[Chat],
        OBJECT,
        r#"{"enable_thinking":false}"#,
        "Variables for the model's chat template",
    ),
    field("enable_thinking", &[Chat, Tokenize], FLAG, "true", "The variable of many templates, by name"),
    field(
        "reasoning_effort",
        &[Chat, Tokenize],
        TEXT,
        r#""low""#,
        "How hard to think; `none` not at all. Templates that read neither it nor `enable_thinking` ignore it",
    ),
    field(
        "continue_final_message",
        &[Chat, Tokenize],
        FLAG,
        "true",
        "Whether the output goes on from a last message of the assistant's; it does unless told otherwise",
    ),
    field("add_generation_prompt", &[Chat, Tokenize], FLAG, "true", "Whether the prompt ends where an answer begins"),
    field("tools", &[Tokenize], OBJECTS, "null", "Functions the model is told of"),
    field("chat_template_kwargs", &[Tokenize], OBJECT, "null", "Variables for the model's chat template"),
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
    field("guided_json", PLAIN, OBJECT, r#"{"type":"object"}"#, "The text is JSON of this schema"),
    field("guided_regex", PLAIN, TEXT, r#""[a-z]{3}""#, "The text matches this regular expression as a whole"),
    field("guided_grammar", PLAIN, TEXT, r#""start: /[a-z]{3}/""#, "The text follows this grammar (Lark)"),
    field(
        "guided_choice",
        PLAIN,
        r#"{"type":["array","null"],"items":{"type":"string"}}"#,
        r#"["yes","no"]"#,
        "One of these",
    ),
    field(
        "structured_outputs",
        PLAIN,
        OBJECT,
        r#"{"choice":["yes","no"]}"#,
        "The same constraints in one field, as in vLLM",
    ),
    field("priority", SAMPLED, PRIORITY, "1", "Lower goes first, within the limits of the key"),
    field("priority", &[Embeddings], PRIORITY, "1", "Lower goes first, within the limits of the key"),
    field(
        "on_disconnect",
        &[Streams],
        POLICY,
        r#""detach""#,
        "What happens when the last reader leaves; other routes use the header `x-stream-on-disconnect`",
    ),
    field("reasoning", &[Responses], OBJECT, r#"{"effort":"low"}"#, "`effort`: how hard to think; `none` not at all"),
    field(
        "thinking",
        &[Messages, CountTokens],
        OBJECT,
        r#"{"type":"disabled"}"#,
        "`enabled`, `disabled`, or `adaptive`, which leaves it to the model",
    ),
    field(
        "output_config",
        &[Messages, CountTokens],
        OBJECT,
        r#"{"effort":"high"}"#,
        "`format`: a JSON schema that the text keeps to; `effort` is ignored",
    ),
    field("context_management", &[Messages, CountTokens, Responses], OBJECT, "null", "Ignored, and named in a header"),
    field("verbosity", &[Chat], ANY, r#""low""#, "Ignored, and named in a header"),
    field("prediction", &[Chat], ANY, "null", "Ignored, and named in a header"),
    field(
        "repeat_penalty",
        SAMPLED,
        r#"{"type":["number","null"],"minimum":0.01,"maximum":100}"#,
        "1.1",
        "`repetition_penalty`, by another name",
    ),
    field("typ_p", SAMPLED, SHARE, "0.9", "`typical_p`, by another name"),
    field("n_predict", PLAIN, CEILING, "8", "`max_tokens`, by another name"),
    field("truncation", &[Responses], TEXT, r#""auto""#, "Accepted: a prompt that is too long is refused"),
    field("max_tool_calls", &[Responses], COUNT, "null", "Accepted: no tools run on the server"),
    field("metadata", &[Responses], OBJECT, r#"{"a":"b"}"#, "Returned with the response"),
    field("user", &[Responses], TEXT, r#""me""#, "Returned with the response"),
    field("service_tier", &[Responses], TEXT, r#""auto""#, "Accepted"),
    field("user", &[Chat, Completions, Embeddings], ANY, r#""me""#, "Accepted, without effect"),
    field("metadata", &[Chat, Completions, Messages], ANY, r#"{"a":"b"}"#, "Accepted, without effect"),
    field("service_tier", &[Chat, Completions, Messages], ANY, r#""auto""#, "Accepted, without effect"),
    field("store", OPENAI, ANY, "false", "Accepted, without effect"),
];

/// The table of fields as Markdown: a row per field, a column per body that begins a generation.
pub fn field_table() -> String {
    let mut out = "| field |".to_owned();
    BodyKind::GENERATING.iter().for_each(|body| out += &format!(" `{}` |", body.path().trim_start_matches("/v1")));
    out += " |\n|---|";
    BodyKind::GENERATING.iter().for_each(|_| out += "---|");
    out += "---|\n";
    for field in FIELDS.iter().filter(|field| field.on.iter().any(|body| BodyKind::GENERATING.contains(body))) {
        out += &format!("| `{}` |", field.name);
        BodyKind::GENERATING.iter().for_each(|body| out += if field.on.contains(body) { " yes |" } else { " |" });
        out += &format!(" {} |\n", field.summary);
    }
    out
}
