//! Brings a release into the slot that does not run.

use bascule_api::{NodeError, PackFallback};

use super::observe::uki_is_there;
use crate::boot::plan::{self, BOOT_MARGIN};
use crate::boot::{BootFile, Safeguard};
use crate::protocol::NoPlan;
use crate::{Effect, Facts, KnownRelease, ReleaseTarget, SlotContent, State};

/// A slot that nobody wants filled any more is nobody's half-written release.
pub(super) fn discard(facts: &Facts) -> Vec<Effect> {
    let half = matches!(facts.inactive_slot().content, SlotContent::Writing { .. });
    half.then(|| Effect::MarkEmpty(facts.inactive())).into_iter().collect()
}

/// Fills the slot, or reads what it holds already.
pub(super) fn stage(
    state: &State,
    facts: &Facts,
    known: &KnownRelease,
    fallback: PackFallback,
) -> Result<Vec<Effect>, NoPlan> {
    let target = ReleaseTarget::known(facts.inactive(), known);
    let slot = target.slot;
    let damaged = state.damaged.as_ref().is_some_and(|(at, root)| *at == slot && *root == known.root_hash);
    let holds_it = facts.inactive_slot().content.root_hash() == Some(&known.root_hash);
    let cleared = plan::clear_downloads(facts, known)?.map(Effect::Boot);
    let image = Effect::StageUki { target: target.clone(), partition: facts.boot.home() };
    let mut effects = Vec::new();
    if holds_it && !damaged {
        // The slot says that it is whole already: believe it after reading it.
        if !uki_is_there(facts, known) {
            effects.extend(cleared);
            effects.push(image);
        }
        effects.push(Effect::ReadBack(target));
        return Ok(effects);
    }
    // A boot image that this machine would not start must not cost it what the other slot holds, which may be its way back:
    // it is looked at before anything of that is taken away.
    let retired = Effect::Boot(plan::retire(facts)?);
    let looks_first = state.config.without != Some(Safeguard::ImageBeforeSlot);
    if has_room_beside(facts, known) && !holds_it && looks_first {
        effects.extend(cleared);
        effects.extend([image, retired]);
    } else {
        effects.extend(looks_first.then(|| Effect::PreviewUki(target.clone())));
        effects.extend(cleared);
        effects.extend([retired, image]);
    }
    effects.extend([
        Effect::MarkWriting(target.clone()),
        Effect::WriteSlot { target: target.clone(), fallback, from_running: state.running_changed.is_none() },
        Effect::ReadBack(target.clone()),
        Effect::Seal(target),
    ]);
    Ok(effects)
}

/// Bytes of an image for each byte of its blocks' digests: 32 for 4096.
const DIGESTS: u64 = 128;

/// Room is checked before the first write.
pub(super) fn fits(
    memory_limit: Option<u64>,
    facts: &Facts,
    manifest: &bascule_image::Manifest,
    known: &KnownRelease,
) -> Result<(), (NodeError, String)> {
    // While a slot is written or read back, the digests of all its blocks are in memory, next to everything else.
    let digests = manifest.image.size / DIGESTS;
    if let Some(limit) = memory_limit.filter(|limit| digests > limit / 2) {
        const MIB: u64 = 1 << 20;
        let message = format!(
            "the image of {} has {} MiB and needs {} MiB of memory for its digests; the agent may use {} MiB, which is enough \
             for images of up to {} MiB: raise its limit (MemoryMax= of the unit, limits.memory of the pod) to {}M",
            manifest.version,
            manifest.image.size.div_ceil(MIB),
            digests.div_ceil(MIB),
            limit / MIB,
            limit / 2 * DIGESTS / MIB,
            (digests * 2).div_ceil(MIB)
        );
        return Err((NodeError::Unsuitable, message));
    }
    let slot = facts.inactive_slot();
    let parts =
        [("image", manifest.image.size, &slot.data), ("verity tree", manifest.verity.hash_tree_size, &slot.verity)];
    for (what, needed, partition) in parts {
        if needed > partition.extent.length {
            let message = format!(
                "the {what} of {} needs {needed} bytes, partition {} has {}",
                manifest.version, partition.number, partition.extent.length
            );
            return Err((NodeError::Space, message));
        }
    }
    let room = room(facts);
    if !uki_is_there(facts, known) && known.uki_size.saturating_add(BOOT_MARGIN) > room {
        let message = format!(
            "the boot image of {} needs {} bytes and {BOOT_MARGIN} to spare; the boot partition has {room} free: remove \
             what does not belong there",
            manifest.version, known.uki_size
        );
        return Err((NodeError::Space, message));
    }
    Ok(())
}

/// Room for a boot image, counting what goes before it comes.
fn room(facts: &Facts) -> u64 {
    let home = facts.boot.home();
    let view = &facts.boot.view;
    let retired = view.slots.get(facts.inactive());
    let goes = retired.images.iter().chain(&retired.left_over).chain(&view.waiting).chain(&view.unfinished);
    let goes = goes.filter(|file| file.partition == home).map(|file| file.size);
    let space = facts.boot.inventory.space(home);
    goes.fold(space.free, u64::saturating_add).min(space.total)
}

/// Whether a boot image fits beside those that are there, once what earlier downloads left is gone.
fn has_room_beside(facts: &Facts, known: &KnownRelease) -> bool {
    let home = facts.boot.home();
    let view = &facts.boot.view;
    let waits = |file: &BootFile| plan::is_named_after(known, file);
    if view.unfinished.is_empty() && view.waiting.iter().any(waits) {
        return true;
    }
    let goes = view.waiting.iter().chain(&view.unfinished).filter(|file| file.partition == home);
    let space = facts.boot.inventory.space(home);
    let free = goes.map(|file| file.size).fold(space.free, u64::saturating_add).min(space.total);
    known.uki_size.saturating_add(BOOT_MARGIN) <= free
}
