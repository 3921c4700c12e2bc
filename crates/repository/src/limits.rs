//! Every bound on what a repository may make us hold in memory or on disk, in one place.
//!
//! Signed lengths are bounded too: a stolen snapshot key must not be able to fill a node's memory.

/// `N.root.json`. A root with a dozen keys has about 6 KiB.
pub(crate) const MAX_ROOT: u64 = 64 << 10;
/// `timestamp.json`: less than 1 KiB in practice.
pub(crate) const MAX_TIMESTAMP: u64 = 16 << 10;
/// `N.snapshot.json`: about 200 bytes for each delegated role.
pub(crate) const MAX_SNAPSHOT: u64 = 128 << 10;
/// `N.targets.json` and delegated roles: about 300 bytes for each file, so some 6,000 files.
pub(crate) const MAX_TARGETS: u64 = 2 << 20;
/// New root versions that one update follows.
pub(crate) const MAX_ROOT_UPDATES: u64 = 256;
/// Delegated roles in the whole tree.
pub(crate) const MAX_ROLES: usize = 64;
/// The datastore's one file: the root chain and the newest timestamp and snapshot.
pub(crate) const MAX_STATE: u64 = 24 << 20;
