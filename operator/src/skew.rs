//! How far the API server's clock is from this machine's, from the `Date` of its answers (docs/decisions/0049).
//!
//! An answer is made between the question and its arrival, and its `Date` is cut to the second. So each bounds the difference from
//! both sides, however slow it is. What is told stays as it is while the bounds allow it, zero at first: clocks that agree are never
//! corrected, and time does not go to and fro with what an answer takes.

use chrono::{DateTime, TimeDelta, Utc};
use std::{collections::VecDeque, time::Instant};

/// Of how many answers the middle counts: one API server among three whose clock is wrong is not followed.
const LATELY: usize = 5;
/// This machine's clock was set when it went so much further than time did: earlier answers were compared with another one.
const JUMP: TimeDelta = TimeDelta::seconds(1);

/// An answer of an API server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dated {
    /// What it says of when it was made.
    pub date: DateTime<Utc>,
    /// When it was asked for, by this machine's clock.
    pub asked: DateTime<Utc>,
    /// When it was there, by this machine's clock.
    pub answered: DateTime<Utc>,
    /// The same by the clock that is never set.
    pub at: Instant,
}

/// How far the API server's clock is ahead, as one answer shows it.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    least: TimeDelta,
    most: TimeDelta,
}

impl Bounds {
    /// `None` where this machine's clock was set back meanwhile.
    fn of(answer: &Dated) -> Option<Self> {
        let least = answer.date.signed_duration_since(answer.answered);
        let most = answer.date.signed_duration_since(answer.asked) + TimeDelta::seconds(1);
        (least <= most).then_some(Self { least, most })
    }
}

/// The difference of the two clocks.
#[derive(Debug, Default)]
pub(crate) struct Skew {
    lately: VecDeque<Bounds>,
    last: Option<(DateTime<Utc>, Instant)>,
    ahead: Option<TimeDelta>,
}

impl Skew {
    /// How far the API server's clock is ahead of this machine's; `None` before the first answer.
    pub(crate) const fn ahead(&self) -> Option<TimeDelta> {
        self.ahead
    }

    /// Takes in an answer.
    pub(crate) fn heard(&mut self, answer: &Dated) {
        let Some(bounds) = Bounds::of(answer) else { return };
        if self.last.is_some_and(|last| was_set(last, answer)) {
            self.lately.clear();
        }
        self.last = Some((answer.answered, answer.at));
        self.lately.push_back(bounds);
        if self.lately.len() > LATELY {
            self.lately.pop_front();
        }
        // Of an odd number of them, so that one stands in the middle.
        let counted = self.lately.len().saturating_sub(1) | 1;
        let least = middle(self.lately.iter().take(counted).map(|bounds| bounds.least));
        let most = middle(self.lately.iter().take(counted).map(|bounds| bounds.most));
        self.ahead = Some(self.ahead.unwrap_or_default().max(least).min(most));
    }
}

fn was_set((before, at): (DateTime<Utc>, Instant), answer: &Dated) -> bool {
    let passed = TimeDelta::from_std(answer.at.saturating_duration_since(at)).unwrap_or_default();
    (answer.answered.signed_duration_since(before) - passed).abs() > JUMP
}

fn middle(values: impl Iterator<Item = TimeDelta>) -> TimeDelta {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_795_000_000_000 + millis).unwrap()
    }

    /// An answer of a server whose clock is `ahead`, asked at `asked` (all in milliseconds) by a machine that is right.
    fn answer(origin: Instant, asked: i64, (there, back): (i64, i64), ahead: i64) -> Dated {
        let made = at(asked + there + ahead);
        let date = DateTime::from_timestamp(made.timestamp(), 0).unwrap();
        let passed = Duration::from_millis(u64::try_from(asked + there + back).unwrap());
        Dated { date, asked: at(asked), answered: at(asked + there + back), at: origin + passed }
    }

    #[test]
    fn clocks_that_agree_are_not_corrected_however_slow_an_answer_is() {
        let (mut skew, origin) = (Skew::default(), Instant::now());
        assert_eq!(skew.ahead(), None);
        for (asked, took) in [(300, (5, 5)), (30_999, (0, 0)), (60_000, (9_000, 10)), (90_500, (10, 9_000))] {
            skew.heard(&answer(origin, asked, took, 0));
            assert_eq!(skew.ahead(), Some(TimeDelta::zero()), "{asked}");
        }
    }

    #[test]
    fn one_server_of_three_whose_clock_is_wrong_is_not_followed() {
        let (mut skew, origin) = (Skew::default(), Instant::now());
        for round in 0..9 {
            let ahead = if round % 3 == 1 { 600_000 } else { 0 };
            skew.heard(&answer(origin, round * 30_000, (2, 2), ahead));
            assert_eq!(skew.ahead(), Some(TimeDelta::zero()), "{round}");
        }
    }

    #[test]
    fn a_clock_that_was_set_is_measured_anew_by_the_next_answer() {
        let (mut skew, origin) = (Skew::default(), Instant::now());
        for round in 0..5 {
            skew.heard(&answer(origin, round * 30_000, (2, 2), 600_000));
        }
        assert!((skew.ahead().unwrap() - TimeDelta::seconds(600)).abs() <= TimeDelta::seconds(1), "{skew:?}");
        // This machine's clock is set right: it goes on by ten minutes while half a minute passes.
        let right = answer(origin, 150_000, (2, 2), 600_000);
        let forward = TimeDelta::seconds(600);
        skew.heard(&Dated { asked: right.asked + forward, answered: right.answered + forward, ..right });
        assert!(skew.ahead().unwrap().abs() <= TimeDelta::seconds(1), "{skew:?}");
        // Between the question and the answer: such an answer says nothing.
        let before = skew.ahead();
        skew.heard(&Dated { asked: right.asked + forward, ..right });
        assert_eq!(skew.ahead(), before);
    }

    proptest! {
        /// Whatever answers take, the time that follows from it is the server's within what an answer can show, and is corrected
        /// the less the longer it is measured.
        #[test]
        fn the_servers_time_is_known_within_a_second_and_what_an_answer_took(
            ahead in -100_000_000_i64..100_000_000,
            took in proptest::collection::vec((0..200_i64, 0..200_i64, 0..1_000_i64), 1..40),
        ) {
            let (mut skew, origin) = (Skew::default(), Instant::now());
            let mut moves = Vec::new();
            for (round, (there, back, phase)) in (0_i64..).zip(&took) {
                let before = skew.ahead();
                skew.heard(&answer(origin, round * 30_000 + phase, (*there, *back), ahead));
                let (now, real) = (skew.ahead().unwrap(), TimeDelta::milliseconds(ahead));
                prop_assert!((now - real).abs() <= TimeDelta::milliseconds(1_400), "{now} instead of {real}");
                moves.extend(before.map(|before| (now - before).abs()));
            }
            let walked: TimeDelta = moves.iter().fold(TimeDelta::zero(), |sum, step| sum + *step);
            prop_assert!(walked <= TimeDelta::milliseconds(1_400), "it goes to and fro: {moves:?}");
        }
    }
}
