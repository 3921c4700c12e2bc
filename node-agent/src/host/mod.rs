//! The border between the agent and the machine: a handful of small blocking traits.
//!
//! Everything above them (state machine, partition table, boot entries, staging) is the same code on a real machine,
//! in the sandbox and under ten thousand simulated power cuts. The traits are blocking: the driver calls them from a
//! worker thread, tests call them directly. `linux` implements them for a real host.

mod disk;
mod esp;
mod releases;
mod system;

pub use crate::core::{Extent, ReleaseQuery, Space};
pub use disk::{Disk, DiskGeometry};
pub use esp::{Esp, EspFile};
pub use releases::{FetchError, OpenPack, PackReport, Releases, ResolvedRelease, TransferOptions};
pub use system::{
    BOOT_LOADER_VENDOR, BusError, Clock, Firmware, Inhibition, Inhibitor, Pressure, Stall, StateStore, SystemBus,
    SystemInfo, UnitRun, UnitState,
};

use std::io;
use std::sync::Arc;

/// The extended boot loader partition, as it is now.
#[derive(Clone)]
pub enum Xbootldr {
    /// There is none.
    None,
    /// It is mounted.
    Mounted(Arc<dyn Esp>),
    /// The disk has one, and nobody here can look at it: where it is, in words.
    NotMounted(String),
}

impl std::fmt::Debug for Xbootldr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Mounted(_) => "Mounted",
            Self::NotMounted(_) => "NotMounted",
        })
    }
}

/// Looks for the XBOOTLDR, which may be mounted later, or not any more: asked at each look.
///
/// # Errors
/// Whether there is one can't be told.
pub type FindXbootldr = Arc<dyn Fn() -> io::Result<Xbootldr> + Send + Sync>;

/// All of a machine that the agent touches.
#[derive(Clone)]
pub struct Host {
    /// The disk with the two slots.
    pub disk: Arc<dyn Disk>,
    /// The EFI system partition.
    pub esp: Arc<dyn Esp>,
    /// The extended boot loader partition, where its disk has one.
    pub xbootldr: FindXbootldr,
    /// The firmware's variables.
    pub firmware: Arc<dyn Firmware>,
    /// logind and systemd.
    pub bus: Arc<dyn SystemBus>,
    /// Wall clock and time since boot.
    pub clock: Arc<dyn Clock>,
    /// What the running system says of itself.
    pub system: Arc<dyn SystemInfo>,
    /// The agent's folder on writable, persistent storage.
    pub state: Arc<dyn StateStore>,
    /// The release repositories.
    pub releases: Arc<dyn Releases>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}
