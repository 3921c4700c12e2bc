//! The boot partitions and the boot loader, read and written. Nothing is decided here: what is read goes to
//! [`crate::core::boot`], and the changes that come back are carried out if what they expect is there.

mod apply;
mod error;
mod files;
mod inventory;

use bascule_api::BootControlBackend;

pub use apply::{apply, sync};
pub use error::BootError;
pub use files::{HoldShutdown, lay_down, open, verify};
pub use inventory::{DigestCache, read};

use crate::core::boot::BootPartition;
use crate::host::{Esp, Host};

/// Where the boot loader looks for unified kernel images (UAPI Boot Loader Specification, "Type #2").
const ENTRIES: &str = "EFI/Linux";
/// Where boot images lie for boot loaders that go by the partition table.
const SLOT_IMAGES: &str = "EFI/bascule";

/// The folder of boot images on one boot partition.
#[derive(Clone, Copy)]
pub struct BootFolder<'a> {
    pub(crate) partition: BootPartition,
    pub(crate) esp: &'a dyn Esp,
    pub(crate) directory: &'static str,
}

impl std::fmt::Debug for BootFolder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootFolder").field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl<'a> BootFolder<'a> {
    /// The path of a file in it.
    pub(crate) fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.directory)
    }

    /// Whether its files are entries, which the firmware starts and checks.
    pub(crate) fn holds_entries(&self) -> bool {
        self.directory == ENTRIES
    }

    /// All that a boot loader takes entries from.
    pub(crate) fn all(host: &'a Host, backend: BootControlBackend) -> Vec<Self> {
        let esp = |directory| Self { partition: BootPartition::Esp, esp: &*host.esp, directory };
        match (backend, &host.xbootldr) {
            (BootControlBackend::GptPrio, _) => vec![esp(SLOT_IMAGES)],
            (BootControlBackend::SystemdBoot, None) => vec![esp(ENTRIES)],
            (BootControlBackend::SystemdBoot, Some(more)) => {
                let more = Self { partition: BootPartition::Xbootldr, esp: &**more, directory: ENTRIES };
                vec![esp(ENTRIES), more]
            }
        }
    }

    /// The one on a partition.
    ///
    /// # Errors
    /// That partition is not there (any more).
    pub fn on(host: &'a Host, backend: BootControlBackend, partition: BootPartition) -> Result<Self, BootError> {
        let found = Self::all(host, backend).into_iter().find(|folder| folder.partition == partition);
        found.ok_or(BootError::NoPartition(partition))
    }
}
