//! The settings table as flags. Each flag takes text; reading it is the configuration's business, so that a value
//! breaks the same rule with the same words whether it was typed here, exported or written in a file.

use std::path::PathBuf;

use clap::error::Error;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::config::{SECTIONS, SETTINGS, Typed};
use crate::settings::{Kind, Setting, Unit, Value};

/// The settings as typed: all of them, or only what commands beside `serve` need.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags<const ALL: bool>(pub Typed);

/// For `serve`.
pub(crate) type ServeFlags = Flags<true>;
/// For `pull` and `models`.
pub(crate) type ToolFlags = Flags<false>;

const CONFIG_ID: &str = "config";

fn settings(all: bool) -> impl Iterator<Item = &'static (&'static Setting, Value)> {
    SETTINGS.iter().filter(move |(s, _)| all || s.section() == "registry")
}

const HELP_ALL: &str = "help-all";
const HELP_ALL_HELP: &str =
    "Print help with every setting and its variable, such as TALLOW_MAX_NUM_SEQS for --max-num-seqs";

/// Whether the help with everything is asked for: that is decided as the command is put together, before it is parsed.
fn wants_all() -> bool {
    std::env::args_os().any(|arg| arg == *format!("--{HELP_ALL}"))
}

/// Whether a flag stands in the help that was asked for.
fn is_shown(setting: &Setting, all: bool) -> bool {
    !all || setting.is_common || wants_all()
}

fn arg((setting, default): &(&'static Setting, Value)) -> Arg {
    let default = Some(setting.typed(default)).filter(|text| !text.is_empty());
    let default = default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
    let words = match setting.kind {
        Kind::OneOf(words) => format!(": {}", words.join(", ")),
        _ => String::new(),
    };
    let env = if wants_all() { format!(" [env: {}]", setting.env()) } else { String::new() };
    let help = format!("{}{words}{default}{env}", setting.help());
    let arg = Arg::new(setting.key).long(setting.flag).help(help).help_heading(heading(setting.section()));
    match setting.kind {
        Kind::Bool => arg
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .hide_possible_values(true),
        Kind::Number { unit: Unit::Bytes, .. } => arg.value_name("BYTES").allow_negative_numbers(true),
        Kind::Number { .. } => arg.value_name("N").allow_negative_numbers(true),
        Kind::OneOf(_) => arg.value_name("WORD"),
        Kind::List => arg.value_name("A,B").action(ArgAction::Append),
        Kind::Secrets => arg.value_name("KEY,KEY"),
        Kind::Text | Kind::NonEmpty => arg.value_name("TEXT"),
    }
}

fn heading(section: &str) -> &'static str {
    let found = SECTIONS.iter().find(|(known, _)| *known == section);
    found.map_or("Other", |(_, heading)| heading)
}

impl<const ALL: bool> Args for Flags<ALL> {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(CONFIG_ID)
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Settings as TOML; ./tallow.toml if it exists [env: TALLOW_CONFIG]");
        let help_all = Arg::new(HELP_ALL).long(HELP_ALL).action(ArgAction::Help).help(HELP_ALL_HELP);
        let shown = |entry: &(&'static Setting, Value)| arg(entry).hide(!is_shown(entry.0, ALL));
        command.arg(file).args(ALL.then_some(help_all)).args(settings(ALL).map(shown))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const ALL: bool> FromArgMatches for Flags<ALL> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let typed = |(s, _): &(&'static Setting, Value)| {
            let texts: Vec<&str> = matches.get_many::<String>(s.key)?.map(String::as_str).collect();
            Some((*s, texts.join(",")))
        };
        let file = matches.get_one::<PathBuf>(CONFIG_ID).cloned();
        Ok(Self(Typed { values: settings(ALL).filter_map(typed).collect(), file }))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
