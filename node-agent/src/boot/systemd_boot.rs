//! systemd-boot: one unified kernel image for each slot in `EFI/Linux`, with its counters in the file name.
//!
//! The boot loader sorts entries without tries left to the end, then by sort key, then by version, newest first (systemd,
//! systemd-boot(7) and UAPI Boot Loader Specification, "Sorting"). A newer release that is armed therefore goes first by
//! itself. An older one would not, so the running entry is set aside (`+0-0`) after the older one is in place: at each
//! instant one of them is picked, and both bad is again the running one, since that sorts first.

use bascule_api::{BootControlBackend, Counting, RootHash, SlotName, compare_versions};

use super::error::esp;
use super::image_file::{self, parse_waiting, waiting_name};
use super::name::{Counters, EntryName, base_of};
use super::{BootBackend, BootError, Machine, Seen};
use crate::core::{BootFacts, Entry, PerSlot, ReleaseTarget, SlotContent};
use crate::host::{Esp, FetchError, Firmware};
use crate::uki;

/// Where the boot loader looks for unified kernel images (UAPI Boot Loader Specification, "Type #2").
const DIRECTORY: &str = "EFI/Linux";
/// More files than this are not looked at.
const MAX_FILES: usize = 256;
/// LoaderFeatures: the boot loader counts boots (systemd, "The Boot Loader Interface", bit 4).
const FEATURE_BOOT_COUNTING: u64 = 1 << 4;

/// The backend.
#[allow(missing_debug_implementations, reason = "it holds the host's traits")]
pub struct SystemdBoot<'a> {
    /// Where the entries lie.
    pub esp: &'a dyn Esp,
    /// What the boot loader left behind.
    pub firmware: &'a dyn Firmware,
}

/// A boot image in [`DIRECTORY`].
#[derive(Debug, Clone)]
struct Image {
    file: String,
    size: u64,
    name: EntryName,
    facts: Option<uki::UkiFacts>,
}

impl Image {
    fn boots(&self, root_hash: &RootHash) -> bool {
        self.facts.as_ref().is_some_and(|facts| facts.root_hash.as_ref() == Some(root_hash))
    }

    fn entry(&self) -> Entry {
        match self.name.counters {
            None => Entry::Good,
            Some(Counters { left: 0, done }) => Entry::Bad { done },
            Some(Counters { left, done }) => Entry::Trying { left, done },
        }
    }

    fn path(&self) -> String {
        path(&self.file)
    }
}

fn path(file: &str) -> String {
    format!("{DIRECTORY}/{file}")
}

impl SystemdBoot<'_> {
    fn images(&self) -> Result<Vec<Image>, BootError> {
        let mut images = Vec::new();
        let files = self.esp.list(DIRECTORY).map_err(esp("listing", DIRECTORY))?;
        for file in files.into_iter().take(MAX_FILES) {
            let Some(name) = EntryName::parse(&file.name) else { continue };
            let path = path(&file.name);
            let opened = self.esp.open(&path).map_err(esp("opening", &path))?;
            let facts = uki::read(&*opened).map_err(esp("reading", &path))?;
            images.push(Image { file: file.name, size: file.size, name, facts });
        }
        images.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(images)
    }

    /// The images that boot a slot, permanent one first.
    fn of_slot(&self, machine: &Machine, slot: SlotName) -> Result<Vec<Image>, BootError> {
        let root_hash = machine.root_hash_of(slot).ok_or(BootError::NoRelease(slot))?;
        let mut images = self.images()?;
        images.retain(|image| image.boots(root_hash));
        images.sort_by_key(|image| image.name.counters.is_some());
        Ok(images)
    }

    fn one_of_slot(&self, machine: &Machine, slot: SlotName) -> Result<Image, BootError> {
        let root_hash = machine.root_hash_of(slot).ok_or(BootError::NoRelease(slot))?.clone();
        let images = self.of_slot(machine, slot)?;
        images.into_iter().next().ok_or(BootError::NoEntry { slot, root_hash })
    }

    /// Waiting boot images that may share their clusters with one of these.
    fn twins<'i>(&self, images: impl Iterator<Item = &'i Image>) -> Result<Vec<String>, BootError> {
        let images: Vec<(String, u64)> = images.map(|image| (image.path(), image.size)).collect();
        image_file::twins(self.esp, DIRECTORY, &images)
    }

    /// Renames durably; nothing to do if the name is right already.
    fn rename(&self, from: &str, to: &str) -> Result<(), BootError> {
        if from != to {
            let from = path(from);
            self.esp.rename(&from, &path(to)).map_err(esp("renaming", &from))?;
        }
        self.esp.sync().map_err(esp("syncing", to))
    }

    fn remove(&self, file: &str) -> Result<(), BootError> {
        let path = path(file);
        self.esp.remove(&path).map_err(esp("removing", &path))
    }

    fn text(&self, name: &'static str) -> Result<Option<String>, BootError> {
        let bytes = self.firmware.variable(name).map_err(|source| BootError::Variable { name, source })?;
        Ok(bytes.map(|bytes| {
            let units: Vec<u16> = bytes
                .chunks_exact(2)
                .map(|pair| u16::from_le_bytes([pair.first().copied().unwrap_or(0), pair.last().copied().unwrap_or(0)]))
                .take_while(|unit| *unit != 0)
                .collect();
            String::from_utf16_lossy(&units)
        }))
    }

    /// Whether the boot loader counts, as far as this boot shows it.
    fn counting(&self, running: Option<&Image>) -> Result<(Counting, Option<String>), BootError> {
        let broken = |message: &str| Ok((Counting::Broken, Some(message.to_owned())));
        let name = "LoaderFeatures";
        let features = self.firmware.variable(name).map_err(|source| BootError::Variable { name, source })?;
        let Some(features) = features else {
            return broken("the boot loader left no LoaderFeatures: this boot was not by systemd-boot");
        };
        let features = features.iter().take(8).rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        if features & FEATURE_BOOT_COUNTING == 0 {
            return broken("the boot loader says that it does not count boots (LoaderFeatures, bit 4)");
        }
        if let Some(default) = self.text("LoaderEntryDefault")?.filter(|default| !default.is_empty()) {
            return broken(&format!(
                "the EFI variable LoaderEntryDefault pins {default}, which wins over counters: remove it with bootctl \
                 set-default \"\""
            ));
        }
        let counted = self.text("LoaderBootCountPath")?.filter(|path| !path.is_empty());
        match running.map(Image::entry) {
            Some(Entry::Trying { done: None | Some(0), .. }) if counted.is_none() => {
                broken("the boot loader booted an entry with a counter and did not count it down")
            }
            _ => Ok((Counting::Works, None)),
        }
    }

    /// Whether the boot loader puts the running entry before the other slot's, counters apart.
    fn running_sorts_first(machine: &Machine, running: Option<&Image>, other: Option<&Image>) -> bool {
        let SlotContent::Release { version, .. } = machine.contents.get(machine.booted.other()) else { return false };
        let fact = |image: Option<&Image>, otherwise: &str| {
            let version = image.and_then(|image| image.facts.as_ref()).and_then(|facts| facts.version.clone());
            version.unwrap_or_else(|| otherwise.to_owned())
        };
        let base = |image: Option<&Image>, version: &str| {
            image.map_or_else(|| base_of(machine.product.as_str(), version), |image| image.name.base.clone())
        };
        let ours = fact(running, machine.version.as_str());
        let theirs = fact(other, version.as_str());
        let by_version = compare_versions(&ours, &theirs);
        by_version.then_with(|| compare_versions(&base(running, &ours), &base(other, &theirs))).is_gt()
    }

    fn is_ours(machine: &Machine, image: &Image) -> bool {
        let product = machine.product.as_str();
        match &image.facts {
            Some(facts) => facts.sort_key.as_deref() == Some(product),
            None => image.name.base.starts_with(&base_of(product, "")),
        }
    }

    /// Images of this product that boot neither slot, and those that were not put in their place to the end.
    fn strays(&self, machine: &Machine, images: &[Image]) -> Result<Vec<String>, BootError> {
        let needed = |image: &Image| {
            [SlotName::A, SlotName::B]
                .into_iter()
                .filter_map(|slot| machine.root_hash_of(slot))
                .any(|root_hash| image.boots(root_hash))
        };
        let files = self.esp.list(DIRECTORY).map_err(esp("listing", DIRECTORY))?;
        let of_an_image = |name: &str| EntryName::parse(name).is_some() || parse_waiting(name).is_some();
        let broken_off = |name: &str| of_an_image(name) && image_file::lacks_its_start(self.esp, &path(name));
        let stray = |name: &str| {
            images.iter().any(|image| image.file == name && Self::is_ours(machine, image) && !needed(image))
        };
        let names = files.into_iter().take(MAX_FILES).map(|file| file.name);
        Ok(names.filter(|name| stray(name) || broken_off(name)).collect())
    }

    /// `base`, or `base` with a number, so that no entry has it, with or without a counter.
    fn free_base(&self, base: &str) -> Result<String, BootError> {
        let files = self.esp.list(DIRECTORY).map_err(esp("listing", DIRECTORY))?;
        let names: Vec<EntryName> = files.iter().filter_map(|file| EntryName::parse(&file.name)).collect();
        let free = |base: &String| !names.iter().any(|name| name.base.eq_ignore_ascii_case(base));
        let numbered = (2..=MAX_FILES).map(|number| format!("{base}_{number}"));
        let found = std::iter::once(base.to_owned()).chain(numbered).find(free);
        found.ok_or_else(|| esp("naming", DIRECTORY)(std::io::ErrorKind::AlreadyExists.into()))
    }

    /// Where the boot image lies that would be armed: the slot's entry, or what waits for a name.
    fn path_to_arm(&self, machine: &Machine, target: &ReleaseTarget) -> Result<String, BootError> {
        // A slot that is being written has no release yet, and no entry.
        let holds = machine.root_hash_of(target.slot) == Some(&target.root_hash);
        let image = if holds { self.of_slot(machine, target.slot)?.into_iter().next() } else { None };
        if let Some(image) = image {
            return Ok(image.path());
        }
        let no_entry = || BootError::NoEntry { slot: target.slot, root_hash: target.root_hash.clone() };
        let (digest, _) = target.uki.as_ref().ok_or_else(no_entry)?;
        Ok(path(&waiting_name(digest)))
    }

    /// A base name for a new entry that no other file has.
    fn base_for(&self, machine: &Machine, target: &ReleaseTarget, images: &[Image]) -> String {
        let plain = base_of(machine.product.as_str(), target.version.as_str());
        let taken = |base: &str| {
            images.iter().any(|image| image.name.base.eq_ignore_ascii_case(base) && !image.boots(&target.root_hash))
        };
        if !taken(&plain) {
            return plain;
        }
        // The same version with another content: the root hash tells them apart.
        let start: String = target.root_hash.as_str().chars().take(8).collect();
        format!("{plain}_{start}")
    }
}

impl BootBackend for SystemdBoot<'_> {
    fn kind(&self) -> BootControlBackend {
        BootControlBackend::SystemdBoot
    }

    fn observe(&self, machine: &Machine) -> Result<Seen, BootError> {
        let images = self.images()?;
        let of = |slot: SlotName| -> Vec<&Image> {
            let Some(root_hash) = machine.root_hash_of(slot) else { return Vec::new() };
            let mut found: Vec<&Image> = images.iter().filter(|image| image.boots(root_hash)).collect();
            found.sort_by_key(|image| image.name.counters.is_some());
            found
        };
        let (a, b) = (of(SlotName::A), of(SlotName::B));
        let entry = |images: &[&Image]| images.first().map_or(Entry::None, |image| image.entry());
        let (running, other) = match machine.booted {
            SlotName::A => (a.first().copied(), b.first().copied()),
            SlotName::B => (b.first().copied(), a.first().copied()),
        };
        let (counting, counting_message) = self.counting(running)?;
        let files = self.esp.list(DIRECTORY).map_err(esp("listing", DIRECTORY))?;
        let strays = self.strays(machine, &images)?;
        let whole = files.iter().filter(|file| !strays.contains(&file.name));
        let waiting = whole.filter_map(|file| Some((parse_waiting(&file.name)?.to_owned(), file.size))).next();
        let unfinished = files.iter().filter(|file| image_file::is_unfinished(&file.name));
        let other_images = if machine.booted == SlotName::A { &b } else { &a };
        let reclaimable = other_images.iter().map(|image| image.size).sum::<u64>()
            + waiting.as_ref().map_or(0, |(_, size)| *size)
            + unfinished.map(|file| file.size).sum::<u64>();
        let facts = BootFacts {
            backend: self.kind(),
            counting,
            counting_message,
            strays,
            space: self.esp.space().map_err(esp("measuring", DIRECTORY))?,
            waiting_uki: waiting,
            reclaimable,
            running_sorts_first: Self::running_sorts_first(machine, running, other),
        };
        let doubled = |images: &[&Image]| -> Result<bool, BootError> {
            Ok(images.len() > 1 || !self.twins(images.iter().copied())?.is_empty())
        };
        let doubled = PerSlot { a: doubled(&a)?, b: doubled(&b)? };
        Ok(Seen { facts, entries: PerSlot { a: entry(&a), b: entry(&b) }, doubled })
    }

    fn retire(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError> {
        if slot == machine.booted {
            return Err(BootError::Running("retiring"));
        }
        for image in self.images()? {
            if Self::is_ours(machine, &image) && !image.boots(&machine.root_hash) {
                self.remove(&image.file)?;
            }
        }
        self.esp.sync().map_err(esp("syncing", DIRECTORY))
    }

    fn stage_uki(
        &self,
        machine: &Machine,
        target: &ReleaseTarget,
        fetch: &mut dyn FnMut(&mut dyn std::io::Write) -> Result<(), FetchError>,
    ) -> Result<(), BootError> {
        // An entry of the slot may hold it already: going back to a release that was never overwritten.
        if machine.root_hash_of(target.slot) == Some(&target.root_hash)
            && let Some(image) = self.of_slot(machine, target.slot)?.first()
            && image_file::verify(self.esp, &image.path(), target).is_ok()
        {
            return Ok(());
        }
        image_file::lay_down(self.esp, DIRECTORY, target, fetch)
    }

    fn open_uki(
        &self,
        machine: &Machine,
        target: &ReleaseTarget,
    ) -> Result<Option<Box<dyn bascule_image::io::ReadAt>>, BootError> {
        let path = self.path_to_arm(machine, target)?;
        self.esp.open(&path).map(Some).map_err(esp("opening", &path))
    }

    fn verify_uki(&self, machine: &Machine, target: &ReleaseTarget) -> Result<(), BootError> {
        image_file::verify(self.esp, &self.path_to_arm(machine, target)?, target)
    }

    fn arm(
        &self,
        machine: &Machine,
        target: &ReleaseTarget,
        tries: u32,
        set_aside_running: bool,
    ) -> Result<(), BootError> {
        if target.slot == machine.booted {
            return Err(BootError::Running("arming"));
        }
        let images = self.images()?;
        let existing = images.iter().find(|image| image.boots(&target.root_hash));
        match existing {
            Some(image) => {
                let name = EntryName::counted(&image.name.base, tries, 0);
                // One that failed here and can be fetched again is put in place like a new one; what once ran here is the
                // way back, and is not put at risk.
                match image.entry() {
                    Entry::Bad { done } if done != Some(0) && target.uki.is_some() => {
                        image_file::put_in_place(self.esp, &image.path(), &path(&name))?;
                    }
                    _ => self.rename(&image.file, &name)?,
                }
            }
            None => {
                let no_entry = || BootError::NoEntry { slot: target.slot, root_hash: target.root_hash.clone() };
                let (digest, _) = target.uki.as_ref().ok_or_else(no_entry)?;
                let base = self.base_for(machine, target, &images);
                let name = EntryName::counted(&base, tries, 0);
                image_file::put_in_place(self.esp, &path(&waiting_name(digest)), &path(&name))?;
            }
        }
        if set_aside_running { self.set_aside(machine, machine.booted) } else { Ok(()) }
    }

    fn recount(&self, machine: &Machine, slot: SlotName, left: u32) -> Result<(), BootError> {
        let image = self.one_of_slot(machine, slot)?;
        match image.entry() {
            // What is left of its name is only the short one; the long one is made anew.
            Entry::Good => {
                let base = self.free_base(&base_of(machine.product.as_str(), machine.version.as_str()))?;
                self.rename(&image.file, &EntryName::counted(&base, left, 1))
            }
            _ => Ok(()),
        }
    }

    fn disarm(&self, machine: &Machine, target: &ReleaseTarget) -> Result<(), BootError> {
        if target.slot == machine.booted {
            return Err(BootError::Running("disarming"));
        }
        let images = self.images()?;
        let Some(image) = images.iter().find(|image| image.boots(&target.root_hash)) else { return Ok(()) };
        let digest = match &target.uki {
            Some((digest, _)) => digest.clone(),
            None => image_file::digest(self.esp, &image.path())?.0,
        };
        self.rename(&image.file, &waiting_name(&digest))
    }

    fn bless(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError> {
        let image = self.one_of_slot(machine, slot)?;
        self.rename(&image.file, &EntryName::good(&image.name.base))
    }

    fn mark_bad(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError> {
        let images = self.of_slot(machine, slot)?;
        for image in images {
            // At least one try, so that it is not taken for an entry that was only set aside.
            let done = image.name.counters.and_then(|counters| counters.done).unwrap_or(0).max(1);
            self.rename(&image.file, &EntryName::counted(&image.name.base, 0, done))?;
        }
        Ok(())
    }

    fn set_aside(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError> {
        let image = self.one_of_slot(machine, slot)?;
        match image.entry() {
            Entry::Bad { .. } => Ok(()),
            _ => self.rename(&image.file, &EntryName::counted(&image.name.base, 0, 0)),
        }
    }

    fn tidy(&self, machine: &Machine, slot: SlotName) -> Result<(), BootError> {
        // Power was lost within a rename: both names may share one chain of clusters, and removing either would free
        // what the other needs. So the content is copied before both go.
        let images = self.of_slot(machine, slot)?;
        let [keep, others @ ..] = images.as_slice() else { return Ok(()) };
        let mut surplus: Vec<String> = others.iter().map(|image| image.file.clone()).collect();
        surplus.extend(self.twins(images.iter())?);
        if surplus.is_empty() {
            return Ok(());
        }
        // Not a copy that an earlier try left: that one may be on the same chain.
        let taken = self.esp.list(DIRECTORY).map_err(esp("listing", DIRECTORY))?;
        let free = |name: &String| !taken.iter().any(|file| file.name.eq_ignore_ascii_case(name));
        let Some(copy) = (1..=MAX_FILES).map(|number| format!("bascule-copy{number}.part")).find(free) else {
            return Err(esp("copying", &keep.path())(std::io::ErrorKind::AlreadyExists.into()));
        };
        let copy_path = path(&copy);
        let file = self.esp.open(&keep.path()).map_err(esp("opening", &keep.path()))?;
        let mut reader = image_reader(&*file, keep.size);
        self.esp.write(&copy_path, &mut reader).map_err(esp("writing", &copy_path))?;
        self.esp.sync().map_err(esp("syncing", &copy_path))?;
        if image_file::digest(self.esp, &copy_path)? != image_file::digest(self.esp, &keep.path())? {
            let reason = "a copy of it read back as something else".to_owned();
            return Err(BootError::Uki { path: keep.path(), reason });
        }
        // The copy is an entry before the others go: at no moment is the slot without one.
        let base = self.free_base(&keep.name.base)?;
        let installed = match keep.name.counters {
            None => EntryName::good(&base),
            Some(Counters { left, done }) => EntryName::counted(&base, left, done.unwrap_or(0)),
        };
        self.rename(&copy, &installed)?;
        for file in surplus.iter().chain([&keep.file]) {
            self.remove(file)?;
        }
        self.esp.sync().map_err(esp("syncing", DIRECTORY))
    }

    fn remove_strays(&self, machine: &Machine) -> Result<(), BootError> {
        let images = self.images()?;
        for file in self.strays(machine, &images)? {
            self.remove(&file)?;
        }
        self.esp.sync().map_err(esp("syncing", DIRECTORY))
    }
}

/// Reads a file from front to end.
fn image_reader(file: &dyn bascule_image::io::ReadAt, size: u64) -> impl std::io::Read {
    struct Reader<'a> {
        file: &'a dyn bascule_image::io::ReadAt,
        at: u64,
        size: u64,
    }
    impl std::io::Read for Reader<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
            let count = buffer.len().min(left).min(256 << 10);
            let Some(part) = buffer.get_mut(..count).filter(|part| !part.is_empty()) else { return Ok(0) };
            self.file.read_at(part, self.at)?;
            self.at += count as u64;
            Ok(count)
        }
    }
    Reader { file, at: 0, size }
}
