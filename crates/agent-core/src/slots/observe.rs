//! What the slots hold, in the words of the protocol.

use bascule_api::{BootControlBackend, Counting, RootHash, Version};

use crate::boot::{BootFile, plan};
use crate::protocol::{Guarantee, Guarantees};
use crate::{Entry, Facts, KnownRelease, ReleaseTarget, SlotContent, State};

/// The release in the inactive slot, if it is whole, was read back, and its UKI is at hand.
pub(crate) fn ready<'a>(state: &'a State, facts: &Facts) -> Option<&'a KnownRelease> {
    let root_hash = facts.inactive_slot().content.root_hash()?;
    let known = state.journal.as_ref()?.known(root_hash)?;
    let intact = state.damaged.as_ref().is_none_or(|(at, hash)| *at != facts.inactive() || hash != root_hash);
    (intact && known.verified_at.is_some() && uki_is_there(facts, known)).then_some(known)
}

/// Whether the UKI of the release in the inactive slot lies on the boot partition: as its boot entry, or waiting to become
/// one.
pub(crate) fn uki_is_there(facts: &Facts, known: &KnownRelease) -> bool {
    let slot = facts.inactive_slot();
    // What is left of one goes before anything is armed: the boot loader might take that.
    if !facts.boot.view.slots.get(facts.inactive()).left_over.is_empty() {
        return false;
    }
    // Somebody else's image that boots the slot is none that could be armed.
    let is_own = match facts.boot.backend {
        BootControlBackend::GptPrio => slot.entry != Entry::None,
        BootControlBackend::SystemdBoot => {
            slot.entry == Entry::Unseen || !facts.boot.view.slots.get(facts.inactive()).images.is_empty()
        }
    };
    let has_entry = is_own && matches!(slot.content, SlotContent::Release { .. });
    let waits = |file: &BootFile| plan::is_named_after(known, file) && !plan::waits_beside_its_other_name(facts, file);
    has_entry || facts.boot.view.waiting.iter().any(waits)
}

/// What the other slot holds, if that was verified or ran here.
pub(super) fn held(state: &State, facts: &Facts) -> Option<(Version, RootHash)> {
    let SlotContent::Release { version, root_hash } = &facts.inactive_slot().content else { return None };
    let known = state.journal.as_ref().and_then(|journal| journal.known(root_hash));
    let verified = known.is_some_and(|known| known.verified_at.is_some());
    // A permanent entry means that it once ran and was committed here, or that an installer put it there.
    let once_good = facts.inactive_slot().entry == Entry::Good;
    (verified || once_good).then(|| (version.clone(), root_hash.clone()))
}

/// What the other slot holds, to be armed as it is.
pub(super) fn other(state: &State, facts: &Facts) -> Result<ReleaseTarget, String> {
    let slot = facts.inactive_slot();
    let SlotContent::Release { version, root_hash } = &slot.content else {
        return Err(format!("slot {} holds no whole release to go back to", facts.inactive()));
    };
    match state.journal.as_ref().and_then(|journal| journal.known(root_hash)) {
        Some(known) => Ok(ReleaseTarget::known(facts.inactive(), known)),
        None if slot.entry == Entry::None => {
            Err(format!("slot {} holds {version}, but its boot image is gone", facts.inactive()))
        }
        None => Ok(ReleaseTarget {
            slot: facts.inactive(),
            version: version.clone(),
            root_hash: root_hash.clone(),
            digest: None,
            uki: None,
        }),
    }
}

/// Whether the boot loader takes the other slot's entry, with its tries.
pub(super) fn is_armed(facts: &Facts) -> bool {
    let entry_stands = matches!(facts.inactive_slot().entry, Entry::Trying { .. });
    let running_is_aside = matches!(facts.booted_slot().entry, Entry::Bad { .. });
    entry_stands && (!facts.boot.running_sorts_first || running_is_aside)
}

pub(super) fn guarantees(state: &State, facts: &Facts) -> Guarantees {
    let trial = state.is_trial(facts);
    let verified = match &state.running_changed {
        Some(changed) => Guarantee::Missing(format!("the running slot was changed: {changed}")),
        None => Guarantee::Given,
    };
    let why = |why: Option<String>| why.unwrap_or_default();
    let counted = match state.boot_loader_counts(facts) {
        (Counting::Works, _) => Guarantee::Given,
        (Counting::Unknown, None) => Guarantee::Given,
        (Counting::Unknown, message) => Guarantee::NotSeenYet(why(message)),
        (Counting::Broken, message) => Guarantee::Missing(why(message)),
    };
    let other = facts.inactive_slot();
    let way_back = match (&facts.boot.obstacle, trial) {
        (_, true) if other.content.root_hash().is_none() || other.entry == Entry::None => {
            Guarantee::Missing(format!("slot {} holds nothing to go back to", facts.inactive()))
        }
        (_, true) if other.entry == Entry::Unseen => {
            Guarantee::NotSeenYet(format!("the boot image of slot {} could not be read", facts.inactive()))
        }
        (Some(obstacle), false) => Guarantee::Missing(obstacle.clone()),
        _ => Guarantee::Given,
    };
    // By the order of writes: an entry that is not whole is no program, and a partition table has two copies.
    Guarantees { verified, counted, atomic: Guarantee::Given, way_back }
}
