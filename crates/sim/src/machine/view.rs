//! What a machine process is told and what it tells: its configuration, its state, its switches.
//!
//! The machine listens on the Unix socket `machine.sock` in its directory. Whoever connects gets its state as one line
//! of JSON ([`MachineView`]) at once and again after each change, and may send lines of JSON ([`Command`]). The
//! kubelet stand-in, the sandbox's table and the tests all use this one socket.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What `bascule-sim-node machine --config <file>` reads (JSON).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineConfig {
    /// The node's name.
    pub name: String,
    /// The disk image file (see `layout::provision`).
    pub disk: PathBuf,
    /// The machine's own directory: socket, EFI variables, the mounted state partition, logs.
    pub directory: PathBuf,
    /// What picks the slot.
    pub boot: crate::firmware::BootLoader,
    /// From power-on until the kernel runs, in milliseconds.
    pub firmware_ms: u64,
    /// From the kernel's start until services run, in milliseconds.
    pub startup_ms: u64,
    /// Settings file of the shipped agent, handed to it as it is.
    pub agent_settings: PathBuf,
    /// Environment of the agent and the guard beside the machine's own variables.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// The machine as seen from outside at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineView {
    /// The node's name.
    pub name: String,
    /// How far the machine is.
    pub power: Power,
    /// Number of times the firmware started since the machine was made, including starts that ended in a panic.
    pub starts: u64,
    /// The operating system that runs; `None` while the machine is off, starting or dead.
    pub system: Option<RunningSystem>,
    /// Both slots as the partition table describes them, A first.
    pub slots: Vec<SlotView>,
    /// Process id of the agent, while it runs.
    pub agent: Option<u32>,
    /// What the firmware and the kernel did at the last start, one readable line each.
    pub boot_log: Vec<String>,
}

/// How far a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Power {
    /// Switched off.
    Off,
    /// Firmware or boot loader.
    Firmware,
    /// The kernel runs, services do not yet.
    Starting,
    /// The operating system is up.
    Up,
    /// Nothing boots any more. Must never be seen.
    Dead,
}

/// The operating system that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunningSystem {
    /// `/proc/sys/kernel/random/boot_id`: another at each start.
    pub boot_id: String,
    /// When the firmware handed over to the kernel, in seconds of this computer's CLOCK_BOOTTIME.
    #[serde(default)]
    pub since: f64,
    /// The release's version, from the picked image's own `.osrel`.
    pub version: String,
    /// dm-verity root hash of the mounted slot, 64 hex digits.
    pub root_hash: String,
    /// `A` or `B`.
    pub slot: String,
    /// The boot entry with its counters, as picked and counted down.
    pub entry: String,
    /// Whether the entry still counts its tries.
    pub trial: bool,
    /// Whether the kubelet of this release works; the stand-in plays none where it does not.
    pub kubelet_starts: bool,
    /// Whether the node ever becomes Ready under this release's kubelet.
    pub becomes_ready: bool,
    /// The kernel's command line.
    #[serde(default)]
    pub command_line: String,
    /// The text of os-release.
    #[serde(default)]
    pub os_release: String,
    /// How the release is broken.
    #[serde(default)]
    pub faults: Vec<crate::firmware::boot_image::Fault>,
}

/// One slot as the partition table describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotView {
    /// `A` or `B`.
    pub name: String,
    /// Label of the data partition: the version, or `_empty`.
    pub label: String,
    /// PARTUUID of the data partition.
    pub data_uuid: String,
    /// PARTUUID of the verity partition.
    pub verity_uuid: String,
}

/// What may be done to a machine from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "do")]
pub enum Command {
    /// `kill -9` of the agent; the machine starts it again as systemd would.
    KillAgent,
    /// The power fails and comes back: everything is killed, the firmware starts.
    PowerCut,
    /// The power fails and stays away.
    PowerOff,
    /// The power comes back.
    PowerOn,
    /// An orderly reboot, as logind would do it.
    Reboot,
    /// Somebody holds back shutdown, as a backup does (systemd-inhibit(1), mode `block`), until [`Command::LetGo`] or the next start.
    HoldBack,
    /// Nobody holds it back any more.
    LetGo,
    /// Every unit fails, as far as the agent asks for units, until [`Command::MendUnits`] or the next start.
    FailUnits,
    /// They run again.
    MendUnits,
}

/// What logind and systemd of the system that runs say. It ends with that system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BusState {
    /// Somebody holds back shutdown.
    pub held_back: bool,
    /// Units fail.
    pub units_fail: bool,
}

impl BusState {
    /// After a command; the others change nothing here.
    pub(super) fn after(self, command: Command) -> Self {
        match command {
            Command::HoldBack => Self { held_back: true, ..self },
            Command::LetGo => Self { held_back: false, ..self },
            Command::FailUnits => Self { units_fail: true, ..self },
            Command::MendUnits => Self { units_fail: false, ..self },
            Command::KillAgent | Command::PowerCut | Command::PowerOff | Command::PowerOn | Command::Reboot => self,
        }
    }
}
