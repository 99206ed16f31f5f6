//! What a grammar in Lark's notation costs, by its text.
//!
//! Terminals stand for one another, so that twenty short ones can come to a million characters. Each is costed once, with
//! those that it names put in. Of rules, each literal and expression is a terminal of its own.
//!
//! This reads definitions, not the whole notation: what it does not know it takes for nothing, and the compiler's
//! own parser says what is malformed.

mod tokens;

use std::collections::HashMap;

use self::tokens::LarkToken;
use super::regex::{self, CHARACTER, Cost, EMPTY};
use super::{ShapeBudget, schema};

/// Nested `%lark` and definitions that name one another in turn.
const DEPTH_MAX: usize = 64;

/// Checks `text`, whose expressions count against `budget`.
///
/// # Errors
/// A sentence with the terminal or keyword, the bound and the value.
pub(in super::super) fn check(text: &str, budget: &mut ShapeBudget) -> Result<(), String> {
    let tokens = tokens::read(text)?;
    for token in &tokens {
        if let LarkToken::Schema(schema) = token {
            schema::check(schema, budget)?;
        }
    }
    let mut reader = Reader { tokens: &tokens, definitions: definitions(&tokens), costs: HashMap::new(), budget };
    for (start, end) in sections(&tokens) {
        reader.section(start, end)?;
    }
    Ok(())
}

/// Where a definition's body is, by its name. A nested grammar may have one of the same name: both count.
type Definitions<'a> = HashMap<&'a str, Vec<(usize, usize)>>;

/// From each line that begins a definition or a statement to the next.
fn sections(tokens: &[LarkToken<'_>]) -> Vec<(usize, usize)> {
    let mut starts = vec![0];
    for (at, token) in tokens.iter().enumerate() {
        // A nested grammar's first definition may stand behind its bracket.
        if matches!(token, LarkToken::Line | LarkToken::Open('{')) && begins(&tokens[at + 1..]) {
            starts.push(at + 1);
        }
    }
    let ends = starts.iter().skip(1).copied().chain([tokens.len()]);
    starts.iter().copied().zip(ends).collect()
}

/// Whether a definition or a statement begins here.
fn begins(tokens: &[LarkToken<'_>]) -> bool {
    matches!(tokens.first(), Some(LarkToken::Statement)) || body_of(tokens).is_some()
}

/// A definition's name, and how many tokens stand before its body: `NAME.2[stop="x"]: ...`.
fn body_of<'a>(tokens: &[LarkToken<'a>]) -> Option<(&'a str, usize)> {
    let Some(LarkToken::Name(name)) = tokens.first() else { return None };
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(1) {
        match token {
            LarkToken::Open(_) => depth += 1,
            LarkToken::Close(_) => depth = depth.checked_sub(1)?,
            LarkToken::Colon if depth == 0 => return Some((name, at + 1)),
            LarkToken::Line | LarkToken::Or => return None,
            _ => {}
        }
    }
    None
}

fn definitions<'a>(tokens: &[LarkToken<'a>]) -> Definitions<'a> {
    let mut bodies = Definitions::new();
    for (start, end) in sections(tokens) {
        if let Some((name, skip)) = body_of(&tokens[start..end]) {
            bodies.entry(name).or_default().push((start + skip, end));
        }
    }
    bodies
}

struct Reader<'a, 'b> {
    tokens: &'a [LarkToken<'a>],
    definitions: Definitions<'a>,
    /// `None` while it is being worked out: a terminal that names itself is refused by the compiler.
    costs: HashMap<&'a str, Option<Cost>>,
    budget: &'b mut ShapeBudget,
}

impl<'a> Reader<'a, '_> {
    fn section(&mut self, start: usize, end: usize) -> Result<(), String> {
        match body_of(&self.tokens[start..end]) {
            Some((name, _)) if is_terminal(name) => {
                let cost = self.terminal(name, 0)?;
                self.budget.spend(&cost, &format_args!("terminal `{name}`"))
            }
            Some((name, skip)) => {
                let head = &self.tokens[start..start + skip];
                let cost = self.expansions(start + skip, end, 0)?.check().map_err(|e| format!("rule `{name}`: {e}"))?;
                // With a bracket behind its name, a rule can be one terminal; else its parts are.
                let is_one = head.iter().any(|token| matches!(token, LarkToken::Open('[')));
                let parts = self.parts(start + skip, end)?;
                self.budget.spend(if is_one { &cost } else { &parts }, &format_args!("rule `{name}`"))
            }
            None => {
                let cost = self.expansions(start, end, 0)?;
                self.budget.spend(&cost, &"a statement")
            }
        }
    }

    /// The cost of a terminal with all that it names.
    fn terminal(&mut self, name: &'a str, depth: usize) -> Result<Cost, String> {
        if let Some(known) = self.costs.get(name) {
            return Ok(known.unwrap_or(EMPTY));
        }
        let Some(bodies) = self.definitions.get(name).cloned() else { return Ok(CHARACTER) };
        if depth > DEPTH_MAX {
            return Err(format!("terminals must name one another at most {DEPTH_MAX} deep, got more at `{name}`"));
        }
        self.costs.insert(name, None);
        let mut cost = EMPTY;
        for (index, (start, end)) in bodies.into_iter().enumerate() {
            let body =
                self.expansions(start, end, depth + 1)?.check().map_err(|e| format!("terminal `{name}`: {e}"))?;
            cost = if index == 0 { body } else { cost.or(body) };
        }
        self.costs.insert(name, Some(cost));
        Ok(cost)
    }

    /// What the literals and expressions of a rule cost, each on its own.
    fn parts(&mut self, start: usize, end: usize) -> Result<Cost, String> {
        let mut sum = EMPTY;
        for at in start..end {
            if !matches!(self.tokens[at], LarkToken::Name(_)) {
                let cost = self.atom(at, 0)?;
                sum.steps = sum.steps.saturating_add(cost.steps);
                sum.classes = sum.classes.saturating_add(cost.classes);
            }
        }
        Ok(sum)
    }

    /// Alternatives of conjunctions of sequences, up to `end`.
    fn expansions(&mut self, start: usize, end: usize, depth: usize) -> Result<Cost, String> {
        let mut at = start;
        let (mut any, mut all, mut sequence) = (None::<Cost>, None::<Cost>, Vec::new());
        loop {
            let token = (at < end).then(|| &self.tokens[at]);
            if matches!(token, None | Some(LarkToken::Or | LarkToken::And)) {
                // From behind, for the heads of all that follows.
                let behind = sequence.drain(..).rev().fold(EMPTY, |behind, part: Cost| part.then(behind));
                all = Some(all.map_or(behind, |all| all.and(behind)));
                if !matches!(token, Some(LarkToken::And)) {
                    let branch = all.take().unwrap_or(EMPTY);
                    any = Some(any.map_or(branch, |any| any.or(branch)));
                }
                if token.is_none() {
                    return Ok(any.unwrap_or(EMPTY));
                }
                at += 1;
            } else {
                let (cost, next) = self.expression(at, end, depth)?;
                sequence.push(cost);
                at = next;
            }
        }
    }

    /// One atom and what repeats it, and where the next begins.
    fn expression(&mut self, start: usize, end: usize, depth: usize) -> Result<(Cost, usize), String> {
        if depth > 2 * DEPTH_MAX {
            return Err(format!("it must nest at most {DEPTH_MAX} brackets and names"));
        }
        let is_not = matches!(self.tokens[start], LarkToken::Tilde);
        let mut at = start + usize::from(is_not);
        if at >= end {
            return Ok((EMPTY, end));
        }
        let mut cost = if let LarkToken::Open(kind) = self.tokens[at] {
            let close = tokens::close(self.tokens, at, end);
            let inside = self.expansions(at + 1, close, depth + 1)?;
            at = close;
            if kind == '[' { inside.repeated(0, Some(1)) } else { inside }
        } else {
            self.atom(at, depth)?
        };
        at += 1;
        while at < end {
            let Some((min, max, len)) = tokens::repetition(&self.tokens[at..end]) else { break };
            cost = cost.repeated(min, max).check()?;
            at += len;
        }
        Ok((if is_not { cost.not() } else { cost }, at))
    }

    fn atom(&mut self, at: usize, depth: usize) -> Result<Cost, String> {
        match &self.tokens[at] {
            LarkToken::Name(name) if is_terminal(name) => self.terminal(name, depth),
            LarkToken::Text(num_chars) => Ok(Cost::literal(*num_chars)),
            LarkToken::Regex(pattern) => {
                regex::cost(pattern).map_err(|e| format!("`/{}/`: {e}", pattern.chars().take(60).collect::<String>()))
            }
            LarkToken::Chunks(num_chars) => Ok(Cost::part_of(*num_chars)),
            _ => Ok(EMPTY),
        }
    }
}

/// Terminals are in capitals.
fn is_terminal(name: &str) -> bool {
    name.trim_start_matches('_').starts_with(|c: char| c.is_ascii_uppercase())
}
