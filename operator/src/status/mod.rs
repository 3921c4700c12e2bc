//! Writes the planner's report into the objects that people look at. Only what changed, and not every step of a progress
//! bar: a reason is written at once, its details a little later.

mod maintenance;
mod transitions;

use crate::{apply::Writer, clock::Clock, gather::Key};
use bascule_api::{Rollout, Time, UpdatePolicyStatus, WaitReason};
use bascule_planner::{Report, Snapshot};
use futures::{FutureExt as _, StreamExt as _, stream};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How many objects are written at once.
const AT_ONCE: usize = 16;
/// Between two writes about one object when its state or reason changed. States that last shorter are skipped.
const NEWS: Duration = Duration::from_millis(1_000);
/// Between two writes about one object when only details changed.
const DETAILS: Duration = Duration::from_secs(5);
/// After a write failed.
const AGAIN: Duration = Duration::from_secs(2);
/// How many objects' times of writing are remembered before old ones are dropped.
const REMEMBERED: usize = 50_000;

/// What was planned, to be explained.
#[derive(Debug, Clone, Default)]
pub struct Explained {
    /// The facts.
    pub snapshot: Arc<Snapshot>,
    /// The explanation.
    pub report: Arc<Report>,
}

/// Writes statuses.
#[derive(Debug)]
pub struct StatusWriter {
    writer: Writer,
    clock: Clock,
    node_conditions: bool,
    last: HashMap<(&'static str, String), Instant>,
}

/// Whether a change is worth a write now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    Nothing,
    Details,
    News,
}

impl StatusWriter {
    /// A writer that has written nothing yet.
    #[must_use]
    pub fn new(writer: Writer, clock: Clock, node_conditions: bool) -> Self {
        Self { writer, clock, node_conditions, last: HashMap::new() }
    }

    /// Writes whatever comes, until the sender is dropped.
    pub async fn run(mut self, mut explained: watch::Receiver<Explained>) {
        loop {
            let now = explained.borrow_and_update().clone();
            let next = self.write(&now).await;
            tokio::select! {
                changed = explained.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Writes what is due; says when the rest is.
    async fn write(&mut self, explained: &Explained) -> Option<Instant> {
        let (snapshot, report) = (explained.snapshot.as_ref(), explained.report.as_ref());
        let now = Time::new(self.clock.now());
        let mut next: Option<Instant> = None;
        let mut later = |at: Instant| next = Some(next.map_or(at, |before: Instant| before.min(at)));

        for (policy, said) in snapshot.policies.iter().zip(&report.policies) {
            let Some(known) = self.writer.world.policies.get(&Key::cluster(&policy.name)) else { continue };
            if known.status != policy.status {
                continue; // its memory was written since; the next report speaks of it
            }
            let due = self.due("policy", &policy.name, policy_worth(&known.status, &said.status), &mut later);
            if due
                && let Err(error) = self.writer.write_policy(&known, &said.status).await
                && !error.is_stale()
            {
                tracing::warn!(policy = policy.name, error = crate::one_line(&error), "the status can't be written");
                later(Instant::now() + AGAIN);
            }
        }
        for (freeze, status) in snapshot.freezes.iter().zip(&report.freezes) {
            let known = self.writer.world.freezes.get(&Key::cluster(&freeze.name));
            if let Some(known) = known.filter(|known| known.0.status == freeze.status && known.0.status != *status)
                && let Err(error) = self.writer.write_freeze(&freeze.name, &known.1, status).await
                && !error.is_stale()
            {
                tracing::warn!(freeze = freeze.name, error = crate::one_line(&error), "the status can't be written");
                later(Instant::now() + AGAIN);
            }
        }
        for (rollback, status) in snapshot.rollbacks.iter().zip(&report.rollbacks) {
            let known = self.writer.world.rollbacks.get(&Key::cluster(&rollback.name));
            if let Some(known) = known.filter(|known| known.0.status == rollback.status && known.0.status != *status)
                && let Err(error) = self.writer.write_rollback(&rollback.name, &known.1, status).await
                && !error.is_stale()
            {
                tracing::warn!(
                    rollback = rollback.name,
                    error = crate::one_line(&error),
                    "the status can't be written"
                );
                later(Instant::now() + AGAIN);
            }
        }

        let mut due = Vec::new();
        for (node, facts) in report.nodes.iter().zip(&snapshot.nodes) {
            let Some(known) = self.writer.world.updates.get(&Key::cluster(&node.node)) else { continue };
            let rollout = node.rollout(known.rollout.as_ref(), now);
            if self.due("node", &node.node, rollout_worth(known.rollout.as_ref(), &rollout), &mut later) {
                self.tell_transition(facts, known.rollout.as_ref(), &rollout);
                due.push((node.node.to_string(), rollout));
            }
        }
        let writes: Vec<_> = due.into_iter().map(|(node, rollout)| self.explain(node, rollout).boxed()).collect();
        let failures = stream::iter(writes).buffer_unordered(AT_ONCE).any(|failed| async move { failed }).await;
        if failures {
            later(Instant::now() + AGAIN);
        }
        if self.node_conditions {
            self.write_maintenance(snapshot, report, now).await;
        }
        if self.last.len() > REMEMBERED {
            self.last.retain(|_, at| at.elapsed() < DETAILS);
        }
        next
    }

    /// Writes one node's explanation; whether that failed in a way that a new report does not mend.
    async fn explain(&self, node: String, rollout: Rollout) -> bool {
        match self.writer.write_rollout(&node, &rollout).await {
            Err(error) if !error.is_stale() => {
                tracing::warn!(node, error = crate::one_line(&error), "the explanation can't be written");
                true
            }
            _ => false,
        }
    }

    /// Whether something is to be written now; if later, `later` is told when.
    fn due(&mut self, kind: &'static str, name: &str, worth: Worth, later: &mut impl FnMut(Instant)) -> bool {
        let pause = match worth {
            Worth::Nothing => return false,
            Worth::Details => DETAILS,
            Worth::News => NEWS,
        };
        let key = (kind, name.to_owned());
        let now = Instant::now();
        match self.last.get(&key) {
            Some(last) if *last + pause > now => {
                later(*last + pause);
                false
            }
            _ => {
                self.last.insert(key, now);
                true
            }
        }
    }
}

fn rollout_worth(before: Option<&Rollout>, after: &Rollout) -> Worth {
    match before {
        Some(before) if before == after => Worth::Nothing,
        Some(before) if before.state == after.state && before.reason == after.reason => Worth::Details,
        // Over within a second or two, unless the agent is in trouble.
        Some(before) if before.state == after.state && after.reason == WaitReason::Committing => Worth::Details,
        _ => Worth::News,
    }
}

fn policy_worth(before: &UpdatePolicyStatus, after: &UpdatePolicyStatus) -> Worth {
    if before == after {
        return Worth::Nothing;
    }
    let reason = |status: &UpdatePolicyStatus| status.waits_for.as_ref().map(|waits| waits.reason);
    let verdicts = |status: &UpdatePolicyStatus| -> Vec<(String, String, String)> {
        let conditions = status.conditions.iter();
        conditions.map(|one| (one.type_.clone(), one.status.clone(), one.reason.clone())).collect()
    };
    let same = before.target == after.target
        && before.observed_generation == after.observed_generation
        && reason(before) == reason(after)
        && verdicts(before) == verdicts(after)
        && before.counts.failed == after.counts.failed;
    if same { Worth::Details } else { Worth::News }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::{Counts, RolloutState};

    fn rollout(reason: WaitReason, message: &str) -> Rollout {
        Rollout {
            state: RolloutState::Waiting,
            reason,
            message: message.to_owned(),
            object: None,
            until: None,
            since: None,
            passed_gates: Vec::new(),
            drain: None,
        }
    }

    #[test]
    fn a_new_reason_is_news_and_a_new_message_a_detail() {
        let before = rollout(WaitReason::Wave, "1 of 4");
        assert_eq!(rollout_worth(Some(&before), &before.clone()), Worth::Nothing);
        assert_eq!(rollout_worth(Some(&before), &rollout(WaitReason::Wave, "2 of 4")), Worth::Details);
        assert_eq!(rollout_worth(Some(&before), &rollout(WaitReason::Budget, "")), Worth::News);
        assert_eq!(rollout_worth(None, &before), Worth::News);
        assert_eq!(rollout_worth(Some(&before), &rollout(WaitReason::Committing, "")), Worth::Details);
        let status = UpdatePolicyStatus::default();
        let counted = UpdatePolicyStatus { counts: Counts { moving: 1, ..Counts::default() }, ..status.clone() };
        assert_eq!(policy_worth(&status, &counted), Worth::Details);
        let observed = UpdatePolicyStatus { observed_generation: Some(2), ..status.clone() };
        assert_eq!(policy_worth(&status, &observed), Worth::News);
    }
}
