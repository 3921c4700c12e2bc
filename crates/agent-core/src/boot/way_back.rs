//! No arming without a way back: before anything is armed, the boot loader's own rules are applied to what lies on the boot
//! partitions. It must take the armed entry first, and the running release again once the tries are used up.

use bascule_api::{BootControlBackend, Counting};
use bascule_names::entry_base;

use super::loader::{LoaderEntry, compare, first, pin_in_the_way};
use super::name::EntryName;
use super::plan::unread;
use super::{Attributes, BootFile, Pin, base};
use crate::{Entry, Facts, SlotContent};

/// LoaderFeatures: the boot loader counts boots (systemd, "The Boot Loader Interface", bit 4).
const FEATURE_BOOT_COUNTING: u64 = 1 << 4;
/// A version that sorts after all others, for a release that is not known yet.
const SOME_NEWER: &str = "999999999";
/// Tries of an entry that is imagined.
const TRIES: u32 = 3;

/// Whether the boot loader puts the running entry before the other slot's, counters apart.
pub(crate) fn running_sorts_first(facts: &Facts) -> bool {
    if facts.boot.backend == BootControlBackend::GptPrio {
        return false;
    }
    let SlotContent::Release { version, .. } = &facts.inactive_slot().content else { return false };
    let running = imagined(facts, facts.boot.view.slots.get(facts.booted).images.first(), facts.version.as_str(), None);
    let other = imagined(facts, other_image(facts), version.as_str(), None);
    running.zip(other).is_some_and(|(running, other)| compare(&running, &other).is_lt())
}

/// The other slot's image: its entry, or what waits to become it.
fn other_image(facts: &Facts) -> Option<&BootFile> {
    let root_hash = facts.inactive_slot().content.root_hash()?;
    let view = &facts.boot.view;
    let waits = || view.waiting.iter().find(|file| file.content.root_hash() == Some(root_hash));
    view.slots.get(facts.inactive()).images.first().or_else(waits)
}

/// An entry as it would be called with these counters.
fn imagined(
    facts: &Facts,
    file: Option<&BootFile>,
    version: &str,
    counters: Option<(u32, u32)>,
) -> Option<LoaderEntry> {
    let base = match file.map(base).filter(|base| !base.is_empty()) {
        Some(base) => base,
        None => entry_base(facts.product.as_str(), version),
    };
    let name = match counters {
        None => EntryName::good(&base),
        Some((left, done)) => EntryName::counted(&base, left, done),
    };
    let image = file.and_then(|file| file.content.image());
    let sort_key = image.map_or_else(|| Some(facts.product.to_string()), |image| image.sort_key.clone());
    let version = image.map_or_else(|| Some(version.to_owned()), |image| image.version.clone());
    LoaderEntry::named(&name, sort_key, version)
}

/// What takes a pin away.
fn undo(pin: &Pin) -> &'static str {
    match pin.place {
        "LoaderEntryOneShot" => "bootctl set-oneshot \"\", or restart the node once",
        "LoaderEntryDefault" => "bootctl set-default \"\"",
        "LoaderEntryPreferred" => "bootctl set-preferred \"\"",
        _ => "the line in loader.conf",
    }
}

/// Why arming the other slot would leave no way back, or would not be taken up; `None` if all is well.
///
/// Without a release in the other slot, a newer one is imagined there.
pub(crate) fn obstacle(facts: &Facts) -> Option<String> {
    if facts.boot.backend == BootControlBackend::GptPrio {
        return None;
    }
    let inventory = &facts.boot.inventory;
    let view = &facts.boot.view;
    let pins = |ids: &[String], armed: &str| {
        let pin = pin_in_the_way(&inventory.loader.pins, ids, armed)?;
        let over = if pin.minds_tries { "" } else { " and over their counters" };
        Some(format!(
            "{} pins {}, which wins over the order of entries{over}: remove it ({})",
            pin.place,
            pin.pattern,
            undo(pin)
        ))
    };
    if let Some(why) = inventory.loader.unread.first() {
        return Some(format!("what decides about the next boot could not be read: {why}"));
    }
    if !inventory.unseen.is_empty() {
        return Some(unread(facts));
    }
    let looked: Vec<_> = inventory.partitions.iter().filter_map(|facts| facts.uuid).collect();
    if let Some(device) = inventory.loader.device
        && looked.len() == inventory.partitions.len()
        && !looked.contains(&device)
    {
        return Some(format!(
            "the boot loader came from partition {device}, which is none of those that are mounted here: what is written \
             there would not be booted; mount the right one, or name it in boot.partition"
        ));
    }
    // That its PARTUUID could not be read was said above.
    if inventory.loader.device.is_some()
        && let Some(found) = inventory.partitions.iter().find(|facts| facts.uuid.is_none())
    {
        return Some(format!(
            "what is mounted as {} is no partition of a disk (it may be a mirror: software RAID, or a folder that nothing is mounted \
             at), and the boot loader writes its count of tries to the ESP of one disk, where nobody here sees it: mount that one",
            found.partition
        ));
    }
    if let Some(unmounted) = &inventory.unmounted {
        return Some(format!("{unmounted}: nobody here sees which entries the boot loader finds there"));
    }
    if !view.unread.is_empty() {
        return Some(unread(facts));
    }
    let is_home = |partition| view.home.is_none_or(|home| home == partition);
    if let Some(found) = inventory.partitions.iter().find(|found| found.read_only && is_home(found.partition)) {
        return Some(format!(
            "the {} is mounted read-only, so that nothing can be armed or committed there: if the kernel made it so, its file \
             system is damaged (dmesg says why): check it with fsck.vfat, and mount it writable",
            found.partition
        ));
    }
    let running_file = view.slots.get(facts.booted).images.first();
    let Some(running_file) = running_file else {
        let foreign: Vec<_> = view.slots.get(facts.booted).foreign.iter().map(|file| file.name.as_str()).collect();
        return Some(match foreign.as_slice() {
            [] => "no unified kernel image on the boot partitions boots what runs (it may be an entry of type #1, or lie on a \
                   partition that is not mounted): there would be no way back"
                .to_owned(),
            _ => format!(
                "what runs is booted by {}, and none of these is on record as this agent's: there would be no way back",
                foreign.join(", ")
            ),
        });
    };
    let version = match &facts.inactive_slot().content {
        SlotContent::Release { version, .. } => version.as_str(),
        _ => SOME_NEWER,
    };
    let other = other_image(facts);
    let armed = imagined(facts, other, version, Some((TRIES, 0)))?;
    let used_up = imagined(facts, other, version, Some((0, TRIES)))?;
    let kept = imagined(facts, Some(running_file), facts.version.as_str(), None)?;
    let running = match compare(&kept, &imagined(facts, other, version, None)?).is_lt() {
        true => imagined(facts, Some(running_file), facts.version.as_str(), Some((0, 0)))?,
        false => kept.clone(),
    };
    if let Some(why) = pins(&[kept.id, running.id.clone(), armed.id.clone(), used_up.id.clone()], &armed.id) {
        return Some(why);
    }
    let others = view.others(inventory);
    // Of our own images the further profiles count beside the first, with its counters.
    let with_profiles = |entry: &LoaderEntry, file: Option<&BootFile>| {
        let more = file.and_then(|file| file.content.image()).map(|image| entry.profiles(&image.profiles));
        std::iter::once(entry.clone()).chain(more.unwrap_or_default())
    };
    let would = |armed: &LoaderEntry, wanted: &LoaderEntry, when: &str| {
        let mut entries = others.clone();
        entries.extend(with_profiles(&running, Some(running_file)).chain(with_profiles(armed, other)));
        let taken = first(&entries).filter(|taken| *taken != wanted)?;
        let is_own = taken.profile.is_some() && [&running, armed].into_iter().any(|own| own.file == taken.file);
        let what = match (is_own, taken.is_whole) {
            (true, _) => "a further profile of a release's own image: publish one whose boot image has one profile",
            (false, true) => "which is not this agent's: remove it, or give it another sort key",
            (false, false) => "which is not this agent's, and no whole image, so that it may not start: remove it",
        };
        Some(format!("{when}, the boot loader would take {}, {what}", taken.in_words()))
    };
    would(&armed, &armed, "with a release armed in the other slot")
        .or_else(|| would(&used_up, &running, "after the tries of an armed release"))
}

/// Whether the boot loader, by its own order, would take the other slot's entry as everything lies there now.
pub(crate) fn would_take_the_other(facts: &Facts) -> bool {
    let other = facts.inactive();
    if facts.boot.backend == BootControlBackend::GptPrio {
        let attributes = |slot| Attributes::of(facts.slots.get(slot).data.attributes);
        return attributes(other).tries > 0 && attributes(other).priority > attributes(facts.booted).priority;
    }
    let view = &facts.boot.view;
    let mut entries = view.others(&facts.boot.inventory);
    let own = [other, facts.booted].map(|slot| view.slots.get(slot).images.iter().flat_map(LoaderEntry::of));
    entries.extend(own.into_iter().flatten());
    let taken = first(&entries).map(|entry| entry.file.clone());
    let wanted = view.slots.get(other).images.first().map(|image| image.name.to_ascii_lowercase());
    taken.is_some() && taken == wanted
}

/// What this boot alone says of the boot loader's counting, and why if it is not known to work.
pub(crate) fn counting(facts: &Facts) -> (Counting, Option<String>) {
    let broken = |message: &str| (Counting::Broken, Some(message.to_owned()));
    if facts.boot.backend == BootControlBackend::GptPrio {
        return (Counting::Unknown, Some("the first trial shows whether the boot loader counts".to_owned()));
    }
    let loader = &facts.boot.inventory.loader;
    if let Some(why) = loader.unread.first() {
        return (Counting::Unknown, Some(format!("what the boot loader says of itself could not be read: {why}")));
    }
    let Some(features) = loader.features else {
        return broken("the boot loader left no LoaderFeatures: this boot was not by systemd-boot");
    };
    if features & FEATURE_BOOT_COUNTING == 0 {
        return broken("the boot loader says that it does not count boots (LoaderFeatures, bit 4)");
    }
    match facts.booted_slot().entry {
        Entry::Trying { done: None | Some(0), .. } if !loader.counted => {
            broken("the boot loader booted an entry with a counter and did not count it down")
        }
        _ => (Counting::Works, None),
    }
}
