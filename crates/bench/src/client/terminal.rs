//! The chat as a person sees it: a prompt with line editing, commands, colours where there is a terminal; or one
//! question and its answer where there is none.

use std::io::{IsTerminal, Read, Write};

use rustyline::error::ReadlineError;

use super::api::{ChatClient, ChatParams};
use super::session::{ChatSession, TurnEnd, TurnStats};
use tallow_model::text::{printable, printable_line};
use tallow_stream::error::{Error, Result};

/// A question longer than this is not typed by anybody.
const STDIN_BYTES_MAX: u64 = 16 << 20;
const HELP: &str = "/reset forgets the conversation   /system TEXT sets the system message   /exit (or Ctrl-D) leaves
Ctrl-C stops an answer";

/// What `tallow chat` was asked to do.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatOptions {
    /// The server.
    pub url: String,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// The model; the first one the server lists if absent.
    pub model: Option<String>,
    /// The system message.
    pub system: Option<String>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// The seed.
    pub seed: Option<u64>,
    /// Ask this and leave.
    pub prompt: Option<String>,
}

/// Whether the one question was answered to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatEnd {
    /// Yes, or the user left.
    Finished,
    /// The user stopped it.
    Stopped,
}

/// Runs the chat to its end on standard input and output.
///
/// # Errors
/// If the server cannot be reached or the one question fails. Inside a conversation errors are shown and it goes on.
pub fn run(options: ChatOptions) -> Result<ChatEnd> {
    let client = ChatClient::new(&options.url, options.api_key)?;
    // A worker thread, so that a dropped connection is closed while the prompt waits for a line.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| Error::internal(format!("no async runtime: {e}")))?;
    let question = match options.prompt {
        Some(prompt) => Some(prompt),
        None if std::io::stdin().is_terminal() => None,
        None => Some(read_stdin()?),
    };
    let model = match options.model {
        Some(model) => model,
        None => runtime.block_on(client.first_model())?,
    };
    let ChatOptions { temperature, max_tokens, seed, system, .. } = options;
    let params = ChatParams { model, temperature, max_tokens, seed };
    let session = ChatSession::new(client, params.clone(), system);
    let mut terminal = Terminal { runtime, session, style: Style::of_terminal() };
    match question {
        Some(question) => match terminal.answer(&question)? {
            TurnEnd::Finished(_) => Ok(ChatEnd::Finished),
            TurnEnd::Stopped(_) => Ok(ChatEnd::Stopped),
        },
        None => {
            let model = printable_line(&params.model);
            println!("{}", terminal.style.dim(&format!("{model} at {}; /help for commands", options.url)));
            terminal.converse()
        }
    }
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    let mut stdin = std::io::stdin().take(STDIN_BYTES_MAX + 1);
    stdin.read_to_string(&mut text).map_err(|e| Error::io("standard input", e))?;
    if text.len() as u64 > STDIN_BYTES_MAX {
        return Err(Error::invalid("prompt", "standard input must be at most 16 MiB"));
    }
    if text.trim().is_empty() {
        return Err(Error::invalid("prompt", "standard input is empty: pipe a question, or give it as an argument"));
    }
    Ok(text)
}

struct Terminal {
    runtime: tokio::runtime::Runtime,
    session: ChatSession,
    style: Style,
}

impl Terminal {
    /// Lines in, answers out, until the user leaves.
    fn converse(&mut self) -> Result<ChatEnd> {
        let mut editor = rustyline::DefaultEditor::new().map_err(|e| Error::io("the terminal", e))?;
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(ChatEnd::Finished),
                Err(e) => return Err(Error::io("the terminal", e)),
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            // Losing a line of history is no reason to end a conversation.
            let _ = editor.add_history_entry(line);
            match LineCommand::parse(line) {
                LineCommand::Exit => return Ok(ChatEnd::Finished),
                LineCommand::Reset => self.session.reset(),
                LineCommand::System(text) => self.session.set_system(text),
                LineCommand::Help => println!("{}", self.style.dim(HELP)),
                LineCommand::Unknown(name) => println!("no command {name}; there are:\n{}", self.style.dim(HELP)),
                LineCommand::Say(text) => {
                    if let Err(e) = self.answer(text) {
                        eprintln!("tallow: {}", printable(e.message()));
                    }
                }
            }
        }
    }

    fn answer(&mut self, question: &str) -> Result<TurnEnd> {
        let mut out = Screen { inner: std::io::stdout(), is_terminal: self.style.is_terminal, at_line_start: true };
        let style = self.style;
        let mut notice = |text: &str| eprintln!("{}", style.dim(&printable(text)));
        let stop = async {
            // Without a handler Ctrl-C keeps its default meaning and ends the process, which stops the answer too.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let turn = self.runtime.block_on(self.session.turn(question, &mut out, &mut notice, stop));
        out.end_line().map_err(|e| Error::io("standard output", e))?;
        let end = turn?;
        match &end {
            TurnEnd::Finished(stats) if style.is_terminal => println!("{}", style.dim(&summary(stats))),
            TurnEnd::Stopped(_) if style.is_terminal => println!("{}", style.dim("stopped")),
            TurnEnd::Finished(_) | TurnEnd::Stopped(_) => {}
        }
        Ok(end)
    }
}

fn summary(stats: &TurnStats) -> String {
    let mut text = format!("{} tokens, first after {:.2} s", stats.num_tokens, stats.first_piece.as_secs_f64());
    if let Some(rate) = stats.tokens_per_second() {
        text.push_str(&format!(", {rate:.1} tokens/s"));
    }
    if stats.finish_reason == "length" {
        text.push_str(", cut off by the token limit");
    }
    text
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum LineCommand<'a> {
    Exit,
    Reset,
    Help,
    System(&'a str),
    Unknown(&'a str),
    Say(&'a str),
}

impl<'a> LineCommand<'a> {
    fn parse(line: &'a str) -> Self {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "/exit" | "/quit" => Self::Exit,
            "/reset" => Self::Reset,
            "/help" => Self::Help,
            "/system" => Self::System(rest.trim()),
            // A path is no command: `/etc/hosts says ...` is something to talk about.
            _ if word.len() > 1 && word.starts_with('/') && word[1..].bytes().all(|b| b.is_ascii_lowercase()) => {
                Self::Unknown(word)
            }
            _ => Self::Say(line),
        }
    }
}

/// Standard output, with two favours: what a terminal would obey of the model's text is shown to it as escapes (an
/// escape sequence could retitle it or worse), and the line is ended if the answer did not. A pipe gets the bytes.
struct Screen<W> {
    inner: W,
    is_terminal: bool,
    at_line_start: bool,
}

impl<W: Write> Screen<W> {
    fn end_line(&mut self) -> std::io::Result<()> {
        if !self.at_line_start {
            self.write_all(b"\n")?;
        }
        self.flush()
    }
}

impl<W: Write> Write for Screen<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.is_terminal {
            // Characters, not bytes: the C1 controls are two bytes long in UTF-8. A piece of text is whole characters.
            self.inner.write_all(printable(&String::from_utf8_lossy(bytes)).as_bytes())?;
        } else {
            self.inner.write_all(bytes)?;
        }
        if let Some(last) = bytes.last() {
            self.at_line_start = *last == b'\n';
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// How to show asides.
#[derive(Debug, Clone, Copy)]
struct Style {
    is_terminal: bool,
    colour: bool,
}

impl Style {
    fn of_terminal() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { is_terminal, colour: is_terminal && !no_colour }
    }

    fn dim(self, text: &str) -> String {
        if self.colour { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_talk() {
        assert_eq!(LineCommand::parse("/exit"), LineCommand::Exit);
        assert_eq!(LineCommand::parse("/system  be brief "), LineCommand::System("be brief"));
        assert_eq!(LineCommand::parse("/system"), LineCommand::System(""));
        assert_eq!(LineCommand::parse("/sytem x"), LineCommand::Unknown("/sytem"));
        assert_eq!(LineCommand::parse("/etc/hosts is what?"), LineCommand::Say("/etc/hosts is what?"));
        assert_eq!(LineCommand::parse("/ is a slash"), LineCommand::Say("/ is a slash"));
        assert_eq!(LineCommand::parse("hello"), LineCommand::Say("hello"));
    }

    #[test]
    fn a_terminal_is_spared_control_characters_and_a_pipe_gets_bytes() {
        let shown = |is_terminal| {
            let mut screen = Screen { inner: Vec::new(), is_terminal, at_line_start: true };
            screen
                .write_all("a\x1b]0;x\x07\u{9b}\tü\nb".as_bytes())
                .and_then(|()| screen.end_line())
                .expect("a vector takes it");
            String::from_utf8(screen.inner).expect("still UTF-8")
        };
        assert_eq!(shown(true), "a\\u{1b}]0;x\\u{7}\\u{9b}\tü\nb\n");
        assert_eq!(shown(false), "a\x1b]0;x\x07\u{9b}\tü\nb\n");
    }
}
