//! Makes text from outside safe to print on a terminal. A terminal obeys control characters: an escape sequence in a
//! file's name or in a model's answer could retitle the window, overwrite earlier output, or write to the clipboard.
//! Characters that change the direction of writing make a text appear in another order than it has. Both kinds are
//! shown as their escapes (`\u{1b}`), so that a person sees that they are there.
//!
//! Every line that the process prints and that holds text from outside goes through one of these functions. They do not
//! know where the text goes: the caller decides that.

use std::borrow::Cow;
use std::fmt::Write;

/// Characters of an [`excerpt`].
const EXCERPT_CHARS_MAX: usize = 200;

/// `text` over several lines: every harmful character is shown as an escape, except line ends and tabs.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_harmful(c) && !matches!(c, '\n' | '\t'))
}

/// `text` in one line: as [`printable`], and line ends and tabs are escaped too.
pub fn printable_line(text: &str) -> Cow<'_, str> {
    escape(text, is_harmful)
}

/// JSON that stays the same JSON. Its strings may hold harmful characters, since JSON must escape only C0. They are
/// written as JSON's own escapes (`\u009b`), so that a parser gets the same strings.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    rewrite(
        json,
        |c| is_harmful(c) && c != '\n',
        |c, shown| {
            // All of them are in the basic plane, so four digits suffice. Writing to a string cannot fail.
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        },
    )
}

/// The beginning of `text` in one line: for a name or a value in the middle of a message.
pub fn excerpt(text: &str) -> String {
    let end = text.char_indices().nth(EXCERPT_CHARS_MAX).map(|(at, _)| at);
    match end {
        Some(end) => format!("{}…", printable_line(&text[..end])),
        None => printable_line(text).into_owned(),
    }
}

fn escape(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    rewrite(text, is_escaped, |c, shown| shown.extend(c.escape_default()))
}

fn rewrite(text: &str, is_escaped: impl Fn(char) -> bool, escape: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) { escape(c, &mut shown) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// The controls C0, DEL and C1; the line and paragraph separators; and the embeddings, overrides and isolates of
/// Unicode's bidirectional algorithm (UAX 9, table of explicit formatting characters).
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_and_the_rest_stays() {
        assert_eq!(printable("plain, Grüße, 日本\n\tand 👩‍💻"), "plain, Grüße, 日本\n\tand 👩‍💻");
        assert!(matches!(printable("nothing\tto\ndo"), Cow::Borrowed(_)));
        assert_eq!(printable("a\x1b]0;x\x07\u{9b}2J\rb\x08\x7f"), r"a\u{1b}]0;x\u{7}\u{9b}2J\rb\u{8}\u{7f}");
        assert_eq!(printable("gnp\u{202e}.exe\u{2066}\u{2028}"), r"gnp\u{202e}.exe\u{2066}\u{2028}");
        assert_eq!(printable_line("one\ntwo\tthree"), r"one\ntwo\tthree");
    }

    #[test]
    fn no_character_gets_through_that_a_terminal_obeys() {
        let all: String = ('\0'..=char::MAX).collect();
        assert!(!printable(&all).chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
        assert!(!printable_line(&all).chars().any(char::is_control));
    }

    #[test]
    fn json_stays_the_same_json() {
        let all: String = ('\0'..=char::MAX).collect();
        let json = serde_json::to_string_pretty(&[&all]).expect("a string is JSON");
        let shown = printable_json(&json);
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n') && !shown.contains('\u{202e}'));
        assert_eq!(serde_json::from_str::<[String; 1]>(&shown).expect("still JSON"), [all]);
    }

    #[test]
    fn an_excerpt_is_short_in_characters() {
        assert_eq!(excerpt("a\nb"), r"a\nb");
        assert_eq!(excerpt(&"ü".repeat(EXCERPT_CHARS_MAX)), "ü".repeat(EXCERPT_CHARS_MAX));
        assert_eq!(excerpt(&"ü".repeat(1 << 20)), format!("{}…", "ü".repeat(EXCERPT_CHARS_MAX)));
    }
}
