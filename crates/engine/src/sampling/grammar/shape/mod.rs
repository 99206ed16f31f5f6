//! Refuses constraints before they are compiled, by their shape.
//!
//! The compiler bounds its own work by counting steps, and checks the count between two operations. A single operation
//! can be far larger than the bound: one derivative of thousands of optional parts in a row, one product of two long
//! lists of alternatives, one terminal that contains another a thousand times. This module bounds the size of one
//! operation, in one pass over the source. Every refusal names the keyword or the terminal, the bound and the value.

mod joined;
pub(super) mod lark;
pub(super) mod regex;
pub(super) mod schema;

use std::fmt::Display;

/// The cost of all expressions of one constraint so far.
#[derive(Debug, Default)]
pub(super) struct ShapeBudget {
    steps: u64,
    classes: u64,
}

/// Most steps for one derivative of all expressions. A step is one expression that the compiler looks at.
pub(super) const STEPS_MAX: u64 = 250_000;
/// Most Unicode classes (`\w`, `\p{..}`) in all expressions. Each becomes several hundred ranges of bytes.
pub(super) const UNICODE_CLASSES_MAX: u64 = 512;

impl ShapeBudget {
    /// Adds an expression's cost.
    ///
    /// # Errors
    /// A sentence, if the sum passes a bound.
    pub(super) fn spend(&mut self, cost: &regex::Cost, place: &dyn Display) -> Result<(), String> {
        self.steps = self.steps.saturating_add(cost.steps);
        self.classes = self.classes.saturating_add(cost.classes);
        if self.steps > STEPS_MAX {
            let steps = self.steps;
            return Err(format!(
                "{place} is too complex: its expressions must come to at most {STEPS_MAX} steps per character, got \
                 {steps} (optional parts that follow each other count with each other)"
            ));
        }
        if self.classes > UNICODE_CLASSES_MAX {
            let classes = self.classes;
            return Err(format!(
                "{place} must have at most {UNICODE_CLASSES_MAX} Unicode classes such as `\\w` or `\\p{{L}}`, got \
                 {classes}"
            ));
        }
        Ok(())
    }
}
