//! Chooses scenarios, prepares what they need, and runs a few machines at once.

use std::cell::RefCell;
use std::future::Future;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bascule_os_image::Store;
use futures::StreamExt as _;
use tokio::sync::OnceCell;

use crate::cluster::Cluster;
use crate::lab::{Lab, Places};
use crate::programs;
use crate::reference::Edition;
use crate::release::Release;
use crate::say;
use crate::scenarios::counting::{self, Broken};
use crate::scenarios::cuts::{self, Plan};
use crate::scenarios::{
    Stage, bare_metal, boot_loader, credential, example, faults, gptprio, install, integrity, kubelet, layout, life,
    never_ready, order, outage, secure_boot, tpm,
};
use crate::vendor::ReferenceVendor;

/// What to run.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Also what takes long.
    pub all: bool,
    /// Only names that contain one of these; all, if there is none.
    pub only: Vec<String>,
    /// Numbers of the power cuts.
    pub cuts: Range<u32>,
    /// Of the power cuts.
    pub seed: u64,
    /// How many machines at once.
    pub machines: usize,
}

impl Wanted {
    fn has(&self, name: &str, long: bool) -> bool {
        match self.only.as_slice() {
            [] => self.all || !long,
            only => only.iter().any(|text| name.contains(text.as_str())),
        }
    }

    /// Whether something may be wanted whose name begins so.
    fn some_of(&self, beginning: &str) -> bool {
        let fits = |text: &String| beginning.contains(text.as_str()) || text.starts_with(beginning);
        self.only.is_empty() || self.only.iter().any(fits)
    }

    /// What the first machine boots.
    fn first(&self) -> Edition<'static> {
        match self.only.as_slice() {
            [_] if ["kubelet", "install", "upgrade"].iter().any(|name| self.has(name, true)) => Edition::CONTAINERS_OLD,
            [_] if self.has("tpm", true) => Edition::SEALED_OLD,
            _ => Edition::OLD,
        }
    }

    fn wants_cluster(&self) -> bool {
        let names = [
            "life",
            "never-ready",
            "fault",
            "cut",
            "outage",
            "integrity",
            "kubelet",
            "layout",
            "secure-boot",
            "tpm",
            "boot-loader",
            "credential",
            "bare-metal",
        ];
        names.iter().any(|name| self.some_of(name))
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
    edition: Edition<'static>,
    built: OnceCell<Release>,
}

impl Prepared {
    /// Builds it and packs it for those that run `base`, so that nobody has to wait for it later.
    async fn make_ahead(&self, base: &Self, vendor: &ReferenceVendor) -> anyhow::Result<()> {
        let (release, base) = (self.get().await?, base.get().await?);
        vendor.pack_ahead(release, &[base]).await
    }

    async fn get(&self) -> anyhow::Result<&Release> {
        let build = || async {
            let (lab, edition) = (Arc::clone(&self.lab), self.edition);
            // In a thread of its own: the scenarios on other machines go on.
            tokio::task::spawn_blocking(move || lab.release(edition)).await?
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
    cut_off: Prepared,
    brings_loader: Prepared,
    containers_old: Prepared,
    containers_new: Prepared,
    two_partitions_old: Prepared,
    two_partitions_new: Prepared,
    older_records: Prepared,
    signed_old: Prepared,
    unsigned: Prepared,
    revoked: Prepared,
    signed_new: Prepared,
    sealed_old: Prepared,
    sealed_new: Prepared,
    live: Prepared,
}

impl Releases {
    fn of(lab: &Arc<Lab>) -> Self {
        let release = |edition| Prepared { lab: Arc::clone(lab), edition, built: OnceCell::new() };
        Self {
            old: release(Edition::OLD),
            new: release(Edition::NEW),
            never_ready: release(Edition::NEVER_READY),
            panics: release(Edition::PANICS),
            hangs: release(Edition::HANGS),
            decays: release(Edition::DECAYS),
            cut_off: release(Edition::CUT_OFF),
            brings_loader: release(Edition::BRINGS_LOADER),
            containers_old: release(Edition::CONTAINERS_OLD),
            containers_new: release(Edition::CONTAINERS_NEW),
            two_partitions_old: release(Edition::TWO_PARTITIONS_OLD),
            two_partitions_new: release(Edition::TWO_PARTITIONS_NEW),
            older_records: release(Edition::OLDER_RECORDS),
            signed_old: release(Edition::SIGNED_OLD),
            unsigned: release(Edition::UNSIGNED),
            revoked: release(Edition::REVOKED),
            signed_new: release(Edition::SIGNED_NEW),
            sealed_old: release(Edition::SEALED_OLD),
            sealed_new: release(Edition::SEALED_NEW),
            live: release(Edition::LIVE),
        }
    }
}

type Chain<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;
type Scenario<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

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
    if wanted.has("example", true) {
        // Before the others, and with a folder of its own: it shares nothing with them but packages that were fetched.
        let store = Store::new(workspace);
        let folder = store.folder().with_file_name("boot-tests-example");
        results.note("example", example::run(workspace, &folder, &store.downloads())).await;
    }
    let apart = ["counting", "order", "install", "upgrade"].iter().any(|name| wanted.some_of(name));
    if apart || wanted.wants_cluster() {
        on_machines(workspace, &wanted, &results).await?;
    }
    let (passed, failed) = (*results.passed.borrow(), *results.failed.borrow());
    ensure!(passed + failed > 0, "no scenario has that name");
    writeln!(std::io::stdout(), "boot tests took {} s\n{passed} passed, {failed} failed", began.elapsed().as_secs())?;
    Ok(failed == 0)
}

/// Runs what needs machines, a few at once.
async fn on_machines(workspace: &Path, wanted: &Wanted, results: &Results) -> anyhow::Result<()> {
    let places = Places::prepare(workspace)?;
    let first = wanted.first();
    // What is made of source, what is made of packages, and the cluster: at the same time.
    let lab = async {
        let places = places.clone();
        let lab = tokio::task::spawn_blocking(move || Lab::prepare(&places, first, say)).await??;
        anyhow::Ok(Arc::new(lab))
    };
    let cluster = async {
        if wanted.wants_cluster() { Surroundings::prepare(workspace, &places).await.map(Some) } else { Ok(None) }
    };
    let (lab, surroundings) = futures::try_join!(lab, cluster)?;
    let releases = Releases::of(&lab);
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
    if wanted.has("order", true) {
        let lab = &lab;
        chains.push(Box::pin(async move {
            results.note("order", order::run(lab)).await;
        }));
    }
    for name in ["install", "upgrade"] {
        if wanted.has(name, true) {
            let (places, releases) = (&places, &releases);
            chains.push(Box::pin(async move {
                results.note(name, installation(workspace, places, releases, name)).await;
            }));
        }
    }
    let mut needed = Vec::new();
    if let Some(surroundings) = &surroundings {
        let stage = Stage { lab: &lab, cluster: &surroundings.cluster, vendor: &surroundings.vendor };
        let wanted = cluster_chains(stage, &releases, wanted, results);
        chains.extend(wanted.chains);
        needed = wanted.releases;
    }
    let machines = futures::stream::iter(chains).for_each_concurrent(wanted.machines, |chain| chain);
    let making = async {
        let Some(Surroundings { vendor, .. }) = &surroundings else { return };
        for release in needed {
            // What fails here is tried again and told by the scenario that needs it.
            let _ = release.make_ahead(&releases.old, vendor).await;
        }
    };
    futures::join!(machines, making);
    Ok(())
}

/// A cluster of its own: what is installed there is no other scenario's business.
async fn installation(workspace: &Path, places: &Places, releases: &Releases, name: &str) -> anyhow::Result<()> {
    let folder = places.folder().join(format!("site-{name}"));
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let vendor = places.vendor_in(&folder).await?;
    let (old, new) = (releases.containers_old.get().await?, releases.containers_new.get().await?);
    let scene = install::Scene { lab: &releases.containers_old.lab, folder: &folder, vendor: &vendor, old, new };
    match name {
        "upgrade" => install::upgrade(scene, workspace).await,
        _ => install::run(scene).await,
    }
}

/// Builds what the wanted scenarios install, so that machines need not wait for it.
///
/// # Errors
/// When something can't be built.
pub async fn make_ahead(workspace: &Path, wanted: &Wanted) -> anyhow::Result<()> {
    if wanted.first() != Edition::CONTAINERS_OLD {
        return Ok(());
    }
    let places = Places::prepare(workspace)?;
    let prepared = places.clone();
    let lab = tokio::task::spawn_blocking(move || Lab::prepare(&prepared, Edition::CONTAINERS_OLD, say)).await??;
    let releases = Releases::of(&Arc::new(lab));
    let folder = places.folder().join("packing");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    releases.containers_new.make_ahead(&releases.containers_old, &places.vendor_in(&folder).await?).await
}

/// What all scenarios with a cluster share.
#[derive(Debug)]
struct Surroundings {
    // Dropped in this order: who fetches before who serves.
    cluster: Cluster,
    vendor: ReferenceVendor,
}

impl Surroundings {
    async fn prepare(workspace: &Path, places: &Places) -> anyhow::Result<Self> {
        say("building operator and command line tool");
        let sources = workspace.to_owned();
        let programs = tokio::task::spawn_blocking(move || programs::of_the_cluster(&sources)).await??;
        let vendor = places.vendor().await?;
        let folder = places.folder().join("cluster");
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        say("starting the control plane");
        let cluster = Cluster::start(workspace, &folder, &programs, &vendor).await?;
        say("the control plane runs");
        Ok(Self { cluster, vendor })
    }
}

/// What is to be done with a cluster.
struct Scenarios<'a> {
    results: &'a Results,
    /// Those that take longest first.
    chains: Vec<Chain<'a>>,
    /// What they install, in the order in which it is asked for.
    releases: Vec<&'a Prepared>,
}

impl<'a> Scenarios<'a> {
    fn add(&mut self, name: &str, needs: Option<&'a Prepared>, scenario: Scenario<'a>) {
        let (name, results) = (name.to_owned(), self.results);
        self.releases.extend(needs);
        self.chains.push(Box::pin(async move {
            results.note(&name, scenario).await;
        }));
    }
}

/// The scenarios with a cluster.
fn cluster_chains<'a>(
    stage: Stage<'a>,
    releases: &'a Releases,
    wanted: &Wanted,
    results: &'a Results,
) -> Scenarios<'a> {
    let mut scenarios = Scenarios { results, chains: Vec::new(), releases: Vec::new() };
    let old = &releases.old;
    let published = Rc::new(OnceCell::new());
    for (name, plans) in wanted.cut_nodes() {
        let (published, new, node) = (Rc::clone(&published), &releases.new, name.clone());
        let cut = async move {
            let publish = async {
                let (old, new) = (old.get().await?, new.get().await?);
                // All these nodes follow one channel.
                published.get_or_try_init(|| async { stage.vendor.publish(cuts::CHANNEL, new, &[old]).await }).await?;
                Ok(new)
            };
            cuts::run(stage, &node, &plans, old.get().await?, publish).await
        };
        scenarios.add(&name, Some(new), Box::pin(cut));
    }
    if wanted.has("never-ready", false) {
        let broken = &releases.never_ready;
        let run = async move { never_ready::run(stage, old.get().await?, broken.get().await?).await };
        scenarios.add("never-ready", Some(broken), Box::pin(run));
    }
    if wanted.has("outage", true) {
        let new = &releases.cut_off;
        let run = async move { outage::run(stage, "outage", old.get().await?, new.get().await?).await };
        scenarios.add("outage", Some(new), Box::pin(run));
    }
    let fault = |name: &'static str, broken: &'a Prepared| -> Scenario<'a> {
        let flip = name == "fault-decay";
        Box::pin(async move { faults::run(stage, name, old.get().await?, broken.get().await?, flip).await })
    };
    if wanted.has("fault-hang", true) {
        scenarios.add("fault-hang", Some(&releases.hangs), fault("fault-hang", &releases.hangs));
    }
    if wanted.has("life", false) {
        scenarios.releases.push(&releases.new);
        scenarios.chains.push(Box::pin(lives(stage, releases, results)));
    }
    for (name, broken) in [("fault-panic", &releases.panics), ("fault-decay", &releases.decays)] {
        if wanted.has(name, true) {
            scenarios.add(name, Some(broken), fault(name, broken));
        }
    }
    if wanted.has("kubelet", true) {
        let (old, new) = (&releases.containers_old, &releases.containers_new);
        let run = async move { kubelet::run(stage, old.get().await?, new.get()).await };
        scenarios.add("kubelet", None, Box::pin(run));
    }
    if wanted.has("layout", true) {
        scenarios.chains.push(Box::pin(layouts(stage, releases, results)));
    }
    if wanted.has("secure-boot", true) {
        let run = async move {
            let (old, unsigned) = (releases.signed_old.get().await?, releases.unsigned.get().await?);
            let (revoked, new) = (releases.revoked.get().await?, releases.signed_new.get().await?);
            secure_boot::run(stage, secure_boot::Releases { old, unsigned, revoked, new }).await
        };
        scenarios.add("secure-boot", None, Box::pin(run));
    }
    if wanted.has("tpm", true) {
        let (old, new) = (&releases.sealed_old, &releases.sealed_new);
        let run = async move { tpm::run(stage, old.get().await?, new.get().await?).await };
        scenarios.add("tpm", None, Box::pin(run));
    }
    if wanted.has("boot-loader", true) {
        let (new, seed) = (&releases.brings_loader, wanted.seed);
        let run = async move {
            let lab = Arc::clone(&new.lab);
            let older = tokio::task::spawn_blocking(move || lab.older_boot_loader()).await??;
            boot_loader::run(stage, old.get().await?, new.get().await?, &older, seed).await
        };
        scenarios.add("boot-loader", Some(new), Box::pin(run));
    }
    if wanted.has("bare-metal", true) {
        let live = &releases.live;
        let run = async move { bare_metal::run(stage, live.get().await?, old.get().await?).await };
        scenarios.add("bare-metal", None, Box::pin(run));
    }
    if wanted.has("credential", true) {
        let run = async move { credential::run(stage, old.get().await?).await };
        scenarios.add("credential", None, Box::pin(run));
    }
    if wanted.has("integrity", true) {
        scenarios.add(
            "integrity",
            None,
            Box::pin(async move { integrity::run(stage, "integrity", old.get().await?).await }),
        );
    }
    scenarios
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

/// One machine with two boot partitions and a neighbour's disk; a failed step ends it, and the steps after it have failed too.
async fn layouts(stage: Stage<'_>, releases: &Releases, results: &Results) {
    let machine = RefCell::new(None);
    let (old, new) = (&releases.two_partitions_old, &releases.two_partitions_new);
    let installed = results.note("layout-first-report", async {
        *machine.borrow_mut() = Some(layout::install(stage, old.get().await?).await?);
        Ok(())
    });
    if !installed.await {
        return;
    }
    let Some(mut machine) = machine.into_inner() else { return };
    let obstacles = async { layout::obstacles(stage, &machine, old.get().await?, new.get().await?).await };
    if !results.note("layout-obstacles", obstacles).await {
        return;
    }
    let update = async { layout::update(stage, &machine, new.get().await?).await };
    if !results.note("layout-update", update).await {
        return;
    }
    let older = &releases.older_records;
    let back = async { layout::back(stage, &machine, new.get().await?, older.get().await?).await };
    if !results.note("layout-back", back).await {
        return;
    }
    let judged = async { layout::judge(&mut machine, older.get().await?, new.get().await?).await };
    if results.note("layout-judged", judged).await {
        machine.discard();
    }
}
