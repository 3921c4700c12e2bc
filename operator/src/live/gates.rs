//! Which health gates there are: people are told of each whether it can be read, though no node waits for it.

use super::Planned;
use crate::health::{Asked, GateKey, Present};
use bascule_planner::snapshot::PolicyFacts;
use std::sync::Arc;

/// The gates of a plan's policies.
pub(super) fn present(plan: &Planned) -> Vec<Present> {
    of(&plan.snapshot.policies, |policy| {
        let member = plan.report.nodes.iter().find(|said| said.policy == Some(policy));
        member.map(|said| said.node.to_string())
    })
}

/// The gates of the policies that can be used. One that speaks of nodes is asked for a member of its policy, and where that has none
/// there is nothing to ask.
fn of(policies: &[Arc<PolicyFacts>], member: impl Fn(usize) -> Option<String>) -> Vec<Present> {
    let mut gates = Vec::new();
    for (policy, facts) in policies.iter().enumerate() {
        let Ok(valid) = &facts.spec else { continue };
        for (name, gate) in valid.gates.iter().zip(&valid.spec.health.gates) {
            let node = if name.per_node { member(policy) } else { None };
            if name.per_node && node.is_none() {
                continue;
            }
            let key = GateKey { policy: facts.name.clone(), gate: name.name.clone(), node };
            let asked = Asked { health: valid.spec.health.clone(), gate: gate.clone() };
            gates.push(Present { policy, key, asked });
        }
    }
    gates
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// A policy with a gate that speaks of the cluster and one that speaks of nodes.
    pub(in crate::live) fn policy(name: &str) -> Arc<PolicyFacts> {
        let spec = json!({
            "nodeSelector": {}, "source": {"repository": "https://images.example.com/os", "channel": "stable"},
            "health": {"prometheus": "http://127.0.0.1:9", "gates": [
                {"name": "ceph", "promQL": {"query": "ceph_health_status", "equals": 0}},
                {"name": "alerts", "promQL": {"query": "ALERTS{node=\"$node\"}", "equals": 0}},
            ]},
        });
        Arc::new(PolicyFacts {
            name: name.to_owned(),
            uid: name.to_owned(),
            created_at: bascule_api::Time::default(),
            generation: 1,
            labels: Default::default(),
            read_again: None,
            spec: bascule_planner::validate(&serde_json::from_value(spec).unwrap()).map(Arc::new),
            advice: None,
            status: Default::default(),
            offer: Default::default(),
        })
    }

    #[test]
    fn a_gate_that_speaks_of_nodes_is_asked_for_one_of_its_policy() {
        let policies = [policy("control"), policy("workers")];
        let asked = of(&policies, |policy| (policy == 1).then(|| "n2".to_owned()));
        let asked: Vec<_> =
            asked.iter().map(|one| (one.policy, one.key.gate.as_str(), one.key.node.as_deref())).collect();
        assert_eq!(asked, [(0, "ceph", None), (1, "ceph", None), (1, "alerts", Some("n2"))]);
    }
}
