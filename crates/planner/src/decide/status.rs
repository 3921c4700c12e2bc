//! What a policy's status says: counts, columns, what it waits for, conditions, and its memory.

use super::{PolicyWaves, Round, maintenance, policy::PolicyView, waves::Standing};
use crate::{
    Action, Expect, FreezeReport, PolicyReport, Step, Wait,
    snapshot::{FreezeFacts, OfferState},
    windows::{Opening, zone_at},
    zones::Zone,
};
use bascule_api::{
    Columns, Counts, Duration, Outcome, ReleaseInfo, RollbackStatus, RolloutState, Time, UpdatePolicyStatus,
    WaitReason, WaitsFor, WindowStatus,
    conditions::{self, reason},
};
use std::sync::Arc;

/// How long a Freeze that ended stays on record (decision 44).
const FREEZE_KEPT_FOR: Duration = Duration::from_minutes(90 * 24 * 60);
/// How many that ended stay on record at most, those that ended last.
const FREEZES_KEPT: usize = 256;

impl<'a> Round<'a> {
    pub(super) fn policy_report(
        &mut self,
        index: usize,
        waves: Option<&PolicyWaves>,
        used: Option<u32>,
    ) -> Option<PolicyReport> {
        let counts = self.counts(index, waves?, used);
        self.end_rollout(index, waves?);
        self.policies.get_mut(index)?.remember_waves(&waves?.waves.complete);
        let policy = self.policies.get(index)?;
        let mut status = policy.facts.status.clone();
        let target = policy.target(None).and_then(|release| {
            Some(ReleaseInfo {
                version: release.version.clone(),
                digest: release.digests.values().next().cloned()?,
                severity: release.severity,
                published_at: release.published_at,
                state_version: release.state_version,
            })
        });
        if let (Some(new), Some(old)) = (&target, &status.target)
            && new.version != old.version
        {
            status.previous = status.target.clone();
        }
        status.target = target.or(status.target);
        status.observed_generation = Some(policy.facts.generation);
        status.blocked.clone_from(&policy.memory.blocked);
        status.failures.clone_from(&policy.memory.failures);
        status.timings.clone_from(&policy.memory.timings);
        status.history.clone_from(&policy.memory.history);
        status.retried.clone_from(&policy.memory.retried);
        status.maintenance.clone_from(&policy.memory.maintenance);
        status.maintenances = policy.memory.maintenances;
        status.cluster_members.clone_from(&policy.memory.members);
        status.complete_waves.clone_from(&policy.memory.complete_waves);
        status.repository = Some(policy.facts.offer.repository.clone());
        status.wave = waves?.waves.current.clone();
        status.window = window(policy.opening);
        status.waits_for = self.waits_for(index);
        status.columns = columns(policy, &counts, status.window.as_ref(), status.waits_for.as_ref());
        self.set_conditions(policy, &counts, &mut status);
        status.counts = counts;
        Some(PolicyReport { policy: policy.facts.name.clone(), status })
    }

    fn said_of(&self, policy: usize) -> impl Iterator<Item = &super::Said> + '_ {
        let members = self.policies.get(policy).map_or(&[][..], |policy| policy.members);
        members.iter().filter_map(|index| self.draft.said.get(*index).and_then(Option::as_ref))
    }

    fn counts(&self, index: usize, waves: &PolicyWaves, used: Option<u32>) -> Counts {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let standing = |wanted: fn(&Standing) -> bool| number(waves.standings.iter().filter(|s| wanted(s)).count());
        let staged = self.policies.get(index).map_or(0, |policy| {
            let members = policy.members.iter().filter_map(|node| self.nodes.get(*node));
            number(members.filter(|node| node.assessed.staged).count())
        });
        let mut counts = Counts {
            nodes: number(waves.standings.len()),
            updated: standing(|standing| matches!(standing, Standing::Done(_))),
            staged,
            in_progress: standing(|standing| matches!(standing, Standing::Moving)),
            unavailable: used.unwrap_or(0),
            ..Counts::default()
        };
        for said in self.said_of(index) {
            match said.state {
                RolloutState::Waiting | RolloutState::Staging | RolloutState::Unknown => counts.waiting += 1,
                RolloutState::Failed => counts.failed += 1,
                RolloutState::Current
                | RolloutState::Draining
                | RolloutState::Rebooting
                | RolloutState::Trial
                | RolloutState::Reverting => {}
            }
        }
        counts
    }

    /// Notes the end of the rollout that runs.
    fn end_rollout(&mut self, index: usize, waves: &PolicyWaves) {
        let now = self.snapshot.now;
        let Some(policy) = self.policies.get(index) else { return };
        // Whether a block was lifted is not known of a policy that can't be used.
        let running = policy.memory.running().filter(|_| policy.valid.is_some());
        let Some(version) = running.map(|entry| entry.version.clone()) else { return };
        let outcome = if policy.blocked_by_failures(&version) {
            Outcome::Blocked
        } else if policy.is_blocked(&version) {
            Outcome::RolledBack
        } else if !waves.standings.is_empty()
            && waves.standings.iter().all(|standing| matches!(standing, Standing::Done(_)))
            && self.is_target(index, &version)
        {
            Outcome::Done
        } else {
            return;
        };
        let members = policy.members.iter().filter_map(|node| self.nodes.get(*node));
        let run = members.filter(|view| view.running() == Some(&version)).count();
        if let Some(policy) = self.policies.get_mut(index) {
            policy.memory.end(outcome, u32::try_from(run).unwrap_or(u32::MAX), now);
        }
    }

    /// The reason that most waiting nodes of a policy share; of equals the one that the gates ask first.
    fn waits_for(&self, index: usize) -> Option<WaitsFor> {
        // One place for each reason, in the order in which the gates ask.
        let mut found: Vec<(usize, Option<&Arc<Wait>>)> = vec![(0, None); WaitReason::ALL.len()];
        for said in self.said_of(index) {
            if matches!(
                said.state,
                RolloutState::Waiting | RolloutState::Staging | RolloutState::Failed | RolloutState::Unknown
            ) && let Some((count, first)) = found.get_mut(said.wait.reason as usize)
            {
                *count += 1;
                first.get_or_insert(&said.wait);
            }
        }
        let (_, wait) = found.into_iter().rev().max_by_key(|(count, _)| *count)?;
        let wait = wait?;
        Some(WaitsFor {
            reason: wait.reason,
            message: wait.message.chars().take(1024).collect(),
            object: wait.object.clone().filter(|_| !wait.fleeting),
            until: wait.until,
        })
    }

    fn set_conditions(&self, policy: &PolicyView<'a>, counts: &Counts, status: &mut UpdatePolicyStatus) {
        let now = self.snapshot.now;
        let generation = Some(policy.facts.generation);
        let mut set = |type_, holds, reason, message: &str| {
            conditions::set(&mut status.conditions, conditions::new(type_, holds, reason, message, generation, now));
        };
        match &policy.invalid {
            Some(wait) => set(conditions::ACCEPTED, false, reason::INVALID, &wait.message),
            None => {
                let advice = policy.facts.advice.as_deref().unwrap_or_default();
                set(conditions::ACCEPTED, true, reason::VALID, advice);
            }
        }
        let moving = counts.in_progress > 0;
        let back = !policy.rollbacks.is_empty();
        let why = if back { reason::ROLLING_BACK } else { reason::ROLLING_OUT };
        let many =
            if counts.in_progress == 1 { "1 node is".to_owned() } else { format!("{} nodes are", counts.in_progress) };
        let progress = format!("{many} being disrupted");
        set(conditions::PROGRESSING, moving, if moving { why } else { reason::OBSERVED }, &progress);
        let done = counts.nodes == counts.updated && counts.nodes > 0;
        let unfinished = match (done, counts.nodes) {
            (true, _) => String::new(),
            (false, 0) => "the policy selects no node".to_owned(),
            (false, nodes) => format!("{} of {nodes} nodes run the target release", counts.updated),
        };
        set(conditions::UP_TO_DATE, done, if done { reason::DONE } else { reason::OBSERVED }, &unfinished);
        match &policy.halted {
            Some(wait) => set(conditions::HALTED, true, reason::FAILURE_THRESHOLD, &wait.message),
            None if policy.valid.is_some() => set(conditions::HALTED, false, reason::OBSERVED, ""),
            // What was so stands: a halt would be told anew each time that the policy can be used again.
            None => {}
        }
        match (&policy.facts.offer.state, &policy.repository) {
            (OfferState::Unusable { reason, message } | OfferState::Stale { reason, message }, _) => {
                set(conditions::REPOSITORY_HEALTHY, false, reason, message);
            }
            (_, Some(wait)) => {
                let unread = policy.facts.offer.state == OfferState::Unread;
                let why = if unread { reason::UNREACHABLE } else { reason::EXPIRED };
                set(conditions::REPOSITORY_HEALTHY, false, why, &wait.message);
            }
            (_, None) => set(conditions::REPOSITORY_HEALTHY, true, reason::OBSERVED, ""),
        }
        let planned = policy.memory.maintenance.is_some();
        if let Some((why, message)) = maintenance::condition(policy) {
            set(conditions::MAINTENANCE_PLANNED, planned, why, &message);
        }
        let conflict = self.conflict_of(policy);
        match conflict {
            Some(message) => set(conditions::POLICY_CONFLICT, true, reason::OBSERVED, &message),
            None => set(conditions::POLICY_CONFLICT, false, reason::OBSERVED, ""),
        }
    }

    fn conflict_of(&self, policy: &PolicyView<'a>) -> Option<String> {
        let own = self.policies.iter().position(|other| other.facts.name == policy.facts.name)?;
        let conflicts = self.known.groups.conflicts.iter().filter_map(|node| self.nodes.get(*node));
        conflicts.into_iter().find_map(|view| match view.traits.selection {
            super::facts::Selection::Conflict(first, second) if first == own || second == own => {
                let other = self.policies.get(if first == own { second } else { first })?;
                Some(format!("policy {} selects node {} too; neither touches it", other.facts.name, view.node.name))
            }
            _ => None,
        })
    }

    /// The status of each Freeze.
    pub(super) fn freeze_statuses(&self) -> Vec<FreezeReport> {
        let now = self.snapshot.now;
        let freezes = self.snapshot.freezes.iter().map(|freeze| {
            let mut status = freeze.status.clone();
            status.observed_generation = Some(freeze.generation);
            status.ends_at = Some(freeze.ends_at());
            if status.in_progress.is_none() {
                let held = self.policies.iter().filter(|policy| freeze.holds(policy.facts, now));
                let by_policy = held.flat_map(|policy| policy.members).copied();
                let named =
                    |index: &usize| self.nodes.get(*index).is_some_and(|view| freeze.holds_node(&view.node.name, now));
                let by_name = (0..self.nodes.len()).filter(|_| !freeze.spec.nodes.is_empty()).filter(named);
                let moving =
                    by_policy.chain(by_name).filter(|node| self.nodes.get(*node).is_some_and(|view| view.traits.moves));
                status.in_progress = Some(u32::try_from(moving.count()).unwrap_or(u32::MAX));
            }
            let active = freeze.is_active(now);
            status.ended_at = match status.ended_at {
                _ if active => None,
                Some(before) => Some(before),
                // It is seen as soon as it is so; after a time without an operator it was over then, and no later.
                None => Some(now.min(freeze.ends_at())),
            };
            let why = if active { reason::OBSERVED } else { reason::ENDED };
            let generation = Some(freeze.generation);
            for (type_, holds, why) in [(conditions::ACCEPTED, true, reason::VALID), (conditions::ACTIVE, active, why)]
            {
                conditions::set(&mut status.conditions, conditions::new(type_, holds, why, "", generation, now));
            }
            FreezeReport { freeze: freeze.name.clone(), status }
        });
        freezes.collect()
    }

    /// Takes out Freezes that ended long ago, or of which there are too many: they are read by every operator, and by whoever looks
    /// at the fleet. That a Freeze has ended must have been written before. One that is kept elsewhere stays: made anew it would hold again.
    pub(super) fn forget_freezes(&mut self, steps: &mut Vec<Step>) {
        let now = self.snapshot.now;
        let unreadable =
            |freeze: &FreezeFacts| self.snapshot.unreadable_orders.iter().any(|order| order.is("Freeze", &freeze.name));
        let ended =
            |freeze: &&Arc<FreezeFacts>| !freeze.is_active(now) && !freeze.kept_elsewhere && !unreadable(freeze);
        let mut ended: Vec<(Time, &FreezeFacts)> = self
            .snapshot
            .freezes
            .iter()
            .filter(ended)
            .filter_map(|freeze| Some((freeze.status.ended_at?, &**freeze)))
            .collect();
        ended.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        let too_many = ended.len().saturating_sub(FREEZES_KEPT);
        for (index, (at, freeze)) in ended.into_iter().enumerate() {
            let until = at.after(FREEZE_KEPT_FOR);
            if index >= too_many && until > now {
                self.draft.wake(Some(until), now);
                continue;
            }
            let by = |name: &Option<String>| name.as_deref().map(|name| format!(" by {name}")).unwrap_or_default();
            let spec = &freeze.spec;
            steps.push(Step {
                action: Action::ForgetFreeze { freeze: freeze.name.clone() },
                expect: Expect::default(),
                cause: None,
                says: format!(
                    "the record of Freeze {} is removed: it was written at {}{}, ended at {at}{}: {}",
                    freeze.name,
                    freeze.created_at,
                    by(&spec.requested_by),
                    by(&spec.ended_by),
                    spec.reason
                ),
            });
        }
    }

    /// The status of each Rollback; those that are accepted now are written first.
    pub(super) fn rollback_statuses(&self, steps: &mut Vec<Step>) -> Vec<RollbackStatus> {
        let now = self.snapshot.now;
        let mut out: Vec<RollbackStatus> = self.snapshot.rollbacks.iter().map(|facts| facts.status.clone()).collect();
        for (index, facts) in self.snapshot.rollbacks.iter().enumerate() {
            let known = self.policies.iter().any(|policy| policy.facts.name == facts.spec.policy);
            if let Some(status) = out.get_mut(index).filter(|_| !known && facts.status.completed_at.is_none()) {
                let message = format!("there is no policy {}", facts.spec.policy);
                let condition = conditions::new(
                    conditions::ACCEPTED,
                    false,
                    reason::INVALID,
                    &message,
                    Some(facts.generation),
                    now,
                );
                conditions::set(&mut status.conditions, condition);
            }
        }
        for policy in &self.policies {
            for rollback in &policy.rollbacks {
                let (mut status, facts) = (rollback.status.clone(), rollback.facts);
                let unreadable =
                    self.snapshot.unreadable_orders.iter().any(|order| order.is(super::rollback::KIND, &facts.name));
                let members = || policy.members.iter().filter_map(|node| Some(&self.nodes.get(*node)?.view));
                if rollback.fresh {
                    for view in members().filter(|view| rollback.leaves(view)) {
                        let held = view.way_back().is_some_and(|other| rollback.destination(view) == Some(other));
                        let count = if held { &mut status.without_download } else { &mut status.with_download };
                        *count += 1;
                    }
                }
                let all = status.without_download + status.with_download;
                let left = members().filter(|view| rollback.leaves(view)).count();
                let moving = members().any(|view| {
                    let by = view.disruption().map(|disruption| &disruption.cause.object);
                    by.is_some_and(|object| object.kind == super::rollback::KIND && object.name == facts.name)
                });
                let left = u32::try_from(left).unwrap_or(u32::MAX);
                status.progress = Some(format!("{}/{}", all.saturating_sub(left), all.max(left)));
                let generation = Some(facts.generation);
                let accepted = conditions::new(conditions::ACCEPTED, true, reason::VALID, "", generation, now);
                conditions::set(&mut status.conditions, accepted);
                let done = left == 0 && !moving;
                let why = if done { reason::DONE } else { reason::ROLLING_BACK };
                conditions::set(
                    &mut status.conditions,
                    conditions::new(conditions::COMPLETE, done, why, "", generation, now),
                );
                if done && !rollback.fresh {
                    status.completed_at = Some(now);
                }
                if rollback.fresh && !unreadable {
                    steps.push(Step {
                        action: Action::AcceptRollback { rollback: facts.name.clone(), status: status.clone() },
                        expect: Expect::default(),
                        cause: None,
                        says: String::new(),
                    });
                }
                if let Some(slot) = out.get_mut(rollback.index) {
                    *slot = status;
                }
            }
        }
        out
    }
}

fn window(opening: Opening) -> Option<WindowStatus> {
    match opening {
        Opening::Always | Opening::Closed(None) => None,
        Opening::Open(span) => Some(WindowStatus { open: true, start: span.start, end: span.end }),
        Opening::Closed(Some(span)) => Some(WindowStatus { open: false, start: span.start, end: span.end }),
    }
}

fn columns(
    policy: &PolicyView<'_>,
    counts: &Counts,
    window: Option<&WindowStatus>,
    waits_for: Option<&WaitsFor>,
) -> Columns {
    // Where windows of several zones touch it is the clock of the one that opens that people have set themselves to.
    let zone = policy.valid.zip(window).map_or(Zone::UTC, |(valid, window)| zone_at(&valid.windows, window.start));
    let local = |at: Time| zone.describe(at.get());
    let next_window = match window {
        None => "-".to_owned(),
        Some(WindowStatus { open: false, start, .. }) => local(*start),
        Some(WindowStatus { end: Some(end), .. }) => format!("open until {}", local(*end)),
        Some(WindowStatus { end: None, .. }) => "always open".to_owned(),
    };
    let waits_for = waits_for.map_or_else(
        || "-".to_owned(),
        |waits| match waits.until {
            Some(until) => format!("{} until {until}", waits.reason),
            None => waits.reason.to_string(),
        },
    );
    Columns { updated: format!("{}/{}", counts.updated, counts.nodes), next_window, waits_for }
}
