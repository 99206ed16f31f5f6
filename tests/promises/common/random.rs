//! Random numbers from a seed that a test prints.

use tallow::sampling::random_u64;

#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    position: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    pub fn next(&mut self) -> u64 {
        self.position += 1;
        random_u64(self.seed, self.position)
    }

    /// From 0 up to and without `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
