//! What the running system says, keeps and does: firmware variables, system bus, clock, facts of this boot, state.

use std::collections::BTreeMap;
use std::io;

use bascule_api::Architecture;
use chrono::{DateTime, Utc};

use super::Space;

/// Vendor GUID of the Boot Loader Interface's EFI variables (systemd, "The Boot Loader Interface").
pub const BOOT_LOADER_VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// What the firmware says: EFI variables, SMBIOS structures.
pub trait Firmware: Send + Sync {
    /// The value of a variable of a vendor (a GUID in lower case) without its attributes, `None` if it is not set. A machine
    /// without EFI variables has none set.
    fn variable_of(&self, vendor: &str, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// The value of a variable of [`BOOT_LOADER_VENDOR`].
    fn variable(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.variable_of(BOOT_LOADER_VENDOR, name)
    }

    /// The machine's SMBIOS structures, one behind the other (DMTF DSP0134). Empty for a machine without.
    ///
    /// # Errors
    /// They can't be read, or are longer than a machine's would be.
    fn smbios(&self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

/// Wall clock and time since boot.
pub trait Clock: Send + Sync {
    /// The wall clock. It may jump; nothing that must happen depends on it alone.
    fn now(&self) -> DateTime<Utc>;

    /// Time since the machine started, suspended time included (`CLOCK_BOOTTIME`). Never jumps.
    fn since_boot(&self) -> std::time::Duration;
}

/// Pressure stall information of the whole machine: how long some task waited (kernel, Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// For input and output.
    pub io: Stall,
    /// For memory.
    pub memory: Stall,
}

/// How long some task waited for one thing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// The share of time in percent, over the last ten seconds (`avg10`).
    pub share: f64,
    /// In all since the machine started (`total`).
    pub total: std::time::Duration,
}

/// What the running system says of itself.
pub trait SystemInfo: Send + Sync {
    /// `/proc/sys/kernel/random/boot_id`: another for each boot.
    fn boot_id(&self) -> io::Result<String>;

    /// The kernel's command line.
    fn command_line(&self) -> io::Result<String>;

    /// The text of os-release.
    fn os_release(&self) -> io::Result<String>;

    /// What of systemd-boot lies in the running image, the signed one first (`bascule_image::boot_loader::in_image`); empty where there is
    /// none. Longer than `bascule_image::boot_loader::MAX_SIZE` is an error (`FileTooLarge`).
    fn boot_loaders(&self, _architecture: Architecture) -> io::Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    /// Pressure now, `None` where the kernel does not tell.
    fn pressure(&self) -> io::Result<Option<Pressure>>;

    /// Whether there is a file for a unit, or for the template that it is an instance of, and no mask over it. For where systemd
    /// can't be asked: a pod sees the files of the OS image and no others.
    ///
    /// # Errors
    /// A place where units lie can't be looked at.
    fn has_unit(&self, unit: &str) -> io::Result<bool>;
}

/// The agent's folder on storage that survives reboots and updates. Names are plain file names.
pub trait StateStore: Send + Sync {
    /// A whole small file, `None` if it is not there. Longer than `limit` bytes is an error (`FileTooLarge`).
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>>;

    /// Replaces a file as a whole and durably: after a power cut it holds the old or the new content.
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()>;

    /// Removes a file durably; one that is not there is no error.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Room that is left.
    fn space(&self) -> io::Result<Space>;

    /// Takes the lock that keeps two agents from working at once, for as long as the result lives. `WouldBlock` when
    /// another process has it.
    fn lock(&self) -> io::Result<Box<dyn Send>>;
}

/// Something that holds as long as it lives: an inhibitor.
pub trait Inhibition: Send {}
impl<T: Send> Inhibition for T {}

/// Somebody who wants the machine not to go down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibitor {
    /// What is held back, as logind has it: `shutdown`, `sleep`, …, joined by colons.
    pub what: String,
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
    /// `block`, `block-weak` or `delay`.
    pub mode: String,
}

/// The state of a systemd unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitState {
    /// `loaded`, `not-found`, `masked`, …
    pub load: String,
    /// `active`, `activating`, `failed`, `inactive`, …
    pub active: String,
}

/// How a unit's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitRun {
    /// There is no such unit, or somebody masked it.
    Absent,
    /// It ended well, or its own conditions say that it is not for this machine.
    Done,
    /// It did not, in a part of a sentence.
    Failed(String),
    /// It was stopped when its time was over.
    TimedOut,
}

/// Why the system bus could not be used. Always worth another try.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No bus, or no service behind the name.
    #[error(
        "{service} can't be reached on the system bus: start it, and mount the host's /run/dbus where the agent is a pod"
    )]
    Unreachable {
        /// The service.
        service: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{service} did not answer within {seconds} s")]
    Slow {
        /// The service.
        service: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The service answered with an error.
    #[error("{service} refused: {message}")]
    Refused {
        /// The service.
        service: &'static str,
        /// Its words.
        message: String,
    },
    /// The bus is there, and lets the agent ask this service nothing, or not see it.
    #[error("{service} can't be asked on this system bus: {message}")]
    NotAsked {
        /// The service.
        service: &'static str,
        /// The bus' words, or the service's.
        message: String,
    },
}

/// logind and systemd over D-Bus. No call hangs: each ends with [`BusError::Slow`] after a bounded time.
pub trait SystemBus: Send + Sync {
    /// Who holds back what (`org.freedesktop.login1.Manager.ListInhibitors`).
    fn inhibitors(&self) -> Result<Vec<Inhibitor>, BusError>;

    /// Blocks shutdown while partition table or ESP are being written; given up when the result is dropped.
    fn inhibit_shutdown(&self, why: &str) -> Result<Box<dyn Inhibition>, BusError>;

    /// Asks logind to reboot. `message` goes to everybody who is logged in, and to the journal.
    fn reboot(&self, message: &str) -> Result<(), BusError>;

    /// The states of units; an unknown unit has `load` = `not-found`.
    fn unit_states(&self, units: &[String]) -> Result<BTreeMap<String, UnitState>, BusError>;

    /// Starts a unit that ends by itself (`Type=oneshot`), anew where it is active already, and waits for its end. After `limit` it
    /// is stopped.
    ///
    /// # Errors
    /// [`BusError::NotAsked`]: whether there is such a unit is not known, and nothing was begun.
    fn run_unit(&self, unit: &str, limit: std::time::Duration) -> Result<UnitRun, BusError>;
}
