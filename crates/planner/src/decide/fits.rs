//! Whether a node's way fits before the window closes: start only what can finish.

use crate::{
    ValidPolicy, Wait,
    windows::{Opening, Span},
};
use bascule_api::{Duration, Hook, Time, Timings, WaitReason};

/// What a drain or a boot is thought to take before any was seen, unless the policy gives it less.
const UNSEEN: Duration = Duration::from_secs(300);

/// What passes from the opening of a window until its first node is granted: gates are asked, hooks are started and noticed.
/// What fits a window only without it would be found too short a moment later, in every window.
const UNTIL_FIRST: Duration = Duration::from_secs(120);

/// How many of the next windows are asked for one that is long enough.
const WINDOWS_AHEAD: usize = 16;

/// How long a node's way takes from the grant to the commit.
#[derive(Debug, Clone, Copy)]
struct Needs {
    /// What the policy itself asks for: hooks, soak, waiting for load balancers. Nothing makes it shorter.
    fixed: u64,
    /// What was seen on this policy's nodes, or else a guess.
    learned: u64,
    /// The hooks before the first node of a rollout, which run in each window anew.
    rollout: u64,
}

impl Needs {
    fn of(valid: &ValidPolicy, timings: &Timings) -> Self {
        let spec = &valid.spec;
        let seen =
            |seconds: Option<u32>, guess: Duration| seconds.map_or_else(|| guess.min(UNSEEN).as_secs(), u64::from);
        let of = |hooks: &[Hook]| hooks.iter().map(|hook| hook.timeout.as_secs()).sum::<u64>();
        let hooks = of(&spec.hooks.before_drain);
        let soak = spec.health.node_soak.as_secs();
        let health = timings.health_seconds.map_or(0, u64::from);
        Self {
            fixed: spec.drain.load_balancer_delay.as_secs() + hooks + soak,
            learned: seen(timings.drain_seconds, spec.drain.timeout)
                + seen(timings.boot_seconds, spec.health.node_ready_timeout)
                + health.saturating_sub(soak),
            rollout: match &spec.hooks.before_rollout[..] {
                [] => 0,
                hooks => of(hooks) + UNTIL_FIRST.as_secs(),
            },
        }
    }

    /// Before the first node, or after the hooks that come before it.
    fn total(self, begun: bool) -> Duration {
        Duration::from_secs(self.fixed + self.learned + self.before(begun))
    }

    const fn before(self, begun: bool) -> u64 {
        if begun { 0 } else { self.rollout }
    }
}

/// How long the way of a policy's first node takes from the grant to the commit, the hooks before a rollout included: what was
/// seen lately, and a guess for what was not.
#[must_use]
pub fn first_node_takes(valid: &ValidPolicy, timings: &Timings) -> Duration {
    Needs::of(valid, timings).total(false)
}

/// Whether a node's way fits into what is left of the window.
#[derive(Debug)]
pub(super) enum Fit {
    /// It does, or there is nothing to fit into.
    Fits,
    /// What nodes took lately fits no window of this policy. It would never be learned anew if nobody went, so one node at
    /// a time is tried in the first half of a window.
    OneAtATime,
    /// It does not.
    TooShort(Wait),
}

/// Whether a node that is granted now, or once the hooks before a rollout are done that has not `begun`, would be done before
/// the open window closes.
pub(super) fn fit(valid: &ValidPolicy, timings: &Timings, begun: bool, opening: Opening, now: Time) -> Fit {
    let Opening::Open(Span { start, end: Some(end) }) = opening else { return Fit::Fits };
    let needs = Needs::of(valid, timings);
    // The time until the first node begins with the window: what has passed of it while gates were asked is not asked for anew,
    // or what fits only just would be too short in every window as soon as they have answered.
    let opens = !begun && needs.rollout > 0 && now < start.after(UNTIL_FIRST);
    let from = if opens { start } else { now };
    if from.after(needs.total(begun)) <= end {
        return Fit::Fits;
    }
    if now.after(tried_within(needs, begun, start, end)) <= end && !fits_some_window(valid, needs, start, end) {
        return Fit::OneAtATime;
    }
    let next = match crate::windows::opening(&valid.windows, end) {
        Opening::Closed(next) => next.map(|span| span.start),
        Opening::Open(_) | Opening::Always => None,
    };
    let total = needs.total(begun);
    let message = format!("drain, reboot and health checks take about {total} and the window closes at {end}");
    Fit::TooShort(Wait::new(WaitReason::WindowTooShort, message).until(next))
}

/// What a way must be given at least before a window closes where the learned times fit none: half the window, or what the
/// policy itself asks for.
fn tried_within(needs: Needs, begun: bool, start: Time, end: Time) -> Duration {
    let half = u64::try_from((end.get() - start.get()).num_seconds() / 2).unwrap_or_default();
    Duration::from_secs(half.max(needs.fixed + needs.before(begun)))
}

/// Whether this window or one of the next is long enough from its start, the hooks before a rollout included.
fn fits_some_window(valid: &ValidPolicy, needs: Needs, start: Time, end: Time) -> bool {
    let mut window = (start, end);
    let needed = needs.total(false).max(Duration::from_secs(needs.total(true).as_secs() + UNTIL_FIRST.as_secs()));
    for _ in 0..WINDOWS_AHEAD {
        if window.0.after(needed) <= window.1 {
            return true;
        }
        window = match crate::windows::opening(&valid.windows, window.1) {
            Opening::Closed(Some(Span { start, end: Some(end) })) => (start, end),
            Opening::Closed(None) => return false,
            // Open without end.
            Opening::Closed(Some(_)) | Opening::Open(_) | Opening::Always => return true,
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_window_that_is_long_enough_is_so_until_gates_have_answered() {
        let hook = json!([{"name": "before", "namespace": "hooks", "timeout": "3m", "job": {"template": {}}}]);
        let spec = json!({
            "nodeSelector": {"matchLabels": {"role": "worker"}},
            "source": {"repository": "https://images.example.com/acme-os", "channel": "stable"},
            "hooks": {"beforeRollout": hook}
        });
        let valid = crate::validate(&serde_json::from_value(spec).unwrap()).unwrap();
        let seen = (Some(230), Some(892), Some(41));
        let timings =
            Timings { drain_seconds: seen.0, boot_seconds: seen.1, health_seconds: seen.2, ..Timings::default() };
        let at = |second: i64| Time::from(chrono::DateTime::from_timestamp(second, 0).unwrap());
        for length in [1_463, 1_500] {
            let opening = Opening::Open(Span { start: at(0), end: Some(at(length)) });
            for (second, fits) in [(0, true), (46, true), (119, true), (120, false)] {
                let found = fit(&valid, &timings, false, opening, at(second));
                assert_eq!(matches!(found, Fit::Fits), fits, "{length} s, after {second} s: {found:?}");
            }
        }
        let opening = Opening::Open(Span { start: at(0), end: Some(at(1_462)) });
        assert!(!matches!(fit(&valid, &timings, false, opening, at(0)), Fit::Fits));
    }
}
