//! The maintenance windows of a policy that lie ahead, and how many of its nodes a forecast finishes in each.

use crate::{
    snapshot::PolicyFacts,
    windows::{Opening, opening, zone_at},
};
use bascule_api::{Duration, Time};

/// The most windows that are listed.
const MOST: usize = 200;

/// A window that opens before the end of the time that is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coming {
    /// When it opens, or opened where it is open.
    pub start: Time,
    /// When it closes; absent where windows follow each other without end.
    pub end: Option<Time>,
    /// The start as the policy's people write it.
    pub in_its_zone: String,
    /// How many of the times that were given lie in it.
    pub done: usize,
}

/// The windows of a policy from `now` up to `horizon` later, at most 200 of them; none for a policy without windows, or with a spec that
/// can't be used. `done` is when nodes will be done.
#[must_use]
pub fn calendar(policy: &PolicyFacts, now: Time, horizon: Duration, done: &[Time]) -> Vec<Coming> {
    let Ok(valid) = &policy.spec else { return Vec::new() };
    let last = now.after(horizon);
    let mut found = Vec::new();
    let mut at = now;
    while found.len() < MOST {
        let span = match opening(&valid.windows, at) {
            Opening::Always | Opening::Closed(None) => break,
            Opening::Open(span) | Opening::Closed(Some(span)) => span,
        };
        if span.start > last {
            break;
        }
        let inside = |at: Time| at > now && at >= span.start && span.end.is_none_or(|end| at <= end);
        let zone = zone_at(&valid.windows, span.start);
        found.push(Coming {
            start: span.start,
            end: span.end,
            in_its_zone: zone.describe(span.start.get()),
            done: done.iter().filter(|at| inside(**at)).count(),
        });
        match span.end {
            Some(end) => at = end,
            None => break,
        }
    }
    found
}
