//! Giving finished Jobs back the time to live that their templates asked for, once they are not needed any more, and deleting those that
//! were kept for the end of a rollout and are not to run: a few at a time, and nothing waits for it. Whoever may create Jobs somewhere
//! can give one our labels and the name that follows from them, so that only namespaces are written to whose owners let hooks run there:
//! those of policies' hooks, of which that is known, and others that are asked about, one at a time.

use super::{
    LeftOver,
    after::{remove, superseded},
    first_of, over,
};
use crate::{
    apply::{SLOW, Writer},
    gather::JobFact,
    rights::lets_hooks_run,
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::{Id, JoinSet},
    time::Instant,
};

/// How many Jobs are written to at once.
const AT_ONCE: usize = 4;
/// How long none of a namespace is tried after one that failed, or where hooks may not run, and nothing is written to a Job again that
/// was written to.
const AGAIN: Duration = Duration::from_secs(15 * 60);
/// How long none of a namespace is deleted after one that could not be: what its policy says by now can't be kept before.
const SOON: Duration = Duration::from_secs(60);

/// A Job that nobody needs any more, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Parting {
    /// `namespace/name`.
    job: String,
    how: How,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum How {
    /// It is finished, and is to be cleared away so many seconds after its end.
    Expires(i32),
    /// It was kept and is not to run: it is deleted as it was seen.
    Deleted { resource_version: String },
}

impl Parting {
    /// Of finished Jobs, and of those that were kept in vain: these first, since others wait to be kept in their place.
    fn all(kept_in_vain: &[Arc<JobFact>], over: &[Arc<JobFact>]) -> Vec<Self> {
        let deleted = kept_in_vain.iter().filter_map(|job| {
            let resource_version = job.after.as_ref()?.resource_version.clone();
            Some(Self { job: job.run.as_ref()?.job.clone(), how: How::Deleted { resource_version } })
        });
        let expire = over
            .iter()
            .filter_map(|job| Some(Self { job: job.run.as_ref()?.job.clone(), how: How::Expires(job.kept_for?) }));
        deleted.chain(expire).collect()
    }

    fn namespace(&self) -> &str {
        self.job.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    const fn deletes(&self) -> bool {
        matches!(self.how, How::Deleted { .. })
    }

    async fn carry_out(&self, writer: &Writer) -> kube::Result<()> {
        let Some((namespace, name)) = self.job.split_once('/') else { return Ok(()) };
        match &self.how {
            How::Expires(ttl) => keep_no_longer(writer, (namespace, name), *ttl).await,
            How::Deleted { resource_version } => remove(writer, (namespace, name), resource_version).await.map(|_| ()),
        }
    }
}

/// What is under way.
#[derive(Debug)]
enum Errand {
    /// The question whether hooks may run in a namespace.
    Ask(String),
    Part(Parting),
}

/// The Jobs that are being let go. Dropping it gives them up.
#[derive(Debug, Default)]
pub(crate) struct LettingGo {
    tasks: JoinSet<Result<bool, String>>,
    under_way: HashMap<Id, Errand>,
    /// Where owners let hooks run since this leadership began.
    allowed: BTreeSet<String>,
    /// Where they do not, or nobody said, and until when that is not asked again.
    unknown: HashMap<String, Instant>,
    /// Namespaces in which one failed, and whether it was to be deleted.
    failed: HashMap<(String, bool), Instant>,
    /// What is done, though the Job may be known here as it was before.
    done: HashMap<Parting, Instant>,
}

impl LettingGo {
    /// Begins what there is room for. `allowed` are the namespaces of which is known that hooks may run there.
    pub(crate) fn run(&mut self, writer: &Writer, left_over: &LeftOver, allowed: BTreeSet<String>) {
        let now = Instant::now();
        self.take_note(now);
        self.allowed.extend(allowed);
        let world = &writer.world;
        let partings = Parting::all(&first_of(world, superseded(world)), &over(world, left_over));
        for parting in self.due(&partings, now) {
            let (writer, one) = (writer.clone(), parting.clone());
            self.begin(Errand::Part(parting), async move { one.carry_out(&writer).await.map(|()| true) });
        }
        // A policy that is gone, or names another namespace by now, leaves Jobs behind, and a later leader knows of neither.
        if let Some(namespace) = self.to_be_asked(&partings, now) {
            let (client, asked) = (writer.client.clone(), namespace.clone());
            self.begin(Errand::Ask(namespace), async move { lets_hooks_run(&client, &asked).await });
        }
    }

    /// Those of which may be begun now.
    fn due(&self, partings: &[Parting], now: Instant) -> Vec<Parting> {
        let under_way = self.under_way.values().filter_map(|errand| match errand {
            Errand::Part(parting) => Some(parting.job.as_str()),
            Errand::Ask(_) => None,
        });
        let under_way: BTreeSet<&str> = under_way.collect();
        let may = |parting: &&Parting| {
            let namespace = (parting.namespace().to_owned(), parting.deletes());
            let waits =
                [self.failed.get(&namespace), self.done.get(*parting)].into_iter().flatten().any(|at| now < *at);
            !waits && self.allowed.contains(&namespace.0) && !under_way.contains(parting.job.as_str())
        };
        partings.iter().filter(may).take(AT_ONCE.saturating_sub(under_way.len())).cloned().collect()
    }

    /// The namespace of which is asked next whether hooks may run there.
    fn to_be_asked(&self, partings: &[Parting], now: Instant) -> Option<String> {
        if self.under_way.values().any(|errand| matches!(errand, Errand::Ask(_))) {
            return None;
        }
        let is_open = |namespace: &&str| {
            let waits = self.unknown.get(*namespace).is_some_and(|at| now < *at);
            !waits && !self.allowed.contains(*namespace)
        };
        partings.iter().map(Parting::namespace).find(is_open).map(str::to_owned)
    }

    fn begin(&mut self, errand: Errand, work: impl Future<Output = kube::Result<bool>> + Send + 'static) {
        let task = self.tasks.spawn(async move {
            match tokio::time::timeout(SLOW, work).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(crate::one_line(&error)),
                Err(_) => Err("the API server did not answer in time".to_owned()),
            }
        });
        self.under_way.insert(task.id(), errand);
    }

    /// Takes note of what ended.
    fn take_note(&mut self, now: Instant) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            let (id, result) = match ended {
                Ok(ended) => ended,
                Err(error) => (error.id(), Err(crate::one_line(&error))),
            };
            let Some(errand) = self.under_way.remove(&id) else { continue };
            match (errand, result) {
                (Errand::Ask(namespace), Ok(true)) => {
                    self.allowed.insert(namespace);
                }
                (Errand::Ask(namespace), answer) => {
                    tracing::debug!(namespace, ?answer, "hooks' Jobs stay where hooks may not run, as far as is known");
                    self.unknown.insert(namespace, now + AGAIN);
                }
                // Should the watch be late, it is not asked for again.
                (Errand::Part(parting), Ok(_)) => {
                    self.done.insert(parting, now + AGAIN);
                }
                (Errand::Part(parting), Err(error)) => self.could_not(&parting, &error, now),
            }
        }
        self.unknown.retain(|_, at| now < *at);
        self.failed.retain(|_, at| now < *at);
        self.done.retain(|_, at| now < *at);
    }

    fn could_not(&mut self, parting: &Parting, error: &str, now: Instant) {
        let pause = if parting.deletes() { SOON } else { AGAIN };
        let minutes = pause.as_secs() / 60;
        tracing::warn!(
            job = parting.job,
            error,
            "a hook's Job can't be let go, and none of its namespace is for {minutes} minutes"
        );
        self.failed.insert((parting.namespace().to_owned(), parting.deletes()), now + pause);
    }
}

/// Lets a Job be cleared away so many seconds after its end.
async fn keep_no_longer(writer: &Writer, (namespace, name): (&str, &str), ttl: i32) -> kube::Result<()> {
    let jobs: Api<Job> = Api::namespaced(writer.client.clone(), namespace);
    let patch = serde_json::json!({"spec": {"ttlSecondsAfterFinished": ttl}});
    let params =
        PatchParams { field_manager: Some(bascule_api::OPERATOR_MANAGER.to_owned()), ..PatchParams::default() };
    match jobs.patch(name, &params, &Patch::Merge(&patch)).await {
        Ok(written) => {
            writer.metrics.wrote("Job");
            writer.world.jobs.written(&written);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gather::After;
    use bascule_planner::snapshot::{HookRun, HookStage, HookState};

    fn run(path: &str, state: HookState) -> HookRun {
        HookRun {
            policy: "workers".to_owned(),
            node: String::new(),
            grant: 1,
            stage: HookStage::AfterRollout,
            hook: "tell".to_owned(),
            job: path.to_owned(),
            state,
        }
    }

    fn over(path: &str) -> Arc<JobFact> {
        Arc::new(JobFact { run: Some(run(path, HookState::Succeeded)), kept_for: Some(60), after: None })
    }

    fn kept_in_vain(path: &str, resource_version: &str) -> Arc<JobFact> {
        let after = After {
            policy_uid: "u1".to_owned(),
            uid: format!("uid-of-{path}"),
            resource_version: resource_version.to_owned(),
            follows: Vec::new(),
            spec: String::new(),
            again: None,
        };
        Arc::new(JobFact { run: Some(run(path, HookState::Kept)), kept_for: None, after: Some(after) })
    }

    fn expires(path: &str) -> Parting {
        Parting { job: path.to_owned(), how: How::Expires(60) }
    }

    fn due(letting_go: &LettingGo, kept_in_vain: &[Arc<JobFact>], jobs: &[&str]) -> Vec<String> {
        let jobs: Vec<_> = jobs.iter().map(|path| over(path)).collect();
        let due = letting_go.due(&Parting::all(kept_in_vain, &jobs), Instant::now());
        due.into_iter().map(|parting| parting.job).collect()
    }

    fn answered(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(serde_json::from_value(serde_json::json!({"code": code})).unwrap()))
    }

    /// Lets what is begun come to its end.
    async fn noted(letting_go: &mut LettingGo, after: Duration) {
        tokio::time::sleep(after).await;
        letting_go.take_note(Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn only_where_hooks_may_run_and_a_few_at_a_time() {
        let mut letting_go = LettingGo::default();
        let jobs = ["a-tenant/x", "ops/a", "ops/b", "ops/c", "ops/d", "ops/e"];
        assert!(due(&letting_go, &[], &jobs).is_empty(), "nothing is known of rights yet");
        letting_go.allowed.insert("ops".to_owned());
        assert_eq!(due(&letting_go, &[], &jobs), ["ops/a", "ops/b", "ops/c", "ops/d"]);
        // Nobody waits for an answer that does not come.
        for path in ["ops/a", "ops/b", "ops/c"] {
            letting_go.begin(Errand::Part(expires(path)), std::future::pending());
        }
        assert_eq!(due(&letting_go, &[], &jobs), ["ops/d"]);
        noted(&mut letting_go, SLOW + Duration::from_secs(1)).await;
        assert!(letting_go.under_way.is_empty() && due(&letting_go, &[], &jobs).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn of_namespaces_that_no_policy_names_a_leader_asks_one_after_the_other() {
        let mut letting_go = LettingGo::default();
        letting_go.allowed.insert("ops".to_owned());
        let jobs = ["ops/a", "a-tenant/x", "left/a", "silent/a"];
        let ask = |letting_go: &mut LettingGo, answer: kube::Result<bool>| {
            let partings: Vec<_> = jobs.into_iter().map(expires).collect();
            let asked = letting_go.to_be_asked(&partings, Instant::now());
            if let Some(namespace) = &asked {
                letting_go.begin(Errand::Ask(namespace.clone()), async move { answer });
                assert_eq!(letting_go.to_be_asked(&partings, Instant::now()), None, "one at a time");
            }
            asked
        };
        let answers = [("a-tenant", Ok(false)), ("left", Ok(true)), ("silent", Err(answered(503)))];
        for (namespace, answer) in answers {
            assert_eq!(ask(&mut letting_go, answer).as_deref(), Some(namespace));
            noted(&mut letting_go, Duration::from_secs(1)).await;
        }
        assert_eq!(due(&letting_go, &[], &jobs), ["ops/a", "left/a"]);
        assert_eq!(ask(&mut letting_go, Ok(true)), None, "both rest");
        tokio::time::sleep(AGAIN).await;
        assert_eq!(ask(&mut letting_go, Ok(false)).as_deref(), Some("a-tenant"), "its owner may have agreed");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_rests_with_its_namespace_and_what_is_done_is_not_asked_for_again() {
        let mut letting_go = LettingGo::default();
        letting_go.allowed.extend(["ops", "storage"].map(str::to_owned));
        letting_go.begin(Errand::Part(expires("ops/a")), async { Err(answered(403)) });
        letting_go.begin(Errand::Part(expires("storage/a")), async { Ok(true) });
        noted(&mut letting_go, Duration::from_secs(1)).await;
        let jobs = ["ops/a", "ops/b", "storage/a", "storage/b"];
        assert_eq!(due(&letting_go, &[], &jobs), ["storage/b"]);
        tokio::time::sleep(AGAIN).await;
        assert_eq!(due(&letting_go, &[], &jobs), jobs);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_kept_in_vain_is_deleted_first_each_time_that_it_is_kept_anew() {
        let mut letting_go = LettingGo::default();
        letting_go.allowed.insert("ops".to_owned());
        let kept = |resource_version| [kept_in_vain("ops/kept", resource_version)];
        assert_eq!(due(&letting_go, &kept("10"), &["ops/a"]), ["ops/kept", "ops/a"]);
        let first = Parting::all(&kept("10"), &[]).remove(0);
        letting_go.begin(Errand::Part(first.clone()), async { Ok(true) });
        assert!(due(&letting_go, &kept("10"), &[]).is_empty(), "it is being deleted");
        noted(&mut letting_go, Duration::from_secs(1)).await;
        assert!(due(&letting_go, &kept("10"), &[]).is_empty(), "the watch is late");
        assert_eq!(due(&letting_go, &kept("11"), &[]), ["ops/kept"], "its hook was edited again");
        // One that can't be deleted keeps nobody else, and is tried again soon.
        letting_go.begin(Errand::Part(first), async { Err(answered(500)) });
        noted(&mut letting_go, Duration::from_secs(1)).await;
        assert_eq!(due(&letting_go, &kept("11"), &["ops/a"]), ["ops/a"]);
        tokio::time::sleep(SOON).await;
        assert_eq!(due(&letting_go, &kept("11"), &[]), ["ops/kept"]);
    }
}
