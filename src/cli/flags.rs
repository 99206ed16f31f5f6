//! The settings table as flags. Each flag takes text; reading it is the configuration's business, so that a value
//! breaks the same rule with the same words whether it was typed here, exported or written in a file.

use std::path::PathBuf;

use clap::error::Error;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::config::{Kind, SETTINGS, Setting, Typed};

/// The settings as typed: all of them, or only what commands beside `serve` need.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags<const ALL: bool>(pub Typed);

/// For `serve`.
pub(crate) type ServeFlags = Flags<true>;
/// For `pull` and `models`.
pub(crate) type ToolFlags = Flags<false>;

const CONFIG_ID: &str = "config";

fn settings(all: bool) -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(move |s| all || s.section() == "registry")
}

/// What `--help` shows of the settings; `--help-all` shows all of them.
const COMMON: &[&str] = &[
    "server.host",
    "server.port",
    "server.cors_origins",
    "server.drain_timeout_ms",
    "keys.list",
    "keys.file",
    "streams.store",
    "streams.retention_ms",
    "engine.num_workers",
    "engine.threads",
    "engine.max_num_seqs",
    "engine.queue_requests_max",
    "model.name",
    "model.more",
    "model.served_name",
    "model.device",
    "model.activations",
    "model.max_model_len",
    "model.kv_cache_bytes",
    "model.memory_max",
    "model.idle_unload_ms",
    "embeddings.model",
    "registry.cache_dir",
    "log.level",
    "log.format",
];

const HELP_ALL: &str = "help-all";
const HELP_ALL_HELP: &str =
    "Print help with every setting and its variable, such as TALLOW_MAX_NUM_SEQS for --max-num-seqs";

/// Whether the help with everything is asked for: that is decided as the command is put together, before it is parsed.
fn wants_all() -> bool {
    std::env::args_os().any(|arg| arg == *format!("--{HELP_ALL}"))
}

/// Whether a flag stands in the help that was asked for.
fn is_shown(setting: &Setting, all: bool) -> bool {
    !all || COMMON.contains(&setting.key) || wants_all()
}

fn arg(setting: &'static Setting) -> Arg {
    let default = Some(setting.default).filter(|text| !text.is_empty());
    let default = default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
    let words = match setting.kind {
        Kind::OneOf(words) => format!(": {}", words.join(", ")),
        _ => String::new(),
    };
    let env = if wants_all() { format!(" [env: {}]", setting.env()) } else { String::new() };
    let help = format!("{}{words}{default}{env}", setting.help);
    let arg = Arg::new(setting.key).long(setting.flag).help(help).help_heading(heading(setting.section()));
    match setting.kind {
        Kind::Bool => arg
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .hide_possible_values(true),
        Kind::Count { .. } | Kind::Millis { .. } => arg.value_name("N").allow_negative_numbers(true),
        Kind::Bytes { .. } => arg.value_name("BYTES").allow_negative_numbers(true),
        Kind::OneOf(_) => arg.value_name("WORD"),
        Kind::List => arg.value_name("A,B").action(ArgAction::Append),
        Kind::Secrets => arg.value_name("KEY,KEY"),
        Kind::Text => arg.value_name("TEXT"),
    }
}

fn heading(section: &str) -> &'static str {
    match section {
        "server" => "Server",
        "keys" => "API keys",
        "streams" => "Streams",
        "requests" => "Requests",
        "engine" => "Engine",
        "model" => "Model",
        "registry" => "Weights",
        "embeddings" => "Embeddings",
        "responses" => "Responses",
        "memory" => "Memory",
        "log" => "Log",
        // Every flag is given its heading at every start, so no test can miss it.
        other => unreachable!("settings of `{other}` have no heading"),
    }
}

impl<const ALL: bool> Args for Flags<ALL> {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(CONFIG_ID)
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Settings as TOML; ./tallow.toml if it exists [env: TALLOW_CONFIG]");
        let help_all = Arg::new(HELP_ALL).long(HELP_ALL).action(ArgAction::Help).help(HELP_ALL_HELP);
        let shown = |setting| arg(setting).hide(!is_shown(setting, ALL));
        command.arg(file).args(ALL.then_some(help_all)).args(settings(ALL).map(shown))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const ALL: bool> FromArgMatches for Flags<ALL> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let typed = |s: &'static Setting| {
            let texts: Vec<&str> = matches.get_many::<String>(s.key)?.map(String::as_str).collect();
            Some((s, texts.join(",")))
        };
        let file = matches.get_one::<PathBuf>(CONFIG_ID).cloned();
        Ok(Self(Typed { values: settings(ALL).filter_map(typed).collect(), file }))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
