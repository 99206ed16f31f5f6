//! Chat templates: messages to the one text a model was trained on, through Jinja as the transformers library runs it.
//!
//! A template comes from a model file, never from a request, and is still not trusted:
//!
//! - **fuel** pays for every instruction and for every 64 bytes it makes; it grows with the messages and with nothing
//!   else, so a loop ends and doubling strings end;
//! - **output** is counted while it is written;
//! - **depth** of macros and of the source is limited, and templates run on threads with a stack that outlasts the deepest
//!   value that fuel can build ([`STACK_BYTES`]): a few that stay, in turn by owner (`prompt`).
//!
//! What fuel does not see: a list that holds one list many times over (`x = [x, x]`, repeated) is small until something
//! compares it or turns it into text with `~`. minijinja 3.1 meters the result and not the walk, so a template made to
//! hurt can still spend time and memory there. Serve only model files you would run.
//!
//! The same messages give the same text on every day: `strftime_now` tells one fixed date.

mod date;
mod python_json;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::thread;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error as JinjaError, ErrorKind as JinjaErrorKind, State, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{ChatMessage, Field};
use crate::text::{CallSyntax, ReasoningSyntax};

/// More than ten times the longest published template; keeps the parser's recursion within its stack.
const SOURCE_BYTES_MAX: usize = 256 << 10;
/// What a rendered prompt may take.
const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// Fuel for a template however short the chat: a long published one with tools takes about a tenth.
const FUEL_BASE: u64 = 250_000;
/// Fuel for looping over one more message; the nested scans of published templates take about a tenth.
const FUEL_PER_MESSAGE: u64 = 2_000;
/// Fuel per byte of message text, each worth 64 bytes of copies.
const FUEL_PER_BYTE: u64 = 1;
/// Nested macro calls and includes.
const RECURSION_MAX: usize = 100;
/// Stack of a thread that renders. Reserved, not used: pages are touched only as deep as a template nests.
pub(super) const STACK_BYTES: usize = 256 << 20;
/// Wider fields in a format string are an attack on memory.
const FORMAT_DIGITS_MAX: usize = 4;

/// A compiled chat template of one model.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    output_bytes_max: usize,
    knows_tools: bool,
    call_syntax: CallSyntax,
    reasoning_syntax: Option<ReasoningSyntax>,
    /// Whether it fails on a plain chat: then it is at fault, and no client can help it.
    is_broken: bool,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are how the model spells these tokens (empty where it has none).
    ///
    /// # Errors
    /// [`ErrorKind::BadModel`] if it is too long or not valid Jinja.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        if source.len() > SOURCE_BYTES_MAX {
            let len = source.len();
            return Err(Error::bad_model(format!("a chat template has at most {SOURCE_BYTES_MAX} bytes, got {len}")));
        }
        let knows_tools = source.contains("tools");
        let call_syntax = CallSyntax::of_template(source).unwrap_or(CallSyntax::Hermes);
        let reasoning_syntax = ReasoningSyntax::of_template(source);
        let source = without_generation_tags(source);
        let environment = on_deep_stack(|| {
            let mut environment = new_environment()?;
            let compiled = environment.add_template_owned(TEMPLATE, source);
            compiled.map(|()| environment).map_err(|e| Error::bad_model(format!("the chat template is not valid: {e}")))
        })?;
        let mut template = Self {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            output_bytes_max: OUTPUT_BYTES_MAX,
            knows_tools,
            call_syntax,
            reasoning_syntax,
            is_broken: true,
        };
        // With the flag set, only what the template itself raises is the client's error.
        let tried = template.render(&[ChatMessage::new("user", "Hi")], true);
        template.is_broken = tried.is_err_and(|e| e.kind() == ErrorKind::Internal);
        Ok(template)
    }

    /// Sets the form of calls, for a template that does not show its family's, or not truly.
    #[must_use]
    pub(crate) fn with_call_syntax(mut self, call_syntax: CallSyntax) -> Self {
        self.call_syntax = call_syntax;
        self
    }

    /// Sets the form of reasoning; `None` leaves it in the content.
    #[must_use]
    pub(crate) fn with_reasoning_syntax(mut self, reasoning_syntax: Option<ReasoningSyntax>) -> Self {
        self.reasoning_syntax = reasoning_syntax;
        self
    }

    /// Whether it renders `tools` by itself.
    pub(crate) fn knows_tools(&self) -> bool {
        self.knows_tools
    }

    /// The form in which its model writes calls; Hermes' where it does not say.
    pub(crate) fn call_syntax(&self) -> CallSyntax {
        self.call_syntax
    }

    /// The form in which its model thinks, if it does.
    pub(crate) fn reasoning_syntax(&self) -> Option<ReasoningSyntax> {
        self.reasoning_syntax
    }

    /// Sets the most bytes a rendered prompt may have; 4 MiB unless set.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn with_output_bytes_max(mut self, output_bytes_max: usize) -> Self {
        self.output_bytes_max = output_bytes_max;
        self
    }

    /// The prompt for `messages`, on a thread of its own, for callers without a deep stack; with `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`]: with the template's own words if it rejects the messages (`raise_exception`), and if
    /// it runs too long on them, writes too much or fails otherwise. [`ErrorKind::Internal`] in place of the latter if it
    /// does so on a plain chat too.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        on_deep_stack(|| self.render_here(messages, add_generation_prompt, &BTreeMap::new()))
    }

    /// As [`ChatTemplate::render`], with further variables (`tools`, `enable_thinking`), which win over ours. The calling
    /// thread must have a stack of [`STACK_BYTES`], unless the template is known to be harmless.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub(super) fn render_here(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        extra: &BTreeMap<String, serde_json::Value>,
    ) -> Result<String> {
        let mut variables: BTreeMap<&str, Value> = BTreeMap::from([
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
            // transformers passes these as none where there are none, and templates ask `is not none`.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        variables.extend(extra.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        let message_bytes: usize = messages.iter().map(ChatMessage::num_bytes).sum();
        let extra_bytes: usize = extra.values().map(|value| value.to_string().len()).sum();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(
            FUEL_BASE + FUEL_PER_MESSAGE * messages.len() as u64 + FUEL_PER_BYTE * (message_bytes + extra_bytes) as u64,
        ));
        let mut output = CappedOutput { bytes: Vec::new(), bytes_max: self.output_bytes_max };
        let template = environment.get_template(TEMPLATE).map_err(|e| Error::internal(e.to_string()))?;
        template.render_captured_to(variables, &mut output).map_err(|e| as_error(&e, self.is_broken))?;
        String::from_utf8(output.bytes).map_err(|_| Error::internal("a rendered template is UTF-8"))
    }
}

/// JSON as the transformers library writes it into prompts.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] if it is longer than any prompt.
pub(super) fn json_for_prompt(value: &impl serde::Serialize) -> Result<String> {
    python_json::dumps(value).map_err(|e| Error::rule(Field::Messages, format!("cannot be written as JSON: {e}")))
}

/// The name of the only template of an environment.
const TEMPLATE: &str = "chat template";

/// What the transformers library sets up: block lines leave no blank lines, Python's methods on strings and maps,
/// `raise_exception`, `strftime_now`, and JSON as Python writes it.
fn new_environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| Error::internal(e.to_string()))?);
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(call_python_method);
    environment.add_function("raise_exception", |message: String| -> Result<Value, JinjaError> {
        let raised = JinjaError::new(JinjaErrorKind::InvalidOperation, "the template rejects these messages");
        Err(raised.with_source(RaisedException(message)))
    });
    environment.add_function("strftime_now", |format: &str| date::format_fixed_date(format));
    environment.add_filter("tojson", python_json::tojson);
    Ok(environment)
}

/// Python's methods, without the one that lets a few characters ask for a gigabyte.
fn call_python_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, JinjaError> {
    if method == "format" {
        let format = value.as_str().unwrap_or_default();
        if format.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > FORMAT_DIGITS_MAX) {
            let rule = format!("a format string has numbers of at most {FORMAT_DIGITS_MAX} digits");
            return Err(JinjaError::new(JinjaErrorKind::InvalidOperation, rule));
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// What a template said through `raise_exception`.
#[derive(Debug)]
struct RaisedException(String);

impl fmt::Display for RaisedException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RaisedException {}

/// Our error for Jinja's: the template's own objection is about the request, all else about the template if that is broken.
fn as_error(error: &JinjaError, is_broken: bool) -> Error {
    let mut too_long = None;
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        if let Some(RaisedException(message)) = source.downcast_ref() {
            return Error::rule(Field::Messages, format!("was refused by the model's chat template: {message}"));
        }
        let is_full = |e: &&io::Error| e.kind() == io::ErrorKind::FileTooLarge;
        too_long = too_long.or(source.downcast_ref::<io::Error>().filter(is_full).map(ToString::to_string));
        cause = source.source();
    }
    let is_out_of_fuel = error.kind() == JinjaErrorKind::OutOfFuel;
    if is_broken {
        let what = if is_out_of_fuel { "it does too much work".to_owned() } else { error.to_string() };
        return Error::internal(format!("the model's chat template cannot render a plain chat: {what}"));
    }
    if let Some(rule) = too_long {
        return Error::rule(Field::Messages, rule);
    }
    if is_out_of_fuel {
        let rule = "must not make the chat template do more work than its length allows";
        return Error::rule(Field::Messages, rule);
    }
    Error::rule(Field::Messages, format!("cannot be rendered by the model's chat template: {error}"))
}

/// Collects output up to a limit.
struct CappedOutput {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl io::Write for CappedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            let rule = format!("must become at most {} bytes in the chat template, got more", self.bytes_max);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, rule));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `work` where deep recursion has room: values nest as deep as fuel lets a template build them, and dropping or
/// printing one takes a stack frame per level. For what happens once, as a model is opened: requests are rendered on threads
/// that stay.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let spawned = thread::Builder::new()
            .name("chat-template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|e| Error::new(ErrorKind::Unavailable, format!("no thread for the chat template: {e}")))?;
        spawned.join().unwrap_or_else(|_| Err(Error::internal("rendering the chat template panicked")))
    })
}

/// Takes out `{% generation %}` and `{% endgeneration %}`, by which training code marks the assistant's text; they
/// render as nothing. An `if` in their place keeps the whitespace control of the tags.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(len) = rest[open..].find("%}") else { break };
        let (before, tag) = (&rest[..open], &rest[open + 2..open + len]);
        out.push_str(before);
        out.push_str("{%");
        match tag.trim_matches('-').trim() {
            "generation" => out.push_str(&tag.replace("generation", " if true ")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", " endif ")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = &rest[open + len + 2..];
    }
    out + rest
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
