//! Whether the cluster's own control plane is there, measured from outside: an ordinary client that reads and writes
//! through the balancer, a watch on what it writes, and each API server and each member of etcd asked directly. Nothing here
//! knows what the machines' power switches do, or what the balancer thinks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bascule_tests::control_plane::{ControlPlanes, Credentials, Plane};
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, Config};
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Who asks; the audit log knows it apart from everybody else.
pub(crate) const USER: &str = "bascule-sandbox-probe";
/// What is written and read.
const OBJECT: &str = "bascule-sandbox-beat";
const NAMESPACE: &str = "default";
/// Between two reads, two writes, two rounds of questions to each server and member.
const READ_EVERY: Duration = Duration::from_millis(100);
const WRITE_EVERY: Duration = Duration::from_millis(250);
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Between a watch that broke off and its next try.
const AGAIN: Duration = Duration::from_millis(100);
/// After this long without an answer a request through the balancer has failed.
const PATIENCE: Duration = Duration::from_secs(2);
/// After this long without an answer nobody is there. It is what Kubernetes' own leaders allow before they give up (the renew
/// deadline of controllers and schedulers), and long enough for a server that only waits for its turn on a busy processor.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Requests of one kind, each sent once: nothing is tried again behind our back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Requests {
    /// How many were sent.
    pub(crate) sent: u64,
    /// How many of them were not answered as they should.
    pub(crate) failed: u64,
    /// The longest time between two answers, in milliseconds.
    pub(crate) longest_gap_ms: u64,
    #[serde(skip)]
    pub(super) last: Option<Instant>,
}

impl Requests {
    fn note(&mut self, good: bool, at: Instant) {
        self.sent += 1;
        if good {
            self.answered(at);
        } else {
            self.failed += 1;
        }
    }

    fn answered(&mut self, at: Instant) {
        self.gap_until(at);
        self.last = Some(at);
    }

    /// A gap counts before it ends, too.
    fn gap_until(&mut self, at: Instant) {
        let gap = self.last.map_or(Duration::ZERO, |last| at.saturating_duration_since(last));
        self.longest_gap_ms = self.longest_gap_ms.max(u64::try_from(gap.as_millis()).unwrap_or(u64::MAX));
    }

    /// The same measuring goes on with nothing noted but the last answer.
    fn restarted(&self) -> Self {
        Self { last: self.last, ..Self::default() }
    }

    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.longest_gap_ms = self.longest_gap_ms.max(other.longest_gap_ms);
    }
}

/// What the probes saw in a stretch of time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seen {
    /// Reads of one object, from etcd, through balancer and API server.
    pub(crate) reads: Requests,
    /// Writes of it.
    pub(crate) writes: Requests,
    /// What a watch on it delivered; what fails is the watch, with an error, and it begins again where it was.
    pub(crate) watch: Requests,
    /// How often the watch delivered something older than before. Must be never.
    pub(crate) went_back: u64,
    /// Members of etcd that answered for themselves, at the fewest.
    pub(crate) fewest_members: Option<usize>,
    /// Questions to etcd that need its quorum.
    pub(crate) quorum: Requests,
    /// API servers that read the object when they were asked themselves, at the fewest.
    pub(crate) fewest_servers: Option<usize>,
    /// The machines whose member of etcd did not answer once at the least.
    pub(crate) members_away: BTreeSet<String>,
    /// The machines whose API server did not.
    pub(crate) servers_away: BTreeSet<String>,
}

impl Seen {
    /// Another stretch of the same measuring begins.
    fn restarted(&self) -> Self {
        Self {
            reads: self.reads.restarted(),
            writes: self.writes.restarted(),
            watch: self.watch.restarted(),
            quorum: self.quorum.restarted(),
            ..Self::default()
        }
    }

    /// What was seen up to `now`; another stretch begins.
    fn take(&mut self, now: Instant) -> Self {
        for requests in [&mut self.reads, &mut self.writes, &mut self.watch, &mut self.quorum] {
            requests.gap_until(now);
        }
        let next = self.restarted();
        std::mem::replace(self, next)
    }

    /// Takes in a later stretch.
    pub(crate) fn add(&mut self, other: &Self) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        self.watch.add(&other.watch);
        self.quorum.add(&other.quorum);
        self.went_back += other.went_back;
        self.fewest_members = fewest(self.fewest_members, other.fewest_members);
        self.fewest_servers = fewest(self.fewest_servers, other.fewest_servers);
        self.members_away.extend(other.members_away.iter().cloned());
        self.servers_away.extend(other.servers_away.iter().cloned());
    }

    /// Whether every kind of question was answered, so that from here on silence is noticed.
    fn has_begun(&self) -> bool {
        let answered = [&self.reads, &self.writes, &self.watch, &self.quorum].iter().all(|one| one.last.is_some());
        answered && self.fewest_members.is_some() && self.fewest_servers.is_some()
    }

    /// For people.
    pub(crate) fn lines(&self, members: usize) -> Vec<String> {
        let answered = |requests: &Requests| format!("{} of {}", requests.sent - requests.failed, requests.sent);
        let seconds = |requests: &Requests| format!("{:.1} s", requests.longest_gap_ms as f64 / 1e3);
        let number = |number: Option<usize>| number.map_or("-".to_owned(), |number| number.to_string());
        vec![
            format!(
                "API through the balancer: {} reads answered, longest without one {}; {} writes, {}",
                answered(&self.reads),
                seconds(&self.reads),
                answered(&self.writes),
                seconds(&self.writes)
            ),
            format!(
                "a watch of the same object: {} events, longest silence {}, {} of them older than one before",
                self.watch.sent - self.watch.failed,
                seconds(&self.watch),
                self.went_back
            ),
            format!(
                "each asked: never fewer than {} of {members} members of etcd and {} of {members} API servers answered; longest without \
                 etcd's quorum {}",
                number(self.fewest_members),
                number(self.fewest_servers),
                seconds(&self.quorum)
            ),
        ]
    }
}

fn fewest(one: Option<usize>, other: Option<usize>) -> Option<usize> {
    one.into_iter().chain(other).min()
}

/// Measures until it is dropped.
#[derive(Debug)]
pub(crate) struct Probes {
    seen: Arc<Mutex<Seen>>,
    earlier: Seen,
    _tasks: JoinSet<()>,
}

impl Probes {
    /// Makes the object that is written and read, and begins to measure: each kind of question was answered when this returns.
    ///
    /// # Errors
    /// The API server refuses, no client can be made, or something is never answered.
    pub(crate) async fn start(control_planes: &ControlPlanes, who: &Credentials) -> anyhow::Result<Self> {
        // Reader, writer and watch are three clients with connections of their own, which the balancer spreads.
        let balancer = control_planes.server();
        let (reader, writer) =
            (client(who, balancer, Some(PATIENCE)).await?, client(who, balancer, Some(PATIENCE)).await?);
        let watching = client(who, balancer, None).await?;
        beat(&objects(&writer), 0).await.context("cannot write what the probes read")?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_reading(objects(&reader), Arc::clone(&seen)));
        tasks.spawn(keep_writing(objects(&writer), Arc::clone(&seen)));
        tasks.spawn(keep_watching(objects(&watching), Arc::clone(&seen)));
        let http = reqwest::Client::builder().no_proxy().timeout(DEADLINE).pool_max_idle_per_host(0).build()?;
        let mut each = Vec::new();
        for plane in control_planes.planes() {
            let objects = objects(&client(who, plane.server(), Some(DEADLINE)).await?);
            each.push(Pair { plane: Arc::clone(plane), objects, http: http.clone() });
        }
        let each: Arc<[Pair]> = each.into();
        tasks.spawn(keep_asking_each(Arc::clone(&each), Arc::clone(&seen)));
        tasks.spawn(keep_asking_the_quorum(each, Arc::clone(&seen)));
        let begun = async {
            let mut look = every(READ_EVERY);
            while !lock(&seen).has_begun() {
                look.tick().await;
            }
        };
        let begun = tokio::time::timeout(DEADLINE * 3, begun).await;
        begun.context("the control plane does not answer every question that the probes ask")?;
        Ok(Self { seen, earlier: Seen::default(), _tasks: tasks })
    }

    /// What was seen since the last time, or since the start.
    pub(crate) fn take(&mut self) -> Seen {
        let taken = lock(&self.seen).take(Instant::now());
        self.earlier.add(&taken);
        taken
    }

    /// What was seen in all.
    pub(crate) fn all(&mut self) -> Seen {
        self.take();
        self.earlier.clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn client(who: &Credentials, server: &str, patience: Option<Duration>) -> anyhow::Result<Client> {
    let mut config: Config = who.config().await?;
    config.cluster_url = server.parse().with_context(|| format!("{server} is no address of an API server"))?;
    config.connect_timeout = Some(patience.unwrap_or(PATIENCE));
    config.read_timeout = patience;
    // What is refused is a failure here, and not tried again until it works.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

fn objects(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), NAMESPACE)
}

async fn beat(objects: &Api<ConfigMap>, number: u64) -> kube::Result<ConfigMap> {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": OBJECT },
        "data": { "beat": number.to_string() },
    });
    objects.patch(OBJECT, &PatchParams::apply(USER).force(), &Patch::Apply(object)).await
}

async fn in_time<T>(patience: Duration, request: impl Future<Output = kube::Result<T>>) -> bool {
    matches!(tokio::time::timeout(patience, request).await, Ok(Ok(_)))
}

async fn keep_reading(objects: Api<ConfigMap>, seen: Arc<Mutex<Seen>>) {
    let mut beat = every(READ_EVERY);
    loop {
        beat.tick().await;
        let good = in_time(PATIENCE, objects.get(OBJECT)).await;
        lock(&seen).reads.note(good, Instant::now());
    }
}

async fn keep_writing(objects: Api<ConfigMap>, seen: Arc<Mutex<Seen>>) {
    let mut tick = every(WRITE_EVERY);
    for number in 1.. {
        tick.tick().await;
        let good = in_time(PATIENCE, beat(&objects, number)).await;
        lock(&seen).writes.note(good, Instant::now());
    }
}

/// A watch that breaks off begins again at the version it has seen, as every client's does; what it is told then must not be
/// older.
async fn keep_watching(objects: Api<ConfigMap>, seen: Arc<Mutex<Seen>>) {
    let only = watcher::Config::default().fields(&format!("metadata.name={OBJECT}")).timeout(290);
    let mut events = std::pin::pin!(watcher(objects, only));
    let mut newest = 0;
    while let Some(event) = events.next().await {
        let at = Instant::now();
        match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                let number = object.data.and_then(|data| data.get("beat")?.parse::<u64>().ok()).unwrap_or(0);
                let mut seen = lock(&seen);
                seen.went_back += u64::from(number < newest);
                newest = newest.max(number);
                seen.watch.note(true, at);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::info!(%error, "the probing watch broke off");
                lock(&seen).watch.note(false, at);
                sleep(AGAIN).await;
            }
        }
    }
}

/// One API server and the member of etcd beside it.
#[derive(Debug)]
struct Pair {
    plane: Arc<Plane>,
    objects: Api<ConfigMap>,
    http: reqwest::Client,
}

impl Pair {
    async fn server_reads(&self) -> bool {
        in_time(DEADLINE, self.objects.get(OBJECT)).await
    }

    /// Whether etcd is well, by itself (`/health?serializable=true`) or with the others (`/health`).
    async fn etcd_is_well(&self, path: &str) -> bool {
        let answer = self.http.get(format!("{}{path}", self.plane.etcd_url())).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }
}

/// All are asked at the same moment, so that what is counted is who was there together. One who lets us wait, as somebody may
/// who goes down just then, does not keep the next round from its moment.
async fn keep_asking_each(each: Arc<[Pair]>, seen: Arc<Mutex<Seen>>) {
    let mut beat = every(ASK_EVERY);
    let mut rounds = JoinSet::new();
    loop {
        beat.tick().await;
        while rounds.try_join_next().is_some() {}
        let (each, seen) = (Arc::clone(&each), Arc::clone(&seen));
        rounds.spawn(async move {
            let members = join_all(each.iter().map(|pair| pair.etcd_is_well("/health?serializable=true")));
            let servers = join_all(each.iter().map(Pair::server_reads));
            let (members, servers) = tokio::join!(members, servers);
            let away = |answers: Vec<bool>| -> Vec<String> {
                let silent = each.iter().zip(answers).filter(|(_, answered)| !answered);
                silent.map(|(pair, _)| pair.plane.machine().to_owned()).collect()
            };
            let (members, servers) = (away(members), away(servers));
            let mut seen = lock(&seen);
            seen.fewest_members = fewest(seen.fewest_members, Some(each.len() - members.len()));
            seen.fewest_servers = fewest(seen.fewest_servers, Some(each.len() - servers.len()));
            seen.members_away.extend(members);
            seen.servers_away.extend(servers);
        });
    }
}

/// The first member that says so is enough.
async fn keep_asking_the_quorum(each: Arc<[Pair]>, seen: Arc<Mutex<Seen>>) {
    let mut beat = every(ASK_EVERY);
    loop {
        beat.tick().await;
        let answers: FuturesUnordered<_> = each.iter().map(|pair| pair.etcd_is_well("/health")).collect();
        let agreed = answers.any(std::future::ready).await;
        lock(&seen).quorum.note(agreed, Instant::now());
    }
}

fn every(time: Duration) -> tokio::time::Interval {
    let mut interval = interval(time);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_as_long_as_nobody_answers_and_counts_before_it_ends() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut requests = Requests::default();
        requests.note(true, at(0));
        requests.note(true, at(100));
        requests.note(false, at(2_100));
        requests.note(true, at(2_600));
        assert_eq!((requests.sent, requests.failed, requests.longest_gap_ms), (4, 1, 2_500));
        let mut next = requests.restarted();
        next.gap_until(at(3_000));
        assert_eq!((next.sent, next.longest_gap_ms), (0, 400));
        next.add(&requests);
        assert_eq!((next.sent, next.failed, next.longest_gap_ms), (4, 1, 2_500));
    }

    #[test]
    fn the_fewest_of_two_stretches_is_kept() {
        let stretch = |members: usize| Seen {
            fewest_members: Some(members),
            members_away: (members..3).map(|machine| format!("n{machine}")).collect(),
            ..Seen::default()
        };
        let mut all = Seen::default();
        all.add(&stretch(3));
        all.add(&stretch(2));
        all.add(&stretch(3));
        assert_eq!(all.fewest_members, Some(2));
        assert_eq!(all.members_away, ["n2".to_owned()].into(), "who was away once is remembered");
        assert!(all.lines(3)[2].contains("never fewer than 2 of 3 members"));
    }
}
