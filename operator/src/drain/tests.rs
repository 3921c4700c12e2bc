//! The drain of a node against pods and answers that a test decides, under a paused clock.

use super::*;
use crate::{clock::Clock, gather::Fact as _, gather::PodFact};
use async_trait::async_trait;
use bascule_api::{Drain, ObjectRef};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

type Returns = fn(&PodFact) -> PodFact;
type Script = Box<dyn Fn(&Target, usize) -> Answer + Send + Sync>;

struct Cluster {
    pods: Mutex<Vec<Arc<PodFact>>>,
    asked: Mutex<Vec<(String, Instant)>>,
    under_way: Mutex<(usize, usize)>,
    allows: Mutex<bool>,
    /// Whether the operator's own pod has nowhere else to go.
    stays: Mutex<bool>,
    /// What comes back for a pod that was evicted.
    returns: Mutex<Option<Returns>>,
    script: Script,
    changes: watch::Sender<u64>,
}

impl Cluster {
    fn new(pods: usize, script: impl Fn(&Target, usize) -> Answer + Send + Sync + 'static) -> Arc<Self> {
        let pods = (0..pods).map(|number| Arc::new(pod(&format!("p{number}"), true))).collect();
        Arc::new(Self {
            pods: Mutex::new(pods),
            asked: Mutex::default(),
            under_way: Mutex::default(),
            allows: Mutex::new(false),
            stays: Mutex::new(false),
            returns: Mutex::new(None),
            script: Box::new(script),
            changes: watch::Sender::new(0),
        })
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    fn remove(&self, name: &str) {
        Self::lock(&self.pods).retain(|pod| pod.name != name);
        self.changes.send_modify(|count| *count += 1);
    }

    fn asked(&self, name: &str) -> usize {
        Self::lock(&self.asked).iter().filter(|(asked, _)| asked == name).count()
    }

    fn drains(self: &Arc<Self>, permits: usize) -> Drains {
        Drains::new(Tools {
            backend: Arc::new(Backend(Arc::clone(self))),
            pods: Arc::new(Source(Arc::clone(self))),
            observer: Arc::new(Silent),
            permits: Arc::new(Semaphore::new(permits)),
            own_pod: Some(("shop".to_owned(), "own".to_owned())),
            clock: Clock::from_fn(|| chrono::DateTime::from_timestamp(1_795_000_000, 0).unwrap()),
        })
    }
}

fn pod(name: &str, controlled: bool) -> PodFact {
    let owners = if controlled {
        serde_json::json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}])
    } else {
        serde_json::json!([])
    };
    let raw = serde_json::json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "ownerReferences": owners},
        "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Running"},
    });
    PodFact::of(&serde_json::from_value(raw).unwrap())
}

struct Backend(Arc<Cluster>);

#[async_trait]
impl EvictionBackend for Backend {
    async fn evict(&self, target: &Target) -> Answer {
        let turn = self.0.asked(&target.name);
        Cluster::lock(&self.0.asked).push((target.name.clone(), Instant::now()));
        {
            let mut count = Cluster::lock(&self.0.under_way);
            count.0 += 1;
            count.1 = count.1.max(count.0);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        Cluster::lock(&self.0.under_way).0 -= 1;
        let answer = (self.0.script)(target, turn);
        if answer == Answer::Accepted {
            let gone = Cluster::lock(&self.0.pods).iter().find(|pod| pod.name == target.name).cloned();
            self.0.remove(&target.name);
            let returns = *Cluster::lock(&self.0.returns);
            if let (Some(returns), Some(gone)) = (returns, gone) {
                Cluster::lock(&self.0.pods).push(Arc::new(returns(&gone)));
                self.0.changes.send_modify(|count| *count += 1);
            }
        }
        answer
    }

    async fn delete(&self, target: &Target) -> Answer {
        self.0.remove(&target.name);
        Answer::Accepted
    }
}

struct Source(Arc<Cluster>);

impl PodSource for Source {
    fn on_node(&self, node: &str) -> Vec<Arc<PodFact>> {
        Cluster::lock(&self.0.pods).iter().filter(|pod| pod.node == node).cloned().collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    fn allows(&self, _budget: &ObjectRef) -> Option<bool> {
        Some(*Cluster::lock(&self.0.allows))
    }

    fn own_pod_that_stays(&self, _namespace: &str, name: &str) -> Option<String> {
        Cluster::lock(&self.0.stays).then(|| format!("uid-{name}"))
    }
}

struct Silent;

impl DrainObserver for Silent {
    fn pod_disrupted(&self, _node: &str, _pod: &ObjectRef, _uid: &str, _mode: Mode) {}
    fn pod_refused(&self, _result: &'static str) {}
    fn progressed(&self, _node: &str) {}
}

fn order(mode: Mode) -> Order {
    let begun = chrono::DateTime::from_timestamp(1_794_999_990, 0).unwrap();
    Order { node: "n1".to_owned(), settings: Drain::default(), begun, mode, keeps: false }
}

fn budget() -> Answer {
    let budget = ObjectRef {
        kind: "PodDisruptionBudget".to_owned(),
        namespace: Some("shop".to_owned()),
        name: "web".to_owned(),
    };
    Answer::Budget { budget: Some(budget), message: "needs 3".to_owned(), retry_after: None }
}

/// Another pod of the same owner, a second after the drain began.
fn again(gone: &PodFact) -> PodFact {
    let name = format!("{}x", gone.name);
    let created_at = chrono::DateTime::from_timestamp(1_794_999_991, 0).unwrap();
    PodFact { uid: format!("uid-{name}"), name, created_at, ..gone.clone() }
}

async fn after(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn the_operators_own_pod_goes_when_all_others_are_gone() {
    let cluster = Cluster::new(2, |_, _| Answer::Accepted);
    Cluster::lock(&cluster.pods).insert(0, Arc::new(pod("own", true)));
    let mut drains = cluster.drains(8);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(5).await;
    let asked: Vec<_> = Cluster::lock(&cluster.asked).iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert_eq!(asked.last().map(String::as_str), Some("own"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_although_its_pods_come_back() {
    // It tolerates the cordon: told once.
    let cluster = Cluster::new(0, |_, _| Answer::Accepted);
    Cluster::lock(&cluster.pods).push(Arc::new(PodFact { tolerates_cordon: true, ..pod("web", true) }));
    *Cluster::lock(&cluster.returns) = Some(again);
    let mut drains = cluster.drains(8);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(60).await;
    assert_eq!(Cluster::lock(&cluster.asked).len(), 1);
    let progress = drains.progress_of("n1").unwrap();
    assert_eq!((progress.pods, progress.gone), (1, 1));
    // It does not, and somebody binds it to the node all the same: told a few times.
    let cluster = Cluster::new(1, |_, _| Answer::Accepted);
    *Cluster::lock(&cluster.returns) = Some(again);
    let mut drains = cluster.drains(8);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(60).await;
    let asked = Cluster::lock(&cluster.asked).len();
    assert_eq!(asked, 3, "the one that stood there, and two that came back");
    assert_eq!(drains.progress_of("n1").unwrap().given_up, BTreeSet::from(["uid-p0xxx".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_held_drain_asks_nobody_and_forgets_nothing() {
    let cluster = Cluster::new(1, |_, _| Answer::Accepted);
    *Cluster::lock(&cluster.returns) = Some(again);
    let mut drains = cluster.drains(8);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(60).await;
    drains.set(vec![Order { keeps: true, ..order(Mode::Evict) }], |_| true);
    // Of another owner: one of the same would be given up as well, for which nobody has to be asked.
    let mut late = pod("late", true);
    Arc::make_mut(late.controller.as_mut().unwrap()).uid = "another".to_owned();
    Cluster::lock(&cluster.pods).push(Arc::new(late));
    cluster.changes.send_modify(|count| *count += 1);
    after(60).await;
    assert_eq!(cluster.asked("late"), 0);
    assert_eq!(Cluster::lock(&cluster.asked).len(), 3);
    assert_eq!(drains.progress_of("n1").unwrap().given_up, BTreeSet::from(["uid-p0xxx".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_held_drain_names_what_stood_in_its_way() {
    let cluster = Cluster::new(1, |_, _| budget());
    let mut drains = cluster.drains(8);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(5).await;
    let blocked = drains.progress_of("n1").unwrap().blocked;
    assert_eq!(blocked[0].object.as_ref().unwrap().name, "web");
    drains.set(vec![Order { keeps: true, ..order(Mode::Evict) }], |_| true);
    after(60).await;
    assert_eq!(drains.progress_of("n1").unwrap().blocked, blocked);
    // A person lets it go.
    cluster.remove("p0");
    after(5).await;
    let progress = drains.progress_of("n1").unwrap();
    assert!(progress.blocked.is_empty(), "{:?}", progress.blocked);
    let waited: Vec<u64> = progress.waited_for.values().map(Duration::as_secs).collect();
    assert!(waited.len() == 1 && waited[0] >= 60, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn the_operators_own_pod_stays_where_it_has_nowhere_to_go() {
    let cluster = Cluster::new(2, |_, _| Answer::Accepted);
    Cluster::lock(&cluster.pods).insert(0, Arc::new(pod("own", true)));
    *Cluster::lock(&cluster.stays) = true;
    let mut drains = cluster.drains(8);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(30).await;
    assert_eq!((cluster.asked("own"), cluster.asked("p0"), cluster.asked("p1")), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn pods_go_in_their_order_and_what_completes_is_waited_for() {
    use bascule_api::{DrainBehavior, DrainRule, Selector};
    let rule = |app: &str, behavior, order| DrainRule {
        name: app.to_owned(),
        selector: Some(Selector { match_labels: [("app".to_owned(), app.to_owned())].into(), ..Selector::default() }),
        namespaces: Vec::new(),
        behavior,
        order,
        timeout: None,
    };
    let cluster = Cluster::new(1, |_, _| Answer::Accepted);
    for (name, app) in [("s", "storage"), ("b", "build"), ("left", "skipped")] {
        let labels = Arc::new([("app".to_owned(), app.to_owned())].into());
        Cluster::lock(&cluster.pods).insert(0, Arc::new(PodFact { labels, ..pod(name, true) }));
    }
    let mut order = order(Mode::Evict);
    order.settings.rules = vec![
        rule("storage", DrainBehavior::Drain, 5),
        rule("build", DrainBehavior::WaitCompleted, 0),
        rule("skipped", DrainBehavior::Skip, 0),
    ];
    let mut drains = cluster.drains(8);
    drains.set(vec![order.clone()], |_| true);
    after(30).await;
    let asked = || -> Vec<String> { Cluster::lock(&cluster.asked).iter().map(|(name, _)| name.clone()).collect() };
    assert_eq!(asked(), ["p0"], "the build runs, and storage goes last");
    cluster.remove("b");
    after(5).await;
    assert_eq!(asked(), ["p0", "s"]);
    // What the policy deletes after the timeout is everything that was to leave.
    Cluster::lock(&cluster.pods).push(Arc::new(pod("b", true)));
    drains.set(vec![Order { mode: Mode::Delete, ..order }], |_| true);
    after(5).await;
    let left: Vec<String> = Cluster::lock(&cluster.pods).iter().map(|pod| pod.name.clone()).collect();
    assert_eq!(left, ["left"]);
}

#[tokio::test(start_paused = true)]
async fn all_pods_go_at_once_within_the_bound() {
    let cluster = Cluster::new(20, |_, _| Answer::Accepted);
    let mut drains = cluster.drains(4);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(1).await;
    let progress = drains.progress_of("n1").unwrap();
    assert_eq!((progress.pods, progress.gone), (20, 20));
    assert_eq!(Cluster::lock(&cluster.under_way).1, 4, "four at once, neither more nor fewer");
}

#[tokio::test(start_paused = true)]
async fn a_budgets_no_is_asked_again_with_backoff_and_never_in_a_hot_loop() {
    let cluster = Cluster::new(1, |_, _| budget());
    let mut drains = cluster.drains(4);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(120).await;
    let asked = cluster.asked("p0");
    assert!((8..=20).contains(&asked), "{asked} times in two minutes");
    let blocked = drains.progress_of("n1").unwrap().blocked;
    assert_eq!(blocked[0].object.as_ref().unwrap().name, "web");
    assert!(!blocked[0].permanent);
    // The budget's status claims room although it refuses: still at most twice a second.
    *Cluster::lock(&cluster.allows) = true;
    cluster.changes.send_modify(|count| *count += 1);
    after(10).await;
    let more = cluster.asked("p0") - asked;
    assert!((10..=20).contains(&more), "{more} times in ten seconds");
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_has_room_again_is_asked_at_once() {
    let cluster = Cluster::new(1, |_, turn| if turn < 6 { budget() } else { Answer::Accepted });
    let mut drains = cluster.drains(4);
    drains.set(vec![order(Mode::Evict)], |_| true);
    while cluster.asked("p0") < 6 {
        after(1).await;
    }
    let before = Instant::now();
    *Cluster::lock(&cluster.allows) = true;
    cluster.changes.send_modify(|count| *count += 1);
    while drains.progress_of("n1").unwrap().gone == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    let waited = drains.progress_of("n1").unwrap().waited_for;
    assert_eq!(waited.len(), 1, "it is known which budget was waited for");
}

#[tokio::test(start_paused = true)]
async fn one_pod_that_may_not_go_means_that_none_is_asked() {
    let cluster = Cluster::new(3, |_, _| Answer::Accepted);
    Cluster::lock(&cluster.pods).push(Arc::new(pod("bare", false)));
    let mut drains = cluster.drains(4);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(30).await;
    assert!(Cluster::lock(&cluster.asked).is_empty());
    let refused = drains.progress_of("n1").unwrap().refused.unwrap();
    assert!(refused.contains("pod shop/bare has no controller"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_not_wanted_any_more_asks_nobody_any_more() {
    let cluster = Cluster::new(1, |_, _| budget());
    let mut drains = cluster.drains(4);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(5).await;
    drains.set(Vec::new(), |_| true);
    let asked = cluster.asked("p0");
    after(120).await;
    assert_eq!(cluster.asked("p0"), asked);
    assert!(drains.progress().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_may_not_begin_yet_waits_and_one_under_way_goes_on() {
    let cluster = Cluster::new(2, |_, _| budget());
    let mut drains = cluster.drains(8);
    assert_eq!(drains.set(vec![order(Mode::Evict)], |_| false), ["n1"]);
    after(5).await;
    assert_eq!(cluster.asked("p0"), 0);
    assert!(drains.set(vec![order(Mode::Evict)], |node| node == "n1").is_empty());
    after(5).await;
    let asked = cluster.asked("p0");
    assert!(asked > 0);
    // A policy that holds asks nobody any more.
    drains.set(vec![Order { keeps: true, ..order(Mode::Evict) }], |_| false);
    after(60).await;
    assert_eq!(cluster.asked("p0"), asked);
    assert_eq!(drains.set(vec![order(Mode::Evict)], |_| false), ["n1"], "it would begin to ask again");
    after(5).await;
    assert_eq!(cluster.asked("p0"), asked);
    drains.set(vec![order(Mode::Evict)], |_| true);
    // To harder means as well: it is the same drain.
    assert!(drains.set(vec![order(Mode::Delete)], |_| false).is_empty());
    after(1).await;
    assert!(cluster.pods.lock().unwrap().is_empty(), "it was asked {asked} times before");
}

#[tokio::test(start_paused = true)]
async fn a_drain_whose_order_changes_knows_whom_it_gave_up_and_another_drain_does_not() {
    let cluster = Cluster::new(1, |_, _| Answer::Accepted);
    *Cluster::lock(&cluster.returns) = Some(again);
    let mut drains = cluster.drains(4);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(60).await;
    let given_up = drains.progress_of("n1").unwrap().given_up;
    assert_eq!(given_up.len(), 1, "its owner brings it back");
    let asked = Cluster::lock(&cluster.asked).len();
    // Other settings, and harder means: the same drain.
    let mut edited = order(Mode::Evict);
    edited.settings.grace_period_seconds = Some(7);
    drains.set(vec![edited], |_| true);
    after(60).await;
    assert_eq!((Cluster::lock(&cluster.asked).len(), drains.progress_of("n1").unwrap().given_up), (asked, given_up));
    // The next grant is another one.
    let mut later = order(Mode::Evict);
    later.begun += chrono::TimeDelta::hours(1);
    drains.set(vec![later], |_| true);
    after(60).await;
    assert!(Cluster::lock(&cluster.asked).len() > asked);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_at_the_timeout_is_deleted_where_the_policy_says_so() {
    let cluster = Cluster::new(2, |target, _| if target.name == "p0" { budget() } else { Answer::Accepted });
    let mut drains = cluster.drains(4);
    drains.set(vec![order(Mode::Evict)], |_| true);
    after(5).await;
    assert_eq!(drains.progress_of("n1").unwrap().gone, 1);
    drains.set(vec![order(Mode::Delete)], |_| true);
    after(1).await;
    assert!(Cluster::lock(&cluster.pods).is_empty());
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_no_is_kept_with_its_reason_and_asked_again() {
    let cases = [
        (Answer::SeveralBudgets { message: "more than one".to_owned() }, "more than one", true),
        (Answer::NamespaceTerminating, "namespace is being deleted", false),
        (Answer::Denied { message: "admission webhook says no".to_owned() }, "webhook says no", false),
        (Answer::Forbidden { message: "cannot create".to_owned() }, "correct its ClusterRole", true),
        (Answer::Failed { message: "connection refused".to_owned(), retry_after: None }, "connection refused", false),
    ];
    for (answer, part, permanent) in cases {
        let first = answer.clone();
        let cluster = Cluster::new(1, move |_, turn| if turn < 2 { first.clone() } else { Answer::Accepted });
        let mut drains = cluster.drains(4);
        drains.set(vec![order(Mode::Evict)], |_| true);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let blocked = drains.progress_of("n1").unwrap().blocked;
        assert!(blocked[0].message.contains(part), "{answer:?}: {blocked:?}");
        assert_eq!(blocked[0].permanent, permanent, "{answer:?}");
        after(10).await;
        assert_eq!(drains.progress_of("n1").unwrap().gone, 1, "{answer:?}");
    }
}
