//! The boot partitions and the boot loader, read and written. Nothing is decided here: what is read goes to
//! [`crate::core::boot`], and the changes that come back are carried out if what they expect is there.

mod apply;
mod error;
mod files;
mod inventory;
mod loader;
mod smbios;
mod text_entries;

use std::sync::Arc;

use bascule_api::BootControlBackend;

pub use apply::{apply, sync};
pub use error::BootError;
pub use files::{HoldShutdown, lay_down, open, verify};
pub use inventory::{DigestCache, loader_device, read};
pub use loader::{LoaderError, brought, place};
pub use text_entries::{ParsedText, Program, UnknownValue, parse_text_entry, text_entries};

use crate::core::boot::BootPartition;
use crate::engine::in_one_line;
use crate::host::{Esp, Host, Xbootldr};

/// Where the boot loader looks for unified kernel images (UAPI Boot Loader Specification, "Type #2").
const ENTRIES: &str = "EFI/Linux";
/// Where boot images lie for boot loaders that go by the partition table.
const SLOT_IMAGES: &str = "EFI/bascule";

/// Whether boot images are started by the firmware itself, and judged by its rules.
pub const fn firmware_starts_images(backend: BootControlBackend) -> bool {
    matches!(backend, BootControlBackend::SystemdBoot)
}

/// A boot partition that is, or may be, there and was not looked at, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is not mounted.
    NotMounted(String),
    /// Looking for it failed.
    Unseen(String),
}

/// The folder of boot images on one boot partition.
#[derive(Clone)]
pub struct BootFolder {
    pub(crate) partition: BootPartition,
    pub(crate) esp: Arc<dyn Esp>,
    pub(crate) directory: &'static str,
}

impl std::fmt::Debug for BootFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootFolder").field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl BootFolder {
    /// The path of a file in it.
    pub(crate) fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.directory)
    }

    /// Whether its files are entries, which the firmware starts and checks.
    pub(crate) fn holds_entries(&self) -> bool {
        self.directory == ENTRIES
    }

    /// All that a boot loader takes entries from, as far as they can be looked at.
    pub(crate) fn all(host: &Host, backend: BootControlBackend) -> Vec<Self> {
        Self::look(host, backend).0
    }

    /// The same, and the one that may be there, too.
    pub(crate) fn look(host: &Host, backend: BootControlBackend) -> (Vec<Self>, Option<Missing>) {
        let esp = |directory| Self { partition: BootPartition::Esp, esp: Arc::clone(&host.esp), directory };
        if backend == BootControlBackend::GptPrio {
            return (vec![esp(SLOT_IMAGES)], None);
        }
        match (host.xbootldr)() {
            Ok(Xbootldr::None) => (vec![esp(ENTRIES)], None),
            Ok(Xbootldr::NotMounted(words)) => (vec![esp(ENTRIES)], Some(Missing::NotMounted(words))),
            Ok(Xbootldr::Mounted(mounted)) => {
                let more = Self { partition: BootPartition::Xbootldr, esp: mounted, directory: ENTRIES };
                (vec![esp(ENTRIES), more], None)
            }
            Err(error) => {
                let words =
                    format!("whether the disk of the ESP has an XBOOTLDR can't be told: {}", in_one_line(&error));
                (vec![esp(ENTRIES)], Some(Missing::Unseen(words)))
            }
        }
    }

    /// The one on a partition.
    ///
    /// # Errors
    /// That partition is not there (any more).
    pub fn on(host: &Host, backend: BootControlBackend, partition: BootPartition) -> Result<Self, BootError> {
        let found = Self::all(host, backend).into_iter().find(|folder| folder.partition == partition);
        found.ok_or(BootError::NoPartition(partition))
    }
}
