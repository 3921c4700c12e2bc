//! Who goes next: candidates in a stable order, each through the gates.

use super::facts::NodeView;
use super::{
    Grants, PolicyWaves, Round, Said,
    budget::{ClusterBudget, PolicyBudget},
    context::NodeContext,
    desired::Desired,
    gates::{self, Candidate},
    health::{Allowance, Answers},
    known::{Ground, Verdicts},
    maintenance,
    policy::PolicyView,
};
use crate::{
    Action, Expect, Gate, Step, Wait,
    drain::Places,
    plan,
    snapshot::{Cordon, GRANT, HookRun, PendingGrant},
};
use bascule_api::{Duration, Goal, RolloutState, Version, WaitReason};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

impl<'a> Round<'a> {
    /// Gives grants, and says of every other node which gate it waits for.
    pub(super) fn grant(&mut self, waves: &[PolicyWaves], verdicts: &mut Verdicts) -> Grants {
        let mut cluster = ClusterBudget::new(self.snapshot, &self.nodes, &self.known.groups, Arc::clone(&self.members));
        let policies = self.policies.iter().enumerate();
        let mut budgets: Vec<_> =
            policies.map(|(index, policy)| PolicyBudget::new(policy, index, &self.nodes, self.known)).collect();
        let mut passing: Vec<(usize, usize)> = Vec::new();
        for (policy, waves) in waves.iter().enumerate() {
            self.own_gates(policy, waves, verdicts, &mut passing);
        }
        let mut out = Grants {
            wanting: vec![None; self.policies.len()],
            granted: vec![false; self.policies.len()],
            ..Grants::default()
        };
        // The policies that nodes are being granted for.
        let mut granting: Vec<usize> = Vec::new();
        let mut behind_others = false;
        let mut places = Places::new(&self.snapshot.nodes);
        let mut again = Vec::new();
        if let Some(pause) = self.snapshot.writes.next_place_free() {
            let now = self.now();
            self.draft.wake(Some(now.after(Duration::from_secs(pause.as_secs().saturating_add(1)))), now);
        }
        for (node, pending) in self.pending_grants() {
            let Some(view) = self.nodes.get(node) else { continue };
            let place = passing.iter().position(|(_, passes)| *passes == node);
            let candidate = place.map(|place| passing.remove(place));
            if let (PendingGrant::Lost, Some(candidate)) = (pending, candidate)
                && !self.is_refused(view)
            {
                again.push(candidate);
                continue;
            }
            // As if this plan gave it: it holds its place until its NodeUpdate shows what became of it.
            let policy = view.traits.policy;
            hold(view, policy.and_then(|policy| budgets.get_mut(policy)), &mut cluster, &mut places);
            granting.extend(policy);
            if let Some(granted) = policy.and_then(|policy| out.granted.get_mut(policy)) {
                *granted = true;
            }
            if let Some((policy, _)) = candidate {
                let Some(policy_view) = self.policies.get(policy) else { continue };
                let said = self.pending(view, policy_view);
                out.started.extend(view.desired.as_ref().and_then(starts).map(|version| (policy, version)));
                self.draft.say(node, said);
            }
        }
        // Who can't go whatever the others do needs no place in the order.
        let (hopeless, passing): (Vec<_>, Vec<_>) = passing.into_iter().partition(|(policy, node)| {
            let full = budgets.get(*policy).is_some_and(PolicyBudget::is_full) && self.set.asks(Gate::Budget);
            let needs_a_place = |node: &NodeContext<'_>| !node.desired.as_ref().is_some_and(Desired::ignores_budgets);
            full && self.nodes.get(*node).is_some_and(|node| !node.traits.unavailable && needs_a_place(node))
        });
        // Who may have its grant already has its place before all others.
        let lost: BTreeSet<usize> = again.iter().map(|(_, node)| *node).collect();
        let order = again.into_iter().chain(self.in_order(passing, &cluster)).chain(hopeless);
        let mut steps = Vec::new();
        let mut questions = Vec::new();
        let answers = Answers(&self.snapshot.gates, self.set);
        let mut allowance = Allowance::default();
        for (policy_index, node) in order {
            let (Some(budget), Some(waves)) = (budgets.get_mut(policy_index), waves.get(policy_index)) else {
                continue;
            };
            let Some(candidate) = self.candidate(policy_index, node, waves) else { continue };
            let candidate = Candidate { behind_others, ..candidate };
            // Who goes only when nobody else does is not taken together with one that this plan takes.
            let together = granting.contains(&policy_index);
            let last = together && candidate.view.traits.runs_operator && self.set.asks(Gate::OperatorLast);
            let found = last.then(gates::operator_last);
            let trouble = together && !candidate.view.traits.ready && !candidate.desired.goes_back();
            let found = found.or_else(|| {
                (trouble && self.set.asks(Gate::Ready)).then(|| (Gate::Ready, gates::not_ready(&candidate)))
            });
            match found.or_else(|| {
                gates::shared(&candidate, budget, &mut cluster, answers, &mut allowance, &mut places, &mut questions)
            }) {
                Some((gate, wait)) => {
                    if lost.contains(&node) {
                        hold(candidate.view, Some(budget), &mut cluster, &mut places);
                        granting.push(policy_index);
                    }
                    let said = self.waiting(gate, wait);
                    self.draft.say(node, said);
                }
                None => {
                    if let Some(wait) = maintenance::holds(candidate.policy) {
                        if lost.contains(&node) {
                            hold(candidate.view, Some(budget), &mut cluster, &mut places);
                        }
                        // Nor does one begin for it alone.
                        if !self.is_refused(candidate.view)
                            && let Some(wanting) = out.wanting.get_mut(policy_index)
                        {
                            *wanting = Some(maintenance::wants(candidate.desired));
                        }
                        self.draft.say(node, Said::shared(RolloutState::Waiting, wait));
                        continue;
                    }
                    // One that is not taken disrupts nobody: no rollout goes on for it.
                    if !self.is_refused(candidate.view)
                        && let Some(granted) = out.granted.get_mut(policy_index)
                    {
                        *granted = true;
                    }
                    granting.push(policy_index);
                    behind_others |= !candidate.desired.ignores_budgets();
                    let opening =
                        candidate.policy.valid.and_then(|valid| cluster.opening(candidate.view, &valid.spec.drain));
                    let step = grant_step(&candidate, &self.snapshot.hooks, budget.used(), opening);
                    hold(candidate.view, Some(budget), &mut cluster, &mut places);
                    out.started.extend(starts(candidate.desired).map(|version| (policy_index, version)));
                    let said = granted(candidate.policy);
                    steps.push(step);
                    self.draft.say(node, said);
                }
            }
        }
        self.draft.steps.append(&mut steps);
        self.draft.questions.append(&mut questions);
        out.used = budgets.iter().map(PolicyBudget::used).collect();
        out
    }

    pub(super) fn candidate<'c>(
        &'c self,
        policy: usize,
        node: usize,
        waves: &'c PolicyWaves,
    ) -> Option<Candidate<'c, 'a>> {
        let known = self.nodes.get(node)?;
        let (view, desired) = (&known.view, known.desired.as_ref()?);
        // A way back does not wait for nodes that wait to go forward.
        let back = desired.goes_back();
        let others_first = view.traits.runs_operator && {
            let own = waves.waves.index_of(node);
            waves
                .unfinished
                .iter()
                .any(|(other, too)| *other != node && (*too || !back) && (back || waves.waves.index_of(*other) <= own))
        };
        Some(Candidate {
            index: node,
            view,
            policy: self.policies.get(policy)?,
            desired,
            waves: &waves.waves,
            alone: waves.unfinished.iter().all(|(other, _)| *other == node),
            others_first,
            behind_others: false,
            now: self.now(),
            set: self.set,
        })
    }

    fn own_gates(
        &mut self,
        policy: usize,
        waves: &PolicyWaves,
        verdicts: &mut Verdicts,
        passing: &mut Vec<(usize, usize)>,
    ) {
        let now = self.now();
        let Some(facts) = self.policies.get(policy) else { return };
        let footing = verdicts.stand(policy, Ground::of(facts, now));
        let members = facts.members;
        let mut current: Option<Arc<Wait>> = None;
        for node in members.iter().copied() {
            let Some(candidate) = self.candidate(policy, node, waves) else { continue };
            let traits = candidate.view.traits;
            if traits.moves || traits.deleting || traits.on_trial || !traits.live {
                continue;
            }
            if matches!(candidate.desired, Desired::Here) {
                let said = current_or_failed(&candidate, &mut current);
                self.draft.say(node, said);
                continue;
            }
            let stale = !traits.of_policy
                || (traits.goal == Some(Goal::Staged) && matches!(candidate.desired, Desired::GoBack(_)));
            if stale || traits.cordoned_by_us {
                // Something left behind is cleared away first.
                let wait = Wait::new(WaitReason::Queued, "what was left behind is cleared away first");
                self.draft.say(node, Said::new(RolloutState::Waiting, wait));
                continue;
            }
            let already_said = self.draft.said.get(node).is_some_and(Option::is_some);
            let holds = waves.waves.holds(node);
            let found = match verdicts.recall(node, footing, holds, now) {
                Some(found) => found,
                None => {
                    let found = gates::own(&candidate);
                    // A node that is not Ready waits for others, and a time that lies ahead moves along with the clock.
                    if traits.ready && traits.done_since <= now {
                        verdicts.keep(node, footing, holds, now, found.as_ref());
                    }
                    found
                }
            };
            match found {
                Some((gate, wait)) => {
                    self.draft.wake(wait.until, now);
                    // A node that was just asked to stage is reported so.
                    if !(already_said && wait.reason == WaitReason::StagingQueue) {
                        let said = self.waiting(gate, wait);
                        self.draft.say(node, said);
                    }
                }
                None if !already_said => passing.push((policy, node)),
                None => {}
            }
        }
    }

    fn waiting(&self, gate: Gate, wait: Arc<Wait>) -> Said {
        let state = match wait.reason {
            WaitReason::Transferring => RolloutState::Staging,
            WaitReason::FailedHere => RolloutState::Failed,
            WaitReason::AgentNotReporting => RolloutState::Unknown,
            _ => RolloutState::Waiting,
        };
        Said { gates_passed: Some(gate.index()), ..Said::shared(state, wait) }
    }

    /// The operator's own node last, nodes in trouble before it. First whom a person sends back whatever the budgets say, since the others
    /// count it; then other ways back, those whose budgets allow nothing last, zones in turn, fewest pods that budgets protect first, then
    /// by lot. Behind them all comes whom the API server does not take a grant for, which has a place only where nobody else needs it.
    fn in_order(&self, passing: Vec<(usize, usize)>, cluster: &ClusterBudget<'a>) -> Vec<(usize, usize)> {
        let protected = |node: usize| self.nodes.get(node).map_or(0, |view| view.traits.protected);
        let lot = |node: usize| self.nodes.get(node).map_or(0, |view| view.traits.lot);
        let mut keyed: Vec<_> =
            passing.into_iter().map(|(policy, node)| ((protected(node), lot(node), node), policy)).collect();
        keyed.sort_unstable();
        let mut turns: BTreeMap<(usize, u32), u32> = BTreeMap::new();
        let mut ordered: Vec<_> = keyed
            .into_iter()
            .filter_map(|((pods, lot, node), policy)| {
                let view = self.nodes.get(node)?;
                let turn = turns.entry((policy, view.traits.zone)).or_default();
                *turn += 1;
                let back = view.desired.as_ref().is_some_and(Desired::goes_back);
                let at_once = view.desired.as_ref().is_some_and(Desired::ignores_budgets);
                let last = view.traits.runs_operator;
                let refused = self.is_refused(view);
                Some((
                    (refused, last, !view.traits.ready, !at_once, !back, cluster.is_held(view), *turn, pods, lot),
                    (policy, node),
                ))
            })
            .collect();
        ordered.sort_unstable();
        ordered.into_iter().map(|(_, candidate)| candidate).collect()
    }

    /// The nodes with a grant that their NodeUpdates do not show yet.
    fn pending_grants(&self) -> Vec<(usize, PendingGrant)> {
        let writes = &self.snapshot.writes;
        if !writes.has_pending_grants() {
            return Vec::new();
        }
        let views = self.nodes.iter().enumerate().filter(|(_, view)| !view.traits.moves);
        views.filter_map(|(index, view)| Some((index, writes.pending_grant(&view.node.name)?))).collect()
    }

    /// Whether the API server has not taken this node's grant for a while.
    fn is_refused(&self, view: &NodeView<'_>) -> bool {
        self.snapshot.refused.told_of(&view.node.name, GRANT, self.snapshot.now).is_some()
    }

    /// What is said of a node whose grant no fact shows yet. No step of this plan gives it, whose refusal would be quoted.
    fn pending(&self, view: &NodeView<'_>, policy: &PolicyView<'_>) -> Said {
        let said = granted(policy);
        let refusal = self.snapshot.refused.told_of(&view.node.name, GRANT, self.snapshot.now);
        let Some(refusal) = refusal else { return said };
        let (before, since, words) = (&said.wait.message, refusal.since, &refusal.words);
        let message = format!("{before}; {GRANT} has failed since {since}: {words}");
        Said::new(RolloutState::Waiting, Wait::new(WaitReason::WriteRefused, message))
    }
}

fn current_or_failed(candidate: &Candidate<'_, '_>, current: &mut Option<Arc<Wait>>) -> Said {
    let halting = candidate.policy.halted.is_some();
    let failed = candidate
        .view
        .update()
        .filter(|_| halting && candidate.view.traits.has_failed)
        .and_then(|update| update.status.failed_releases.last())
        .filter(|failed| candidate.policy.blocked_by_failures(&failed.version));
    if let Some(failed) = failed {
        let message = format!("{} failed here: {}", failed.version, failed.message);
        let wait = Wait::new(WaitReason::Reverted, message).of("NodeUpdate", None, &candidate.view.node.name);
        return Said::new(RolloutState::Failed, wait);
    }
    let wait = current.get_or_insert_with(|| Arc::new(Wait::new(WaitReason::Current, super::AT_REST)));
    Said::shared(RolloutState::Current, Arc::clone(wait))
}

/// A node that is granted holds its place.
fn hold<'a>(
    view: &NodeView<'a>,
    budget: Option<&mut PolicyBudget<'_>>,
    cluster: &mut ClusterBudget<'a>,
    places: &mut Places<'a>,
) {
    if let Some(budget) = budget.filter(|_| !view.traits.unavailable) {
        budget.take(view);
    }
    cluster.take(view);
    places.take(view.node);
}

/// What is said of a node that is granted.
fn granted(policy: &PolicyView<'_>) -> Said {
    let hooks = policy.valid.is_some_and(|valid| !valid.spec.hooks.before_drain.is_empty());
    let next = if hooks { WaitReason::Hook } else { WaitReason::Draining };
    Said::new(RolloutState::Draining, Wait::new(next, "may be disrupted now"))
}

/// The release whose rollout begins with a node, if one does.
fn starts(desired: &Desired<'_>) -> Option<Version> {
    match desired {
        Desired::Install(install) if install.rollback.is_none() => Some(install.target.version.clone()),
        _ => None,
    }
}

/// The next number of a grant for a node. Numbers begin anew where somebody deleted the NodeUpdate; Jobs of hooks are known by them, and
/// what one came to that ran for an earlier disruption is no word about this one. The free number that comes first is taken, so that a
/// Job that somebody else made costs one of them and no more.
fn next_number(node: &str, last: i64, hooks: &[HookRun]) -> i64 {
    let taken: BTreeSet<i64> = hooks.iter().filter(|run| *run.node == *node).map(|run| run.grant).collect();
    let next = last.saturating_add(1);
    (next..=i64::MAX).find(|number| !taken.contains(number)).unwrap_or(next)
}

fn grant_step(
    candidate: &Candidate<'_, '_>,
    hooks_ran: &[HookRun],
    used: u32,
    opening: Option<(Duration, Vec<String>)>,
) -> Step {
    let (budgets_open_within, closed_budgets) = opening.unzip();
    let view = candidate.view;
    let node = view.node;
    let spec = view.update().map(|update| &update.spec);
    let last = spec.and_then(|spec| spec.grant.as_ref()).map_or(0, |grant| grant.generation);
    let seen = view.update().and_then(|update| update.status.last_grant).unwrap_or(0);
    let cause = candidate.desired.cause(&candidate.policy.facts.name);
    let hooks = candidate.policy.valid.is_some_and(|valid| !valid.spec.hooks.before_drain.is_empty());
    let wave = candidate.waves.index_of(candidate.index).and_then(|wave| candidate.waves.names.get(wave));
    let wave = wave.map_or_else(String::new, |wave| format!("wave {wave}, "));
    Step {
        action: Action::Grant {
            node: node.name.to_string(),
            boot_id: node.boot_id.clone(),
            generation: next_number(&node.name, last.max(seen), hooks_ran),
            cause: cause.clone(),
            was_cordoned: node.cordon.is_cordoned(),
            at: candidate.now,
            drain_begins: !hooks,
            budgets_open_within,
            closed_budgets: closed_budgets.unwrap_or_default(),
            daemon_sets: match candidate.policy.valid {
                Some(valid) if valid.spec.health.daemon_sets => super::motion::note(node, &[]),
                _ => Vec::new(),
            },
            accept_state: candidate.desired.accepts_state(),
        },
        expect: Expect {
            node_uid: Some(node.uid.clone()),
            has_update: Some(true),
            goal: spec.map(|spec| spec.goal).or(Some(Goal::Idle)),
            release: spec.and_then(|spec| spec.release.as_ref()).map(|release| release.version.clone()),
            grant: Some(None),
            boot_id: Some(node.boot_id.clone()),
            agent_boot: None,
            cordon: (node.cordon == Cordon::None).then_some(plan::Cordon::None),
            though_unreadable: false,
        },
        cause: Some(cause),
        says: format!("may be disrupted ({wave}{} nodes of the policy are unavailable before it)", used),
    }
}
