//! What can go wrong while boot partitions are read or changed.

use std::io;

use bascule_api::NodeError;

use crate::core::boot::BootPartition;
use crate::gpt::TableError;
use crate::host::FetchError;

/// Why boot partitions can't be read or changed.
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
    /// A folder holds more than anybody would look at.
    #[error("{path} on the boot partition holds more than {limit} files: remove what does not belong there")]
    TooMany {
        /// The folder.
        path: String,
        /// The limit.
        limit: usize,
    },
    /// A partition that was there a moment ago is not.
    #[error("the {0} is not there any more")]
    NoPartition(BootPartition),
    /// The partition table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Fetching the boot image failed.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A boot image is not the one the manifest names.
    #[error("the boot image {path} is not the one that was signed: {reason}")]
    Uki {
        /// Where it lies.
        path: String,
        /// What differs.
        reason: String,
    },
    /// A release whose boot image nobody knows can't be fetched.
    #[error("the boot image of this release is not known, so it can't be fetched")]
    Unknown,
    /// Something else was found than was seen a moment ago. Nothing was changed.
    #[error("{path} is not what it was a moment ago ({reason}): nothing was changed, the machine is looked at again")]
    Unexpected {
        /// The file.
        path: String,
        /// What differs.
        reason: String,
    },
}

impl BootError {
    /// The kind, for status and metrics.
    pub fn category(&self) -> NodeError {
        match self {
            Self::Esp { source, .. } if source.kind() == io::ErrorKind::StorageFull => NodeError::Space,
            Self::Esp { .. } | Self::TooMany { .. } | Self::NoPartition(_) | Self::Unexpected { .. } => {
                NodeError::Storage
            }
            Self::Table(error) => crate::gpt::category(error),
            Self::Fetch(error) => error.category,
            Self::Uki { .. } => NodeError::Trust,
            Self::Unknown => NodeError::Internal,
        }
    }

    /// Whether trying again soon may help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Fetch(error) => error.transient,
            Self::Unexpected { .. } => true,
            _ => false,
        }
    }
}

/// Adds what was being done to an error of the file system.
pub(super) fn esp(doing: &'static str, path: &str) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_owned();
    move |source| BootError::Esp { doing, path, source }
}
