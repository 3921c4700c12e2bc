//! What is on record of the images that the agent placed: which file a record speaks of, and what goes on record.

use bascule_api::{RootHash, SlotName};

use super::view::Judge;
use super::{BootFile, BootView, FileContent, PlacedImage, Safeguard, base};

/// Most images that are remembered as placed: both slots' and some room.
const MAX_PLACED: usize = 6;

pub(super) fn away_in_words(record: &PlacedImage) -> Option<String> {
    let home = record.partition?;
    Some(format!("{} was placed on the {home}, and is on none of the boot partitions that are mounted", record.base))
}

impl Judge<'_> {
    /// The record that a file's name and length are those of.
    pub(super) fn record_of(&self, file: &BootFile) -> Option<&PlacedImage> {
        let base = base(file);
        let is_it = |record: &&PlacedImage| {
            record.size == file.size && record.is_on(file.partition) && record.base.eq_ignore_ascii_case(&base)
        };
        self.records.iter().find(is_it)
    }

    pub(super) fn record_for(&self, root_hash: &RootHash) -> Option<&PlacedImage> {
        self.records.iter().find(|record| &record.root_hash == root_hash)
    }

    /// The record of a file, unless it does not say where, and fits files on both partitions: one of them is somebody else's.
    pub(super) fn only_record_of(&self, file: &BootFile) -> Option<&PlacedImage> {
        self.record_of(file).filter(|record| {
            let mut files = self.inventory.files.iter();
            !files.any(|other| other.partition != file.partition && self.record_of(other) == Some(record))
        })
    }

    /// Whether a release's image was placed on a partition that nobody could look at.
    pub(super) fn is_away(&self, root_hash: &RootHash) -> bool {
        let home = self.record_for(root_hash).and_then(|record| record.partition);
        home.is_some_and(|home| !self.inventory.partitions.iter().any(|facts| facts.partition == home))
    }

    /// What the agent placed for a release that no slot holds any more.
    pub(super) fn is_ours_by_record(&self, file: &BootFile) -> bool {
        self.only_record_of(file).is_some_and(|record| Some(&record.root_hash) == file.content.root_hash())
    }

    /// What the agent placed for another release than the running one, and what was read is no whole image any more: power was lost
    /// while it was removed, after its clusters were freed and before its name was.
    pub(super) fn is_broken_by_record(&self, file: &BootFile) -> bool {
        let running = self.releases.get(self.booted).map(|(root_hash, _)| root_hash);
        self.only_record_of(file).is_some_and(|record| Some(&record.root_hash) != running)
    }

    /// Whether what was placed may lie where nobody could look, or be what nobody could read.
    pub(super) fn may_be_there(&self, record: &PlacedImage) -> bool {
        let is_unread = |file: &BootFile| {
            let named = record.is_on(file.partition) && record.base.eq_ignore_ascii_case(&base(file));
            named && matches!(file.content, FileContent::Unread(_))
        };
        self.holds(Safeguard::UnreadIsNotAbsent) && (self.inventory.is_partial() || self.entries().any(is_unread))
    }

    /// Records of what is there, and of what the slots hold; what the installer placed is taken over.
    pub(super) fn records_for(&self, view: &BootView) -> Vec<PlacedImage> {
        let held =
            [SlotName::A, SlotName::B].map(|slot| (slot, self.releases.get(slot).map(|(root_hash, _)| root_hash)));
        let mut records: Vec<PlacedImage> = self
            .records
            .iter()
            .filter(|record| {
                let of_a_slot = held.iter().any(|(_, root_hash)| *root_hash == Some(&record.root_hash));
                let speaks_of =
                    |file: &BootFile| self.record_of(file) == Some(*record) || self.is_left_of(record, file);
                of_a_slot || view.strays.iter().any(speaks_of) || self.may_be_there(record)
            })
            .cloned()
            .collect();
        for (slot, root_hash) in held {
            let images = view.slots.get(slot);
            let (Some(root_hash), Some(only)) = (root_hash, images.images.first()) else { continue };
            let doubled = images.images.len() > 1 || !images.same_clusters.is_empty();
            // While names are doubled there is no news of what is on record; what is not gets a record by its content, by
            // which it is known again when one name is left.
            if doubled && records.iter().any(|record| &record.root_hash == root_hash) {
                continue;
            }
            // A file that nobody could read may be the real one.
            if !matches!(only.content, FileContent::Image(_)) || self.unknown().next().is_some() {
                continue;
            }
            let before = records.iter().position(|record| &record.root_hash == root_hash);
            let has_home = before.and_then(|at| records.get(at)).is_some_and(|record| record.partition.is_some());
            if self.inventory.is_partial() && !has_home {
                continue;
            }
            let known = before.and_then(|at| records.get(at)).filter(|record| record.size == only.size);
            let digest = only.digest.clone().or_else(|| known.and_then(|record| record.digest.clone()));
            let (base, partition) = (base(only), Some(only.partition));
            let start = only.start.clone().or_else(|| known.and_then(|record| record.start.clone()));
            let record = PlacedImage { root_hash: root_hash.clone(), partition, base, size: only.size, digest, start };
            match before.and_then(|at| records.get_mut(at)) {
                // Only another name, length or place is news, and a beginning that was not on record.
                Some(place)
                    if (&place.base, place.size, place.partition) != (&record.base, record.size, record.partition)
                        || place.start.is_none() && record.start.is_some() =>
                {
                    *place = record;
                }
                Some(_) => {}
                None => records.push(record),
            }
        }
        let in_no_slot = |record: &PlacedImage| held.iter().all(|(_, root_hash)| *root_hash != Some(&record.root_hash));
        while records.len() > MAX_PLACED
            && let Some(oldest) = records.iter().position(in_no_slot)
        {
            records.remove(oldest);
        }
        records
    }
}
