//! The hooks after a rollout whose policy was deleted in its middle. What those before it did (Ceph's `noout`) has to be undone
//! all the same, and the policy that would say so is gone: their Jobs, which were kept since before the rollout began, say it to whoever
//! leads. Nothing keeps a policy from being deleted, since the operator has no right to write one.

use super::{after::Begin, why};
use crate::{
    apply::{SLOW, Writer},
    events::{About, Notice},
    gather::{After, JobFact, PolicyFact},
};
use bascule_api::{Duration, Time};
use bascule_planner::snapshot::{HookRun, HookState};
use k8s_openapi::api::batch::v1::Job;
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
/// How soon a Job that could not be begun is tried again; twice as long with each further attempt.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);
/// The longest of these times.
const SELDOM: std::time::Duration = std::time::Duration::from_secs(5 * 60);
/// Of how many reasons why a Job can't be begun people are told.
const TOLD: usize = 8;
/// How many Jobs of one namespace are looked at, and how many that may be made again are remembered. Whoever may create Jobs there may
/// make as many as he likes that look left over.
const MANY: usize = 64;

/// A rollout whose policy is gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rollout {
    policy: String,
    uid: String,
    number: i64,
}

impl Rollout {
    fn of(run: &HookRun, after: &After) -> Self {
        Self { policy: run.policy.clone(), uid: after.policy_uid.clone(), number: run.grant }
    }

    fn tells(&self, warning: bool, reason: &'static str, note: String) -> Notice {
        let about = About::own("UpdatePolicy", &self.policy, &self.uid);
        Notice { about, warning, reason, action: "RunRolloutHook", note, related: None }
    }
}

/// A Job that is to be made again once it is gone: one that failed, which a person deletes, or one that counts for nothing, which is
/// deleted for another.
#[derive(Debug)]
struct Again {
    rollout: Rollout,
    hook: String,
    uid: String,
    job: Arc<Job>,
}

/// The attempts to begin a Job.
#[derive(Debug, Clone, Default)]
struct Tries {
    /// How many failed since one did not.
    failed: u32,
    /// When the next one may be made.
    not_before: Option<Instant>,
    /// Why, of which people were told.
    told: BTreeSet<String>,
}

impl Tries {
    /// Takes note of an attempt, and says whether people are told why it failed.
    fn tried(&mut self, begun: Result<(), String>, now: Instant) -> Option<String> {
        let pause = AGAIN.saturating_mul(1 << self.failed.min(6)).min(SELDOM);
        // Also after one that succeeded: that it runs shows by itself.
        self.not_before = Some(now + pause);
        let Err(why) = begun else {
            self.failed = 0;
            self.told.clear();
            return None;
        };
        self.failed = self.failed.saturating_add(1);
        (self.told.len() < TOLD && self.told.insert(why.clone())).then_some(why)
    }
}

/// What one look at the cluster leads to.
#[derive(Debug, Default)]
struct Found {
    notices: Vec<Notice>,
    /// The Jobs to be begun.
    due: Vec<Due>,
}

/// A Job to be begun.
#[derive(Debug, Clone)]
struct Due {
    what: What,
    begin: Begin,
}

/// Which Job.
#[derive(Debug, Clone)]
struct What {
    rollout: Rollout,
    hook: String,
    /// `namespace/name`.
    job: String,
}

impl What {
    fn namespace(&self) -> &str {
        namespace(&self.job)
    }
}

fn namespace(job: &str) -> &str {
    job.split_once('/').map_or("", |(namespace, _)| namespace)
}

/// A Job without its policy, which is not let go yet.
#[derive(Debug)]
struct Alone<'a> {
    run: &'a HookRun,
    after: &'a After,
}

/// The rollouts whose policy is gone. What is to be done for them stands in their Jobs; what is kept here is what people were told,
/// and the Jobs that may be gone before they did what they are for. Dropping it gives up what is being begun.
#[derive(Debug, Default)]
pub(crate) struct LeftOver {
    /// Those of which something is left to be done.
    left: BTreeSet<Rollout>,
    /// Those that are done, as long as their Jobs are there.
    ended: BTreeSet<Rollout>,
    again: BTreeMap<String, Again>,
    tries: BTreeMap<String, Tries>,
    tasks: JoinSet<Result<(), String>>,
    making: HashMap<Id, What>,
}

impl LeftOver {
    /// Begins what is due and tells of it; whether something is left to be done. Nobody waits for what is begun: one Job that can't
    /// be begun would hold up every policy. The policies are those that the plan was made from.
    pub(crate) fn run(&mut self, writer: &Writer, policies: &[Arc<PolicyFact>], now: Time) -> bool {
        let (world, instant) = (&writer.world, Instant::now());
        let mut notices = self.take_ended(instant);
        let updates = world.updates.select(|update| update.facts.spec.disruption.is_some());
        let moves = |policy: &str| updates.iter().any(|update| update.facts.spec.policy == policy);
        let jobs = world.jobs.select(|job| job.after.is_some());
        let found = self.look(policies, &jobs, now, moves);
        notices.extend(found.notices);
        for notice in notices {
            writer.events.tell(notice);
        }
        for due in found.due {
            if self.may_begin(&due.what, instant) {
                self.begin(due, writer.clone());
            }
        }
        !self.left.is_empty()
    }

    /// Whether the last attempt is long enough ago, and no Job of that namespace is being begun: many of one hold up no other.
    fn may_begin(&self, what: &What, now: Instant) -> bool {
        let not_before = self.tries.get(&what.job).and_then(|tries| tries.not_before);
        !self.making.values().any(|one| one.namespace() == what.namespace()) && not_before.is_none_or(|at| at <= now)
    }

    fn begin(&mut self, due: Due, writer: Writer) {
        let Due { what, begin } = due;
        let task = self.tasks.spawn(async move {
            let begun = tokio::time::timeout(SLOW, begin.carry_out(&writer)).await;
            begun.map_or_else(
                |_| Err("the API server did not answer in time".to_owned()),
                |begun| begun.map(|_| ()).map_err(|error| why(&error)),
            )
        });
        self.making.insert(task.id(), what);
    }

    /// Takes note of the Jobs that were begun, or could not be.
    fn take_ended(&mut self, now: Instant) -> Vec<Notice> {
        let mut notices = Vec::new();
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            let (id, begun) = match ended {
                Ok(ended) => ended,
                Err(error) => (error.id(), Err(crate::one_line(&error))),
            };
            let Some(What { rollout, hook, job }) = self.making.remove(&id) else { continue };
            if let Err(error) = &begun {
                tracing::warn!(job, error, "a hook after a rollout can't be run");
            }
            if let Some(why) = self.tries.entry(job).or_default().tried(begun, now) {
                let note = format!("hook {hook} can't be run, and is tried again: {why}");
                notices.push(rollout.tells(true, "MaintenanceHookFailed", note));
            }
        }
        notices
    }

    /// Whether a Job without its policy may be cleared away: what others came to is not asked of it any more, nor is it a failed one,
    /// which is a person's to delete.
    pub(super) fn is_done_with(&self, run: &HookRun, after: &After) -> bool {
        run.state == HookState::Succeeded && !self.left.contains(&Rollout::of(run, after))
    }

    fn look(
        &mut self,
        policies: &[Arc<PolicyFact>],
        jobs: &[Arc<JobFact>],
        now: Time,
        moves: impl Fn(&str) -> bool,
    ) -> Found {
        let mut found = Found::default();
        let mut rollouts = alone(policies, jobs);
        for (rollout, jobs) in &rollouts {
            found.notices.extend(jobs.iter().filter_map(|one| self.remember(rollout, one)));
        }
        let there: BTreeSet<&str> = jobs.iter().filter_map(|job| Some(job.run.as_ref()?.job.as_str())).collect();
        let gone: Vec<(&String, &Again)> = self.again.iter().filter(|(job, _)| !there.contains(job.as_str())).collect();
        for (_, again) in &gone {
            rollouts.entry(again.rollout.clone()).or_default();
        }
        let open = rollouts.values().flatten().filter(|one| one.run.state != HookState::Succeeded);
        let mut unfinished: BTreeSet<&str> = open.map(|one| one.run.job.as_str()).collect();
        unfinished.extend(gone.iter().map(|(job, _)| job.as_str()));
        for (rollout, jobs) in &rollouts {
            let mut gone = gone.iter().filter(|(_, again)| again.rollout == *rollout).peekable();
            if gone.peek().is_none() && jobs.iter().all(|one| one.run.state == HookState::Succeeded) {
                self.left.remove(rollout);
                if self.ended.insert(rollout.clone()) {
                    let note = "the hooks after it are done".to_owned();
                    found.notices.push(rollout.tells(false, "MaintenanceEnded", note));
                }
                continue;
            }
            self.ended.remove(rollout);
            let waiting =
                jobs.iter().filter(|one| matches!(one.run.state, HookState::Kept | HookState::Running { .. }));
            let names: Vec<&str> = waiting.map(|one| one.run.hook.as_str()).collect();
            if self.left.insert(rollout.clone()) && !names.is_empty() {
                let names = names.join(", ");
                let note = format!(
                    "the policy was deleted in the middle of its rollout: the hooks after it run once its nodes are done: {names}"
                );
                found.notices.push(rollout.tells(true, "MaintenanceLeftOver", note));
            }
            let another = policies.iter().any(|other| other.name == rollout.policy && does_anew(other, now));
            if another || moves(&rollout.policy) {
                continue;
            }
            let due = |hook: &str, job: &str, begin: Begin| {
                let what = What { rollout: rollout.clone(), hook: hook.to_owned(), job: job.to_owned() };
                Due { what, begin }
            };
            for Alone { run, after } in jobs {
                // Only what the Job itself names is before it: what lies in other namespaces may be anybody's.
                if after.follows.iter().any(|before| unfinished.contains(before.as_str())) {
                    continue;
                }
                found.due.extend(Begin::alone(run, after).map(|begin| due(&run.hook, &run.job, begin)));
            }
            for (job, again) in gone {
                found.due.push(due(&again.hook, job, Begin::Make(Arc::clone(&again.job))));
            }
        }
        let known = |rollout: &Rollout| rollouts.contains_key(rollout);
        self.left.retain(known);
        self.ended.retain(known);
        let is_due = |job: &str| found.due.iter().any(|due| due.what.job == job);
        self.tries.retain(|job, _| is_due(job) || self.making.values().any(|what| what.job == *job));
        // Who fails again and again comes last.
        let failed = |due: &Due| self.tries.get(&due.what.job).map_or(0, |tries| tries.failed);
        found.due.sort_by_key(failed);
        found
    }

    /// Remembers what it takes to make a Job again, and says what people are told of one that failed.
    fn remember(&mut self, rollout: &Rollout, one: &Alone<'_>) -> Option<Notice> {
        let Alone { run, after } = one;
        let Some(job) = &after.again else {
            self.again.remove(&run.job);
            return None;
        };
        match self.again.get(&run.job) {
            Some(known) if known.uid == after.uid => return None,
            Some(_) => {}
            None => {
                let of_namespace = self.again.keys().filter(|job| namespace(job) == namespace(&run.job));
                if of_namespace.count() >= MANY {
                    return None;
                }
            }
        }
        let (rollout, hook, uid) = (rollout.clone(), run.hook.clone(), after.uid.clone());
        let notice = match &run.state {
            HookState::Failed { message } => {
                let note = format!("hook {hook} failed ({}): {message}; delete the Job to run it again", run.job);
                Some(rollout.tells(true, "MaintenanceHookFailed", note))
            }
            HookState::Kept | HookState::Running { .. } | HookState::Succeeded => None,
        };
        self.again.insert(run.job.clone(), Again { rollout, hook, uid, job: Arc::clone(job) });
        notice
    }
}

/// The Jobs of hooks after a rollout whose policy is gone, in the order in which they run, without those that are let go.
fn alone<'a>(policies: &[Arc<PolicyFact>], jobs: &'a [Arc<JobFact>]) -> BTreeMap<Rollout, Vec<Alone<'a>>> {
    let mut rollouts: BTreeMap<Rollout, Vec<Alone<'a>>> = BTreeMap::new();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for job in jobs {
        let (Some(run), Some(after)) = (&job.run, &job.after) else { continue };
        let finished = matches!(run.state, HookState::Succeeded | HookState::Failed { .. });
        if (finished && job.kept_for.is_none()) || policies.iter().any(|policy| policy.uid == after.policy_uid) {
            continue;
        }
        let seen = seen.entry(namespace(&run.job)).or_default();
        *seen += 1;
        if *seen <= MANY {
            rollouts.entry(Rollout::of(run, after)).or_default().push(Alone { run, after });
        }
    }
    for jobs in rollouts.values_mut() {
        jobs.sort_by_key(|one| one.after.follows.len());
    }
    rollouts
}

/// Whether another policy of the same name may do anew what the hooks after a rollout undo: in a rollout of its own, whether or
/// not it can be used just now, or in one that it may be about to open, as after somebody's tool deleted a policy and applied it
/// again.
fn does_anew(policy: &PolicyFact, now: Time) -> bool {
    let status = &policy.status;
    status.maintenance.is_some() || (status.maintenances == 0 && now < policy.created_at.after(QUIET))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        gather::{Caches, Fact as _},
        hooks::{
            after::tests::{ended, hook, jobs_of, policy_with, shown, two},
            over,
        },
    };
    use bascule_facts::hook::again;
    use bascule_planner::{PolicyError, PolicyErrorKind};
    use serde_json::json;
    use tokio::sync::watch;

    fn policy(uid: &str, open: bool) -> Arc<PolicyFact> {
        let fact = PolicyFact::of(&policy_with(uid, open, &two()));
        assert!(fact.valid.is_ok(), "{:?}", fact.valid);
        Arc::new(fact)
    }

    /// The Jobs that the policy left.
    fn left() -> Vec<Job> {
        jobs_of(&policy_with("u1", true, &two()))
    }

    /// One that the operator began.
    fn begun(job: &Job) -> Job {
        shown(&again(job))
    }

    fn facts<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Vec<Arc<JobFact>> {
        let fact = |job: &Job| {
            let fact = JobFact::of(job);
            assert!(fact.run.is_some(), "it is one of ours");
            Arc::new(fact)
        };
        jobs.into_iter().map(fact).collect()
    }

    fn at(second: i64) -> Time {
        chrono::DateTime::from_timestamp(1_795_950_000 + second, 0).unwrap().into()
    }

    fn reasons(found: &Found) -> Vec<&'static str> {
        found.notices.iter().map(|notice| notice.reason).collect()
    }

    fn due(found: &Found) -> Vec<&str> {
        found.due.iter().map(|due| due.what.hook.as_str()).collect()
    }

    #[test]
    fn what_a_deleted_policy_left_undone_is_undone_once_its_nodes_are_by_whoever_leads() {
        // This leader never saw the policy.
        let mut over = LeftOver::default();
        let jobs = left();
        let kept = facts(&jobs);
        let found = over.look(&[], &kept, at(0), |policy| policy == "workers");
        assert_eq!((reasons(&found), due(&found)), (vec!["MaintenanceLeftOver"], vec![]));
        assert!(found.notices[0].note.ends_with("unset-noout, unmute"), "{}", found.notices[0].note);
        let found = over.look(&[], &kept, at(0), |_| true);
        assert!(found.notices.is_empty() && found.due.is_empty(), "told once, and a node is under way");
        // In their order, each once the one before succeeded, and a failed one again when a person deletes its Job.
        let found = over.look(&[], &kept, at(0), |_| false);
        assert_eq!(due(&found), ["unset-noout"]);
        assert!(matches!(&found.due[0].begin, Begin::Resume { .. }), "{found:?}");
        let first = begun(&jobs[0]);
        assert!(over.look(&[], &facts([&first, &jobs[1]]), at(0), |_| false).due.is_empty(), "it runs");
        let failed = ended(&first, "Failed");
        let found = over.look(&[], &facts([&failed, &jobs[1]]), at(0), |_| false);
        assert_eq!((reasons(&found), due(&found)), (vec!["MaintenanceHookFailed"], vec![]));
        let found = over.look(&[], &facts([&failed, &jobs[1]]), at(0), |_| false);
        assert!(found.notices.is_empty() && found.due.is_empty(), "told once");
        let found = over.look(&[], &facts([&jobs[1]]), at(0), |_| false);
        assert_eq!(due(&found), ["unset-noout"]);
        let Begin::Make(anew) = &found.due[0].begin else { panic!("{found:?}") };
        assert_eq!(anew.spec.as_ref().unwrap().suspend, Some(false));
        let done = ended(&shown(anew), "Complete");
        assert_eq!(due(&over.look(&[], &facts([&done, &jobs[1]]), at(0), |_| false)), ["unmute"]);
        // The first one's Job may be gone by now.
        let last = ended(&begun(&jobs[1]), "Complete");
        assert_eq!(reasons(&over.look(&[], &facts([&last]), at(0), |_| false)), ["MaintenanceEnded"]);
        assert!(reasons(&over.look(&[], &facts([&last]), at(0), |_| false)).is_empty(), "told once");
        assert!(over.left.is_empty());
    }

    #[test]
    fn a_leader_that_begins_later_goes_on_with_what_is_there() {
        let jobs = left();
        let (runs, failed) = (begun(&jobs[0]), ended(&begun(&jobs[0]), "Failed"));
        let mut next = LeftOver::default();
        assert_eq!(due(&next.look(&[], &facts([&runs, &jobs[1]]), at(0), |_| false)), Vec::<&str>::new());
        // It is told of anew, and deleted by a person: run again.
        let mut next = LeftOver::default();
        let found = next.look(&[], &facts([&failed, &jobs[1]]), at(0), |_| false);
        assert_eq!(reasons(&found), ["MaintenanceHookFailed", "MaintenanceLeftOver"]);
        assert_eq!(due(&next.look(&[], &facts([&jobs[1]]), at(0), |_| false)), ["unset-noout"]);
        // A person who deletes one that waits says that it is not to run.
        let mut next = LeftOver::default();
        next.look(&[], &facts(&jobs), at(0), |_| false);
        assert_eq!(due(&next.look(&[], &facts([&jobs[1]]), at(0), |_| false)), ["unmute"]);
        assert!(next.look(&[], &[], at(0), |_| false).due.is_empty() && next.left.is_empty());
        // Somebody else let it run: that is no answer.
        let mut next = LeftOver::default();
        let found = next.look(&[], &facts([&ended(&jobs[0], "Complete"), &jobs[1]]), at(0), |_| false);
        assert!(matches!(&found.due[..], [Due { begin: Begin::Replace { .. }, .. }]), "{found:?}");
        // It is deleted, and the one for it can't be made at once.
        let found = next.look(&[], &facts([&jobs[1]]), at(0), |_| false);
        assert!(matches!(&found.due[..], [Due { begin: Begin::Make(_), .. }]), "{found:?}");
    }

    #[test]
    fn only_what_a_job_names_is_before_it() {
        let jobs = left();
        // Whoever may create Jobs somewhere makes one that looks as if it were of that rollout, and lets it fail.
        let mut forged = ended(&begun(&jobs[0]), "Failed");
        forged.metadata.namespace = Some("tenant".to_owned());
        let found = LeftOver::default().look(&[], &facts([&jobs[0], &jobs[1], &forged]), at(0), |_| false);
        assert_eq!(due(&found), ["unset-noout"]);
        let first = ended(&begun(&jobs[0]), "Complete");
        let found = LeftOver::default().look(&[], &facts([&first, &jobs[1], &forged]), at(0), |_| false);
        assert_eq!(due(&found), ["unmute"]);
        // Nor do many of them hold up those of other namespaces.
        let many = (0..2 * MANY).map(|number| {
            let hooks = json!([hook("x", "tenant", "i")]);
            jobs_of(&policy_with(&format!("u{number}-forged"), true, &hooks)).remove(0)
        });
        let many: Vec<Job> = many.chain(left()).collect();
        let mut over = LeftOver::default();
        let found = over.look(&[], &facts(&many), at(0), |_| false);
        assert_eq!(found.due.len(), MANY + 1);
        let what = |hook: &str| found.due.iter().find(|due| due.what.hook == hook).unwrap().what.clone();
        assert!(over.left.len() <= MANY + 1);
        let (tenants, own) = (what("x"), what("unset-noout"));
        assert_ne!(tenants.namespace(), own.namespace());
        // They fail and are deleted, and others after them: not all are remembered.
        let failed: Vec<Job> = many.iter().map(|job| ended(&begun(job), "Failed")).collect();
        for some in failed.chunks(MANY) {
            over.look(&[], &facts(some), at(0), |_| false);
        }
        assert_eq!(over.again.len(), MANY + 2);
    }

    #[test]
    fn a_job_that_is_waited_for_is_not_let_go() {
        let mut left_over = LeftOver::default();
        let jobs = left();
        let is_over = |left_over: &LeftOver, jobs: &[&Job]| {
            let world = Caches::new(Arc::new(watch::Sender::new(0)), &Clock::system());
            jobs.iter().for_each(|job| world.jobs.written(job));
            over(&world, left_over).len()
        };
        let first = ended(&begun(&jobs[0]), "Complete");
        left_over.look(&[], &facts([&first, &jobs[1]]), at(0), |_| false);
        assert_eq!(is_over(&left_over, &[&first, &jobs[1]]), 0);
        let failed = ended(&begun(&jobs[1]), "Failed");
        left_over.look(&[], &facts([&first, &failed]), at(0), |_| false);
        // Cleared away, it would run again by itself.
        assert_eq!(is_over(&left_over, &[&first, &failed]), 0);
        assert_eq!(is_over(&LeftOver::default(), &[&failed]), 0, "whoever leads");
        let last = ended(&begun(&jobs[1]), "Complete");
        left_over.look(&[], &facts([&first, &last]), at(0), |_| false);
        assert_eq!(is_over(&left_over, &[&first, &last]), 2, "the last one is done");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_can_not_be_begun_is_told_once_for_each_reason_and_tried_more_and_more_seldom() {
        let mut left_over = LeftOver::default();
        let kept = facts(&left());
        let what = left_over.look(&[], &kept, at(0), |_| false).due.pop().unwrap().what;
        let (mut told, mut pauses, started) = (Vec::new(), Vec::new(), Instant::now());
        let forbidden = || Err("it is forbidden");
        for begun in [Err("namespaces \"ceph\" not found"), forbidden(), forbidden(), Ok(())] {
            // Beside it plans are made again and again.
            while !left_over.may_begin(&what, Instant::now()) {
                left_over.look(&[], &kept, at(0), |_| false);
                tokio::time::advance(std::time::Duration::from_secs(1)).await;
            }
            pauses.push(started.elapsed().as_secs());
            let task = left_over.tasks.spawn(std::future::ready(begun.map_err(str::to_owned)));
            left_over.making.insert(task.id(), what.clone());
            assert!(!left_over.may_begin(&what, Instant::now()), "it is being begun");
            while !left_over.making.is_empty() {
                tokio::task::yield_now().await;
                told.extend(
                    left_over.take_ended(Instant::now()).into_iter().map(|notice| (notice.reason, notice.note)),
                );
            }
        }
        assert_eq!(pauses, [0, 5, 15, 35]);
        assert!(told.iter().all(|(reason, _)| *reason == "MaintenanceHookFailed"), "{told:?}");
        let notes: Vec<&str> = told.iter().map(|(_, note)| note.as_str()).collect();
        let says = |why: &str| format!("hook unset-noout can't be run, and is tried again: {why}");
        assert_eq!(notes, [says("namespaces \"ceph\" not found"), says("it is forbidden")]);
        assert_eq!(left_over.tries[&what.job].failed, 0);
    }

    #[test]
    fn another_policy_of_that_name_has_its_own_hooks() {
        let mut left_over = LeftOver::default();
        let kept = facts(&left());
        let found = left_over.look(&[policy("u2", true)], &kept, at(0), |_| false);
        assert_eq!((reasons(&found), found.due.len()), (vec!["MaintenanceLeftOver"], 0), "its own rollout is open");
        assert_eq!(due(&left_over.look(&[policy("u2", false)], &kept, at(0), |_| false)), ["unset-noout"]);
        let its = jobs_of(&policy_with("u2", true, &two()));
        let found = LeftOver::default().look(&[policy("u2", false)], &facts(&its), at(0), |_| false);
        assert!(found.notices.is_empty() && found.due.is_empty(), "they are its own");
    }

    #[test]
    fn a_policy_that_is_made_anew_has_its_time_to_begin_its_own_rollout() {
        let anew = |open: bool| PolicyFact { created_at: at(0), ..PolicyFact::clone(&policy("u2", open)) };
        let kept = facts(&left());
        let due = |policy: &PolicyFact, second: i64| {
            LeftOver::default().look(&[Arc::new(policy.clone())], &kept, at(second), |_| false).due.len()
        };
        // It opens none.
        assert_eq!((due(&anew(false), 119), due(&anew(false), 121)), (0, 1));
        // It does, and waits in its middle for somebody to correct it.
        let why = PolicyError::new("spec.source".to_owned(), PolicyErrorKind::NeverOpens);
        let invalid = PolicyFact { valid: Err(why), ..anew(true) };
        assert_eq!((due(&anew(true), 20), due(&invalid, 7_200)), (0, 0));
        // It was short, and is over.
        let mut closed = anew(false);
        closed.status.maintenances = 1;
        assert_eq!(due(&closed, 60), 1);
    }

    #[test]
    fn a_policy_whose_rollout_was_over_leaves_nothing() {
        let done: Vec<Job> = left().iter().map(|job| ended(&begun(job), "Complete")).collect();
        let let_go = |job: &Job| {
            let mut job = job.clone();
            job.spec.as_mut().unwrap().ttl_seconds_after_finished = Some(3_600);
            job
        };
        let gone: Vec<Job> = done.iter().map(let_go).collect();
        let mut left_over = LeftOver::default();
        let found = left_over.look(&[], &facts(&gone), at(0), |_| false);
        assert!(found.notices.is_empty() && found.due.is_empty() && left_over.left.is_empty());
        // Nor does one that is there.
        let found = left_over.look(&[policy("u1", true)], &facts(&left()), at(0), |_| false);
        assert!(found.notices.is_empty() && found.due.is_empty() && left_over.left.is_empty());
    }
}
