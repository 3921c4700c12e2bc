//! The answers of health gates. A gate without a fresh answer does not pass.

use super::{facts::NodeView, policy::PolicyView};
use crate::{Wait, plan::GateQuestion, snapshot::GateAnswer};
use bascule_api::{Duration, Time, WaitReason};

/// How old an answer may be.
pub(super) const FRESH: Duration = Duration::from_secs(120);

/// All answers that are known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answers<'a>(pub(super) &'a [GateAnswer]);

/// What a policy's gates say.
#[derive(Debug)]
pub(super) struct Asked {
    /// The first that does not pass.
    pub(super) failing: Option<Wait>,
    /// Since when all pass.
    pub(super) since: Time,
    /// What has to be asked, again or for the first time.
    pub(super) questions: Vec<GateQuestion>,
}

impl Answers<'_> {
    /// What the gates of a policy say about a node.
    pub(super) fn ask(self, policy: &PolicyView<'_>, view: &NodeView<'_>, now: Time) -> Asked {
        let mut out = Asked { failing: None, since: Time::default(), questions: Vec::new() };
        for gate in policy.valid.map_or(&[][..], |valid| &valid.gates) {
            let node = gate.per_node.then(|| view.node.name.to_string());
            let answer = self
                .0
                .iter()
                .find(|answer| answer.gate == gate.name && answer.policy == policy.facts.name && answer.node == node);
            out.questions.push(GateQuestion { policy: policy.facts.name.clone(), gate: gate.name.clone(), node });
            let message = match answer {
                None => format!("gate {} has not been asked yet", gate.name),
                // An answer from the future comes from a clock that was set back: it is not older than its age says.
                Some(answer) if now > answer.at.after(FRESH) => format!("gate {} has no fresh answer", gate.name),
                Some(answer) if !answer.passes => format!("gate {}: {}", gate.name, answer.message),
                Some(answer) => {
                    out.since = out.since.max(answer.since);
                    continue;
                }
            };
            if out.failing.is_none() {
                out.failing =
                    Some(Wait::new(WaitReason::HealthGate, message).of("UpdatePolicy", None, &policy.facts.name));
            }
        }
        out
    }
}
