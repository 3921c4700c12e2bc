//! One error for everything an effect can fail with, and its report to the state machine.

use std::error::Error;
use std::io;

use bascule_api::NodeError;
use bascule_image::apply::ApplyError;
use bascule_image::pack::ReadIndexError;
use bascule_image::verity::{CheckError, SuperblockError};
use bascule_kubeconfig::cause;

use crate::boot::{BootError, LoaderError};
use crate::core::{EffectKind, Failure, JournalError};
use crate::fitness::Unfit;
use crate::gpt::TableError;
use crate::host::{BusError, FetchError};
use crate::observe::ObserveError;

/// Why an effect failed.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// Looking at the machine.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The boot entries.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The boot image is none that this machine would start.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The boot loader.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The partition table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A file in the state folder.
    #[error("{doing} {name} in the state folder failed")]
    State {
        /// What was being done.
        doing: &'static str,
        /// The file.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The repository.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The index of a pack.
    #[error("the pack's index can't be used")]
    Index(#[source] ReadIndexError),
    /// Writing the slot.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A partition of a slot.
    #[error("{doing} partition {number} failed")]
    Partition {
        /// What was being done.
        doing: &'static str,
        /// Its number.
        number: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The slot does not read back as what it should be.
    #[error("slot content: reading back found something else than the release")]
    ReadBack(#[source] CheckError),
    /// The verity partition has no superblock to read back by.
    #[error("the verity partition has no superblock that is accepted")]
    Superblock(#[source] SuperblockError),
    /// The system bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A hook of the OS image.
    #[error("the OS image's hook {unit} {what}: see journalctl -u '{unit}'")]
    Hook {
        /// Its unit.
        unit: String,
        /// What became of it.
        what: String,
    },
    /// There is a hook, and nobody to ask whether it ran.
    #[error(
        "the OS image has the hook {unit}, and nobody can be asked to start it: let the agent talk to \
         org.freedesktop.systemd1 on the system bus"
    )]
    HookUnasked {
        /// Its unit.
        unit: String,
        /// Why.
        #[source]
        source: BusError,
    },
    /// What came before took so long that the rest is not wanted any more.
    #[error("it is not wanted any more")]
    Unwanted,
    /// Somebody holds back the reboot.
    #[error("the reboot waits for {who} ({why}): an inhibitor of mode {mode} blocks shutdown")]
    Inhibited {
        /// Who.
        who: String,
        /// Why.
        why: String,
        /// Which mode.
        mode: String,
    },
    /// An effect was asked for in the wrong order.
    #[error("{0}")]
    Order(&'static str),
}

impl EffectError {
    /// The kind, for status and metrics.
    pub fn category(&self) -> NodeError {
        match self {
            Self::Observe(error) => error.category(),
            Self::Boot(error) => error.category(),
            Self::Loader(error) => error.category(),
            Self::Unfit(error) => fetched(error).map_or_else(|| error.category(), |(category, _)| category),
            Self::Table(error) => crate::gpt::category(error),
            Self::Journal(_) | Self::Order(_) | Self::Unwanted => NodeError::Internal,
            Self::State { source, .. } | Self::Partition { source, .. } => of_io(source),
            Self::Fetch(error) => error.category,
            Self::Index(ReadIndexError::Truncated { .. }) => NodeError::Network,
            Self::Index(error) => fetched(error).map_or(NodeError::Trust, |(category, _)| category),
            Self::Apply(error) => of_apply(error),
            Self::ReadBack(CheckError::Read { .. }) => NodeError::Storage,
            Self::ReadBack(_) | Self::Superblock(_) => NodeError::Trust,
            Self::Bus(_) | Self::Inhibited { .. } | Self::HookUnasked { .. } => NodeError::SystemBus,
            Self::Hook { .. } => NodeError::Hook,
        }
    }

    /// Whether trying again soon may help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Bus(_) | Self::Inhibited { .. } | Self::HookUnasked { .. } | Self::Observe(ObserveError::Bus(_)) => {
                true
            }
            Self::Fetch(error) => error.transient,
            Self::Boot(error) => error.is_transient(),
            Self::Loader(error) => error.is_transient(),
            Self::Unfit(error) => fetched(error).is_some_and(|(_, transient)| transient),
            // A pack has the length that was signed: what ended early broke off on its way.
            Self::Index(ReadIndexError::Truncated { .. }) | Self::Apply(ApplyError::Truncated { .. }) => true,
            Self::Index(error) => fetched(error).is_some_and(|(_, transient)| transient),
            Self::Apply(error) => fetched(error).is_some_and(|(_, transient)| transient),
            _ => false,
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        match self {
            Self::Unwanted => true,
            Self::Fetch(error) | Self::Boot(BootError::Fetch(error)) => error.cancelled,
            Self::Apply(ApplyError::Cancelled(_)) | Self::ReadBack(CheckError::Cancelled(_)) => true,
            Self::Apply(error) => was_cancelled(error),
            Self::Unfit(error) => was_cancelled(error),
            _ => false,
        }
    }

    /// As the state machine takes it.
    pub fn into_failure(self, effect: EffectKind) -> Failure {
        Failure {
            effect,
            category: self.category(),
            message: in_one_line(&self),
            transient: self.is_transient(),
            cancelled: self.is_cancelled(),
        }
    }
}

/// Whether reading from a repository ended because it was told to: as the host says it, or as its stream does.
fn was_cancelled(error: &(dyn std::error::Error + 'static)) -> bool {
    cause::<FetchError>(error).is_some_and(|error| error.cancelled)
        || matches!(bascule_repository::download_error(error), Some(bascule_repository::Error::Cancelled))
}

fn of_io(error: &io::Error) -> NodeError {
    if error.kind() == io::ErrorKind::StorageFull { NodeError::Space } else { NodeError::Storage }
}

fn of_apply(error: &ApplyError) -> NodeError {
    match error {
        ApplyError::Source { .. } | ApplyError::Truncated { .. } => {
            fetched(error).map_or(NodeError::Network, |(category, _)| category)
        }
        ApplyError::Sink { source, .. } | ApplyError::Base(source) => of_io(source),
        ApplyError::SlotTooSmall { .. } => NodeError::Space,
        ApplyError::BaseFrame(_) => NodeError::Storage,
        ApplyError::WrongBase { .. } | ApplyError::BaseSize { .. } | ApplyError::Frame(_) => NodeError::Trust,
        ApplyError::RootHash { .. } => NodeError::Trust,
        ApplyError::Incomplete(_) | ApplyError::Cancelled(_) | ApplyError::Worker => NodeError::Internal,
    }
}

/// The download's own verdict, where an error of the image crate only passes it on.
fn fetched(error: &(dyn Error + 'static)) -> Option<(NodeError, bool)> {
    if let Some(error) = cause::<FetchError>(error) {
        return Some((error.category, error.transient));
    }
    let error = bascule_repository::download_error(error)?;
    Some((category_of(error), error.is_transient()))
}

/// The kind of an error of the repository.
pub(crate) fn category_of(error: &bascule_repository::Error) -> NodeError {
    use bascule_repository::Error as E;
    match error.fault() {
        E::Fetch(_) | E::Cancelled => NodeError::Network,
        E::Signature { .. }
        | E::Rollback { .. }
        | E::Mismatch { .. }
        | E::Expired { .. }
        | E::ClockBehind(_)
        | E::TrustRoot { .. } => NodeError::Trust,
        E::Invalid { .. } | E::SpecVersion { .. } | E::Limit { .. } | E::Format { .. } | E::Absent { .. } => {
            NodeError::Unsuitable
        }
        E::Datastore { .. } | E::DatastoreNewer { .. } | E::Busy { .. } => NodeError::Storage,
        _ => NodeError::Internal,
    }
}

/// An error and its causes in one line.
pub fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        // Some libraries print their source within their own text.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_image::uki::ReadUkiError;
    use bascule_repository::Error as Broken;

    #[test]
    fn reading_that_was_told_to_end_is_no_failure_whoever_passes_it_on() {
        let is_cancelled = |error: Broken| {
            let unreadable = ReadUkiError::Unreadable { offset: 0, length: 1, source: io::Error::other(error) };
            EffectError::Unfit(Unfit::Uki(unreadable)).is_cancelled()
        };
        assert!(is_cancelled(Broken::Cancelled));
        assert!(!is_cancelled(Broken::Limit { what: "a range".to_owned(), reason: "too long".to_owned() }));
    }

    #[test]
    fn a_pack_that_ends_early_is_the_networks_and_passes() {
        let index = ReadIndexError::Truncated { path: "full.pack".to_owned(), expected: 9, found: 8 };
        let frames = ApplyError::Truncated { offset: 0, length: 9, found: 8 };
        for error in [EffectError::Index(index), EffectError::Apply(frames)] {
            assert_eq!((error.category(), error.is_transient()), (NodeError::Network, true), "{error}");
        }
    }
}
