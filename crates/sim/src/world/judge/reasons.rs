//! Invariant 8: what is said of a node is so. Every reason has a claim that follows from its meaning (docs/reasons.md), and is held
//! against the facts that the plan was made from and against what happened before. A plan from an old view told what was so then.

use super::{
    facts::{carries, claiming, down, label, limit, members, moves, on_trial, policy_of, running},
    past::Past,
    windows::{Stand, stand},
};
use crate::world::{
    history::{Act, Event, Planned},
    pods::Kind,
};
use bascule_api::{Counting, Duration, Goal, Hooks, IntOrPercent, Time, Version, WaitReason, conditions::reason};
use bascule_planner::{
    Action, Snapshot, ValidPolicy, Wait,
    plan::MemoryChange,
    snapshot::{Cordon, Node, OfferState, PolicyFacts, Release, UpdateFacts},
};

pub(super) fn judge(past: &Past<'_>, event: &Event) -> Vec<String> {
    match event {
        Event::Plan(plan) if plan.view.fresh => plan
            .sentences()
            .filter_map(|(node, said)| {
                let told = Told { past, plan, view: &plan.view.facts, node, said };
                let why = told.lie()?;
                Some(format!("{} is said to wait with {} ({}), and {why}", node.name, said.reason, said.message))
            })
            .collect(),
        Event::Act(act) => remembered(past, act),
        _ => Vec::new(),
    }
}

/// What is remembered of a release comes from machines that tried it.
fn remembered(past: &Past<'_>, act: &Act) -> Vec<String> {
    let Action::Remember { policy, changes, .. } = &act.action else { return Vec::new() };
    let mut broken = Vec::new();
    for change in changes {
        match change {
            MemoryChange::Failed(failure) if !past.tried(&failure.node, &failure.version) => {
                broken.push(format!("{} is blamed on {}, which never tried it", failure.version, failure.node));
            }
            MemoryChange::Blocked { version, by, .. } if by == reason::FAILURE_THRESHOLD => {
                let failing = |other: &MemoryChange| match other {
                    MemoryChange::Failed(failure) if failure.version == *version => Some(failure.node.clone()),
                    _ => None,
                };
                let mut nodes: Vec<String> = changes.iter().filter_map(failing).collect();
                nodes.extend(past.blamed(policy, version).into_iter().map(str::to_owned));
                nodes.sort_unstable();
                nodes.dedup();
                let facts = past.plan(act.plan).and_then(|plan| plan.policy(policy));
                let valid = facts.and_then(|policy| policy.spec.as_ref().ok());
                let most = valid.map_or(1, |valid| valid.spec.failure_threshold);
                if nodes.len() < usize::try_from(most).unwrap_or(usize::MAX) {
                    let failed = nodes.len();
                    broken.push(format!("{version} is blocked for {policy} after {failed} failures, {most} are asked"));
                }
            }
            _ => {}
        }
    }
    broken
}

/// What a plan says of a node, with all that it can be held against.
struct Told<'a> {
    past: &'a Past<'a>,
    plan: &'a Planned,
    view: &'a Snapshot,
    node: &'a Node,
    said: &'a Wait,
}

impl<'a> Told<'a> {
    fn update(&self) -> Option<&'a UpdateFacts> {
        self.node.live_update()
    }

    fn policy(&self) -> Option<&'a PolicyFacts> {
        policy_of(self.view, self.node)
    }

    fn valid(&self) -> Option<&'a ValidPolicy> {
        self.policy()?.spec.as_ref().ok().map(|valid| &**valid)
    }

    /// The object that is named, if it is of this kind.
    fn object(&self, kind: &str) -> Option<&'a str> {
        self.said.object.as_ref().filter(|object| object.kind == kind).map(|object| object.name.as_str())
    }

    /// The policy that is named.
    fn named(&self) -> Option<&'a PolicyFacts> {
        self.plan.policy(self.object("UpdatePolicy")?)
    }

    fn until(&self) -> Time {
        self.said.until.unwrap_or(self.view.now)
    }

    fn offers(&self, what: impl Fn(&Release) -> bool) -> bool {
        self.policy().is_some_and(|policy| policy.offer.releases.iter().any(what))
    }

    /// Whether this very plan wants something done with the node.
    fn wants(&self, what: impl Fn(&Action) -> bool) -> bool {
        self.plan.steps.iter().any(|step| step.node() == Some(&*self.node.name) && what(step))
    }

    /// Whether the node has a pod of a kind, as far as was shown.
    fn has_pod(&self, of: impl Fn(&Kind) -> bool) -> bool {
        self.plan.view.pods.on(&self.node.name).any(|pod| of(&pod.kind))
    }

    /// Why it is not so, where it is not.
    fn lie(&self) -> Option<String> {
        let (so, otherwise) = self.holds();
        (!so).then(|| otherwise.to_owned())
    }

    /// Whether it is so, and what is the case if it is not.
    fn holds(&self) -> (bool, &'static str) {
        let (node, view, update) = (self.node, self.view, self.update());
        let valid = self.valid();
        let spec = valid.map(|valid| &valid.spec);
        match self.said.reason {
            WaitReason::Current => (moves(node) || self.is_current(), "runs another release than its policy asks for"),
            WaitReason::Unreadable => {
                let all = node.unreadable.is_none()
                    && view.unreadable_orders.is_empty()
                    && view.policies.iter().all(|policy| policy.unreadable().is_none());
                (!all, "everything could be read")
            }
            WaitReason::NotSelected => (claiming(view, node).is_empty(), "a policy selects it"),
            WaitReason::PolicyConflict => (claiming(view, node).len() > 1, "no two policies select it"),
            WaitReason::InvalidPolicy => {
                (self.named().is_some_and(|policy| policy.spec.is_err()), "the policy can be used")
            }
            WaitReason::AgentNotReporting => {
                let boot = update.filter(|update| update.status.booted.is_some());
                let boot = boot.and_then(|update| update.status.boot_id.as_ref());
                (moves(node) || boot != Some(&node.boot_id), "its agent reports from this boot")
            }
            WaitReason::BootCountingBroken => {
                let control = update.and_then(|update| update.status.boot_control.as_ref());
                (control.is_some_and(|control| control.counting == Counting::Broken), "its boot loader counts")
            }
            WaitReason::NodeGone => (node.deleting || update.is_none(), "the Node is there"),
            WaitReason::Paused => (spec.is_some_and(|spec| spec.paused), "the policy is not paused"),
            WaitReason::Freeze => (self.is_frozen(), "no such Freeze holds it until then"),
            WaitReason::RepositoryUnavailable => (self.has_no_repository(), "the repository can be used"),
            WaitReason::NoRelease => {
                let offered = self.newest().zip(running(node)).is_some_and(|(newest, running)| running < newest);
                (!offered, "a newer release is offered, and nothing stands against it")
            }
            WaitReason::ReleaseBlocked => (self.is_anything_blocked(), "nothing is blocked"),
            WaitReason::ReleaseWithdrawn => {
                (self.offers(|release| release.withdrawn.is_some()), "no release was withdrawn")
            }
            WaitReason::FailedHere => (self.has_failed(), "nothing failed on it"),
            WaitReason::MinimumSourceVersion => {
                (self.offers(|release| release.floor.is_some()), "no release asks for another before it")
            }
            WaitReason::StateVersion => {
                let used = update.and_then(|update| update.status.state_version);
                (used.is_some(), "its state was used with no release that declares a state version")
            }
            WaitReason::MinimumAge => {
                let least = spec.map_or(Duration::ZERO, |spec| spec.min_release_age);
                let until = self.until();
                let young = self.offers(|release| release.published_at.after(least) == until);
                (young && until > view.now, "no release comes of age then")
            }
            WaitReason::RollbackRetention => {
                let least = spec.map_or(Duration::ZERO, |spec| spec.proven_after);
                (least > Duration::ZERO && self.until() <= view.now.after(least), "nothing is proven then")
            }
            WaitReason::VersionSkew => {
                (self.offers(|release| release.kubelet.is_some()), "no release brings a kubelet")
            }
            WaitReason::Transferring => (self.is_staging(), "its agent is not asked to stage anything more"),
            WaitReason::StagingQueue => (!self.is_asked_to_stage(), "its agent is asked to stage it"),
            WaitReason::StagingFailed => {
                (update.is_some_and(|update| update.status.last_error.is_some()), "its agent reports no error")
            }
            WaitReason::MaintenanceWindow => {
                let closed = spec.map(|spec| stand(&spec.maintenance_windows, view.now));
                let opens = self.until().seconds_since(view.now);
                let so = matches!(closed, Some(Stand::Unknown)) || closed == Some(Stand::Closed(opens));
                (so, "a window is open, or opens at another time")
            }
            WaitReason::WindowTooShort => {
                let open = spec.filter(|spec| !spec.maintenance_windows.is_empty());
                let open = open.map(|spec| stand(&spec.maintenance_windows, view.now));
                (matches!(open, Some(Stand::Open | Stand::Unknown)), "no window is open that could be too short")
            }
            WaitReason::Wave => (self.has_wave_before_it(), "no wave has to go before it"),
            WaitReason::WaveSoak => {
                let longest = spec.and_then(|spec| spec.waves.iter().map(|wave| wave.soak).max()).unwrap_or_default();
                let soaks = longest > Duration::ZERO && self.until() <= view.now.after(longest);
                (soaks, "no wave soaks until then")
            }
            WaitReason::Halted => (self.is_halted(), "the newest release is not blocked by failures"),
            WaitReason::Budget => (self.is_budget_used(), "fewer nodes of its policy are unavailable than may be"),
            WaitReason::ClusterMaxUnavailable => {
                let down = view.nodes.iter().filter(|other| self.may_be_out(other)).count();
                let used = |most: &IntOrPercent| down >= limit(most, view.nodes.len());
                (view.ceiling.as_ref().is_some_and(used), "fewer nodes of the cluster are unavailable than may be")
            }
            WaitReason::DomainBusy => (self.is_domain_busy(), "its failure domains have room"),
            WaitReason::ControlPlane => {
                let mut known = view.policies.iter().flat_map(|policy| &policy.status.cluster_members);
                (carries(node) || known.any(|member| *member.node == *node.name), "it carries nothing of the cluster")
            }
            WaitReason::OperatorNode => {
                (view.operator_node.as_deref() == Some(&*node.name), "the operator runs on another node")
            }
            WaitReason::DisruptionBudget => {
                let namespace = self.said.object.as_ref().and_then(|object| object.namespace.as_deref());
                let key = self.object("PodDisruptionBudget").zip(namespace);
                let key = key.map(|(name, namespace)| format!("{namespace}/{name}"));
                let covers = |kind: &Kind| matches!(kind, Kind::App(app) if Some(app) == key.as_ref());
                (self.has_pod(covers), "no pod of that budget is on it")
            }
            WaitReason::UndrainablePod => (self.has_pod(|kind| *kind == Kind::Bare), "every pod on it may be evicted"),
            WaitReason::PodFitsNowhere => {
                let named = self.object("Pod");
                (self.plan.view.pods.pods.iter().any(|pod| Some(pod.name.as_str()) == named), "there is no such pod")
            }
            WaitReason::HealthGate => {
                (valid.is_some_and(|valid| !valid.gates.is_empty()), "its policy has no health gates")
            }
            WaitReason::NodeNotReady => (!node.ready.ready, "the node is Ready"),
            WaitReason::Cordoned => (matches!(node.cordon, Cordon::Other { .. }), "nobody else cordoned it"),
            WaitReason::NodeLeaving => (node.leaving.is_some(), "nobody removes it"),
            WaitReason::DrainBackoff => {
                (moves(node) || self.past.gave_up(&node.name), "no disruption of it was given up")
            }
            WaitReason::Hook => {
                let hooked = |policy: &PolicyFacts| {
                    let valid = policy.spec.as_ref().ok();
                    // A rollout that began with hooks is not over before a plan has said so, though its hooks are edited away.
                    policy.status.maintenance.is_some()
                        || valid.is_some_and(|valid| valid.spec.hooks != Hooks::default())
                };
                (
                    view.policies.iter().any(|policy| hooked(policy)),
                    "no policy has hooks, and no rollout began with any",
                )
            }
            WaitReason::Queued => (self.has_something_left(), "nothing was left behind on it"),
            WaitReason::Draining => {
                let granted = self.wants(|step| matches!(step, Action::Grant { .. }));
                let pending = view.writes.pending_grant(&node.name).is_some();
                (moves(node) || granted || pending, "it is not disrupted")
            }
            WaitReason::PodsCompleting => {
                (moves(node) && self.has_pod(|kind| matches!(kind, Kind::Job(_))), "no pod on it is to complete")
            }
            WaitReason::VolumesDetaching
            | WaitReason::LoadBalancers
            | WaitReason::DrainHeld
            | WaitReason::NodeSoak
            | WaitReason::Committing
            | WaitReason::Reverting => (moves(node), "it is not disrupted"),
            WaitReason::Rebooting => {
                let created = self.wants(|step| matches!(step, Action::CreateNodeUpdate { .. }));
                (moves(node) || created, "it is not disrupted")
            }
            WaitReason::Trial => (moves(node) || on_trial(node), "it runs no trial"),
            WaitReason::Reverted => (moves(node) || self.has_failed(), "nothing failed on it"),
            WaitReason::NodeLost => {
                let grant = update.and_then(|update| update.spec.grant.as_ref()).filter(|_| moves(node));
                // Or it went away from a trial, and its guard may have ended that.
                let tried = update.is_some_and(|update| update.status.trial.is_some());
                let same_boot = grant.is_some_and(|grant| tried || grant.boot_id == node.boot_id);
                (!node.ready.ready && same_boot, "it was not told to reboot, or came back")
            }
            WaitReason::WriteRefused => {
                let wanted = self.wants(|step| self.past.refused(step));
                // A grant that may have been given after all is not given again meanwhile.
                let pending = view.writes.pending_grant(&node.name).is_some();
                (wanted || pending, "nothing that is to be written for it was refused")
            }
        }
    }

    /// The release that the policy asks for, where nothing at all stands against its newest one.
    fn newest(&self) -> Option<&'a Version> {
        let policy = self.policy()?;
        let spec = &policy.spec.as_ref().ok()?.spec;
        let rolled_back = self.view.rollbacks.iter().any(|rollback| rollback.spec.policy == policy.name);
        let plain = spec.version.is_none()
            && spec.blocked_versions.is_empty()
            && policy.status.blocked.is_empty()
            && self.blocks(&policy.name).is_empty()
            && !rolled_back;
        let newest = policy.offer.releases.iter().rev().find(|release| release.withdrawn.is_none());
        newest.filter(|_| plain).map(|release| &release.version)
    }

    /// What this very plan blocks for a policy, and by what.
    fn blocks(&self, policy: &str) -> Vec<(&'a Version, &'a str)> {
        let changes = self.plan.steps.iter().filter_map(|step| match step {
            Action::Remember { policy: of, changes, .. } if *of == *policy => Some(changes),
            _ => None,
        });
        let blocked = changes.flatten().filter_map(|change| match change {
            MemoryChange::Blocked { version, by, .. } => Some((version, by.as_str())),
            _ => None,
        });
        blocked.collect()
    }

    fn is_current(&self) -> bool {
        let Some((policy, running)) = self.policy().zip(running(self.node)) else { return false };
        let offered = policy.offer.release(running).is_some_and(|release| release.withdrawn.is_none());
        offered && self.newest().is_none_or(|newest| newest == running)
    }

    fn is_frozen(&self) -> bool {
        let Some(name) = self.object("Freeze") else { return false };
        let Some(freeze) = self.view.freezes.iter().find(|freeze| freeze.name == *name) else { return false };
        let ends = freeze.created_at.after(freeze.spec.duration);
        let whom = &freeze.spec.nodes;
        let concerns = whom.is_empty() || whom.iter().any(|node| *node == *self.node.name);
        let policies = &freeze.spec.policies;
        let of = self.policy().map(|policy| &policy.name);
        let of_policy = policies.is_empty() || policies.iter().any(|policy| Some(policy) == of);
        let holds = freeze.spec.ended_by.is_none() && self.view.now < ends;
        holds && concerns && of_policy && self.said.until == Some(ends)
    }

    fn has_no_repository(&self) -> bool {
        // Without an object it is said of a release whose digest nobody knows.
        let Some(policy) = self.named() else { return self.said.object.is_none() };
        let expired = policy.offer.repository.expires_at.is_some_and(|expires| expires <= self.view.now);
        expired || matches!(policy.offer.state, OfferState::Unread | OfferState::Unusable { .. })
    }

    fn is_anything_blocked(&self) -> bool {
        let Some(policy) = self.policy() else { return false };
        let listed = policy.spec.as_ref().is_ok_and(|valid| !valid.spec.blocked_versions.is_empty());
        let remembered = !policy.status.blocked.is_empty() || !self.blocks(&policy.name).is_empty();
        listed || remembered || self.view.rollbacks.iter().any(|rollback| rollback.spec.policy == policy.name)
    }

    fn has_failed(&self) -> bool {
        let now =
            |change: &MemoryChange| matches!(change, MemoryChange::Failed(failure) if *failure.node == *self.node.name);
        let in_this_plan = self.plan.steps.iter().any(|step| match step {
            Action::Remember { changes, .. } => changes.iter().any(now),
            _ => false,
        });
        in_this_plan || self.past.failed_on(&self.node.name)
    }

    fn is_staging(&self) -> bool {
        let begins = self.wants(|step| matches!(step, Action::Stage { .. }));
        let asked = self.update().filter(|update| update.spec.goal == Goal::Staged);
        let staging = asked.is_some_and(|update| {
            let staged = update.status.staged.as_ref().map(|staged| (&staged.version, &staged.digest));
            let release = update.spec.release.as_ref().map(|release| (&release.version, &release.digest));
            release.is_some() && staged != release
        });
        begins || staging
    }

    /// Whether it is asked for the release that it should have, where there is no doubt which that is.
    fn is_asked_to_stage(&self) -> bool {
        let newest = self.newest().filter(|_| !self.offers(|release| release.floor.is_some()));
        let asked = self.update().filter(|update| update.spec.goal == Goal::Staged);
        let Some(asked) = asked.and_then(|update| update.spec.release.as_ref()) else { return false };
        // A version that is published anew is to be asked for anew.
        let release = self.policy().and_then(|policy| policy.offer.release(&asked.version));
        let offered = release.and_then(|release| match self.node.architecture {
            Some(machine) => release.digests.get(&machine),
            None => release.digests.values().next(),
        });
        Some(&asked.version) == newest && offered.is_none_or(|offered| *offered == asked.digest)
    }

    /// Whether another node of the policy is not done, or was not until a moment ago.
    fn has_wave_before_it(&self) -> bool {
        let (Some(policy), Some(valid)) = (self.policy(), self.valid()) else { return false };
        if valid.spec.waves.is_empty() {
            return false;
        }
        let Some(newest) = self.newest() else { return true };
        let longest = valid.spec.waves.iter().map(|wave| wave.soak).max().unwrap_or_default();
        let since = |other: &Node| {
            let update = other.live_update()?;
            let freed = update.spec.last_disruption.as_ref().map(|last| last.ended_at);
            let committed = update.status.booted.as_ref().and_then(|booted| booted.committed_at);
            freed.max(committed).max(Some(other.created_at))
        };
        members(self.view, &policy.name).into_iter().filter(|other| other.uid != self.node.uid).any(|other| {
            let soaks = since(other).is_some_and(|since| self.view.now < since.after(longest));
            soaks || moves(other) || on_trial(other) || running(other) != Some(newest)
        })
    }

    /// Whether failures blocked the newest release that the policy could take.
    fn is_halted(&self) -> bool {
        let Some(policy) = self.named() else { return false };
        let Some(newest) = head(policy) else { return false };
        let mut now = self.blocks(&policy.name).into_iter().filter(|(_, by)| *by == reason::FAILURE_THRESHOLD);
        self.past.blocked(&policy.name, newest) || now.any(|(version, _)| version == newest)
    }

    /// Whether a node may have been counted as unavailable: it looks so, is disrupted or is to be, or came back in the middle of it.
    fn may_be_out(&self, other: &Node) -> bool {
        let granted = |step: &Action| matches!(step, Action::Grant { node, .. } if **node == *other.name);
        let came_back = other.interrupted().is_some() || other.update.as_ref().is_some_and(UpdateFacts::forgot_a_grant);
        let pending = self.view.writes.pending_grant(&other.name).is_some();
        down(other) || other.granted() || came_back || pending || self.plan.steps.iter().any(granted)
    }

    fn is_budget_used(&self) -> bool {
        let (Some(policy), Some(valid)) = (self.policy(), self.valid()) else { return false };
        let members = members(self.view, &policy.name);
        let out = members.iter().filter(|other| self.may_be_out(other)).count();
        out >= limit(&valid.spec.budget.max_unavailable, members.len())
    }

    fn is_domain_busy(&self) -> bool {
        let (Some(policy), Some(valid)) = (self.policy(), self.valid()) else { return false };
        let Some(domains) = &valid.spec.budget.per_domain else { return false };
        let of = |node: &'a Node| label(node, &domains.topology_key);
        let own = of(self.node);
        let members = members(self.view, &policy.name);
        let out: Vec<&str> = members.iter().copied().filter(|other| self.may_be_out(other)).map(of).collect();
        let mut others: Vec<&str> = out.iter().copied().filter(|domain| *domain != own).collect();
        others.sort_unstable();
        others.dedup();
        let size = members.iter().copied().filter(|other| of(other) == own).count();
        let here = out.iter().filter(|domain| **domain == own).count();
        let full = domains.max_unavailable.as_ref().is_some_and(|most| here >= limit(most, size));
        full || others.len() >= usize::try_from(domains.max_domains).unwrap_or(usize::MAX)
    }

    /// Whether there is something to clear away, or a way back takes the place of what was staged.
    fn has_something_left(&self) -> bool {
        let marked = matches!(self.node.cordon, Cordon::Ours { .. } | Cordon::Lifted { .. });
        let policy = self.policy();
        let of_another = self.update().map(|update| &update.spec.policy) != policy.map(|policy| &policy.name);
        let staged = self.update().is_some_and(|update| update.spec.goal == Goal::Staged);
        let back = policy.is_some_and(|policy| {
            let by_itself = |valid: &ValidPolicy| valid.spec.automatic_rollback || valid.spec.version.is_some();
            let ordered = self.view.rollbacks.iter().any(|rollback| rollback.spec.policy == policy.name);
            ordered || policy.spec.as_ref().is_ok_and(|valid| by_itself(valid))
        });
        moves(self.node) || marked || of_another || (staged && back)
    }
}

/// The newest release that admin and publisher let a policy take.
pub(super) fn head(policy: &PolicyFacts) -> Option<&Version> {
    let spec = &policy.spec.as_ref().ok()?.spec;
    let newest = policy.offer.releases.iter().rev().find(|release| {
        release.withdrawn.is_none()
            && !spec.blocked_versions.contains(&release.version)
            && spec.version.as_ref().is_none_or(|pinned| *pinned == release.version)
    });
    newest.map(|release| &release.version)
}
