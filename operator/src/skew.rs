//! How far the API servers' time is from that of a clock of this machine which is never set, by the `Date` of their answers
//! (docs/decisions/0049).
//!
//! An answer is made between the question and its arrival, and its `Date` is cut to the second. So each bounds the difference from
//! both sides, however slow it is. What is told stays as it is while the bounds allow it, zero at first: clocks that agree are never
//! corrected, and time does not go to and fro with what an answer takes.
//!
//! Servers behind one address may differ, and a balancer chooses as it likes. Of the first answers the middle counts; from then on
//! what is told is given up only after a long row of answers that speak against it. Were each believed, a window would close and open
//! again with the balancer's choices. But where this machine's own clock has run ahead by as much, the machine was suspended, and one answer
//! is enough.

use chrono::{DateTime, TimeDelta, Utc};
use std::collections::VecDeque;

/// Of how many answers the middle counts.
pub(crate) const LATELY: usize = 5;
/// So many in a row that speak against what is told are believed: two servers that differ and are chosen at random bring such a row once
/// in a million answers.
const CONVINCED: usize = 20;
/// Answers that are no further off than this bear out what is told, and correct it.
const NEAR: TimeDelta = TimeDelta::seconds(2);
/// By so much this machine's clock runs away from the one that is never set when the machine was suspended, in which that one stands still,
/// or when somebody sets it.
pub(crate) const JUMP: TimeDelta = TimeDelta::seconds(30);
/// By so much a machine's clock may be off when it goes on.
const AWAKENING: TimeDelta = TimeDelta::seconds(10);
/// The longest that time stands still for a correction. What goes further back is a server's clock that was set.
const STILL: TimeDelta = TimeDelta::seconds(5);

/// An answer of an API server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dated {
    /// What it says of when it was made.
    pub date: DateTime<Utc>,
    /// When it was asked for, by the clock that is never set.
    pub asked: DateTime<Utc>,
    /// When it was there, by the same clock.
    pub answered: DateTime<Utc>,
    /// By how much the clock of this machine that may be set had run ahead of that one by then.
    pub own: TimeDelta,
}

/// How far the API server's clock is ahead, as one answer shows it.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    least: TimeDelta,
    most: TimeDelta,
}

impl Bounds {
    fn of(answer: &Dated) -> Self {
        let least = answer.date.signed_duration_since(answer.answered);
        let most = answer.date.signed_duration_since(answer.asked) + TimeDelta::seconds(1);
        Self { least, most }
    }

    fn bear_out(self, ahead: TimeDelta) -> bool {
        self.least - NEAR <= ahead && ahead <= self.most + NEAR
    }

    fn shifted(self, by: TimeDelta) -> Self {
        Self { least: self.least + by, most: self.most + by }
    }
}

/// The difference of the two clocks.
#[derive(Debug, Default)]
pub(crate) struct Skew {
    /// The last answers that bear out what is told; at first all.
    lately: VecDeque<Bounds>,
    /// Those since then: all speak against it.
    against: VecDeque<Bounds>,
    ahead: Option<TimeDelta>,
    /// By how much this machine's own clock had run ahead when an answer bore out what is told.
    own: TimeDelta,
    told: Option<DateTime<Utc>>,
}

impl Skew {
    /// How far the API server's clock is ahead of the one that is never set; `None` before the first answer.
    pub(crate) const fn ahead(&self) -> Option<TimeDelta> {
        self.ahead
    }

    /// Whether the last answer speaks against what is told, so that the next is worth having soon; or this machine's own clock, which has
    /// run ahead by `own`.
    pub(crate) fn is_doubted(&self, own: TimeDelta) -> bool {
        !self.against.is_empty() || own - self.own >= JUMP
    }

    /// The API server's time when the clock that is never set shows `steady`; that one's before the first answer. What was told is not
    /// taken back by a correction: time stands still until it is so late.
    pub(crate) fn time(&mut self, steady: DateTime<Utc>) -> DateTime<Utc> {
        let now = steady.checked_add_signed(self.ahead.unwrap_or_default()).unwrap_or(steady);
        let stands = |told: &DateTime<Utc>| *told > now && told.signed_duration_since(now) <= STILL;
        let time = self.told.filter(stands).unwrap_or(now);
        self.told = Some(time);
        time
    }

    /// Takes in an answer.
    pub(crate) fn heard(&mut self, answer: &Dated) {
        let bounds = Bounds::of(answer);
        let mut kept = self.ahead.filter(|_| self.lately.len() >= LATELY);
        if kept.is_some_and(|ahead| !bounds.bear_out(ahead))
            && let Some(slept) = self.slept(answer, bounds)
        {
            // One that two clocks agree upon needs no row of others.
            kept = kept.map(|ahead| ahead + slept);
            self.lately.iter_mut().for_each(|bounds| *bounds = bounds.shifted(slept));
        }
        if kept.is_some_and(|ahead| !bounds.bear_out(ahead)) {
            self.against.push_back(bounds);
            if self.against.len() < CONVINCED {
                return;
            }
            (self.lately, kept) = (std::mem::take(&mut self.against), None);
        } else {
            self.against.clear();
            self.lately.push_back(bounds);
        }
        self.own = answer.own;
        while self.lately.len() > LATELY {
            self.lately.pop_front();
        }
        // Of an odd number of them, so that one stands in the middle.
        let counted = self.lately.len().saturating_sub(1) | 1;
        let least = middle(self.lately.iter().take(counted).map(|bounds| bounds.least));
        let most = middle(self.lately.iter().take(counted).map(|bounds| bounds.most));
        self.ahead = Some(kept.unwrap_or_default().max(least).min(most));
    }

    /// For how long the machine was suspended since what is told was borne out, where its own clock and the answer both say so.
    fn slept(&self, answer: &Dated, bounds: Bounds) -> Option<TimeDelta> {
        let (ahead, ran) = (self.ahead?, answer.own - self.own);
        let slept = (ahead + ran).max(bounds.least).min(bounds.most) - ahead;
        (ran >= JUMP && (slept - ran).abs() <= AWAKENING).then_some(slept)
    }
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

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_795_000_000_000 + millis).unwrap()
    }

    /// An answer of a server whose clock is `ahead`, asked for at `asked`, all in milliseconds.
    fn answer(asked: i64, (there, back): (i64, i64), ahead: i64) -> Dated {
        let made = at(asked + there + ahead);
        let date = DateTime::from_timestamp(made.timestamp(), 0).unwrap();
        Dated { date, asked: at(asked), answered: at(asked + there + back), own: TimeDelta::zero() }
    }

    /// Whether the last answer speaks against what is told.
    fn is_doubted(skew: &Skew) -> bool {
        skew.is_doubted(skew.own)
    }

    #[test]
    fn clocks_that_agree_are_not_corrected_however_slow_an_answer_is() {
        let mut skew = Skew::default();
        assert_eq!((skew.ahead(), skew.time(at(0))), (None, at(0)));
        for (asked, took) in [(300, (5, 5)), (30_999, (0, 0)), (60_000, (9_000, 10)), (90_500, (10, 9_000))] {
            skew.heard(&answer(asked, took, 0));
            assert_eq!(skew.ahead(), Some(TimeDelta::zero()), "{asked}");
        }
    }

    #[test]
    fn of_servers_that_differ_one_is_stayed_with() {
        // What is told after each answer but the first ones, where one in `every` comes from a server that is ten minutes ahead.
        let told = |every: i64, first: i64| {
            let mut skew = Skew::default();
            let mut told = Vec::new();
            for round in 0..60 {
                let ahead = if (round + first) % every == 0 { 600_000 } else { 0 };
                skew.heard(&answer(round * 30_000, (2, 2), ahead));
                told.extend(skew.ahead().filter(|_| round >= 4));
            }
            told.dedup();
            told
        };
        for first in 0..3 {
            assert_eq!(told(3, first), [TimeDelta::zero()], "of three the one that is wrong is not followed");
        }
        for first in 0..2 {
            assert_eq!(told(2, first).len(), 1, "of two nobody knows which is right");
        }
    }

    #[test]
    fn a_servers_clock_that_was_set_is_followed_after_a_long_row_of_answers() {
        let (mut skew, mut round) = (Skew::default(), 0);
        let mut hear = |skew: &mut Skew, times: usize, ahead: i64| {
            for _ in 0..times {
                skew.heard(&answer(round * 30_000, (2, 2), ahead));
                round += 1;
            }
            skew.ahead()
        };
        let before = Some(TimeDelta::milliseconds(599_996));
        assert_eq!(hear(&mut skew, 9, 600_000), before);
        assert_eq!(hear(&mut skew, CONVINCED - 1, 0), before);
        assert!(is_doubted(&skew));
        // One that bears it out, and the row begins anew.
        assert_eq!(hear(&mut skew, 1, 600_000), before);
        assert!(!is_doubted(&skew));
        assert_eq!(hear(&mut skew, CONVINCED - 1, 0), before);
        assert_eq!(hear(&mut skew, 1, 0), Some(TimeDelta::zero()));
        assert!(!is_doubted(&skew));
    }

    #[test]
    fn what_time_it_is_after_a_suspension_is_believed_at_once_where_two_clocks_say_so() {
        // The first answer afterwards, of a server whose clock is as far ahead, and by how much the machine's own clock ran ahead, in seconds.
        let heard = |server: i64, own: i64| {
            let (mut skew, own) = (Skew::default(), TimeDelta::seconds(own));
            (0..9).for_each(|round| skew.heard(&answer(round * 30_000, (2, 2), 0)));
            assert_eq!(skew.is_doubted(own), own >= JUMP);
            let mut believed = Vec::new();
            for round in 9..15 {
                skew.heard(&Dated { own, ..answer(round * 30_000, (2, 2), server * 1_000) });
                let off = skew.ahead().unwrap() - TimeDelta::seconds(server);
                believed.push(off.abs() <= TimeDelta::milliseconds(1_400));
                assert_eq!(is_doubted(&skew), !off.is_zero() && !believed.contains(&true));
            }
            believed
        };
        for (server, own, believed) in [
            (3_600, 3_600, true),
            (3_600, 3_605, true),
            (0, 3_600, true),
            // A server's clock was set, or another server answers, while this machine's stayed as it was or was set to something else.
            (3_600, 0, false),
            (3_600, 600, false),
            (-3_600, -3_600, false),
            (20, 20, false),
        ] {
            assert_eq!(heard(server, own), [believed; 6], "{server} {own}");
        }
    }

    #[test]
    fn time_stands_still_for_a_correction_and_goes_back_only_where_a_clock_was_set() {
        let mut skew = Skew { ahead: Some(TimeDelta::seconds(3)), ..Skew::default() };
        assert_eq!(skew.time(at(0)), at(3_000));
        skew.ahead = Some(TimeDelta::seconds(1));
        assert_eq!(skew.time(at(500)), at(3_000));
        assert_eq!(skew.time(at(2_500)), at(3_500));
        skew.ahead = Some(TimeDelta::seconds(-600));
        assert_eq!(skew.time(at(3_000)), at(-597_000));
    }

    proptest! {
        /// Whatever answers take, the time that follows from it is the server's within what an answer can show, and is corrected
        /// the less the longer it is measured.
        #[test]
        fn the_servers_time_is_known_within_a_second_and_what_an_answer_took(
            ahead in -100_000_000_i64..100_000_000,
            took in proptest::collection::vec((0..200_i64, 0..200_i64, 0..1_000_i64), 1..40),
        ) {
            let mut skew = Skew::default();
            let mut moves = Vec::new();
            for (round, (there, back, phase)) in (0_i64..).zip(&took) {
                let before = skew.ahead().filter(|_| round >= 5);
                skew.heard(&answer(round * 30_000 + phase, (*there, *back), ahead));
                let (now, real) = (skew.ahead().unwrap(), TimeDelta::milliseconds(ahead));
                prop_assert!((now - real).abs() <= TimeDelta::milliseconds(1_400), "{now} instead of {real}");
                prop_assert!(!is_doubted(&skew));
                moves.extend(before.map(|before| (now - before).abs()));
            }
            let walked: TimeDelta = moves.iter().fold(TimeDelta::zero(), |sum, step| sum + *step);
            prop_assert!(walked <= TimeDelta::milliseconds(1_400), "it goes to and fro: {moves:?}");
        }
    }
}
