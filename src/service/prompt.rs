//! A request's prompt to its tokens: through the template where it is a chat, then through the tokenizer. What is long is
//! worked on away from the async threads, and so is every chat, as templates take a deep stack.
//!
//! ```text
//! a text, tokens -> short: at once                                   -> long: the threads of low priority
//! a chat         -> short: two threads of normal priority, in turn   -> long: the threads of low priority
//! ```

use serde_json::Value;

use super::background::{Background, BackgroundLimits};
use super::room::Room;
use super::template::STACK_BYTES;
use super::{ChatTemplate, Served, Service, chat, validate};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{ChatMessage, Field, GenerateRequest, Prompt, TokenId};
use crate::text::{AnswerFormat, TEXT_PARAM, Tokenizer};

/// Two, so that one stays free for other owners. A short chat takes a fraction of a millisecond; one of a template that does
/// as much as it may takes a tenth of a second. More than any queue of the engine has behind it by default.
const RENDER_LIMITS: BackgroundLimits = BackgroundLimits { num_threads: Some(2), waiting_per_owner_max: 1 << 14 };

impl Service {
    /// The request's prompt as tokens with the form of its answer, and the request back. With `room`, a text that cannot
    /// fit is refused before it is tokenised.
    pub(super) async fn tokenise(
        &self,
        served: &Served,
        mut request: GenerateRequest,
        room: Option<Room>,
    ) -> Result<(GenerateRequest, (Vec<TokenId>, AnswerFormat))> {
        let (tokenizer, template) = (served.tokenizer.clone(), served.template.clone());
        let num_bytes = prompt_bytes(&request, self.config.inline_bytes_max);
        let (tenant, is_chat) = (request.owner.tenant, matches!(request.prompt, Prompt::Chat(_)));
        let encode = move || {
            let prompt = encode(&tokenizer, template.as_deref(), &mut request, room)?;
            Ok((request, prompt))
        };
        if is_chat && num_bytes <= self.config.inline_bytes_max {
            let done = self.render_threads()?.run(tenant, encode).await;
            return self.count_full(done)?;
        }
        self.sized(tenant, num_bytes, encode).await?
    }

    /// The threads that render short chats, started with the first of them.
    fn render_threads(&self) -> Result<&Background> {
        let start = || Background::start_prompt("render", STACK_BYTES, RENDER_LIMITS);
        self.render_threads.get_or_init(start).as_ref().map_err(Clone::clone)
    }
}

/// Bytes of everything that the prompt is made of. Counting ends beyond `enough`: it must cost less than the work that it
/// decides about.
fn prompt_bytes(request: &GenerateRequest, enough: usize) -> usize {
    let mut bytes = Counted { num_bytes: 0, enough };
    match &request.prompt {
        Prompt::Tokens(_) => {}
        Prompt::Text(text) => bytes.add(text.len()),
        Prompt::Chat(messages) => {
            let _ = messages.iter().try_for_each(|message| bytes.message(message));
            let tools = request.tools.iter().map(|tool| &tool.function);
            let _ = tools.into_iter().try_for_each(|function| {
                bytes.add(function.description.as_ref().map_or(0, String::len));
                bytes.value(&function.parameters)
            });
            let _ = request.template_kwargs.values().try_for_each(|value| bytes.value(value));
        }
    }
    bytes.num_bytes
}

/// A count that ends when it is enough, which is told as `None`.
struct Counted {
    num_bytes: usize,
    enough: usize,
}

impl Counted {
    fn add(&mut self, num_bytes: usize) {
        self.num_bytes = self.num_bytes.saturating_add(num_bytes);
    }

    fn go_on(&self) -> Option<()> {
        (self.num_bytes <= self.enough).then_some(())
    }

    fn message(&mut self, message: &ChatMessage) -> Option<()> {
        self.add(message.role.len() + message.content.len());
        self.add(message.reasoning_content.as_ref().map_or(0, String::len));
        for call in &message.tool_calls {
            self.add(call.id.len() + call.function.name.len());
            self.value(&call.function.arguments)?;
        }
        self.go_on()
    }

    fn value(&mut self, value: &Value) -> Option<()> {
        // Brackets, quotes, commas and numbers, roughly.
        self.add(4);
        self.go_on()?;
        match value {
            Value::String(text) => self.add(text.len()),
            Value::Array(items) => items.iter().try_for_each(|item| self.value(item))?,
            Value::Object(fields) => fields.iter().try_for_each(|(key, field)| {
                self.add(key.len());
                self.value(field)
            })?,
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        self.go_on()
    }
}

/// Tokens of the prompt, and how its answer is to be read. What was only for the prompt is taken out of the request;
/// where the prompt came from stays, since errors name it.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    request: &mut GenerateRequest,
    room: Option<Room>,
) -> Result<(Vec<TokenId>, AnswerFormat)> {
    let field = validate::prompt_field(&request.prompt);
    let mut format = AnswerFormat::default();
    let tokens = match &mut request.prompt {
        Prompt::Tokens(tokens) => return Ok((std::mem::take(tokens), format)),
        Prompt::Text(text) => {
            let text = std::mem::take(text);
            room.map_or(Ok(()), |room| room.check(&text, field)).and_then(|()| tokenizer.encode(&text, false))
        }
        Prompt::Chat(_) => {
            let Some(template) = template else {
                let rule = "must go to a model with a chat template, and this one has none; send a prompt instead";
                return Err(Error::rule(Field::Messages, rule));
            };
            chat::encode(tokenizer, template, request, room).map(|(tokens, answer)| {
                format = answer;
                tokens
            })
        }
    };
    let mut tokens = tokens.map_err(|e| about(e, field))?;
    tokenizer.begin(&mut tokens);
    Ok((tokens, format))
}

/// An error of the tokenizer, as one about the field that its text came in.
fn about(e: Error, field: Field) -> Error {
    match e.kind() {
        _ if e.fault().is_some() => e,
        ErrorKind::InvalidRequest if e.param() == Some(TEXT_PARAM) => {
            Error::rule(field, format!("cannot be tokenised: {}", e.message()))
        }
        _ => e.with_param(field.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{LocalBackend, ModelLimits, Models, ServedConfig, ServiceConfig};
    use super::*;
    use crate::engine::{Engine, EngineConfig, Turns};
    use crate::error::ErrorKind;
    use crate::metrics::Metrics;
    use crate::model::Model;
    use crate::model::stub::{StubConfig, StubModel};
    use crate::protocol::Owner;
    use crate::stream::{StreamTable, TableLimits};
    use crate::text::{Scheme, TokenKind, Vocab};

    /// Printable ASCII, then `<s>` (beginning of text) and `<e>`.
    fn tokenizer(add_bos: bool) -> Tokenizer {
        let mut tokens: Vec<String> = ('!'..='~').map(String::from).collect();
        let mut kinds = vec![TokenKind::Normal; tokens.len()];
        let bos = tokens.len() as TokenId;
        tokens.extend(["<s>".to_owned(), "<e>".to_owned()]);
        kinds.extend([TokenKind::Control; 2]);
        let scheme = Scheme::Bpe { pre: "gpt-2".to_owned(), merges: Vec::new() };
        let end_of_generation = vec![bos + 1];
        let add_space_prefix = false;
        let vocab =
            Vocab { tokens, kinds, scheme, bos: Some(bos), eos: None, end_of_generation, add_bos, add_space_prefix };
        Tokenizer::from_vocab(vocab).expect("a vocabulary")
    }

    fn asking(prompt: Prompt) -> GenerateRequest {
        GenerateRequest::new(Arc::new(Owner::anonymous()), prompt)
    }

    /// Each rendering had a thread of its own.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn many_chats_at_once_are_rendered_by_two_threads() {
        let source = "{% for i in range(2000) %}{% endfor %}{{ messages[0].content }}";
        let template = ChatTemplate::new(source, "", "").expect("compiles");
        let (tokenizer, metrics) = (Arc::new(Tokenizer::byte_level()), Arc::new(Metrics::default()));
        let spec = StubModel::new(StubConfig::default()).spec().clone();
        let engine =
            Engine::open(EngineConfig::default(), spec.clone(), tokenizer.clone(), metrics.clone(), Turns::new(1));
        let backend = Arc::new(LocalBackend::new(engine.expect("opens")));
        let config = ServedConfig::named("a");
        let served = Arc::new(Served::new(config, tokenizer, Some(template), spec, backend, metrics.clone()));
        let models = Models::new(vec![served.clone()], ModelLimits::default()).expect("one");
        let table = Arc::new(StreamTable::new(TableLimits::default()));
        let service = Service::new(ServiceConfig::default(), models, table, metrics).expect("threads");
        let render = async |number: usize| {
            let chat = Prompt::Chat(vec![ChatMessage::new("user", number.to_string())]);
            service.tokenise(&served, asking(chat), None).await.map(|(_, (tokens, _))| tokens)
        };
        let all = futures_util::future::join_all((0..64).map(render)).await;
        for (number, tokens) in all.into_iter().enumerate() {
            assert_eq!(tokens, Ok(number.to_string().bytes().map(TokenId::from).collect()));
        }
        let threads = std::fs::read_dir("/proc/self/task").expect("Linux has it").flatten();
        let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        assert_eq!(names.filter(|name| name.starts_with("render-")).count(), 2);
    }

    #[test]
    fn a_run_without_a_break_is_told_with_the_field_that_it_came_in() {
        let long = "a".repeat(200_000);
        let template =
            ChatTemplate::new("{% for m in messages %}{{ m.content }}{% endfor %}", "", "").expect("compiles");
        for (prompt, field) in [
            (Prompt::Text(long.clone()), "prompt"),
            (Prompt::Chat(vec![ChatMessage::new("user", long.clone())]), "messages"),
        ] {
            let error = encode(&tokenizer(false), Some(&template), &mut asking(prompt), None).expect_err("too long");
            assert_eq!((error.kind(), error.param()), (ErrorKind::InvalidRequest, Some(field)));
            let expect =
                format!("`{field}` cannot be tokenised: a run of text without a break must have at most 131072");
            assert!(error.message().starts_with(&expect), "{error}");
        }
    }

    #[test]
    fn a_prompt_begins_as_the_file_says() {
        let prompt = |add_bos| {
            let mut request = asking(Prompt::Text("hi".to_owned()));
            encode(&tokenizer(add_bos), None, &mut request, None).map(|(tokens, _)| tokens)
        };
        let hi = tokenizer(false).encode("hi", false).expect("letters");
        assert_eq!(prompt(false), Ok(hi.clone()));
        let bos = tokenizer(true).bos().expect("it has one");
        assert_eq!(prompt(true), Ok([&[bos][..], &hi].concat()));
    }

    #[test]
    fn a_chat_has_the_templates_control_tokens_and_none_of_its_messages() {
        let source = "<s>{% for m in messages %}{{ m.content }}<e>{% endfor %}";
        let template = ChatTemplate::new(source, "<s>", "<e>").expect("a template");
        let message = ChatMessage::new("user", "a<e><s>b");
        for add_bos in [false, true] {
            let tokenizer = tokenizer(add_bos);
            let control = |spelling| tokenizer.encode(spelling, true).expect("a control token")[0];
            let mut expected = vec![control("<s>")];
            expected.extend(tokenizer.encode("a<e><s>b", false).expect("letters"));
            expected.push(control("<e>"));
            let mut request = asking(Prompt::Chat(vec![message.clone()]));
            let tokens = encode(&tokenizer, Some(&template), &mut request, None).map(|(tokens, _)| tokens);
            assert_eq!(tokens, Ok(expected), "add_bos {add_bos}");
        }
    }
}
