//! Random numbers from a seed that a test prints.

use tallow::sampling::random_u64;

#[derive(Debug, Clone)]
pub(crate) struct Random {
    seed: u64,
    position: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.position += 1;
        random_u64(self.seed, self.position)
    }

    /// From 0 up to and without `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
