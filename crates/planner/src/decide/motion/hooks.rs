//! Hooks of a node in motion, one after the other. One that succeeded is noted, so that it stays done whatever becomes of
//! its Job: a Job is somebody else's to clear away.

use super::{Motion, Moving};
use crate::{
    Action, Rule, Step, Wait,
    plan::HookOrder,
    snapshot::{HookStage, HookState},
};
use bascule_api::{Hook, RolloutState, WaitReason};

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
    for hook in hooks {
        let key = stage.key(&hook.name);
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
            let wait = Wait::new(WaitReason::Hook, format!("hook {} starts", hook.name));
            let step = moving.step(Action::RunHook(order), format!("hook {} runs", hook.name));
            let mut motion = Motion::waits(state, wait);
            motion.steps = notes;
            return Progress::Running(Box::new(motion.with(step)));
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
