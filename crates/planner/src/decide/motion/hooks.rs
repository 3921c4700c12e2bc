//! Hooks of a node in motion, one after the other.

use super::{Motion, Moving};
use crate::{
    Action, Wait,
    plan::HookOrder,
    snapshot::{HookStage, HookState},
};
use bascule_api::{Hook, RolloutState, WaitReason};

/// How far the hooks of a stage are.
pub(super) enum Progress {
    Done,
    Running(Box<Motion>),
    /// The Job and what it said.
    Failed(String, String),
}

pub(super) fn next(moving: &Moving<'_, '_>, stage: HookStage, hooks: &[Hook]) -> Progress {
    let state = match stage {
        HookStage::BeforeDrain => RolloutState::Draining,
        HookStage::AfterCommit => RolloutState::Trial,
    };
    for hook in hooks {
        let run = moving.ctx.hooks.iter().find(|run| {
            *run.node == *moving.view.node.name
                && run.grant == moving.grant
                && run.stage == stage
                && run.hook == hook.name
        });
        let Some(run) = run else {
            let order = HookOrder {
                node: moving.name(),
                policy: moving.spec.policy.clone(),
                grant: moving.grant,
                stage,
                hook: hook.name.clone(),
                version: moving.release().map(|release| release.version.clone()),
            };
            let wait = Wait::new(WaitReason::Hook, format!("hook {} starts", hook.name));
            let step = moving.step(Action::RunHook(order), format!("hook {} runs", hook.name));
            return Progress::Running(Box::new(Motion::waits(state, wait).with(step)));
        };
        match &run.state {
            HookState::Succeeded => {}
            HookState::Failed { message } => {
                return Progress::Failed(run.job.clone(), format!("hook {} failed: {message}", hook.name));
            }
            HookState::Running { since } => {
                let until = since.after(hook.timeout);
                if moving.ctx.now >= until {
                    let why = format!("hook {} did not end within {}", hook.name, hook.timeout);
                    return Progress::Failed(run.job.clone(), why);
                }
                let (namespace, name) = run.job.split_once('/').unwrap_or(("", &run.job));
                let wait = Wait::new(WaitReason::Hook, format!("hook {} runs", hook.name));
                let wait = wait.of("Job", Some(namespace), name).until(Some(until));
                return Progress::Running(Box::new(Motion::waits(state, wait)));
            }
        }
    }
    Progress::Done
}
