//! The gates: what must hold before a node is disrupted, each a small function of facts with its own reason.
//!
//! They are asked in the order of [`crate::GATES`]; the first that does not hold is what the node waits for.

use super::{
    budget::{ClusterBudget, PolicyBudget},
    desired::{Desired, Install, made_for_older_state},
    facts::{NodeView, in_the_way},
    health::{Allowance, Answers},
    policy::PolicyView,
    waves::Waves,
};
use crate::{
    Gate, GateSet, Wait,
    drain::Places,
    plan::GateQuestion,
    snapshot::{Cordon, Node},
};
use bascule_api::{DisruptionOutcome, Duration, EmergencyExemption, Time, WaitReason};
use std::sync::Arc;

/// The first wait after a failed drain; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(300);
/// The same after a reboot that came too early, or a staged release that was lost: what interrupted the node is over, and only one
/// that goes on so is to be let alone.
const FIRST_AFTER_INTERRUPTION: Duration = Duration::from_secs(30);
/// The longest wait after failed drains.
const LAST_BACKOFF: Duration = Duration::from_secs(4 * 3_600);

/// A node and what its gates look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'c, 'a> {
    pub(super) index: usize,
    pub(super) view: &'c NodeView<'a>,
    pub(super) policy: &'c PolicyView<'a>,
    pub(super) desired: &'c Desired<'a>,
    pub(super) waves: &'c Waves,
    /// Whether no other node of the policy can still move.
    pub(super) alone: bool,
    /// Whether another node that goes before the operator's own still has to move.
    pub(super) others_first: bool,
    /// Whether this plan has granted a node before it that budgets count for: no budget of that one is broken for it.
    pub(super) behind_others: bool,
    pub(super) now: Time,
    pub(super) set: GateSet,
}

type Answer = Option<Arc<Wait>>;
type Ask = fn(&Candidate<'_, '_>) -> Answer;

/// The gates that look at the node and its policy alone, in their order.
const OWN: [(Gate, Ask); 21] = [
    (Gate::Agent, agent),
    (Gate::BootCounting, boot_counting),
    (Gate::NotPaused, not_paused),
    (Gate::NoFreeze, not_frozen),
    (Gate::NotHalted, not_halted),
    (Gate::Repository, repository),
    (Gate::Release, release),
    (Gate::NotFailedHere, not_failed_here),
    (Gate::Age, age),
    (Gate::RollbackRetention, retention),
    (Gate::Skew, skew),
    (Gate::Staged, staged),
    (Gate::Window, window),
    (Gate::Fits, fits),
    (Gate::Wave, |candidate| wave(candidate, WaitReason::Wave)),
    (Gate::WaveSoak, |candidate| wave(candidate, WaitReason::WaveSoak)),
    (Gate::NotCordoned, not_cordoned),
    (Gate::NotLeaving, not_leaving),
    (Gate::Ready, ready),
    (Gate::Backoff, backoff),
    (Gate::Drainable, drainable),
];

/// The gates that a release has to pass before it is staged. Windows, waves, freezes and budgets are about disruption
/// and do not hold staging back, which is harmless.
const BEFORE_STAGING: [Gate; 9] = [
    Gate::Agent,
    Gate::BootCounting,
    Gate::NotPaused,
    Gate::NotHalted,
    Gate::Repository,
    Gate::Release,
    Gate::NotFailedHere,
    Gate::Age,
    Gate::RollbackRetention,
];

/// The first of a node's own gates that does not hold.
pub(super) fn own(candidate: &Candidate<'_, '_>) -> Option<(Gate, Arc<Wait>)> {
    OWN.iter().filter(|(gate, _)| candidate.set.asks(*gate)).find_map(|(gate, ask)| Some((*gate, ask(candidate)?)))
}

/// Gates that may hold a node for days: somebody's decision, or the rollout's own order. A new node is not held meanwhile,
/// since pods may have nowhere else to go.
const MAY_TAKE_DAYS: [Gate; 10] = [
    Gate::BootCounting,
    Gate::NotPaused,
    Gate::NoFreeze,
    Gate::NotHalted,
    Gate::Repository,
    Gate::Age,
    Gate::RollbackRetention,
    Gate::Skew,
    Gate::Wave,
    Gate::WaveSoak,
];

/// Whether a node waits for something that may take days. A gate that does not hold because something is `unknown` yet says
/// nothing of that.
pub(super) fn may_take_days(candidate: &Candidate<'_, '_>, unknown: impl Fn(Gate) -> bool) -> bool {
    let asked = OWN.iter().filter(|(gate, _)| MAY_TAKE_DAYS.contains(gate) && !unknown(*gate));
    asked.map(|(_, ask)| ask).any(|ask| ask(candidate).is_some())
}

/// The first gate that keeps the release from being staged.
pub(super) fn before_staging(candidate: &Candidate<'_, '_>) -> Option<Arc<Wait>> {
    let asked = OWN.iter().filter(|(gate, _)| BEFORE_STAGING.contains(gate) && candidate.set.asks(*gate));
    asked.map(|(_, ask)| ask(candidate)).find_map(|wait| wait)
}

/// Why a node can't be emptied now.
fn without_place<'a>(places: &mut Places<'a>, node: &'a Node) -> Option<Wait> {
    const WAY_OUT: &str = "spec.drain.waitForPlaces: false does not wait for one";
    let of = |pod: &str, message: String| {
        let (namespace, name) = pod.split_once('/').unwrap_or(("", pod));
        Wait::new(WaitReason::PodFitsNowhere, message).of("Pod", Some(namespace), name)
    };
    if let Some((pod, needs)) = places.without_place(node) {
        let needs = needs.in_words();
        return Some(of(pod, format!("no other node could take pod {pod}, which needs {needs} ({WAY_OUT})")));
    }
    let (pod, _) = places.last_place_of(node)?;
    Some(of(pod, format!("only this node could take pod {pod}, whose own node is being emptied ({WAY_OUT})")))
}

/// The gates that look at what other nodes do, this plan's grants included.
pub(super) fn shared<'a>(
    candidate: &Candidate<'_, 'a>,
    budget: &mut PolicyBudget<'a>,
    cluster: &mut ClusterBudget<'a>,
    answers: Answers<'a>,
    allowance: &mut Allowance,
    places: &mut Places<'a>,
    questions: &mut Vec<GateQuestion>,
) -> Option<(Gate, Arc<Wait>)> {
    let view = candidate.view;
    let set = candidate.set;
    let ignores_budgets = candidate.desired.ignores_budgets() && !candidate.behind_others;
    let held = |gate: Gate, wait: Option<Wait>| Some((gate, Arc::new(wait?)));
    if set.asks(Gate::DisruptionBudget)
        && let Some(valid) = candidate.policy.valid
        && let found @ Some(_) = held(Gate::DisruptionBudget, cluster.disruption_budget(view, &valid.spec.drain, set))
    {
        return found;
    }
    if set.asks(Gate::Fits)
        && candidate.policy.one_at_a_time
        && !ignores_windows(candidate)
        && let Some(wait) = budget.alone(view)
    {
        return Some((Gate::Fits, wait));
    }
    if !ignores_budgets {
        if set.asks(Gate::Budget)
            && let Some(wait) = budget.policy(view)
        {
            return Some((Gate::Budget, wait));
        }
        if set.asks(Gate::Domain)
            && let Some(wait) = budget.domain(view)
        {
            return Some((Gate::Domain, wait));
        }
        if set.asks(Gate::ClusterMaxUnavailable)
            && let Some(wait) = cluster.ceiling(view)
        {
            return Some((Gate::ClusterMaxUnavailable, wait));
        }
    }
    if set.asks(Gate::ControlPlane)
        && let found @ Some(_) = held(Gate::ControlPlane, cluster.control_plane(view))
    {
        return found;
    }
    if set.asks(Gate::OperatorLast) && view.traits.runs_operator && candidate.others_first {
        return Some(operator_last());
    }
    // A way back leaves a release that is worse than a pod without a place for some minutes.
    if set.asks(Gate::Place)
        && !candidate.desired.goes_back()
        && let Some(wait) = without_place(places, view.node)
    {
        return held(Gate::Place, Some(wait));
    }
    if set.asks(Gate::Health) && !candidate.desired.goes_back() {
        let asked = answers.ask(candidate.policy, candidate.view, candidate.now, None, allowance);
        questions.extend(asked.questions);
        return held(Gate::Health, asked.failing);
    }
    None
}

/// The operator's own node waits for others.
pub(super) fn operator_last() -> (Gate, Arc<Wait>) {
    let wait = Wait::new(WaitReason::OperatorNode, "the operator runs here; the other nodes go first");
    (Gate::OperatorLast, Arc::new(wait))
}

fn agent(candidate: &Candidate<'_, '_>) -> Answer {
    if candidate.view.traits.agent_reports {
        return None;
    }
    let message = match candidate.view.update().map(|update| &update.status) {
        None => "the NodeUpdate is not there yet",
        Some(status) if status.booted.is_none() => "the agent has not reported yet",
        Some(_) => "the node rebooted and its agent has not reported from this boot",
    };
    let message = candidate.view.node.silence_of_agent(message);
    Some(Arc::new(Wait::new(WaitReason::AgentNotReporting, message).of("Node", None, &candidate.view.node.name)))
}

fn boot_counting(candidate: &Candidate<'_, '_>) -> Answer {
    let broken = candidate.view.traits.counting_broken;
    broken.then(|| {
        let message = "the boot loader does not count tries, so a release that does not come up would not go away";
        Arc::new(Wait::new(WaitReason::BootCountingBroken, message).of("Node", None, &candidate.view.node.name))
    })
}

fn not_paused(candidate: &Candidate<'_, '_>) -> Answer {
    // A person who writes a Rollback means it, and the policy may well be paused because of the release. What the policy
    // would do by itself is paused.
    if candidate.desired.rollback().is_some() { None } else { candidate.policy.paused.clone() }
}

fn not_frozen(candidate: &Candidate<'_, '_>) -> Answer {
    let policy = candidate.policy;
    policy.frozen.clone().or_else(|| policy.orders.held(&candidate.view.node.name))
}

fn not_halted(candidate: &Candidate<'_, '_>) -> Answer {
    if candidate.desired.goes_back() { None } else { candidate.policy.halted.clone() }
}

fn repository(candidate: &Candidate<'_, '_>) -> Answer {
    // A way back without a download needs nobody.
    if matches!(candidate.desired, Desired::GoBack(_)) { None } else { candidate.policy.repository.clone() }
}

fn release(candidate: &Candidate<'_, '_>) -> Answer {
    match candidate.desired {
        Desired::Nothing(wait) => Some(Arc::clone(wait)),
        desired => made_for_older_state(candidate.view, desired).map(Arc::new),
    }
}

fn not_failed_here(candidate: &Candidate<'_, '_>) -> Answer {
    let Desired::Install(install) = candidate.desired else { return None };
    let version = &install.release.version;
    // What is forgotten now (spec.retries) counts until that is written.
    let written = &candidate.policy.facts.status.failures;
    let (reports, failures) = (candidate.view.traits.has_failed, &candidate.policy.memory.failures);
    if !reports && failures.is_empty() && written.is_empty() {
        return None;
    }
    let update = candidate.view.update()?;
    let reported = update.status.failed_releases.iter().find(|failed| failed.version == *version);
    let message = match reported {
        Some(failed) => format!("{version} failed here at {}: {}", failed.at, failed.message),
        None => {
            let known = failures
                .iter()
                .chain(written)
                .find(|failure| failure.version == *version && *failure.node == *candidate.view.node.name)?;
            format!("{version} failed here at {}: {}", known.at, known.message)
        }
    };
    Some(Arc::new(Wait::new(WaitReason::FailedHere, message).of("NodeUpdate", None, &candidate.view.node.name)))
}

fn age(candidate: &Candidate<'_, '_>) -> Answer {
    match candidate.desired {
        Desired::Install(install) => install.young.clone(),
        Desired::Here | Desired::Nothing(_) | Desired::GoBack(_) => None,
    }
}

fn retention(candidate: &Candidate<'_, '_>) -> Answer {
    let Desired::Install(Install { release, rollback: None, .. }) = candidate.desired else { return None };
    let (view, valid) = (candidate.view, candidate.policy.valid?);
    if !view.traits.keeps_old {
        return None;
    }
    let other = view.other_slot()?;
    if other.version.as_ref() == Some(&release.version) {
        return None;
    }
    let running = view.running()?;
    let proven = view.done_since(candidate.now).after(valid.spec.proven_after);
    if candidate.now >= proven {
        return None;
    }
    let back = other.version.as_ref().map_or("", |version| version.as_str());
    let message =
        format!("the other slot keeps {back}, the way back, until {running} has run for {}", valid.spec.proven_after);
    Some(Arc::new(Wait::new(WaitReason::RollbackRetention, message).until(Some(proven))))
}

/// How many minor versions a kubelet may be older than the API server (Kubernetes, "Version Skew Policy").
const OLDER: u16 = 3;

/// Kubernetes' version skew policy: a kubelet is no newer than any API server, and three minor versions older at most.
fn skew(candidate: &Candidate<'_, '_>) -> Answer {
    let offer = &candidate.policy.facts.offer;
    let release = match candidate.desired {
        Desired::Install(install) => install.release,
        Desired::GoBack(back) => offer.release(&back.to)?,
        Desired::Here | Desired::Nothing(_) => return None,
    };
    let kubelet = release.kubelet?;
    let brings = format!("{} brings kubelet {kubelet}", release.version);
    let message = match candidate.policy.api_server {
        None => format!("{brings}, and no API server has said its version yet"),
        // A control plane that brings its own API server is how the API servers get newer.
        Some(server) if kubelet > server && !(release.brings_api_server && candidate.view.traits.control_plane) => {
            format!("{brings}, and the oldest API server is {server}: a kubelet must not be newer")
        }
        Some(server) if kubelet.major != server.major || server.minor.saturating_sub(kubelet.minor) > OLDER => {
            format!("{brings}, and the oldest API server is {server}: a kubelet may be {OLDER} minor versions older")
        }
        Some(_) => return None,
    };
    Some(Arc::new(Wait::new(WaitReason::VersionSkew, message)))
}

fn staged(candidate: &Candidate<'_, '_>) -> Answer {
    let Desired::Install(install) = candidate.desired else { return None };
    let (view, version) = (candidate.view, &install.release.version);
    let asked = install.is_asked(view.traits);
    if asked && view.traits.staged_as_asked {
        return None;
    }
    let update = view.update()?;
    if !asked {
        let message = format!("{version} is to be staged; other nodes are staging");
        return Some(Arc::new(Wait::new(WaitReason::StagingQueue, message)));
    }
    let status = &update.status;
    if let Some(error) = in_the_way(status) {
        let message = format!("{}: {}", error.category.as_str(), error.message);
        let wait = Wait::new(WaitReason::StagingFailed, message).of("NodeUpdate", None, &view.node.name);
        return Some(Arc::new(wait.until(error.next_try)));
    }
    // How far it is the agent says itself, in status.transfer.
    let transfer = status.transfer.as_ref().filter(|transfer| transfer.version == *version);
    let message = match transfer.and_then(|transfer| transfer.paused.as_ref()) {
        Some(why) => format!("{version} is being staged, paused: {why}"),
        None => format!("{version} is being staged"),
    };
    Some(Arc::new(Wait::new(WaitReason::Transferring, message)))
}

/// Whether windows do not bind this node: a Rollback that does not respect them, an automatic rollback, an urgent
/// release, or a new node that is held and has no work to disturb.
fn ignores_windows(candidate: &Candidate<'_, '_>) -> bool {
    let urgent = match candidate.desired {
        Desired::Install(install) => candidate.policy.skips(install.target, EmergencyExemption::MaintenanceWindow),
        Desired::Here | Desired::Nothing(_) | Desired::GoBack(_) => false,
    };
    let back =
        candidate.desired.goes_back() && candidate.desired.rollback().is_none_or(|rollback| !rollback.respect_windows);
    urgent || back || candidate.view.traits.held
}

fn window(candidate: &Candidate<'_, '_>) -> Answer {
    if ignores_windows(candidate) { None } else { candidate.policy.closed.clone() }
}

fn fits(candidate: &Candidate<'_, '_>) -> Answer {
    if ignores_windows(candidate) { None } else { candidate.policy.too_short.clone() }
}

fn wave(candidate: &Candidate<'_, '_>, reason: WaitReason) -> Answer {
    let urgent = match candidate.desired {
        Desired::Install(install) => candidate.policy.skips(install.target, EmergencyExemption::Wave),
        Desired::Here | Desired::Nothing(_) | Desired::GoBack(_) => false,
    };
    if urgent || candidate.desired.goes_back() {
        return None;
    }
    candidate.waves.holds(candidate.index).filter(|wait| wait.reason == reason).cloned()
}

fn not_cordoned(candidate: &Candidate<'_, '_>) -> Answer {
    if !candidate.view.traits.cordoned_by_other {
        return None;
    }
    // Who cordons a bad node and then orders by name that it goes back means this node. It stays cordoned afterwards.
    let name = &candidate.view.node.name;
    if candidate.desired.rollback().is_some_and(|rollback| rollback.nodes.iter().any(|named| **named == **name)) {
        return None;
    }
    let Cordon::Other { by, since } = &candidate.view.node.cordon else { return None };
    let mut message = "somebody else cordoned the node".to_owned();
    if let Some(by) = by {
        message = format!("{by} cordoned the node");
    }
    if let Some(since) = since {
        message.push_str(&format!(" at {since}"));
    }
    Some(Arc::new(Wait::new(WaitReason::Cordoned, message).of("Node", None, &candidate.view.node.name)))
}

fn not_leaving(candidate: &Candidate<'_, '_>) -> Answer {
    let taint = candidate.view.node.leaving.as_ref()?;
    let message = format!("an autoscaler is removing the node (taint {taint})");
    Some(Arc::new(Wait::new(WaitReason::NodeLeaving, message).of("Node", None, &candidate.view.node.name)))
}

fn ready(candidate: &Candidate<'_, '_>) -> Answer {
    let taken = candidate.view.traits.ready || candidate.alone || candidate.desired.goes_back();
    (!taken).then(|| not_ready(candidate))
}

pub(super) fn not_ready(candidate: &Candidate<'_, '_>) -> Arc<Wait> {
    let message = "the node is not Ready; it is tried when nothing else is left to do";
    Arc::new(Wait::new(WaitReason::NodeNotReady, message).of("Node", None, &candidate.view.node.name))
}

fn backoff(candidate: &Candidate<'_, '_>) -> Answer {
    let last = candidate.view.update()?.spec.last_disruption.as_ref()?;
    // A disruption that was withdrawn in between does not make the drain any better.
    if last.given_up == 0 {
        return None;
    }
    let until = last.ended_at.after(backoff_after(last.outcome, last.given_up));
    if candidate.now >= until {
        return None;
    }
    let message = format!("{} (tried {} times)", last.message, last.given_up);
    Some(Arc::new(Wait::new(WaitReason::DrainBackoff, message).until(Some(until))))
}

/// How long a node waits after so many disruptions in a row that were given up, the last of them in this way.
pub(super) fn backoff_after(outcome: DisruptionOutcome, given_up: u32) -> Duration {
    let first = if outcome == DisruptionOutcome::Interrupted { FIRST_AFTER_INTERRUPTION } else { FIRST_BACKOFF };
    let doubled = first.as_secs() << given_up.saturating_sub(1).min(10);
    Duration::from_secs(doubled.min(LAST_BACKOFF.as_secs()))
}

fn drainable(candidate: &Candidate<'_, '_>) -> Answer {
    let pods = &candidate.view.node.pods.undrainable;
    let first = pods.first()?;
    let (namespace, name) = first.pod.split_once('/').unwrap_or(("", &first.pod));
    let more = if pods.len() > 1 { format!(" (and {} more)", pods.len() - 1) } else { String::new() };
    let message = format!("pod {} can't be evicted: {}{more}", first.pod, first.why);
    let until = pods.iter().map(|pod| pod.until).max().flatten().filter(|_| pods.iter().all(|pod| pod.until.is_some()));
    Some(Arc::new(Wait::new(WaitReason::UndrainablePod, message).of("Pod", Some(namespace), name).until(until)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_waits_for_minutes_and_what_was_interrupted_for_half_a_minute() {
        let waits = |outcome, times: [u32; 4]| times.map(|given_up| backoff_after(outcome, given_up).as_secs());
        assert_eq!(waits(DisruptionOutcome::DrainFailed, [1, 2, 7, 100]), [300, 600, 14_400, 14_400]);
        assert_eq!(waits(DisruptionOutcome::Interrupted, [1, 2, 7, 100]), [30, 60, 1_920, 14_400]);
    }
}
