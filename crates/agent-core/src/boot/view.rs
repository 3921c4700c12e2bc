//! Whose file is whose: what the agent placed, what boots which slot, and what is nobody's business here.
//!
//! A release is known by its root hash. A file is the agent's when the journal has it on record ([`PlacedImage`]), when it
//! equals byte for byte what is on record, or when its name is one that the agent gives to what is not finished
//! (`bascule-…`). The one image that boots a slot's release and that no record speaks of was placed by the installer, and
//! is taken over. Everything else is reported and left alone, whatever it says of itself.

use bascule_api::{Product, RootHash, SlotName, Version};
use bascule_names::entry_base;

use super::files::{is_unfinished, parse_waiting};
use super::loader::LoaderEntry;
use super::name::{Counters, EntryName};
use super::records::away_in_words;
use super::{BootFile, BootInventory, BootPartition, FileContent, ImageFacts, PlacedImage, Safeguard, TextEntry};
use crate::{Entry, PerSlot};

/// What is on the boot partitions for one slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotImages {
    /// The agent's images that boot it; the first is the entry.
    pub images: Vec<BootFile>,
    /// Files of the agent on the same clusters as the entry: power was lost within a rename.
    pub same_clusters: Vec<BootFile>,
    /// What is left of the agent's image, whose removal power loss broke off. It goes when the slot is given up.
    pub left_over: Vec<BootFile>,
    /// Images that boot it, too, and are not the agent's.
    pub foreign: Vec<BootFile>,
}

/// What an inventory means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootView {
    /// For each slot.
    pub slots: PerSlot<SlotImages>,
    /// What the agent placed and what boots nothing any more.
    pub strays: Vec<BootFile>,
    /// Boot images that wait under a name that no boot loader looks at.
    pub waiting: Vec<BootFile>,
    /// What the agent did not finish.
    pub unfinished: Vec<BootFile>,
    /// Entries of this product that boot neither slot and are not the agent's.
    pub foreign: Vec<String>,
    /// Files that might be an entry and could not be read, with the reason.
    pub unread: Vec<String>,
    /// What the agent laid down and could not read again, with the reason. It boots nothing, and is not removed.
    pub unread_leftovers: Vec<String>,
    /// What was placed on a partition that is not there to be looked at, in words.
    pub away: Vec<String>,
    /// Where new boot images go: to the entry that runs.
    pub home: Option<BootPartition>,
    /// The records as they should be.
    pub records: Vec<PlacedImage>,
}

/// What the files are judged by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judge<'a> {
    pub(crate) inventory: &'a BootInventory,
    pub(crate) records: &'a [PlacedImage],
    pub(crate) product: &'a Product,
    pub(crate) booted: SlotName,
    /// What the slots hold.
    pub(crate) releases: PerSlot<Option<(&'a RootHash, &'a Version)>>,
    /// A safeguard that is left out, to see that the tests notice.
    pub(crate) without: Option<Safeguard>,
}

/// What the name of an entry says.
pub(crate) fn entry_of(file: &BootFile) -> Entry {
    match EntryName::parse(&file.name).map(|name| name.counters) {
        Some(None) => Entry::Good,
        Some(Some(Counters { left: 0, done })) => Entry::Bad { done },
        Some(Some(Counters { left, done })) => Entry::Trying { left, done },
        None => Entry::None,
    }
}

/// The base of an entry's name.
pub(crate) fn base(file: &BootFile) -> String {
    EntryName::parse(&file.name).map(|name| name.base).unwrap_or_default()
}

fn same_bytes(a: &BootFile, b: &BootFile) -> bool {
    a.size == b.size && a.digest.is_some() && a.digest == b.digest
}

impl Judge<'_> {
    pub(super) fn holds(&self, safeguard: Safeguard) -> bool {
        self.without != Some(safeguard)
    }

    /// The root hash that a file boots: by its own word, or by the record where it could not be read.
    fn claims(&self, file: &BootFile) -> Option<RootHash> {
        match &file.content {
            FileContent::Image(image) => image.root_hash.clone(),
            FileContent::Unread(_) => self.record_of(file).map(|record| record.root_hash.clone()),
            FileContent::ShownOnly(_) | FileContent::NotAnImage | FileContent::Placeholder => None,
        }
    }

    pub(super) fn releases_held(&self) -> impl Iterator<Item = &RootHash> {
        [SlotName::A, SlotName::B]
            .into_iter()
            .filter_map(|slot| self.releases.get(slot).map(|(root_hash, _)| root_hash))
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &BootFile> {
        self.inventory.files.iter().filter(|file| EntryName::parse(&file.name).is_some())
    }

    /// Entries that might boot anything, because nobody could read them and no record speaks of them.
    pub(super) fn unknown(&self) -> impl Iterator<Item = &BootFile> {
        self.entries().filter(|file| {
            matches!(file.content, FileContent::Unread(_))
                && self.record_of(file).is_none()
                && self.holds(Safeguard::UnreadIsNotAbsent)
        })
    }

    /// The images of a release that are the agent's, the entry first, and the others.
    fn images(&self, slot: SlotName, root_hash: &RootHash, version: &Version) -> (Vec<BootFile>, Vec<BootFile>) {
        let candidates: Vec<&BootFile> =
            self.entries().filter(|file| self.claims(file).as_ref() == Some(root_hash)).collect();
        let record = self.record_for(root_hash);
        // While something could not be read, or lies where nobody could look, that may be the one, and what is seen somebody
        // else's.
        let doubt = self.unknown().next().is_some() || self.inventory.is_partial();
        // What power loss doubled is what was placed. A file of the same name with other bytes was put there by somebody: an image that
        // a person debugs with.
        let as_placed = |file: &BootFile| {
            record.is_none_or(|record| {
                let same = record.digest.is_some() && file.digest == record.digest;
                same || (file.size == record.size && (file.digest.is_none() || record.digest.is_none()))
            })
        };
        let possible = candidates.iter().copied();
        let possible: Vec<&BootFile> =
            possible.filter(|file| self.is_at_home(file, slot, root_hash, doubt) && as_placed(file)).collect();
        let named = |wanted: &str| -> Vec<&BootFile> {
            possible.iter().copied().filter(|file| base(file).eq_ignore_ascii_case(wanted)).collect()
        };
        let mut ours: Vec<&BootFile> = record.map(|record| named(&record.base)).unwrap_or_default();
        if ours.is_empty() && record.is_some() {
            // A name that power loss tore: the short one is left, of the same file.
            ours.clone_from(&possible);
            let alike = ours.first().is_some_and(|first| ours.iter().skip(1).all(|other| same_bytes(first, other)));
            if !alike {
                ours.clear();
            }
        }
        // With a record there is no guessing: what differs from it is somebody else's.
        let guess = record.is_none() && !doubt;
        if ours.is_empty() && guess {
            ours = match possible.as_slice() {
                [] => Vec::new(),
                // The installer's.
                [only] => vec![*only],
                _ => named(&entry_base(self.product.as_str(), version.as_str())),
            };
        }
        if ours.is_empty() && guess && slot == self.booted {
            ours = possible.iter().copied().filter(|file| self.was_selected(file)).collect();
        }
        // What power loss doubled lies in one folder. On the other partition is a mirror.
        let home = ours.first().map(|file| file.partition);
        ours.retain(|file| Some(file.partition) == home);
        if !self.holds(Safeguard::ForeignIsLeftAlone) {
            ours.clone_from(&candidates);
        }
        let mut owned: Vec<BootFile> = ours.iter().map(|file| (*file).clone()).collect();
        let more = candidates.iter().filter(|file| !ours.contains(file));
        let (equal, foreign): (Vec<&BootFile>, Vec<&BootFile>) = more
            .copied()
            .partition(|file| ours.iter().any(|own| own.partition == file.partition && same_bytes(own, file)));
        owned.extend(equal.into_iter().cloned());
        // The permanent one first: it is what the boot loader takes.
        owned.sort_by_key(|file| entry_of(file) != Entry::Good);
        (owned, foreign.into_iter().cloned().collect())
    }

    /// Whether an image of a release lies where the agent's own can be. What was placed lies where it was placed: under its name
    /// on the other partition is somebody else's, also while the agent's own is gone (taken away for an update, waiting to
    /// be armed again, torn and not to be read).
    fn is_at_home(&self, file: &BootFile, slot: SlotName, root_hash: &RootHash, doubt: bool) -> bool {
        match self.record_for(root_hash) {
            Some(PlacedImage { partition: Some(home), .. }) => *home == file.partition,
            // A record of an agent that did not say where: what runs was booted, of the other nothing is taken away in doubt.
            Some(_) => slot == self.booted || !doubt,
            // What an agent laid down becomes an entry where it waits.
            None => {
                let mut waits = self.inventory.files.iter().filter(|file| {
                    slot != self.booted
                        && parse_waiting(&file.name).is_some()
                        && file.content.root_hash() == Some(root_hash)
                });
                waits.all(|waits| waits.partition == file.partition)
            }
        }
    }

    /// Whether the boot loader says that it picked this file: by its name without counters, since they change then.
    fn was_selected(&self, file: &BootFile) -> bool {
        let selected = self.inventory.loader.selected.as_deref().and_then(EntryName::parse_id);
        selected.is_some_and(|selected| selected.base.eq_ignore_ascii_case(&base(file)))
    }

    fn is_product(&self, file: &BootFile) -> bool {
        match &file.content {
            FileContent::Image(image) => image.sort_key.as_deref() == Some(self.product.as_str()),
            FileContent::ShownOnly(shown) => {
                shown.iter().any(|entry| entry.sort_key.as_deref() == Some(self.product.as_str()))
            }
            _ => base(file).starts_with(&entry_base(self.product.as_str(), "")),
        }
    }

    /// Judges.
    pub(crate) fn view(&self) -> BootView {
        let mut view = BootView::default();
        let files = &self.inventory.files;
        let running = self.releases.get(self.booted).map(|(root_hash, _)| root_hash);
        for slot in [self.booted, self.booted.other()] {
            let Some((root_hash, version)) = *self.releases.get(slot) else { continue };
            // Two slots of the same content: what boots the running one is not the other's to lose.
            if slot != self.booted && Some(root_hash) == running {
                continue;
            }
            let (images, foreign) = self.images(slot, root_hash, version);
            let same_clusters = files
                .iter()
                .filter(|file| parse_waiting(&file.name).is_some() || is_unfinished(&file.name))
                .filter(|file| images.iter().any(|image| image.partition == file.partition && same_bytes(image, file)))
                .cloned()
                .collect();
            let left_over = if slot == self.booted { Vec::new() } else { self.left_over(root_hash) };
            *view.slots.get_mut(slot) = SlotImages { images, same_clusters, left_over, foreign };
        }
        view.home = view.slots.get(self.booted).images.first().map(|file| file.partition);
        let taken = |file: &BootFile| {
            [SlotName::A, SlotName::B].into_iter().map(|slot| view.slots.get(slot)).any(|slot| {
                let lists = [&slot.images, &slot.same_clusters, &slot.left_over, &slot.foreign];
                lists.into_iter().flatten().any(|other| (other.partition, &other.name) == (file.partition, &file.name))
            })
        };
        let left: Vec<BootFile> = files.iter().filter(|file| !taken(file)).cloned().collect();
        for file in left {
            let waits = parse_waiting(&file.name).is_some();
            let is_entry = EntryName::parse(&file.name).is_some();
            match &file.content {
                FileContent::Placeholder if waits || is_entry => view.strays.push(file),
                _ if waits => view.waiting.push(file),
                _ if is_unfinished(&file.name) => view.unfinished.push(file),
                _ if !is_entry => {}
                _ if self.is_left_over(&file) => view.strays.push(file),
                FileContent::Image(_) if self.is_ours_by_record(&file) => view.strays.push(file),
                FileContent::NotAnImage
                | FileContent::ShownOnly(_)
                | FileContent::Image(ImageFacts { root_hash: None, .. })
                    if self.is_broken_by_record(&file) =>
                {
                    view.strays.push(file);
                }
                FileContent::Image(_) | FileContent::ShownOnly(_) | FileContent::NotAnImage
                    if self.is_product(&file) =>
                {
                    if self.holds(Safeguard::ForeignIsLeftAlone) {
                        view.foreign.push(file.name);
                    } else {
                        view.strays.push(file);
                    }
                }
                FileContent::Unread(_) if !self.holds(Safeguard::UnreadIsNotAbsent) && self.is_product(&file) => {
                    view.strays.push(file);
                }
                _ => {}
            }
        }
        view.unread = self.unread(|name| EntryName::parse(name).is_some());
        if self.holds(Safeguard::UnreadIsNotAbsent) {
            view.unread.extend(self.inventory.texts.iter().filter_map(TextEntry::unread));
            view.unread.extend(self.inventory.unseen.iter().cloned());
        }
        let away = self.releases_held().filter(|root_hash| self.is_away(root_hash));
        view.away = away.filter_map(|root_hash| self.record_for(root_hash)).filter_map(away_in_words).collect();
        view.unread_leftovers = self.unread(|name| parse_waiting(name).is_some() || is_unfinished(name));
        view.records = self.records_for(&view);
        view
    }

    fn unread(&self, matters: impl Fn(&str) -> bool) -> Vec<String> {
        let files = self.inventory.files.iter().filter(|file| matters(&file.name));
        let unread = files.filter_map(|file| match &file.content {
            FileContent::Unread(why) => Some(format!("{} on the {}: {why}", file.name, file.partition)),
            _ => None,
        });
        if self.holds(Safeguard::UnreadIsNotAbsent) { unread.collect() } else { Vec::new() }
    }

    /// The entry of a slot: what its image's name says, and if none is seen, whether one could be where nobody could look.
    pub(crate) fn entry(&self, view: &BootView, slot: SlotName) -> Entry {
        let images = view.slots.get(slot);
        let release = self.releases.get(slot).map(|(root_hash, _)| root_hash);
        match (images.images.first(), release) {
            (Some(file), _) => entry_of(file),
            (None, Some(_)) if self.unknown().next().is_some() => Entry::Unseen,
            (None, Some(root_hash)) if self.is_away(root_hash) || self.inventory.is_partial() => {
                // What runs was booted by something that is not here; of the other slot nobody knows whether there is anything.
                if slot == self.booted { Entry::None } else { Entry::Unseen }
            }
            (None, _) => images.foreign.first().map_or(Entry::None, entry_of),
        }
    }
}

impl BootView {
    /// All entries that the boot loader shows, but for the agent's images of the slots, and for what is left of one: that goes before
    /// anything is armed.
    pub(crate) fn others(&self, inventory: &BootInventory) -> Vec<LoaderEntry> {
        let apart = |file: &BootFile| {
            [SlotName::A, SlotName::B].into_iter().any(|slot| {
                let own = self.slots.get(slot);
                let mut own = own.images.iter().chain(&own.left_over);
                own.any(|own| (own.partition, &own.name) == (file.partition, &file.name))
            })
        };
        let files = inventory.files.iter().filter(|file| !apart(file)).flat_map(LoaderEntry::of);
        files.chain(inventory.texts.iter().filter_map(LoaderEntry::of_text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::PartitionFacts;
    use super::*;
    use bascule_api::Digest;

    const NAME: &str = "acme-os_1.1.efi";

    fn root_hash() -> RootHash {
        RootHash::from_bytes(&[7; 32])
    }

    fn file(partition: BootPartition, name: &str, size: u64, digest: Option<u8>) -> BootFile {
        let image = ImageFacts { root_hash: Some(root_hash()), ..ImageFacts::default() };
        let digest = digest.map(|byte| Digest::from_sha256(&[byte; 32]));
        BootFile { partition, name: name.to_owned(), size, content: FileContent::Image(image), digest, start: None }
    }

    /// The names of the agent's and of others' images of the running release, with `P` for the partition.
    fn judged(files: Vec<BootFile>, digest: Option<u8>) -> (Vec<String>, Vec<String>) {
        judged_at(None, files, digest)
    }

    /// The same with a record that says where it was placed; both partitions were looked at.
    fn judged_at(home: Option<BootPartition>, files: Vec<BootFile>, digest: Option<u8>) -> (Vec<String>, Vec<String>) {
        let looked = |partition| PartitionFacts {
            partition,
            uuid: None,
            space: crate::Space { free: 0, total: 0 },
            read_only: false,
        };
        let partitions = vec![looked(BootPartition::Esp), looked(BootPartition::Xbootldr)];
        let inventory = BootInventory { partitions, files, ..BootInventory::default() };
        let digest = digest.map(|byte| Digest::from_sha256(&[byte; 32]));
        let base = "acme-os_1.1".to_owned();
        let records = [PlacedImage { root_hash: root_hash(), partition: home, base, size: 100, digest, start: None }];
        let (product, version) = (Product::parse("acme-os").unwrap(), Version::parse("1.1").unwrap());
        let root_hash = root_hash();
        let releases = PerSlot { a: Some((&root_hash, &version)), b: None };
        let judge = Judge {
            inventory: &inventory,
            records: &records,
            product: &product,
            booted: SlotName::A,
            releases,
            without: None,
        };
        let view = judge.view();
        let told = |files: &[BootFile]| files.iter().map(|file| format!("{} {}", file.partition, file.name)).collect();
        assert!(view.strays.is_empty() && view.slots.a.same_clusters.is_empty(), "{view:?}");
        (told(&view.slots.a.images), told(&view.slots.a.foreign))
    }

    #[test]
    fn an_image_of_the_same_name_on_the_other_partition_is_somebody_elses() {
        use BootPartition::{Esp, Xbootldr};
        let own = || vec![format!("ESP {NAME}")];
        let other = || vec![format!("XBOOTLDR {NAME}")];
        // A mirror: the same bytes, known or not. A debug image: another length, or other bytes.
        for digests in [[None, None], [Some(1), Some(1)]] {
            let mirrored = vec![file(Esp, NAME, 100, digests[0]), file(Xbootldr, NAME, 100, digests[1])];
            assert_eq!(judged(mirrored, digests[0]), (own(), other()), "{digests:?}");
        }
        for debugs in [file(Xbootldr, NAME, 250, None), file(Xbootldr, NAME, 100, Some(2))] {
            let beside = vec![file(Esp, NAME, 100, Some(1)), debugs];
            assert_eq!(judged(beside, Some(1)), (own(), other()));
        }
        // The agent's own lies on the partition that is looked at last.
        let first_is_foreign = vec![file(Esp, NAME, 250, None), file(Xbootldr, NAME, 100, None)];
        assert_eq!(judged(first_is_foreign, None), (other(), own()));
    }

    /// Of the agent's own only the short name is left, and the mirror on the other partition has the name of the record.
    #[test]
    fn what_was_placed_lies_where_it_was_placed_whatever_its_name_became() {
        use BootPartition::{Esp, Xbootldr};
        let torn = || file(Esp, "ACME-O~1.EFI", 100, None);
        let mirror = || file(Xbootldr, NAME, 100, None);
        let (ours, others) = (vec!["ESP ACME-O~1.EFI".to_owned()], vec![format!("XBOOTLDR {NAME}")]);
        assert_eq!(judged_at(Some(Esp), vec![torn(), mirror()], None), (ours, others.clone()));
        // Nothing of it is left where it was placed: that is no reason to take what somebody else placed.
        assert_eq!(judged_at(Some(Esp), vec![mirror()], None), (Vec::new(), others.clone()));
        let unread = BootFile { content: FileContent::Unread("EIO".to_owned()), ..torn() };
        assert_eq!(judged_at(Some(Esp), vec![unread, mirror()], None), (Vec::new(), others));
    }

    #[test]
    fn under_the_name_of_the_record_with_another_length_is_somebody_elses() {
        use BootPartition::Esp;
        let debug = || file(Esp, NAME, 250, None);
        let others = || vec![format!("ESP {NAME}")];
        assert_eq!(judged_at(Some(Esp), vec![debug()], None), (Vec::new(), others()));
        assert_eq!(judged_at(None, vec![debug()], Some(1)), (Vec::new(), others()));
        let torn = vec![file(Esp, "ACME-O~1.EFI", 100, None), debug()];
        assert_eq!(judged_at(Some(Esp), torn, None), (vec!["ESP ACME-O~1.EFI".to_owned()], others()));
    }

    /// The rest of the agent's own removal that power loss broke off is cleared away; the same of anybody else's stays.
    #[test]
    fn what_is_cut_short_is_cleared_away_only_where_a_record_speaks_of_it() {
        use super::super::ShownFacts;
        use BootPartition::Esp;
        let (gone, version) = (RootHash::from_bytes(&[9; 32]), Some("1.0".to_owned()));
        let shown = ShownFacts { sort_key: Some("acme-os".to_owned()), version, ..ShownFacts::default() };
        let cut = |name: &str, size| {
            let content = FileContent::ShownOnly(vec![shown.clone()]);
            BootFile { content, ..file(Esp, name, size, None) }
        };
        let own = cut("acme-os_1.0+0-3.efi", 80);
        // Another name, another length, and what runs.
        let others = [cut("acme-os_0.9.efi", 80), cut("acme-os_1.0.efi", 81), cut(NAME, 100)];
        let files = others.iter().cloned().chain([own.clone()]).collect();
        let inventory = BootInventory { files, ..BootInventory::default() };
        let record = |root_hash, base: &str, size| PlacedImage {
            root_hash,
            partition: Some(Esp),
            base: base.to_owned(),
            size,
            digest: None,
            start: None,
        };
        let records = [record(gone, "acme-os_1.0", 80), record(root_hash(), "acme-os_1.1", 100)];
        let (product, version) = (Product::parse("acme-os").unwrap(), Version::parse("1.1").unwrap());
        let running = root_hash();
        let releases = PerSlot { a: Some((&running, &version)), b: None };
        let (inventory, records, product) = (&inventory, &records[..], &product);
        let judge = Judge { inventory, records, product, booted: SlotName::A, releases, without: None };
        let view = judge.view();
        assert_eq!(view.strays, [own]);
        assert!(view.slots.a.images.is_empty() && view.unread.is_empty(), "{view:?}");
        let names: Vec<_> = others.iter().map(|file| file.name.clone()).collect();
        assert_eq!(view.foreign, names);
        // All of them are what the boot loader may take.
        assert_eq!(view.others(inventory).len(), 4);
    }

    #[test]
    fn what_was_booted_by_a_profile_is_known_by_its_file() {
        use BootPartition::Esp;
        // The installer left two, and the boot loader says which it took.
        for selected in ["acme_b.efi", "acme_b.efi@1", "ACME_B.efi@debug"] {
            let files = vec![file(Esp, "acme_a.efi", 100, Some(1)), file(Esp, "acme_b.efi", 120, Some(2))];
            let loader = super::super::LoaderFacts { selected: Some(selected.to_owned()), ..Default::default() };
            let inventory = BootInventory { files, loader, ..BootInventory::default() };
            let (product, version) = (Product::parse("acme-os").unwrap(), Version::parse("1.1").unwrap());
            let running = root_hash();
            let releases = PerSlot { a: Some((&running, &version)), b: None };
            let (inventory, product) = (&inventory, &product);
            let judge = Judge { inventory, records: &[], product, booted: SlotName::A, releases, without: None };
            let names: Vec<_> = judge.view().slots.a.images.iter().map(|file| file.name.clone()).collect();
            assert_eq!(names, ["acme_b.efi"], "{selected}");
        }
    }

    /// The other slot's images, its entry and the records, for records as given.
    fn other_slot(files: Vec<BootFile>, records: &[PlacedImage]) -> (Vec<String>, Entry, Vec<PlacedImage>) {
        let inventory = BootInventory { files, ..BootInventory::default() };
        let (product, version) = (Product::parse("acme-os").unwrap(), Version::parse("1.1").unwrap());
        let (running, other) = (RootHash::from_bytes(&[1; 32]), root_hash());
        let releases = PerSlot { a: Some((&running, &version)), b: Some((&other, &version)) };
        let (inventory, product, booted) = (&inventory, &product, SlotName::A);
        let judge = Judge { inventory, records, product, booted, releases, without: None };
        let view = judge.view();
        let names = view.slots.b.images.iter().map(|file| format!("{} {}", file.partition, file.name)).collect();
        (names, judge.entry(&view, SlotName::B), view.records)
    }

    /// Its own image waits to be armed (again), with a record or without.
    #[test]
    fn while_the_agents_own_waits_a_mirror_is_not_its_entry() {
        use BootPartition::{Esp, Xbootldr};
        let waits = || file(Esp, "bascule-0123456789abcdef.tmp", 100, None);
        let mirror = || file(Xbootldr, NAME, 100, None);
        let record = |partition| {
            let (root_hash, base) = (root_hash(), "acme-os_1.1".to_owned());
            PlacedImage { root_hash, partition, base, size: 100, digest: None, start: None }
        };
        for records in [vec![record(Some(Esp))], Vec::new()] {
            let (images, _, after) = other_slot(vec![waits(), mirror()], &records);
            assert_eq!((images, after), (Vec::new(), records));
        }
        // Alone, and without a record, it is the installer's.
        assert_eq!(other_slot(vec![mirror()], &[]).0, [format!("XBOOTLDR {NAME}")]);
        // An older agent's record does not say where. While something can't be read, that may be the agent's.
        let unread =
            BootFile { content: FileContent::Unread("EIO".to_owned()), ..file(Esp, "ACME-O~1.EFI", 100, None) };
        let (images, entry, after) = other_slot(vec![unread, mirror()], &[record(None)]);
        assert_eq!((images, entry, after), (Vec::new(), Entry::Unseen, vec![record(None)]));
        assert_eq!(other_slot(vec![mirror()], &[record(None)]).2, [record(Some(Xbootldr))]);
    }

    #[test]
    fn a_name_that_power_loss_doubled_is_one_entry_and_a_file_with_other_bytes_is_not() {
        use BootPartition::Esp;
        let counted = "acme-os_1.1+2-1.efi";
        let doubled = vec![file(Esp, NAME, 100, Some(1)), file(Esp, counted, 100, Some(1))];
        assert_eq!(judged(doubled, Some(1)), (vec![format!("ESP {NAME}"), format!("ESP {counted}")], Vec::new()));
        let debugs = vec![file(Esp, NAME, 100, Some(1)), file(Esp, counted, 100, Some(2))];
        assert_eq!(judged(debugs, Some(1)), (vec![format!("ESP {NAME}")], vec![format!("ESP {counted}")]));
    }
}
