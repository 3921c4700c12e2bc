//! The Jobs of hooks after a rollout. They are made before its first hook runs, suspended, owned by nobody, and hold all that it takes
//! to run them: what is to be undone is undone though the policy is deleted in the middle and whoever led then is gone. The end of
//! the rollout lets them run.

use super::{job, make, refused};
use crate::{
    apply::{ApplyError, Writer},
    gather::{Caches, JobFact, Key, PolicyFact},
};
use bascule_api::Hook;
use bascule_facts::hook::{After, HOOK_BEGUN, HOOK_FOLLOWS, HOOK_POLICY_UID, HOOK_SPEC, begun, name_after};
use bascule_planner::{
    plan::HookOrder,
    snapshot::{HookRun, HookStage, HookState},
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use std::sync::Arc;

/// The Job of a hook after a rollout, as it is kept.
///
/// # Errors
/// What is wrong with the hook.
pub(super) fn kept(order: &HookOrder, hooks: &[Hook], policy_uid: &str) -> Result<Job, String> {
    let hook = hooks.iter().find(|hook| hook.name == order.hook);
    let hook = hook.ok_or_else(|| "the policy has no such hook any more".to_owned())?;
    let name = |hook: &str| name_after((&order.policy, policy_uid), order.grant, hook);
    let before = hooks.iter().take_while(|one| one.name != order.hook);
    let follows: Vec<String> = before.map(|one| format!("{}/{}", one.namespace, name(&one.name))).collect();
    let follows = follows.join(" ");
    let mut job = job(order, hook, None)?;
    let spec = job.spec.get_or_insert_default();
    let what = serde_json::to_string(spec).map_err(|error| crate::one_line(&error))?;
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{follows}\n{what}").as_bytes());
    let digest: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    spec.suspend = Some(true);
    job.metadata.name = Some(name(&order.hook));
    let annotations = job.metadata.annotations.get_or_insert_default();
    annotations.insert(HOOK_POLICY_UID.to_owned(), policy_uid.to_owned());
    annotations.insert(HOOK_FOLLOWS.to_owned(), follows);
    annotations.insert(HOOK_SPEC.to_owned(), digest);
    Ok(job)
}

/// How a hook after a rollout is let run.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Begin {
    /// Its Job was kept.
    Resume {
        /// `namespace/name`.
        job: String,
        resource_version: String,
    },
    /// Its Job is there and of no use: somebody else let it run, or it is not what the policy says by now.
    Replace { resource_version: String, job: Arc<Job> },
    /// There is no Job of it.
    Make(Arc<Job>),
}

impl Begin {
    /// `wanted` is what the policy says, as it would be kept. `None` for a Job that was begun.
    fn of(known: Option<&JobFact>, wanted: Job) -> Option<Self> {
        let known = known.and_then(|known| known.run.as_ref().zip(known.after.as_ref()));
        let Some((run, after)) = known else { return Some(Self::Make(Arc::new(begun(wanted)))) };
        if spec_of(&wanted).is_some_and(|spec| *spec == after.spec) {
            return Self::alone(run, after);
        }
        let (resource_version, job) = (after.resource_version.clone(), Arc::new(begun(wanted)));
        (run.state == HookState::Kept).then_some(Self::Replace { resource_version, job })
    }

    /// Of a Job whose policy is gone: what it says counts.
    pub(super) fn alone(run: &HookRun, after: &After) -> Option<Self> {
        let resource_version = after.resource_version.clone();
        (run.state == HookState::Kept).then(|| match &after.again {
            Some(again) => Self::Replace { resource_version, job: Arc::clone(again) },
            None => Self::Resume { job: run.job.clone(), resource_version },
        })
    }

    /// Does it; `false` where the Job is not what it was any more: then it is to be looked at again.
    pub(super) async fn carry_out(&self, writer: &Writer) -> kube::Result<bool> {
        match self {
            Self::Make(job) => make(writer, job).await.map(|()| true),
            Self::Replace { resource_version, job } => {
                let (namespace, name) = (job.metadata.namespace.as_deref(), job.metadata.name.as_deref());
                let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
                if remove(writer, (namespace, name), resource_version).await? {
                    make(writer, job).await.map(|()| true)
                } else {
                    Ok(false)
                }
            }
            Self::Resume { job, resource_version } => {
                let Some((namespace, name)) = job.split_once('/') else { return Ok(false) };
                let jobs: Api<Job> = Api::namespaced(writer.client.clone(), namespace);
                let patch = serde_json::json!({
                    "metadata": {"resourceVersion": resource_version, "annotations": {HOOK_BEGUN: "true"}},
                    "spec": {"suspend": false},
                });
                let params = PatchParams {
                    field_manager: Some(bascule_api::OPERATOR_MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                match jobs.patch(name, &params, &Patch::Merge(&patch)).await {
                    Ok(written) => {
                        writer.metrics.wrote("Job");
                        writer.world.jobs.written(&written);
                        Ok(true)
                    }
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
                    Err(error) => Err(error),
                }
            }
        }
    }
}

/// Deletes a Job as it was seen; whether it is gone.
pub(super) async fn remove(
    writer: &Writer,
    (namespace, name): (&str, &str),
    resource_version: &str,
) -> kube::Result<bool> {
    let jobs: Api<Job> = Api::namespaced(writer.client.clone(), namespace);
    let seen = Preconditions { uid: None, resource_version: Some(resource_version.to_owned()) };
    let params = DeleteParams { preconditions: Some(seen), ..DeleteParams::background() };
    match jobs.delete(name, &params).await {
        Ok(_) => {
            writer.metrics.wrote("Job");
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn wanted(writer: &Writer, order: &HookOrder) -> Result<Job, ApplyError> {
    let policy = writer.world.policies.get(&Key::cluster(&order.policy));
    let policy = policy.ok_or_else(|| ApplyError::Gone(format!("UpdatePolicy {}", order.policy)))?;
    // Another one of its name counts its rollouts from one again.
    if policy.status.maintenance.as_ref().is_none_or(|open| open.number != order.grant) {
        return Err(ApplyError::Conflict(format!("rollout {} of UpdatePolicy {}", order.grant, order.policy)));
    }
    kept(order, &policy.spec.hooks.after_rollout, &policy.uid)
        .map_err(|reason| ApplyError::Hook { hook: order.hook.clone(), reason })
}

/// Makes the Job of a hook after a rollout, suspended.
pub(crate) async fn keep(writer: &Writer, order: &HookOrder) -> Result<(), ApplyError> {
    let job = wanted(writer, order)?;
    make(writer, &job).await.map_err(|error| refused(order, error))
}

/// Lets a hook after a rollout run, at the rollout's end.
pub(crate) async fn begin(writer: &Writer, order: &HookOrder) -> Result<(), ApplyError> {
    let job = wanted(writer, order)?;
    let key = Key::of_metadata(&job.metadata);
    let known = writer.world.jobs.get(&key);
    let Some(begin) = Begin::of(known.as_deref(), job) else { return Ok(()) };
    match begin.carry_out(writer).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(ApplyError::Conflict(format!("the Job of hook {}", order.hook))),
        Err(error) => Err(refused(order, error)),
    }
}

/// Jobs that are kept, and that the policy, which is there, has no use for: the rollout is over, or the hook is another by now or none.
/// What follows from that is planned anew. A policy that can't be used says nothing of its hooks.
pub(super) fn superseded(world: &Caches) -> Vec<Arc<JobFact>> {
    let mut kept = world.jobs.select(|job| job.run.as_ref().is_some_and(|run| run.state == HookState::Kept));
    kept.retain(|job| {
        let (Some(run), Some(after)) = (&job.run, &job.after) else { return false };
        let policy = world.policies.get(&Key::cluster(&run.policy)).filter(|policy| policy.uid == after.policy_uid);
        // What can't be read may ask for it still.
        let unread = world.policies.unreadable(&Key::cluster(&run.policy)).is_some();
        !unread && policy.is_some_and(|policy| !stands(&policy, run, after))
    });
    kept
}

/// Whether a Job is kept for what its policy says now.
fn stands(policy: &PolicyFact, run: &HookRun, after: &After) -> bool {
    let open = policy.status.maintenance.as_ref().filter(|open| open.number == run.grant);
    let Some(open) = open else { return false };
    let Ok(valid) = &policy.valid else { return true };
    let hooks = &valid.spec.hooks.after_rollout;
    if !hooks.iter().any(|hook| run.is_of(hook)) {
        return false;
    }
    let order = HookOrder {
        node: String::new(),
        policy: run.policy.clone(),
        grant: run.grant,
        stage: HookStage::AfterRollout,
        hook: run.hook.clone(),
        version: open.version.clone(),
    };
    // One whose template became none is better than nothing.
    !kept(&order, hooks, &policy.uid).is_ok_and(|job| spec_of(&job).is_some_and(|spec| *spec != after.spec))
}

/// The digest of the spec that a Job was made with.
fn spec_of(job: &Job) -> Option<&String> {
    job.metadata.annotations.as_ref()?.get(HOOK_SPEC)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{clock::Clock, gather::Fact as _};
    use bascule_api::UpdatePolicy;
    use serde_json::{Value, json};
    use tokio::sync::watch;

    /// A policy with two hooks after its rollouts, the third of which is open or none.
    pub(in crate::hooks) fn policy_with(uid: &str, open: bool, hooks: &Value) -> UpdatePolicy {
        let maintenance = json!({"number": 3, "plannedAt": "2026-11-29T10:00:00Z", "begunAt": "2026-11-29T10:01:00Z"});
        serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
            "metadata": {"name": "workers", "uid": uid, "creationTimestamp": "2026-11-01T00:00:00Z", "resourceVersion": "7"},
            "spec": {
                "nodeSelector": {"matchLabels": {"role": "worker"}},
                "source": {"repository": "https://images.example.com", "channel": "stable"},
                "hooks": {"afterRollout": hooks}
            },
            "status": if open { json!({"maintenance": maintenance}) } else { json!({}) }
        }))
        .unwrap()
    }

    pub(in crate::hooks) fn hook(name: &str, namespace: &str, image: &str) -> Value {
        json!({"name": name, "namespace": namespace, "job": {"template": {"spec": {"containers": [
            {"name": "c", "image": image}]}}}})
    }

    pub(in crate::hooks) fn two() -> Value {
        json!([hook("unset-noout", "ceph", "i"), hook("unmute", "monitoring", "i")])
    }

    /// The Jobs that are kept for a policy.
    pub(in crate::hooks) fn jobs_of(policy: &UpdatePolicy) -> Vec<Job> {
        let hooks = &policy.spec.hooks.after_rollout;
        let order = |hook: &Hook| HookOrder {
            node: String::new(),
            policy: "workers".to_owned(),
            grant: 3,
            stage: HookStage::AfterRollout,
            hook: hook.name.clone(),
            version: None,
        };
        let uid = policy.metadata.uid.as_deref().unwrap();
        hooks.iter().map(|hook| shown(&kept(&order(hook), hooks, uid).unwrap())).collect()
    }

    /// As the API server shows a Job that was made.
    pub(in crate::hooks) fn shown(job: &Job) -> Job {
        let mut job = job.clone();
        job.metadata.uid = Some(format!("uid-of-{}", job.metadata.name.as_deref().unwrap()));
        job.metadata.resource_version = Some("10".to_owned());
        job.metadata.creation_timestamp = serde_json::from_value(json!("2026-11-29T10:00:30Z")).unwrap();
        let spec = job.spec.as_mut().unwrap();
        spec.selector =
            serde_json::from_value(json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})).unwrap();
        let meta = spec.template.metadata.get_or_insert_default();
        meta.labels.get_or_insert_default().insert("batch.kubernetes.io/controller-uid".to_owned(), "u".to_owned());
        job
    }

    /// A Job that somebody let run, and that came to its end.
    pub(in crate::hooks) fn ended(job: &Job, type_: &str) -> Job {
        let mut job = job.clone();
        job.metadata.resource_version = Some("20".to_owned());
        job.status = serde_json::from_value(json!({"conditions": [{"type": type_, "status": "True"}]})).unwrap();
        job
    }

    fn state(job: &Job) -> HookState {
        JobFact::of(job).run.expect("it is one of ours").state
    }

    #[test]
    fn a_job_that_is_kept_holds_what_it_takes_and_waits_whatever_others_do_with_it() {
        let jobs = jobs_of(&policy_with("u1", true, &two()));
        let [first, second] = &jobs[..] else { panic!("{jobs:?}") };
        assert_eq!((first.spec.as_ref().unwrap().suspend, &first.metadata.owner_references), (Some(true), &None));
        let fact = JobFact::of(second);
        let after = fact.after.unwrap();
        let path = format!("ceph/{}", first.metadata.name.as_deref().unwrap());
        assert_eq!((after.policy_uid.as_str(), &after.follows[..], after.again), ("u1", &[path][..], None));
        assert_eq!(state(second), HookState::Kept);
        // Kueue lets Jobs run that are suspended. What that comes to is no answer.
        let run = ended(second, "Complete");
        let fact = JobFact::of(&run);
        assert_eq!((state(&run), fact.kept_for, fact.after.unwrap().again.is_some()), (HookState::Kept, None, true));
        let ran = ended(&begun(second.clone()), "Complete");
        assert_eq!((state(&ran), JobFact::of(&ran).kept_for), (HookState::Succeeded, Some(3_600)));
        // Another policy's Jobs are others, and a name that does not follow from the annotations is none of ours.
        let other = &jobs_of(&policy_with("u2", true, &two()))[0];
        assert_ne!(first.metadata.name, other.metadata.name);
        let mut forged = first.clone();
        forged.metadata.annotations.as_mut().unwrap().insert(HOOK_POLICY_UID.to_owned(), "u2".to_owned());
        assert!(JobFact::of(&forged).run.is_none());
    }

    #[test]
    fn a_job_runs_since_it_was_begun_and_not_since_it_was_made() {
        let at = |second: i64| bascule_api::Time::new(chrono::DateTime::from_timestamp(second, 0).unwrap());
        let since = |job: &Job, before: Option<&JobFact>, second: i64| {
            let mut fact = JobFact::of(job);
            fact.follow(before, at(second));
            let HookState::Running { since } = fact.run.as_ref().unwrap().state else { panic!("{fact:?}") };
            (since.get().timestamp(), fact)
        };
        let kept = jobs_of(&policy_with("u1", true, &two())).remove(0);
        let mut running = begun(kept.clone());
        let (seen, fact) = since(&running, Some(&JobFact::of(&kept)), 2_000_000_000);
        assert_eq!(seen, 2_000_000_000);
        assert_eq!(since(&running, Some(&fact), 2_000_000_030).0, 2_000_000_000);
        running.status = serde_json::from_value(json!({"startTime": "2033-05-18T03:33:21Z"})).unwrap();
        assert_eq!(since(&running, Some(&fact), 2_000_000_030).0, 2_000_000_001);
    }

    #[test]
    fn a_job_is_resumed_where_it_is_what_the_policy_says_and_made_anew_where_it_is_not() {
        let before = policy_with("u1", true, &two());
        let edited =
            policy_with("u1", true, &json!([hook("unset-noout", "ceph", "i:2"), hook("unmute", "monitoring", "i")]));
        let known = jobs_of(&before).remove(0);
        let fact = JobFact::of(&known);
        let same = Begin::of(Some(&fact), jobs_of(&before).remove(0));
        assert!(matches!(&same, Some(Begin::Resume { resource_version, .. }) if resource_version == "10"), "{same:?}");
        let other = Begin::of(Some(&fact), jobs_of(&edited).remove(0));
        let Some(Begin::Replace { job, .. }) = other else { panic!("{other:?}") };
        assert_eq!(state(&shown(&job)), HookState::Running { since: bascule_api::Time::default() });
        let none = Begin::of(None, jobs_of(&before).remove(0));
        assert!(
            matches!(&none, Some(Begin::Make(job)) if job.spec.as_ref().unwrap().suspend == Some(false)),
            "{none:?}"
        );
        assert_eq!(Begin::of(Some(&JobFact::of(&begun(known.clone()))), jobs_of(&before).remove(0)), None, "it runs");
        // One that somebody else let run is made anew, without what the API server wrote into it.
        let spent = JobFact::of(&ended(&known, "Complete"));
        let (run, after) = (spent.run.as_ref().unwrap(), spent.after.as_ref().unwrap());
        let Some(Begin::Replace { resource_version, job }) = Begin::alone(run, after) else { panic!("{spent:?}") };
        assert_eq!(resource_version, "20");
        let spec = job.spec.as_ref().unwrap();
        assert_eq!((&spec.selector, spec.suspend, &job.metadata.uid), (&None, Some(false), &None));
        assert_eq!(spec.template.metadata.as_ref().unwrap().labels.as_ref().unwrap().len(), 0);
    }

    #[test]
    fn what_is_kept_follows_its_policy() {
        let hooks = |of: Value| policy_with("u1", true, &of);
        let before = hooks(two());
        let superseded = |policy: Option<&UpdatePolicy>| -> Vec<String> {
            let world = Caches::new(Arc::new(watch::Sender::new(0)), &Clock::system());
            jobs_of(&before).iter().for_each(|job| world.jobs.written(job));
            policy.into_iter().for_each(|policy| world.policies.written(policy));
            superseded(&world).iter().map(|job| job.run.as_ref().unwrap().hook.clone()).collect()
        };
        assert!(superseded(Some(&before)).is_empty());
        assert!(superseded(None).is_empty(), "nobody else knows what is to be undone");
        assert!(superseded(Some(&policy_with("u2", true, &json!([])))).is_empty(), "nor does another of that name");
        assert_eq!(superseded(Some(&policy_with("u1", false, &two()))), ["unset-noout", "unmute"], "it is over");
        let edited = hooks(json!([hook("unset-noout", "ceph", "i:2"), hook("unmute", "monitoring", "i")]));
        assert_eq!(superseded(Some(&edited)), ["unset-noout"]);
        let moved = hooks(json!([hook("unset-noout", "ceph", "i"), hook("unmute", "elsewhere", "i")]));
        assert_eq!(superseded(Some(&moved)), ["unmute"]);
        // What comes before it counts too.
        assert_eq!(superseded(Some(&hooks(json!([hook("unmute", "monitoring", "i")])))), ["unset-noout", "unmute"]);
        let mut invalid = hooks(json!([]));
        invalid.spec.source.repository = "http://images.example.com".to_owned();
        let fact = PolicyFact::of(&invalid);
        assert!(fact.valid.is_err(), "{:?}", fact.valid);
        assert!(superseded(Some(&invalid)).is_empty(), "it can't be used");
    }
}
