//! `tallow models`: what can be served by name, and what is here already.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;

use super::flags::ToolFlags;
use super::progress::size;
use super::pull::registry;
use crate::hub::ListedModel;
use crate::text::printable_line;

#[derive(Debug, Args)]
pub(super) struct ModelsArgs {
    #[command(flatten)]
    flags: ToolFlags,
}

pub(super) fn run(args: ModelsArgs) -> anyhow::Result<ExitCode> {
    let config = super::resolve(args.flags.0)?;
    let listed = registry(&config.process)?.list()?;
    super::print(&table(&listed))?;
    Ok(ExitCode::SUCCESS)
}

/// Columns as wide as their widest cell, the last one free.
fn table(listed: &[ListedModel]) -> String {
    let head = ["NAME", "SIZE", "CACHED", "PATH", "DESCRIPTION"].map(str::to_owned);
    let cells = listed.iter().map(|model| {
        let cached = if model.cached.is_some() { "yes" } else { "no" };
        let path = model.cached.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string());
        let description = model.manifest.as_ref().map_or("from the hub", |m| m.description.as_str()).to_owned();
        // Names of files and descriptions come from outside: each stays in its cell.
        [model.spec.clone(), size(model.size_bytes), cached.to_owned(), path, description]
            .map(|cell| printable_line(&cell).into_owned())
    });
    let lines: Vec<[String; 5]> = std::iter::once(head).chain(cells).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let mut text = String::new();
    for [name, bytes, cached, path, description] in &lines {
        let [w0, w1, w2, w3] = widths;
        writeln!(text, "{name:w0$}  {bytes:>w1$}  {cached:w2$}  {path:w3$}  {description}").expect("a string takes it");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let model = |spec: &str, size_bytes, cached: Option<&str>| ListedModel {
            spec: spec.into(),
            size_bytes,
            cached: cached.map(Into::into),
            manifest: None,
        };
        let text = table(&[model("a", 98_362_432, None), model("longer-name", 5 << 30, Some("/cache/x.gguf"))]);
        let starts: Vec<_> = text.lines().map(|line| line.find("from the hub").or(line.find("DESC"))).collect();
        assert_eq!(starts, [starts[0]; 3], "{text}");
        assert!(text.contains("a            93.8 MiB  no      -  "), "{text}");
        assert!(text.contains("longer-name     5 GiB  yes     /cache/x.gguf  from"), "{text}");
    }

    #[test]
    fn a_name_from_outside_stays_in_its_cell() {
        let model = ListedModel {
            spec: "hub:evil/repo:a\u{1b}[2J\nsmollm2  1 GiB  yes.gguf".into(),
            size_bytes: 1,
            cached: Some("/cache/\u{9b}31m\u{202e}.gguf".into()),
            manifest: None,
        };
        let text = table(&[model]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains(r"a\u{1b}[2J\nsmollm2") && text.contains(r"/cache/\u{9b}31m\u{202e}.gguf"), "{text}");
    }
}
