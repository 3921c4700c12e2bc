//! What is kept of an UpdatePolicy.

use crate::{Fact, Untyped, Validate, fact};
use bascule_api::{Selector, Time, UpdatePolicy, UpdatePolicySpec, UpdatePolicyStatus, conditions};
use bascule_planner::{
    PolicyError, PolicyErrorKind, ValidPolicy,
    snapshot::{Offer, PolicyFacts},
};
use std::{collections::BTreeMap, sync::Arc};

/// One UpdatePolicy, validated once for each change.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyFact {
    /// The name.
    pub name: String,
    /// The UID.
    pub uid: String,
    /// For writes that must not overwrite what somebody else wrote meanwhile.
    pub resource_version: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// When it was created.
    pub created_at: Time,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The spec as written.
    pub spec: Arc<UpdatePolicySpec>,
    /// The spec as the planner uses it.
    pub valid: Result<Arc<ValidPolicy>, PolicyError>,
    /// The status as last written.
    pub status: UpdatePolicyStatus,
    /// When this operator, leading or not, could read it again after it could not, the last time.
    pub read_again: Option<Time>,
}

impl Fact for PolicyFact {
    type Raw = UpdatePolicy;

    const SAID: &'static [&'static str] = &["/status/waitsFor"];

    fn of(policy: &UpdatePolicy) -> Self {
        Self::validated(policy, bascule_planner::validate)
    }

    fn validated(policy: &UpdatePolicy, validate: Validate) -> Self {
        Self {
            name: fact::name(policy),
            uid: fact::uid(policy),
            resource_version: policy.metadata.resource_version.clone().unwrap_or_default(),
            generation: policy.metadata.generation.unwrap_or_default(),
            created_at: fact::created(policy),
            labels: policy.metadata.labels.clone().unwrap_or_default(),
            spec: Arc::new(policy.spec.clone()),
            valid: validate(&policy.spec).map(Arc::new),
            status: policy.status.clone().unwrap_or_default(),
            read_again: None,
        }
    }

    /// It goes on caring for its nodes, as far as is known which those are, and does nothing with them.
    fn presumed(untyped: &Untyped, before: Option<&Self>) -> Option<Self> {
        let before = before.filter(|before| untyped.metadata().uid.as_deref() == Some(before.uid.as_str()));
        let selects = untyped.part("/spec/nodeSelector").or_else(|| before.and_then(Self::known_selector));
        let spec = untyped.part("/spec").or_else(|| before.map(|before| UpdatePolicySpec::clone(&before.spec)));
        let mut policy = UpdatePolicy::new("", spec.or_else(|| unknown_spec(selects.as_ref()))?);
        policy.metadata = untyped.metadata().clone();
        policy.status = Some(untyped.fields("/status", before.map(|before| &before.status)));
        let mut fact = Self::of(&policy);
        let why = PolicyErrorKind::Unreadable { why: untyped.why().to_owned(), selects };
        fact.valid = Err(PolicyError::new("the policy", why));
        if let Some(before) = before {
            // What is to be written was decided before this could not be read: the API server refuses it.
            fact.resource_version.clone_from(&before.resource_version);
        }
        Some(fact)
    }

    fn follow(&mut self, before: Option<&Self>, _: Time) {
        self.read_again = before.filter(|before| before.uid == self.uid).and_then(|before| before.read_again);
    }

    fn is_read_again(&mut self, now: Time) {
        self.read_again = Some(now);
    }

    fn is_news(&self, before: &Self) -> bool {
        *self != Self { resource_version: self.resource_version.clone(), ..before.clone() }
    }
}

impl PolicyFact {
    /// The policy as the planner sees it, where its channel offers this.
    #[must_use]
    pub fn facts(&self, offer: Arc<Offer>) -> PolicyFacts {
        PolicyFacts {
            name: self.name.clone(),
            uid: self.uid.clone(),
            generation: self.generation,
            created_at: self.created_at,
            labels: self.labels.clone(),
            read_again: self.read_again,
            spec: self.valid.clone(),
            advice: None,
            status: self.status.clone(),
            offer,
        }
    }

    /// The same for whoever knows less than the operator, which asks for rights and can parse the expressions of gates: a spec that it
    /// said it can't use can't be used.
    #[must_use]
    pub fn unless_refused(mut self) -> Self {
        let accepted = conditions::get(&self.status.conditions, conditions::ACCEPTED);
        let refused = accepted.filter(|one| one.status == "False" && one.observed_generation == Some(self.generation));
        if let Some(refused) = refused.filter(|_| self.valid.is_ok()) {
            let why = PolicyErrorKind::Refused(refused.message.clone());
            self.valid = Err(PolicyError::new("the policy", why));
        }
        self
    }

    /// The nodes that it selects, where that is known.
    fn known_selector(&self) -> Option<Selector> {
        match &self.valid {
            Err(PolicyError { kind: PolicyErrorKind::Unreadable { selects, .. }, .. }) => selects.clone(),
            Ok(_) | Err(_) => Some(self.spec.node_selector.clone()),
        }
    }
}

/// A spec in the place of one that can't be read and never could be. It selects nobody where it is not known whom it should: what a
/// drain of others' nodes would be like is not its affair.
fn unknown_spec(selects: Option<&Selector>) -> Option<UpdatePolicySpec> {
    let nobody = serde_json::json!({"matchExpressions": [{"key": "none", "operator": "In", "values": []}]});
    let selects = selects.map_or(nobody, |selects| serde_json::json!(selects));
    let source = serde_json::json!({"repository": "https://unknown.invalid", "channel": "unknown"});
    serde_json::from_value(serde_json::json!({"nodeSelector": selects, "source": source})).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sent::tests::{object, untyped};

    fn policy(spec: &serde_json::Value, status: &serde_json::Value) -> serde_json::Value {
        object("UpdatePolicy", "workers", 7, spec, status)
    }

    #[test]
    fn what_the_operator_refused_is_refused_until_it_is_another_spec() {
        let source = serde_json::json!({"repository": "https://images.example.com/os", "channel": "stable"});
        let refused = |generation: i64, seen: i64, status: &str| {
            let accepted = serde_json::json!({"type": "Accepted", "status": status, "reason": "Invalid",
                "message": "spec.hooks: it may not create Jobs", "observedGeneration": seen,
                "lastTransitionTime": "2026-11-21T12:00:00Z"});
            let spec = serde_json::json!({"nodeSelector": {}, "source": source});
            let mut policy = policy(&spec, &serde_json::json!({"conditions": [accepted]}));
            policy["metadata"]["generation"] = generation.into();
            PolicyFact::of(&serde_json::from_value(policy).unwrap()).unless_refused().valid.err()
        };
        assert!(refused(2, 2, "False").unwrap().to_string().contains("it may not create Jobs"));
        assert_eq!((refused(3, 2, "False"), refused(2, 2, "True")), (None, None));
    }

    #[test]
    fn a_policy_that_can_not_be_read_is_one_and_its_nodes_are_known_as_far_as_they_can_be() {
        let selector = serde_json::json!({"matchLabels": {"role": "worker"}});
        let source = serde_json::json!({"repository": "https://images.example.com/os", "channel": "stable"});
        let readable = serde_json::json!({"nodeSelector": selector, "source": source});
        let strange =
            serde_json::json!({"nodeSelector": selector, "source": source, "drain": {"onTimeout": "Volcano"}});
        let stranger = serde_json::json!({"nodeSelector": {"matchStars": 1, "matchLabels": 1}, "source": source});
        let status = serde_json::json!({"maintenances": 3, "history": [{"outcome": "Volcano"}]});
        let selects = |fact: &PolicyFact| match &fact.valid {
            Err(PolicyError { kind: PolicyErrorKind::Unreadable { selects, .. }, .. }) => selects.clone(),
            other => panic!("{other:?}"),
        };
        let workers = BTreeMap::from([("role".to_owned(), "worker".to_owned())]);

        let fact = PolicyFact::presumed(&untyped::<UpdatePolicy>(policy(&readable, &status)), None).unwrap();
        assert!(selects(&fact).unwrap().matches(&workers));
        assert_eq!((fact.status.maintenances, fact.status.history.len()), (3, 0));
        let object = untyped::<UpdatePolicy>(policy(&strange, &status));
        let by_its_selector = PolicyFact::presumed(&object, None).unwrap();
        assert!(selects(&by_its_selector).unwrap().matches(&workers));
        assert!(by_its_selector.spec.node_selector.matches(&workers));

        let object = untyped::<UpdatePolicy>(policy(&stranger, &status));
        let unknown = PolicyFact::presumed(&object, None).unwrap();
        assert_eq!(selects(&unknown), None);
        assert!(!unknown.spec.node_selector.matches(&workers), "its settings are for nobody");
        let followed = PolicyFact::presumed(&object, Some(&fact)).unwrap();
        assert!(selects(&followed).unwrap().matches(&workers), "as it was known");
        let followed = PolicyFact::presumed(&object, Some(&unknown)).unwrap();
        assert_eq!(selects(&followed), None);
    }
}
