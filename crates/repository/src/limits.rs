//! Every bound on what a repository may make us hold in memory or on disk, fetch or wait for, in one place.
//!
//! Signed lengths are bounded too: a stolen snapshot key must not be able to fill a node's memory.

use std::time::Duration;

use crate::tuf::Limits;

/// `N.root.json`. A root with a dozen keys has about 6 KiB.
pub(crate) const MAX_ROOT: u64 = 64 << 10;
/// `timestamp.json`: less than 1 KiB in practice.
pub(crate) const MAX_TIMESTAMP: u64 = 16 << 10;
/// `N.snapshot.json`: about 200 bytes for each delegated role.
pub(crate) const MAX_SNAPSHOT: u64 = 128 << 10;
/// `N.targets.json` and delegated roles: about 300 bytes for each file, so some 6,000 files.
pub(crate) const MAX_TARGETS: u64 = 2 << 20;
/// New root versions that one update follows (Y of TUF 1.0, 5.3.3).
pub(crate) const MAX_ROOT_UPDATES: u64 = 256;
/// All remembered roots together: more than a thousand.
pub(crate) const MAX_ROOT_CHAIN: usize = 8 << 20;
/// The datastore's one file: the root chain, the newest timestamp, snapshot and targets, each twice as long at most when
/// its quotes are escaped.
pub(crate) const MAX_STATE: u64 = 24 << 20;
/// Signatures of one file. Each costs a verification, so this bounds the time too.
pub(crate) const MAX_SIGNATURES: usize = 256;
/// Keys that may sign one role.
pub(crate) const MAX_ROLE_KEYS: usize = 256;
/// Keys of all roles that one file names.
pub(crate) const MAX_KEYS: usize = 4096;
/// Roles that one role delegates to.
pub(crate) const MAX_DELEGATIONS: usize = 1024;
/// Bytes of a delegated role's name. It becomes a file name, percent-encoded, with a version before it and `.json` after it.
pub(crate) const MAX_ROLE_NAME: usize = 128;
/// Bytes of verified delegated roles that an open repository keeps for the next search; the last one stays whatever it has. They are held
/// while the next role is read, and a role takes more room as values than as text.
pub(crate) const MAX_KEPT_ROLES: usize = 1 << 20;

/// One update of the top-level roles.
pub(crate) const UPDATE: Limits = Limits {
    requests: MAX_ROOT_UPDATES as u32 + 4,
    bytes: 16 << 20,
    roles: 0,
    depth: 0,
    time: Duration::from_secs(600),
};
/// One search for a file through delegated roles.
pub(crate) const SEARCH: Limits =
    Limits { requests: 32, bytes: 4 << 20, roles: 32, depth: 8, time: Duration::from_secs(300) };
