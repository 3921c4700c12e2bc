//! Decisions about trust, without any I/O: following the chain of roots, judging expiry, finding who may name a file,
//! and sorting tough's errors into ours.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tough::TargetName;
use tough::schema::{Delegations, Role, Root, Signed, Target, Targets};

use crate::error::{Error, in_one_line};
use crate::http::FetchError;

/// The chain of roots from the caller's trust root to the newest known one.
#[derive(Debug)]
pub(crate) struct RootChain {
    /// Bytes of the newest root: what tough starts from.
    pub(crate) newest: Vec<u8>,
    /// Its version.
    pub(crate) version: u64,
    /// The links after the trust root, each verified by the one before it and by itself.
    pub(crate) links: BTreeMap<u64, String>,
    root: Signed<Root>,
}

impl RootChain {
    /// Parses the trust root and checks that it is signed by its own keys.
    pub(crate) fn start(trust_root: &[u8]) -> Result<Self, Error> {
        let refuse = |reason: String| Error::TrustRoot { reason };
        let root: Signed<Root> = serde_json::from_slice(trust_root).map_err(|error| refuse(error.to_string()))?;
        root.signed.verify_role(&root).map_err(|error| refuse(in_one_line(&error)))?;
        Ok(Self { newest: trust_root.to_vec(), version: root.signed.version.get(), links: BTreeMap::new(), root })
    }

    /// Takes over each next version that the root before it has signed; stops at the first that is missing or is not
    /// properly signed. Whether it stopped at a bad one is returned.
    pub(crate) fn follow<'a>(&mut self, candidates: impl Fn(u64) -> Option<&'a [u8]>) -> bool {
        while let Some(bytes) = self.version.checked_add(1).and_then(&candidates) {
            if self.link(bytes).is_none() {
                return true;
            }
        }
        false
    }

    fn link(&mut self, bytes: &[u8]) -> Option<()> {
        let text = std::str::from_utf8(bytes).ok()?;
        let next: Signed<Root> = serde_json::from_str(text).ok()?;
        let right_version = next.signed.version.get() == self.version.checked_add(1)?;
        if !right_version || self.root.signed.verify_role(&next).is_err() || next.signed.verify_role(&next).is_err() {
            return None;
        }
        self.version = next.signed.version.get();
        self.newest = bytes.to_vec();
        self.links.insert(self.version, text.to_owned());
        self.root = next;
        Some(())
    }
}

/// A role's name and when it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleExpiry {
    /// `root`, `timestamp`, `snapshot`, `targets`, or a delegated role's name.
    pub role: String,
    /// Version of the role's metadata.
    pub version: u64,
    /// When it expires.
    pub expires: DateTime<Utc>,
}

pub(crate) fn expiry_of<T: Role>(name: &str, role: &T) -> RoleExpiry {
    RoleExpiry {
        role: name.to_owned(),
        version: role.version().get(),
        expires: DateTime::from_timestamp(role.expires().as_second(), 0).unwrap_or(DateTime::<Utc>::MIN_UTC),
    }
}

/// TUF 1.0, 5.3.10, 5.4.4, 5.5.6 and 5.6.5: the expiry must be later than the time of the update.
pub(crate) fn refuse_expired(roles: &[RoleExpiry], now: DateTime<Utc>) -> Result<(), Error> {
    match roles.iter().find(|role| role.expires <= now) {
        None => Ok(()),
        Some(role) => Err(Error::Expired { role: role.role.clone(), expired: role.expires, now }),
    }
}

/// A file that the metadata names, and who named it.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    pub(crate) target: &'a Target,
    /// The delegated roles on the way, outermost first; empty for the top-level role.
    pub(crate) through: Vec<RoleExpiry>,
}

/// Finds a file by preorder search through the delegations (TUF 1.0, 5.6.7). Only roles whose paths cover the name are
/// searched, at every level, so that a delegated role can't speak for a file outside its own folder.
pub(crate) fn find<'a>(targets: &'a Targets, name: &TargetName) -> Option<Found<'a>> {
    find_below(targets, name, 0).0
}

fn find_below<'a>(targets: &'a Targets, name: &TargetName, depth: usize) -> (Option<Found<'a>>, bool) {
    if let Some(target) = targets.targets.get(name) {
        return (Some(Found { target, through: Vec::new() }), true);
    }
    if depth >= 8 {
        return (None, false);
    }
    for role in targets.delegations.iter().flat_map(|delegations| &delegations.roles) {
        let mut alone = role.clone();
        alone.targets = None;
        let covers = Delegations { keys: Default::default(), roles: vec![alone] }.target_is_delegated(name);
        if !covers {
            continue;
        }
        if let Some(signed) = &role.targets {
            let (found, stop) = find_below(&signed.signed, name, depth + 1);
            if let Some(mut found) = found {
                found.through.insert(0, expiry_of(&role.name, &signed.signed));
                return (Some(found), true);
            }
            if stop {
                return (None, true);
            }
        }
        if role.terminating {
            return (None, true);
        }
    }
    (None, false)
}

/// How many delegated roles there are, all levels together.
pub(crate) fn count_roles(targets: &Targets) -> usize {
    targets.role_names().len()
}

/// Sorts an error of tough into ours.
pub(crate) fn sort_tough_error(error: tough::error::Error) -> Error {
    use tough::error::Error as Tough;
    let role_of = |role: &dyn std::fmt::Display| role.to_string();
    match error {
        Tough::Transport { source, .. } => sort_transport_error(source),
        Tough::VerifyMetadata { role, source, .. } => {
            Error::Signature { role: role_of(&role), detail: format!(" ({})", in_one_line(&source)) }
        }
        Tough::VerifyRoleMetadata { role, source, .. } => {
            Error::Signature { role, detail: format!(" ({})", in_one_line(&source)) }
        }
        Tough::VerifyTrustedMetadata { source, .. } => Error::TrustRoot { reason: in_one_line(&source) },
        Tough::ParseTrustedMetadata { source, .. } => Error::TrustRoot { reason: source.to_string() },
        error @ (Tough::OlderMetadata { .. }
        | Tough::OlderSnapshotInTimestamp { .. }
        | Tough::SnapshotRoleMissing { .. }
        | Tough::SnapshotRoleRollback { .. }) => Error::Rollback { reason: error.to_string() },
        error @ (Tough::VersionMismatch { .. } | Tough::HashMismatch { .. }) => {
            Error::Mismatch { what: "a metadata file".to_owned(), reason: error.to_string() }
        }
        Tough::ParseMetadata { role, source, .. } => {
            Error::Format { what: format!("the {role} metadata"), source: Box::new(source) }
        }
        Tough::ExpiredMetadata { role, .. } => Error::Invalid {
            what: format!("the {role} metadata"),
            reason: "it is expired by the system's clock".to_owned(),
        },
        error => Error::Invalid { what: "the repository's metadata".to_owned(), reason: in_one_line(&error) },
    }
}

/// Our own errors travel through tough inside its transport error; take them out again.
fn sort_transport_error(error: tough::TransportError) -> Error {
    let url = error.url().to_owned();
    match std::error::Error::source(&error) {
        Some(cause) => match cause.downcast_ref::<FetchError>() {
            Some(fetch) => Error::Fetch(fetch.clone()),
            None => match cause.downcast_ref::<tough::error::Error>() {
                Some(tough::error::Error::MaxSizeExceeded { max_size, .. }) => {
                    Error::Fetch(FetchError::TooLarge { url, limit: *max_size })
                }
                Some(inner) => Error::Mismatch { what: url, reason: inner.to_string() },
                None => Error::Invalid { what: url, reason: in_one_line(cause) },
            },
        },
        None => Error::Invalid { what: url, reason: error.to_string() },
    }
}
