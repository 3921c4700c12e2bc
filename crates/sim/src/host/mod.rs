//! The agent's host traits over a simulated machine, so that the shipped agent runs on it unchanged: in one process with
//! a clock that only moves when it is told to ([`SimHost`]), or as a child of a machine process in real time.

pub mod child;
pub mod clock;
mod disk;
mod esp;
pub mod releases;
pub mod services;
mod system;
mod unreadable;

use std::sync::Arc;

use bascule_agent::host::{Host, Releases, Xbootldr};

use crate::machine::{Hardware, System};

pub use disk::SimDisk;
pub use esp::SimEsp;
pub use releases::SimReleases;
pub use system::{STATE_CACHE, SimBus, SimClock, SimFirmware, SimState, SimSystem};
pub use unreadable::{Failing, Unreadable, UnreadableEsp, UnreadableFirmware};

/// The host under an agent in this process: lives from one start of the machine to the next.
#[derive(Clone)]
pub struct SimHost {
    /// The disk trait.
    pub disk: Arc<SimDisk>,
    /// The ESP trait.
    pub esp: Arc<SimEsp>,
    /// The XBOOTLDR, where the disk has one that is mounted.
    pub xbootldr: Option<Arc<SimEsp>>,
    /// The disk has one, and it is mounted where the agent does not see it: its words.
    pub unmounted: Option<String>,
    /// EFI variables as the start left them.
    pub firmware: Arc<SimFirmware>,
    /// What was asked of logind and systemd.
    pub bus: Arc<SimBus>,
    /// Moves when told to.
    pub clock: Arc<SimClock>,
    /// Facts of this start.
    pub system: Arc<SimSystem>,
    /// The state folder.
    pub state: Arc<SimState>,
    /// Where releases come from.
    pub releases: Arc<dyn Releases>,
}

impl std::fmt::Debug for SimHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimHost").field("system", &self.system).finish_non_exhaustive()
    }
}

impl SimHost {
    /// The host that `system` sees after `hardware` started it. Errors: the ESP can't be found.
    pub fn new(
        hardware: &Hardware,
        system: &System,
        clock: Arc<SimClock>,
        releases: Arc<dyn Releases>,
    ) -> std::io::Result<Self> {
        let bus = Arc::new(SimBus::default());
        Ok(Self {
            disk: Arc::new(SimDisk::new(hardware.disk.clone(), Some(bus.clone()))),
            esp: Arc::new(SimEsp::mount(&hardware.disk, Some(bus.clone()))?),
            xbootldr: SimEsp::xbootldr(&hardware.disk, Some(bus.clone()))?.map(Arc::new),
            unmounted: None,
            firmware: Arc::new(SimFirmware(hardware.variables.clone())),
            clock,
            system: Arc::new(SimSystem::of(system).with_image(&hardware.disk, system.slot)),
            state: Arc::new(SimState::new(hardware.disk.clone())),
            bus,
            releases,
        })
    }

    /// What the agent gets.
    pub fn host(&self) -> Host {
        let xbootldr = match (&self.xbootldr, &self.unmounted) {
            (Some(esp), _) => Xbootldr::Mounted(esp.clone()),
            (None, Some(words)) => Xbootldr::NotMounted(words.clone()),
            (None, None) => Xbootldr::None,
        };
        Host {
            disk: self.disk.clone(),
            esp: self.esp.clone(),
            xbootldr: Arc::new(move || Ok(xbootldr.clone())),
            firmware: self.firmware.clone(),
            bus: self.bus.clone(),
            clock: self.clock.clone(),
            system: self.system.clone(),
            state: self.state.clone(),
            releases: self.releases.clone(),
        }
    }
}
