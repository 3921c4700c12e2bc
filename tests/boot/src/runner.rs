//! Chooses scenarios, prepares what they need, and runs a few machines at once.

use std::cell::RefCell;
use std::future::Future;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use bascule_os_image::{Archive, Fault};
use futures::StreamExt as _;
use tokio::sync::OnceCell;

use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::release::Release;
use crate::say;
use crate::scenarios::counting::{self, Broken};
use crate::scenarios::cuts::{self, Plan};
use crate::scenarios::{Stage, faults, gptprio, integrity, kubelet, life, never_ready, outage};

/// What to run.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Also what takes long.
    pub all: bool,
    /// Only names that contain this.
    pub only: Option<String>,
    /// Numbers of the power cuts.
    pub cuts: Range<u32>,
    /// Of the power cuts.
    pub seed: u64,
    /// How many machines at once.
    pub machines: usize,
}

impl Wanted {
    fn has(&self, name: &str, long: bool) -> bool {
        match &self.only {
            Some(text) => name.contains(text.as_str()),
            None => self.all || !long,
        }
    }

    /// Whether something may be wanted whose name begins so.
    fn some_of(&self, beginning: &str) -> bool {
        self.only.as_ref().is_none_or(|text| beginning.contains(text.as_str()) || text.starts_with(beginning))
    }

    fn wants_cluster(&self) -> bool {
        ["life", "never-ready", "fault", "cut", "outage", "integrity", "kubelet"].iter().any(|name| self.some_of(name))
    }

    /// The nodes whose power fails: their names, and their cuts in order.
    fn cut_nodes(&self) -> Vec<(String, Vec<Plan>)> {
        let mut nodes: Vec<(u32, Vec<u32>)> = Vec::new();
        for number in self.cuts.clone() {
            match nodes.last_mut() {
                Some((node, cuts)) if *node == number / cuts::PHASES => cuts.push(number),
                _ => nodes.push((number / cuts::PHASES, vec![number])),
            }
        }
        let named = nodes.into_iter().filter_map(|(_, cuts)| {
            let (first, last) = (cuts.first()?, cuts.last()?);
            let name = if first == last { format!("cut-{first}") } else { format!("cut-{first}-{last}") };
            Some((name, cuts.iter().map(|number| Plan::of(self.seed, *number)).collect()))
        });
        named.filter(|(name, _)| self.has(name, false)).collect()
    }
}

/// Results, in the order in which they come.
#[derive(Debug, Default)]
struct Results {
    passed: RefCell<u32>,
    failed: RefCell<u32>,
}

impl Results {
    async fn note(&self, name: &str, scenario: impl Future<Output = anyhow::Result<()>>) -> bool {
        say(&format!("begin   {name}"));
        let began = Instant::now();
        let result = scenario.await;
        let seconds = began.elapsed().as_secs();
        match &result {
            Ok(()) => {
                *self.passed.borrow_mut() += 1;
                say(&format!("ok      {name} ({seconds} s)"));
            }
            Err(error) => {
                *self.failed.borrow_mut() += 1;
                say(&format!("FAILED  {name} ({seconds} s): {error:#}"));
            }
        }
        result.is_ok()
    }
}

/// A release that is built when a scenario first asks for it: machines that run need not wait for the images of others.
#[derive(Debug)]
struct Prepared {
    lab: Arc<Lab>,
    version: &'static str,
    archive: Archive,
    fault: Option<Fault>,
    containers: bool,
    built: OnceCell<Release>,
}

impl Prepared {
    fn new(lab: &Arc<Lab>, version: &'static str, archive: Archive, fault: Option<Fault>) -> Self {
        Self { lab: Arc::clone(lab), version, archive, fault, containers: false, built: OnceCell::new() }
    }

    /// With containerd and a real kubelet.
    fn with_containers(lab: &Arc<Lab>, version: &'static str, archive: Archive) -> Self {
        Self { containers: true, ..Self::new(lab, version, archive, None) }
    }

    async fn get(&self) -> anyhow::Result<&Release> {
        let build = || async {
            let (lab, version, archive, fault) = (Arc::clone(&self.lab), self.version, self.archive, self.fault);
            let containers = self.containers;
            // In a thread of its own: the scenarios on other machines go on.
            tokio::task::spawn_blocking(move || {
                if containers { lab.container_release(version, archive) } else { lab.release(version, archive, fault) }
            })
            .await?
        };
        self.built.get_or_try_init(build).await
    }
}

/// The releases of the scenarios with a cluster. Versions are unique, since one repository holds them all.
#[derive(Debug)]
struct Releases {
    old: Prepared,
    new: Prepared,
    never_ready: Prepared,
    panics: Prepared,
    hangs: Prepared,
    decays: Prepared,
    containers_old: Prepared,
    containers_new: Prepared,
}

impl Releases {
    fn of(lab: &Arc<Lab>) -> Self {
        // Broken ones have the packages of the first release: what is tested is the fault, and a delta without a
        // difference is soon packed and soon written.
        let broken = |version, fault| Prepared::new(lab, version, Archive::Release, fault);
        Self {
            old: Prepared::new(lab, "1.0", Archive::Release, None),
            new: Prepared::new(lab, "1.1", Archive::Updates, None),
            never_ready: broken("1.2", Some(Fault::KubeletNeverReady)),
            panics: broken("1.3", Some(Fault::KernelPanic)),
            hangs: broken("1.4", Some(Fault::InitrdHang)),
            decays: broken("1.5", None),
            containers_old: Prepared::with_containers(lab, "2.0", Archive::Release),
            containers_new: Prepared::with_containers(lab, "2.1", Archive::Updates),
        }
    }
}

type Chain<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs what is wanted. Returns whether all of it passed.
///
/// # Errors
/// When something that all scenarios need is missing.
pub async fn run(workspace: &Path, wanted: Wanted) -> anyhow::Result<bool> {
    let began = Instant::now();
    let results = Results::default();
    if wanted.has("gptprio", false) {
        results.note("gptprio", async { gptprio::run() }).await;
    }
    if wanted.some_of("counting") || wanted.wants_cluster() {
        on_machines(workspace, &wanted, &results).await?;
    }
    let (passed, failed) = (*results.passed.borrow(), *results.failed.borrow());
    ensure!(passed + failed > 0, "no scenario has that name");
    writeln!(std::io::stdout(), "boot tests took {} s\n{passed} passed, {failed} failed", began.elapsed().as_secs())?;
    Ok(failed == 0)
}

/// Runs what needs machines, a few at once.
async fn on_machines(workspace: &Path, wanted: &Wanted, results: &Results) -> anyhow::Result<()> {
    let lab = Arc::new(Lab::prepare(workspace, &say)?);
    let surroundings = if wanted.wants_cluster() { Some(Surroundings::prepare(workspace, &lab).await?) } else { None };
    let counting =
        [("counting-kernel", Broken::Kernel), ("counting-initrd", Broken::Initrd), ("counting-root", Broken::Root)];
    let mut chains: Vec<Chain<'_>> = Vec::new();
    for (name, broken) in counting {
        // Without a cluster and an agent: for whoever changes the image. The short list has them in `faults`.
        if wanted.has(name, true) {
            let lab = &lab;
            chains.push(Box::pin(async move {
                results.note(name, counting::run(lab, broken)).await;
            }));
        }
    }
    if let Some(surroundings) = &surroundings {
        let stage = Stage { lab: &lab, cluster: &surroundings.cluster, vendor: &surroundings.vendor };
        chains.extend(cluster_chains(stage, &surroundings.releases, wanted, results));
    }
    futures::stream::iter(chains).for_each_concurrent(wanted.machines, |chain| chain).await;
    Ok(())
}

/// What all scenarios with a cluster share.
#[derive(Debug)]
struct Surroundings {
    // Dropped in this order: who fetches before who serves.
    cluster: Cluster,
    vendor: crate::vendor::Vendor,
    releases: Releases,
}

impl Surroundings {
    async fn prepare(workspace: &Path, lab: &Arc<Lab>) -> anyhow::Result<Self> {
        let releases = Releases::of(lab);
        say("building operator and command line tool");
        let programs = build_programs(workspace)?;
        let vendor = lab.vendor().await?;
        let folder = lab.folder().join("cluster");
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        say("starting the control plane");
        let cluster = Cluster::start(workspace, &folder, &programs, &vendor).await?;
        Ok(Self { cluster, vendor, releases })
    }
}

/// The scenarios with a cluster, those that take longest first.
fn cluster_chains<'a>(
    stage: Stage<'a>,
    releases: &'a Releases,
    wanted: &Wanted,
    results: &'a Results,
) -> Vec<Chain<'a>> {
    let mut chains: Vec<Chain<'a>> = Vec::new();
    if wanted.has("life", false) {
        chains.push(Box::pin(lives(stage, releases, results)));
    }
    let mut add = |name: &'static str, scenario: Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>| {
        chains.push(Box::pin(async move {
            results.note(name, scenario).await;
        }));
    };
    let broken =
        [("fault-hang", &releases.hangs), ("fault-panic", &releases.panics), ("fault-decay", &releases.decays)];
    if wanted.has("never-ready", false) {
        let (old, broken) = (&releases.old, &releases.never_ready);
        add(
            "never-ready",
            Box::pin(async move { never_ready::run(stage, old.get().await?, broken.get().await?).await }),
        );
    }
    if wanted.has("outage", true) {
        let (old, new) = (&releases.old, &releases.new);
        add("outage", Box::pin(async move { outage::run(stage, "outage", old.get().await?, new.get().await?).await }));
    }
    if wanted.has("integrity", true) {
        let old = &releases.old;
        add("integrity", Box::pin(async move { integrity::run(stage, "integrity", old.get().await?).await }));
    }
    if wanted.has("kubelet", true) {
        let (old, new) = (&releases.containers_old, &releases.containers_new);
        let run = async move { kubelet::run(stage, old.get().await?, new.get()).await };
        add("kubelet", Box::pin(run));
    }
    for (name, release) in broken {
        let (old, flip) = (&releases.old, name == "fault-decay");
        if wanted.has(name, false) {
            let fault = async move { faults::run(stage, name, old.get().await?, release.get().await?, flip).await };
            add(name, Box::pin(fault));
        }
    }
    let published = Rc::new(OnceCell::new());
    for (name, plans) in wanted.cut_nodes() {
        let published = Rc::clone(&published);
        chains.push(Box::pin(async move {
            let cut = async {
                let (old, new) = (releases.old.get().await?, releases.new.get().await?);
                // All these nodes follow one channel, which offers the release before they come up.
                published.get_or_try_init(|| async { stage.vendor.publish(cuts::CHANNEL, new, &[old]).await }).await?;
                cuts::run(stage, &name, &plans, old, new).await
            };
            results.note(&name, cut).await;
        }));
    }
    chains
}

/// Tests 1 and 5 on one machine; a failed step ends it, and the steps after it have failed too.
async fn lives(stage: Stage<'_>, releases: &Releases, results: &Results) {
    let machine = RefCell::new(None);
    let installed = results.note("life-first-report", async {
        *machine.borrow_mut() = Some(life::install(stage, releases.old.get().await?).await?);
        Ok(())
    });
    if !installed.await {
        return;
    }
    let Some(mut machine) = machine.into_inner() else { return };
    let (old, new) = (&releases.old, &releases.new);
    let update = async { life::update(stage, &machine, old.get().await?, new.get().await?).await };
    if !results.note("life-update", update).await {
        return;
    }
    let rollback = async { life::rollback(stage, &machine, old.get().await?).await };
    if !results.note("life-rollback", rollback).await {
        return;
    }
    let judged = async { life::judge(&mut machine, old.get().await?, new.get().await?).await };
    if results.note("life-judged", judged).await {
        machine.discard();
    }
}

/// Builds operator and command line tool beside this program. Returns their folder.
fn build_programs(workspace: &Path) -> anyhow::Result<PathBuf> {
    let status = bascule_os_image::cargo()
        .current_dir(workspace)
        .args(["build", "--quiet", "--package", "bascule-operator", "--package", "bascule-cli"])
        .stdin(Stdio::null())
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("operator and command line tool do not build ({status})");
    }
    let own = std::env::current_exe().context("finding this program")?;
    Ok(own.parent().context("this program lies in no folder")?.to_owned())
}
