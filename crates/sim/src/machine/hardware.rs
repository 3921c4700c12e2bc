//! A machine without its operating system: disk, firmware, and what kernel and initrd do before services run. It turns
//! on, tries what the firmware picks, and either a whole release runs or it says what was refused and why.

use std::collections::BTreeMap;
use std::io;

use bascule_image::digest::Sha256;
use bascule_names::RootHash;
use uuid::Uuid;

use super::root;
use crate::disk::Disk;
use crate::firmware::boot_image::Fault;
use crate::firmware::{BootLoader, Loaders, Variables, gptprio, systemd_boot};
use crate::layout::{Slot, Table};

/// So many starts without a system that comes up, and the machine counts as dead: more than all tries of two entries.
const MAX_STARTS: usize = 24;

/// Disk, firmware and what is remembered between starts.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// The only disk.
    pub disk: Disk,
    /// EFI variables.
    pub variables: Variables,
    /// What picks the slot.
    pub boot: BootLoader,
    /// How systemd-boot is broken, where it is.
    pub defects: systemd_boot::Defects,
    /// What the firmware starts from the ESP; `None`: a boot loader that no file holds.
    pub loaders: Option<Loaders>,
    /// Faults of releases by root hash, for machines whose boot loader reads no boot image that could carry them.
    pub faults: BTreeMap<Sha256, Vec<Fault>>,
    /// IMAGE_ID in the os-release of releases whose boot loader reads no boot image.
    pub product: String,
    /// Starts so far.
    pub starts: u64,
    /// Decides the boot ids.
    identity: Uuid,
}

/// An operating system that came up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Another at each start.
    pub boot_id: Uuid,
    /// From the boot image, or the partition's label where the loader reads none.
    pub version: String,
    /// Which the slot was checked against.
    pub root_hash: Sha256,
    /// The slot that holds it.
    pub slot: Slot,
    /// The boot entry with its counters as counted down; empty where the loader has none.
    pub entry: String,
    /// Whether the loader still counts its tries.
    pub trial: bool,
    /// Digest of the boot image that was run, all of it; `None` where the loader reads none.
    pub boot_image: Option<Sha256>,
    /// The kernel's command line.
    pub command_line: String,
    /// The text of os-release.
    pub os_release: String,
    /// How the release is broken.
    pub faults: Vec<Fault>,
}

/// What one start came to.
#[derive(Debug)]
pub struct Started {
    /// The system that runs; `None`: nothing boots any more.
    pub system: Option<System>,
    /// What happened, one readable line for each start.
    pub log: Vec<String>,
}

impl Hardware {
    /// A machine around a disk. `identity` decides its boot ids.
    pub fn new(disk: Disk, boot: BootLoader, identity: Uuid) -> Self {
        Self {
            disk,
            variables: Variables::default(),
            boot,
            defects: systemd_boot::Defects::default(),
            loaders: None,
            faults: BTreeMap::new(),
            product: "acme-os".to_owned(),
            starts: 0,
            identity,
        }
    }

    /// Turns on and starts again after each panic, until something runs or it is clear that nothing ever will.
    pub fn power_on(&mut self) -> Started {
        let mut log = Vec::new();
        for _ in 0..MAX_STARTS {
            match self.start() {
                Ok(system) => {
                    log.push(format!(
                        "start {}: {} runs from slot {}{}",
                        self.starts,
                        system.version,
                        system.slot,
                        if system.trial { " as a trial" } else { "" }
                    ));
                    return Started { system: Some(system), log };
                }
                Err(refusal) => log.push(format!("start {}: {refusal}", self.starts)),
            }
        }
        Started { system: None, log }
    }

    /// One start: firmware, boot loader, kernel, root.
    pub fn start(&mut self) -> Result<System, Refusal> {
        self.starts += 1;
        let boot_id =
            Uuid::from_bytes(Sha256::of(format!("{} {}", self.identity, self.starts).as_bytes()).first_half());
        let system = match self.boot {
            BootLoader::SystemdBoot => self.start_entry(boot_id)?,
            BootLoader::Gptprio => self.start_slot(boot_id)?,
        };
        if system.faults.contains(&Fault::Panic) {
            return Err(Refusal::Panic { what: system.version });
        }
        Ok(system)
    }

    fn start_entry(&mut self, boot_id: Uuid) -> Result<System, Refusal> {
        let loader = match &self.loaders {
            Some(loaders) => Some(loaders.start(&Table::read(&self.disk)?.esp()?).ok_or(Refusal::NoLoader)?),
            None => None,
        };
        let picked =
            systemd_boot::pick(&self.disk, &mut self.variables, self.defects)?.ok_or(Refusal::NothingToBoot)?;
        if let Some((place, version)) = loader {
            self.variables.set_string("LoaderInfo", &format!("systemd-boot {version}"));
            self.variables.set_string("LoaderImageIdentifier", &format!("\\{}", place.replace('/', "\\")));
        }
        if !picked.starts {
            return Err(Refusal::NotWhole { what: picked.file });
        }
        let refused = |reason: root::RootError| Refusal::Root { what: picked.file.clone(), reason };
        let wanted = picked.image.root_hash().unwrap_or_default();
        let root_hash = RootHash::parse(&wanted).map_err(|_| refused(root::RootError::NoHash))?;
        let root_hash = Sha256::from(&root_hash);
        let table = Table::read(&self.disk)?;
        let slot = root::find_and_check(&table, root_hash).map_err(refused)?;
        Ok(System {
            boot_id,
            version: picked.image.version.clone().unwrap_or_default(),
            root_hash,
            slot,
            entry: picked.file.clone(),
            trial: picked.counted,
            boot_image: Some(picked.digest),
            command_line: picked.image.cmdline.as_str().to_owned(),
            os_release: picked.image.os_release.clone(),
            faults: picked.image.faults(),
        })
    }

    fn start_slot(&mut self, boot_id: Uuid) -> Result<System, Refusal> {
        let slot = gptprio::pick(&self.disk)?.ok_or(Refusal::NothingToBoot)?;
        let table = Table::read(&self.disk)?;
        let root_hash = root::hash_of_slot(&table, slot);
        root::find_and_check(&table, root_hash)
            .map_err(|reason| Refusal::Root { what: format!("slot {slot}"), reason })?;
        Ok(System {
            boot_id,
            command_line: format!("roothash={root_hash} ro quiet"),
            os_release: format!("ID={}\nIMAGE_ID={0}\nIMAGE_VERSION={}\n", self.product, table.label(slot.data())),
            version: table.label(slot.data()),
            root_hash,
            slot,
            entry: String::new(),
            trial: !gptprio::Attributes::of(table.attributes(slot.data())).successful,
            boot_image: None,
            faults: self.faults.get(&root_hash).cloned().unwrap_or_default(),
        })
    }
}

/// Why one start failed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The ESP has no boot loader that is whole.
    #[error("the firmware finds no boot loader")]
    NoLoader,
    /// No entry, or no slot that may boot.
    #[error("the boot loader finds nothing to boot")]
    NothingToBoot,
    /// The boot loader shows it and the firmware does not load it.
    #[error("{what} is not whole, and does not start")]
    NotWhole {
        /// The entry.
        what: String,
    },
    /// The kernel has no root.
    #[error("{what} panics: {reason}")]
    Root {
        /// Entry or slot.
        what: String,
        /// What was wrong.
        reason: root::RootError,
    },
    /// The release is made to panic.
    #[error("{what} panics, as it is made to")]
    Panic {
        /// Its version.
        what: String,
    },
    /// Table or ESP can't be read.
    #[error("the firmware can't read the disk: {0}")]
    Disk(#[from] io::Error),
}
