//! What is kept of the Jobs of hooks: how they are known, and how far they are.

use crate::{Fact, fact};
use bascule_api::Time;
use bascule_planner::snapshot::{HookRun, HookStage, HookState};
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use std::{collections::BTreeMap, sync::Arc};

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

/// What an operator of ours writes on the Job of a hook.
const OURS: [&str; 10] = [
    HOOK_LABEL,
    HOOK_NODE,
    HOOK_POLICY,
    HOOK_GRANT,
    HOOK_STAGE,
    HOOK_TTL,
    HOOK_POLICY_UID,
    HOOK_FOLLOWS,
    HOOK_SPEC,
    HOOK_BEGUN,
];
/// What the API server writes into the template of a Job, to be written anew for another one.
const OF_THE_SERVER: [&str; 4] =
    ["controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"];

/// Longest name of a Job: its pods append a suffix and repeat it in a label (63).
const NAME: usize = 57;

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
    fn follow(&mut self, before: Option<&Self>, now: Time) {
        let Some(HookRun { state: HookState::Running { since }, .. }) = &mut self.run else { return };
        if *since == Time::default() {
            *since = match before.and_then(|before| before.run.as_ref()).map(|run| &run.state) {
                Some(HookState::Running { since }) => *since,
                _ => now,
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
        uid: fact::uid(job),
        resource_version: job.metadata.resource_version.clone().unwrap_or_default(),
        follows: follows.split_whitespace().map(str::to_owned).collect(),
        spec: annotations.get(HOOK_SPEC).cloned().unwrap_or_default(),
        again: of_no_use.then(|| Arc::new(again(job))),
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
        Some(uid) => name_after((&policy, uid), grant, &hook),
        None => name_of((&policy, &node), grant, stage, &hook),
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

/// The name of the Job that runs a hook for a node, or for a whole policy where that is empty.
#[must_use]
pub fn name_of((policy, node): (&str, &str), grant: i64, stage: HookStage, hook: &str) -> String {
    let of = if node.is_empty() { policy } else { node };
    let what = format!("{of}\n{grant}\n{}\n{hook}", stage_text(stage));
    let digest = ring::digest::digest(&ring::digest::SHA256, what.as_bytes());
    let suffix: String = digest.as_ref().iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let node: String = of.chars().map(|c| if c == '.' { '-' } else { c }).collect();
    let readable: String = format!("bascule-{hook}-{node}").chars().take(NAME - suffix.len() - 1).collect();
    format!("{}-{suffix}", readable.trim_end_matches('-'))
}

/// The name of the Job of a hook after a rollout. Another policy of the same name counts its rollouts from one again, and its Jobs are
/// not these.
#[must_use]
pub fn name_after((policy, uid): (&str, &str), number: i64, hook: &str) -> String {
    name_of((&format!("{policy}.{uid}"), ""), number, HookStage::AfterRollout, hook)
}

/// The same Job as it is made anew, to run at once.
#[must_use]
pub fn again(job: &Job) -> Job {
    let mut spec = job.spec.clone().unwrap_or_default();
    if spec.manual_selector != Some(true) {
        spec.selector = None;
        if let Some(labels) = spec.template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
            labels.retain(|label, _| !OF_THE_SERVER.contains(&label.as_str()));
        }
    }
    spec.ttl_seconds_after_finished = None;
    let mut anew = Job { spec: Some(spec), ..Job::default() };
    let meta = &mut anew.metadata;
    meta.name.clone_from(&job.metadata.name);
    meta.namespace.clone_from(&job.metadata.namespace);
    meta.labels.clone_from(&job.metadata.labels);
    meta.annotations.clone_from(&job.metadata.annotations);
    for all in [&mut meta.labels, &mut meta.annotations].into_iter().flatten() {
        all.retain(|key, _| OURS.contains(&key.as_str()));
    }
    begun(anew)
}

/// The Job as it is once the operator let it run.
#[must_use]
pub fn begun(mut job: Job) -> Job {
    job.spec.get_or_insert_default().suspend = Some(false);
    job.metadata.annotations.get_or_insert_default().insert(HOOK_BEGUN.to_owned(), "true".to_owned());
    job
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> String {
        name_of(("", "n1"), 7, HookStage::BeforeDrain, "drain-vm")
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

    #[test]
    fn names_are_valid_and_repeatable() {
        let name = |node: &str, grant: i64| name_of(("workers", node), grant, HookStage::BeforeDrain, "move-vms");
        let long = "very-long-node-name.".repeat(10);
        let first = name(&long, 3);
        assert_eq!(first, name(&long, 3));
        assert!(first.len() <= NAME && !first.contains('.'), "{first}");
        assert_ne!(name("n1", 3), name("n1", 4));
    }

    /// Whoever may create a Job somewhere may give it our labels.
    #[test]
    fn a_job_that_only_looks_like_one_of_ours_is_none() {
        let done = || serde_json::json!([{"type": "Complete", "status": "True"}]);
        assert!(named("bascule-drain-vm-n1", done()).is_none());
        let other = name_of(("", "n1"), 8, HookStage::BeforeDrain, "drain-vm");
        assert!(named(&other, done()).is_none());
    }
}
