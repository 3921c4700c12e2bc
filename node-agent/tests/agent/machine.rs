//! A simulated machine with the shipped agent on it, driven by hand.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bascule_agent::agent::Agent;
use bascule_agent::core::{Config, Desired, Entry, Event, State};
use bascule_agent::engine::{Engine, StageLimits};
use bascule_agent::host::{Firmware, Host};
use bascule_agent::observe::LookSettings;
use bascule_api::{Goal, Grant, NodeUpdateStatus, PackFallback, ReleaseRef};
use bascule_sim::disk::Disk;
use bascule_sim::firmware::BootLoader;
use bascule_sim::firmware::boot_image::Fault;
use bascule_sim::host::releases::reference;
use bascule_sim::host::{SimClock, SimHost, SimReleases, Unreadable, UnreadableEsp};
use bascule_sim::layout::{Sizes, Table};
use bascule_sim::machine::{Hardware, System};
use bascule_sim::tiny::TinyRelease;
use chrono::DateTime;
use uuid::Uuid;

const IDENTITY: Uuid = Uuid::from_u128(0x0bad_5eed_0000_4000_8000_0000_0000_0001);
/// From power-on until the agent starts.
const STARTUP: Duration = Duration::from_secs(40);

/// A release of twelve blocks.
pub(crate) fn release(version: &str, faults: &[Fault]) -> TinyRelease {
    TinyRelease::new("acme-os", version, 12 * 4096, faults).unwrap()
}

/// A machine that was installed with one release.
pub(crate) struct AgentHost {
    pub(crate) hardware: Hardware,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) sim: SimHost,
    pub(crate) system: System,
    releases: Arc<SimReleases>,
    /// Files of the ESP that can't be read.
    pub(crate) unreadable: Unreadable,
    /// SMBIOS structures.
    pub(crate) smbios: Vec<u8>,
    generation: i64,
}

/// The firmware with SMBIOS structures of the test's own.
struct WithSmbios {
    inner: Arc<dyn Firmware>,
    structures: Vec<u8>,
}

impl Firmware for WithSmbios {
    fn variable_of(&self, vendor: &str, name: &str) -> std::io::Result<Option<Vec<u8>>> {
        self.inner.variable_of(vendor, name)
    }

    fn smbios(&self) -> std::io::Result<Vec<u8>> {
        Ok(self.structures.clone())
    }
}

impl AgentHost {
    /// Installs `first`, publishes `offered`, and turns it on.
    pub(crate) fn new(boot: BootLoader, first: &TinyRelease, offered: &[&TinyRelease]) -> Self {
        Self::offered(boot, first, SimReleases::of(offered.iter().copied()))
    }

    /// As [`AgentHost::new`], with a repository of the test's own.
    pub(crate) fn offered(boot: BootLoader, first: &TinyRelease, releases: SimReleases) -> Self {
        Self::laid_out(boot, Sizes::tiny(), first, releases)
    }

    /// As [`AgentHost::offered`], with partitions of the test's own.
    pub(crate) fn laid_out(boot: BootLoader, sizes: Sizes, first: &TinyRelease, releases: SimReleases) -> Self {
        let disk = Disk::in_memory(sizes.disk());
        first.provision(&disk, sizes, boot, IDENTITY).unwrap();
        let mut hardware = Hardware::new(disk, boot, IDENTITY);
        let releases = Arc::new(releases);
        let clock = Arc::new(SimClock::starting_at(DateTime::from_timestamp(1_790_000_000, 0).unwrap()));
        let system = hardware.power_on().system.unwrap();
        clock.pass(STARTUP);
        let sim = SimHost::new(&hardware, &system, clock.clone(), releases.clone()).unwrap();
        let unreadable = Unreadable::default();
        Self { hardware, clock, sim, system, releases, unreadable, smbios: Vec::new(), generation: 0 }
    }

    /// The machine starts again.
    pub(crate) fn reboot(&mut self) {
        self.clock.restart();
        self.system = self.hardware.power_on().system.unwrap();
        self.clock.pass(STARTUP);
        self.sim = SimHost::new(&self.hardware, &self.system, self.clock.clone(), self.releases.clone()).unwrap();
    }

    /// An agent that was just started.
    pub(crate) fn agent(&self) -> Agent {
        self.agent_with(Config::default())
    }

    /// The same, with settings of the test's own.
    pub(crate) fn agent_with(&self, config: Config) -> Agent {
        let limits = StageLimits { workers: NonZeroUsize::MIN, low_priority: false, ..StageLimits::default() };
        let host = self.sim.host();
        let esp = UnreadableEsp { inner: host.esp.clone(), unreadable: self.unreadable.clone() };
        let firmware = WithSmbios { inner: host.firmware.clone(), structures: self.smbios.clone() };
        let host = Host { esp: Arc::new(esp), firmware: Arc::new(firmware), ..host };
        let engine = Engine::new(host, LookSettings::default(), limits);
        let mut agent = Agent::new(engine, config);
        agent.handle(Event::Tick).unwrap();
        agent
    }

    /// A word of the operator.
    pub(crate) fn word(&mut self, goal: Goal, release: &TinyRelease, grant: Option<Grant>) -> Event {
        self.generation += 1;
        Event::Desired(Some(Desired {
            uid: "a".to_owned(),
            generation: self.generation,
            goal,
            release: Some(named(release)),
            disruption_begun: grant.is_some(),
            grant,
            pack_fallback: PackFallback::Allow,
            retry: None,
        }))
    }

    /// What power loss within the rename that armed a release can leave of its name where that lies in two sectors: the
    /// short one.
    pub(crate) fn tear_armed_name(&self) {
        let esp = Table::read(&self.hardware.disk).unwrap().esp().unwrap();
        let files = esp.list("EFI/Linux").unwrap();
        let armed = files.iter().find(|file| file.name.ends_with("+3-0.efi")).unwrap();
        esp.rename(&format!("EFI/Linux/{}", armed.name), "EFI/Linux/ACME-O~7.EFI").unwrap();
        esp.sync().unwrap();
    }

    /// A grant for the boot that runs.
    pub(crate) fn grant(&self, generation: i64) -> Grant {
        Grant { boot_id: self.system.boot_id.to_string(), generation, accept_state: false }
    }

    /// Stages, boots and commits a release, as the operator would have it.
    pub(crate) fn update(&mut self, release: &TinyRelease, generation: i64) {
        let mut agent = self.agent();
        let grant = self.grant(generation);
        agent.handle(self.word(Goal::Booted, release, Some(grant.clone()))).unwrap();
        assert_eq!(self.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
        self.reboot();
        assert_eq!(self.system.version, release.version);
        let mut agent = self.agent();
        agent.handle(self.word(Goal::Committed, release, Some(grant))).unwrap();
        let status = agent.published().unwrap();
        assert!(status.trial.is_none() && status.last_error.is_none(), "{status:?}");
    }
}

/// A release as the operator names it.
pub(crate) fn named(release: &TinyRelease) -> ReleaseRef {
    reference(release).unwrap()
}

/// The boot entries of running and other slot.
pub(crate) fn entries(state: &State) -> (Entry, Entry) {
    let facts = state.facts.as_ref().unwrap();
    (facts.booted_slot().entry, facts.inactive_slot().entry)
}

/// The kind of the problem that stands in the way, if any.
pub(crate) fn problem(status: &NodeUpdateStatus) -> Option<&'static str> {
    status.last_error.as_ref().map(|error| error.category.as_str())
}
