//! How many writes in flight the API server bears, measured.

use std::time::Duration;

/// A write that is answered within this time shows an API server that bears more.
const FAST: Duration = Duration::from_millis(250);
/// One that is answered later shows that there were too many.
const SLOW: Duration = Duration::from_secs(1);
/// Writes in flight before anything is known.
const FIRST: u64 = 32;
/// How many there are at least, however slow it is: one that hangs does not hold up all others.
const LEAST: u64 = 8;
/// How many there are at most: about half of what API Priority and Fairness gives all service accounts together by default
/// (`workload-low`: 100 of 245 shares of 600 places).
const MOST: u64 = 128;
/// Figures are kept in thousandths, so that a plan does not hang on how a machine rounds.
const THOUSAND: u64 = 1_000;

/// How many writes in flight the API server bears. One more for as many fast answers as there are places, half as many after a slow
/// one: additive increase and multiplicative decrease, as TCP finds what a path bears (RFC 5681).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    thousandths: u64,
    /// When it was halved last. What was begun before then says nothing of what it is since.
    halved: Option<Duration>,
}

impl Default for Speed {
    fn default() -> Self {
        Self { thousandths: FIRST * THOUSAND, halved: None }
    }
}

impl Speed {
    /// Writes that may be in flight.
    #[must_use]
    pub fn in_flight(self) -> usize {
        usize::try_from(self.thousandths / THOUSAND).unwrap_or(usize::MAX)
    }

    /// A part of them, never none.
    #[must_use]
    pub fn share(self, of: usize) -> usize {
        self.in_flight().checked_div(of).unwrap_or(0).max(1)
    }

    /// Takes note that a write took so long, which was begun at a time while so many were in flight, itself included.
    pub(super) fn answered(&mut self, begun: Duration, took: Duration, in_flight: usize) {
        if took > SLOW {
            if self.halved.is_none_or(|halved| halved < begun) {
                self.halved = Some(begun.saturating_add(took));
                self.thousandths = (self.thousandths / 2).max(LEAST * THOUSAND);
            }
            return;
        }
        // Few writes say nothing of what many would take.
        let busy = in_flight.saturating_mul(2) >= self.in_flight();
        if took <= FAST && busy {
            let more = THOUSAND.saturating_mul(THOUSAND).checked_div(self.thousandths).unwrap_or(0);
            self.thousandths = self.thousandths.saturating_add(more).min(MOST * THOUSAND);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(2);

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn fast_answers_of_many_writes_make_room_for_more_up_to_a_bound() {
        let mut speed = Speed::default();
        for _ in 0..32 {
            speed.answered(at(1), QUICK, 32);
        }
        assert!((32..=33).contains(&speed.in_flight()), "one more each time that all were answered: {speed:?}");
        for _ in 0..100_000 {
            speed.answered(at(1), QUICK, 128);
        }
        assert_eq!((speed.in_flight(), speed.share(4), speed.share(2)), (128, 32, 64));
    }

    #[test]
    fn few_writes_and_those_that_take_their_time_say_nothing() {
        let mut speed = Speed::default();
        for _ in 0..1_000 {
            speed.answered(at(1), QUICK, 1);
            speed.answered(at(1), Duration::from_millis(600), 32);
        }
        assert_eq!(speed, Speed::default());
    }

    #[test]
    fn a_slow_answer_halves_and_those_that_were_begun_with_it_do_not_halve_again() {
        let mut speed = Speed::default();
        for _ in 0..32 {
            speed.answered(at(1), LONG, 32);
        }
        assert_eq!(speed.in_flight(), 16);
        speed.answered(at(4), LONG, 16);
        speed.answered(at(7), LONG, 8);
        assert_eq!((speed.in_flight(), speed.share(4), speed.share(100)), (8, 2, 1), "never fewer");
        for _ in 0..200 {
            speed.answered(at(9), QUICK, 16);
        }
        assert!(speed.in_flight() > 16, "it recovers: {speed:?}");
    }
}
