//! The answers of health gates. A gate without a fresh answer does not pass.

use super::{facts::NodeView, policy::PolicyView};
use crate::{
    GateSet, Rule, Wait,
    plan::GateQuestion,
    report::{ASKED_OF_OTHERS, NOT_ASKED, NOT_FRESH, NOT_SINCE},
    snapshot::{GateAnswer, Missed},
};
use bascule_api::{Duration, Time, WaitReason};

/// How old an answer may be.
pub(super) const FRESH: Duration = Duration::from_secs(120);

/// How many nodes that wait for nothing but gates of their own are asked about for the first time in one plan.
const NEW_NODES: usize = 32;
/// About how many such nodes gates are asked at once.
const MOST_NODES: usize = 1_024;

/// All answers that are known, and the rules by which they are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answers<'a>(pub(super) &'a [GateAnswer], pub(super) GateSet);

/// What a policy's gates say.
#[derive(Debug)]
pub(super) struct Asked {
    /// The first that does not pass.
    pub(super) failing: Option<Wait>,
    /// Whether one that speaks of the node itself says no.
    pub(super) node_fails: bool,
    /// Those that speak of the cluster and say no.
    pub(super) cluster_fails: Vec<String>,
    /// Whether one has not been asked yet, or too long ago.
    pub(super) open: bool,
    /// Since when all pass.
    pub(super) since: Time,
    /// The gate that came to pass last, as far as is known, and when it did not.
    pub(super) missed: Option<MissedGate>,
    /// What has to be asked, again or for the first time.
    pub(super) questions: Vec<GateQuestion>,
}

/// A gate that passes now and did not before.
#[derive(Debug, Clone)]
pub(super) struct MissedGate {
    pub(super) gate: String,
    pub(super) per_node: bool,
    pub(super) missed: Missed,
}

/// How many more questions about single nodes a plan may have, so that a gate that is asked for each node of a thousand
/// does not mean a thousand questions at once.
#[derive(Debug)]
pub(super) struct Allowance {
    new: usize,
    all: usize,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { new: NEW_NODES, all: MOST_NODES }
    }
}

impl Allowance {
    /// For nodes that move, of which there are few.
    pub(super) const fn unlimited() -> Self {
        Self { new: usize::MAX, all: usize::MAX }
    }

    fn take(&mut self, new: bool) -> bool {
        if self.all == 0 || (new && self.new == 0) {
            return false;
        }
        self.all -= 1;
        self.new -= usize::from(new);
        true
    }
}

impl Answers<'_> {
    /// What the gates of a policy say about a node, by answers that are no older than `since`, where that is said.
    pub(super) fn ask(
        self,
        policy: &PolicyView<'_>,
        view: &NodeView<'_>,
        now: Time,
        since: Option<Time>,
        allowance: &mut Allowance,
    ) -> Asked {
        let mut out = Asked {
            failing: None,
            node_fails: false,
            cluster_fails: Vec::new(),
            open: false,
            since: Time::default(),
            missed: None,
            questions: Vec::new(),
        };
        let gates = policy.valid.map_or(&[][..], |valid| &valid.gates);
        let of_policy = |answer: &&GateAnswer| answer.policy == policy.facts.name;
        let about_node = |answer: &&GateAnswer| answer.node.as_deref() == Some(&*view.node.name);
        // What lies ahead was noted by a clock that was set back since, and is older than no answer.
        let since = since.filter(|since| *since <= now);
        let mut about = None;
        for gate in gates {
            let per_node = gate.per_node && self.1.keeps(Rule::PerNodeGate);
            let node = per_node.then(|| view.node.name.to_string());
            let mut answers = self.0.iter().filter(of_policy);
            let answer = answers.find(|answer| answer.gate == gate.name && answer.node == node);
            let may_ask = !per_node
                || *about.get_or_insert_with(|| {
                    let known = self.0.iter().filter(of_policy).any(|answer| about_node(&answer));
                    allowance.take(!known)
                });
            if may_ask {
                let (policy, gate) = (policy.facts.name.clone(), gate.name.clone());
                out.questions.push(GateQuestion { policy, gate, node });
            }
            let (message, open) = match answer {
                None if !may_ask => (format!("gate {} {ASKED_OF_OTHERS}", gate.name), true),
                None => (format!("gate {} {NOT_ASKED}", gate.name), true),
                // An answer from the future comes from a clock that was set back: it is not older than its age says.
                Some(answer) if now > answer.at.after(FRESH) => (format!("gate {} {NOT_FRESH}", gate.name), true),
                Some(answer) if since.is_some_and(|since| answer.at < since) => {
                    (format!("gate {} {NOT_SINCE}", gate.name), true)
                }
                Some(answer) if !answer.passes => {
                    out.node_fails |= answer.known && per_node;
                    if answer.known && !per_node {
                        out.cluster_fails.push(gate.name.clone());
                    }
                    (format!("gate {}: {}", gate.name, answer.message), false)
                }
                Some(answer) => {
                    out.since = out.since.max(answer.since);
                    let later = |missed: &Missed| out.missed.as_ref().is_none_or(|known| known.missed.at < missed.at);
                    if let Some(missed) = answer.missed.filter(later) {
                        out.missed = Some(MissedGate { gate: gate.name.clone(), per_node, missed });
                    }
                    continue;
                }
            };
            out.open |= open;
            if out.failing.is_none() {
                out.failing =
                    Some(Wait::new(WaitReason::HealthGate, message).of("UpdatePolicy", None, &policy.facts.name));
            }
        }
        out
    }
}
