//! The operator's life: start everything, then plan whenever a fact changes or the last plan said when to look again.

use crate::{
    apply::{Carried, OrdersFirst, Turn, UnderWay, Writer},
    boots::Boots,
    break_glass::BreakGlass,
    clock::Clock,
    drain::{self, Drains, EvictionApi},
    events::Events,
    gather::{Assembler, Outside, World},
    health::{Asker, AskerError, GateBoard},
    leader::{Leader, LeaderError, Leadership},
    live::{Live, Planned},
    metrics::Metrics,
    observe::Observer,
    preflight,
    repository::{self, Channels},
    rights::Rights,
    server::{self, Readiness, ServerError},
    settings::Settings,
    status::{Explained, StatusWriter},
    zones,
};
use bascule_planner::{
    Plan, Planner, Snapshot,
    snapshot::{OfferState, PolicyFacts},
};
use bascule_repository::{FetchError, Fetcher, HttpClient, HttpSettings};
use kube::{Client, Config, config::KubeConfigOptions, config::Kubeconfig};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

/// Changes come in bursts; one plan serves those that follow the first within so many times what the last plan took, so that
/// planning takes a sixth of the time at most.
const BURST: u32 = 5;
/// The bounds of that time.
const SHORTEST_BURST: Duration = Duration::from_millis(25);
const LONGEST_BURST: Duration = Duration::from_millis(200);
/// The pause after steps that failed, doubling up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause after steps that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// After steps that met another world than expected, should the watch not bring the news before.
const STALE_PAUSE: Duration = Duration::from_secs(1);
/// How long a new leader keeps the statuses of its predecessor while it reads the repositories for the first time:
/// saying "not read yet" of every node and taking it back a second later would help nobody.
const FIRST_READING: Duration = Duration::from_secs(10);
/// How long the API server may be silent about a request; watches have a deadline of their own (kube-runtime).
const ANSWER: Duration = Duration::from_secs(30);
/// How long a new leader's reading of the newest state may take before it is begun again.
const CATCHING_UP: Duration = Duration::from_secs(60);
/// The longest time between two plans, against clocks that jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file of the settings can't be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A time zone that was given can't be used.
    #[error("a time zone in the folder of --time-zones can't be used")]
    Zone(#[source] bascule_planner::zones::ZoneError),
    /// Nothing can be written.
    #[error(
        "no folder can be made in {}: mount a volume and name it with --state-dir; the repositories' newest metadata \
         is kept there",
        path.display()
    )]
    NoFolder {
        /// Where it was tried.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No kubeconfig and no service account, or settings of one that can't be used.
    #[error("there is no cluster to talk to: give --kubeconfig, or run in a pod with a service account")]
    NoCluster(#[from] bascule_kubeconfig::ConnectError),
    /// A kubeconfig can't be used.
    #[error("the kubeconfig can't be used")]
    Kubeconfig(#[from] Box<kube::config::KubeconfigError>),
    /// A client can't be made.
    #[error("cannot make a client for the cluster")]
    Client(#[source] Box<kube::Error>),
    /// The election.
    #[error(transparent)]
    Leader(#[from] LeaderError),
    /// The HTTP server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The health gates' client.
    #[error(transparent)]
    Asker(#[from] AskerError),
    /// The repositories' client.
    #[error("cannot make a client for repositories")]
    Fetcher(#[from] FetchError),
    /// A part that must not end ended.
    #[error("{0} ended by itself")]
    Ended(&'static str),
}

impl RunError {
    /// The exit code (docs/operator.md).
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::File { .. }
            | Self::Zone(_)
            | Self::NoFolder { .. }
            | Self::NoCluster(_)
            | Self::Kubeconfig(_)
            | Self::Asker(_)
            | Self::Fetcher(_) => 2,
            Self::Server(_) => 3,
            Self::Client(_) | Self::Leader(_) => 4,
            Self::Ended(_) => 70,
        }
    }
}

/// Runs until `stop` is told, then gives the Lease back.
///
/// # Errors
/// [`RunError`] when something needed can't be had.
pub async fn run(settings: Settings, clock: Clock, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut stop = std::pin::pin!(stop);
    let metrics = Metrics::new();
    let (readiness, live) = (Readiness::default(), Live::default());
    let listener = server::listen(settings.listen)?;
    let mut served = JoinSet::new();
    served.spawn(server::serve(listener, metrics.clone(), readiness.clone(), live.clone()));

    let zones = zones::install(settings.time_zones.as_deref())?.version();
    tracing::info!(version = zones, "time zone database");
    metrics.time_zones(&zones);
    let extra_ca = read_all(&settings.extra_ca).await?;
    let config = cluster(&settings).await?;
    // Of the pod, as its service account says, or of the kubeconfig's context.
    let namespace = settings.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let watching = Client::try_from(config.clone()).map_err(|error| RunError::Client(Box::new(error)))?;
    let mut bounded = config;
    (bounded.read_timeout, bounded.reset_reader_on_write) = (Some(ANSWER), true);
    let client = Client::try_from(bounded.clone()).map_err(|error| RunError::Client(Box::new(error)))?;
    // A 429 of an eviction has a meaning, so this client does not repeat requests by itself.
    let mut plain = bounded;
    plain.default_retry = false;
    let plain = Client::try_from(plain).map_err(|error| RunError::Client(Box::new(error)))?;
    let identity = settings.identity.clone().unwrap_or_else(own_name);
    tokio::select! {
        () = &mut stop => return Ok(()),
        () = preflight::passed(&client, &namespace, &readiness) => {}
        _ = served.join_next() => return Err(RunError::Ended("the HTTP server")),
    }

    let changes = Arc::new(watch::Sender::new(0_u64));
    let world = World::new(Arc::clone(&changes), &clock);
    readiness.set(world.missing());
    let mut watches = world.watch(&watching, &metrics);
    let leader = Leader::start(watching, &settings, clock.clone(), &namespace, &identity).await?;
    let events = Events::start(client.clone(), &identity);
    let asker = Asker::new(client.clone(), &namespace, &extra_ca)?;
    let scratch;
    let state_dir = match &settings.state_dir {
        Some(folder) => folder.clone(),
        None => {
            scratch =
                tempfile::tempdir().map_err(|source| RunError::NoFolder { path: std::env::temp_dir(), source })?;
            scratch.path().to_owned()
        }
    };
    let fetcher = Fetcher::Http(HttpClient::new(HttpSettings {
        extra_ca_pem: extra_ca.iter().map(|(_, pem)| pem.clone()).collect(),
        user_agent: concat!("bascule-operator/", env!("CARGO_PKG_VERSION")).to_owned(),
        ..HttpSettings::default()
    })?);
    let reading = repository::Tools {
        client: client.clone(),
        namespace: namespace.clone(),
        fetcher,
        state_dir,
        clock: clock.clone(),
        changes: Arc::clone(&changes),
    };
    let writer = Writer::new(client, world.clone(), metrics.clone(), events.clone());
    let draining = drain::Tools {
        backend: Arc::new(EvictionApi::new(plain)),
        pods: Arc::new(world.clone()),
        observer: Arc::new(Observer::new(world.clone(), metrics.clone(), events.clone(), Arc::clone(&changes))),
        permits: Arc::new(Semaphore::new(usize::from(settings.max_evictions))),
        clock: clock.clone(),
        // The manifests give a replica the name of its pod.
        own_pod: Some((namespace, identity.clone())),
    };
    let identity = Arc::from(identity);
    let parts = Parts {
        settings,
        identity,
        clock,
        events,
        metrics,
        readiness,
        live,
        world,
        writer,
        draining,
        reading,
        asker,
        changes,
    };

    let ended = tokio::select! {
        () = &mut stop => Ok(()),
        () = parts.lead_and_follow(leader.watch()) => Err(RunError::Ended("the election")),
        _ = watches.join_next() => Err(RunError::Ended("a watch")),
        _ = served.join_next() => Err(RunError::Ended("the HTTP server")),
    };
    tracing::info!("stopping");
    leader.release().await;
    ended
}

fn own_name() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".to_owned());
    format!("{host}_{}", uuid::Uuid::new_v4().simple())
}

async fn read_all(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Vec<u8>)>, RunError> {
    let mut files = Vec::new();
    for path in paths {
        let bytes = tokio::fs::read(path).await.map_err(|source| RunError::File { path: path.clone(), source })?;
        files.push((path.clone(), bytes));
    }
    Ok(files)
}

async fn cluster(settings: &Settings) -> Result<Config, RunError> {
    match &settings.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(Box::new)?;
            Ok(bascule_kubeconfig::from_kubeconfig(file, &KubeConfigOptions::default()).await?)
        }
        None => Ok(bascule_kubeconfig::infer().await?),
    }
}

/// Everything a leader needs; a follower keeps it at hand.
struct Parts {
    settings: Settings,
    /// This replica's name in the Lease.
    identity: Arc<str>,
    clock: Clock,
    metrics: Metrics,
    readiness: Readiness,
    live: Live,
    world: World,
    writer: Writer,
    events: Events,
    draining: drain::Tools,
    reading: repository::Tools,
    asker: Asker,
    changes: Arc<watch::Sender<u64>>,
}

impl Parts {
    /// Leads whenever this replica is the one to lead.
    async fn lead_and_follow(&self, mut leadership: watch::Receiver<Leadership>) {
        let mut changed = self.world.changes();
        loop {
            let now = leadership.borrow_and_update().clone();
            self.metrics.leads(now.leads);
            let missing = self.world.missing();
            self.readiness.set(missing.clone());
            if now.leads && missing.is_empty() {
                tokio::select! {
                    () = self.lead(now.seed) => {}
                    told = leadership.wait_for(|then| !then.leads) => if told.is_err() { return },
                }
                // Whatever was under way ends here; the next leader goes on from what the objects show.
                continue;
            }
            self.live.follows(now.holder);
            tokio::select! {
                told = leadership.changed() => if told.is_err() { return },
                told = changed.changed(), if !missing.is_empty() => if told.is_err() { return },
            }
        }
    }

    /// Plans and acts until it is dropped.
    async fn lead(&self, seed: u64) {
        self.catch_up().await;
        tracing::info!("this replica leads");
        self.live.leads();
        let _until_then = Leads(self);
        let (explained, explanations) = watch::channel(Explained::default());
        let statuses = StatusWriter::new(self.writer.clone(), self.clock.clone(), self.settings.node_conditions);
        let mut round = Round {
            parts: self,
            seed,
            assembler: Assembler::default(),
            planner: Planner::default(),
            channels: Channels::new(self.reading.clone()),
            gates: GateBoard::new(
                self.asker.clone(),
                self.clock.clone(),
                self.metrics.clone(),
                Arc::clone(&self.changes),
            ),
            drains: Drains::new(self.draining.clone()),
            rights: Rights::new(self.reading.client.clone(), &self.reading.namespace, Arc::clone(&self.changes)),
            break_glass: BreakGlass::default(),
            boots: Boots::default(),
            turn: Turn::default(),
            under_way: UnderWay::default(),
            ended: Carried::default(),
            drains_yield: OrdersFirst::default(),
            failures: 0,
            led_since: Instant::now(),
            explained,
        };
        tokio::join!(statuses.run(explanations), round.plan_again_and_again());
    }
}

impl Parts {
    /// Until what is known is at least as new as this leadership.
    async fn catch_up(&self) {
        let mut pause = PAUSE;
        loop {
            let reading = tokio::time::timeout(CATCHING_UP, self.world.catch_up(&self.reading.client)).await;
            match reading {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    tracing::warn!(
                        error = crate::one_line(&error),
                        "a new leader can't read the newest state, and waits"
                    );
                }
                Err(_) => tracing::warn!("a new leader's reading of the newest state takes too long and begins again"),
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }
}

/// While it lives this replica leads. Whoever was deposed tells nothing of the fleet any more, neither to people nor to
/// Prometheus: its successor does.
struct Leads<'a>(&'a Parts);

impl Drop for Leads<'_> {
    fn drop(&mut self) {
        self.0.live.follows(None);
        self.0.metrics.forget();
    }
}

/// When the next plan is due.
#[derive(Debug, Clone, Copy)]
struct Next {
    /// At this time, though nothing changes.
    wake: Instant,
    /// How many steps were not begun: as soon as other writes end.
    left: usize,
}

/// Nobody tells of changes any more.
#[derive(Debug)]
struct Over;

/// What one leadership works with. Dropping it stops its drains, polls and questions.
struct Round<'a> {
    parts: &'a Parts,
    seed: u64,
    assembler: Assembler,
    planner: Planner,
    channels: Channels,
    gates: GateBoard,
    drains: Drains,
    rights: Rights,
    break_glass: BreakGlass,
    boots: Boots,
    turn: Turn,
    under_way: UnderWay,
    /// How writes went that ended since the last plan.
    ended: Carried,
    /// New drains begin when a wave's nodes are cordoned, or pods would go from one to the next.
    drains_yield: OrdersFirst,
    failures: u32,
    led_since: Instant,
    explained: watch::Sender<Explained>,
}

impl Round<'_> {
    async fn plan_again_and_again(&mut self) {
        let mut changed = self.parts.world.changes();
        let mut since = Instant::now();
        loop {
            changed.mark_unchanged();
            let begun = Instant::now();
            let (next, first_change) = noticing(&mut changed, self.plan(since)).await;
            let burst = (begun.elapsed() * BURST).clamp(SHORTEST_BURST, LONGEST_BURST);
            let at = match first_change {
                Some(at) => Some(at),
                None => match self.until_a_plan_is_due(&mut changed, next).await {
                    Ok(at) => at,
                    Err(Over) => return,
                },
            };
            since = at.unwrap_or_else(Instant::now);
            if let Some(at) = at {
                tokio::time::sleep_until(at + burst).await;
            }
        }
    }

    /// Waits for a change, which it tells the time of, or for the time of the next plan.
    async fn until_a_plan_is_due(
        &mut self,
        changed: &mut watch::Receiver<u64>,
        next: Next,
    ) -> Result<Option<Instant>, Over> {
        let mut wake = next.wake;
        loop {
            tokio::select! {
                told = changed.changed() => return told.map(|()| Some(Instant::now())).map_err(|_| Over),
                () = tokio::time::sleep_until(wake) => return Ok(None),
                () = self.under_way.one_ended() => {
                    // What succeeded shows as a change.
                    self.ended.add(self.under_way.take_ended());
                    wake = wake.min(Instant::now() + self.retry(next.left));
                }
            }
        }
    }

    /// After what time a new plan is due because of how the last one's writes went, `left` of its steps having room now.
    fn retry(&self, left: usize) -> Duration {
        match (self.ended.failed, self.ended.stale) {
            (0, _) if left > 0 => Duration::ZERO,
            (0, 0) => LONGEST_SLEEP,
            (0, _) => STALE_PAUSE,
            _ => PAUSE.saturating_mul(1 << self.failures.min(6)).min(LONGEST_PAUSE),
        }
    }

    /// Makes one plan and begins to carry it out; says when to look again though nothing changes.
    async fn plan(&mut self, since: Instant) -> Next {
        let parts = self.parts;
        self.ended.add(self.under_way.take_ended());
        self.failures = match std::mem::take(&mut self.ended) {
            Carried { failed: 1.., .. } => self.failures.saturating_add(1),
            Carried { done: 1.., .. } => 0,
            _ => self.failures,
        };
        self.break_glass.tell(&parts.world, &parts.events, bascule_api::Time::new(parts.clock.now()));
        let policies = parts.world.policies.all();
        self.channels.set(policies.iter().filter(|policy| policy.valid.is_ok()).map(|policy| &policy.spec.source));
        let progress = self.drains.progress();
        let mut snapshot = self.assembler.assemble(
            &parts.world,
            Outside {
                now: bascule_api::Time::new(parts.clock.now()),
                seed: self.seed,
                offer: &|source| self.channels.offer(source),
                gates: self.gates.answers(),
                drains: &progress,
                ceiling: parts.settings.max_unavailable.clone(),
                operator_node: parts.settings.node_name.clone(),
                own_pod: parts.draining.own_pod.clone(),
            },
        );
        self.rights.set(policies.iter().map(|policy| &*policy.spec));
        for facts in &mut snapshot.policies {
            let policy = policies.iter().find(|policy| policy.name == facts.name && policy.valid.is_ok());
            // A node that is under way goes on: what it lacks then shows where it is needed.
            if let Some(error) = policy.and_then(|policy| self.rights.missing(&policy.spec))
                // Nor does a right that is missing keep the hooks after a rollout from running.
                && facts.status.maintenance.is_none()
                && !parts
                    .world
                    .updates
                    .all()
                    .iter()
                    .any(|one| one.facts.spec.disruption.is_some() && one.facts.spec.policy == facts.name)
            {
                *facts = Arc::new(PolicyFacts { spec: Err(error), ..PolicyFacts::clone(facts) });
            }
        }
        let begun = Instant::now();
        let (plan, report) = self.planner.plan(&snapshot);
        parts.metrics.planned(begun.elapsed());
        let verified = policies
            .iter()
            .filter_map(|policy| Some((policy.name.clone(), self.channels.verified_at(&policy.spec.source)?)));
        parts.metrics.describe(&snapshot, &report, &verified.collect());

        self.boots.tell(&parts.world, &snapshot, &report, &parts.events, &parts.metrics);
        for called in self.turn.planned(&plan, since.into_std()) {
            parts.metrics.called(called.action, called.stood);
        }
        let left = parts.writer.carry_out(&plan, &report, &mut self.turn, &mut self.under_way).await;
        crate::hooks::let_go(&parts.writer).await;
        let mut drains = parts.drain_orders(&plan);
        if self.drains_yield.until(self.turn.departing(), Instant::now().into_std()).is_some() {
            drains.retain(|order| self.drains.are_under_way(&order.node));
        }
        self.drains.set(drains);
        self.gates.set(questions(&plan, &snapshot));
        let mut wake = plan.wake_at.map(|at| parts.until(at));
        let reading_ends = self.led_since + FIRST_READING;
        if unread(&snapshot) && Instant::now() < reading_ends {
            wake = Some(wake.map_or(reading_ends, |wake| wake.min(reading_ends)));
        } else {
            let orders_left = left > 0 || self.turn.in_line() > 0;
            let (snapshot, report) = (Arc::new(snapshot), Arc::new(report));
            parts.live.planned(Planned {
                snapshot: Arc::clone(&snapshot),
                report: Arc::clone(&report),
                world: parts.world.clone(),
                identity: Arc::clone(&parts.identity),
            });
            self.explained.send_replace(Explained { snapshot, report, orders_left, under_way: self.under_way.nodes() });
        }

        // Remembering may have failed; the writes under way tell later.
        self.ended.add(self.under_way.take_ended());
        let latest = Instant::now() + self.retry(if self.under_way.is_idle() { left } else { 0 });
        Next { wake: wake.map_or(latest, |wake| wake.min(latest)), left }
    }
}

impl Parts {
    fn until(&self, at: bascule_api::Time) -> Instant {
        let pause = (at.get() - self.clock.now()).to_std().unwrap_or_default();
        Instant::now() + pause.min(LONGEST_SLEEP) + Duration::from_millis(5)
    }

    fn drain_orders(&self, plan: &Plan) -> Vec<drain::Order> {
        let orders = plan.drains.iter().map(|order| {
            let policy = self.world.policies.get(&crate::gather::Key::cluster(&order.policy));
            drain::Order {
                node: order.node.clone(),
                settings: policy.map(|policy| policy.spec.drain.clone()).unwrap_or_default(),
                begun: order.begun.get(),
                mode: match order.mode {
                    bascule_planner::plan::DrainMode::Evict => drain::Mode::Evict,
                    bascule_planner::plan::DrainMode::DeleteRest => drain::Mode::Delete,
                },
            }
        });
        orders.collect()
    }
}

/// What comes of some work, and when something changed first while it was done.
async fn noticing<T>(changed: &mut watch::Receiver<u64>, work: impl Future<Output = T>) -> (T, Option<Instant>) {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return (done, None),
        _ = changed.changed() => {}
    }
    let at = Instant::now();
    (work.await, Some(at))
}

/// Whether a repository that a policy names was not even tried yet.
fn unread(snapshot: &Snapshot) -> bool {
    snapshot.policies.iter().any(|policy| policy.spec.is_ok() && policy.offer.state == OfferState::Unread)
}

/// What the plan wants to know, with the gates it speaks of.
fn questions(
    plan: &Plan,
    snapshot: &Snapshot,
) -> std::collections::BTreeMap<crate::health::GateKey, crate::health::Asked> {
    let ask = |question: &bascule_planner::plan::GateQuestion| {
        let policy = snapshot.policies.iter().find(|policy| policy.name == question.policy)?;
        let valid = policy.spec.as_ref().ok()?;
        let index = valid.gates.iter().position(|gate| gate.name == question.gate)?;
        let gate = valid.spec.health.gates.get(index)?.clone();
        Some((question.clone(), crate::health::Asked { health: valid.spec.health.clone(), gate }))
    };
    plan.questions.iter().filter_map(ask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A caller may run the operator as a task of its own.
    #[allow(dead_code, reason = "compiling it is the test")]
    fn the_operator_may_move_between_threads(settings: Settings) -> impl Send {
        run(settings, Clock::system(), std::future::ready(()))
    }
}
