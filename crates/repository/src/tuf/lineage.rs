//! The roots that are remembered, as one line of descent: signatures lead from the older ones to the newest. A node goes from OS
//! image to OS image and back, and each image brings a trust root of its own; what was trusted under a later root must hold under an
//! earlier image too, or keys that were revoked in between could be used again by withholding the roots that revoke them.
//!
//! So the trust root of an image takes its place in the line, wherever that is, and the newest root of the line is the least that an
//! update has to reach. On the way there roots are remembered only when they have led there: whoever holds keys that a later root
//! revoked can still sign roots below it, and those must neither get in the way of the honest ones nor look like another line. For the
//! same reason none that is known is replaced but by an image's.
//! A trust root that is not of the line begins a new one: the image decides whom a node trusts, and
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
    let dropped = drop_what_is_no_root(known);
    if known.get(&version).is_some_and(|known| known == text) {
        return dropped;
    }
    if !known.is_empty() && !belongs(known, trust_root) {
        tracing::warn!(version, "the trust root does not belong to the roots that are remembered; they are forgotten");
        known.clear();
    }
    known.insert(version, text.to_owned());
    true
}

/// Drops what nobody wrote who had verified it: a newest root that can't be read, or that the keys of none of the others have signed.
fn drop_what_is_no_root(known: &mut Roots) -> bool {
    let before = known.len();
    while let Some((version, text)) = known.last_key_value() {
        let mut older = known.range(..*version).rev().filter_map(|(version, text)| read(*version, text)).peekable();
        let holds = |root: Signed<Root>| older.peek().is_none() || older.any(|older| vouches(&older, &root));
        if read(*version, text).is_some_and(holds) {
            break;
        }
        tracing::warn!(version, "what is remembered as the newest root does not hold and is left out");
        known.pop_last();
    }
    known.len() < before
}

/// Whether a trust root is of the line: it is known, or its keys have signed a newer one of the line. Or those of an older one have signed
/// it, and the line knows no other root of its version.
fn belongs(known: &Roots, trust_root: &Signed<Root>) -> bool {
    let version = trust_root.role.version();
    let same = known.get(&version).and_then(|text| read(version, text));
    if same.as_ref().is_some_and(|same| same.message == trust_root.message) {
        return true;
    }
    let others = || known.iter().filter_map(|(version, text)| read(*version, text));
    others().filter(|other| other.role.version() > version).any(|newer| vouches(trust_root, &newer))
        || same.is_none()
            && others().filter(|other| other.role.version() < version).any(|older| vouches(&older, trust_root))
}

/// The newest root of the line, where what is remembered leads to it from the trust root step by step.
pub(super) fn newest<'a>(known: &'a Roots, trust_root: &Signed<Root>) -> Option<(Signed<Root>, &'a str)> {
    let mut last = None;
    let mut expected = trust_root.role.version();
    for (version, text) in known.range(expected.saturating_add(1)..) {
        expected = expected.saturating_add(1);
        if *version != expected {
            return None;
        }
        let before = last.as_ref().map_or(trust_root, |(root, _)| root);
        last = Some((next_root(before, text.as_bytes()).ok()?, text.as_str()));
    }
    last
}

/// Takes a root that follows the one `before` it (5.3.4 and 5.3.5 hold). One that is older than the newest of the line is put `apart`,
/// until the newest follows from it. Gives whether there is anything to remember.
///
/// # Errors
/// [`Error::Rollback`] when this is another root than the newest of the line, or that one does not follow as it is remembered: whoever holds
/// keys of an earlier root must not be able to lead an earlier image past the root that revokes them, and can add his signature to
/// that root. [`Error::Limit`] when the roots from the trust root on are too many.
pub(super) fn admit(
    known: &mut Roots,
    apart: &mut Roots,
    trust_root: u64,
    before: &Signed<Root>,
    root: &Signed<Root>,
    text: String,
) -> Result<bool, Error> {
    let version = root.role.version();
    let newest = known.last_key_value().map_or(0, |(newest, _)| *newest);
    let mine = known.get(&version).and_then(|text| read(version, text));
    if let Some(mine) = mine.as_ref().filter(|_| version == newest) {
        let refuse = |reason: String| Err(Error::Rollback { reason });
        if mine.message != root.message {
            return refuse(format!("another root of version {version} was trusted here before"));
        }
        if !vouches(before, mine) {
            return refuse(format!(
                "the root of version {version} that was trusted here before does not follow from these"
            ));
        }
    }
    // What is known stays: the one that came may be a thief's, or have lost signatures by which the roots of images are known.
    if mine.is_none() {
        apart.insert(version, text);
    }
    let mut length = known.values().chain(apart.values()).map(String::len).sum::<usize>();
    while length > limits::MAX_ROOT_CHAIN {
        // What only an older image would need goes first.
        let Some(oldest) = known.first_entry().filter(|oldest| *oldest.key() < trust_root) else {
            return Err(too_many());
        };
        length = length.saturating_sub(oldest.remove().len());
    }
    if version < newest {
        return Ok(false);
    }
    known.append(apart);
    Ok(true)
}

fn too_many() -> Error {
    let reason = "there are too many roots after the trust root; ship a newer trust root (the OS image's)";
    Error::Limit { what: "the chain of roots".to_owned(), reason: reason.to_owned() }
}

/// The newest root of the line must have been reached by as many roots as one update reads.
///
/// # Errors
/// [`Error::Limit`]
pub(super) fn within_reach(known: &Roots, root: &Signed<Root>) -> Result<(), Error> {
    match known.last_key_value() {
        Some((newest, _)) if *newest > root.role.version() => Err(too_many()),
        _ => Ok(()),
    }
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
