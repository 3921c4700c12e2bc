//! What is kept of Bascule's own objects and of the Jobs of hooks.

use super::{cache::Fact, sent::Untyped};
use crate::clock::Clock;
use bascule_api::{
    Freeze, NodeUpdate, NodeUpdateStatus, Rollback, Rollout, Selector, Time, UpdatePolicy, UpdatePolicySpec,
    UpdatePolicyStatus,
};
use bascule_planner::{
    PolicyError, PolicyErrorKind, ValidPolicy,
    snapshot::{FreezeFacts, HookRun, HookStage, HookState, RollbackFacts, UpdateFacts},
};
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use kube::Resource;
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
        Self {
            name: name(policy),
            uid: uid(policy),
            resource_version: policy.metadata.resource_version.clone().unwrap_or_default(),
            generation: policy.metadata.generation.unwrap_or_default(),
            created_at: created(policy),
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

    fn follow(&mut self, before: Option<&Self>, _: &Clock) {
        self.read_again = before.filter(|before| before.uid == self.uid).and_then(|before| before.read_again);
    }

    fn is_read_again(&mut self, clock: &Clock) {
        self.read_again = Some(Time::new(clock.now()));
    }
}

impl PolicyFact {
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

/// The planner's validation, and what only the language itself can say: that the expressions of object gates can be parsed, and
/// which of them ask about a node.
fn validate(spec: &UpdatePolicySpec) -> Result<ValidPolicy, PolicyError> {
    let mut valid = bascule_planner::validate_with(spec, crate::zones::current())?;
    for (index, gate) in spec.health.gates.iter().enumerate() {
        if let Some(object) = &gate.object {
            let about_node = crate::health::check_expression(&object.cel).map_err(|why| {
                PolicyError::new(format!("spec.health.gates[{index}].object.cel"), PolicyErrorKind::Expression(why))
            })?;
            if let Some(name) = valid.gates.get_mut(index) {
                name.per_node = about_node;
            }
        }
    }
    Ok(valid)
}

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
            name: name(update),
            uid: uid(update),
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

    fn follow(&mut self, before: Option<&Self>, clock: &Clock) {
        let boot = |fact: &Self| (fact.uid.clone(), fact.facts.status.boot_id.clone());
        let same = before.filter(|before| boot(before) == boot(self));
        self.boot_seen = same.map_or_else(|| Time::new(clock.now()), |before| before.boot_seen);
        self.read_again = before.filter(|before| before.uid == self.uid).and_then(|before| before.read_again);
    }

    fn is_read_again(&mut self, clock: &Clock) {
        self.read_again = Some(Time::new(clock.now()));
    }

    /// A NodeUpdate goes with its Node. One that goes in the middle of a disruption is carried on with when the Node comes
    /// back, as one does whose Node object was deleted while the machine rebooted.
    fn outlives(&self) -> bool {
        self.facts.spec.disruption.is_some()
    }
}

/// One Freeze.
#[derive(Debug, Clone, PartialEq)]
pub struct FreezeFact(pub Arc<FreezeFacts>, pub String);

impl Fact for FreezeFact {
    type Raw = Freeze;

    fn of(freeze: &Freeze) -> Self {
        let facts = FreezeFacts {
            name: name(freeze),
            generation: freeze.metadata.generation.unwrap_or_default(),
            created_at: created(freeze),
            kept_elsewhere: freeze.is_kept_elsewhere(),
            spec: freeze.spec.clone(),
            status: freeze.status.clone().unwrap_or_default(),
        };
        Self(Arc::new(facts), uid(freeze))
    }
}

/// One Rollback.
#[derive(Debug, Clone, PartialEq)]
pub struct RollbackFact(pub Arc<RollbackFacts>, pub String);

impl Fact for RollbackFact {
    type Raw = Rollback;

    fn of(rollback: &Rollback) -> Self {
        let facts = RollbackFacts {
            name: name(rollback),
            generation: rollback.metadata.generation.unwrap_or_default(),
            created_at: created(rollback),
            spec: rollback.spec.clone(),
            status: rollback.status.clone().unwrap_or_default(),
        };
        Self(Arc::new(facts), uid(rollback))
    }
}

/// Labels of a hook's Job. The Job carries all of them; the watch selects by the first.
pub const HOOK_LABEL: &str = "bascule.dev/hook";
/// The node a hook's Job runs for, as an annotation, since a node's name may be longer than a label's value.
pub const HOOK_NODE: &str = "bascule.dev/node";
/// The policy whose hook it is.
pub const HOOK_POLICY: &str = "bascule.dev/policy";
/// The generation of the grant, or the number of the maintenance, that a hook's Job runs for.
pub const HOOK_GRANT: &str = "bascule.dev/grant";
/// When a hook's Job runs, as [`stage_text`] says.
pub const HOOK_STAGE: &str = "bascule.dev/stage";
/// The UID of the policy, on the Job of a hook after a rollout, which outlives it.
pub const HOOK_POLICY_UID: &str = "bascule.dev/policy-uid";
/// The Jobs that have to succeed before that one is begun, `namespace/name` each.
pub const HOOK_FOLLOWS: &str = "bascule.dev/follows";
/// The digest of the spec that it was made with.
pub const HOOK_SPEC: &str = "bascule.dev/spec";
/// That the operator let it run. Until then it is kept, whatever anybody else does with it.
pub const HOOK_BEGUN: &str = "bascule.dev/begun";

/// How long a hook's Job is kept once its grant is over, in seconds: what its template says.
pub const HOOK_TTL: &str = "bascule.dev/ttl-seconds-after-finished";

/// The text of a stage in labels and names.
#[must_use]
pub const fn stage_text(stage: HookStage) -> &'static str {
    match stage {
        HookStage::BeforeDrain => "before-drain",
        HookStage::AfterCommit => "after-commit",
        HookStage::BeforeRollout => "before-rollout",
        HookStage::AfterRollout => "after-rollout",
    }
}

/// The Job of a hook.
#[derive(Debug, Clone, PartialEq)]
pub struct JobFact {
    /// What the planner sees; absent for a Job that only looks like one of ours.
    pub run: Option<HookRun>,
    /// For how many seconds it is to be kept once it is not needed any more, while it is finished and nothing says so.
    pub kept_for: Option<i32>,
    /// What is known of the Job of a hook after a rollout.
    pub after: Option<After>,
}

/// What is known of the Job of a hook after a rollout, which is made before the rollout begins and stands for itself: its policy may be
/// gone when it is to run.
#[derive(Debug, Clone, PartialEq)]
pub struct After {
    /// The UID of the policy.
    pub policy_uid: String,
    /// The UID of the Job.
    pub uid: String,
    /// For writes that must not overwrite what somebody else wrote meanwhile.
    pub resource_version: String,
    /// The Jobs that have to succeed before, `namespace/name` each.
    pub follows: Vec<String>,
    /// The digest of the spec that it was made with.
    pub spec: String,
    /// The same Job, to be made again: where it failed, or is finished and who let it run was not the operator.
    pub again: Option<Arc<Job>>,
}

impl Fact for JobFact {
    type Raw = Job;

    fn of(job: &Job) -> Self {
        let run = run_of(job);
        let finished =
            run.as_ref().is_some_and(|run| matches!(run.state, HookState::Succeeded | HookState::Failed { .. }));
        let lives_on = job.spec.as_ref().is_some_and(|spec| spec.ttl_seconds_after_finished.is_none());
        let ttl = job.metadata.annotations.as_ref().and_then(|all| all.get(HOOK_TTL)).and_then(|ttl| ttl.parse().ok());
        let after = run.as_ref().and_then(|run| after_of(job, run));
        Self { run, kept_for: ttl.filter(|_| finished && lives_on), after }
    }

    /// One that was kept runs since the Job controller says so, or, until it does, since it was seen begun.
    fn follow(&mut self, before: Option<&Self>, clock: &Clock) {
        let Some(HookRun { state: HookState::Running { since }, .. }) = &mut self.run else { return };
        if *since == Time::default() {
            *since = match before.and_then(|before| before.run.as_ref()).map(|run| &run.state) {
                Some(HookState::Running { since }) => *since,
                _ => Time::new(clock.now()),
            };
        }
    }
}

fn after_of(job: &Job, run: &HookRun) -> Option<After> {
    let annotations = job.metadata.annotations.as_ref()?;
    let policy_uid = policy_uid(run.stage, annotations)?.to_owned();
    let follows = annotations.get(HOOK_FOLLOWS).map(String::as_str).unwrap_or_default();
    let of_no_use = match run.state {
        HookState::Kept => condition(job, "Complete").or(condition(job, "Failed")).is_some(),
        HookState::Failed { .. } => true,
        HookState::Running { .. } | HookState::Succeeded => false,
    };
    Some(After {
        policy_uid,
        uid: uid(job),
        resource_version: job.metadata.resource_version.clone().unwrap_or_default(),
        follows: follows.split_whitespace().map(str::to_owned).collect(),
        spec: annotations.get(HOOK_SPEC).cloned().unwrap_or_default(),
        again: of_no_use.then(|| Arc::new(crate::hooks::again(job))),
    })
}

fn policy_uid(stage: HookStage, annotations: &BTreeMap<String, String>) -> Option<&str> {
    annotations.get(HOOK_POLICY_UID).map(String::as_str).filter(|_| stage == HookStage::AfterRollout)
}

/// A condition of a Job that is true.
fn condition<'a>(job: &'a Job, type_: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == type_ && condition.status == "True")
}

fn run_of(job: &Job) -> Option<HookRun> {
    let meta = &job.metadata;
    let (labels, annotations) = (meta.labels.as_ref()?, meta.annotations.as_ref()?);
    let stage = match labels.get(HOOK_STAGE)?.as_str() {
        "before-drain" => HookStage::BeforeDrain,
        "after-commit" => HookStage::AfterCommit,
        "before-rollout" => HookStage::BeforeRollout,
        "after-rollout" => HookStage::AfterRollout,
        _ => return None,
    };
    let kept = policy_uid(stage, annotations).is_some();
    let state = if kept && !annotations.contains_key(HOOK_BEGUN) {
        HookState::Kept
    } else if let Some(failed) = condition(job, "Failed") {
        let reason = failed.reason.clone().unwrap_or_default();
        let message = failed.message.clone().unwrap_or_default();
        HookState::Failed { message: format!("{reason}: {message}").chars().take(512).collect() }
    } else if condition(job, "Complete").is_some() {
        HookState::Succeeded
    } else if kept {
        let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
        HookState::Running { since: started.map(Time::from_kubernetes).unwrap_or_default() }
    } else {
        HookState::Running { since: meta.creation_timestamp.as_ref().map(Time::from_kubernetes)? }
    };
    let policy = annotations.get(HOOK_POLICY).cloned().unwrap_or_default();
    let (node, hook) = (annotations.get(HOOK_NODE)?.clone(), labels.get(HOOK_LABEL)?.clone());
    let grant = annotations.get(HOOK_GRANT)?.parse().ok()?;
    // Labels are anybody's who may create a Job somewhere. The operator's own has the name that it gives; in whose namespace it
    // lies, the planner compares.
    let name = match policy_uid(stage, annotations) {
        Some(uid) => crate::hooks::name_after((&policy, uid), grant, &hook),
        None => crate::hooks::name_of((&policy, &node), grant, stage, &hook),
    };
    if meta.name.as_deref()? != name || (kept && !node.is_empty()) {
        return None;
    }
    Some(HookRun {
        policy,
        node,
        grant,
        stage,
        hook,
        job: format!("{}/{}", meta.namespace.as_deref()?, meta.name.as_deref()?),
        state,
    })
}

fn name(object: &impl Resource) -> String {
    object.meta().name.clone().unwrap_or_default()
}

fn uid(object: &impl Resource) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

fn created(object: &impl Resource) -> Time {
    object.meta().creation_timestamp.as_ref().map_or_else(Time::default, Time::from_kubernetes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn untyped<K: serde::de::DeserializeOwned>(object: serde_json::Value) -> Untyped {
        crate::gather::sent::tests::untyped::<K>(object)
    }

    fn update(spec: serde_json::Value, status: serde_json::Value) -> serde_json::Value {
        serde_json::json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
            "metadata": {"name": "n1", "uid": "u", "resourceVersion": "7"}, "spec": spec, "status": status,
        })
    }

    #[test]
    fn of_a_node_update_that_can_not_be_read_it_is_known_whether_its_node_is_disrupted_or_nothing_is() {
        let cause = serde_json::json!({"object": {"kind": "UpdatePolicy", "name": "workers"}});
        let disruption = serde_json::json!({"grantedAt": "2026-11-21T12:00:00Z", "wasCordoned": false, "cause": cause});
        let spec = serde_json::json!({"policy": "workers", "goal": "Staged", "disruption": disruption});
        let volcano = serde_json::json!({"bootID": "b2", "bootControl": {"backend": "Volcano", "counting": "Works"}});
        let object = untyped::<NodeUpdate>(update(spec.clone(), volcano));
        let fact = UpdateFact::presumed(&object, None).unwrap();
        assert!(fact.facts.spec.disruption.is_some() && fact.facts.status.boot_control.is_none());
        assert_eq!((fact.facts.status.boot_id.as_deref(), fact.resource_version.as_str()), (Some("b2"), "7"));

        let eclipse = serde_json::json!({"policy": "workers", "goal": "Eclipse"});
        let object = untyped::<NodeUpdate>(update(eclipse, serde_json::json!({"bootID": "b3"})));
        assert_eq!(UpdateFact::presumed(&object, None), None);
        let before = UpdateFact { resource_version: "6".to_owned(), ..fact };
        let fact = UpdateFact::presumed(&object, Some(&before)).unwrap();
        assert_eq!(fact.facts.spec, before.facts.spec);
        assert_eq!((fact.facts.status.boot_id.as_deref(), fact.resource_version.as_str()), (Some("b3"), "6"));
        let another = UpdateFact { uid: "v".to_owned(), ..before };
        assert_eq!(UpdateFact::presumed(&object, Some(&another)), None, "one of the same name that is gone");
    }

    fn policy(spec: serde_json::Value, status: serde_json::Value) -> serde_json::Value {
        serde_json::json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
            "metadata": {"name": "workers", "uid": "p", "resourceVersion": "7"}, "spec": spec, "status": status,
        })
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

        let fact = PolicyFact::presumed(&untyped::<UpdatePolicy>(policy(readable, status.clone())), None).unwrap();
        assert!(selects(&fact).unwrap().matches(&workers));
        assert_eq!((fact.status.maintenances, fact.status.history.len()), (3, 0));
        let object = untyped::<UpdatePolicy>(policy(strange, status.clone()));
        let by_its_selector = PolicyFact::presumed(&object, None).unwrap();
        assert!(selects(&by_its_selector).unwrap().matches(&workers));
        assert!(by_its_selector.spec.node_selector.matches(&workers));

        let object = untyped::<UpdatePolicy>(policy(stranger, status));
        let unknown = PolicyFact::presumed(&object, None).unwrap();
        assert_eq!(selects(&unknown), None);
        assert!(!unknown.spec.node_selector.matches(&workers), "its settings are for nobody");
        let followed = PolicyFact::presumed(&object, Some(&fact)).unwrap();
        assert!(selects(&followed).unwrap().matches(&workers), "as it was known");
        let followed = PolicyFact::presumed(&object, Some(&unknown)).unwrap();
        assert_eq!(selects(&followed), None);
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
            fact.follow(before, &Clock::from_fn(move || chrono::DateTime::from_timestamp(second, 0).unwrap()));
            fact
        };
        let seen = |fact: &UpdateFact| fact.boot_seen.get().timestamp();
        let first = shows("u", "b1", None, 10);
        let later = shows("u", "b1", Some(&first), 20);
        let rebooted = shows("u", "b2", Some(&later), 30);
        let made_anew = shows("v", "b2", Some(&rebooted), 40);
        assert_eq!([&first, &later, &rebooted, &made_anew].map(seen), [10, 10, 30, 40]);
    }

    /// A trial that was held meanwhile is not to be blamed, whoever leads by then.
    #[test]
    fn that_an_object_could_not_be_read_is_remembered_with_it() {
        let second = Arc::new(std::sync::atomic::AtomicI64::new(0));
        let clock = {
            let second = Arc::clone(&second);
            let now = move || second.load(std::sync::atomic::Ordering::Relaxed);
            Clock::from_fn(move || chrono::DateTime::from_timestamp(now(), 0).unwrap())
        };
        let cache: super::super::Cache<UpdateFact> = super::super::Cache::new([], &clock);
        let seen = |at: i64, uid: &str, goal: &str, backend: &str| {
            second.store(at, std::sync::atomic::Ordering::Relaxed);
            let mut object = update(
                serde_json::json!({"policy": "workers", "goal": goal}),
                serde_json::json!({"bootID": "b", "bootControl": {"backend": backend, "counting": "Works"}}),
            );
            object["metadata"]["uid"] = uid.into();
            object["metadata"]["resourceVersion"] = (at + 1).to_string().into();
            let event = kube::runtime::watcher::Event::Apply(serde_json::from_value(object).unwrap());
            crate::gather::sent::watched(&cache, event);
            let fact = cache.get(&crate::gather::Key::cluster("n1"));
            fact.and_then(|fact| fact.read_again).map(|at| at.get().timestamp())
        };
        assert_eq!(seen(10, "u", "Booted", "SystemdBoot"), None);
        assert_eq!(seen(20, "u", "Booted", "Volcano"), None);
        assert_eq!(seen(30, "u", "Booted", "SystemdBoot"), Some(30));
        assert_eq!(seen(40, "u", "Booted", "SystemdBoot"), Some(30));
        assert_eq!(seen(50, "u", "Booted", "Volcano"), Some(30), "not over yet");
        assert_eq!(seen(60, "v", "Eclipse", "SystemdBoot"), Some(30), "what was known of another one of its name");
        assert_eq!(seen(70, "v", "Booted", "SystemdBoot"), Some(70), "of which nothing was known before");
        assert_eq!(seen(80, "w", "Booted", "SystemdBoot"), None);
    }

    /// A gate about the cluster that is taken for one about the node blames the release at once.
    #[test]
    fn which_gates_ask_about_a_node_is_a_question_to_the_language() {
        let gate = |name: &str, cel: &str| serde_json::json!({"name": name, "object": {"apiVersion": "v1", "kind": "Pod", "cel": cel}});
        let spec: UpdatePolicySpec = serde_json::from_value(serde_json::json!({
            "nodeSelector": {}, "source": {"repository": "https://images.example.com/os", "channel": "stable"},
            "health": {"gates": [
                gate("ci", "// don't reboot under a build\nobject.spec.nodeName != node"),
                gate("nodes", "object.status.nodes.all(node, node.ready)"),
            ]},
        }))
        .unwrap();
        let valid = validate(&spec).unwrap();
        let gates: Vec<_> = valid.gates.iter().map(|gate| (gate.name.as_str(), gate.per_node)).collect();
        assert_eq!(gates, [("ci", true), ("nodes", false)]);
    }

    fn name() -> String {
        crate::hooks::name_of(("", "n1"), 7, HookStage::BeforeDrain, "drain-vm")
    }

    fn job(conditions: serde_json::Value) -> Option<HookRun> {
        named(&name(), conditions)
    }

    fn named(name: &str, conditions: serde_json::Value) -> Option<HookRun> {
        run_of(
            &serde_json::from_value(serde_json::json!({
                "metadata": {
                    "name": name, "namespace": "ops", "creationTimestamp": "2026-11-21T10:00:00Z",
                    "labels": {HOOK_LABEL: "drain-vm", HOOK_STAGE: "before-drain"},
                    "annotations": {HOOK_NODE: "n1", HOOK_GRANT: "7"}
                },
                "status": {"conditions": conditions}
            }))
            .unwrap(),
        )
    }

    #[test]
    fn a_hooks_state_comes_from_its_jobs_conditions() {
        let running = job(serde_json::json!([])).unwrap();
        assert!(matches!(running.state, HookState::Running { .. }));
        assert_eq!(
            (running.node.as_str(), running.grant, running.job.as_str()),
            ("n1", 7, format!("ops/{}", name()).as_str())
        );
        let done = job(serde_json::json!([{"type": "Complete", "status": "True"}])).unwrap();
        assert_eq!(done.state, HookState::Succeeded);
        let failed = job(
            serde_json::json!([{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "m"}]),
        );
        assert_eq!(failed.unwrap().state, HookState::Failed { message: "DeadlineExceeded: m".into() });
        assert!(run_of(&Job::default()).is_none());
    }

    /// Whoever may create a Job somewhere may give it our labels.
    #[test]
    fn a_job_that_only_looks_like_one_of_ours_is_none() {
        let done = || serde_json::json!([{"type": "Complete", "status": "True"}]);
        assert!(named("bascule-drain-vm-n1", done()).is_none());
        let other = crate::hooks::name_of(("", "n1"), 8, HookStage::BeforeDrain, "drain-vm");
        assert!(named(&other, done()).is_none());
    }
}
