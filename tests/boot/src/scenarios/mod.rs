//! The scenarios. Each one names what it would catch; each fails with the last lines of the machine's console.

pub mod counting;
pub mod cuts;
pub mod faults;
pub mod gptprio;
pub mod install;
pub mod integrity;
pub mod kubelet;
pub mod layout;
pub mod life;
pub mod never_ready;
pub mod order;
pub mod outage;
pub mod pods;
pub mod secure_boot;

use std::time::{Duration, Instant};

use bascule_api::{NodeUpdateStatus, SlotState};

use crate::cluster::Cluster;
use crate::lab::{Lab, Setup};
use crate::machine::VirtualMachine;
use crate::release::Release;
use crate::vendor::ReferenceVendor;

// Patience costs nothing while all is well: it only decides when a test gives up. A host under a load of 15 was seen to take five
// times as long as a quiet one.

/// From power-on to the agent's word in the API.
pub const BOOT: Duration = Duration::from_secs(600);
/// From the operator's word to a staged release.
pub const STAGE: Duration = Duration::from_secs(900);
/// From staged to committed: drain, reboot, kubelet, soak.
pub const TRIAL: Duration = Duration::from_secs(900);

/// What the scenarios with a cluster play in.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// Images and folders.
    pub lab: &'a Lab,
    /// Control plane and operator.
    pub cluster: &'a Cluster,
    /// The repository.
    pub vendor: &'a ReferenceVendor,
}

impl Stage<'_> {
    /// Installs a node with `release` in slot A, under a policy that follows `channel`, and switches it on. Returns once
    /// its agent has reported, with the time from power-on to that report.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn node(
        &self,
        name: &str,
        release: &Release,
        channel: &str,
    ) -> anyhow::Result<(VirtualMachine, Duration)> {
        self.node_of(name, release, channel, &Setup::default()).await
    }

    /// As [`Self::node`], set up in another way.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn node_of(
        &self,
        name: &str,
        release: &Release,
        channel: &str,
        setup: &Setup,
    ) -> anyhow::Result<(VirtualMachine, Duration)> {
        let state = self.cluster.state_of(name)?;
        let mut machine = self.lab.host_of(name, release, &state, self.cluster.ports(), setup)?;
        self.cluster.keep_patched(name, &self.vendor.url_for(name)?, channel).await?;
        let switched_on = Instant::now();
        machine.power_on()?;
        self.until(&machine, "the agent's first report", BOOT, |status| status.boot_id.is_some()).await?;
        Ok((machine, switched_on.elapsed()))
    }

    /// Waits for the node's word from the boot that runs now: what it said before a restart does not count.
    ///
    /// # Errors
    /// When the machine does not answer, or it is not so within `patience`.
    pub async fn until_now(
        &self,
        machine: &VirtualMachine,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&NodeUpdateStatus) -> bool,
    ) -> anyhow::Result<NodeUpdateStatus> {
        let boot = machine.run("cat /proc/sys/kernel/random/boot_id", BOOT).await?;
        let this_boot = |status: &NodeUpdateStatus| status.boot_id.as_deref() == Some(boot.trim());
        self.until(machine, what, patience, |status| this_boot(status) && wanted(status)).await
    }

    /// Waits for the node's own word; an error has the console's last lines too, and what the machine itself says.
    ///
    /// # Errors
    /// When it is not so within `patience`.
    pub async fn until(
        &self,
        machine: &VirtualMachine,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&NodeUpdateStatus) -> bool,
    ) -> anyhow::Result<NodeUpdateStatus> {
        let began = Instant::now();
        match self.cluster.until(machine.name(), what, patience, wanted).await {
            Ok(status) => {
                // Where the time of a scenario goes.
                crate::say(&format!("{}: {what}, after {} s", machine.name(), began.elapsed().as_secs()));
                Ok(status)
            }
            Err(error) => Err(error.context(machine.symptoms().await)),
        }
    }
}

/// Whether the node says that it runs `release`, for good.
#[must_use]
pub fn committed(status: &NodeUpdateStatus, release: &Release) -> bool {
    runs(status, release) && state_of_running(status) == Some(SlotState::Good) && status.trial.is_none()
}

/// Whether the node says that it runs `release`.
#[must_use]
pub fn runs(status: &NodeUpdateStatus, release: &Release) -> bool {
    let running = status.booted.as_ref();
    running.is_some_and(|booted| {
        booted.version.to_string() == release.version && booted.root_hash.to_string() == release.root_hash.to_string()
    })
}

/// Whether the node says that `release` failed on it.
#[must_use]
pub fn failed(status: &NodeUpdateStatus, release: &Release) -> bool {
    status.failed_releases.iter().any(|failed| failed.version.to_string() == release.version)
}

fn state_of_running(status: &NodeUpdateStatus) -> Option<SlotState> {
    let booted = status.booted.as_ref()?;
    Some(status.slots.as_ref()?.get(booted.slot).state)
}
