//! Planners that do wrong, to see that the judge of what they do wrong needs no other to notice.

use bascule_api::{BlockedRelease, Duration, RolloutState, WaitReason, conditions::reason};
use bascule_planner::{
    Action, Expect, GateSet, Plan, Report, Snapshot, Wait,
    plan::{DrainMode, DrainOrder},
    plan_asking,
    snapshot::{Cordon, Writes},
};
use std::sync::Arc;

/// Who plans instead of the planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A node that is cordoned is empty to it, and is told to reboot.
    BootsUnderPods,
    /// It counts nodes, and asks in no failure domain.
    BlindToDomains,
    /// It deletes where it should evict, and so asks no budget.
    DeletesAtOnce,
    /// Nothing has to soak.
    CommitsAtOnce,
    /// Every cordon is its own, to be taken away.
    UncordonsAll,
    /// It knows nothing of what is being written, grants among it.
    BlindToWrites,
    /// Failures blocked the newest release, though there were none.
    HaltsForNothing,
    /// Whoever waits is said to wait for this.
    Says(WaitReason),
    /// Nobody is ever granted, and whoever waits is said to wait for this.
    Stalls(WaitReason),
}

/// A plan and a report of the planner, or of a mutant of it.
pub(super) fn plan(mutant: Option<Mutant>, seen: &Snapshot, gates: GateSet) -> (Plan, Report) {
    let Some(mutant) = mutant else { return plan_asking(seen, gates) };
    let (mut plan, mut report) = plan_asking(&mutant.believes(seen), gates);
    mutant.spoils(seen, &mut plan, &mut report);
    (plan, report)
}

impl Mutant {
    /// What it takes the facts for.
    fn believes(self, seen: &Snapshot) -> Snapshot {
        let mut facts = seen.clone();
        let now = facts.now;
        if self == Self::BlindToWrites {
            facts.writes = Writes::default();
        }
        for node in &mut facts.nodes {
            let node = Arc::make_mut(node);
            match self {
                Self::BootsUnderPods => node.pods.remaining = 0,
                Self::UncordonsAll if matches!(node.cordon, Cordon::Other { .. }) => {
                    node.cordon = Cordon::Ours { mark: format!("{}/mine", node.name) };
                }
                _ => {}
            }
        }
        for policy in &mut facts.policies {
            let policy = Arc::make_mut(policy);
            let newest = policy.offer.releases.last().map(|release| release.version.clone());
            match (self, &mut policy.spec, newest) {
                (Self::BlindToDomains, Ok(valid), _) => Arc::make_mut(valid).spec.budget.per_domain = None,
                (Self::CommitsAtOnce, Ok(valid), _) => Arc::make_mut(valid).spec.health.node_soak = Duration::ZERO,
                (Self::HaltsForNothing, Ok(_), Some(version)) => {
                    let (by, why) = (reason::FAILURE_THRESHOLD.to_owned(), "it failed on 9 nodes".to_owned());
                    policy.status.blocked.retain(|block| block.version != version);
                    policy.status.blocked.push(BlockedRelease { version, at: now, by, reason: why });
                }
                _ => {}
            }
        }
        facts
    }

    /// What becomes of the plan and of what it says.
    fn spoils(self, seen: &Snapshot, plan: &mut Plan, report: &mut Report) {
        match self {
            Self::UncordonsAll => {
                for step in &mut plan.steps {
                    if matches!(step.action, Action::Uncordon { .. }) {
                        step.expect = Expect::default();
                    }
                }
            }
            Self::DeletesAtOnce => {
                for order in plan.drains.iter_mut().filter(|order| order.mode == DrainMode::Evict) {
                    *order = Arc::new(DrainOrder { mode: DrainMode::DeleteRest, ..(**order).clone() });
                }
            }
            Self::Says(reason) => tell(seen, report, reason),
            Self::Stalls(reason) => {
                plan.steps.retain(|step| !matches!(step.action, Action::Grant { .. }));
                tell(seen, report, reason);
            }
            Self::BootsUnderPods
            | Self::BlindToDomains
            | Self::BlindToWrites
            | Self::CommitsAtOnce
            | Self::HaltsForNothing => {}
        }
    }
}

/// Says of whoever waits, and of whoever was to be granted, that it waits for this.
fn tell(seen: &Snapshot, report: &mut Report, reason: WaitReason) {
    let policy = seen.policies.first().map_or("none", |policy| policy.name.as_str());
    let (kind, namespace, name) = match reason {
        WaitReason::Freeze => ("Freeze", None, "none"),
        WaitReason::DisruptionBudget => ("PodDisruptionBudget", Some("shop"), "app-0"),
        WaitReason::PodFitsNowhere => ("Pod", Some("shop"), "none"),
        _ => ("UpdatePolicy", None, policy),
    };
    let until = seen.now.after(Duration::from_minutes(10));
    let wait = Arc::new(Wait::new(reason, "so it is said").of(kind, namespace, name).until(Some(until)));
    for (node, said) in seen.nodes.iter().zip(&mut report.nodes) {
        if !node.granted() && matches!(said.state, RolloutState::Waiting | RolloutState::Draining) {
            (said.state, said.wait) = (RolloutState::Waiting, Arc::clone(&wait));
        }
    }
}
