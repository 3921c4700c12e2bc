//! What can go wrong while boot entries are read or changed.

use std::io;

use bascule_api::{NodeError, RootHash, SlotName};

use crate::gpt::TableError;
use crate::host::FetchError;

/// Why boot entries can't be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file system of boot entries failed.
    #[error("{doing} {path} on the boot partition failed")]
    Esp {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A firmware variable can't be read.
    #[error("the EFI variable {name} can't be read")]
    Variable {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The partition table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Fetching the boot image failed.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A slot has no entry, or none for what it holds.
    #[error("slot {slot} has no boot entry for root hash {root_hash}")]
    NoEntry {
        /// The slot.
        slot: SlotName,
        /// What it holds.
        root_hash: RootHash,
    },
    /// A slot holds nothing that could be booted.
    #[error("slot {0} holds no release")]
    NoRelease(SlotName),
    /// A boot image is not the one the manifest names.
    #[error("the boot image {path} is not the one that was signed: {reason}")]
    Uki {
        /// Where it lies.
        path: String,
        /// What differs.
        reason: String,
    },
    /// An operation would touch the entry of the running release.
    #[error("refused: {0} would take the boot entry of the running release away")]
    Running(&'static str),
}

impl BootError {
    /// The kind, for status and metrics.
    pub fn category(&self) -> NodeError {
        match self {
            Self::Esp { source, .. } if source.kind() == io::ErrorKind::StorageFull => NodeError::Space,
            Self::Esp { .. } => NodeError::Storage,
            Self::Variable { .. } | Self::NoEntry { .. } => NodeError::BootControl,
            Self::Table(error) => error.category(),
            Self::Fetch(error) => error.category,
            Self::Uki { .. } => NodeError::Trust,
            Self::NoRelease(_) | Self::Running(_) => NodeError::Internal,
        }
    }

    /// Whether trying again soon may help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Fetch(error) => error.transient,
            _ => false,
        }
    }
}

/// Adds what was being done to an error of the file system.
pub(super) fn esp(doing: &'static str, path: &str) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_owned();
    move |source| BootError::Esp { doing, path, source }
}
