//! Hooks of a node in motion, one after the other. One that succeeded is noted, so that it stays done whatever becomes of
//! its Job: a Job is somebody else's to clear away.

use super::{Motion, Moving, before::WRITES_TAKE};
use crate::{
    Action, Rule, Step, Wait,
    plan::HookOrder,
    snapshot::{HookStage, HookState},
};
use bascule_api::{Hook, RolloutState, Time, WaitReason};

/// How far the hooks of a stage are.
pub(super) enum Progress {
    /// What is still to be noted.
    Done(Vec<Step>),
    Running(Box<Motion>),
    /// The Job, what it said, and what is still to be noted.
    Failed(String, String, Vec<Step>),
}

pub(super) fn next(moving: &Moving<'_, '_>, stage: HookStage, hooks: &[Hook]) -> Progress {
    let state = match stage {
        HookStage::BeforeDrain | HookStage::BeforeRollout => RolloutState::Draining,
        HookStage::AfterCommit | HookStage::AfterRollout => RolloutState::Trial,
    };
    let mut notes = Vec::new();
    // Before the drain hooks hold a place that others could have: each has to be started when those before it may have used their time
    // up, and its own.
    let granted_at = moving.disruption.granted_at;
    let mut by = granted_at;
    for hook in hooks {
        let key = stage.key(&hook.name);
        by = by.after(hook.timeout);
        if moving.disruption.hooks_done.contains(&key) && moving.ctx.set.keeps(Rule::HooksOnce) {
            continue;
        }
        let run = moving.ctx.hooks.iter().find(|run| {
            *run.node == *moving.view.node.name && run.grant == moving.grant && run.stage == stage && run.is_of(hook)
        });
        let Some(run) = run else {
            let order = HookOrder {
                node: moving.name(),
                policy: moving.policy_name().to_owned(),
                grant: moving.grant,
                stage,
                hook: hook.name.clone(),
                version: moving.release().map(|release| release.version.clone()),
            };
            let step = moving.step(Action::RunHook(order), format!("hook {} runs", hook.name));
            let until = by.max(granted_at.after(WRITES_TAKE));
            return start(moving, stage, &hook.name, step, until, notes);
        };
        match &run.state {
            HookState::Succeeded => {
                let note = Action::NoteHook { node: moving.name(), hook: key };
                notes.push(moving.step(note, ""));
            }
            HookState::Failed { message } => {
                let why = format!("hook {} failed: {message}", hook.name);
                return Progress::Failed(run.job.clone(), why, notes);
            }
            // Of a node's hook there is none; should there be, it is not done.
            HookState::Kept => {
                let wait = Wait::new(WaitReason::Hook, format!("hook {} waits to be begun", hook.name));
                let mut motion = Motion::waits(state, wait);
                motion.steps = notes;
                return Progress::Running(Box::new(motion));
            }
            HookState::Running { since } => {
                let until = since.after(hook.timeout);
                if moving.ctx.now >= until {
                    let why = format!("hook {} did not end within {}", hook.name, hook.timeout);
                    return Progress::Failed(run.job.clone(), why, notes);
                }
                let (namespace, name) = run.job.split_once('/').unwrap_or(("", &run.job));
                let wait = Wait::new(WaitReason::Hook, format!("hook {} runs", hook.name));
                let wait = wait.of("Job", Some(namespace), name).until(Some(until));
                let mut motion = Motion::waits(state, wait);
                motion.steps = notes;
                return Progress::Running(Box::new(motion));
            }
        }
    }
    Progress::Done(notes)
}

/// A hook whose Job is to be made.
fn start(moving: &Moving<'_, '_>, stage: HookStage, hook: &str, step: Step, by: Time, notes: Vec<Step>) -> Progress {
    let now = moving.ctx.now;
    let refusal = moving.ctx.refused.told(&step.action, now);
    let (state, wait) = match (stage, refusal) {
        (HookStage::BeforeDrain, refusal) if now >= by && moving.ctx.set.keeps(Rule::GivenBack) => {
            let words = refusal.map_or_else(String::new, |refusal| format!(": {}", refusal.words));
            return Progress::Failed(
                String::new(),
                format!("hook {hook} could not be started in its time{words}"),
                notes,
            );
        }
        (HookStage::BeforeDrain, _) => {
            let wait = Wait::new(WaitReason::Hook, format!("hook {hook} starts"));
            (RolloutState::Draining, wait.until(Some(by).filter(|by| now < *by)))
        }
        // A node that was rebooted already is not given back before them.
        (_, Some(refusal)) => {
            let says =
                format!("hook {hook} can't be started, and the node stays cordoned until it can: {}", refusal.words);
            (RolloutState::Failed, Wait::new(WaitReason::Hook, says))
        }
        (_, None) => (RolloutState::Trial, Wait::new(WaitReason::Hook, format!("hook {hook} starts"))),
    };
    let mut motion = Motion::waits(state, wait);
    motion.steps = notes;
    Progress::Running(Box::new(motion.with(step)))
}
