//! The roots that are remembered, as one line of descent: each is signed by the root keys of the one before it. A node goes from OS
//! image to OS image and back, and each image brings a trust root of its own; what was trusted under a later root must hold under an
//! earlier image too, or keys that were revoked in between could be used again by withholding the roots that revoke them.
//!
//! So the trust root of an image takes its place in the line, wherever that is, and the newest root of the line is the least that an
//! update has to reach. A trust root that is not of the line begins a new one: the image decides whom a node trusts, and
//! a vendor who had to begin anew must not be refused for what another repository's root once said.

use std::collections::BTreeMap;

use super::keys::verify;
use super::schema::{Role as _, Root, Signed, TopLevel, parse};
use crate::error::Error;
use crate::limits;

/// Roots by version, as they were received.
pub(super) type Roots = BTreeMap<u64, String>;

/// Puts the verified trust root into its place. Gives whether anything had to change.
pub(super) fn begin(known: &mut Roots, trust_root: &Signed<Root>, text: &str) -> bool {
    let version = trust_root.role.version();
    if known.get(&version).is_some_and(|known| known == text) {
        return false;
    }
    let same = known.get(&version).map(|text| read(version, text));
    let before = known.range(..version).next_back().map(|(version, text)| read(*version, text));
    let after = known.range(version.saturating_add(1)..).next().map(|(version, text)| read(*version, text));
    let one_line = same.is_none_or(|same| same.is_some_and(|same| same.message == trust_root.message))
        && before.is_none_or(|before| before.is_some_and(|before| vouches(&before, trust_root)))
        && after.is_none_or(|after| after.is_some_and(|after| vouches(trust_root, &after)));
    if !one_line {
        tracing::warn!(version, "the trust root does not belong to the roots that are remembered; they are forgotten");
        known.clear();
    }
    known.insert(version, text.to_owned());
    true
}

/// Takes a root that follows the one before it (5.3.4 and 5.3.5 hold) into the line.
///
/// # Errors
/// [`Error::Rollback`] when the line knows another root of this version, or one after it that does not follow from it: whoever holds
/// keys of an earlier root must not be able to lead an earlier image past the root that revokes them. [`Error::Limit`] when
/// the roots from the trust root on are too many.
pub(super) fn admit(known: &mut Roots, trust_root: u64, root: &Signed<Root>, text: String) -> Result<(), Error> {
    let version = root.role.version();
    let refuse = |reason: String| Err(Error::Rollback { reason });
    if let Some(other) = known.get(&version).and_then(|text| read(version, text)) {
        if other.message != root.message {
            return refuse(format!("another root of version {version} was trusted here before"));
        }
        return Ok(());
    }
    let next = version.saturating_add(1);
    if let Some(after) = known.get(&next).filter(|after| next_root(root, after.as_bytes()).is_err()) {
        // One that can't be read any more is no witness.
        if read(next, after).is_some() {
            return refuse(format!(
                "the root of version {version} is not the one that root version {next}, trusted here before, follows"
            ));
        }
        known.remove(&next);
    }
    let mut length = known.values().map(String::len).sum::<usize>().saturating_add(text.len());
    while length > limits::MAX_ROOT_CHAIN {
        // What only an older image would need goes first.
        let Some(oldest) = known.first_entry().filter(|oldest| *oldest.key() < trust_root) else {
            let reason = "there are too many roots after the trust root; ship a newer trust root (the OS image's)";
            return Err(Error::Limit { what: "the chain of roots".to_owned(), reason: reason.to_owned() });
        };
        length = length.saturating_sub(oldest.remove().len());
    }
    known.insert(version, text);
    Ok(())
}

/// The newest root of the line must have been reached when there are no more roots to be had.
///
/// # Errors
/// [`Error::Rollback`]
pub(super) fn reached(known: &Roots, root: &Signed<Root>) -> Result<(), Error> {
    let have = root.role.version();
    match known.last_key_value() {
        Some((newest, _)) if *newest > have => Err(Error::Rollback {
            reason: format!(
                "root version {newest} was trusted here before, and the roots that this repository serves end at version {have}"
            ),
        }),
        _ => Ok(()),
    }
}

/// 5.3.4 and 5.3.5: the root that follows another.
pub(super) fn next_root(trusted: &Signed<Root>, bytes: &[u8]) -> Result<Signed<Root>, Error> {
    let next: Signed<Root> = parse("root", bytes)?;
    verify("root", &next, trusted.role.signers(TopLevel::Root))?;
    verify("root", &next, next.role.signers(TopLevel::Root))?;
    let (have, came) = (trusted.role.version(), next.role.version());
    if Some(came) != have.checked_add(1) {
        return Err(Error::Rollback {
            reason: format!("root version {came} came where {have} has to be followed by one more"),
        });
    }
    Ok(next)
}

/// Whether the keys of a root have signed a later one, also one that is several versions later.
fn vouches(earlier: &Signed<Root>, later: &Signed<Root>) -> bool {
    verify("root", later, earlier.role.signers(TopLevel::Root)).is_ok()
}

/// A remembered root; `None` when it is none, or of another version.
fn read(version: u64, text: &str) -> Option<Signed<Root>> {
    let root: Signed<Root> = parse("root", text.as_bytes()).ok()?;
    verify("root", &root, root.role.signers(TopLevel::Root)).ok()?;
    (root.role.version() == version).then_some(root)
}
