//! What became of writes, as those who plan next have to know it.

use super::Carried;
use bascule_planner::snapshot::Write;
use std::time::{Duration, Instant};

/// One write that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Which.
    pub write: Write,
    /// Why it failed; `None`: it is done.
    pub failed: Option<String>,
}

/// How some writes went, counted and one by one. What met another world than expected is counted and no attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Counted.
    pub carried: Carried,
    /// One by one.
    pub attempts: Vec<Attempt>,
    /// When each was begun, and how long the API server took.
    pub answers: Vec<(Instant, Duration)>,
    /// Whether it is not known of one of them what became of it.
    pub unknown: bool,
}

impl Written {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.carried.add(other.carried);
        self.attempts.extend(other.attempts);
        self.answers.extend(other.answers);
        self.unknown |= other.unknown;
    }
}
