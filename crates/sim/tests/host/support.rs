//! A host with one release installed, and a reference writer that does to its disk what docs/release-format.md says
//! under "Writing a slot" — or, on purpose, does it in a wrong order.

use bascule_gpt::Copy;
use bascule_sim::disk::{Disk, Part, Snapshot};
use bascule_sim::esp::Esp;
use bascule_sim::firmware::BootLoader;
use bascule_sim::firmware::gptprio::Attributes;
use bascule_sim::layout::{Sizes, Slot, Table};
use bascule_sim::machine::Hardware;
use bascule_sim::tiny::TinyRelease;
use uuid::Uuid;

pub(crate) const IDENTITY: Uuid = Uuid::from_u128(0xba5c_u128);

/// How often a trial may be booted.
pub(crate) const TRIES: usize = 3;

/// A release of 48 KiB: twelve blocks, one level of tree.
pub(crate) fn release(version: &str) -> TinyRelease {
    TinyRelease::new("acme-os", version, 48 << 10, &[]).unwrap()
}

/// The disk of a host on which `first` runs from slot A and slot B is empty.
pub(crate) fn installed(boot: BootLoader, first: &TinyRelease) -> Snapshot {
    installed_on(Sizes::tiny(), boot, first)
}

/// The same on a disk with these partitions.
pub(crate) fn installed_on(sizes: Sizes, boot: BootLoader, first: &TinyRelease) -> Snapshot {
    let disk = Disk::in_memory(sizes.disk());
    first.provision(&disk, sizes, boot, IDENTITY).unwrap();
    disk.snapshot().unwrap()
}

pub(crate) fn machine(boot: BootLoader, snapshot: Snapshot) -> Hardware {
    Hardware::new(Disk::from_snapshot(snapshot), boot, IDENTITY)
}

/// A step that is left out or done too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// The slot is not flushed before its boot entry appears.
    SlotNotFlushed,
    /// The boot image is renamed to its final name before its content is durable.
    ImageNotSynced,
    /// The partition table's new names are not flushed before the boot entry appears.
    TableNotFlushed,
    /// Both copies of the partition table are written without a flush between them.
    TableCopiesTogether,
    /// The boot entry appears before the slot is written.
    ArmedFirst,
}

pub(crate) struct Writer<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) boot: BootLoader,
    pub(crate) mistake: Option<Mistake>,
}

impl Writer<'_> {
    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn esp(&self) -> Esp {
        Table::read(self.disk).unwrap().esp().unwrap()
    }

    /// Steps 2 to 6.
    pub(crate) fn stage(&self, slot: Slot, release: &TinyRelease) {
        self.disk.note(format!("writer: stage {} in slot {slot}", release.version));
        self.forget(slot);
        self.name(slot, "_writing", Uuid::from_u128(1), Uuid::from_u128(2));
        let table = Table::read(self.disk).unwrap();
        for (number, content) in [(slot.data(), &release.data), (slot.verity(), &release.verity)] {
            let part = table.part(number).unwrap();
            for (index, frame) in content.chunks(16 << 10).enumerate() {
                part.write_all((index * (16 << 10)) as u64, frame).unwrap();
            }
            if !self.makes(Mistake::SlotNotFlushed) {
                part.flush().unwrap();
            }
        }
        let halves = [release.root_hash.first_half(), release.root_hash.second_half()];
        self.name(slot, &release.version, Uuid::from_bytes(halves[0]), Uuid::from_bytes(halves[1]));
    }

    /// Removes whatever could boot the slot.
    fn forget(&self, slot: Slot) {
        match self.boot {
            BootLoader::Gptprio => {
                let mut table = Table::read(self.disk).unwrap();
                let bits = Attributes::default().merged_into(table.attributes(slot.data()));
                table.set_attributes(slot.data(), bits).unwrap();
            }
            BootLoader::SystemdBoot => {
                let label = Table::read(self.disk).unwrap().label(slot.data());
                let esp = self.esp();
                for file in esp.list("EFI/Linux").unwrap() {
                    if file.name.strip_prefix("acme-os-").is_some_and(|rest| rest.starts_with(&label)) {
                        esp.remove(&format!("EFI/Linux/{}", file.name)).unwrap();
                    }
                }
                esp.sync().unwrap();
            }
        }
    }

    fn name(&self, slot: Slot, label: &str, data: Uuid, verity: Uuid) {
        let mut table = Table::read(self.disk).unwrap();
        for (number, unique) in [(slot.data(), data), (slot.verity(), verity)] {
            table.change(number, label, unique).unwrap();
        }
        // The backup copy must be durable before the primary one is touched.
        let flush = !self.makes(Mistake::TableCopiesTogether) && !self.makes(Mistake::TableNotFlushed);
        for copy in [Copy::Backup, Copy::Primary] {
            table.write_copy(copy, flush).unwrap();
        }
        if !self.makes(Mistake::TableNotFlushed) {
            Part::whole(self.disk).flush().unwrap();
        }
    }

    /// Step 7.
    pub(crate) fn arm(&self, slot: Slot, release: &TinyRelease) {
        self.disk.note(format!("writer: arm {}", release.version));
        match self.boot {
            BootLoader::Gptprio => {
                let mut table = Table::read(self.disk).unwrap();
                let running = Attributes { priority: 1, tries: 0, successful: true };
                let bits = running.merged_into(table.attributes(slot.other().data()));
                table.set_attributes(slot.other().data(), bits).unwrap();
                let trial = Attributes { priority: 2, tries: 3, successful: false };
                let bits = trial.merged_into(table.attributes(slot.data()));
                table.set_attributes(slot.data(), bits).unwrap();
            }
            BootLoader::SystemdBoot => {
                let esp = self.esp();
                let name = release.entry().replace(".efi", "+3-0.efi");
                esp.write("EFI/Linux/.bascule.tmp", &release.uki).unwrap();
                if !self.makes(Mistake::ImageNotSynced) {
                    esp.sync().unwrap();
                }
                esp.rename("EFI/Linux/.bascule.tmp", &format!("EFI/Linux/{name}")).unwrap();
                esp.sync().unwrap();
            }
        }
    }

    /// Step 8, after the firmware counted one try down.
    pub(crate) fn commit(&self, slot: Slot, release: &TinyRelease) {
        self.disk.note(format!("writer: commit {}", release.version));
        self.settle(slot, release, true);
    }

    /// Step 8, the other way.
    pub(crate) fn revert(&self, slot: Slot, release: &TinyRelease) {
        self.disk.note(format!("writer: revert {}", release.version));
        self.settle(slot, release, false);
    }

    fn settle(&self, slot: Slot, release: &TinyRelease, good: bool) {
        match self.boot {
            BootLoader::Gptprio => {
                let mut table = Table::read(self.disk).unwrap();
                let settled = Attributes { priority: if good { 2 } else { 0 }, tries: 0, successful: good };
                let bits = settled.merged_into(table.attributes(slot.data()));
                table.set_attributes(slot.data(), bits).unwrap();
            }
            BootLoader::SystemdBoot => {
                let esp = self.esp();
                let counted = release.entry().replace(".efi", "+2-1.efi");
                let settled = if good { release.entry() } else { release.entry().replace(".efi", "+0-1.efi") };
                esp.rename(&format!("EFI/Linux/{counted}"), &format!("EFI/Linux/{settled}")).unwrap();
                esp.sync().unwrap();
            }
        }
    }
}
