//! The cost of a regular expression, from its syntax tree.
//!
//! The compiler takes derivatives. The derivative of an expression is what remains of it after one character. The
//! derivative of a sequence consists of that of its first part and, while the parts before can be empty, that of each
//! following part:
//!
//! ```text
//! heads(ab)  = heads(a)               if a cannot be empty
//! heads(ab)  = heads(a) + heads(b)    if it can
//! steps(ab)  = steps(a) + steps(b) + heads(ab)
//! ```
//!
//! So `x?` a thousand times costs a thousand heads a thousand times. This product must be bounded, since the compiler
//! checks its own count only when a derivative is done.

use regex_syntax::ast::parse::ParserBuilder;
use regex_syntax::ast::{
    Ast, ClassPerlKind, ClassSet, ClassSetBinaryOp, ClassSetItem, Repetition, RepetitionKind, RepetitionRange,
};

/// Most brackets within brackets: parsers recurse.
pub(in super::super) const NESTING_MAX: u32 = 128;
/// Most alternatives that can come first at one place.
const HEADS_MAX: u64 = 4_096;
/// Most characters of a repeated text that must come: the grammar forces all of it at once.
const FORCED_MAX: u64 = 10_000;
/// Most alternatives of first bytes that a class member beyond ASCII makes.
const WIDE_HEADS: u64 = 4;
/// About how many alternatives of first bytes a Unicode class makes.
const UNICODE_HEADS: u64 = 48;
/// Most heads of a trie: alternatives that begin with a literal are merged by their first byte.
const TRIE_HEADS_MAX: u64 = 256;

/// The cost of an expression, or of a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Cost {
    /// Whether it matches the empty text.
    is_nullable: bool,
    /// Alternatives that can come first.
    pub(super) heads: u64,
    /// How many expressions one derivative looks at.
    pub(super) steps: u64,
    /// Unicode classes.
    pub(super) classes: u64,
    /// How many characters it consists of, if it matches exactly one text.
    forced: Option<u64>,
}

pub(super) const EMPTY: Cost = Cost { is_nullable: true, heads: 0, steps: 1, classes: 0, forced: Some(0) };
pub(super) const CHARACTER: Cost = Cost { is_nullable: false, heads: 1, steps: 1, classes: 0, forced: Some(1) };
const CLASS: Cost = Cost { forced: None, ..CHARACTER };

impl Cost {
    fn class(wide: u64, unicode: u64) -> Self {
        // However many members there are, they make at most 256 first bytes.
        let heads = (1 + WIDE_HEADS * wide + UNICODE_HEADS * unicode).min(256);
        Self { heads, steps: 1 + wide + unicode, classes: unicode, ..CLASS }
    }

    /// A text of `num_chars` characters.
    pub(super) fn literal(num_chars: u64) -> Self {
        if num_chars == 0 { EMPTY } else { Self { steps: num_chars, forced: Some(num_chars), ..CHARACTER } }
    }

    /// Any part of a text of `num_chars` characters, or nothing.
    pub(super) fn part_of(num_chars: u64) -> Self {
        Self { is_nullable: true, heads: num_chars.min(256), steps: num_chars.saturating_mul(4), ..CLASS }
    }

    /// One after the other.
    pub(super) fn then(self, next: Self) -> Self {
        let heads = if self.is_nullable { self.heads.saturating_add(next.heads) } else { self.heads };
        Self {
            is_nullable: self.is_nullable && next.is_nullable,
            heads,
            steps: self.steps.saturating_add(next.steps).saturating_add(heads),
            classes: self.classes.saturating_add(next.classes),
            forced: self.forced.zip(next.forced).map(|(a, b)| a.saturating_add(b)),
        }
    }

    /// Either one.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            is_nullable: self.is_nullable || other.is_nullable,
            heads: self.heads.saturating_add(other.heads),
            steps: self.steps.saturating_add(other.steps).saturating_add(other.heads),
            classes: self.classes.saturating_add(other.classes),
            forced: None,
        }
    }

    /// Both at once: each head of one meets each head of the other.
    pub(super) fn and(self, other: Self) -> Self {
        let heads = self.heads.max(1).saturating_mul(other.heads.max(1));
        Self {
            is_nullable: self.is_nullable && other.is_nullable,
            heads,
            steps: self.steps.saturating_add(other.steps).saturating_add(heads),
            classes: self.classes.saturating_add(other.classes),
            forced: None,
        }
    }

    /// The texts that it does not match: the compiler makes its heads disjoint, each against each other.
    pub(super) fn not(self) -> Self {
        let pairs = self.heads.saturating_mul(self.heads);
        Self { is_nullable: true, heads: pairs.min(256), steps: self.steps.saturating_add(pairs), forced: None, ..self }
    }

    /// Repeated from `min` to `max` times.
    pub(super) fn repeated(self, min: u64, max: Option<u64>) -> Self {
        Self {
            is_nullable: min == 0 || self.is_nullable,
            steps: self.steps.saturating_add(self.heads).saturating_add(2),
            forced: self.forced.filter(|_| max == Some(min)).map(|forced| forced.saturating_mul(min)),
            ..self
        }
    }

    /// Checks that no part of this cost is too large on its own.
    ///
    /// # Errors
    /// A sentence that names the bound and the value.
    pub(super) fn check(self) -> Result<Self, String> {
        let Self { heads, forced, .. } = self;
        if heads > HEADS_MAX {
            return Err(format!("at most {HEADS_MAX} alternatives may come first at one place, got {heads}"));
        }
        if let Some(forced) = forced.filter(|forced| *forced > FORCED_MAX) {
            return Err(format!("a repeated text must come to at most {FORCED_MAX} characters, got {forced}"));
        }
        Ok(self)
    }
}

/// The cost of `pattern`.
///
/// # Errors
/// A sentence, if it is malformed, nests too deeply, or one of its parts is too large on its own.
pub(in super::super) fn cost(pattern: &str) -> Result<Cost, String> {
    let parsed = ParserBuilder::new().nest_limit(NESTING_MAX).build().parse(pattern);
    of(&parsed.map_err(|e| e.kind().to_string())?)
}

fn of(ast: &Ast) -> Result<Cost, String> {
    match ast {
        Ast::Empty(_) | Ast::Flags(_) | Ast::Assertion(_) => Ok(EMPTY),
        Ast::Literal(_) => Ok(CHARACTER),
        Ast::Dot(_) => Ok(Cost::class(1, 0)),
        Ast::ClassPerl(class) if class.kind == ClassPerlKind::Space => Ok(Cost::class(2, 0)),
        Ast::ClassUnicode(_) | Ast::ClassPerl(_) => Ok(Cost::class(0, 1)),
        Ast::ClassBracketed(class) => {
            let (wide, unicode) = members(&class.kind);
            Ok(Cost::class(wide + u64::from(class.negated), unicode))
        }
        Ast::Repetition(repetition) => repeated(repetition),
        Ast::Group(group) => of(&group.ast),
        Ast::Alternation(alternation) => alternatives(&alternation.asts),
        Ast::Concat(concat) => {
            // Goes from the last part to the first, because the heads of a part include those of the parts after it.
            let parts = concat.asts.iter().rev();
            let cost = parts.map(of).try_fold(EMPTY, |behind, part| part.map(|part| part.then(behind)))?;
            cost.check()
        }
    }
}

fn repeated(repetition: &Repetition) -> Result<Cost, String> {
    let (min, max) = match &repetition.op.kind {
        RepetitionKind::ZeroOrOne => (0, Some(1)),
        RepetitionKind::ZeroOrMore => (0, None),
        RepetitionKind::OneOrMore => (1, None),
        RepetitionKind::Range(RepetitionRange::Exactly(n)) => (*n, Some(*n)),
        RepetitionKind::Range(RepetitionRange::AtLeast(n)) => (*n, None),
        RepetitionKind::Range(RepetitionRange::Bounded(n, m)) => (*n, Some(*m)),
    };
    of(&repetition.ast)?.repeated(min.into(), max.map(u64::from)).check()
}

fn alternatives(all: &[Ast]) -> Result<Cost, String> {
    let (mut merged, mut rest) = (None::<Cost>, None::<Cost>);
    for ast in all {
        let cost = of(ast)?;
        let sum = if begins_with_literal(ast) { &mut merged } else { &mut rest };
        *sum = Some(sum.map_or(cost, |sum| sum.or(cost)));
    }
    let merged = merged.map(|cost| Cost { heads: cost.heads.min(TRIE_HEADS_MAX), ..cost });
    let both = merged.into_iter().chain(rest).reduce(Cost::or).unwrap_or(EMPTY);
    both.check()
}

fn begins_with_literal(ast: &Ast) -> bool {
    match ast {
        Ast::Literal(_) => true,
        Ast::Concat(concat) => concat.asts.first().is_some_and(begins_with_literal),
        Ast::Group(group) => begins_with_literal(&group.ast),
        _ => false,
    }
}

/// How many members of a class are beyond ASCII, and how many are Unicode classes.
fn members(set: &ClassSet) -> (u64, u64) {
    match set {
        ClassSet::BinaryOp(ClassSetBinaryOp { lhs, rhs, .. }) => {
            let ((a, b), (c, d)) = (members(lhs), members(rhs));
            (a + c, b + d)
        }
        ClassSet::Item(item) => item_members(item),
    }
}

fn item_members(item: &ClassSetItem) -> (u64, u64) {
    match item {
        ClassSetItem::Empty(_) | ClassSetItem::Ascii(_) => (0, 0),
        ClassSetItem::Literal(literal) => (u64::from(!literal.c.is_ascii()), 0),
        ClassSetItem::Range(range) => (u64::from(!range.end.c.is_ascii()), 0),
        ClassSetItem::Unicode(_) | ClassSetItem::Perl(_) => (0, 1),
        ClassSetItem::Bracketed(class) => {
            let (wide, unicode) = members(&class.kind);
            (wide + u64::from(class.negated), unicode)
        }
        ClassSetItem::Union(union) => {
            union.items.iter().map(item_members).fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
        }
    }
}
