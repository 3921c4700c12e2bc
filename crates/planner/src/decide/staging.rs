//! Who downloads now. Staging is harmless, so it runs ahead of windows and waves, but not everywhere at once.

use super::{
    PolicyWaves, Round, Said,
    context::NodeContext,
    desired::{self, Desired},
    gates::{self, Candidate},
};
use crate::{Action, Expect, Step};
use bascule_api::{Goal, RolloutState, WaitReason};

impl<'a> Round<'a> {
    /// Asks nodes to stage, and takes back what is not to be installed any more.
    pub(super) fn stage(&mut self, waves: &[PolicyWaves]) {
        for (policy, waves) in waves.iter().enumerate() {
            self.take_back(policy);
            self.stage_policy(policy, waves);
        }
    }

    /// Goal Idle where what is staged is not wanted any more.
    fn take_back(&mut self, policy: usize) {
        let mut steps = Vec::new();
        let Some(policy) = self.policies.get(policy) else { return };
        let members = policy.members.iter().filter_map(|index| self.nodes.get(*index));
        for view in members.filter(|node| node.assessed.unwanted) {
            let Some(asked) = view.update().and_then(|update| update.spec.release.as_ref()) else { continue };
            steps.push(Step {
                action: Action::Rest { node: view.node.name.to_string() },
                expect: Expect {
                    release: Some(asked.version.clone()),
                    ..Expect::without_grant(view.node, Goal::Staged)
                },
                cause: None,
                says: format!("{} is not wanted here any more", asked.version),
            });
        }
        self.draft.steps.append(&mut steps);
    }

    fn stage_policy(&mut self, index: usize, waves: &PolicyWaves) {
        let Some(policy) = self.policies.get(index) else { return };
        let Some(valid) = policy.valid else { return };
        let total = u32::try_from(policy.members.len()).unwrap_or(u32::MAX);
        let limit = valid.spec.staging.max_concurrent.of(total).unwrap_or(0);
        let mut busy = 0_u32;
        let mut wanting: Vec<(bool, usize, u64, usize)> = Vec::new();
        for node in policy.members.iter().copied() {
            let Some(NodeContext { view, assessed, .. }) = self.nodes.get(node) else { continue };
            busy += u32::from(assessed.writing);
            if assessed.wants {
                // A node that stages something superseded goes on with the new release in the place it has.
                let place = waves.waves.index_of(node).unwrap_or(0);
                wanting.push((!assessed.writing, place, view.traits.lot, node));
            }
        }
        wanting.sort_unstable();
        let mut steps = Vec::new();
        let mut said = Vec::new();
        for (needs_place, _, _, node) in wanting {
            let Some(NodeContext { view, desired: Some(desired @ Desired::Install(install)), .. }) =
                self.nodes.get(node)
            else {
                continue;
            };
            if needs_place && busy >= limit {
                break;
            }
            let candidate = Candidate {
                index: node,
                view,
                policy,
                desired,
                waves: &waves.waves,
                alone: false,
                others_first: false,
                behind_others: false,
                now: self.now(),
                set: self.set,
            };
            if let Some(wait) = gates::before_staging(&candidate) {
                self.draft.wake(wait.until, self.snapshot.now);
                continue;
            }
            let Some(release) = desired::reference(policy, view, &install.release.version) else { continue };
            let Some(update) = view.update() else { continue };
            busy += u32::from(needs_place);
            let version = &install.release.version;
            let wait = crate::Wait::new(WaitReason::Transferring, format!("{version} is being staged"));
            said.push((node, Said::new(RolloutState::Staging, wait)));
            steps.push(Step {
                action: Action::Stage {
                    node: view.node.name.to_string(),
                    policy: policy.facts.name.clone(),
                    release,
                    pack_fallback: valid.spec.source.pack_fallback,
                },
                expect: Expect::without_grant(view.node, update.spec.goal),
                cause: Some(desired.cause(&policy.facts.name)),
                says: String::new(),
            });
        }
        self.draft.steps.append(&mut steps);
        for (node, said) in said {
            self.draft.say(node, said);
        }
    }
}
