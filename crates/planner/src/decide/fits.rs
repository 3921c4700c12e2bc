//! Whether a node's way fits before the window closes: start only what can finish.

use crate::{
    ValidPolicy, Wait,
    windows::{Opening, Span},
};
use bascule_api::{Duration, Time, Timings, WaitReason};

/// What a drain or a boot is thought to take before any was seen, unless the policy gives it less.
const UNSEEN: Duration = Duration::from_secs(300);

/// How long a node's way takes from the grant to the commit: what was seen on this policy's nodes, or else a guess,
/// and always the soak and the time its hooks may take.
pub(super) fn estimate(valid: &ValidPolicy, timings: &Timings) -> Duration {
    let spec = &valid.spec;
    let seen = |seconds: Option<u32>, guess: Duration| {
        seconds.map_or_else(|| guess.min(UNSEEN), |seconds| Duration::from_secs(u64::from(seconds)))
    };
    let hooks = spec.hooks.before_drain.iter().map(|hook| hook.timeout.as_secs()).sum::<u64>();
    let health = timings.health_seconds.map_or(0, u64::from).max(spec.health.node_soak.as_secs());
    let total = seen(timings.drain_seconds, spec.drain.timeout).as_secs()
        + seen(timings.boot_seconds, spec.health.node_ready_timeout).as_secs()
        + spec.drain.load_balancer_delay.as_secs()
        + health
        + hooks;
    Duration::from_secs(total)
}

/// The wait of a node that would not be done before the open window closes.
pub(super) fn too_short(valid: &ValidPolicy, timings: &Timings, opening: Opening, now: Time) -> Option<Wait> {
    let Opening::Open(Span { end: Some(end), .. }) = opening else { return None };
    let needs = estimate(valid, timings);
    if now.after(needs) <= end {
        return None;
    }
    let later = crate::windows::opening(&valid.windows, end);
    let next = match later {
        Opening::Closed(next) => next.map(|span| span.start),
        Opening::Open(_) | Opening::Always => None,
    };
    let message = format!("drain, reboot and health checks take about {needs} and the window closes at {end}");
    Some(Wait::new(WaitReason::WindowTooShort, message).until(next))
}
