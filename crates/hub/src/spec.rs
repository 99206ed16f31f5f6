//! The text that people type for a model: a name, a path, or a place on the hub.

use std::path::PathBuf;

use super::manifest::{HubSource, Manifest};
use tallow_stream::error::{Error, ErrorKind, Result};

/// A parsed model specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Spec {
    /// A manifest's name or alias.
    Name(String),
    /// A file.
    Path(PathBuf),
    /// A repository on the hub, and the file in it if one was named.
    Hub { repo: String, file: Option<String> },
}

impl Spec {
    /// Parses `spec`. Text that looks like a path (a slash, the extension `gguf`) is a path; other text is a name.
    ///
    /// # Errors
    /// If a hub specification is malformed.
    pub(super) fn parse(spec: &str) -> Result<Self> {
        if let Some(place) = spec.strip_prefix("hub:") {
            let (repo, file) = match place.split_once(':') {
                Some((repo, file)) => (repo.to_owned(), Some(file.to_owned())),
                None => (place.to_owned(), None),
            };
            let source = HubSource {
                repo: repo.clone(),
                file: file.clone().unwrap_or_else(|| "x".to_owned()),
                revision: "main".to_owned(),
            };
            source.check().map_err(|e| {
                Error::new(ErrorKind::ModelNotFound, format!("`{spec}` is not hub:OWNER/REPO[:FILE]: {e}"))
            })?;
            return Ok(Self::Hub { repo, file });
        }
        let has_extension = std::path::Path::new(spec).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        if has_extension || spec.contains(['/', std::path::MAIN_SEPARATOR]) {
            return Ok(Self::Path(PathBuf::from(spec)));
        }
        Ok(Self::Name(spec.to_owned()))
    }
}

/// The error for a name that no manifest has.
pub(super) fn unknown_name(name: &str, manifests: &[Manifest]) -> Error {
    let known: Vec<&str> = manifests.iter().map(|m| m.name.as_str()).collect();
    let near = near_spellings(name, manifests);
    let hint = if near.is_empty() { String::new() } else { format!(" Did you mean `{}`?", near.join("` or `")) };
    Error::new(
        ErrorKind::ModelNotFound,
        format!(
            "there is no model `{name}`.{hint} Known names are {}; PATH.gguf and hub:OWNER/REPO[:FILE] work too",
            known.join(", ")
        ),
    )
}

/// At most three names within a third of their length, nearest first.
fn near_spellings<'a>(name: &str, manifests: &'a [Manifest]) -> Vec<&'a str> {
    let name = name.to_ascii_lowercase();
    let mut near: Vec<(usize, &str)> = manifests
        .iter()
        .flat_map(Manifest::names)
        .map(|known| (edit_distance(&name, &known.to_ascii_lowercase()), known))
        .filter(|&(distance, known)| {
            let is_part = name.len() >= 4 && known.to_ascii_lowercase().contains(&name);
            distance <= known.len() / 3 || is_part
        })
        .collect();
    near.sort();
    near.into_iter().take(3).map(|(_, known)| known).collect()
}

/// Levenshtein's distance over bytes: the names are ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    // A name typed by a person is short. A longer one resembles no known name.
    if a.len() > 256 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
