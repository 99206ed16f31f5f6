//! `tallow models`: what can be served by name, and what is here already.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;

use super::flags::ToolFlags;
use super::progress::size;

#[derive(Debug, Args)]
pub(super) struct ModelsArgs {
    #[command(flatten)]
    flags: ToolFlags,
}

pub(super) fn run(args: ModelsArgs) -> anyhow::Result<ExitCode> {
    let config = super::resolve(args.flags.0)?;
    super::print(&format!("{}cache: {}\n", table(&[]), config.registry.cache_dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// One model for people.
#[derive(Debug)]
struct Row {
    name: String,
    size_bytes: Option<u64>,
    cached: bool,
    path: String,
    description: String,
}

/// Columns as wide as their widest cell, the last one free.
fn table(rows: &[Row]) -> String {
    let head = ["NAME", "SIZE", "CACHED", "PATH", "DESCRIPTION"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        let bytes = row.size_bytes.map_or_else(|| "-".to_owned(), size);
        let cached = if row.cached { "yes" } else { "no" };
        let path = if row.path.is_empty() { "-" } else { &row.path };
        [row.name.clone(), bytes, cached.to_owned(), path.to_owned(), row.description.clone()]
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
        let row = |name: &str, size_bytes, path: &str| Row {
            name: name.into(),
            size_bytes,
            cached: !path.is_empty(),
            path: path.into(),
            description: "words".into(),
        };
        let text = table(&[row("a", Some(98_362_432), ""), row("longer-name", None, "/cache/x.gguf")]);
        let starts: Vec<_> = text.lines().map(|line| line.find("words").or(line.find("DESC"))).collect();
        assert_eq!(starts, [starts[0]; 3], "{text}");
        assert!(text.contains("a            93.8 MiB  no"), "{text}");
        assert!(text.contains("longer-name         -  yes     /cache/x.gguf  words"), "{text}");
    }
}
