//! Chooses scenarios, prepares what they need, and runs a few machines at once.

use std::cell::RefCell;
use std::future::Future;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
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
}

/// Results, in the order in which they come.
#[derive(Debug, Default)]
struct Results {
    passed: RefCell<u32>,
    failed: RefCell<u32>,
}

impl Results {
    async fn note(&self, name: &str, scenario: impl Future<Output = anyhow::Result<()>>) -> bool {
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

/// The releases of the scenarios with a cluster. Versions are unique, since one repository holds them all.
#[derive(Debug)]
struct Releases {
    old: Release,
    new: Release,
    never_ready: Release,
    panics: Release,
    hangs: Release,
    decays: Release,
}

impl Releases {
    fn build(lab: &Lab) -> anyhow::Result<Self> {
        Ok(Self {
            old: lab.release("1.0", Archive::Release, None)?,
            new: lab.release("1.1", Archive::Updates, None)?,
            never_ready: lab.release("1.2", Archive::Updates, Some(Fault::KubeletNeverReady))?,
            panics: lab.release("1.3", Archive::Updates, Some(Fault::KernelPanic))?,
            hangs: lab.release("1.4", Archive::Updates, Some(Fault::InitrdHang))?,
            decays: lab.release("1.5", Archive::Updates, None)?,
        })
    }
}

type Chain<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs what is wanted. Returns whether all of it passed.
///
/// # Errors
/// When something that all scenarios need is missing.
pub async fn run(workspace: &Path, wanted: Wanted) -> anyhow::Result<bool> {
    let began = Instant::now();
    let lab = Lab::prepare(workspace, &say)?;
    let results = Results::default();
    if wanted.has("gptprio", false) {
        results.note("gptprio", async { gptprio::run(lab.folder()) }).await;
    }

    let with_cluster = ["life", "fault-panic", "fault-hang", "fault-decay", "cut", "outage", "integrity"];
    let any = with_cluster.iter().any(|name| wanted.has(name, !matches!(*name, "life" | "cut")));
    let surroundings = if any { Some(Surroundings::prepare(workspace, &lab).await?) } else { None };
    let counting =
        [("counting-kernel", Broken::Kernel), ("counting-initrd", Broken::Initrd), ("counting-root", Broken::Root)];
    let mut chains: Vec<Chain<'_>> = Vec::new();
    for (name, broken) in counting {
        // Without a cluster and an agent: for whoever changes the image. The test command has them in `faults`.
        if wanted.has(name, true) {
            let (lab, results) = (&lab, &results);
            chains.push(Box::pin(async move {
                results.note(name, counting::run(lab, broken)).await;
            }));
        }
    }
    if let Some(surroundings) = &surroundings {
        let stage = Stage { lab: &lab, cluster: &surroundings.cluster, vendor: &surroundings.vendor };
        chains.extend(cluster_chains(stage, &surroundings.releases, &wanted, &results));
    }
    futures::stream::iter(chains).for_each_concurrent(wanted.machines, |chain| chain).await;

    let (passed, failed) = (*results.passed.borrow(), *results.failed.borrow());
    ensure!(passed + failed > 0, "no scenario has that name");
    writeln!(std::io::stdout(), "boot tests took {} s\n{passed} passed, {failed} failed", began.elapsed().as_secs())?;
    Ok(failed == 0)
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
    async fn prepare(workspace: &Path, lab: &Lab) -> anyhow::Result<Self> {
        let releases = Releases::build(lab)?;
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
    releases: &'a Releases,
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
                results.note(name, faults::run(stage, name, &releases.old, release, flip)).await;
            }));
        }
    }
    for number in wanted.cuts.clone() {
        let name = format!("cut-{number}");
        if wanted.has(&name, false) {
            let plan = Plan::of(wanted.seed, number);
            chains.push(Box::pin(async move {
                let cut = cuts::run(stage, &name, plan, &releases.old, &releases.new);
                results.note(&format!("{name} {plan:?}"), cut).await;
            }));
        }
    }
    if wanted.has("outage", true) {
        chains.push(Box::pin(async move {
            results.note("outage", outage::run(stage, "outage", &releases.old, &releases.new)).await;
        }));
    }
    if wanted.has("integrity", true) {
        chains.push(Box::pin(async move {
            results.note("integrity", integrity::run(stage, "integrity", &releases.old)).await;
        }));
    }
    chains
}

/// Tests 1, 5 and 2 on one machine; a failed step ends it, and the steps after it have failed too.
async fn lives(stage: Stage<'_>, releases: &Releases, results: &Results) {
    let machine = RefCell::new(None);
    let installed = results.note("life-first-report", async {
        *machine.borrow_mut() = Some(life::install(stage, &releases.old).await?);
        Ok(())
    });
    if !installed.await {
        return;
    }
    let Some(mut machine) = machine.into_inner() else { return };
    let (old, new) = (&releases.old, &releases.new);
    let _ = results.note("life-update", life::update(stage, &machine, old, new)).await
        && results.note("life-rollback", life::rollback(stage, &machine, old)).await
        && results.note("life-never-ready", life::never_ready(stage, &machine, old, &releases.never_ready)).await
        && results.note("life-judged", life::judge(&mut machine, old)).await;
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
