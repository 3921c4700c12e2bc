//! What a broken-off removal leaves once the file system was checked
//! (docs/decisions/0053-what-a-check-cuts-is-known-by-its-beginning.md).
//!
//! Power loss can free clusters of a file and leave its name. `fsck.vfat -a` at the next boot then cuts the file where its chain of
//! clusters ends: it is the beginning of what was placed, or empty.

use bascule_api::RootHash;

use super::{BootFile, FileContent, Judge, PlacedImage, Safeguard, base};

/// Whether a file has the name and the place of what was placed, is shorter, and is no whole image.
fn is_cut(record: &PlacedImage, file: &BootFile) -> bool {
    record.partition == Some(file.partition)
        && record.base.eq_ignore_ascii_case(&base(file))
        && file.size < record.size
        && matches!(file.content, FileContent::ShownOnly(_) | FileContent::NotAnImage)
}

/// Whether a file begins as what was placed. An empty one holds nothing that could be anybody's.
fn begins_alike(record: &PlacedImage, file: &BootFile) -> bool {
    file.size == 0 || file.start.is_some() && file.start == record.start
}

impl Judge<'_> {
    /// What is left of a release's image.
    pub(super) fn left_over(&self, root_hash: &RootHash) -> Vec<BootFile> {
        let Some(record) = self.record_for(root_hash) else { return Vec::new() };
        self.entries().filter(|file| self.is_left_of(record, file)).cloned().collect()
    }

    /// What is left of the image of a release that no slot holds any more.
    pub(super) fn is_left_over(&self, file: &BootFile) -> bool {
        let held = |record: &PlacedImage| self.releases_held().any(|root_hash| *root_hash == record.root_hash);
        self.records.iter().any(|record| !held(record) && self.is_left_of(record, file))
    }

    pub(super) fn is_left_of(&self, record: &PlacedImage, file: &BootFile) -> bool {
        is_cut(record, file) && (begins_alike(record, file) || !self.holds(Safeguard::LeftoverBeginsAlike))
    }
}

#[cfg(test)]
mod tests {
    use bascule_api::{Digest, Product, RootHash, SlotName, Version};

    use super::super::{BootInventory, BootPartition, ImageFacts, Judge, Safeguard, ShownFacts};
    use super::*;
    use crate::PerSlot;

    const BASE: &str = "acme-os_1.0";
    const SIZE: u64 = 9000;

    fn hash(byte: u8) -> RootHash {
        RootHash::from_bytes(&[byte; 32])
    }

    fn start(byte: u8) -> Option<Digest> {
        Some(Digest::from_sha256(&[byte; 32]))
    }

    fn record(root_hash: RootHash) -> PlacedImage {
        let partition = Some(BootPartition::Esp);
        PlacedImage { root_hash, partition, base: BASE.to_owned(), size: SIZE, digest: None, start: start(1) }
    }

    /// What [`Judge`] makes of a file beside the running release's record and this one: whether it is cleared away at once, and whether
    /// it goes with the other slot.
    fn judged(file: &BootFile, record: &PlacedImage, without: Option<Safeguard>) -> (bool, bool) {
        let inventory = BootInventory { files: vec![file.clone()], ..BootInventory::default() };
        let (product, version) = (Product::parse("acme-os").unwrap(), Version::parse("1.1").unwrap());
        let (running, other) = (hash(1), hash(2));
        let releases = PerSlot { a: Some((&running, &version)), b: Some((&other, &version)) };
        let records = [record.clone()];
        let (inventory, records, product) = (&inventory, &records[..], &product);
        let judge = Judge { inventory, records, product, booted: SlotName::A, releases, without };
        let view = judge.view();
        let (stray, with_slot) = (view.strays.contains(file), view.slots.b.left_over.contains(file));
        // What is to be cleared away stays on record until it is.
        let kept = view.records.contains(record);
        assert!(!stray || kept, "forgotten before it is gone: {file:?}");
        let listed = |files: &[BootFile]| files.contains(file);
        assert!(!listed(&view.slots.a.images) && !listed(&view.slots.a.left_over), "it boots nothing: {file:?}");
        (stray, with_slot)
    }

    /// All that may lie there, against all that may be on record: only what is provably a beginning of what was placed goes.
    #[test]
    fn only_what_begins_as_what_was_placed_is_cleared_away() {
        use BootPartition::{Esp, Xbootldr};
        let shown = FileContent::ShownOnly(vec![ShownFacts::default()]);
        let image = |root_hash| FileContent::Image(ImageFacts { root_hash, ..ImageFacts::default() });
        let contents = [
            (shown, true),
            (FileContent::NotAnImage, true),
            (image(None), false),
            (image(Some(hash(9))), false),
            (FileContent::Unread("EIO".to_owned()), false),
        ];
        let names = [
            ("acme-os_1.0.efi", true),
            ("acme-os_1.0+0-3.efi", true),
            ("ACME-OS_1.0+2-1.EFI", true),
            ("acme-os_1.0_2.efi", false),
            ("acme-os_1.0.efi.bak", false),
        ];
        let sizes = [(0, true), (511, true), (SIZE - 1, true), (SIZE + 1, false)];
        let mut found = 0;
        for (partition, at_home) in [(Esp, true), (Xbootldr, false)] {
            for (name, is_named) in names {
                for (size, is_shorter) in sizes {
                    for (content, is_cut) in contents.clone() {
                        for (start, is_alike) in [(start(1), true), (start(3), false), (None, false)] {
                            let (name, digest) = (name.to_owned(), None);
                            let file = BootFile { partition, name, size, content: content.clone(), digest, start };
                            let is_left = at_home && is_named && is_shorter && is_cut && (is_alike || size == 0);
                            found += u32::from(is_left);
                            let judge = |byte| judged(&file, &record(hash(byte)), None);
                            assert_eq!(judge(1), (false, false), "the running release's: {file:?}");
                            assert_eq!(judge(2), (false, is_left), "the other slot's: {file:?}");
                            assert_eq!(judge(9), (is_left, false), "no slot's: {file:?}");
                        }
                    }
                }
            }
        }
        assert!(found > 20, "{found}");
    }

    #[test]
    fn what_is_on_record_without_a_beginning_or_a_place_says_nothing_of_a_shorter_file() {
        let content = FileContent::NotAnImage;
        let name = format!("{BASE}.efi");
        let file = BootFile { partition: BootPartition::Esp, name, size: 600, content, digest: None, start: start(1) };
        let older =
            [PlacedImage { start: None, ..record(hash(9)) }, PlacedImage { partition: None, ..record(hash(9)) }];
        for record in older {
            assert_eq!(judged(&file, &record, None), (false, false), "{record:?}");
            assert_eq!(judged(&BootFile { start: None, ..file.clone() }, &record, None), (false, false), "{record:?}");
        }
    }

    /// A record that is forgotten while its file can't be seen makes that file somebody else's for good.
    #[test]
    fn what_could_not_be_seen_is_not_forgotten() {
        let (product, version, running) = (Product::parse("acme-os").unwrap(), Version::parse("1.1").unwrap(), hash(1));
        let kept = |inventory: &BootInventory, without| {
            let releases = PerSlot { a: Some((&running, &version)), b: None };
            let (records, product, booted) = (&[record(hash(9))][..], &product, SlotName::A);
            Judge { inventory, records, product, booted, releases, without }.view().records.len()
        };
        let unread = BootFile {
            partition: BootPartition::Esp,
            name: format!("{BASE}+0-3.efi"),
            size: 0,
            content: FileContent::Unread("EIO".to_owned()),
            digest: None,
            start: None,
        };
        let elsewhere = BootFile { partition: BootPartition::Xbootldr, ..unread.clone() };
        let of = |files| BootInventory { files, ..BootInventory::default() };
        let blind = BootInventory { unseen: vec!["the ESP: EIO".to_owned()], ..BootInventory::default() };
        for inventory in [of(vec![unread]), blind] {
            assert_eq!(kept(&inventory, None), 1, "{inventory:?}");
            assert_eq!(kept(&inventory, Some(Safeguard::UnreadIsNotAbsent)), 0, "{inventory:?}");
        }
        for gone in [of(Vec::new()), of(vec![elsewhere])] {
            assert_eq!(kept(&gone, None), 0, "{gone:?}");
        }
    }

    /// The test of the test: by its name alone somebody else's broken copy would go.
    #[test]
    fn by_its_name_alone_a_file_of_somebody_elses_would_go() {
        let (content, name) = (FileContent::NotAnImage, format!("{BASE}.efi"));
        let file = BootFile { partition: BootPartition::Esp, name, size: 600, content, digest: None, start: start(3) };
        for (byte, gone) in [(9, (true, false)), (2, (false, true))] {
            assert_eq!(judged(&file, &record(hash(byte)), Some(Safeguard::LeftoverBeginsAlike)), gone);
            assert_eq!(judged(&file, &record(hash(byte)), None), (false, false));
        }
    }
}
