//! What has to change on the machine so that it boots what it should, for both boot loaders.
//!
//! systemd-boot sorts entries without tries left to the end, then by sort key, then by version, newest first. A newer
//! release that is armed therefore goes first by itself. An older one would not, so the running entry is set aside
//! (`+0-0`) after the older one is in place: at each instant one of them is picked, and both bad is again the running one,
//! since that sorts first.
//!
//! With GPT attributes a change is one write of the partition table, so nothing lies between two states. The boot image of
//! a slot lies at `EFI/bascule/slot-<a|b>.efi`, for boot loaders that start what the partition's slot has there.

use bascule_api::{BootControlBackend, SlotName};
use bascule_names::entry_base;

use super::files::{start_of, waiting_name};
use super::name::EntryName;
use super::{
    Attributes, BootChange, BootFile, BootPartition, BootPurpose, BootStep, Expected, FileContent, PlacedImage, base,
    entry_of,
};
use crate::protocol::NoPlan;
use crate::{Entry, Facts, KnownRelease, ReleaseTarget};

/// Room that is left free on a boot partition, in bytes: directories grow.
pub(crate) const BOOT_MARGIN: u64 = 1 << 20;
/// More copies or names of one image than this are not made.
const MAX_NAMES: usize = 256;

type Planned = Result<BootStep, NoPlan>;

/// Name of a slot's boot image where the boot loader goes by GPT attributes.
pub(crate) const fn slot_file(slot: SlotName) -> &'static str {
    match slot {
        SlotName::A => "slot-a.efi",
        SlotName::B => "slot-b.efi",
    }
}

fn is_gptprio(facts: &Facts) -> bool {
    facts.boot.backend == BootControlBackend::GptPrio
}

/// What lies under the name of a slot's boot image where the boot loader goes by GPT attributes, if it is the agent's.
///
/// # Errors
/// It could not be read, or is somebody else's.
fn own_slot_file(facts: &Facts, slot: SlotName) -> Result<Option<&BootFile>, NoPlan> {
    let view = &facts.boot.view;
    let named = facts.boot.inventory.files.iter().find(|file| file.name.eq_ignore_ascii_case(slot_file(slot)));
    let Some(file) = named else { return Ok(None) };
    if matches!(file.content, FileContent::Unread(_)) {
        return Err(NoPlan::Unseen(unread(facts)));
    }
    // What a check of the file system emptied holds nothing that could be anybody's, and no clusters go with it.
    if file.size == 0 {
        return Ok(Some(file));
    }
    // Two slots of one release have the same image, which is on record for the running one.
    let slots = [&view.slots.a, &view.slots.b].into_iter();
    let mut own =
        slots.flat_map(|slot| slot.images.iter().chain(&slot.same_clusters).chain(&slot.left_over)).chain(&view.strays);
    if own.any(|own| (own.partition, &own.name) == (file.partition, &file.name)) {
        return Ok(Some(file));
    }
    Err(NoPlan::Refused(format!(
        "{} on the boot partition has the name of slot {slot}'s boot image, and is not this agent's: move it away",
        file.name
    )))
}

fn attributes(facts: &Facts, slot: SlotName) -> Attributes {
    Attributes::of(facts.slots.get(slot).data.attributes)
}

fn set(slot: SlotName, attributes: Attributes) -> BootChange {
    BootChange::Attributes(vec![(slot, attributes)])
}

fn step(facts: &Facts, purpose: BootPurpose, slot: SlotName, changes: Vec<BootChange>) -> BootStep {
    BootStep { purpose, slot, release: facts.root_hash_of(slot).cloned(), changes }
}

fn no_entry(facts: &Facts, slot: SlotName) -> NoPlan {
    if facts.slots.get(slot).entry == Entry::Unseen {
        return NoPlan::Unseen(unread(facts));
    }
    let foreign = &facts.boot.view.slots.get(slot).foreign;
    let names: Vec<_> = foreign.iter().map(|file| file.name.as_str()).collect();
    NoPlan::Refused(match names.as_slice() {
        [] => format!("slot {slot} has no boot image on the boot partitions that were looked at"),
        _ => match on_record(facts, slot) {
            Some(wanted) => format!(
                "slot {slot} is booted by {}, and this agent placed {wanted}: put that back, or remove what boots the slot",
                names.join(", ")
            ),
            None => format!(
                "slot {slot} is booted by {}, and none of these is on record as this agent's: leave the one that belongs \
                 there and remove the others, or put back the one that was removed",
                names.join(", ")
            ),
        },
    })
}

/// What is on record as a slot's boot image, in words.
fn on_record(facts: &Facts, slot: SlotName) -> Option<String> {
    let root_hash = facts.root_hash_of(slot)?;
    let record = facts.boot.view.records.iter().find(|record| record.root_hash == *root_hash)?;
    let home = record.partition.map(|home| format!(" on the {home}")).unwrap_or_default();
    Some(format!("{}.efi of {} bytes{home}", record.base, record.size))
}

/// What could not be read, in a sentence.
pub(crate) fn unread(facts: &Facts) -> String {
    let boot = &facts.boot;
    let view = &boot.view;
    let lists = [&view.unread, &boot.inventory.loader.unread, &view.unread_leftovers, &view.away];
    let list: Vec<_> = lists.into_iter().flatten().chain(&boot.inventory.unmounted).map(String::as_str).collect();
    let list = list.join("; ");
    format!("not everything on the boot partition could be read, so nothing is concluded from it: {list}")
}

/// What runs was booted by something. Without an entry that is seen, it lies on a partition that is not mounted (now), and so
/// may whatever else is looked for.
///
/// # Errors
/// The running slot has no entry, or none that could be read.
pub(crate) fn running_is_seen(facts: &Facts) -> Result<(), NoPlan> {
    match facts.booted_slot().entry {
        Entry::Unseen => Err(NoPlan::Unseen(unread(facts))),
        Entry::None => Err(NoPlan::Unseen(format!(
            "slot {} runs, and its boot image is on none of the boot partitions that are mounted: {}, so nothing is concluded \
             from the others; mount it",
            facts.booted,
            facts
                .boot
                .inventory
                .unmounted
                .as_ref()
                .or(facts.boot.inventory.unseen.first())
                .map_or("one may be missing", String::as_str)
        ))),
        _ => Ok(()),
    }
}

fn image(facts: &Facts, slot: SlotName) -> Result<&BootFile, NoPlan> {
    facts.boot.view.slots.get(slot).images.first().ok_or_else(|| no_entry(facts, slot))
}

/// Files of the agent that may be removed. What could not be read stays, and so does what lies on the clusters of
/// something that stays.
fn removable<'f>(
    facts: &'f Facts,
    slot: Option<SlotName>,
    keep: Option<&KnownRelease>,
) -> impl Iterator<Item = &'f BootFile> {
    let view = &facts.boot.view;
    let of_slot = slot.map(|slot| view.slots.get(slot));
    let entries = of_slot.into_iter().flat_map(|images| images.images.iter().chain(&images.same_clusters));
    let kept = keep.map(|known| waiting_name(&known.uki_digest));
    // Beside an unfinished file also one that reads well goes: power may have been lost within the rename from one to the
    // other, and then both are on one chain of clusters, which the removal of either frees.
    let whole = view.unfinished.is_empty();
    let waiting = view.waiting.iter().filter(move |file| {
        let kept = kept.as_ref().is_some_and(|kept| *kept == file.name);
        !(kept && whole && matches!(file.content, FileContent::Image(_)))
    });
    let running = facts.boot.view.slots.get(facts.booted);
    let needed = move |file: &BootFile| {
        running.images.iter().chain(&running.same_clusters).any(|own| {
            let same_file = (own.partition, &own.name) == (file.partition, &file.name);
            let same_bytes = own.digest.is_some() && own.digest == file.digest;
            same_file || same_bytes
        }) || file.content.root_hash() == Some(&facts.root_hash) && entry_of(file) != Entry::None
    };
    entries
        .chain(waiting)
        .chain(&view.unfinished)
        .chain(&view.strays)
        .chain(&view.slots.get(facts.inactive()).left_over)
        .filter(|file| !matches!(file.content, FileContent::Unread(_)))
        .filter(move |file| !needed(file))
}

/// Removes what the agent placed and what boots nothing any more; `None` if there is nothing.
pub(crate) fn clear_away(facts: &Facts) -> Option<BootStep> {
    let strays: Vec<_> = facts.boot.view.strays.iter().collect();
    let changes: Vec<_> =
        removable(facts, None, None).filter(|file| strays.contains(file)).map(BootChange::remove).collect();
    let slot = facts.inactive();
    (!changes.is_empty()).then_some(BootStep { purpose: BootPurpose::ClearAway, slot, release: None, changes })
}

/// Takes away the entry of the slot that does not run. What is left of earlier downloads and removals is another step's
/// ([`clear_downloads`]), which goes first.
pub(crate) fn retire(facts: &Facts) -> Planned {
    let slot = facts.inactive();
    let mut changes = Vec::new();
    // Where the running release's image went, the other one's may be, and boot a slot that does not hold it any more.
    let on_record = facts.boot.view.records.iter().any(|record| record.root_hash == facts.root_hash);
    if on_record && facts.booted_slot().entry == Entry::None {
        running_is_seen(facts)?;
    }
    if is_gptprio(facts) && attributes(facts, slot) != Attributes::default() {
        changes.push(set(slot, Attributes::default()));
    }
    // Where nobody could look may be what boots the slot: look again first.
    if !facts.boot.inventory.unseen.is_empty() {
        return Err(NoPlan::Unseen(unread(facts)));
    }
    // A file that is ours and could not be read may be what must not stay, too.
    let view = &facts.boot.view;
    let own = view.slots.get(slot);
    let mut own = own.images.iter().chain(&own.same_clusters);
    if !view.unread_leftovers.is_empty()
        || own.any(|file| matches!(file.content, FileContent::Unread(_)))
        || facts.slots.get(slot).entry == Entry::Unseen
    {
        return Err(NoPlan::Unseen(unread(facts)));
    }
    let is_left = |file: &&BootFile| lies_about(facts).any(|left| left == *file);
    let entries = removable(facts, Some(slot), None).filter(|file| !is_left(file));
    changes.extend(entries.map(BootChange::remove));
    if is_gptprio(facts) {
        let own = own_slot_file(facts, slot)?.filter(|file| !is_left(file));
        let change = own.map(BootChange::remove).filter(|change| !changes.contains(change));
        changes.extend(change);
    }
    Ok(BootStep { purpose: BootPurpose::Retire, slot, release: None, changes })
}

/// What earlier downloads and removals left.
fn lies_about(facts: &Facts) -> impl Iterator<Item = &BootFile> {
    let view = &facts.boot.view;
    let left_over = &view.slots.get(facts.inactive()).left_over;
    view.waiting.iter().chain(&view.unfinished).chain(&view.strays).chain(left_over)
}

/// Removes what earlier downloads left, but for the boot image of `keep`, and what is left of a removal that broke off: its
/// clusters may be free, and must not become those of what is laid down next.
pub(crate) fn clear_downloads(facts: &Facts, keep: &KnownRelease) -> Result<Option<BootStep>, NoPlan> {
    let view = &facts.boot.view;
    if !view.unread_leftovers.is_empty() {
        return Err(NoPlan::Unseen(unread(facts)));
    }
    let changes: Vec<_> = removable(facts, None, Some(keep))
        .filter(|file| lies_about(facts).any(|left| left == *file))
        .map(BootChange::remove)
        .collect();
    let slot = facts.inactive();
    Ok((!changes.is_empty()).then_some(BootStep { purpose: BootPurpose::ClearDownloads, slot, release: None, changes }))
}

/// An armed entry: the changes, and what is to be on record of it before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arming {
    pub(crate) step: BootStep,
    pub(crate) placed: Option<PlacedImage>,
}

/// The boot image that waits for a target.
pub(crate) fn waiting<'f>(facts: &'f Facts, target: &ReleaseTarget) -> Option<&'f BootFile> {
    let (digest, size) = target.uki.as_ref()?;
    let name = waiting_name(digest);
    facts.boot.view.waiting.iter().find(|file| file.name == name && file.size == *size)
}

/// Installs the entry of the slot that does not run, with its counter.
pub(crate) fn arm(facts: &Facts, target: &ReleaseTarget, tries: u32) -> Result<Arming, NoPlan> {
    let slot = target.slot;
    if is_gptprio(facts) {
        let mut changes = Vec::new();
        let in_place = own_slot_file(facts, slot)?;
        if let Some(waits) = waiting(facts, target) {
            changes.extend(in_place.map(BootChange::remove));
            changes.extend(BootChange::rename(waits, slot_file(slot).to_owned()));
        } else if target.uki.is_some()
            && in_place.is_none_or(|file| file.size == 0 || lies_about(facts).any(|left| left == file))
        {
            return Err(no_entry(facts, slot));
        }
        let (kept, armed) = Attributes::armed_above(attributes(facts, facts.booted), tries);
        changes.push(BootChange::Attributes(vec![(facts.booted, kept), (slot, armed)]));
        return Ok(Arming { step: step(facts, BootPurpose::Arm, slot, changes), placed: None });
    }
    let (mut changes, placed): (Vec<BootChange>, Option<PlacedImage>) =
        match facts.boot.view.slots.get(slot).images.first() {
            Some(image) => {
                let name = free_name(facts, image, |base| EntryName::counted(base, tries, 0));
                // One that failed here and can be fetched again is put in place like a new one; what once ran here is the way
                // back, and is not put at risk.
                let change = match entry_of(image) {
                    Entry::Bad { done } if done != Some(0) && target.uki.is_some() => Some(BootChange::PutInPlace {
                        partition: image.partition,
                        from: image.name.clone(),
                        to: name,
                        expect: Expected::of(image),
                    }),
                    _ => BootChange::rename(image, name),
                };
                (change.into_iter().collect(), None)
            }
            None => {
                let waits = waiting(facts, target).ok_or_else(|| no_entry(facts, slot))?;
                let base = base_for(facts, target, waits.partition)?;
                let change = BootChange::PutInPlace {
                    partition: waits.partition,
                    from: waits.name.clone(),
                    to: EntryName::counted(&base, tries, 0),
                    expect: Expected::of(waits),
                };
                let digest = target.uki.as_ref().map(|(digest, _)| digest.clone());
                let (root_hash, partition) = (target.root_hash.clone(), Some(waits.partition));
                let (size, start) = (waits.size, waits.start.clone());
                let record = PlacedImage { root_hash, partition, base, size, digest, start };
                // The boot loader might take what is left of an earlier one.
                let left_over = facts.boot.view.slots.get(slot).left_over.iter().map(BootChange::remove);
                (left_over.chain([change]).collect(), Some(record))
            }
        };
    if facts.boot.running_sorts_first {
        changes.extend(aside(facts, image(facts, facts.booted)?));
    }
    Ok(Arming { step: step(facts, BootPurpose::Arm, slot, changes), placed })
}

/// A base name for a new entry that no other file has.
fn base_for(facts: &Facts, target: &ReleaseTarget, partition: BootPartition) -> Result<String, NoPlan> {
    let plain = entry_base(facts.product.as_str(), target.version.as_str());
    let taken = facts
        .boot
        .inventory
        .files
        .iter()
        .any(|file| file.partition == partition && base(file).eq_ignore_ascii_case(&plain));
    if !taken {
        return Ok(plain);
    }
    // The same version with another content: the root hash tells them apart.
    let start: String = target.root_hash.as_str().chars().take(8).collect();
    free_base(facts, partition, &format!("{plain}_{start}"))
}

/// `base`, or `base` with a number, so that no entry has it, with or without a counter.
fn free_base(facts: &Facts, partition: BootPartition, base: &str) -> Result<String, NoPlan> {
    let files = move || facts.boot.inventory.files.iter().filter(move |file| file.partition == partition);
    let free = |wanted: &String| !files().any(|file| self::base(file).eq_ignore_ascii_case(wanted));
    let numbered = (2..=MAX_NAMES).map(|number| format!("{base}_{number}"));
    let found = std::iter::once(base.to_owned()).chain(numbered).find(free);
    found.ok_or_else(|| NoPlan::Refused(format!("there are {MAX_NAMES} boot images called {base}: remove some")))
}

/// The name that an image gets, made of its base; of another base where a file has that name already. Power lost within that very rename
/// leaves both names on one chain of clusters, and a check of the file system then empties one of them (`fsck.vfat -a`): what is in the
/// way holds nothing, and is not known to be the agent's.
fn free_name(facts: &Facts, image: &BootFile, named: impl Fn(&str) -> String) -> String {
    let own = base(image);
    let plain = named(&own);
    let is_taken = facts.boot.inventory.files.iter().any(|file| {
        file.partition == image.partition && file.name != image.name && file.name.eq_ignore_ascii_case(&plain)
    });
    let another = is_taken.then(|| free_base(facts, image.partition, &own).ok()).flatten();
    another.map_or(plain, |base| named(&base))
}

/// What of such a rename lies under a name of the agent's own that no boot loader looks at: as it is empty, no clusters go with it.
fn emptied<'f>(facts: &'f Facts, partition: BootPartition, name: &str) -> Option<&'f BootFile> {
    let mut files = facts.boot.inventory.files.iter();
    files.find(|file| file.partition == partition && file.name.eq_ignore_ascii_case(name) && file.size == 0)
}

/// Whether a file has the name that the running trial's entry gets when it is counted down: power was lost within that rename, and a
/// check of the file system emptied one of the two names.
pub(crate) fn next_name_is_taken(facts: &Facts) -> bool {
    let entry = facts.boot.view.slots.get(facts.booted).images.first().filter(|_| !is_gptprio(facts));
    let Some((image, name)) = entry.and_then(|image| Some((image, EntryName::parse(&image.name)?))) else {
        return false;
    };
    let Some(counters) = name.counters else { return false };
    let done = counters.done.unwrap_or(0).saturating_add(1);
    let next = EntryName::counted(&name.base, counters.left.saturating_sub(1), done);
    let mut files = facts.boot.inventory.files.iter();
    files.any(|file| file.partition == image.partition && file.name.eq_ignore_ascii_case(&next))
}

/// Gives the running trial's entry its counter back, with `left` tries after this boot.
pub(crate) fn recount(facts: &Facts, left: u32) -> Planned {
    let slot = facts.booted;
    if is_gptprio(facts) {
        let bits = Attributes { tries: u64::from(left), successful: false, ..attributes(facts, slot) };
        return Ok(step(facts, BootPurpose::Recount, slot, vec![set(slot, bits)]));
    }
    let image = image(facts, slot)?;
    // What is left of its name is only the short one; the long one is made anew.
    let base = free_base(facts, image.partition, &entry_base(facts.product.as_str(), facts.version.as_str()))?;
    let change = BootChange::rename(image, EntryName::counted(&base, left, 1));
    Ok(step(facts, BootPurpose::Recount, slot, change.into_iter().collect()))
}

/// Takes back what was armed and not booted. What is not there is taken back already.
pub(crate) fn disarm(facts: &Facts, target: &ReleaseTarget) -> Planned {
    let slot = target.slot;
    if slot == facts.booted {
        return Err(NoPlan::Refused("the running release can't be disarmed".to_owned()));
    }
    if is_gptprio(facts) {
        return Ok(step(facts, BootPurpose::Disarm, slot, vec![set(slot, Attributes::default())]));
    }
    if facts.slots.get(slot).entry == Entry::Unseen {
        return Err(NoPlan::Unseen(unread(facts)));
    }
    let found = facts.boot.view.slots.get(slot).images.first();
    let mut changes = Vec::new();
    if let Some(image) = found {
        let record = facts.boot.view.records.iter().find(|record| record.root_hash == target.root_hash);
        let digest = target.uki.as_ref().map(|(digest, _)| digest).or_else(|| record?.digest.as_ref());
        match digest {
            Some(digest) => {
                let name = waiting_name(digest);
                changes.extend(emptied(facts, image.partition, &name).map(BootChange::remove));
                changes.extend(BootChange::rename(image, name));
            }
            // The installer's: nobody knows its digest, and it can't be fetched again. It stays, as the last choice.
            None => changes.extend(aside(facts, image)),
        }
    }
    Ok(step(facts, BootPurpose::Disarm, slot, changes))
}

/// Makes a slot's entry permanent.
pub(crate) fn permanent(facts: &Facts, slot: SlotName, purpose: BootPurpose) -> Planned {
    if is_gptprio(facts) {
        return Ok(step(facts, purpose, slot, vec![set(slot, attributes(facts, slot).permanent())]));
    }
    let image = image(facts, slot)?;
    let change = BootChange::rename(image, free_name(facts, image, EntryName::good));
    Ok(step(facts, purpose, slot, change.into_iter().collect()))
}

/// Makes a slot that failed the last choice.
pub(crate) fn mark_bad(facts: &Facts, slot: SlotName) -> Planned {
    if is_gptprio(facts) {
        return Ok(step(facts, BootPurpose::MarkBad, slot, vec![set(slot, Attributes::default())]));
    }
    image(facts, slot)?;
    let mut changes: Vec<BootChange> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for file in &facts.boot.view.slots.get(slot).images {
        let Some(name) = EntryName::parse(&file.name) else { continue };
        // At least one try, so that it is not taken for an entry that was only set aside. Of a doubled one each has its own.
        let done = name.counters.and_then(|counters| counters.done).unwrap_or(0).max(1);
        let taken = |wanted: &String| {
            let other = |found: &BootFile| found.name == *wanted && found.name != file.name;
            names.contains(wanted) || facts.boot.inventory.files.iter().any(other)
        };
        let free = (done..).map(|done| EntryName::counted(&name.base, 0, done)).find(|name| !taken(name));
        let Some(free) = free else { continue };
        names.push(free.clone());
        changes.extend(BootChange::rename(file, free));
    }
    Ok(step(facts, BootPurpose::MarkBad, slot, changes))
}

fn aside(facts: &Facts, image: &BootFile) -> Option<BootChange> {
    match entry_of(image) {
        Entry::Bad { .. } => None,
        _ => BootChange::rename(image, free_name(facts, image, |base| EntryName::counted(base, 0, 0))),
    }
}

/// Sets a permanent entry aside: picked only if there is nothing else.
pub(crate) fn set_aside(facts: &Facts, slot: SlotName) -> Planned {
    if is_gptprio(facts) {
        let bits = Attributes { priority: 1, ..attributes(facts, slot) };
        return Ok(step(facts, BootPurpose::SetAside, slot, vec![set(slot, bits)]));
    }
    let change = aside(facts, image(facts, slot)?);
    Ok(step(facts, BootPurpose::SetAside, slot, change.into_iter().collect()))
}

/// Brings the entry of a slot back to one file. Power was lost within a rename: all names may share one chain of clusters,
/// and removing any would free what the others need. So the content is copied, and is an entry, before all of them go.
///
/// Waits while there is no room for the copy.
pub(crate) fn untangle(facts: &Facts, slot: SlotName) -> Option<BootStep> {
    let found = facts.boot.view.slots.get(slot);
    let keep = found.images.first()?;
    let readable = |file: &BootFile| !matches!(file.content, FileContent::Unread(_));
    // Without a record nobody would know the copy again, whose name is another.
    let on_record = facts.boot.view.records.iter().any(|record| Some(&record.root_hash) == facts.root_hash_of(slot));
    if !on_record || !facts.boot.view.unread_leftovers.is_empty() {
        return None;
    }
    if !found.images.iter().chain(&found.same_clusters).all(readable) {
        return None;
    }
    let space = facts.boot.inventory.space(keep.partition);
    if space.free < keep.size.saturating_add(BOOT_MARGIN / 4) {
        return None;
    }
    // Not a copy that an earlier try left: that one may be on the same chain.
    let files = &facts.boot.inventory.files;
    let free = |name: &String| !files.iter().any(|file| file.name.eq_ignore_ascii_case(name));
    let mut names = (1..=MAX_NAMES).map(|number| format!("bascule-copy{number}.part")).filter(free);
    let copy = names.next()?;
    if is_gptprio(facts) {
        return untangle_slot_file(facts, slot, copy, names.next()?);
    }
    let base = free_base(facts, keep.partition, &base(keep)).ok()?;
    let installed = match EntryName::parse(&keep.name)?.counters {
        None => EntryName::good(&base),
        Some(counters) => EntryName::counted(&base, counters.left, counters.done.unwrap_or(0)),
    };
    let expect = Expected::of(keep);
    // Under the name of what is not finished nobody reads it as an image; that it is a true copy was seen when it was made.
    let unfinished = Expected { content: FileContent::NotAnImage, digest: None, ..expect.clone() };
    let partition = keep.partition;
    let mut changes = vec![
        BootChange::Copy { partition, from: keep.name.clone(), to: copy.clone(), expect },
        BootChange::Rename { partition, from: copy, to: installed, expect: unfinished },
    ];
    // The first last: at no moment is the slot without an entry.
    let others = found.images.iter().skip(1).chain(&found.same_clusters);
    changes.extend(others.chain([keep]).map(BootChange::remove));
    Some(step(facts, BootPurpose::Untangle, slot, changes))
}

/// The same where the boot loader goes by GPT attributes. There the image has one name and no other will do, so that it is gone for a
/// moment: only while the attributes of its slot let nothing be booted from it. Power lost meanwhile costs another download at most.
/// Clusters are freed last, as above: after that Linux may find the file system damaged, and write nothing more to it.
fn untangle_slot_file(facts: &Facts, slot: SlotName, copy: String, aside: String) -> Option<BootStep> {
    if slot == facts.booted || attributes(facts, slot) != Attributes::default() {
        return None;
    }
    let found = facts.boot.view.slots.get(slot);
    let keep = found.images.iter().find(|file| file.name.eq_ignore_ascii_case(slot_file(slot)))?;
    let others = found.images.iter().filter(|file| file.name != keep.name).chain(&found.same_clusters);
    let (partition, name, expect) = (keep.partition, slot_file(slot).to_owned(), Expected::of(keep));
    // Nobody reads either as an image under such a name.
    let set_aside = Expected { content: FileContent::NotAnImage, ..expect.clone() };
    let unfinished = Expected { digest: None, ..set_aside.clone() };
    let mut changes = vec![
        BootChange::Copy { partition, from: keep.name.clone(), to: copy.clone(), expect: expect.clone() },
        BootChange::Rename { partition, from: keep.name.clone(), to: aside.clone(), expect },
        BootChange::Rename { partition, from: copy, to: name, expect: unfinished },
    ];
    changes.extend(others.map(BootChange::remove));
    changes.push(BootChange::Remove { partition, file: aside, expect: set_aside });
    Some(step(facts, BootPurpose::Untangle, slot, changes))
}

/// Whether power may have been lost within the rename that gave a waiting image its name: then it lies on one chain of clusters with
/// what is not finished beside it, and what is made of it later would, too.
pub(crate) fn waits_beside_its_other_name(facts: &Facts, waits: &BootFile) -> bool {
    let mut unfinished = facts.boot.view.unfinished.iter();
    unfinished.any(|other| (other.partition, other.size) == (waits.partition, waits.size))
}

/// Whether the digest of a target's boot image begins like this.
pub(crate) fn is_named_after(known: &KnownRelease, file: &BootFile) -> bool {
    super::files::parse_waiting(&file.name).is_some_and(|start| start == start_of(&known.uki_digest))
        && file.size == known.uki_size
}
