//! Several control planes of one cluster, one on each machine: a member of etcd, an API server that talks to that member
//! alone (as kubeadm sets it up), controllers and a scheduler that take turns by a Lease. What of it runs is what the
//! kubelet of the machine keeps running from its static pods: it goes down with the machine and comes up with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::arguments::{self, Election};
use super::ports::lasting_port;
use super::{Balancer, Binaries, ControlPlaneError, Foundation, Options, Request, audit};
use crate::kubelet::StaticPod;
use crate::supervise::{ProcessError, Supervised};

/// How often a machine looks at its parts: whether each still runs, and whether it is ready.
const LOOK: Duration = Duration::from_millis(300);
/// How long a part that ended stays down (a kubelet starts with 10 s and doubles; the story is shorter).
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How long a part may take to answer whether it is ready.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the API server with its clients, and after them etcd, are given to end when the machine goes down, before they are
/// killed. (kubeadm's static pods have Kubernetes' default, 30 s.)
const GRACE: Duration = Duration::from_secs(15);
/// The parts in the order of their pods' names.
const PARTS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// All control planes of a cluster and the balancer in front of them. Dropping it kills what runs.
#[derive(Debug)]
pub struct ControlPlanes {
    planes: BTreeMap<String, Arc<Plane>>,
    balancer: Balancer,
    options: Options,
    foundation: Arc<Foundation>,
}

impl std::ops::Deref for ControlPlanes {
    type Target = Foundation;

    fn deref(&self) -> &Foundation {
        &self.foundation
    }
}

impl Drop for ControlPlanes {
    fn drop(&mut self) {
        for plane in self.planes.values() {
            plane.cut();
        }
    }
}

impl ControlPlanes {
    /// Prepares a control plane for each of these machines. The balancer listens; everything else waits for its machine
    /// ([`Plane::start`]). `progress` hears one sentence before each long step.
    ///
    /// # Errors
    /// When the programs can't be had, or keys, folders or ports.
    pub async fn prepare(
        machines: &[String],
        options: Options,
        progress: impl Fn(&str) + Send + 'static,
    ) -> Result<Self, ControlPlaneError> {
        crate::install_tls_provider();
        let binaries = tokio::task::spawn_blocking(move || Binaries::locate(&progress)).await??;
        let (listener, address) = Balancer::listen().await?;
        let foundation = Arc::new(Foundation::lay(binaries, &format!("https://{address}"))?);
        let port = || lasting_port().map_err(|source| ControlPlaneError::Listen { source });
        let mut cluster = Vec::new();
        for machine in machines {
            cluster.push((machine.clone(), format!("http://127.0.0.1:{}", port()?)));
        }
        let (mut planes, mut ports) = (BTreeMap::new(), Vec::new());
        for machine in machines {
            let place = foundation.folder().join(machine);
            fs::create_dir(&place).map_err(|source| ControlPlaneError::Folder { path: place.clone(), source })?;
            let (etcd_port, server_port) = (port()?, port()?);
            let (etcd_url, server) =
                (format!("http://127.0.0.1:{etcd_port}"), format!("https://127.0.0.1:{server_port}"));
            foundation.equip(&place, &server)?;
            let mut api_server = arguments::api_server(foundation.folder(), &place, &etcd_url, server_port, &options);
            api_server.extend(arguments::ORDERLY_END.map(str::to_owned));
            let told = [
                arguments::etcd(&place.join("etcd"), machine, &etcd_url, &cluster),
                api_server,
                arguments::controller_manager(foundation.folder(), &place, &options, Election::Lease),
                arguments::scheduler(&place, Election::Lease),
            ];
            let plane = Plane {
                machine: machine.clone(),
                place,
                etcd_url,
                server,
                told,
                running: Mutex::default(),
                ready: [(); 4].map(|()| watch::Sender::new(false)),
                foundation: Arc::clone(&foundation),
            };
            planes.insert(machine.clone(), Arc::new(plane));
            ports.push(server_port);
        }
        let balancer = Balancer::serve(listener, &ports, foundation.authority_certificate())?;
        Ok(Self { planes, balancer, options, foundation })
    }

    /// The control plane of one machine.
    #[must_use]
    pub fn of(&self, machine: &str) -> Option<&Arc<Plane>> {
        self.planes.get(machine)
    }

    /// All of them, by machine.
    pub fn planes(&self) -> impl Iterator<Item = &Arc<Plane>> {
        self.planes.values()
    }

    /// Waits until every API server is ready, and the controllers have made the default service account, without which no
    /// pod is admitted.
    ///
    /// # Errors
    /// When that takes longer than [`Options::start_timeout`]; the message carries the end of the log of a part that is not
    /// ready.
    pub async fn wait_until_ready(&self) -> Result<(), ControlPlaneError> {
        let deadline = Instant::now() + self.options.start_timeout;
        let accounts = Api::<ServiceAccount>::namespaced(self.client().await?, "default");
        loop {
            let late = self.planes.values().find_map(|plane| plane.not_ready());
            let made = late.is_none() && matches!(accounts.get_opt("default").await, Ok(Some(_)));
            if made && self.balancer.servers() == self.planes.len() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (program, log) = late.unwrap_or_else(|| ("kube-controller-manager".to_owned(), String::new()));
                return Err(ControlPlaneError::NotReady { program, waited: self.options.start_timeout, log });
            }
            sleep(LOOK).await;
        }
    }

    /// Every request that any API server answered so far, oldest first.
    ///
    /// # Errors
    /// When an audit log can't be read.
    pub fn requests(&self) -> Result<Vec<Request>, ControlPlaneError> {
        let mut all = Vec::new();
        for plane in self.planes.values() {
            all.extend(audit::read(&plane.place.join("audit"))?);
        }
        all.sort_by_key(|request| request.at);
        Ok(all)
    }
}

/// The control plane of one machine.
#[derive(Debug)]
pub struct Plane {
    machine: String,
    place: PathBuf,
    etcd_url: String,
    server: String,
    /// Arguments by part, as in [`PARTS`].
    told: [Vec<String>; 4],
    running: Mutex<Option<Running>>,
    /// By part, as in [`PARTS`].
    ready: [watch::Sender<bool>; 4],
    foundation: Arc<Foundation>,
}

/// What runs while the machine is up.
#[derive(Debug)]
struct Running {
    keeper: JoinHandle<()>,
    parts: [Option<Supervised>; 4],
    /// When each part was started last.
    started: [Option<Instant>; 4],
}

impl Drop for Running {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Plane {
    /// The machine's name.
    #[must_use]
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// Where its member of etcd takes clients, and answers how it is (`/readyz`, `/health`).
    #[must_use]
    pub fn etcd_url(&self) -> &str {
        &self.etcd_url
    }

    /// Where its API server listens, the balancer left aside.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The static pods that the machine's kubelet shows for it, with the labels that kubeadm gives them.
    #[must_use]
    pub fn static_pods(&self) -> Vec<StaticPod> {
        let parts = PARTS.iter().zip(&self.ready);
        parts.map(|(part, ready)| StaticPod { component: (*part).to_owned(), ready: ready.subscribe() }).collect()
    }

    /// The machine is up: its parts are started, and started again when they end.
    pub fn start(self: &Arc<Self>) {
        let mut running = self.running();
        if running.is_none() {
            let keeper = tokio::spawn(keep(Arc::clone(self)));
            *running = Some(Running { keeper, parts: [const { None }; 4], started: [None; 4] });
        }
    }

    /// The machine goes down in order: its parts are asked to end, and killed after a while. etcd is asked last. It hands over its
    /// leadership, but only once its clients are gone: it waits for their streams (`embed.Etcd.Close`), and where it is killed
    /// meanwhile the other members notice by an election, during which no API server reads or writes. Machines arrange the
    /// order with a preStop hook of etcd's pod, or run etcd as a service of the host that ends after all pods (Talos).
    pub async fn shut_down(&self) {
        let Some(mut running) = self.running().take() else { return };
        running.keeper.abort();
        // The only error is the cancellation just asked for.
        let _ = (&mut running.keeper).await;
        let (etcd, clients) = running.parts.split_at_mut(1);
        self.end(clients).await;
        self.end(etcd).await;
        self.nothing_is_ready();
    }

    async fn end(&self, parts: &mut [Option<Supervised>]) {
        for part in parts.iter().flatten() {
            if let Err(error) = part.terminate() {
                tracing::warn!(machine = self.machine, %error, "a part of a control plane could not be asked to end");
            }
        }
        let asked = Instant::now();
        while let Some(part) =
            parts.iter_mut().flatten().find_map(|part| part.ended().is_ok_and(|end| end.is_none()).then_some(part))
        {
            if asked.elapsed() >= GRACE {
                tracing::warn!(
                    machine = self.machine,
                    part = part.program(),
                    "a part of a control plane had to be killed"
                );
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        for part in parts {
            *part = None;
        }
    }

    /// The machine's power is gone: whatever ran is gone at once.
    pub fn cut(&self) {
        drop(self.running().take());
        self.nothing_is_ready();
    }

    /// Breaks the machine's member of etcd, as a disk that lost its files does: what is left can't be started. Its data lies
    /// aside for [`Self::mend_etcd`].
    ///
    /// # Errors
    /// When the files can't be moved.
    pub fn break_etcd(&self) -> Result<(), ControlPlaneError> {
        let (member, aside) = (self.place.join("etcd/member"), self.place.join("member-aside"));
        let mut running = self.running();
        if let Some(etcd) = running.as_mut().and_then(|running| running.parts.first_mut()) {
            *etcd = None;
        }
        let moved = fs::rename(&member, aside).and_then(|()| fs::write(&member, "no member of etcd"));
        moved.map_err(|source| ControlPlaneError::Folder { path: member, source })
    }

    /// Whether it was broken by [`Self::break_etcd`] and not mended.
    #[must_use]
    pub fn etcd_is_broken(&self) -> bool {
        self.place.join("member-aside").exists()
    }

    /// Gives the member of etcd its data back.
    ///
    /// # Errors
    /// When the files can't be moved.
    pub fn mend_etcd(&self) -> Result<(), ControlPlaneError> {
        let (member, aside) = (self.place.join("etcd/member"), self.place.join("member-aside"));
        let _running = self.running();
        let moved = fs::remove_file(&member).and_then(|()| fs::rename(aside, &member));
        moved.map_err(|source| ControlPlaneError::Folder { path: member, source })
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nothing_is_ready(&self) {
        for ready in &self.ready {
            ready.send_replace(false);
        }
    }

    /// The first part that is not ready, and the end of its log.
    fn not_ready(&self) -> Option<(String, String)> {
        let (part, _) = PARTS.iter().zip(&self.ready).find(|(_, ready)| !*ready.borrow())?;
        let log = fs::read_to_string(self.log(part)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n");
        Some((format!("{part} of {}", self.machine), tail))
    }

    fn log(&self, part: &str) -> PathBuf {
        self.place.join(format!("{part}.log"))
    }

    /// Starts what does not run and is due. Controllers and scheduler wait for the API server beside them: they would only
    /// end again.
    fn start_what_is_due(&self) -> Result<(), ProcessError> {
        let mut running = self.running();
        let Some(running) = running.as_mut() else { return Ok(()) };
        let server_ready = *self.ready[1].borrow();
        for (number, name) in PARTS.iter().enumerate() {
            let Running { parts, started, .. } = &mut *running;
            let (Some(part), Some(started), Some(told)) =
                (parts.get_mut(number), started.get_mut(number), self.told.get(number))
            else {
                continue;
            };
            let runs = match part {
                Some(process) => process.ended()?.is_none(),
                None => false,
            };
            let due = started.is_none_or(|at| at.elapsed() >= RESTART_AFTER) && (number < 2 || server_ready);
            if !runs && due {
                let program = self.foundation.binaries().path(name);
                *part = Some(Supervised::start(&program, told, &[], &self.log(name))?);
                *started = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Whether a part without an address for such questions runs.
    fn runs(&self, number: usize) -> bool {
        let mut running = self.running();
        let part = running.as_mut().and_then(|running| running.parts.get_mut(number)?.as_mut());
        part.is_some_and(|part| matches!(part.ended(), Ok(None)))
    }
}

/// Keeps the parts of a machine running and says which are ready, until the machine goes down.
async fn keep(plane: Arc<Plane>) {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).pool_max_idle_per_host(0);
    let authority = reqwest::Certificate::from_pem(plane.foundation.authority_certificate().as_bytes());
    let client = match authority.and_then(|authority| client.tls_certs_only([authority]).build()) {
        Ok(client) => client,
        Err(error) => return tracing::error!(%error, "a control plane can't be looked at"),
    };
    let mut beat = interval(LOOK);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        if let Err(error) = plane.start_what_is_due() {
            tracing::warn!(machine = plane.machine, %error, "a part of a control plane does not start");
        }
        let asked = |url: String| {
            let client = client.clone();
            async move { client.get(url).send().await.is_ok_and(|answer| answer.status().is_success()) }
        };
        let (etcd, server) = (format!("{}/readyz", plane.etcd_url), format!("{}/readyz", plane.server));
        let (etcd, server) = tokio::join!(asked(etcd), asked(server));
        for (ready, now) in plane.ready.iter().zip([etcd, server, plane.runs(2), plane.runs(3)]) {
            ready.send_if_modified(|before| std::mem::replace(before, now) != now);
        }
    }
}
