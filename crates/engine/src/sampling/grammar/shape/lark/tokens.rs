//! Lark's notation cut into what matters for its cost.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum LarkToken<'a> {
    Name(&'a str),
    /// Characters of a literal.
    Text(u64),
    Regex(&'a str),
    /// `%json {...}`
    Schema(Value),
    /// Characters of what `%regex {...}` cuts texts out of.
    Chunks(u64),
    /// `%ignore` and the like.
    Statement,
    Number(u64),
    /// `+`, `*` or `?`.
    Operator(char),
    Open(char),
    Close(char),
    Or,
    And,
    Tilde,
    /// `..`
    To,
    Comma,
    Colon,
    Line,
    Other,
}

/// The tokens of `text`.
///
/// # Errors
/// If the JSON behind `%json`, `%regex` or `%llguidance` is none.
pub(super) fn read(text: &str) -> Result<Vec<LarkToken<'_>>, String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (token, len) = match c {
            '"' => string(rest),
            '/' if !rest.starts_with("//") => regex(rest),
            '#' | '/' => (None, rest.find('\n').unwrap_or(rest.len())),
            '%' => statement(rest)?,
            '<' => (Some(LarkToken::Other), rest.find(['>', '\n']).map_or(rest.len(), |at| at + 1)),
            '\n' => (Some(LarkToken::Line), 1),
            '(' | '[' | '{' => (Some(LarkToken::Open(c)), 1),
            ')' | ']' | '}' => (Some(LarkToken::Close(c)), 1),
            '|' => (Some(LarkToken::Or), 1),
            '&' => (Some(LarkToken::And), 1),
            '~' => (Some(LarkToken::Tilde), 1),
            ',' => (Some(LarkToken::Comma), 1),
            '+' | '*' | '?' => (Some(LarkToken::Operator(c)), 1),
            '.' if rest.starts_with("..") => (Some(LarkToken::To), 2),
            ':' if rest.starts_with("::") => (Some(LarkToken::Other), 2),
            ':' => (Some(LarkToken::Colon), 1),
            c if c.is_ascii_digit() => number(rest),
            c if c.is_ascii_alphabetic() || c == '_' => name(rest),
            ' ' | '\t' | '\r' => (None, 1),
            c => (Some(LarkToken::Other), c.len_utf8()),
        };
        tokens.extend(token);
        rest = &rest[len..];
    }
    Ok(tokens)
}

fn string(rest: &str) -> (Option<LarkToken<'_>>, usize) {
    let (num_chars, len) = quoted(rest, '"');
    (Some(LarkToken::Text(num_chars)), len)
}

fn regex(rest: &str) -> (Option<LarkToken<'_>>, usize) {
    let (_, len) = quoted(rest, '/');
    let inside = rest.get(1..len - 1).unwrap_or_default();
    let flags = rest[len..].bytes().take_while(|b| b"imslux".contains(b)).count();
    (Some(LarkToken::Regex(inside)), len + flags)
}

/// Characters up to the next `quote` without a backslash before it, and bytes with both quotes.
fn quoted(rest: &str, quote: char) -> (u64, usize) {
    let (mut num_chars, mut is_escaped) = (0, false);
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => {
                is_escaped = true;
                continue;
            }
            c if c == quote => return (num_chars, at + 1),
            _ => {}
        }
        num_chars += 1;
    }
    (num_chars, rest.len())
}

fn statement(rest: &str) -> Result<(Option<LarkToken<'_>>, usize), String> {
    let word = 1 + rest[1..].bytes().take_while(u8::is_ascii_alphabetic).count();
    let (keyword, behind) = rest.split_at(word);
    match keyword {
        "%json" | "%regex" | "%llguidance" => {
            let mut values = serde_json::Deserializer::from_str(behind).into_iter::<Value>();
            let value = values.next().ok_or_else(|| format!("`{keyword}` must be followed by JSON"))?;
            let value = value.map_err(|e| format!("`{keyword}` must be followed by JSON: {e}"))?;
            let token = match keyword {
                "%json" => LarkToken::Schema(value),
                "%regex" => LarkToken::Chunks(num_chars(&value)),
                _ => LarkToken::Statement,
            };
            Ok((Some(token), word + values.byte_offset()))
        }
        // A nested grammar's definitions are read as if they stood here.
        "%lark" => Ok((None, word)),
        "%if" => Ok((Some(LarkToken::Other), word)),
        _ => Ok((Some(LarkToken::Statement), word)),
    }
}

fn num_chars(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(num_chars).sum(),
        Value::Object(fields) => fields.values().map(num_chars).sum(),
        _ => 0,
    }
}

fn number(rest: &str) -> (Option<LarkToken<'_>>, usize) {
    let len = rest.bytes().take_while(u8::is_ascii_digit).count();
    (Some(LarkToken::Number(rest[..len].parse().unwrap_or(u64::MAX))), len)
}

fn name(rest: &str) -> (Option<LarkToken<'_>>, usize) {
    let len = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')).count();
    (Some(LarkToken::Name(&rest[..len])), len)
}

/// Where the bracket at `open` is closed, or `end`.
pub(super) fn close(tokens: &[LarkToken<'_>], open: usize, end: usize) -> usize {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().take(end).skip(open) {
        match token {
            LarkToken::Open(_) => depth += 1,
            LarkToken::Close(_) => {
                depth -= 1;
                if depth == 0 {
                    return at;
                }
            }
            _ => {}
        }
    }
    end
}

/// What repeats the atom before, and of how many tokens it is: `*`, `~ 2..5`, `{2,5}`.
pub(super) fn repetition(tokens: &[LarkToken<'_>]) -> Option<(u64, Option<u64>, usize)> {
    match tokens {
        [LarkToken::Operator('*'), ..] => Some((0, None, 1)),
        [LarkToken::Operator('+'), ..] => Some((1, None, 1)),
        [LarkToken::Operator(_), ..] => Some((0, Some(1), 1)),
        [LarkToken::Tilde, LarkToken::Number(min), LarkToken::To, LarkToken::Number(max), ..] => {
            Some((*min, Some(*max), 4))
        }
        [LarkToken::Tilde, LarkToken::Number(n), ..] => Some((*n, Some(*n), 2)),
        [LarkToken::Open('{'), LarkToken::Number(n), LarkToken::Close('}'), ..] => Some((*n, Some(*n), 3)),
        [LarkToken::Open('{'), LarkToken::Number(min), LarkToken::Comma, LarkToken::Close('}'), ..] => {
            Some((*min, None, 4))
        }
        [LarkToken::Open('{'), LarkToken::Comma, LarkToken::Number(max), LarkToken::Close('}'), ..] => {
            Some((0, Some(*max), 4))
        }
        [
            LarkToken::Open('{'),
            LarkToken::Number(min),
            LarkToken::Comma,
            LarkToken::Number(max),
            LarkToken::Close('}'),
            ..,
        ] => Some((*min, Some(*max), 5)),
        _ => None,
    }
}
