//! Whether health gates can be read and hold.

use super::Finding;
use crate::cluster::{live::Seen, picture};
use bascule_api as api;
use bascule_api::{Time, WaitReason};
use bascule_planner::says_of_gate;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// Whether a gate is being asked because somebody read the report.
pub(super) fn are_asked(seen: &Seen) -> bool {
    seen.report.health_gates.iter().any(|gate| gate.asking)
}

/// Gates that can't be read or do not hold, whether a node waits for them or not: nothing starts until they do.
pub(super) fn look(seen: &Seen, now: DateTime<Utc>) -> Vec<Finding> {
    let report = &seen.report;
    let mut waiting: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for node in &report.nodes {
        let policy = node.policy.and_then(|index| report.policies.get(index));
        if let (Some(policy), Some(wait)) = (policy, report.wait(node))
            && wait.reason == WaitReason::HealthGate
        {
            *waiting.entry((&policy.name, &wait.message)).or_default() += 1;
        }
    }
    let mut found = Vec::new();
    for gate in &report.health_gates {
        let Some(policy) = report.policies.get(gate.policy).map(|policy| policy.name.as_str()) else { continue };
        let Some((trouble, is_wrong)) = gate_trouble(gate, now) else { continue };
        // Those who wait for it are told of here, and not a second time.
        let mut nodes = 0;
        waiting.retain(|(of, message), count| {
            let for_it = *of == policy && says_of_gate(message, &gate.gate);
            nodes += if for_it { *count } else { 0 };
            !for_it
        });
        let wait = if nodes == 0 { String::new() } else { format!("; {} for it", nodes_wait(nodes)) };
        let what = format!("{policy}: {trouble}{wait}");
        let advice = WaitReason::HealthGate.remedy();
        let finding =
            if is_wrong { Finding::wrong("gates", what, advice) } else { Finding::warning("gates", what, advice) };
        found.push(finding.run(format!("kubectl describe updatepolicy {policy}")));
    }
    found.extend(waiting.into_iter().map(|((policy, message), nodes)| {
        let what = format!("{policy}: {} for one: {message}", nodes_wait(nodes));
        Finding::warning("gates", what, WaitReason::HealthGate.remedy())
            .run(format!("kubectl describe updatepolicy {policy}"))
    }));
    if found.is_empty() {
        let hold = match report.health_gates.len() {
            0 => String::new(),
            1 => "1 gate holds, and ".to_owned(),
            many => format!("{many} gates hold, and "),
        };
        found.push(Finding::good("gates", format!("{hold}no node waits for one")));
    }
    found
}

fn nodes_wait(nodes: usize) -> String {
    if nodes == 1 { "1 node waits".to_owned() } else { format!("{nodes} nodes wait") }
}

/// What is not right with a gate, and whether that is known to keep every node back.
fn gate_trouble(gate: &api::LiveGate, now: DateTime<Utc>) -> Option<(String, bool)> {
    let about = gate.node.as_ref().map(|node| format!(" about {node}")).unwrap_or_default();
    let name = format!("gate {}{about}", gate.gate);
    let said = match gate.holds {
        Some(true) => "it held".to_owned(),
        Some(false) => format!("it did not hold: {}", gate.message),
        None => format!("it could not be read: {}", gate.message),
    };
    let ago = |at: Time| picture::span(now.signed_duration_since(at.get()));
    match (gate.asking, gate.at) {
        (true, None) => Some((format!("{name} is being asked and has not answered yet"), false)),
        (true, Some(at)) => {
            let said = format!("{name} is being asked and has not answered yet; {} ago {said}", ago(at));
            Some((said, gate.holds.is_none()))
        }
        (false, None) => None,
        (false, Some(at)) => match gate.holds {
            Some(true) => None,
            Some(false) => Some((format!("{name} does not hold, as it said {} ago: {}", ago(at), gate.message), false)),
            None => Some((format!("{name} can't be read, as was seen {} ago: {}", ago(at), gate.message), true)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::Weight::{Good, Warning, Wrong},
        *,
    };
    use crate::cluster::fixture;

    fn weights(found: &[Finding]) -> Vec<super::super::Weight> {
        found.iter().map(|finding| finding.weight).collect()
    }

    #[test]
    fn gates_that_nodes_wait_for_are_told_with_what_they_say() {
        let mut seen = fixture::seen();
        assert_eq!(weights(&look(&seen, fixture::now())), [Good]);
        seen.report.waits[2] = fixture::wait(WaitReason::HealthGate, "gate ceph: 2 of 3 are up", None);
        let found = look(&seen, fixture::now());
        assert_eq!(weights(&found), [Warning]);
        assert!(found[0].what.contains("workers: 2 nodes wait for one: gate ceph: 2 of 3 are up"), "{found:?}");
    }

    /// On a quiet fleet no node waits, and a Prometheus that is dead keeps all of them back in the night of the next window.
    #[test]
    fn a_gate_that_can_not_be_read_is_found_before_a_node_waits_for_it() {
        let gate = |holds: Option<bool>, message: &str, at: Option<i64>, asking: bool| api::LiveGate {
            policy: 0,
            gate: "ceph".into(),
            node: None,
            holds,
            message: message.into(),
            at: at.map(fixture::ago),
            asking,
        };
        for (gate, weight, part) in [
            (gate(Some(true), "", Some(200), false), Good, "1 gate holds, and no node waits for one"),
            (
                gate(None, "no route", Some(3), false),
                Wrong,
                "workers: gate ceph can't be read, as was seen 3s ago: no route",
            ),
            (gate(Some(false), "is 2", Some(3), false), Warning, "gate ceph does not hold, as it said 3s ago: is 2"),
            (gate(None, "", None, true), Warning, "gate ceph is being asked and has not answered yet"),
            (
                gate(None, "no route", Some(70), true),
                Wrong,
                "not answered yet; 1m10s ago it could not be read: no route",
            ),
            (gate(Some(true), "", Some(400), true), Warning, "has not answered yet; 6m40s ago it held"),
        ] {
            let mut seen = fixture::seen();
            seen.report.health_gates = vec![gate];
            let found = look(&seen, fixture::now());
            assert!(weights(&found) == [weight] && found[0].what.contains(part), "{part}: {found:?}");
        }
        let mut seen = fixture::seen();
        seen.report.waits[2] = fixture::wait(WaitReason::HealthGate, "gate ceph: no route", None);
        let of_node = api::LiveGate { node: Some("n3".into()), ..gate(None, "no route", Some(3), false) };
        let other = api::LiveGate { gate: "ceph 2".into(), ..gate(Some(true), "", Some(3), false) };
        seen.report.health_gates = vec![of_node, other];
        let found = look(&seen, fixture::now());
        assert_eq!(weights(&found), [Wrong], "once: {found:?}");
        assert!(found[0].what.contains("gate ceph about n3 can't be read"), "{found:?}");
        assert!(found[0].what.ends_with("no route; 2 nodes wait for it"), "{found:?}");
    }
}
