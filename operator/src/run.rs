//! The operator's life: start everything, lead whenever this replica is the one to lead, and end in order.

mod round;

use crate::{
    apply::Writer,
    clock::Clock,
    drain::{self, EvictionApi},
    events::Events,
    gather::{ApiServers, Caches, CatchUpError},
    health::{Asker, AskerError},
    leader::{Leader, LeaderError, Leadership},
    live::Live,
    metrics::Metrics,
    notify::Notifier,
    observe::Observer,
    preflight, repository,
    server::{self, Readiness, ServerError},
    settings::Settings,
    silences::Silences,
    status::{Explained, StatusWriter},
    trouble::{self, Trouble},
    unreadable, zones,
};
use bascule_dashboard::Dashboard;
use bascule_repository::{FetchError, Fetcher, HttpClient, HttpSettings, Volume};
use kube::{Client, Config, config::KubeConfigOptions, config::Kubeconfig};
use round::Round;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

/// The pause after a new leader's reading that failed, doubling up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How long the API server may be silent about a request; watches have a deadline of their own (kube-runtime).
const ANSWER: Duration = Duration::from_secs(30);
/// The service account in the operator's namespace whose rights object gates have.
const GATES: &str = "bascule-gates";
/// How long a new leader's reading of the newest state may take before it is begun again.
const CATCHING_UP: Duration = Duration::from_secs(60);

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
    /// A token would be sent in the open.
    #[error("{0} would send its token unencrypted: give an https:// URL, or none of both")]
    TokenInTheOpen(&'static str),
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
            | Self::TokenInTheOpen(_)
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
    if let Some(flag) = settings.token_in_the_open() {
        return Err(RunError::TokenInTheOpen(flag));
    }
    let metrics = Metrics::new();
    let (readiness, live) = (Readiness::default(), Live::beating(metrics.pulse()));
    let listener = server::listen(settings.listen)?;
    let mut served = JoinSet::new();
    served.spawn(server::serve(listener, metrics.clone(), readiness.clone(), live.clone()));
    if let Some(address) = settings.dashboard {
        let (listener, live) = (server::listen(address)?, live.clone());
        served.spawn(async move {
            let dashboard = Dashboard::new(live);
            bascule_dashboard::serve(listener, dashboard.router("")).await;
            Ok(())
        });
    }

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
    // Object gates are policies' questions: they are asked as an account of their own, which has what admins gave to gates.
    let mut gates = bounded.clone();
    gates.auth_info.impersonate = Some(format!("system:serviceaccount:{namespace}:{GATES}"));
    gates.auth_info.impersonate_groups = None;
    let gates = Client::try_from(gates).map_err(|error| RunError::Client(Box::new(error)))?;
    let versions = Client::try_from(bounded.clone()).map_err(|error| RunError::Client(Box::new(error)))?;
    // A 429 of an eviction has a meaning, so this client does not repeat requests by itself.
    let mut plain = bounded;
    plain.default_retry = false;
    let plain = Client::try_from(plain).map_err(|error| RunError::Client(Box::new(error)))?;
    let identity = settings.identity.clone().unwrap_or_else(own_name);
    let events = Events::start(client.clone(), &identity);
    // The manifests give a replica the name of its pod.
    let trouble = Trouble::new(client.clone(), events.clone(), &namespace, &identity);
    tokio::select! {
        () = &mut stop => return Ok(()),
        () = preflight::passed(&client, &namespace, settings.node_conditions, &readiness, &trouble) => {}
        _ = served.join_next() => return Err(RunError::Ended("the HTTP server")),
    }

    // From here on the time is the API server's, whose stamps everything is compared with (docs/decisions/0049).
    let (own_clock, api_servers) = (clock.clone(), ApiServers::new(&clock));
    let clock = api_servers.clock();
    tokio::select! {
        () = &mut stop => return Ok(()),
        () = api_servers.get_to_know(&versions) => {}
        _ = served.join_next() => return Err(RunError::Ended("the HTTP server")),
    }
    let changes = Arc::new(watch::Sender::new(0_u64));
    let world = Caches::new(Arc::clone(&changes), &clock).with_api_servers(api_servers);
    readiness.set(world.missing());
    let mut watches = world.watch(&watching, versions, &metrics);
    watches.spawn(unreadable::keep_telling(world.clone(), metrics.clone(), readiness.clone()));
    let leader = Leader::start(watching, &settings, clock.clone(), &namespace, &identity, metrics.pulse()).await?;
    let asker = Asker::new(client.clone(), gates, &namespace, &extra_ca)?;
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
        memory: Arc::new(Volume::new(state_dir, repository::ROOM)),
        clock: clock.clone(),
        own_clock,
        changes: Arc::clone(&changes),
    };
    let notifier = settings.notify().map(|target| {
        Notifier::start(target, asker.http(), format!("/bascule/{namespace}"), clock.clone(), metrics.clone())
    });
    let writer = Writer::new(client, world.clone(), metrics.clone(), events.clone());
    let writer = writer.telling(notifier.unwrap_or_default());
    let draining = drain::Tools {
        backend: Arc::new(EvictionApi::new(plain)),
        pods: Arc::new(world.clone()),
        observer: Arc::new(Observer::new(world.clone(), metrics.clone(), events.clone(), Arc::clone(&changes))),
        permits: Arc::new(Semaphore::new(usize::from(settings.max_evictions))),
        clock: clock.clone(),
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
        trouble,
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
    /// The API server's time.
    clock: Clock,
    metrics: Metrics,
    readiness: Readiness,
    trouble: Trouble,
    live: Live,
    world: Caches,
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
            let kept = now.kept();
            self.readiness.keep(kept.clone());
            if now.leads && missing.is_empty() {
                tokio::select! {
                    () = self.lead(now.seed) => {}
                    told = leadership.wait_for(|then| !then.leads) => if told.is_err() { return },
                }
                // Whatever was under way ends here; the next leader goes on from what the objects show.
                continue;
            }
            self.live.follows(now.holder);
            if let Some(kept) = &kept {
                self.trouble.tell(kept).await;
            }
            tokio::select! {
                told = leadership.changed() => if told.is_err() { return },
                told = changed.changed(), if !missing.is_empty() => if told.is_err() { return },
                () = tokio::time::sleep(trouble::AGAIN), if kept.is_some() => {}
            }
        }
    }

    /// Plans and acts until it is dropped.
    async fn lead(&self, seed: u64) {
        // Whoever led before does not any more.
        self.live.follows(None);
        self.catch_up().await;
        let (client, namespace) = (&self.reading.client, &self.reading.namespace);
        loop {
            self.metrics.leads(false);
            preflight::holds(client, namespace, &self.readiness, &self.trouble).await;
            self.metrics.leads(true);
            tokio::select! {
                () = self.act(seed) => return,
                () = preflight::no_longer_holds(client, namespace, preflight::AGAIN_WHILE_LEADING) => {}
            }
        }
    }

    /// The same, while what it rests on holds.
    async fn act(&self, seed: u64) {
        tracing::info!("this replica leads");
        self.live.leads();
        let _until_then = Leads(self);
        let (explained, explanations) = watch::channel(Explained::default());
        let (expected, expectations) = watch::channel(BTreeMap::new());
        let silences = async {
            match self.settings.silences() {
                Some(target) => Silences::new(target, self.asker.http(), self.clock.clone()).run(expectations).await,
                None => drop(expectations),
            }
        };
        let led_since = Instant::now();
        let statuses =
            StatusWriter::new(self.writer.clone(), self.clock.clone(), self.settings.node_conditions, led_since);
        let mut round = Round::new(self, seed, led_since, explained, expected);
        tokio::join!(statuses.run(explanations), silences, round.plan_again_and_again());
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
                Ok(Err(error @ CatchUpError::Outlived { .. })) => {
                    tracing::error!(error = crate::one_line(&error), "a new leader does not begin");
                    self.metrics.pulse().outlived(error.to_string());
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A caller may run the operator as a task of its own.
    #[allow(dead_code, reason = "compiling it is the test")]
    fn the_operator_may_move_between_threads(settings: Settings) -> impl Send {
        run(settings, Clock::system(), std::future::ready(()))
    }
}
