//! The boot loader that a release brings, on a machine that was installed with an older one in both places of its ESP: it waits for the
//! commit, takes both places, starts the machine from the next start on, and starts the older release as well. Then the older one is put
//! back and replaced anew, with the power cut in the middle: the drive loses what it had not flushed, and each place has to be whole.

use std::cmp::Ordering;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use bascule_api::{NodeUpdateStatus, compare_versions, conditions};
use bascule_image::Sha256;
use bascule_image::boot_loader::{in_fallback, in_systemd};
use bascule_names::Architecture;
use bascule_sim::layout::{ESP, Slot};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{BOOT, STAGE, Stage, TRIAL, committed, cuts};
use crate::disk::{Access, Cut, Loss};
use crate::install::Boot;
use crate::lab::Setup;
use crate::machine::Machine;
use crate::offline;
use crate::release::{Release, brought};

/// The name of the node, of its policy and of its channel.
const NODE: &str = "boot-loader";
/// What the boot loader that started the machine says it is (systemd, "The Boot Loader Interface").
const LOADER_INFO: &str = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Where the machine keeps the older one, to be put back.
const KEPT: &str = "/var/lib/older-boot-loader.efi";
/// What the agent says for each of the two places, and how often it has said so in this boot.
const SAID: &str = "journalctl --boot --no-pager --unit bascule-agent | grep -c 'the boot loader was put in place'";
/// More writes to an ESP than any test makes.
const NEVER: u64 = 1 << 40;

/// The two boot loaders, and where they lie.
struct Loaders {
    /// Paths on the ESP: where a boot variable names it, and where firmware looks without one, as it does here.
    places: [String; 2],
    older: Vec<u8>,
    older_version: String,
    newer: Vec<u8>,
    newer_version: String,
}

/// Installs the node with `older` in both places, updates it to a release that brings a newer one, cuts its power while that is put in
/// place, and takes the node back.
///
/// # Errors
/// When a place ends with something else than one of the two, whole, or the machine is started by another one than lies there.
pub async fn run(stage: Stage<'_>, old: &Release, new: &Release, older: &Path, seed: u64) -> anyhow::Result<()> {
    let loaders = Loaders::of(older, new)?;
    let [systemd, fallback] = &loaders.places;
    // The place that has no boot variable gets what a release is installed with.
    let installed = Release { boot_loader: older.to_owned(), ..old.clone() };
    let boot = Boot { files: vec![(systemd.clone(), loaders.older.clone())], ..Boot::default() };
    let (mut machine, _) = stage.node_of(NODE, &installed, NODE, &Setup { boot, ..Setup::default() }).await?;
    started_by(&machine, &loaders.older_version).await.context("at the first start")?;
    hold(&machine, &loaders, &loaders.older).await.context("at the first start")?;
    machine.run(&format!("cp /efi/{fallback} {KEPT} && sync -f {KEPT}"), BOOT).await?;

    stage.vendor.publish(NODE, new, &[old]).await?;
    stage.until(&machine, "the new release is committed", STAGE + TRIAL, |status| committed(status, new)).await?;
    in_place(stage, &machine, &loaders).await.context("after the commit")?;
    started_by(&machine, &loaders.older_version).await.context("it was replaced in the boot that it began")?;
    machine.shut_down(BOOT).await?;
    start(&mut machine).await.context("with the new boot loader")?;
    started_by(&machine, &loaders.newer_version).await.context("with the new boot loader")?;

    // How many writes it takes, to cut among them.
    let left = replaced_anew(&machine, &loaders, NEVER).await?.context("the power went by itself")?;
    in_place(stage, &machine, &loaders).await.context("anew")?;
    let writes = NEVER - left;
    ensure!(writes >= 4, "both places were replaced by {writes} writes to the ESP");
    crate::say(&format!("{NODE}: {writes} writes to the ESP replace both"));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let half = writes / 2;
    // One for each place, more or less.
    let planned = [
        (random.random_range(0..half), Loss::Everything),
        (random.random_range(half..writes), Loss::Torn(random.random())),
    ];
    let mut within = 0;
    for (after, loss) in planned {
        let how = format!("the power is cut after {after} writes, {loss:?}");
        within += u32::from(cut(stage, &mut machine, &loaders, after, loss).await.context(how)?);
    }
    ensure!(within > 0, "both cuts came when all was written");

    // A release that knows nothing of it is started by it, and leaves it where it is.
    stage.cluster.on_call(&["rollback", NODE, "--reason", "boot test", "--yes"]).await?;
    stage.until(&machine, "the old release runs for good", TRIAL * 2, |status| committed(status, old)).await?;
    started_by(&machine, &loaders.newer_version).await.context("after the way back")?;
    hold(&machine, &loaders, &loaders.newer).await.context("after the way back")?;
    machine.shut_down(BOOT).await?;
    for place in &loaders.places {
        let (folder, _) = place.rsplit_once('/').unwrap_or_default();
        let names = offline::files(machine.disk().path(), folder)?;
        ensure!(names.len() == 1, "something was left beside {place}: {names:?}");
    }
    offline::judge(machine.disk().path(), &[(Slot::A, old), (Slot::B, new)])?;
    machine.discard();
    Ok(())
}

impl Loaders {
    fn of(older: &Path, new: &Release) -> anyhow::Result<Self> {
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
        let (older_version, brings) = (brought(older)?.version, new.brings.as_ref());
        let brings = brings.with_context(|| format!("{} brings no boot loader", new.version))?;
        ensure!(
            compare_versions(&older_version, &brings.version) == Ordering::Less,
            "there is no update from systemd-boot {older_version} to {}",
            brings.version
        );
        ensure!(brought(&new.boot_loader)? == *brings, "it brings another one than its packages have");
        let (newer, newer_version) = (read(&new.boot_loader)?, brings.version.clone());
        let places = [in_systemd(Architecture::X86_64), in_fallback(Architecture::X86_64)];
        let places = places.map(|(folder, name)| format!("{folder}/{name}"));
        Ok(Self { places, older: read(older)?, older_version, newer, newer_version })
    }
}

/// Which boot loader started the machine.
async fn started_by(machine: &Machine, version: &str) -> anyhow::Result<()> {
    let said = machine.run(&format!("tail -c +5 {LOADER_INFO} | tr -d '\\000'"), BOOT).await?;
    ensure!(said.contains(&format!("systemd-boot {version}")), "it was started by {said}, and not by {version}");
    Ok(())
}

/// Waits until both places have this content, as the running machine sees them.
async fn hold(machine: &Machine, loaders: &Loaders, content: &[u8]) -> anyhow::Result<()> {
    let ([systemd, fallback], digest) = (&loaders.places, Sha256::of(content));
    let look = format!("sha256sum /efi/{systemd} /efi/{fallback}");
    let wait = format!("until [ \"$({look} | grep -c {digest})\" = 2 ]; do sleep 1; done");
    let held = machine.run(&wait, STAGE).await.map(drop);
    held.with_context(|| format!("waiting for {digest} in {systemd} and {fallback}"))
}

/// Waits until the new one is in both places, and the agent says so.
async fn in_place(stage: Stage<'_>, machine: &Machine, loaders: &Loaders) -> anyhow::Result<()> {
    hold(machine, loaders, &loaders.newer).await?;
    let current = |status: &NodeUpdateStatus| conditions::is_true(&status.conditions, conditions::BOOT_LOADER_CURRENT);
    stage.until_now(machine, "the boot loader is the release's", STAGE, current).await.map(drop)
}

/// Switches the machine on, and sees that the first kernel comes up.
async fn start(machine: &mut Machine) -> anyhow::Result<()> {
    let (shell, from) = (machine.now(), machine.console().now());
    machine.power_on()?;
    machine.wait_until_up(shell, BOOT * 3).await?;
    let boots = machine.boots(from);
    ensure!(boots == 1, "{boots} kernels were started before one came up");
    Ok(())
}

/// Puts the older one back behind the agent's back, and lets it be replaced; the power goes instead of the write to the ESP that comes
/// after `after` others. Returns how many such writes were left then, or nothing if it went.
async fn replaced_anew(machine: &Machine, loaders: &Loaders, after: u64) -> anyhow::Result<Option<u64>> {
    let [systemd, fallback] = &loaders.places;
    // All of it is written first, and then flushed, which only the files do: what is torn later is the agent's.
    let back = format!(
        "systemctl stop bascule-agent && cp {KEPT} /efi/{systemd} && cp {KEPT} /efi/{fallback} && \
         sync -f /efi/{fallback} && sync /efi/{systemd} /efi/{fallback}"
    );
    machine.run(&back, BOOT).await?;
    hold(machine, loaders, &loaders.older).await?;
    let said = machine.run(&format!("{SAID}; true"), BOOT).await?;
    let said: u32 = said.trim().parse().with_context(|| format!("counting what the agent said: {said}"))?;
    machine.disk().cut_at(Cut { access: Access::Write, bytes: cuts::part(machine, ESP)?, after });
    let both = said + 2;
    // Also what is flushed last.
    let replace = format!(
        "systemctl start --no-block bascule-agent; until [ \"$({SAID})\" -ge {both} ]; do sleep 1; done; sync -f /efi/{fallback}"
    );
    tokio::select! {
        () = machine.disk().cut() => {}
        replaced = machine.run(&replace, STAGE) => drop(replaced?),
    }
    Ok(machine.disk().take_back())
}

/// Replaces it once more with a cut, looks at what is on the medium, and lets the agent end it in the next start. Returns whether the
/// power went before all was written.
async fn cut(
    stage: Stage<'_>,
    machine: &mut Machine,
    loaders: &Loaders,
    after: u64,
    loss: Loss,
) -> anyhow::Result<bool> {
    let left = replaced_anew(machine, loaders, after).await?;
    machine.power_off(loss)?;
    let mut newer = Vec::new();
    for place in &loaders.places {
        let found = offline::read_file(machine.disk().path(), place)?;
        if found != loaders.older && found != loaders.newer {
            bail!("{place} is neither of the two, with {} bytes: {}", found.len(), Sha256::of(&found));
        }
        newer.push(found == loaders.newer);
    }
    let [_, fallback] = &loaders.places;
    let version = if newer.last() == Some(&true) { &loaders.newer_version } else { &loaders.older_version };
    start(machine).await?;
    started_by(machine, version).await.with_context(|| format!("by what the power cut left in {fallback}"))?;
    in_place(stage, machine, loaders).await?;
    let when = if left.is_none() { "within" } else { "after all of them" };
    crate::say(&format!("{NODE}: cut after {after} writes ({when}), {loss:?}; the new one was in place in {newer:?}"));
    Ok(left.is_none())
}
