//! Finds the end of a JSON value, one character at a time. The scanner checks brackets, strings and the characters
//! between them. That is enough to notice text that is not JSON before it swallows the rest of an answer.

/// Deeper values are not read as JSON.
const DEPTH_MAX: usize = 128;

/// What a character means to the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scanned {
    /// Part of it, and more must come.
    Inner,
    /// Its last.
    Last,
    /// Not part of it: the value ended before.
    Behind,
    /// Not JSON.
    Wrong,
}

/// Scans one value; the first character must not be a space.
#[derive(Debug, Default)]
pub(super) struct JsonScan {
    /// The brackets that must come.
    closing: Vec<char>,
    is_text: bool,
    is_escaped: bool,
    /// A number or a word has begun at the top.
    is_word: bool,
}

impl JsonScan {
    /// Takes the next character.
    pub(super) fn push(&mut self, c: char) -> Scanned {
        if self.is_text {
            return self.push_text(c);
        }
        let is_top = self.closing.is_empty();
        match c {
            '"' | '{' | '[' if is_top && self.is_word => Scanned::Wrong,
            '"' => {
                self.is_text = true;
                Scanned::Inner
            }
            '{' | '[' if self.closing.len() == DEPTH_MAX => Scanned::Wrong,
            '{' => self.open('}'),
            '[' => self.open(']'),
            '}' | ']' | ',' | ' ' | '\n' | '\r' | '\t' if is_top => {
                if self.is_word {
                    Scanned::Behind
                } else {
                    Scanned::Wrong
                }
            }
            '}' | ']' if self.closing.pop() == Some(c) => {
                if self.closing.is_empty() {
                    Scanned::Last
                } else {
                    Scanned::Inner
                }
            }
            ',' | ':' | ' ' | '\n' | '\r' | '\t' if !is_top => Scanned::Inner,
            // Numbers, and the letters of `true`, `false` and `null`.
            '0'..='9' | '+' | '-' | '.' | 'E' | 'a' | 'e' | 'f' | 'l' | 'n' | 'r' | 's' | 't' | 'u' => {
                self.is_word |= is_top;
                Scanned::Inner
            }
            _ => Scanned::Wrong,
        }
    }

    fn push_text(&mut self, c: char) -> Scanned {
        match c {
            _ if self.is_escaped => self.is_escaped = false,
            '\\' => self.is_escaped = true,
            '"' => {
                self.is_text = false;
                if self.closing.is_empty() {
                    return Scanned::Last;
                }
            }
            _ => {}
        }
        Scanned::Inner
    }

    fn open(&mut self, closing: char) -> Scanned {
        self.closing.push(closing);
        Scanned::Inner
    }
}
