//! The two services of a machine process: agent and guard, the shipped code over this machine's host traits.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bascule_agent::guard::{self, Machinery};
use bascule_agent::host::{Host, Releases, SystemBus, Xbootldr};
use bascule_agent::kubernetes::Credentials;
use bascule_agent::linux::StateFolder;
use bascule_agent::releases::{RepositoryOptions, RepositoryReleases};
use bascule_agent::settings::{Listen, Settings, Sources};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::child::{MachineBus, StartedVariables, Surroundings};
use super::clock::RealClock;
use super::{SimDisk, SimEsp, SimSystem};
use crate::disk::Disk;

/// Runs the agent until it is told to end.
pub async fn agent() -> anyhow::Result<()> {
    end_with_the_machine()?;
    let around = Surroundings::read()?;
    let settings = settings(&around)?;
    let kubeconfig = settings.kubeconfig.clone().context("the settings name no kubeconfig")?;
    let node = settings.node_name.clone().unwrap_or_else(|| around.config.name.clone());
    let options = RepositoryOptions {
        datastore: around.files.state().join("repositories"),
        ..bascule_agent::linux::repository_options(&settings)?
    };
    let releases = RepositoryReleases::new(options, Arc::new(clock(&around)), Handle::current());
    let host = host(&around, Arc::new(releases))?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let told = async {
        terminate.recv().await;
    };
    bascule_agent::run::run(&settings, node, host, Credentials::Kubeconfig(kubeconfig), told).await?;
    Ok(())
}

/// Guards one boot; returns when there is nothing left to guard.
pub fn guard() -> anyhow::Result<()> {
    end_with_the_machine()?;
    let around = Surroundings::read()?;
    let settings = settings(&around)?;
    let bus = MachineBus::of(&around.files);
    let host = host(&around, Arc::new(NoReleases))?;
    let outcome = guard::run(&host, &settings.look_settings(), settings.trial_deadline, &Hardware { bus });
    tracing::info!(?outcome, "the guard ends");
    Ok(())
}

fn settings(around: &Surroundings) -> anyhow::Result<Settings> {
    let file = Some(around.config.agent_settings.clone());
    let mut settings = Settings::load(&Sources::usual(file, std::env::vars_os().collect()))?;
    // Each machine has a `/run` of its own; agents of several machines must not meet at one socket.
    if let Listen::Unix(path) = &settings.listen
        && let Some(name) = path.file_name()
    {
        settings.listen = Listen::Unix(around.files.run().join(name));
    }
    Ok(settings)
}

fn clock(around: &Surroundings) -> RealClock {
    RealClock::since(Duration::try_from_secs_f64(around.system.since).unwrap_or_default())
}

fn host(around: &Surroundings, releases: Arc<dyn Releases>) -> anyhow::Result<Host> {
    let disk = Disk::open_file(&around.config.disk)
        .with_context(|| format!("cannot open {}", around.config.disk.display()))?;
    let system = &around.system;
    Ok(Host {
        esp: Arc::new(SimEsp::mount(&disk, None).context("cannot mount the ESP")?),
        xbootldr: Arc::new(|| Ok(Xbootldr::None)),
        disk: Arc::new(SimDisk::new(disk, None)),
        firmware: Arc::new(StartedVariables(around.variables.clone())),
        bus: Arc::new(MachineBus::of(&around.files)),
        clock: Arc::new(clock(around)),
        system: Arc::new(SimSystem::new(&system.boot_id, &system.command_line, &system.os_release)),
        // No power cut reaches a real folder, so the agent's own will do.
        state: Arc::new(StateFolder::create(&around.files.state()).context("cannot open the state folder")?),
        releases,
    })
}

/// The machine holds our standard input open as long as it lives; a machine that was killed leaves no children behind.
fn end_with_the_machine() -> anyhow::Result<()> {
    let watch = || {
        let mut nothing = [0; 64];
        while std::io::stdin().read(&mut nothing).is_ok_and(|count| count > 0) {}
        // As the power goes: nothing is cleaned up.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    };
    std::thread::Builder::new().name("machine".to_owned()).spawn(watch).context("cannot start a thread")?;
    Ok(())
}

/// The guard fetches nothing.
#[derive(Debug)]
struct NoReleases;

impl Releases for NoReleases {
    fn resolve(
        &self,
        query: &bascule_agent::host::ReleaseQuery,
    ) -> Result<Arc<dyn bascule_agent::host::ResolvedRelease>, bascule_agent::host::FetchError> {
        Err(bascule_agent::host::FetchError {
            version: query.version.clone(),
            repository: query.repository.clone(),
            message: "the guard fetches nothing".to_owned(),
            category: bascule_api::NodeError::Internal,
            transient: false,
            cancelled: false,
            source: None,
        })
    }
}

/// What the guard needs of a simulated machine.
#[derive(Debug)]
struct Hardware {
    bus: MachineBus,
}

impl Machinery for Hardware {
    fn wait(&self, time: Duration) {
        // A timed wait for something that nobody sends: what a sleep is in a program without a runtime.
        let (_sender, receiver) = std::sync::mpsc::channel::<()>();
        let _ = receiver.recv_timeout(time);
    }

    fn reboot_hard(&self) {
        if let Err(error) = self.bus.reboot("the guard reboots by force") {
            tracing::error!(%error, "the machine does not answer");
        }
    }
}
