//! What is kept of a NodeUpdate.

use crate::{Fact, Untyped, fact};
use bascule_api::{NodeUpdate, NodeUpdateStatus, Rollout, Time};
use bascule_planner::snapshot::UpdateFacts;

/// One NodeUpdate.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateFact {
    /// The name, which is its Node's.
    pub name: String,
    /// The UID.
    pub uid: String,
    /// For writes that must not overwrite what somebody else wrote meanwhile.
    pub resource_version: String,
    /// What the planner sees. `status.rollout` is left out there.
    pub facts: UpdateFacts,
    /// The explanation as last written.
    pub rollout: Option<Rollout>,
    /// When this operator, leading or not, saw the boot first that the agent reports from.
    pub boot_seen: Time,
    /// When this operator, leading or not, could read it again after it could not, the last time.
    pub read_again: Option<Time>,
}

impl Fact for UpdateFact {
    type Raw = NodeUpdate;

    const SAID: &'static [&'static str] = &["/status/rollout"];

    fn of(update: &NodeUpdate) -> Self {
        let meta = &update.metadata;
        let mut status = update.status.clone().unwrap_or_default();
        let rollout = status.rollout.take();
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.kind == "Node");
        Self {
            name: fact::name(update),
            uid: fact::uid(update),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            facts: UpdateFacts {
                generation: meta.generation.unwrap_or_default(),
                owner_uid: owner.map(|owner| owner.uid.clone()),
                deleting: meta.deletion_timestamp.is_some(),
                spec: update.spec.clone(),
                status: NodeUpdateStatus { rollout: None, ..status },
            },
            rollout,
            boot_seen: Time::default(),
            read_again: None,
        }
    }

    /// What the operator asked for is known, or the whole is not: whether its node is disrupted must not be guessed.
    fn presumed(untyped: &Untyped, before: Option<&Self>) -> Option<Self> {
        let before = before.filter(|before| untyped.metadata().uid.as_deref() == Some(before.uid.as_str()));
        let spec = untyped.part("/spec").or_else(|| before.map(|before| before.facts.spec.clone()))?;
        let mut update = NodeUpdate::new("", spec);
        update.metadata = untyped.metadata().clone();
        update.status = Some(untyped.fields("/status", before.map(|before| &before.facts.status)));
        let mut fact = Self::of(&update);
        if let Some(before) = before {
            // What is to be written was decided before this could not be read: the API server refuses it.
            fact.resource_version.clone_from(&before.resource_version);
        }
        Some(fact)
    }

    fn follow(&mut self, before: Option<&Self>, now: Time) {
        let boot = |fact: &Self| (fact.uid.clone(), fact.facts.status.boot_id.clone());
        let same = before.filter(|before| boot(before) == boot(self));
        self.boot_seen = same.map_or(now, |before| before.boot_seen);
        self.read_again = before.filter(|before| before.uid == self.uid).and_then(|before| before.read_again);
    }

    fn is_read_again(&mut self, now: Time) {
        self.read_again = Some(now);
    }

    fn is_news(&self, before: &Self) -> bool {
        self.rollout != before.rollout || self.is_more_than_told(before)
    }

    fn is_more_than_told(&self, before: &Self) -> bool {
        let (resource_version, rollout) = (self.resource_version.clone(), self.rollout.clone());
        *self != Self { resource_version, rollout, ..before.clone() }
    }

    /// A NodeUpdate goes with its Node. One that goes in the middle of a disruption is carried on with when the Node comes
    /// back, as one does whose Node object was deleted while the machine rebooted.
    fn outlives(&self) -> bool {
        self.facts.spec.disruption.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sent::tests::{object, untyped};

    fn update(spec: &serde_json::Value, status: &serde_json::Value) -> serde_json::Value {
        object("NodeUpdate", "n1", 7, spec, status)
    }

    #[test]
    fn of_a_node_update_that_can_not_be_read_it_is_known_whether_its_node_is_disrupted_or_nothing_is() {
        let cause = serde_json::json!({"object": {"kind": "UpdatePolicy", "name": "workers"}});
        let disruption = serde_json::json!({"grantedAt": "2026-11-21T12:00:00Z", "wasCordoned": false, "cause": cause});
        let spec = serde_json::json!({"policy": "workers", "goal": "Staged", "disruption": disruption});
        let volcano = serde_json::json!({"bootID": "b2", "bootControl": {"backend": "Volcano", "counting": "Works"}});
        let object = untyped::<NodeUpdate>(update(&spec, &volcano));
        let fact = UpdateFact::presumed(&object, None).unwrap();
        assert!(fact.facts.spec.disruption.is_some() && fact.facts.status.boot_control.is_none());
        assert_eq!((fact.facts.status.boot_id.as_deref(), fact.resource_version.as_str()), (Some("b2"), "7"));

        let eclipse = serde_json::json!({"policy": "workers", "goal": "Eclipse"});
        let object = untyped::<NodeUpdate>(update(&eclipse, &serde_json::json!({"bootID": "b3"})));
        assert_eq!(UpdateFact::presumed(&object, None), None);
        let before = UpdateFact { resource_version: "6".to_owned(), ..fact };
        let fact = UpdateFact::presumed(&object, Some(&before)).unwrap();
        assert_eq!(fact.facts.spec, before.facts.spec);
        assert_eq!((fact.facts.status.boot_id.as_deref(), fact.resource_version.as_str()), (Some("b3"), "6"));
        let another = UpdateFact { uid: "v".to_owned(), ..before };
        assert_eq!(UpdateFact::presumed(&object, Some(&another)), None, "one of the same name that is gone");
    }

    #[test]
    fn the_boot_that_an_agent_reports_from_is_seen_once_and_another_one_later() {
        let shows = |uid: &str, boot: &str, before: Option<&UpdateFact>, second: i64| {
            let mut fact = UpdateFact::of(
                &serde_json::from_value(serde_json::json!({
                    "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": "n1", "uid": uid},
                    "spec": {"policy": "workers"}, "status": {"bootID": boot}
                }))
                .unwrap(),
            );
            fact.follow(before, Time::new(chrono::DateTime::from_timestamp(second, 0).unwrap()));
            fact
        };
        let seen = |fact: &UpdateFact| fact.boot_seen.get().timestamp();
        let first = shows("u", "b1", None, 10);
        let later = shows("u", "b1", Some(&first), 20);
        let rebooted = shows("u", "b2", Some(&later), 30);
        let made_anew = shows("v", "b2", Some(&rebooted), 40);
        assert_eq!([&first, &later, &rebooted, &made_anew].map(seen), [10, 10, 30, 40]);
    }
}
