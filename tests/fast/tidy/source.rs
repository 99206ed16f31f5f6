//! Just enough Rust for the house rules: which bytes of a file are code, where words and blocks stand. Not a parser:
//! a rule that needs types belongs to clippy.

use std::ops::Range;

/// One source file, by its path from the top, and the same text with comments and literals blanked out.
pub(crate) struct Source {
    pub path: String,
    pub text: String,
    /// As long as `text`, byte for byte; comments and the insides of literals are spaces, line ends stay.
    pub code: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: blank_out(text) }
    }

    pub(crate) fn line_of(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset].iter().filter(|b| **b == b'\n').count() + 1
    }

    /// Places where `word` stands in the code as a whole identifier (or path, or macro name with its `!`).
    pub(crate) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let bytes = self.code.as_bytes();
        let is_part = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        let whole = move |at: usize| {
            let before = at.checked_sub(1).and_then(|i| bytes.get(i));
            let ends_in_word = word.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
            !(is_part(before) || ends_in_word && is_part(bytes.get(at + word.len())))
        };
        self.code.match_indices(word).map(|(at, _)| at).filter(move |at| whole(*at))
    }

    /// From the `{` at or after `from` to its `}`, both included; `None` if a `;` comes first.
    pub(crate) fn block_after(&self, from: usize) -> Option<Range<usize>> {
        let bytes = self.code.as_bytes();
        let mut nested = 0usize;
        let open = (from..bytes.len()).find(|&i| {
            match bytes[i] {
                b'(' | b'[' => nested += 1,
                b')' | b']' => nested = nested.saturating_sub(1),
                b'{' | b';' if nested == 0 => return true,
                _ => {}
            }
            false
        })?;
        if bytes[open] == b';' {
            return None;
        }
        let mut depth = 0usize;
        for (i, byte) in bytes.iter().enumerate().skip(open) {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(open..i + 1);
            }
        }
        Some(open..bytes.len())
    }

    /// The innermost block around `at`.
    pub(crate) fn block_around(&self, at: usize) -> Option<Range<usize>> {
        let mut depth = 0usize;
        let open = self.code.as_bytes()[..at].iter().rposition(|byte| match byte {
            b'}' => {
                depth += 1;
                false
            }
            b'{' if depth > 0 => {
                depth -= 1;
                false
            }
            byte => *byte == b'{',
        })?;
        self.block_after(open)
    }

    /// The insides of `mod name { ... }` blocks.
    pub(crate) fn inline_modules(&self) -> Vec<Range<usize>> {
        self.words("mod").filter_map(|at| self.block_after(at)).collect()
    }

    /// The file without its `#[cfg(test)]` modules, same length.
    pub(crate) fn without_tests(&self) -> String {
        let mut code = self.code.clone();
        let attribute = "#[cfg(test)]";
        for (at, _) in self.code.match_indices(attribute) {
            let rest = self.code[at + attribute.len()..].trim_start();
            let end = match self.block_after(at + attribute.len()) {
                Some(block) if rest.starts_with("mod ") => block.end,
                _ => continue,
            };
            let blank: String = self.code[at..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
            // Literals are blanked to ASCII, but identifiers need not be; lengths must agree all the same.
            if blank.len() == end - at {
                code.replace_range(at..end, &blank);
            }
        }
        code
    }
}

/// Whether a path is a test of its own, or tests of a module kept in a file of their own.
pub(crate) fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Replaces comments and the insides of literals by spaces.
fn blank_out(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    while i < bytes.len() {
        let end = literal_or_comment_end(bytes, i);
        if end == i {
            i += 1;
            continue;
        }
        for byte in &mut out[i..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        i = end;
    }
    String::from_utf8(out).expect("whole literals and comments were blanked")
}

/// Where the comment or literal that begins at `i` ends; `i` if none begins there.
fn literal_or_comment_end(bytes: &[u8], i: usize) -> usize {
    let rest = &bytes[i..];
    let in_word = i > 0 && (bytes[i - 1].is_ascii_alphanumeric() || bytes[i - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => i + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => i + block_comment_len(rest),
        [b'"', ..] => i + string_len(rest),
        [b'b' | b'c', b'"', ..] if !in_word => i + 1 + string_len(&rest[1..]),
        [b'r', ..] if !in_word => i + raw_string_len(rest, 1),
        [b'b' | b'c', b'r', ..] if !in_word => i + raw_string_len(rest, 2),
        [b'\'', ..] => i + char_len(rest),
        _ => i,
    }
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut i) = (0usize, 0);
    while i < rest.len() {
        match rest[i..] {
            [b'/', b'*', ..] => (depth, i) = (depth + 1, i + 2),
            [b'*', b'/', ..] if depth == 1 => return i + 2,
            [b'*', b'/', ..] => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    rest.len()
}

fn string_len(rest: &[u8]) -> usize {
    let mut i = 1;
    while i < rest.len() {
        match rest[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    rest.len()
}

/// `r"…"` and `r#"…"#`; 0 if it is an identifier that begins like one.
fn raw_string_len(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        return 0;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = &rest[open + 1..];
    let len = body.windows(close.len()).position(|w| w == close).unwrap_or(body.len());
    (open + 1 + len + close.len()).min(rest.len())
}

/// A character literal; 0 for a lifetime.
fn char_len(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        let close = rest.iter().skip(3).position(|b| *b == b'\'');
        return close.map_or(rest.len(), |n| n + 4);
    }
    // One character of one to four bytes, then the quote.
    let width = match rest.get(1) {
        Some(b) if *b >= 0xf0 => 4,
        Some(b) if *b >= 0xe0 => 3,
        Some(b) if *b >= 0xc0 => 2,
        _ => 1,
    };
    if rest.get(1 + width) == Some(&b'\'') { width + 2 } else { 0 }
}

#[test]
fn comments_and_literals_are_blanked_and_code_stays() {
    let check = |text: &str, expect: &str| assert_eq!(blank_out(text), expect, "{text}");
    check("a // b\nc", "a     \nc");
    check("a /* b /* c */ d */ e", "a                   e");
    check(r#"f("x\"y", z)"#, "f(      , z)");
    check(r##"f(r#"x"y"#, b"q", br"w")"##, "f(        ,     ,      )");
    check("let r = raw;", "let r = raw;");
    check("'a' 'é' '\\'' '\\u{1f}' 'static", "                       'static");
    check("fn f<'a>(x: &'a str) { 'l: loop {} }", "fn f<'a>(x: &'a str) { 'l: loop {} }");
}

#[test]
fn blocks_and_words_are_found() {
    let source = Source::new("x.rs", "fn f(a: [u8; 3]) { { } } fn g();");
    assert_eq!(source.block_after(0), Some(17..24));
    assert_eq!(source.block_after(25), None);
    assert_eq!(source.block_around(20), Some(19..22));
    assert_eq!(source.block_around(23), Some(17..24));
    assert_eq!(source.block_around(3), None);
    let source = Source::new("x.rs", "unsafe unsafety not_unsafe \"unsafe\"");
    assert_eq!(source.words("unsafe").collect::<Vec<_>>(), [0]);
    let source = Source::new("x.rs", "a;\n#[cfg(test)]\nmod tests { async }\nb");
    assert!(!source.without_tests().contains("async"));
    assert!(source.without_tests().ends_with("\nb"));
}
