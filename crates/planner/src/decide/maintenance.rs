//! Hooks for a whole rollout: before the first node of a stretch of disruptions, and after the last one, however it came to
//! that. (Ceph's `noout` is set around a rollout, and must not stay for days because a window closed.) How far it is stands
//! in the policy's status, so that any operator goes on, and is announced before the first drain.

use super::{Grants, Round, desired::Desired, policy::PolicyView};
use crate::{
    Action, Expect, Rule, Step, Wait,
    plan::{HookOrder, MemoryChange},
    snapshot::{HookRun, HookStage, HookState},
};
use bascule_api::{Duration, Hook, Maintenance, Time, Version, WaitReason};
use std::sync::Arc;

/// How long nobody has to be disrupted, while nodes are left to be, before the hooks after it run.
const QUIET: Duration = Duration::from_secs(120);

/// How long the Jobs of the hooks after a rollout may take to be made before people are told that they are waited for: a moment is
/// no news, and would be written into every node that waits. Where the API server refuses them people read its words before.
const MOMENT: Duration = Duration::from_secs(15);

/// How far the hooks of a stage are.
enum Progress {
    Done,
    /// This one has to be started: its Job is not there, or waits.
    Start(String),
    /// It runs, until then at most.
    Running(Time),
    /// What went wrong, to be mended by a person.
    Failed(String),
}

/// Why nobody of the policy may be disrupted yet, because hooks of a whole rollout come first.
pub(super) fn holds(policy: &PolicyView<'_>) -> Option<Arc<Wait>> {
    let hooks = &policy.valid?.spec.hooks;
    let open = policy.memory.maintenance.as_ref();
    if open.is_none() && hooks.before_rollout.is_empty() && hooks.after_rollout.is_empty() {
        return None;
    }
    let message = match open {
        Some(Maintenance { begun_at: Some(_), ending: false, .. }) => return None,
        Some(Maintenance { ending: true, .. }) => "the hooks after the last rollout have not succeeded yet",
        _ => "the hooks before a rollout have not succeeded yet",
    };
    Some(Arc::new(Wait::new(WaitReason::Hook, message).of("UpdatePolicy", None, &policy.facts.name)))
}

/// What the policy's condition says; `None` for a policy that never had a maintenance.
pub(super) fn condition(policy: &PolicyView<'_>) -> Option<(&'static str, String)> {
    let Some(open) = &policy.memory.maintenance else {
        return (policy.memory.maintenances > 0).then(|| ("Over", String::new()));
    };
    let version = open.version.as_ref().map_or_else(String::new, |version| format!(" for {version}"));
    if let Some(why) = &open.failed {
        return Some(("HookFailed", run_again(why)));
    }
    Some(match open {
        Maintenance { ending: true, .. } => ("Ending", "the hooks after the last node run".to_owned()),
        Maintenance { begun_at: Some(_), .. } => ("UnderWay", format!("nodes are disrupted{version}")),
        _ => ("Planned", format!("nodes are about to be disrupted{version}; hooks run first")),
    })
}

/// What a person does about a hook that failed; where its Job can't even be made, what stands in its way says that.
fn run_again(why: &str) -> String {
    if why.contains(TRIED_AGAIN) { why.to_owned() } else { format!("{why}; delete the Job to run it again") }
}

/// What is said of a hook whose Job can't be made, or let run.
const TRIED_AGAIN: &str = ", and is tried again: ";

/// How much of why a hook failed is remembered, in characters.
const REMEMBERED: usize = 400;

impl Round<'_> {
    /// Opens, goes on with and ends the maintenance of each policy.
    pub(super) fn maintain(&mut self, grants: &Grants, unfinished: &[bool]) {
        let now = self.snapshot.now;
        for index in 0..self.policies.len() {
            let wanted = grants.wanting.get(index).cloned().flatten();
            let granted = grants.granted.get(index).copied().unwrap_or_default();
            let left = unfinished.get(index).copied().unwrap_or_default();
            let Some(policy) = self.policies.get(index) else { continue };
            let Some(valid) = policy.valid else { continue };
            let members = || policy.members.iter().filter_map(|node| self.nodes.get(*node));
            let moves = granted || members().any(|view| view.traits.moves);
            let ended = members()
                .filter_map(|view| view.update()?.spec.last_disruption.as_ref())
                .map(|last| last.ended_at)
                .max();
            let hooks = &valid.spec.hooks;
            let mut open = policy.memory.maintenance.clone();
            let mut change = None;
            let mut step = None;
            let mut wake = None;
            let mut held = None;
            let unkept = self.unkept(policy, open.as_ref(), &hooks.after_rollout);
            let mut failed = open.as_ref().and_then(|open| self.unmade(policy, open, &unkept));
            match &mut open {
                None => {
                    if let (Some(version), true) = (&wanted, holds(policy).is_some()) {
                        open = Some(Maintenance {
                            number: policy.memory.maintenances.saturating_add(1),
                            version: version.clone(),
                            planned_at: now,
                            begun_at: None,
                            ending: false,
                            hooks_done: Vec::new(),
                            failed: None,
                        });
                        change =
                            Some(("MaintenancePlanned", "nodes are about to be disrupted; hooks run first".to_owned()));
                    }
                }
                Some(open) if open.ending => {
                    match self.progress(policy, open, HookStage::AfterRollout, &hooks.after_rollout) {
                        Progress::Done => change = Some(("MaintenanceEnded", "the hooks after it are done".to_owned())),
                        Progress::Start(hook) => {
                            (step, failed) = self.start(policy, open, HookStage::AfterRollout, hook);
                        }
                        Progress::Running(until) => wake = Some(until),
                        Progress::Failed(why) => failed = Some(why),
                    }
                    if change.is_some() {
                        self.close(index, change.take());
                        continue;
                    }
                }
                Some(open) if open.begun_at.is_none() => {
                    if unkept.is_empty() {
                        match self.progress(policy, open, HookStage::BeforeRollout, &hooks.before_rollout) {
                            Progress::Done => {
                                open.begun_at = Some(now);
                                change = Some(("MaintenanceBegan", "nodes may be disrupted".to_owned()));
                            }
                            Progress::Start(hook) => {
                                (step, failed) = self.start(policy, open, HookStage::BeforeRollout, hook);
                            }
                            Progress::Running(until) => wake = Some(until),
                            Progress::Failed(why) => failed = Some(why),
                        }
                    } else {
                        // Nothing is done that nobody might undo, should the policy be deleted.
                        let told = open.planned_at.after(MOMENT);
                        wake = Some(told);
                        held = (now >= told).then(|| {
                            let hooks = unkept.join(", ");
                            format!("nothing begins before the Jobs of the hooks after the rollout are there: {hooks}")
                        });
                    }
                    if failed.is_some() && wanted.is_none() {
                        (step, failed) = (None, None);
                        open.ending = true;
                        change = Some(("MaintenanceEnding", "nobody waits for it any more".to_owned()));
                    }
                }
                Some(open) => {
                    let since = ended.max(open.begun_at).unwrap_or(now).min(now);
                    let quiet = since.after(QUIET);
                    if !moves && wanted.is_none() && (now >= quiet || !left) {
                        failed = None;
                        open.ending = true;
                        change = Some(("MaintenanceEnding", "the last node is done".to_owned()));
                    } else if !moves {
                        wake = Some(quiet);
                    }
                }
            }
            if let Some(why) = failed.as_deref().map(run_again).or(held) {
                self.complain(index, why);
            }
            if let Some(open) = &mut open {
                let failed: Option<String> = failed.map(|why| why.chars().take(REMEMBERED).collect());
                if failed.is_some() && open.failed != failed {
                    // Nobody may wait for it: after the last node there is none left that could say so.
                    change = failed.as_deref().map(|why| ("MaintenanceHookFailed", run_again(why)));
                }
                open.failed = failed;
            }
            self.note_done(index, open.as_mut());
            self.draft.wake(wake, now);
            for hook in open.as_ref().filter(|open| !open.ending).map(|_| unkept).into_iter().flatten() {
                self.order(index, open.as_ref(), HookStage::AfterRollout, hook, Action::KeepRolloutHook);
            }
            if let Some((stage, hook)) = step {
                self.order(index, open.as_ref(), stage, hook, Action::RunRolloutHook);
            }
            let Some(policy) = self.policies.get_mut(index) else { continue };
            if policy.memory.maintenance != open {
                policy.memory.maintenances = open.as_ref().map_or(policy.memory.maintenances, |open| open.number);
                policy.memory.maintenance = open;
                // What changes without a word (a hook is done, a failed one's Job was deleted) is remembered and no event.
                let (reason, note) = change.unwrap_or_default();
                policy.memory.changes.push(MemoryChange::Maintenance(reason, note));
            }
        }
    }

    fn close(&mut self, index: usize, change: Option<(&'static str, String)>) {
        let Some(policy) = self.policies.get_mut(index) else { return };
        policy.memory.maintenance = None;
        let (reason, note) = change.unwrap_or_default();
        policy.memory.changes.push(MemoryChange::Maintenance(reason, note));
    }

    fn runs<'r>(&'r self, policy: &'r str, open: &Maintenance) -> impl Iterator<Item = &'r HookRun> {
        let number = open.number;
        let of = move |run: &&HookRun| run.node.is_empty() && run.policy == policy && run.grant == number;
        self.snapshot.hooks.iter().filter(of)
    }

    fn progress(&self, policy: &PolicyView<'_>, open: &Maintenance, stage: HookStage, hooks: &[Hook]) -> Progress {
        for hook in hooks {
            let noted = open.hooks_done.contains(&stage.key(&hook.name));
            let rule = match stage {
                HookStage::AfterRollout => Rule::HooksAfterRollout,
                _ => Rule::RolloutHooks,
            };
            if noted || !self.set.keeps(rule) {
                continue;
            }
            let run = self.runs(&policy.facts.name, open).find(|run| run.stage == stage && run.is_of(hook));
            let Some(run) = run else { return Progress::Start(hook.name.clone()) };
            match &run.state {
                HookState::Kept => return Progress::Start(hook.name.clone()),
                HookState::Succeeded => {}
                HookState::Failed { message } => {
                    return Progress::Failed(format!("hook {} failed ({}): {message}", hook.name, run.job));
                }
                HookState::Running { since } => {
                    let until = since.after(hook.timeout);
                    if self.snapshot.now < until {
                        return Progress::Running(until);
                    }
                    return Progress::Failed(format!(
                        "hook {} ({}) did not end within {}",
                        hook.name, run.job, hook.timeout
                    ));
                }
            }
        }
        Progress::Done
    }

    /// The step that makes a hook's Job; and where that has failed for a while, what is said of it as of a hook that failed.
    fn start(
        &self,
        policy: &PolicyView<'_>,
        open: &Maintenance,
        stage: HookStage,
        hook: String,
    ) -> (Option<(HookStage, String)>, Option<String>) {
        let action = Action::RunRolloutHook(order_of(policy, open, stage, &hook));
        let refusal = self.snapshot.refused.told(&action, self.snapshot.now);
        let failed = refusal.map(|refusal| format!("hook {hook} can't be started{TRIED_AGAIN}{}", refusal.words));
        (Some((stage, hook)), failed)
    }

    /// What is said of those hooks after a rollout whose Jobs are not there yet, where that of one has failed to be made for a while.
    fn unmade(&self, policy: &PolicyView<'_>, open: &Maintenance, unkept: &[String]) -> Option<String> {
        unkept.iter().find_map(|hook| {
            let action = Action::KeepRolloutHook(order_of(policy, open, HookStage::AfterRollout, hook));
            let refusal = self.snapshot.refused.told(&action, self.snapshot.now)?;
            Some(format!("hook {hook} can't be kept for the end{TRIED_AGAIN}{}", refusal.words))
        })
    }

    /// Notes hooks that succeeded, so that they are not run again, whatever becomes of their Jobs.
    fn note_done(&self, index: usize, open: Option<&mut Maintenance>) {
        let (Some(policy), Some(open)) = (self.policies.get(index), open) else { return };
        let Some(valid) = policy.valid else { return };
        let succeeded = self.runs(&policy.facts.name, open).filter(|run| {
            run.state == HookState::Succeeded && run.stage.hooks(&valid.spec.hooks).iter().any(|hook| run.is_of(hook))
        });
        let new: Vec<String> = succeeded.map(|run| run.stage.key(&run.hook)).collect();
        for key in new {
            if !open.hooks_done.contains(&key) {
                open.hooks_done.push(key);
            }
        }
    }

    /// The hooks after a rollout whose Jobs are not there yet. A policy that is deleted takes its status with it: what is to run
    /// after its rollout has to stand elsewhere, from before the first hook on. One that a policy is given later, or whose Job
    /// somebody deleted, follows.
    fn unkept(&self, policy: &PolicyView<'_>, open: Option<&Maintenance>, after: &[Hook]) -> Vec<String> {
        let Some(open) = open.filter(|open| !open.ending && self.set.keeps(Rule::HooksKept)) else { return Vec::new() };
        let is_there = |hook: &Hook| {
            let mut runs = self.runs(&policy.facts.name, open);
            runs.any(|run| run.stage == HookStage::AfterRollout && run.is_of(hook))
        };
        let noted = |hook: &Hook| open.hooks_done.contains(&HookStage::AfterRollout.key(&hook.name));
        after.iter().filter(|hook| !noted(hook) && !is_there(hook)).map(|hook| hook.name.clone()).collect()
    }

    fn order(
        &mut self,
        index: usize,
        open: Option<&Maintenance>,
        stage: HookStage,
        hook: String,
        action: fn(HookOrder) -> Action,
    ) {
        let (Some(policy), Some(open)) = (self.policies.get(index), open) else { return };
        // What is not remembered yet must not be acted upon.
        if policy.facts.status.maintenance.as_ref().map(|known| known.number) != Some(open.number) {
            return;
        }
        let action = action(order_of(policy, open, stage, &hook));
        let does = if matches!(action, Action::KeepRolloutHook(_)) { "is kept for the end" } else { "runs" };
        let says = format!("hook {hook} {does}");
        self.draft.steps.push(Step { action, expect: Expect::default(), cause: None, says });
    }

    /// Tells those who wait for hooks of the whole rollout what is in their way.
    fn complain(&mut self, index: usize, message: String) {
        let Some(policy) = self.policies.get(index) else { return };
        let wait = Arc::new(Wait::new(WaitReason::Hook, message).of("UpdatePolicy", None, &policy.facts.name));
        let members: Vec<usize> = policy.members.to_vec();
        for node in members {
            if let Some(Some(said)) = self.draft.said.get_mut(node)
                && said.wait.reason == WaitReason::Hook
                && said.wait.object.as_ref().is_some_and(|object| object.kind == "UpdatePolicy")
            {
                said.wait = Arc::clone(&wait);
            }
        }
    }
}

fn order_of(policy: &PolicyView<'_>, open: &Maintenance, stage: HookStage, hook: &str) -> HookOrder {
    HookOrder {
        node: String::new(),
        policy: policy.facts.name.clone(),
        grant: open.number,
        stage,
        hook: hook.to_owned(),
        version: open.version.clone(),
    }
}

/// The release that a node which may be disrupted is to run.
pub(super) fn wants(desired: &Desired<'_>) -> Option<Version> {
    match desired {
        Desired::Install(install) => Some(install.target.version.clone()),
        Desired::GoBack(back) => Some(back.to.clone()),
        Desired::Here | Desired::Nothing(_) => None,
    }
}
