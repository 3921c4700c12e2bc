//! From the grant to the word to reboot: hooks, cordon, drain. Everything here can be undone.

use super::{KeptOrder, Motion, Moving, hooks};
use crate::{
    Action, Rule, Step, Wait,
    decide::desired::{Desired, GoBack},
    plan::{DrainMode, DrainOrder},
    snapshot::{BlockedPod, Cordon, Excluded, HookStage, Truce},
};
use bascule_api::{DisruptionOutcome, DrainProgress, Duration, Goal, OnTimeout, RolloutState, Time, WaitReason};
use std::sync::Arc;

/// However short drains and hooks may be: as long as this the API server has to take the writes that come before them.
pub(super) const WRITES_TAKE: Duration = Duration::from_secs(60);

pub(super) fn next(moving: &Moving<'_, '_>) -> Motion {
    if moving.agent_is_back() && moving.runs_asked() && moving.view.traits.on_trial {
        // The word to reboot was taken back and the agent was faster.
        return super::trial::next(moving, moving.disruption.granted_at);
    }
    if moving.agent_is_back() || moving.kubelet_is_back() {
        // It has its pause: the order between nodes would give it the place again at once, for the next drain in vain.
        return give_up(moving, DisruptionOutcome::Interrupted, "the node rebooted before it was told to");
    }
    if let Some(why) = withdrawn(moving) {
        return give_up(moving, DisruptionOutcome::Withdrawn, &why);
    }
    let Some(started) = moving.disruption.drain_started_at else { return before_drain(moving) };
    drain(moving, started)
}

/// Why the node is not to be disrupted any more.
fn withdrawn(moving: &Moving<'_, '_>) -> Option<String> {
    let Some(policy) = moving.policy else { return Some(moving.let_go()) };
    if let Some(why) = policy.orders.undone(&moving.view.node.name) {
        return Some(why.to_owned());
    }
    let by_rollback = moving.by_rollback();
    match moving.desired {
        Desired::GoBack(_) => (moving.spec.goal == Goal::Staged && !by_rollback && !staged_as_desired(moving))
            .then(|| "the node is to go back instead".to_owned()),
        Desired::Install(install) if moving.release().is_some_and(|asked| asked.version == install.release.version) => {
            None
        }
        // A newer release appeared: what is under way is finished, unless it must not be installed any more.
        Desired::Install(_) | Desired::Here | Desired::Nothing(_) => {
            let Some(asked) = moving.release().filter(|_| moving.spec.goal == Goal::Staged && !by_rollback) else {
                return Some("the way back is not asked for any more".to_owned());
            };
            let release = policy.facts.offer.release(&asked.version);
            if policy.is_blocked(&asked.version) {
                Some(format!("{} was blocked", asked.version))
            } else if release.is_some_and(|release| release.withdrawn.is_some()) {
                Some(format!("{} was withdrawn", asked.version))
            } else if moving.runs_asked() {
                Some(format!("the node runs {} already", asked.version))
            } else if policy.rollbacks.iter().any(|rollback| rollback.forbids(moving.view, &asked.version)) {
                Some(format!("a Rollback leaves {}", asked.version))
            } else if moving.view.update().is_some_and(|update| {
                update.status.failed_releases.iter().any(|failed| failed.version == asked.version)
            }) {
                Some(format!("{} failed on this node", asked.version))
            } else if policy
                .valid
                .and_then(|valid| valid.spec.version.as_ref())
                .is_some_and(|pin| *pin != asked.version)
            {
                Some(format!("the policy pins another release than {}", asked.version))
            } else {
                None
            }
        }
    }
}

/// A node that was granted for a way back before something else was staged goes back all the same.
fn staged_as_desired(moving: &Moving<'_, '_>) -> bool {
    !moving.view.traits.staged_as_asked
}

/// Asks autoscalers to leave the node alone, and with the drain load balancers, where our cordon does not do so in the same
/// write; and who is asked.
fn truce(moving: &Moving<'_, '_>, drains: bool) -> Option<(Step, &'static str)> {
    let node = moving.view.node;
    let theirs = drains && matches!(node.cordon, Cordon::Other { .. });
    let exclude = theirs && node.excluded == Excluded::No && moving.ctx.set.keeps(Rule::OutOfLoadBalancers);
    let asks = node.truce != Truce::Held && moving.ctx.set.keeps(Rule::Truce);
    (asks || exclude).then(|| {
        let whom = if exclude { "autoscalers and load balancers" } else { "autoscalers" };
        (moving.step(Action::Truce { node: moving.name(), exclude }, ""), whom)
    })
}

/// A write that comes before anybody is asked to go. Where it still fails when its time is over the node is given back: others would
/// wait for the place that it takes.
fn first(moving: &Moving<'_, '_>, step: Step, by: Time, (says, in_vain): (&str, &str)) -> Motion {
    if let Some(words) = moving.refused_beyond(&step.action, by) {
        return give_up(moving, DisruptionOutcome::DrainFailed, &format!("{in_vain}: {words}"));
    }
    let until = Some(by).filter(|by| moving.ctx.now < *by);
    Motion::waits(RolloutState::Draining, Wait::new(WaitReason::Draining, says).until(until)).with(step)
}

fn ask_for_truce(moving: &Moving<'_, '_>, (step, whom): (Step, &str), by: Time) -> Motion {
    let says = format!("{whom} are asked to leave the node alone");
    let in_vain = format!("{whom} could not be asked in time to leave the node alone");
    first(moving, step, by, (&says, &in_vain))
}

fn before_drain(moving: &Moving<'_, '_>) -> Motion {
    if let Some(asked) = truce(moving, false) {
        let by = moving.disruption.granted_at.after(moving.drain().timeout.max(WRITES_TAKE));
        return ask_for_truce(moving, asked, by);
    }
    let policy_hooks = moving.hooks();
    match hooks::next(moving, HookStage::BeforeDrain, &policy_hooks.before_drain) {
        hooks::Progress::Done(notes) => {
            let wait = Wait::new(WaitReason::Draining, "the drain begins");
            let begin = Action::BeginDrain { node: moving.name(), at: moving.ctx.now };
            let mut motion = Motion::waits(RolloutState::Draining, wait);
            motion.steps = notes;
            motion.with(moving.step(begin, ""))
        }
        hooks::Progress::Running(motion) => *motion,
        hooks::Progress::Failed(_, why, _) => give_up(moving, DisruptionOutcome::DrainFailed, &why),
    }
}

fn drain(moving: &Moving<'_, '_>, started: Time) -> Motion {
    let settings = moving.drain();
    let node = moving.view.node;
    // Where a person's own cordon was there at the grant nothing carries our mark.
    let theirs = moving.disruption.was_cordoned && node.cordon == Cordon::None;
    let lifted = theirs || node.cordon == (Cordon::Lifted { mark: moving.mark() });
    if lifted && moving.ctx.set.keeps(Rule::PersonsUncordon) {
        // Whoever uncordons a node in the middle of its drain wants it to work on.
        let why = "somebody uncordoned the node while it was being drained (a Freeze or spec.paused holds it longer)";
        return give_up(moving, DisruptionOutcome::Uncordoned, why);
    }
    let begins = started.after(settings.load_balancer_delay);
    let deadline = begins.after(settings.timeout);
    let by = begins.after(settings.timeout.max(WRITES_TAKE));
    if !node.cordon.is_cordoned() {
        let mut step = moving.step(Action::Cordon { node: moving.name(), mark: moving.mark() }, "takes no new pods");
        step.expect.cordon = Some(crate::plan::Cordon::None);
        let says = "the node is being cordoned and taken out of load balancers";
        let motion = first(moving, step, by, (says, "the node could not be cordoned in the drain's time"));
        return keeping(moving, motion, deadline);
    }
    if let Some(asked) = truce(moving, true) {
        return keeping(moving, ask_for_truce(moving, asked, by), deadline);
    }
    if moving.ctx.now < begins {
        let wait = Wait::new(WaitReason::LoadBalancers, "load balancers take the node out").until(Some(begins));
        return keeping(moving, Motion::waits(RolloutState::Draining, wait), deadline);
    }
    // A pod that may not be evicted came meanwhile: the node is not empty.
    if node.pods.remaining == 0 && node.pods.undrainable.is_empty() {
        let kept = empty(moving, deadline);
        return detaching(moving, &kept).unwrap_or_else(|| drained(moving, &kept));
    }
    let patient = settings.on_timeout != OnTimeout::Delete || moving.ctx.set.keeps(Rule::DeleteAfterTimeout);
    if moving.ctx.now < deadline && patient {
        return match closed_budget(moving, begins) {
            Some((until, budget)) if moving.ctx.now >= until => {
                give_up(moving, DisruptionOutcome::DrainFailed, &budget)
            }
            Some((until, _)) => evicting(moving, deadline.min(until), DrainMode::Evict),
            None => evicting(moving, deadline, DrainMode::Evict),
        };
    }
    match settings.on_timeout {
        OnTimeout::Abort => give_up(moving, DisruptionOutcome::DrainFailed, &left(moving, "the drain's time is over")),
        OnTimeout::Delete => {
            let last = deadline.after(settings.timeout);
            if moving.ctx.now < last {
                evicting(moving, last, DrainMode::DeleteRest)
            } else {
                give_up(
                    moving,
                    DisruptionOutcome::DrainFailed,
                    &left(moving, "pods do not go although they were deleted"),
                )
            }
        }
        OnTimeout::Hold => {
            let wait = Wait::new(WaitReason::DrainHeld, left(moving, "the drain's time is over and the policy holds"));
            let mut motion = Motion::waits(RolloutState::Draining, wait);
            motion.progress = progress(moving);
            // Or the node would never be empty, whatever a person resolves, where one came back and was given up.
            keeping(moving, motion, deadline)
        }
    }
}

/// A budget that allowed nothing at the grant, was to open after the cordon, and has not so far: until when it may, and what
/// is said if it did not.
fn closed_budget(moving: &Moving<'_, '_>, begins: Time) -> Option<(Time, String)> {
    let within = moving.disruption.budgets_open_within?;
    let until = begins.after(within);
    let pods = &moving.view.node.pods;
    // One that made pods wait and does so no more has opened; that it allows nothing now is the drain's own doing.
    let opened = |key: &str| {
        pods.waited.iter().any(|(budget, _)| {
            key.split_once('/') == Some((budget.namespace.as_deref().unwrap_or_default(), budget.name.as_str()))
        })
    };
    let any = !moving.ctx.set.keeps(Rule::ClosedAtGrant);
    let mut at_grant = pods.budgets.iter().filter(|(key, _)| any || moving.disruption.closed_budgets.contains(key));
    let (key, budget) = at_grant.find_map(|(key, _)| {
        let budget = moving.ctx.budgets.get(key)?;
        (budget.allowed == 0 && !opened(key)).then_some((key, budget))
    })?;
    let standing = budget.standing();
    Some((until, format!("PodDisruptionBudget {key} did not open within {within} of the cordon: {standing}")))
}

fn left(moving: &Moving<'_, '_>, what: &str) -> String {
    let pods = &moving.view.node.pods;
    match (pods.undrainable.first(), &pods.blocked, &pods.completing) {
        (Some(pod), ..) => format!("{what}: pod {} can't be evicted: {}", pod.pod, pod.why),
        (None, Some(blocked), _) => format!("{what}: {} pods are left; {blocked}", pods.remaining),
        (None, None, Some(completing)) => {
            format!("{what}: {} pods are left; {completing} did not complete", pods.remaining)
        }
        (None, None, None) => format!("{what}: {} pods are left", pods.remaining),
    }
}

fn progress(moving: &Moving<'_, '_>) -> Option<DrainProgress> {
    let pods = &moving.view.node.pods;
    let all = pods.total?.max(pods.remaining);
    Some(DrainProgress { pods: all, gone: all - pods.remaining })
}

/// The drain's order: that of the last plan, where it is the same.
fn order(moving: &Moving<'_, '_>, until: Time, mode: DrainMode) -> KeptOrder {
    if let Some(kept) = moving.kept.filter(|kept| kept.holds(moving, until, mode)) {
        return kept.clone();
    }
    KeptOrder::new(DrainOrder {
        node: moving.name(),
        grant: moving.grant,
        policy: moving.spec.policy.clone(),
        begun: moving.disruption.drain_started_at.unwrap_or(moving.disruption.granted_at),
        until,
        mode,
    })
}

fn evicting(moving: &Moving<'_, '_>, until: Time, mode: DrainMode) -> Motion {
    let pods = &moving.view.node.pods;
    let kept = order(moving, until, mode);
    let hindered = match (pods.undrainable.first(), &pods.blocked, mode) {
        (Some(pod), _, DrainMode::Evict) => {
            Some(Wait::new(WaitReason::UndrainablePod, format!("{} can't be evicted: {}", pod.pod, pod.why)))
        }
        (None, Some(blocked), DrainMode::Evict) => Some(blocked_wait(moving, blocked)),
        _ => None,
    };
    let completing = pods.completing.as_ref().filter(|_| hindered.is_none() && mode == DrainMode::Evict);
    if let Some(completing) = completing {
        let pod = &completing.pod;
        let wait = Wait::new(WaitReason::PodsCompleting, format!("{completing} may complete before the node reboots"));
        let ends = completing.by.filter(|by| *by > moving.ctx.now).map_or(until, |by| by.min(until));
        let wait = wait.of(&pod.kind, pod.namespace.as_deref(), &pod.name).until(Some(ends));
        let mut motion = Motion::waits(RolloutState::Draining, wait);
        motion.progress = progress(moving);
        motion.drain = Some(Arc::clone(&kept.order));
        motion.kept = Some(kept);
        return motion;
    }
    let wait = hindered.map_or_else(|| Arc::clone(&kept.wait), |wait| Arc::new(wait.until(Some(until))));
    let mut motion = Motion::shared(RolloutState::Draining, wait);
    motion.progress = progress(moving);
    motion.drain = Some(Arc::clone(&kept.order));
    motion.kept = Some(kept);
    motion
}

/// Why a pod that is asked to go stays, with what stands in its way.
fn blocked_wait(moving: &Moving<'_, '_>, blocked: &BlockedPod) -> Wait {
    let pod = &blocked.pod;
    if let Some(budget) = &blocked.budget {
        let namespace = budget.namespace.as_deref();
        let key = format!("{}/{}", namespace.unwrap_or_default(), budget.name);
        let standing = moving.ctx.budgets.get(&key).map_or_else(|| blocked.why.clone(), |known| known.standing());
        let more = if blocked.more > 0 { format!(" and {} more", blocked.more) } else { String::new() };
        let message = format!("{pod}{more} waits for {budget}: {standing}");
        return Wait::new(WaitReason::DisruptionBudget, message).of(&budget.kind, namespace, &budget.name);
    }
    let reason = if blocked.permanent { WaitReason::UndrainablePod } else { WaitReason::Draining };
    Wait::new(reason, blocked.to_string()).of(&pod.kind, pod.namespace.as_deref(), &pod.name)
}

/// The order of a drain that has emptied its node. It stands until the word to reboot is written: one that began anew would not
/// know whom it gave up, nor what it waited for.
fn empty(moving: &Moving<'_, '_>, deadline: Time) -> KeptOrder {
    let settings = moving.drain();
    match settings.on_timeout {
        OnTimeout::Delete if moving.ctx.now >= deadline => {
            order(moving, deadline.after(settings.timeout), DrainMode::DeleteRest)
        }
        _ => order(moving, deadline, DrainMode::Evict),
    }
}

/// A drain that asks nobody for now keeps what it knows: a person may have lifted a cordon or a truce in its middle. One that is given
/// up knows nothing any more.
fn keeping(moving: &Moving<'_, '_>, mut motion: Motion, deadline: Time) -> Motion {
    if motion.state == RolloutState::Draining {
        keep(moving, &mut motion, &order(moving, deadline, DrainMode::Keep));
    }
    motion
}

fn keep(moving: &Moving<'_, '_>, motion: &mut Motion, kept: &KeptOrder) {
    if moving.ctx.set.keeps(Rule::DrainStands) {
        motion.drain = Some(Arc::clone(&kept.order));
        motion.kept = Some(kept.clone());
    }
}

/// Pods are gone, and volumes of theirs are still attached: whoever gets them next would wait for this node's reboot.
fn detaching(moving: &Moving<'_, '_>, kept: &KeptOrder) -> Option<Motion> {
    let attached = &moving.view.node.pods.attached;
    let first = attached.first()?;
    let within = moving.drain().volume_detach_timeout;
    let names = attached.join(", ");
    let emptied = moving.disruption.emptied_at;
    let until = emptied.unwrap_or(moving.ctx.now).after(within);
    if moving.ctx.now >= until || !moving.ctx.set.keeps(Rule::VolumesFirst) {
        return None;
    }
    let message = format!("volumes of pods that have left are still attached: {names}");
    let wait = Wait::new(WaitReason::VolumesDetaching, message).of("PersistentVolume", None, first).until(Some(until));
    let mut motion = Motion::waits(RolloutState::Draining, wait);
    motion.progress = progress(moving);
    keep(moving, &mut motion, kept);
    Some(match emptied {
        Some(_) => motion,
        None => motion.with(moving.step(Action::Emptied { node: moving.name(), at: moving.ctx.now }, "")),
    })
}

/// The node is empty: the word to reboot.
fn drained(moving: &Moving<'_, '_>, kept: &KeptOrder) -> Motion {
    let at = moving.ctx.now;
    let took = at.seconds_since(moving.disruption.drain_started_at.unwrap_or(at));
    let pods = &moving.view.node.pods;
    let mut says = format!("empty after {}", bascule_api::Duration::from_secs(u64::try_from(took).unwrap_or(0)));
    if let Some(total) = pods.total {
        says.push_str(&format!(": {total} pods"));
    }
    for (budget, waited) in &pods.waited {
        says.push_str(&format!(", {waited} of it for {budget}"));
    }
    if !pods.attached.is_empty() {
        says.push_str(&format!(
            "; still attached after {}: {}",
            moving.drain().volume_detach_timeout,
            pods.attached.join(", ")
        ));
    }
    if !pods.stuck.is_empty() {
        says.push_str(&format!("; was not detached before the drain either: {}", pods.stuck.join(", ")));
    }
    if !pods.coming_back.is_empty() {
        let names = pods.coming_back.join(", ");
        says.push_str(&format!("; left there, since they come back whenever they are evicted: {names}"));
    }
    if !pods.skipped.is_empty() {
        says.push_str(&format!("; left for the reboot: {}", pods.skipped.join(", ")));
    }
    let (action, what) = match moving.desired {
        Desired::GoBack(back) => {
            let GoBack { leaves, to, .. } = &**back;
            let revert = Action::Revert {
                node: moving.name(),
                release: leaves.clone(),
                drained_at: Some(at),
                daemon_sets: moving.daemon_sets(),
            };
            (revert, format!("the node goes back to {to}"))
        }
        _ if moving.spec.goal == Goal::Staged && moving.view.traits.staged_as_asked => {
            let boot = Action::Boot { node: moving.name(), drained_at: at, daemon_sets: moving.daemon_sets() };
            (boot, super::REBOOTING.to_owned())
        }
        _ => return give_up(moving, DisruptionOutcome::Interrupted, "the release is not staged any more"),
    };
    let mut step = moving.step(action, says);
    step.expect.boot_id = Some(moving.granted_boot.to_owned());
    // What a leader that died had sent may land still, its uncordon too: a node that takes pods is not told to reboot.
    if let Cordon::Ours { mark } = &moving.view.node.cordon {
        step.expect.cordon = Some(crate::plan::Cordon::Ours(mark.clone()));
    }
    let until = at.after(moving.health().node_ready_timeout);
    let mut motion = Motion::waits(RolloutState::Rebooting, Wait::new(WaitReason::Rebooting, what).until(Some(until)));
    keep(moving, &mut motion, kept);
    motion.with(step)
}

/// Undoes what was done: the node takes work again on its old release.
pub(super) fn give_up(moving: &Moving<'_, '_>, outcome: DisruptionOutcome, why: &str) -> Motion {
    let reason = match outcome {
        DisruptionOutcome::DrainFailed
        | DisruptionOutcome::NotRebooted
        | DisruptionOutcome::Interrupted
        | DisruptionOutcome::Uncordoned => WaitReason::DrainBackoff,
        _ => WaitReason::Queued,
    };
    let goal = if moving.spec.goal == Goal::Staged { Goal::Staged } else { Goal::Idle };
    let motion = Motion::waits(RolloutState::Waiting, Wait::new(reason, why));
    moving.end(motion, outcome, goal, why, format!("is not disrupted after all: {why}"))
}
