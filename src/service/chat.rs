//! A chat to the tokens of its prompt: tools and messages through the model's template, and from both the form of the
//! answer. What users wrote stays text on the way, in messages, calls, descriptions and schemas alike.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::room::Room;
use super::template::{ChatTemplate, json_for_prompt};
use super::tool_grammar::{self, ToolGrammar};
use crate::error::{Error, Result};
use crate::protocol::{
    ChatMessage, Constraint, Field, FreeText, GenerateRequest, Prompt, PromptEnding, TokenId, Tool, ToolChoice,
};
use crate::text::{AnswerFormat, CallFormat, CallSyntax, ReasoningFormat, Tokenizer};

/// The only length of a call's id that Mistral's templates let pass.
const MISTRAL_ID_LEN: usize = 9;

/// Tokens of the prompt, and how the answer is to be read. Messages, tools and variables are taken out of the request;
/// where a call must come, its constraint is set.
///
/// # Errors
/// [`crate::error::ErrorKind::InvalidRequest`] if the template rejects the messages, and as the template's rendering.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    request: &mut GenerateRequest,
    room: Option<Room>,
) -> Result<(Vec<TokenId>, AnswerFormat)> {
    let mut messages = match &mut request.prompt {
        Prompt::Chat(messages) => std::mem::take(messages),
        Prompt::Text(_) | Prompt::Tokens(_) => Vec::new(),
    };
    let mut tools = std::mem::take(&mut request.tools);
    let mut kwargs = std::mem::take(&mut request.template_kwargs);
    if request.tool_choice == ToolChoice::None {
        tools.clear();
    }
    let mut calls = call_format(&tools, template, request);
    let whole = whole_answer(&tools, request);
    let forced = if whole.is_some() { None } else { forced_calls(&tools, template, request, tokenizer) };

    let mark = shield(tokenizer, &mut messages, &mut tools, &mut kwargs)?;
    for message in messages.iter_mut().filter(|m| m.role == "developer") {
        // OpenAI's newer word for the same thing, which no template in the field knows.
        "system".clone_into(&mut message.role);
    }
    if template.call_syntax() == CallSyntax::Mistral {
        messages.iter_mut().for_each(shorten_ids);
    }
    if !template.knows_tools() {
        messages = in_plain_turns(messages, &tools)?;
    } else if !tools.is_empty() {
        let tools = serde_json::to_value(&tools).map_err(|e| Error::internal(e.to_string()))?;
        kwargs.insert("tools".to_owned(), tools);
    }
    let begun = if request.ending == PromptEnding::Continue { begun_answer(&mut messages) } else { None };
    let mut prompt = template.render_here(&messages, request.ending != PromptEnding::Messages, &kwargs)?;
    let mut reasoning = template.reasoning_syntax().map(|syntax| {
        // Templates of models that always think open the section for them.
        let is_open = prompt.trim_end().ends_with(syntax.opening());
        ReasoningFormat { syntax, is_open }
    });
    if let Some(reasoning) = reasoning.as_mut().filter(|r| r.is_open && (begun.is_some() || whole.is_some())) {
        // What is said already, and what must be said alone, leaves no room for thoughts before it.
        prompt.push_str(&format!("\n{}\n\n", reasoning.syntax.closing()));
        reasoning.is_open = false;
    }
    prompt.push_str(begun.as_deref().unwrap_or_default());
    if let (Some((name, grammar)), Some(calls)) = (whole.clone(), &mut calls) {
        calls.whole = Some(name);
        request.constraint = Some(grammar);
    }
    if forced.is_some() || whole.is_some() {
        request.constraint_tools = tool_rules_of(&tools);
    }
    if let Some(calls) = forced {
        request.constraint = Some(tool_grammar::constraint(&calls, reasoning, tokenizer));
    }
    if let Some(room) = room {
        room.check(&prompt, Field::Messages)?;
    }
    Ok((tokenizer.encode_shielded(&prompt, mark)?, AnswerFormat { calls, reasoning }))
}

fn call_format(tools: &[Tool], template: &ChatTemplate, request: &GenerateRequest) -> Option<CallFormat> {
    let names: Vec<String> = tools.iter().map(|tool| tool.function.name.clone()).collect();
    (!names.is_empty()).then(|| CallFormat {
        syntax: template.call_syntax(),
        names,
        is_parallel: request.parallel_tool_calls,
        whole: None,
    })
}

/// The tool that must be called and the grammar of its input, if that is all that the answer may be.
fn whole_answer(tools: &[Tool], request: &GenerateRequest) -> Option<(String, Constraint)> {
    let tool = match (&request.tool_choice, tools) {
        (ToolChoice::Named(name), tools) => tools.iter().find(|tool| tool.function.name == *name)?,
        (ToolChoice::Required, [tool]) => tool,
        _ => return None,
    };
    let grammar = tool.function.free_text.as_ref()?.grammar.clone()?;
    Some((tool.function.name.clone(), grammar))
}

/// The rule of each tool's input, with the field that it came in.
fn tool_rules_of(tools: &[Tool]) -> Vec<(Field, Constraint)> {
    let rule = |(index, tool): (usize, &Tool)| match &tool.function.free_text {
        Some(FreeText { grammar: Some(grammar) }) => (Field::ToolFormat(index), grammar.clone()),
        _ => (Field::ToolParameters(index), tool_grammar::arguments(&tool.function.parameters)),
    };
    tools.iter().enumerate().map(rule).collect()
}

/// Takes out the text of a last message that the assistant has begun and not ended.
fn begun_answer(messages: &mut Vec<ChatMessage>) -> Option<String> {
    messages.pop_if(|last| last.role == "assistant" && last.tool_calls.is_empty()).map(|last| last.content)
}

/// The grammar's rules, if a call must come.
fn forced_calls(
    tools: &[Tool],
    template: &ChatTemplate,
    request: &GenerateRequest,
    tokenizer: &Tokenizer,
) -> Option<String> {
    let named;
    let (tools, is_parallel) = match &request.tool_choice {
        ToolChoice::Auto | ToolChoice::None => return None,
        ToolChoice::Required => (tools, request.parallel_tool_calls),
        ToolChoice::Named(name) => {
            named = tools.iter().filter(|tool| tool.function.name == *name).cloned().collect::<Vec<_>>();
            (named.as_slice(), false)
        }
    };
    let grammar = ToolGrammar { tools, syntax: template.call_syntax(), is_parallel, tokenizer };
    Some(grammar.calls())
}

/// Marks the spellings of control tokens in everything that came with the request; returns the mark.
fn shield(
    tokenizer: &Tokenizer,
    messages: &mut [ChatMessage],
    tools: &mut [Tool],
    kwargs: &mut BTreeMap<String, Value>,
) -> Result<char> {
    // All texts as one: marks are sought in it once, and changed texts are written back by a second walk.
    let mut all = String::new();
    each_text(messages, tools, kwargs, &mut |text| {
        all.push_str(text);
        None
    });
    let mark = Tokenizer::mark_for(&std::iter::once(all.as_str()));
    let mark =
        mark.ok_or_else(|| Error::rule(Field::Messages, "must leave out one Unicode noncharacter, got all of them"))?;
    each_text(messages, tools, kwargs, &mut |text| Some(tokenizer.shield(text, mark)));
    Ok(mark)
}

/// What becomes of a text: `None` leaves it.
type TextChange<'a> = dyn FnMut(&str) -> Option<String> + 'a;

fn each_text(
    messages: &mut [ChatMessage],
    tools: &mut [Tool],
    kwargs: &mut BTreeMap<String, Value>,
    change: &mut TextChange<'_>,
) {
    fn apply(text: &mut String, change: &mut TextChange<'_>) {
        if let Some(changed) = change(text) {
            *text = changed;
        }
    }
    for message in messages {
        apply(&mut message.content, change);
        for text in [&mut message.reasoning_content, &mut message.tool_call_id, &mut message.name] {
            text.iter_mut().for_each(|text| apply(text, change));
        }
        for call in &mut message.tool_calls {
            apply(&mut call.id, change);
            apply(&mut call.function.name, change);
            each_text_of(&mut call.function.arguments, change);
        }
    }
    for tool in tools {
        apply(&mut tool.function.name, change);
        tool.function.description.iter_mut().for_each(|text| apply(text, change));
        each_text_of(&mut tool.function.parameters, change);
    }
    kwargs.values_mut().for_each(|value| each_text_of(value, change));
}

fn each_text_of(value: &mut Value, change: &mut TextChange<'_>) {
    match value {
        Value::String(text) => {
            if let Some(changed) = change(text) {
                *text = changed;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| each_text_of(item, change)),
        Value::Object(fields) => {
            let changed = std::mem::take(fields).into_iter().map(|(key, mut value)| {
                each_text_of(&mut value, change);
                (change(&key).unwrap_or(key), value)
            });
            *fields = changed.collect::<Map<_, _>>();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The last letters and digits of each id: ours differ in them.
fn shorten_ids(message: &mut ChatMessage) {
    let shorten = |id: &mut String| {
        let plain: Vec<char> = id.chars().filter(char::is_ascii_alphanumeric).collect();
        let skipped = plain.len().saturating_sub(MISTRAL_ID_LEN);
        *id = format!("{:0>MISTRAL_ID_LEN$}", plain[skipped..].iter().collect::<String>());
    };
    message.tool_calls.iter_mut().for_each(|call| shorten(&mut call.id));
    message.tool_call_id.iter_mut().for_each(shorten);
}

/// For a template that knows no tools: the tools in front of the system prompt, calls and answers within the turns, in
/// the form that most models of the field have seen.
fn in_plain_turns(messages: Vec<ChatMessage>, tools: &[Tool]) -> Result<Vec<ChatMessage>> {
    let mut turns: Vec<ChatMessage> = Vec::new();
    for mut message in messages {
        for call in std::mem::take(&mut message.tool_calls) {
            let json = json_for_prompt(&json!({"name": call.function.name, "arguments": call.function.arguments}))?;
            let gap = if message.content.is_empty() { "" } else { "\n" };
            message.content.push_str(&format!("{gap}<tool_call>\n{json}\n</tool_call>"));
        }
        if message.role != "tool" {
            turns.push(message);
            continue;
        }
        let text = format!("<tool_response>\n{}\n</tool_response>", message.content);
        match turns.last_mut() {
            // Answers to calls of one turn come in one.
            Some(last) if last.role == "user" && last.content.ends_with("</tool_response>") => {
                last.content.push('\n');
                last.content.push_str(&text);
            }
            _ => turns.push(ChatMessage::new("user", text)),
        }
    }
    if !tools.is_empty() {
        let section = tools_section(tools)?;
        match turns.first_mut() {
            Some(first) if first.role == "system" => first.content = format!("{section}\n\n{}", first.content),
            _ => turns.insert(0, ChatMessage::new("system", section)),
        }
    }
    Ok(turns)
}

fn tools_section(tools: &[Tool]) -> Result<String> {
    let mut section = "You can call these functions, each described by one line of JSON:\n<tools>\n".to_owned();
    for tool in tools {
        section.push_str(&json_for_prompt(tool)?);
        section.push('\n');
    }
    section.push_str(
        "</tools>\n\nTo call one, answer with its name and its arguments as JSON between these tags:\n<tool_call>\n\
         {\"name\": \"function name\", \"arguments\": {\"argument\": \"value\"}}\n</tool_call>",
    );
    Ok(section)
}

#[cfg(test)]
mod tests;
