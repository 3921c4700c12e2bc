//! Chooses scenarios, prepares what they need, and runs a few machines at once.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use bascule_os_image::{Archive, Fault};
use futures::StreamExt as _;

use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::release::Release;
use crate::say;
use crate::scenarios::counting::{self, Broken};
use crate::scenarios::cuts::{self, Plan};
use crate::scenarios::{Stage, faults, gptprio, integrity, life, outage};

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
        ["life", "fault", "cut", "outage", "integrity"].iter().any(|name| self.some_of(name))
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
struct Prepared<'l> {
    lab: &'l Lab,
    version: &'static str,
    archive: Archive,
    fault: Option<Fault>,
    built: OnceCell<Release>,
}

impl<'l> Prepared<'l> {
    fn new(lab: &'l Lab, version: &'static str, archive: Archive, fault: Option<Fault>) -> Self {
        Self { lab, version, archive, fault, built: OnceCell::new() }
    }

    fn get(&self) -> anyhow::Result<&Release> {
        if let Some(release) = self.built.get() {
            return Ok(release);
        }
        let release = self.lab.release(self.version, self.archive, self.fault)?;
        Ok(self.built.get_or_init(|| release))
    }
}

/// The releases of the scenarios with a cluster. Versions are unique, since one repository holds them all.
#[derive(Debug)]
struct Releases<'l> {
    old: Prepared<'l>,
    new: Prepared<'l>,
    never_ready: Prepared<'l>,
    panics: Prepared<'l>,
    hangs: Prepared<'l>,
    decays: Prepared<'l>,
}

impl<'l> Releases<'l> {
    fn of(lab: &'l Lab) -> Self {
        Self {
            old: Prepared::new(lab, "1.0", Archive::Release, None),
            new: Prepared::new(lab, "1.1", Archive::Updates, None),
            never_ready: Prepared::new(lab, "1.2", Archive::Updates, Some(Fault::KubeletNeverReady)),
            panics: Prepared::new(lab, "1.3", Archive::Updates, Some(Fault::KernelPanic)),
            hangs: Prepared::new(lab, "1.4", Archive::Updates, Some(Fault::InitrdHang)),
            decays: Prepared::new(lab, "1.5", Archive::Updates, None),
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
    let lab = Lab::prepare(workspace, &say)?;
    let surroundings = if wanted.wants_cluster() { Some(Surroundings::prepare(workspace, &lab).await?) } else { None };
    let counting =
        [("counting-kernel", Broken::Kernel), ("counting-initrd", Broken::Initrd), ("counting-root", Broken::Root)];
    let mut chains: Vec<Chain<'_>> = Vec::new();
    for (name, broken) in counting {
        // Without a cluster and an agent: for whoever changes the image. The test command has them in `faults`.
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
struct Surroundings<'l> {
    // Dropped in this order: who fetches before who serves.
    cluster: Cluster,
    vendor: crate::vendor::Vendor,
    releases: Releases<'l>,
}

impl<'l> Surroundings<'l> {
    async fn prepare(workspace: &Path, lab: &'l Lab) -> anyhow::Result<Self> {
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

fn cluster_chains<'a>(
    stage: Stage<'a>,
    releases: &'a Releases<'a>,
    wanted: &Wanted,
    results: &'a Results,
) -> Vec<Chain<'a>> {
    let mut chains: Vec<Chain<'a>> = Vec::new();
    if wanted.has("life", false) {
        chains.push(Box::pin(lives(stage, releases, results)));
    }
    let broken = [
        ("fault-panic", &releases.panics, false),
        ("fault-hang", &releases.hangs, false),
        ("fault-decay", &releases.decays, true),
    ];
    for (name, release, flip) in broken {
        if wanted.has(name, false) {
            chains.push(Box::pin(async move {
                results
                    .note(name, async { faults::run(stage, name, releases.old.get()?, release.get()?, flip).await })
                    .await;
            }));
        }
    }
    let published = Rc::new(Cell::new(false));
    for (name, plans) in wanted.cut_nodes() {
        let published = Rc::clone(&published);
        chains.push(Box::pin(async move {
            let cut = async {
                let (old, new) = (releases.old.get()?, releases.new.get()?);
                // All these nodes follow one channel, which offers the release before they come up.
                if !published.replace(true) {
                    stage.vendor.publish(cuts::CHANNEL, new, &[old])?;
                }
                cuts::run(stage, &name, &plans, old, new).await
            };
            results.note(&name, cut).await;
        }));
    }
    if wanted.has("outage", true) {
        chains.push(Box::pin(async move {
            results
                .note("outage", async { outage::run(stage, "outage", releases.old.get()?, releases.new.get()?).await })
                .await;
        }));
    }
    if wanted.has("integrity", true) {
        chains.push(Box::pin(async move {
            results.note("integrity", async { integrity::run(stage, "integrity", releases.old.get()?).await }).await;
        }));
    }
    chains
}

/// Tests 1, 5 and 2 on one machine; a failed step ends it, and the steps after it have failed too.
async fn lives(stage: Stage<'_>, releases: &Releases<'_>, results: &Results) {
    let machine = RefCell::new(None);
    let installed = results.note("life-first-report", async {
        *machine.borrow_mut() = Some(life::install(stage, releases.old.get()?).await?);
        Ok(())
    });
    if !installed.await {
        return;
    }
    let Some(mut machine) = machine.into_inner() else { return };
    let (old, new, broken) = (&releases.old, &releases.new, &releases.never_ready);
    let _ = results.note("life-update", async { life::update(stage, &machine, old.get()?, new.get()?).await }).await
        && results.note("life-rollback", async { life::rollback(stage, &machine, old.get()?).await }).await
        && results
            .note("life-never-ready", async { life::never_ready(stage, &machine, old.get()?, broken.get()?).await })
            .await
        && results.note("life-judged", async { life::judge(&mut machine, old.get()?).await }).await;
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
