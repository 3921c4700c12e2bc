//! The hooks after a rollout whose policy was deleted in its middle. What those before it did (Ceph's `noout`) has to be undone
//! all the same, and the policy that would say so is gone: who leads remembers it from when it was there. Nothing keeps a policy
//! from being deleted, since the operator has no right to write one.

use super::{job, name_of};
use crate::{
    apply::{SLOW, Writer},
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
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use tokio::{
    task::{Id, JoinSet},
    time::Instant,
};

/// How long a policy may take to open its first rollout.
const QUIET: Duration = Duration::from_secs(120);
/// How soon a Job that could not be made is tried again; twice as long with each further attempt.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);
/// The longest of these times.
const SELDOM: std::time::Duration = std::time::Duration::from_secs(5 * 60);
/// Of how many reasons why a Job can't be made people are told.
const TOLD: usize = 8;

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
    tries: Tries,
}

/// The attempts to make a Job.
#[derive(Debug, Clone, Default)]
struct Tries {
    /// How many failed since one did not.
    failed: u32,
    /// When the next one may be made.
    not_before: Option<Instant>,
    /// Why, of which people were told.
    told: BTreeSet<String>,
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
            tries: Tries::default(),
        })
    }

    /// Takes note of an attempt to make a Job, and says what people are told of it.
    fn tried(&mut self, hook: &str, made: Result<(), String>, now: Instant) -> Option<Notice> {
        let tries = &mut self.tries;
        let pause = AGAIN.saturating_mul(1 << tries.failed.min(6)).min(SELDOM);
        // Also after one that was made: that it is there shows by itself.
        tries.not_before = Some(now + pause);
        let Err(why) = made else {
            tries.failed = 0;
            tries.told.clear();
            return None;
        };
        tries.failed = tries.failed.saturating_add(1);
        tracing::warn!(hook, error = why, "a hook after a rollout can't be run");
        let news = tries.told.len() < TOLD && tries.told.insert(why.clone());
        news.then(|| {
            let note = format!("hook {hook} can't be run, and is tried again: {why}");
            self.tells(true, "MaintenanceHookFailed", note)
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
    /// The Jobs to be made.
    due: Vec<Due>,
}

/// A Job to be made.
#[derive(Debug)]
struct Due {
    owner: String,
    hook: String,
    job: Job,
}

/// A Job that is being made.
#[derive(Debug)]
struct Making {
    owner: String,
    hook: String,
}

/// The rollouts that are under way, and those whose policy is gone. A leader that begins later does not know of the latter.
/// Dropping it gives up the Jobs that are being made.
#[derive(Debug, Default)]
pub(crate) struct LeftOver {
    open: BTreeMap<String, Open>,
    left: Vec<Open>,
    tasks: JoinSet<Result<(), String>>,
    making: HashMap<Id, Making>,
}

impl LeftOver {
    /// Begins what is due and tells of it; whether something is left to be done. Nobody waits for what is begun: one Job that can't
    /// be made would hold up every policy. The policies are those that the plan was made from: of a hook that it begins one must
    /// be remembered that is gone since.
    pub(crate) fn run(&mut self, writer: &Writer, policies: &[Arc<PolicyFact>], now: Time) -> bool {
        let (world, instant) = (&writer.world, Instant::now());
        let mut notices = self.take_ended(instant);
        let updates = world.updates.select(|update| update.facts.spec.disruption.is_some());
        let moves = |policy: &str| updates.iter().any(|update| update.facts.spec.policy == policy);
        let jobs = world.jobs.select(|job| job.run.as_ref().is_some_and(|run| run.stage == HookStage::AfterRollout));
        let found = self.look(policies, &jobs, now, moves);
        notices.extend(found.notices);
        for notice in notices {
            writer.events.tell(notice);
        }
        for due in found.due {
            if self.may_begin(&due.owner, instant) {
                self.begin(due, writer.clone());
            }
        }
        !self.left.is_empty()
    }

    /// Whether no Job of this owner is being made, and the last attempt is long enough ago.
    fn may_begin(&self, owner: &str, now: Instant) -> bool {
        let mut of_owner = self.left.iter().filter(|open| open.owner() == owner);
        !self.making.values().any(|one| one.owner == owner)
            && of_owner.all(|open| open.tries.not_before.is_none_or(|at| at <= now))
    }

    fn begin(&mut self, due: Due, writer: Writer) {
        let Due { owner, hook, job } = due;
        let task = self.tasks.spawn(async move {
            let made = tokio::time::timeout(SLOW, create(&writer, &job)).await;
            made.unwrap_or_else(|_| Err("the API server did not answer in time".to_owned()))
        });
        self.making.insert(task.id(), Making { owner, hook });
    }

    /// Takes note of the Jobs that were made, or could not be.
    fn take_ended(&mut self, now: Instant) -> Vec<Notice> {
        let mut notices = Vec::new();
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            let (id, made) = match ended {
                Ok(ended) => ended,
                Err(error) => (error.id(), Err(crate::one_line(&error))),
            };
            let Some(Making { owner, hook }) = self.making.remove(&id) else { continue };
            if let Some(open) = self.left.iter_mut().find(|open| open.owner() == owner) {
                notices.extend(open.tried(&hook, made, now));
            }
        }
        notices
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
                    Ok(job) => found.due.push(Due { owner, hook: hook.name, job }),
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

/// Makes a Job, where it is not there.
async fn create(writer: &Writer, job: &Job) -> Result<(), String> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let jobs: Api<Job> = Api::namespaced(writer.client.clone(), namespace);
    let params = PostParams { field_manager: Some(bascule_api::OPERATOR_MANAGER.to_owned()), ..PostParams::default() };
    match jobs.create(&params, job).await {
        Ok(created) => {
            writer.metrics.wrote("Job");
            writer.world.jobs.written(&created);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        Err(kube::Error::Api(status)) if !status.message.is_empty() => Err(status.message.clone()),
        Err(error) => Err(crate::one_line(&error)),
    }
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
        assert_eq!((reasons(&found), found.due.len()), (vec!["MaintenanceLeftOver"], 0));
        assert!(found.notices[0].note.contains("unset-noout, unmute"), "{}", found.notices[0].note);
        assert!(left.look(&[], &[], at(0), |_| true).due.is_empty(), "a node is under way");
        // In their order, each once the one before succeeded, and a failed one again when a person deletes its Job.
        let mut first = left.look(&[], &[], at(0), |_| false);
        let Due { job, hook, .. } = first.due.pop().unwrap();
        assert_eq!((hook.as_str(), job.metadata.owner_references.as_ref()), ("unset-noout", None));
        let spec = serde_json::to_string(&job.spec).unwrap();
        assert!(spec.contains(r#"{"name":"BASCULE_POLICY","value":"workers"}"#), "{spec}");
        let failed = [ended(&job, "Failed")];
        assert_eq!(reasons(&left.look(&[], &failed, at(0), |_| false)), ["MaintenanceHookFailed"]);
        let again = left.look(&[], &failed, at(0), |_| false);
        assert!(again.notices.is_empty() && again.due.is_empty(), "told once");
        assert_eq!(left.look(&[], &[], at(0), |_| false).due.len(), 1);
        let mut second = left.look(&[], &[ended(&job, "Complete")], at(0), |_| false);
        let Due { job: last, hook, .. } = second.due.pop().unwrap();
        assert_eq!(hook, "unmute");
        // The first one's Job may be gone by now.
        assert_eq!(reasons(&left.look(&[], &[ended(&last, "Complete")], at(0), |_| false)), ["MaintenanceEnded"]);
        assert!(left.left.is_empty());
    }

    #[test]
    fn a_job_that_is_waited_for_is_not_let_go() {
        let mut left = LeftOver::default();
        left.look(&[policy("u1", true)], &[], at(0), |_| false);
        let job = left.look(&[], &[], at(0), |_| false).due.pop().unwrap().job;
        let world = World::new(Arc::new(watch::Sender::new(0)), &Clock::system());
        for state in ["Failed", "Complete"] {
            // Cleared away, a failed one would run again by itself, and one that succeeded before that was noted.
            let world = World::new(Arc::new(watch::Sender::new(0)), &Clock::system());
            world.jobs.written(&as_ended(&job, state));
            assert!(over(&world, &left).is_empty(), "{state}");
            assert_eq!(over(&world, &LeftOver::default()).len(), 1, "{state}: nobody waits for it");
        }
        world.jobs.written(&as_ended(&job, "Complete"));
        let last = left.look(&[], &[ended(&job, "Complete")], at(0), |_| false).due.pop().unwrap().job;
        assert!(over(&world, &left).is_empty());
        left.look(&[], &[ended(&last, "Complete")], at(0), |_| false);
        assert_eq!(over(&world, &left).len(), 1, "the last one is done");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_can_not_be_made_is_told_once_for_each_reason_and_tried_more_and_more_seldom() {
        let mut left = LeftOver::default();
        left.look(&[policy("u1", true)], &[], at(0), |_| false);
        let due = left.look(&[], &[], at(0), |_| false).due.pop().unwrap();
        let (mut told, mut pauses, begun) = (Vec::new(), Vec::new(), Instant::now());
        let forbidden = || Err("it is forbidden");
        for made in [Err("namespaces \"ceph\" not found"), forbidden(), forbidden(), Ok(())] {
            // Beside it plans are made again and again.
            while !left.may_begin(&due.owner, Instant::now()) {
                tokio::time::advance(std::time::Duration::from_secs(1)).await;
            }
            pauses.push(begun.elapsed().as_secs());
            let task = left.tasks.spawn(std::future::ready(made.map_err(str::to_owned)));
            left.making.insert(task.id(), Making { owner: due.owner.clone(), hook: due.hook.clone() });
            assert!(!left.may_begin(&due.owner, Instant::now()), "it is being made");
            while !left.making.is_empty() {
                tokio::task::yield_now().await;
                told.extend(left.take_ended(Instant::now()).into_iter().map(|notice| (notice.reason, notice.note)));
            }
        }
        assert_eq!(pauses, [0, 5, 15, 35]);
        assert!(told.iter().all(|(reason, _)| *reason == "MaintenanceHookFailed"), "{told:?}");
        let notes: Vec<&str> = told.iter().map(|(_, note)| note.as_str()).collect();
        let says = |why: &str| format!("hook unset-noout can't be run, and is tried again: {why}");
        assert_eq!(notes, [says("namespaces \"ceph\" not found"), says("it is forbidden")]);
        assert_eq!(left.left[0].tries.failed, 0);
    }

    #[test]
    fn another_policy_of_that_name_has_its_own_hooks() {
        let mut left = LeftOver::default();
        left.look(&[policy("u1", true)], &[], at(0), |_| false);
        let found = left.look(&[policy("u2", true)], &[], at(0), |_| false);
        assert_eq!((reasons(&found), found.due.len()), (vec!["MaintenanceLeftOver"], 0), "its own rollout is open");
        let mut found = left.look(&[policy("u2", false)], &[], at(0), |_| false);
        let job = found.due.pop().unwrap().job;
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
            left.look(&[Arc::new(policy.clone())], &[], at(second), |_| false).due.len()
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
