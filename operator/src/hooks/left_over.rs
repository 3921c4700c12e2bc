//! The hooks after a rollout whose policy was deleted in its middle. What those before it did (Ceph's `noout`) has to be undone
//! all the same, and the policy that would say so is gone: who leads remembers it from when it was there. Nothing keeps a policy
//! from being deleted, since the operator has no right to write one.

use super::{job, name_of};
use crate::{
    apply::Writer,
    events::{About, Notice},
    gather::{HOOK_POLICY, JobFact, PolicyFact},
};
use bascule_api::{Duration, Hook, Time};
use bascule_planner::{
    plan::HookOrder,
    snapshot::{HookRun, HookStage, HookState},
};
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, api::PostParams};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How long a policy may take to open its first rollout.
const QUIET: Duration = Duration::from_secs(120);

/// A rollout that is under way, and what is to run after it.
#[derive(Debug, Clone)]
struct Open {
    policy: String,
    uid: String,
    number: i64,
    version: Option<bascule_api::Version>,
    after: Vec<Hook>,
    done: BTreeSet<String>,
    /// The Job that failed last, of which people were told.
    failed: Option<String>,
}

impl Open {
    fn of(policy: &PolicyFact) -> Option<Self> {
        let open = policy.status.maintenance.as_ref()?;
        let after = &policy.valid.as_ref().ok()?.spec.hooks.after_rollout;
        (!after.is_empty()).then(|| Self {
            policy: policy.name.clone(),
            uid: policy.uid.clone(),
            number: open.number,
            version: open.version.clone(),
            after: after.clone(),
            done: open.hooks_done.iter().cloned().collect(),
            failed: None,
        })
    }

    /// Whose Jobs they are: another policy of that name counts its rollouts from one again, and its Jobs are not these.
    fn owner(&self) -> String {
        format!("{}.{}", self.policy, self.uid)
    }

    fn left(&self) -> impl Iterator<Item = &Hook> {
        self.after.iter().filter(|hook| !self.done.contains(&HookStage::AfterRollout.key(&hook.name)))
    }

    fn tells(&self, warning: bool, reason: &'static str, note: String) -> Notice {
        let about = About::own("UpdatePolicy", &self.policy, &self.uid);
        Notice { about, warning, reason, action: "RunRolloutHook", note, related: None }
    }

    fn order(&self, hook: &Hook) -> HookOrder {
        HookOrder {
            node: String::new(),
            policy: self.policy.clone(),
            grant: self.number,
            stage: HookStage::AfterRollout,
            hook: hook.name.clone(),
            version: self.version.clone(),
        }
    }
}

/// What one look at the cluster leads to.
#[derive(Debug, Default)]
struct Found {
    notices: Vec<Notice>,
    /// The Jobs to be made, with what is told once they are.
    jobs: Vec<(Job, String)>,
}

/// The rollouts that are under way, and those whose policy is gone. A leader that begins later does not know of the latter.
#[derive(Debug, Default)]
pub(crate) struct LeftOver {
    open: BTreeMap<String, Open>,
    left: Vec<Open>,
}

impl LeftOver {
    /// Runs what is due and tells of it; whether something is left to be done. The policies are those that the plan was made
    /// from: of a hook that it begins one must be remembered that is gone since.
    pub(crate) async fn run(&mut self, writer: &Writer, policies: &[Arc<PolicyFact>], now: Time) -> bool {
        let world = &writer.world;
        let updates = world.updates.select(|update| update.facts.spec.disruption.is_some());
        let moves = |policy: &str| updates.iter().any(|update| update.facts.spec.policy == policy);
        let jobs = world.jobs.select(|job| job.run.as_ref().is_some_and(|run| run.stage == HookStage::AfterRollout));
        let found = self.look(policies, &jobs, now, moves);
        for notice in found.notices {
            writer.events.tell(notice);
        }
        for (job, hook) in found.jobs {
            let namespace = job.metadata.namespace.clone().unwrap_or_default();
            let jobs: Api<Job> = Api::namespaced(writer.client.clone(), &namespace);
            let params =
                PostParams { field_manager: Some(bascule_api::OPERATOR_MANAGER.to_owned()), ..PostParams::default() };
            match jobs.create(&params, &job).await {
                Ok(created) => {
                    writer.metrics.wrote("Job");
                    world.jobs.written(&created);
                }
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                Err(error) => {
                    tracing::warn!(hook, error = crate::one_line(&error), "a hook after a rollout can't be run");
                }
            }
        }
        !self.left.is_empty()
    }

    /// Whether a Job is needed still: what it came to decides what is next, and a failed one is a person's to delete.
    pub(super) fn waits_for(&self, run: &HookRun) -> bool {
        self.left.iter().any(|open| run.policy == open.owner() && run.grant == open.number)
    }

    fn look(
        &mut self,
        policies: &[Arc<PolicyFact>],
        jobs: &[Arc<JobFact>],
        now: Time,
        moves: impl Fn(&str) -> bool,
    ) -> Found {
        let mut found = Found::default();
        let mut before = std::mem::take(&mut self.open);
        for policy in policies {
            match Open::of(policy) {
                Some(open) => drop(self.open.insert(policy.uid.clone(), open)),
                // Its hooks are not known while it can't be used, and stay what they were.
                None if policy.valid.is_err() && policy.status.maintenance.is_some() => {
                    self.open.extend(before.remove_entry(&policy.uid));
                }
                None => {}
            }
            before.remove(&policy.uid);
        }
        for open in before.into_values() {
            let names: Vec<&str> = open.left().map(|hook| hook.name.as_str()).collect();
            if names.is_empty() {
                continue;
            }
            let names = names.join(", ");
            let note = format!(
                "the policy was deleted in the middle of its rollout: the hooks after it run once its nodes are done: {names}"
            );
            found.notices.push(open.tells(true, "MaintenanceLeftOver", note));
            self.left.push(open);
        }
        self.left.retain_mut(|open| {
            let another = policies.iter().any(|other| other.name == open.policy && does_anew(other, now));
            if another || moves(&open.policy) {
                return true;
            }
            step(open, jobs, &mut found)
        });
        found
    }
}

/// Whether another policy of the same name may do anew what the hooks after a rollout undo: in a rollout of its own, whether or
/// not it can be used just now, or in one that it may be about to open, as after somebody's tool deleted a policy and applied it
/// again.
fn does_anew(policy: &PolicyFact, now: Time) -> bool {
    let status = &policy.status;
    status.maintenance.is_some() || (status.maintenances == 0 && now < policy.created_at.after(QUIET))
}

/// The next step of one; whether something is left to be done.
fn step(open: &mut Open, jobs: &[Arc<JobFact>], found: &mut Found) -> bool {
    let owner = open.owner();
    loop {
        let next = open.left().next().cloned();
        let Some(hook) = next else { break };
        let mut runs = jobs.iter().filter_map(|job| job.run.as_ref());
        let run = runs.find(|run| run.policy == owner && run.grant == open.number && run.is_of(&hook));
        match run.map(|run| (&run.state, &run.job)) {
            Some((HookState::Succeeded, _)) => {
                open.done.insert(HookStage::AfterRollout.key(&hook.name));
            }
            Some((HookState::Running { .. }, _)) => return true,
            Some((HookState::Failed { message }, name)) => {
                if open.failed.as_ref() != Some(name) {
                    let note = format!("hook {} failed ({name}): {message}; delete the Job to run it again", hook.name);
                    found.notices.push(open.tells(true, "MaintenanceHookFailed", note));
                    open.failed = Some(name.clone());
                }
                return true;
            }
            None => {
                open.failed = None;
                match orphan(open, &hook, &owner) {
                    Ok(job) => found.jobs.push((job, hook.name.clone())),
                    Err(why) => {
                        let note = format!("hook {} can't be run, and is passed over: {why}", hook.name);
                        found.notices.push(open.tells(true, "MaintenanceHookFailed", note));
                        open.done.insert(HookStage::AfterRollout.key(&hook.name));
                        continue;
                    }
                }
                return true;
            }
        }
    }
    found.notices.push(open.tells(false, "MaintenanceEnded", "the hooks after it are done".to_owned()));
    false
}

/// A Job that goes away with nothing, since its policy is gone.
fn orphan(open: &Open, hook: &Hook, owner: &str) -> Result<Job, String> {
    let mut job = job(&open.order(hook), hook, None)?;
    job.metadata.name = Some(name_of((owner, ""), open.number, HookStage::AfterRollout, &hook.name));
    job.metadata.annotations.get_or_insert_default().insert(HOOK_POLICY.to_owned(), owner.to_owned());
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        gather::{Fact as _, World},
        hooks::over,
    };
    use bascule_api::UpdatePolicy;
    use bascule_planner::{PolicyError, PolicyErrorKind};
    use serde_json::json;
    use tokio::sync::watch;

    fn policy(uid: &str, open: bool) -> Arc<PolicyFact> {
        let hook = |name: &str| {
            json!({"name": name, "namespace": "ceph", "job": {"template": {"spec": {"containers": [
                {"name": "c", "image": "i"}]}}}})
        };
        let maintenance = json!({"number": 3, "plannedAt": "2026-11-29T10:00:00Z", "begunAt": "2026-11-29T10:01:00Z"});
        let policy: UpdatePolicy = serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
            "metadata": {"name": "workers", "uid": uid, "creationTimestamp": "2026-11-01T00:00:00Z"},
            "spec": {
                "nodeSelector": {"matchLabels": {"role": "worker"}},
                "source": {"repository": "https://images.example.com", "channel": "stable"},
                "hooks": {"afterRollout": [hook("unset-noout"), hook("unmute")]}
            },
            "status": if open { json!({"maintenance": maintenance}) } else { json!({}) }
        }))
        .unwrap();
        let fact = PolicyFact::of(&policy);
        assert!(fact.valid.is_ok(), "{:?}", fact.valid);
        Arc::new(fact)
    }

    fn at(second: i64) -> Time {
        chrono::DateTime::from_timestamp(1_795_950_000 + second, 0).unwrap().into()
    }

    fn as_ended(job: &Job, type_: &str) -> Job {
        let mut job = job.clone();
        job.metadata.creation_timestamp = serde_json::from_value(json!("2026-11-29T10:10:00Z")).unwrap();
        job.status = serde_json::from_value(json!({"conditions": [{"type": type_, "status": "True"}]})).unwrap();
        job
    }

    fn ended(job: &Job, type_: &str) -> Arc<JobFact> {
        let fact = JobFact::of(&as_ended(job, type_));
        assert!(fact.run.is_some(), "it is one of ours");
        Arc::new(fact)
    }

    fn reasons(found: &Found) -> Vec<&'static str> {
        found.notices.iter().map(|notice| notice.reason).collect()
    }

    #[test]
    fn what_a_deleted_policy_left_undone_is_undone_once_its_nodes_are() {
        let mut left = LeftOver::default();
        assert!(reasons(&left.look(&[policy("u1", true)], &[], at(0), |_| true)).is_empty());
        let found = left.look(&[], &[], at(0), |policy| policy == "workers");
        assert_eq!((reasons(&found), found.jobs.len()), (vec!["MaintenanceLeftOver"], 0));
        assert!(found.notices[0].note.contains("unset-noout, unmute"), "{}", found.notices[0].note);
        assert!(left.look(&[], &[], at(0), |_| true).jobs.is_empty(), "a node is under way");
        // In their order, each once the one before succeeded, and a failed one again when a person deletes its Job.
        let mut first = left.look(&[], &[], at(0), |_| false);
        let (job, hook) = first.jobs.pop().unwrap();
        assert_eq!((hook.as_str(), job.metadata.owner_references.as_ref()), ("unset-noout", None));
        let spec = serde_json::to_string(&job.spec).unwrap();
        assert!(spec.contains(r#"{"name":"BASCULE_POLICY","value":"workers"}"#), "{spec}");
        let failed = [ended(&job, "Failed")];
        assert_eq!(reasons(&left.look(&[], &failed, at(0), |_| false)), ["MaintenanceHookFailed"]);
        let again = left.look(&[], &failed, at(0), |_| false);
        assert!(again.notices.is_empty() && again.jobs.is_empty(), "told once");
        assert_eq!(left.look(&[], &[], at(0), |_| false).jobs.len(), 1);
        let mut second = left.look(&[], &[ended(&job, "Complete")], at(0), |_| false);
        let (last, hook) = second.jobs.pop().unwrap();
        assert_eq!(hook, "unmute");
        // The first one's Job may be gone by now.
        assert_eq!(reasons(&left.look(&[], &[ended(&last, "Complete")], at(0), |_| false)), ["MaintenanceEnded"]);
        assert!(left.left.is_empty());
    }

    #[test]
    fn a_job_that_is_waited_for_is_not_let_go() {
        let mut left = LeftOver::default();
        left.look(&[policy("u1", true)], &[], at(0), |_| false);
        let (job, _) = left.look(&[], &[], at(0), |_| false).jobs.pop().unwrap();
        let world = World::new(Arc::new(watch::Sender::new(0)), &Clock::system());
        for state in ["Failed", "Complete"] {
            // Cleared away, a failed one would run again by itself, and one that succeeded before that was noted.
            let world = World::new(Arc::new(watch::Sender::new(0)), &Clock::system());
            world.jobs.written(&as_ended(&job, state));
            assert!(over(&world, &left).is_empty(), "{state}");
            assert_eq!(over(&world, &LeftOver::default()).len(), 1, "{state}: nobody waits for it");
        }
        world.jobs.written(&as_ended(&job, "Complete"));
        let (last, _) = left.look(&[], &[ended(&job, "Complete")], at(0), |_| false).jobs.pop().unwrap();
        assert!(over(&world, &left).is_empty());
        left.look(&[], &[ended(&last, "Complete")], at(0), |_| false);
        assert_eq!(over(&world, &left).len(), 1, "the last one is done");
    }

    #[test]
    fn another_policy_of_that_name_has_its_own_hooks() {
        let mut left = LeftOver::default();
        left.look(&[policy("u1", true)], &[], at(0), |_| false);
        let found = left.look(&[policy("u2", true)], &[], at(0), |_| false);
        assert_eq!((reasons(&found), found.jobs.len()), (vec!["MaintenanceLeftOver"], 0), "its own rollout is open");
        let mut found = left.look(&[policy("u2", false)], &[], at(0), |_| false);
        let (job, _) = found.jobs.pop().unwrap();
        let own = name_of(("workers", ""), 3, HookStage::AfterRollout, "unset-noout");
        assert_ne!(job.metadata.name, Some(own));
    }

    #[test]
    fn a_policy_that_is_made_anew_has_its_time_to_begin_its_own_rollout() {
        let anew = |open: bool| PolicyFact { created_at: at(0), ..PolicyFact::clone(&policy("u2", open)) };
        let left_over = || {
            let mut left = LeftOver::default();
            left.look(&[policy("u1", true)], &[], at(0), |_| false);
            left
        };
        let due = |left: &mut LeftOver, policy: &PolicyFact, second: i64| {
            left.look(&[Arc::new(policy.clone())], &[], at(second), |_| false).jobs.len()
        };
        // It opens none.
        let mut left = left_over();
        assert_eq!((due(&mut left, &anew(false), 119), due(&mut left, &anew(false), 121)), (0, 1));
        // It does, and waits in its middle for somebody to correct it.
        let mut left = left_over();
        assert_eq!(due(&mut left, &anew(false), 10), 0);
        let why = PolicyError::new("spec.source".to_owned(), PolicyErrorKind::NeverOpens);
        let invalid = PolicyFact { valid: Err(why), ..anew(true) };
        assert_eq!((due(&mut left, &anew(true), 20), due(&mut left, &invalid, 7_200)), (0, 0));
        // It was short, and is over.
        let mut closed = anew(false);
        closed.status.maintenances = 1;
        let mut left = left_over();
        assert_eq!((due(&mut left, &anew(true), 20), due(&mut left, &closed, 60)), (0, 1));
    }

    #[test]
    fn a_policy_whose_rollout_was_over_leaves_nothing() {
        let mut left = LeftOver::default();
        left.look(&[policy("u1", true)], &[], at(0), |_| false);
        left.look(&[policy("u1", false)], &[], at(0), |_| false);
        let found = left.look(&[], &[], at(0), |_| false);
        assert!(found.notices.is_empty() && left.left.is_empty());
    }
}
