//! Cuts text at the spellings of special tokens before anything else looks at it.
//!
//! At each position the longest spelling that begins there wins, then the search goes on behind it (leftmost-longest,
//! as SentencePiece's prefix matcher and the tokenizers library have it). A trie over bytes finds it: one walk per
//! position, bounded by the longest spelling, whatever the number of special tokens.

use std::collections::HashMap;

use tallow_stream::protocol::TokenId;

/// A stretch of the text: words to be cut by the scheme's rules, or one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment<'a> {
    /// Never empty.
    Text(&'a str),
    /// A special token, spelled out in the text.
    Token(TokenId),
}

/// The spellings of a set of special tokens.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    /// Node 0 is the root. Most nodes have one child, so the edges live in one map.
    edges: HashMap<(u32, u8), u32>,
    /// The token whose spelling ends at a node.
    tokens: Vec<Option<TokenId>>,
    /// Bytes with which some spelling begins.
    first: Vec<bool>,
}

impl SpecialTokens {
    /// Collects spellings; empty ones are left out, and of two equal ones the first wins.
    pub(crate) fn new<'a>(spellings: impl Iterator<Item = (TokenId, &'a str)>) -> Self {
        let mut trie = Self { edges: HashMap::new(), tokens: vec![None], first: vec![false; 256] };
        for (token, spelling) in spellings.filter(|(_, spelling)| !spelling.is_empty()) {
            trie.first[spelling.as_bytes()[0] as usize] = true;
            let mut node = 0;
            for &byte in spelling.as_bytes() {
                let fresh = trie.tokens.len() as u32;
                node = *trie.edges.entry((node, byte)).or_insert(fresh);
                if node == fresh {
                    trie.tokens.push(None);
                }
            }
            trie.tokens[node as usize].get_or_insert(token);
        }
        trie
    }

    /// Cuts `text` into words and special tokens, in order.
    pub(crate) fn split<'a>(&self, text: &'a str) -> Vec<Segment<'a>> {
        let bytes = text.as_bytes();
        let mut segments = Vec::new();
        let (mut start, mut at) = (0, 0);
        while at < bytes.len() {
            let Some((token, len)) = self.longest_at(&bytes[at..]) else {
                at += 1;
                continue;
            };
            if start < at {
                segments.push(Segment::Text(&text[start..at]));
            }
            segments.push(Segment::Token(token));
            at += len;
            start = at;
        }
        if start < bytes.len() {
            segments.push(Segment::Text(&text[start..]));
        }
        segments
    }

    /// The longest spelling that `bytes` begins with, and its length. Spellings are valid UTF-8 and begin with a
    /// leading byte, so in valid UTF-8 they begin and end at character boundaries.
    fn longest_at(&self, bytes: &[u8]) -> Option<(TokenId, usize)> {
        if !self.first.get(bytes[0] as usize).copied().unwrap_or(false) {
            return None;
        }
        let (mut node, mut best) = (0, None);
        for (index, &byte) in bytes.iter().enumerate() {
            let Some(&next) = self.edges.get(&(node, byte)) else { break };
            node = next;
            if let Some(token) = self.tokens[node as usize] {
                best = Some((token, index + 1));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::Segment::{Text, Token};
    use super::*;

    #[track_caller]
    fn check(spellings: &[&str], text: &str, expect: &[Segment<'_>]) {
        let numbered = spellings.iter().enumerate().map(|(id, s)| (id as TokenId, *s));
        assert_eq!(SpecialTokens::new(numbered).split(text), expect);
    }

    #[test]
    fn leftmost_then_longest() {
        check(&[], "plain", &[Text("plain")]);
        check(&["<a>"], "", &[]);
        check(&["<a>"], "x<a><a>y", &[Text("x"), Token(0), Token(0), Text("y")]);
        check(&["ab", "abc", "bcd"], "abcd", &[Token(1), Text("d")]);
        check(&["abcd", "b"], "abcx", &[Text("a"), Token(1), Text("cx")]);
        check(&["\n", "\n\n"], "\n\n\n", &[Token(1), Token(0)]);
        check(&["é", ""], "è é", &[Text("è "), Token(0)]);
    }
}
