//! One look at the machine: everything decisions are made from.

use std::io;

use bascule_api::{Architecture, BootControlBackend, NameError, NodeError, Product, RootHash, SlotName, Version};
use bascule_image::command_line::CommandLine;
use bascule_image::uki::OsRelease;

use crate::boot::{self, BootError, DigestCache};
use crate::core::boot::Attributes;
use crate::core::{BootFacts, Entry, Facts, GuardReport, Partition, PerSlot, SlotContent, SlotFacts, TableHealth};
use crate::engine::in_one_line;
use crate::gpt::{Table, TableError};
use crate::host::{BusError, Host};
use crate::slots::{self, SlotError, SlotLayout};

/// Longest guard report in bytes.
const MAX_GUARD: u64 = 16 << 10;

/// How to look: what can't be seen from the machine itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LookSettings {
    /// Where the slots are.
    pub slots: SlotLayout,
    /// Which boot loader; `None` to find out.
    pub backend: Option<BootControlBackend>,
    /// The product, where os-release does not name it.
    pub product: Option<Product>,
    /// Units whose state is reported.
    pub units: Vec<String>,
    /// Why the machine must not even be looked at: what these settings say is not what somebody meant.
    pub impediment: Option<String>,
}

impl LookSettings {
    /// Refuses what must not be done with them.
    ///
    /// # Errors
    /// [`ObserveError::Impediment`].
    pub fn usable(&self) -> Result<(), ObserveError> {
        self.impediment.clone().map_or(Ok(()), |why| Err(ObserveError::Impediment(why)))
    }
}

/// The running release and the two slots.
#[derive(Debug, Clone)]
pub struct RunningSlots {
    /// The product whose boot entries are ours.
    pub product: Product,
    /// The running release.
    pub version: Version,
    /// What it declares of the machine's state.
    pub state_version: Option<u32>,
    /// Its root hash.
    pub root_hash: RootHash,
    /// The running slot.
    pub booted: SlotName,
    /// The slots' partitions: data and verity.
    pub partitions: PerSlot<(Partition, Partition)>,
    /// What they say they hold.
    pub contents: PerSlot<SlotContent>,
}

impl RunningSlots {
    /// The root hash that a slot's boot entry must name.
    pub fn root_hash_of(&self, slot: SlotName) -> Option<&RootHash> {
        if slot == self.booted { Some(&self.root_hash) } else { self.contents.get(slot).root_hash() }
    }
}

/// Why the machine could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The settings can't be used.
    #[error("{0}; until that is fixed, this node is neither looked at nor changed")]
    Impediment(String),
    /// A fact of the running system can't be read.
    #[error("{what} can't be read")]
    Read {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// os-release lacks a field.
    #[error("os-release has no {0}: the OS image must say what it is")]
    OsRelease(&'static str),
    /// A field of os-release is no valid name.
    #[error("os-release's {field} can't be used")]
    Name {
        /// Which field.
        field: &'static str,
        /// Why.
        #[source]
        source: NameError,
    },
    /// This processor is not known.
    #[error("releases exist for x86-64 and arm64, this machine is {0}")]
    Architecture(&'static str),
    /// The partition table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The slots.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// The boot entries.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Which boot loader it is can't be told.
    #[error(
        "the boot loader is not known: there are no systemd-boot variables and no gptprio bits; set boot.backend in the \
         settings"
    )]
    Backend,
    /// The boot loader goes by the bits of partitions that are no slots.
    #[error(
        "the boot loader goes by the attributes of partition {0}, and the data partitions of the slots have none: a disk like \
         Bottlerocket's, with priorities on partitions of their own, can't be updated by slots"
    )]
    BitsElsewhere(u32),
    /// The system bus.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl ObserveError {
    /// The kind, for status and metrics.
    pub fn category(&self) -> NodeError {
        match self {
            Self::Read { .. } => NodeError::Storage,
            Self::Impediment(_) | Self::OsRelease(_) | Self::Name { .. } => NodeError::Settings,
            Self::Architecture(_) | Self::BitsElsewhere(_) => NodeError::Unsuitable,
            Self::Table(error) => crate::gpt::category(error),
            Self::Slots(error) => error.category(),
            Self::Boot(error) => error.category(),
            Self::Backend => NodeError::BootControl,
            Self::Bus(_) => NodeError::SystemBus,
        }
    }
}

/// The machine without its boot entries: what the effects need.
///
/// # Errors
/// [`ObserveError`]; nothing is changed.
pub fn running_slots(
    host: &Host,
    look_settings: &LookSettings,
) -> Result<(RunningSlots, TableHealth, Architecture), ObserveError> {
    look_settings.usable()?;
    let read = |what| move |source| ObserveError::Read { what, source };
    let command_line = host.system.command_line().map_err(read("the kernel's command line"))?;
    let release = OsRelease::parse(&host.system.os_release().map_err(read("os-release"))?);
    let name = |field| move |source| ObserveError::Name { field, source };
    let product = match &look_settings.product {
        Some(product) => product.clone(),
        None => {
            let text = release.sort_key().ok_or(ObserveError::OsRelease("IMAGE_ID"))?;
            Product::parse(text).map_err(name("IMAGE_ID"))?
        }
    };
    let version = release.first(&["IMAGE_VERSION", "VERSION_ID"]).ok_or(ObserveError::OsRelease("IMAGE_VERSION"))?;
    let version = Version::parse(version).map_err(name("IMAGE_VERSION"))?;
    // A number that is none stops the build of the release. Where it runs all the same it must not keep a trial from being judged.
    let state_version = release.state_version().unwrap_or_default();
    let root_hash = root_hash(&command_line, look_settings.slots)?;
    let architecture = architecture()?;
    let table = Table::read(&*host.disk)?;
    let partitions = slots::find(&table.partitions(), look_settings.slots, architecture)?;
    let booted = slots::booted(&partitions, &root_hash)?;
    let content = |slot: SlotName| {
        let (data, verity) = partitions.get(slot);
        slots::content(data, verity)
    };
    let contents = PerSlot { a: content(SlotName::A), b: content(SlotName::B) };
    let slots = RunningSlots { product, version, state_version, root_hash, booted, contents, partitions };
    Ok((slots, table.health(), architecture))
}

/// Which boot loader a machine has.
///
/// # Errors
/// [`ObserveError::Backend`] if that can't be told.
pub fn backend(
    host: &Host,
    look_settings: &LookSettings,
    slots: &RunningSlots,
) -> Result<BootControlBackend, ObserveError> {
    match look_settings.backend {
        Some(BootControlBackend::GptPrio) => {
            refuse_bits_elsewhere(host, slots)?;
            Ok(BootControlBackend::GptPrio)
        }
        Some(kind) => Ok(kind),
        None => detect(host, slots),
    }
}

/// Looks at the machine. Whose boot entry is whose is judged by whoever has the journal ([`Facts::judge`]).
///
/// # Errors
/// [`ObserveError`]; nothing is changed.
pub fn observe(host: &Host, look_settings: &LookSettings, digests: &DigestCache) -> Result<Facts, ObserveError> {
    let facts = observe_for_guard(host, look_settings, digests)?;
    Ok(match guard_report(host) {
        Ok(guard) => Facts { guard, ..facts },
        // Only who concludes from it waits for it: a good trial is committed without.
        Err(error) => Facts { guard_unread: Some(in_one_line(&error)), ..facts },
    })
}

/// The same without the report that the guard leaves behind: it concludes nothing from that, and must not be kept from its work by it.
///
/// # Errors
/// As [`observe`].
pub fn observe_for_guard(
    host: &Host,
    look_settings: &LookSettings,
    digests: &DigestCache,
) -> Result<Facts, ObserveError> {
    let boot_id = host.system.boot_id().map_err(|source| ObserveError::Read { what: "the boot ID", source })?;
    let (running, table, architecture) = running_slots(host, look_settings)?;
    let backend = backend(host, look_settings, &running)?;
    let releases: Vec<_> = [SlotName::A, SlotName::B].iter().filter_map(|slot| running.root_hash_of(*slot)).collect();
    let inventory = boot::read(host, backend, architecture, &releases, digests)?;
    let slot = |name: SlotName| {
        let (data, verity) = running.partitions.get(name);
        SlotFacts {
            data: data.clone(),
            verity: verity.clone(),
            content: running.contents.get(name).clone(),
            entry: Entry::Unseen,
            entry_doubled: false,
        }
    };
    let slots = PerSlot { a: slot(SlotName::A), b: slot(SlotName::B) };
    Ok(Facts {
        boot_id,
        product: running.product,
        architecture,
        version: running.version,
        state_version: running.state_version,
        root_hash: running.root_hash,
        booted: running.booted,
        slots,
        boot: BootFacts::read(backend, inventory),
        table,
        guard: None,
        guard_unread: None,
        failing_units: failing_units(host, &look_settings.units),
    })
}

/// The root hash on the command line.
fn root_hash(command_line: &str, layout: SlotLayout) -> Result<RootHash, SlotError> {
    let option = layout.kind.option();
    let named = CommandLine::from(command_line).root_hash(option);
    named.ok().flatten().ok_or(SlotError::NoRootHash(option.name()))
}

pub(crate) fn architecture() -> Result<Architecture, ObserveError> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(Architecture::X86_64),
        "aarch64" => Ok(Architecture::Arm64),
        other => Err(ObserveError::Architecture(other)),
    }
}

/// Finds out which boot loader started the machine.
fn detect(host: &Host, slots: &RunningSlots) -> Result<BootControlBackend, ObserveError> {
    let variable = |name: &'static str| {
        host.firmware
            .variable(name)
            .map_err(|source| ObserveError::Read { what: "the boot loader's variables", source })
    };
    if variable("LoaderInfo")?.is_some() || variable("LoaderFeatures")?.is_some() {
        return Ok(BootControlBackend::SystemdBoot);
    }
    let bits = |slot: SlotName| slots.partitions.get(slot).0.attributes & Attributes::ALL;
    if bits(SlotName::A) | bits(SlotName::B) != 0 {
        return Ok(BootControlBackend::GptPrio);
    }
    Err(ObserveError::Backend)
}

/// Bits that this agent would set on data partitions mean nothing to a boot loader that goes by those of others: the node would
/// be drained and rebooted for a release that nobody starts.
fn refuse_bits_elsewhere(host: &Host, slots: &RunningSlots) -> Result<(), ObserveError> {
    let marked = |attributes: u64| attributes & Attributes::ALL != 0;
    let data = [SlotName::A, SlotName::B].map(|slot| &slots.partitions.get(slot).0);
    if data.iter().any(|partition| marked(partition.attributes)) {
        return Ok(());
    }
    let partitions = Table::read(&*host.disk)?.partitions();
    match partitions.iter().find(|(_, partition)| marked(partition.attributes)) {
        Some((_, partition)) => Err(ObserveError::BitsElsewhere(partition.number)),
        // What runs was given up, and its bits with it.
        None => Ok(()),
    }
}

fn guard_report(host: &Host) -> Result<Option<GuardReport>, ObserveError> {
    let bytes = host
        .state
        .read(GuardReport::FILE, MAX_GUARD)
        .map_err(|source| ObserveError::Read { what: "the guard's report", source })?;
    // A report that power loss cut says only why; without it the reason is lost, nothing else.
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Health facts; a bus that does not answer is no reason not to look at the rest.
fn failing_units(host: &Host, units: &[String]) -> Vec<String> {
    if units.is_empty() {
        return Vec::new();
    }
    match host.bus.unit_states(units) {
        Ok(states) => states
            .iter()
            .filter(|(_, state)| state.load != "loaded" || state.active == "failed" || state.active == "inactive")
            .map(|(unit, state)| {
                format!("{unit} ({})", if state.load == "loaded" { &state.active } else { &state.load })
            })
            .collect(),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "unit states are not known");
            Vec::new()
        }
    }
}
