//! What became of writes, as those who plan next have to know it.

use super::Carried;
use bascule_planner::snapshot::{Ending, Write};
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
    /// How they ended together.
    #[must_use]
    pub const fn ending(&self) -> Ending {
        if self.unknown {
            Ending::Unknown
        } else if self.carried.failed > 0 || self.carried.stale > 0 {
            Ending::NotDone
        } else {
            Ending::Done
        }
    }

    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.carried.add(other.carried);
        self.attempts.extend(other.attempts);
        self.answers.extend(other.answers);
        self.unknown |= other.unknown;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_done_where_all_are_and_what_one_of_them_came_to_may_not_be_known() {
        let ending = |carried: Carried, unknown: bool| Written { carried, unknown, ..Written::default() }.ending();
        let done = Carried { done: 1, ..Carried::default() };
        assert_eq!(ending(done, false), Ending::Done);
        for broken in [Carried { stale: 1, ..done }, Carried { failed: 1, ..done }] {
            assert_eq!((ending(broken, false), ending(broken, true)), (Ending::NotDone, Ending::Unknown));
        }
    }
}
