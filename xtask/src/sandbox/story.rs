//! Everything the acts play with, and its preparation.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bascule_sim::machine::MachineConfig;
use bascule_tests::kubelet::Runtime as _;

use crate::prerequisites::{self, Tool};

use super::acts::Tale;
use super::cluster::{Cluster, NAMESPACE, ON_CALL};
use super::disks;
use super::killing::Killer;
use super::machines::{Host, Hosts, Seat, Surroundings};
use super::observe::{Observer, SANDBOX_LABEL};
use super::oncall::OnCall;
use super::options::Options;
use super::place::Place;
use super::pods::{Containers, agent_kubeconfig};
use super::probes::{Probes, Seen};
use super::programs::Programs;
use super::releases;
use super::report::{Act, Step};
use super::repository::Repository;
use super::view::View;

/// What the OS images are made with.
const IMAGE_TOOLS: &[Tool] = &[
    Tool { program: "mkfs.erofs", package: "erofs-utils" },
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
];

/// How long a trial may take before the machine takes it back by itself, in seconds.
const TRIAL_SECONDS: u32 = 90;
/// The same for a machine that carries a control plane, which on a busy computer takes its time to come up.
const CONTROL_PLANE_TRIAL_SECONDS: u32 = 300;

/// The stage, the players, and what was noted so far.
#[derive(Debug)]
pub(crate) struct Story {
    // Dropped in this order: machines first, then what they talk to.
    pub(crate) hosts: Hosts,
    pub(crate) containers: Arc<Containers>,
    killer: Option<Killer>,
    pub(crate) probes: Option<Probes>,
    pub(crate) on_call: OnCall,
    pub(crate) observer: Arc<Observer>,
    pub(crate) repository: Repository,
    pub(crate) cluster: Cluster,
    version: String,
    programs: Programs,
    options: Options,
    pub(crate) view: View,
    pub(crate) place: Place,
    pub(crate) began: Instant,
    pub(crate) preparation: Vec<Step>,
    pub(crate) acts: Vec<Act>,
    pub(crate) kills: Vec<String>,
    kill_rounds: u64,
}

/// Everything built and answering, with nothing of Bascule in the cluster yet: the last moment at which the sandbox can
/// end without cleaning up.
#[derive(Debug)]
pub(crate) struct Stage {
    hosts: Hosts,
    containers: Arc<Containers>,
    observer: Arc<Observer>,
    cluster: Cluster,
    version: String,
    repository: Repository,
    programs: Programs,
    options: Options,
    view: View,
    place: Place,
    began: Instant,
    preparation: Vec<Step>,
}

impl Stage {
    /// Builds what has to be built, starts (or joins) control plane and repository.
    ///
    /// # Errors
    /// One sentence about what is missing or does not come up.
    pub(crate) async fn prepare(options: Options, view: View) -> anyhow::Result<Self> {
        let began = Instant::now();
        let control_planes = options.control_planes.unwrap_or(0);
        let place = Place::take(&options.folder, options.machines(), control_planes)?;
        check_input(&options)?;
        place.keep_log()?;
        let mut preparation = Vec::new();

        let since = Instant::now();
        let teller = view.teller();
        let wanted = options.tale().releases(options.last_act().map_err(anyhow::Error::msg)?);
        let what = format!("releases {} built", wanted.join(", "));
        let building = move || releases::build_these(&wanted, &|line: &str| teller.say(line));
        let built = tokio::task::spawn_blocking(building).await??;
        preparation.push(Step::since(&what, since));

        let since = Instant::now();
        view.say("building operator, agent and command line tool");
        let programs = tokio::task::spawn_blocking(Programs::build).await??;
        preparation.push(Step::since("programs built", since));

        let since = Instant::now();
        let teller = view.teller();
        let nodes: Vec<String> = Seat::plan(options.machines()).into_iter().map(|seat| seat.node).collect();
        let cluster = match (&options.kubeconfig, options.tale()) {
            (Some(kubeconfig), _) => Cluster::join(kubeconfig, &nodes).await?,
            (None, Tale::Fleet) => Cluster::start(move |line| teller.say(line)).await?,
            (None, Tale::ControlPlanes) => Cluster::prepare(&nodes, move |line| teller.say(line)).await?,
        };
        let mut version = String::new();
        if cluster.control_planes().is_none() {
            version = cluster.version().await?;
            preparation.push(Step::since("control plane ready", since));
            view.say(&format!("kubernetes {version} is ready"));
        }

        let since = Instant::now();
        let repository = Repository::open(&place.run(), options.port, built).await?;
        repository.publish("1.0").await?;
        let extra_ca = place.run().join("repository-ca.pem");
        std::fs::write(&extra_ca, repository.ca_pem()).context("cannot write the repository's authority")?;
        preparation.push(Step::since("repository signed and served", since));

        let admin = cluster.admin().clone();
        let identify = Box::new(move |namespace: &str, account: &str, token: &str| {
            let user = format!("system:serviceaccount:{namespace}:{account}");
            admin.with_other_token(&user, token).unwrap_or_else(|_| admin.clone())
        });
        let containers = Arc::new(Containers::new(programs.operator.clone(), place.run(), extra_ca, identify));
        let observer = Arc::new(Observer::new());
        let hosts = Hosts::new();
        let mut stage = Self {
            hosts,
            containers,
            observer,
            cluster,
            version,
            repository,
            programs,
            options,
            view,
            place,
            began,
            preparation,
        };
        stage.start_carried_control_planes().await?;
        Ok(stage)
    }

    /// Where machines carry the cluster, there is none before they run.
    async fn start_carried_control_planes(&mut self) -> anyhow::Result<()> {
        let Some(control_planes) = self.cluster.control_planes() else { return Ok(()) };
        let since = Instant::now();
        self.view.say("switching on the machines that carry the control planes");
        self.hosts = self.crew().switch_on().await?;
        self.view.say("waiting for etcd and the API servers on them");
        control_planes.wait_until_ready().await?;
        self.version = self.cluster.version().await?;
        self.preparation.push(Step::since("machines up, and the control planes on them ready", since));
        self.view.say(&format!("kubernetes {} is ready", self.version));
        Ok(())
    }

    fn crew(&self) -> Crew<'_> {
        Crew {
            cluster: &self.cluster,
            repository: &self.repository,
            programs: &self.programs,
            observer: &self.observer,
            containers: &self.containers,
            options: &self.options,
            place: &self.place,
        }
    }
}

/// Those who install machines and switch them on.
struct Crew<'a> {
    cluster: &'a Cluster,
    repository: &'a Repository,
    programs: &'a Programs,
    observer: &'a Arc<Observer>,
    containers: &'a Arc<Containers>,
    options: &'a Options,
    place: &'a Place,
}

impl Crew<'_> {
    /// Installs a disk for each seat with release 1.0 and switches the machines on.
    ///
    /// # Errors
    /// A disk can't be written or a machine's process does not start.
    async fn switch_on(&self) -> anyhow::Result<Hosts> {
        let around = Surroundings {
            program: self.programs.machine.clone(),
            observer: Arc::clone(self.observer),
            runtime: Arc::clone(self.containers) as _,
        };
        let root = self.repository.trust_root()?;
        let mut hosts = Hosts::new();
        for seat in Seat::plan(self.options.machines()) {
            let directory = self.place.run().join(&seat.node);
            let plane = self.cluster.plane(&seat.node);
            let given = disks::Given {
                seat: &seat,
                directory: &directory,
                kubeconfig: &agent_kubeconfig(&self.place.run(), &seat.node),
                trust_root: &root,
                extra_ca: &self.place.run().join("repository-ca.pem"),
                trial_seconds: if plane.is_some() { CONTROL_PLANE_TRIAL_SECONDS } else { TRIAL_SECONDS },
            };
            let config: MachineConfig = disks::install(&given, self.repository.built("1.0")?).await?;
            let kubelet = self.cluster.kubelet(&seat.node)?;
            hosts.insert(seat.node.clone(), Host::switch_on(&seat, &config, kubelet, plane, &around).await?);
        }
        Ok(hosts)
    }
}

impl Story {
    /// Installs Bascule into the cluster. Not to be broken off: what it puts into a cluster that exists is taken out
    /// by [`Self::leave`], or here when it fails.
    ///
    /// # Errors
    /// The cluster refuses something.
    pub(crate) async fn set(mut stage: Stage) -> anyhow::Result<Self> {
        let since = Instant::now();
        if let Err(error) = install(&stage.cluster, &stage.place.run(), &stage.repository).await {
            stage.cluster.leave().await?;
            return Err(error);
        }
        stage.observer.watch(&stage.cluster.client().await?, NAMESPACE);
        let on_call = OnCall::new(&stage.programs.cli, &stage.place.run(), &stage.cluster.user(ON_CALL, &[])?)?;
        stage.preparation.push(Step::since("bascule installed", since));

        stage.view.heading(format!(
            "bascule sandbox · kubernetes {} · {} nodes, 3 zones",
            stage.version,
            stage.options.machines()
        ));
        stage.view.follow(stage.observer.subscribe());
        Ok(Self {
            hosts: stage.hosts,
            containers: stage.containers,
            killer: None,
            probes: None,
            on_call,
            observer: stage.observer,
            repository: stage.repository,
            cluster: stage.cluster,
            version: stage.version,
            programs: stage.programs,
            options: stage.options,
            view: stage.view,
            place: stage.place,
            began: stage.began,
            preparation: stage.preparation,
            acts: Vec::new(),
            kills: Vec::new(),
            kill_rounds: 0,
        })
    }

    /// The cluster's version, as it was when the story began.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Which story this is.
    pub(crate) fn tale(&self) -> Tale {
        self.options.tale()
    }

    /// The last act to play.
    pub(crate) fn until(&self) -> u8 {
        self.options.last_act().unwrap_or(u8::MAX)
    }

    /// Installs the machines and switches them on; gives how many.
    ///
    /// # Errors
    /// A disk can't be written or a machine's process does not start.
    pub(crate) async fn install_machines(&mut self) -> anyhow::Result<usize> {
        let crew = Crew {
            cluster: &self.cluster,
            repository: &self.repository,
            programs: &self.programs,
            observer: &self.observer,
            containers: &self.containers,
            options: &self.options,
            place: &self.place,
        };
        self.hosts = crew.switch_on().await?;
        Ok(self.hosts.len())
    }

    /// Forgets what the probes saw so far.
    pub(crate) fn begin_to_measure(&mut self) {
        if let Some(probes) = &mut self.probes {
            probes.take();
        }
    }

    /// What the probes saw since [`Self::begin_to_measure`], for people.
    pub(crate) fn measured(&mut self) -> Vec<String> {
        let members = self.hosts.len();
        self.taken().map(|seen| seen.lines(members)).unwrap_or_default()
    }

    /// The same as it is; none in a story without probes.
    pub(crate) fn taken(&mut self) -> Option<Seen> {
        self.probes.as_mut().map(Probes::take)
    }

    /// The seed of `--kill`.
    pub(crate) fn kill_seed(&self) -> Option<u64> {
        self.options.kill
    }

    /// Takes down what is not a process of ours: objects in a cluster that exists.
    ///
    /// # Errors
    /// The cluster refuses.
    pub(crate) async fn leave(mut self) -> anyhow::Result<()> {
        let nodes: Vec<String> = std::mem::take(&mut self.hosts).into_keys().collect();
        for node in nodes {
            self.containers.power_off(&node).await;
        }
        self.cluster.leave().await
    }

    /// Whether `--kill` was given.
    pub(crate) fn kills_anything(&self) -> bool {
        self.options.kill.is_some()
    }

    /// From now on operators and agents die, if that is wanted.
    pub(crate) fn start_killing(&mut self) {
        let Some(seed) = self.options.kill else { return };
        // Another stretch of the same seed for each act.
        let seed = seed.wrapping_mul(31).wrapping_add(self.kill_rounds);
        self.kill_rounds += 1;
        let machines: BTreeMap<_, _> = self.hosts.iter().map(|(name, host)| (name.clone(), host.switches())).collect();
        self.killer = Some(Killer::start(seed, self.began.into(), Arc::clone(&self.containers), machines));
    }

    /// No more killing.
    pub(crate) async fn stop_killing(&mut self) {
        if let Some(killer) = self.killer.take() {
            self.kills.extend(killer.stop().await);
        }
    }
}

/// What can be told before minutes are spent on building.
fn check_input(options: &Options) -> anyhow::Result<()> {
    options.last_act().map_err(anyhow::Error::msg)?;
    if let Some(kubeconfig) = &options.kubeconfig {
        std::fs::File::open(kubeconfig)
            .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
    } else if std::env::var_os("KUBEBUILDER_ASSETS").is_none_or(|value| value.is_empty()) {
        prerequisites::require("go", "install Go 1.26 or newer (the control plane is built from Go modules)")?;
    }
    if let Some(port) = options.port {
        std::net::TcpListener::bind(("127.0.0.1", port))
            .with_context(|| format!("port {port} can't be used for the repository: choose another --port"))?;
    }
    prerequisites::ensure(IMAGE_TOOLS)
}

/// Applies `manifests/` with what a cluster's admin would set on top: only nodes of the sandbox, and the trust root.
async fn install(cluster: &Cluster, run: &Path, repository: &Repository) -> anyhow::Result<()> {
    let folder = run.join("kustomize");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // kustomize takes no absolute paths for bases.
    let manifests = folder.join("manifests");
    bascule_tests::files::copy_folder(&crate::workspace_root().join("manifests"), &manifests)?;
    std::fs::write(folder.join("root.json"), repository.trust_root()?).context("cannot write the trust root")?;
    let pin = |kind: &str, name: &str| {
        format!(
            "- target: {{kind: {kind}, name: {name}}}\n  patch: |-\n    - op: add\n      path: /spec/template/spec/nodeSelector\n      value: {{{SANDBOX_LABEL}: \"true\"}}\n"
        )
    };
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [manifests]\ncomponents: [manifests/components/high-availability]\npatches:\n{}{}labels:\n- {{pairs: {{{SANDBOX_LABEL}: \"true\"}}}}\nconfigMapGenerator:\n- name: bascule-trust-root\n  namespace: bascule-system\n  files: [root.json]\n  options: {{disableNameSuffixHash: true}}\n",
        pin("Deployment", "bascule-operator"),
        pin("DaemonSet", "bascule-agent"),
    );
    std::fs::write(folder.join("kustomization.yaml"), text).context("cannot write the kustomization")?;
    cluster.apply_kustomization(&folder).await
}
