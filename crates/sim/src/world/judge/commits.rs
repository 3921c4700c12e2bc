//! A release is made permanent once its node was Ready in the release's own boot for as long as the policy says, without a break that
//! was to be seen, and its policy's gates passed in that boot. Counted from what the kubelet was seen to say, not from what the planner
//! made of it.

use super::{facts::claiming, past::Past};
use crate::world::history::Event;
use bascule_planner::{Action, snapshot::PolicyFacts};

pub(super) fn judge(past: &Past<'_>, event: &Event) -> Vec<String> {
    let Event::Act(act) = event else { return Vec::new() };
    // A way back names what it makes permanent, and is made so as it is.
    let Action::Commit { release: None, .. } = &act.action else { return Vec::new() };
    let Some((plan, node)) = past.plan(act.plan).and_then(|plan| Some((plan, plan.node(&act.uid)?))) else {
        return Vec::new();
    };
    // A person's word to go back is carried out as it is.
    if past.word(&act.uid).is_none_or(|word| !word.updates) {
        return Vec::new();
    }
    // Whose trial it is, or who alone took its place, says how long; nobody else does.
    let named = node.live_update().map(|update| update.spec.policy.as_str());
    let own = plan.view.facts.policies.iter().find(|policy| named == Some(policy.name.as_str()));
    let policy: &PolicyFacts = match (own, &claiming(&plan.view.facts, node)[..]) {
        (Some(own), _) => own,
        (None, [heir]) => heir,
        (None, _) => return vec![format!("{} commits, and its policy is gone", node.name)],
    };
    let Ok(valid) = &policy.spec else {
        return vec![format!("{} commits, and its policy can't be used", node.name)];
    };
    let said = past.kubelets.get(&*node.name).map_or(&[][..], Vec::as_slice);
    let seen: Vec<_> = said.iter().take_while(|said| said.at <= plan.view.seen_at(&node.name)).collect();
    let Some(last) = seen.last() else { return Vec::new() };
    let boot = seen.iter().rev().take_while(|said| said.boot == last.boot).last();
    let ready = seen.iter().rev().take_while(|said| said.ready).last();
    let (Some(boot), Some(ready)) = (boot, ready) else {
        return vec![format!("{} commits and is not Ready", node.name)];
    };
    let healthy = plan.view.facts.now.seconds_since(boot.at.max(ready.at));
    let soak = i64::try_from(valid.spec.health.node_soak.as_secs()).unwrap_or(i64::MAX);
    if healthy < soak {
        return vec![format!("{} commits after {healthy} s of being Ready in its boot, {soak} s are asked", node.name)];
    }
    let unheard = valid.gates.iter().find(|gate| {
        let about = gate.per_node.then_some(&*node.name);
        let mut answers = plan.view.facts.gates.iter().filter(|answer| {
            answer.policy == policy.name && answer.gate == gate.name && answer.node.as_deref() == about
        });
        !answers.any(|answer| answer.passes && answer.at >= boot.at)
    });
    let told = unheard.map(|gate| format!("{} commits, and gate {} did not pass in its boot", node.name, gate.name));
    told.into_iter().collect()
}
