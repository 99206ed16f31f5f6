//! Constraints that are refused before they are compiled, by their shape.
//!
//! The compiler bounds its own work by counting steps, and looks at the count between two operations. A single operation
//! can be far larger than the bound: one derivative of thousands of optional parts in a row, one product of two long
//! lists of alternatives, one terminal that stands for another a thousand times. What follows here is a bound on the
//! size of one operation, worked out in one pass over the source, and every refusal names the keyword or the
//! terminal, the bound and the value.

mod joined;
pub(super) mod lark;
pub(super) mod regex;
pub(super) mod schema;

use std::fmt::Display;

/// Expressions of one constraint may come to this together; each on its own as well.
#[derive(Debug, Default)]
pub(super) struct ShapeBudget {
    steps: u64,
    classes: u64,
}

/// What one derivative of all expressions may cost, in expressions that are looked at.
pub(super) const STEPS_MAX: u64 = 250_000;
/// Unicode classes (`\w`, `\p{..}`) in all expressions. Each becomes several hundred ranges of bytes.
pub(super) const UNICODE_CLASSES_MAX: u64 = 512;

impl ShapeBudget {
    /// Adds an expression's cost.
    ///
    /// # Errors
    /// A sentence, if that is too much.
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
