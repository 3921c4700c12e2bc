//! How large the parts of a disk are: chosen, or computed with room to grow.
//!
//! Later releases are larger, and a slot can't grow once another partition lies behind it, so a slot gets twice what the first
//! image takes. The state partition lies last: it takes what is left, and grows with the disk.

use bascule_image::verity::Geometry;

const MIB: u64 = 1 << 20;
/// Usual alignment of partitions: a multiple of every block size that a disk has.
const ALIGNMENT: u64 = MIB;
/// Bytes of a table's 128 entries (UEFI specification, 5.3.1).
const TABLE_ENTRIES: u64 = 128 * 128;
/// Boot images that the partition of the entries holds at once: the running one, the other slot's, and the one that is being
/// written (docs/os-image.md).
const BOOT_IMAGES: u64 = 3;
/// What a FAT file system, both copies of the boot loader, fonts and keys take beside the boot images, with the MiB that the agent
/// wants to spare.
const BOOT_OVERHEAD: u64 = 32 * MIB;
/// Smallest boot partition that is chosen where none is asked for: FAT32 with clusters of 4 KiB, and room for larger images.
const USUAL_BOOT: u64 = 512 * MIB;
/// State partition where none is asked for. It grows to the end of the disk.
const USUAL_STATE: u64 = 1024 * MIB;
/// Smallest state partition: ext4 with a journal, and room for the agent's own state.
const LEAST_STATE: u64 = 64 * MIB;

/// Bytes of a logical sector: the unit in which a partition table counts, and in which a boot partition is read. A disk that is made for
/// the one is none to a drive with the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SectorSize {
    /// 512 bytes: nearly all disks of clouds and virtual machines, and drives that emulate it.
    #[default]
    B512,
    /// 4096 bytes: "4K native" drives, NVMe formatted so.
    B4096,
}

impl SectorSize {
    /// In bytes.
    pub const fn bytes(self) -> u16 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

/// What the first release takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The file system image.
    pub image: u64,
    /// The boot image.
    pub boot_image: u64,
    /// What is put on the ESP beside boot loader and boot image.
    pub files: u64,
}

/// Sizes that somebody chose, in bytes; `None` is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The whole disk. What the other parts leave is the state partition's.
    pub disk: Option<u64>,
    /// The EFI system partition.
    pub esp: Option<u64>,
    /// An extended boot loader partition, on which the entries lie then. Without a wish there is none.
    pub xbootldr: Option<u64>,
    /// The data partition of each slot.
    pub slot: Option<u64>,
    /// The state partition.
    pub state: Option<u64>,
    /// What the drive has that the disk is for.
    pub sector: SectorSize,
}

/// Lengths of the partitions in bytes; each is rounded up to whole alignments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The EFI system partition.
    pub esp: u64,
    /// Each data partition.
    pub data: u64,
    /// Each verity partition.
    pub verity: u64,
    /// The state partition.
    pub state: u64,
    /// The extended boot loader partition, where the entries lie then; 0: there is none.
    pub xbootldr: u64,
    /// Alignment of every partition.
    pub alignment: u64,
    /// The drive's sectors.
    pub sector: SectorSize,
}

/// Why a disk can't be cut like this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The parts don't fit.
    #[error(
        "the disk has {} MiB, and needs {}: {} for booting, {} for each slot, at least {} for the state; make it larger, or \
         choose smaller parts", mib(*.has), mib_up(*.needs), mib_up(*.boot), mib_up(*.slot), mib_up(*.state)
    )]
    Disk {
        /// Bytes of the disk.
        has: u64,
        /// Bytes that it would need.
        needs: u64,
        /// Bytes of ESP and extended boot loader partition.
        boot: u64,
        /// Bytes of a slot, hash tree included.
        slot: u64,
        /// Bytes of the state partition.
        state: u64,
    },
    /// The boot entries don't fit.
    #[error(
        "the partition of the boot entries has {} MiB, and needs {}: two boot images of {} MiB, a third while it is written, \
         and {} MiB for the boot loader; make it larger, or the boot image smaller",
        mib(*.has), mib_up(*.needs), mib_up(*.boot_image), BOOT_OVERHEAD / MIB
    )]
    Boot {
        /// Bytes of the partition.
        has: u64,
        /// Bytes that it needs.
        needs: u64,
        /// Bytes of the first boot image.
        boot_image: u64,
    },
    /// What lies on the ESP beside the entries doesn't fit.
    #[error("the ESP has {} MiB, and needs {} for the boot loader and its files: make it larger", mib(*.has), mib_up(*.needs))]
    Esp {
        /// Bytes of the partition.
        has: u64,
        /// Bytes that it needs.
        needs: u64,
    },
    /// The image doesn't fit.
    #[error("a slot has {} MiB, the image {}: make the slots larger, with room for later releases", mib(*.has), mib_up(*.needs))]
    Slot {
        /// Bytes of the data partition.
        has: u64,
        /// Bytes of the image.
        needs: u64,
    },
    /// The state partition is too small for a file system.
    #[error("the state partition has {} MiB, and needs at least {}: make it larger", mib(*.has), LEAST_STATE / MIB)]
    State {
        /// Bytes of the partition.
        has: u64,
    },
    /// The numbers are larger than any disk.
    #[error("these parts are larger than any disk: choose smaller ones")]
    Absurd,
}

const fn mib(bytes: u64) -> u64 {
    bytes / MIB
}

const fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(MIB)
}

/// Bytes that the partition of the boot entries must have for boot images of `boot_image` bytes: the running one, the other
/// slot's, one that is being written, and what lies beside them.
pub const fn least_for_entries(boot_image: u64) -> u64 {
    boot_image.saturating_mul(BOOT_IMAGES).saturating_add(BOOT_OVERHEAD)
}

impl Wishes {
    /// The sizes of all parts.
    ///
    /// # Errors
    /// What was chosen is too small for the release, or the parts don't fit the disk.
    pub fn sizes(&self, needs: Needs) -> Result<Sizes, SizeError> {
        let round = |bytes: u64| bytes.checked_next_multiple_of(ALIGNMENT).ok_or(SizeError::Absurd);
        let entries = least_for_entries(needs.boot_image).saturating_add(match self.xbootldr {
            Some(_) => 0,
            None => needs.files,
        });
        let (esp, xbootldr) = match self.xbootldr {
            Some(has) => {
                let least = BOOT_OVERHEAD.saturating_add(needs.files);
                let esp = self.esp.unwrap_or(least);
                if esp < least {
                    return Err(SizeError::Esp { has: esp, needs: least });
                }
                (round(esp)?, round(has)?)
            }
            None => (round(self.esp.unwrap_or(entries.max(USUAL_BOOT)))?, 0),
        };
        let has = if xbootldr > 0 { xbootldr } else { esp };
        if has < entries {
            return Err(SizeError::Boot { has, needs: entries, boot_image: needs.boot_image });
        }
        let data = round(self.slot.unwrap_or(needs.image.saturating_mul(2)))?;
        if data < needs.image {
            return Err(SizeError::Slot { has: data, needs: needs.image });
        }
        // For an image that fills the slot, not only for the first one.
        let verity = round(Geometry::of_image(data).hash_size())?;
        let least = self.state.unwrap_or(LEAST_STATE);
        if least < LEAST_STATE {
            return Err(SizeError::State { has: least });
        }
        let state = round(self.state.unwrap_or(USUAL_STATE))?;
        let mut sizes = Sizes { esp, data, verity, state, xbootldr, alignment: ALIGNMENT, sector: self.sector };
        let whole = sizes.checked_disk().ok_or(SizeError::Absurd)?;
        if let Some(has) = self.disk {
            let others = whole - sizes.state;
            let least = round(least)?;
            let left = has.saturating_sub(others) / ALIGNMENT * ALIGNMENT;
            if left < least {
                let (boot, slot) = (sizes.esp + sizes.xbootldr, sizes.data + sizes.verity);
                return Err(SizeError::Disk { has, needs: others + least, boot, slot, state: least });
            }
            sizes.state = left;
        }
        Ok(sizes)
    }
}

impl Sizes {
    /// Length that the disk must have, in bytes.
    pub fn disk(&self) -> u64 {
        self.checked_disk().unwrap_or(u64::MAX)
    }

    fn checked_disk(&self) -> Option<u64> {
        let round = |bytes: u64| bytes.checked_next_multiple_of(self.alignment.max(1));
        // Protective MBR, header and entries; the backup has no MBR.
        let table = 2 * u64::from(self.sector.bytes()) + TABLE_ENTRIES;
        let mut whole = round(table)?.checked_mul(2)?;
        for part in [self.xbootldr, self.esp, self.data, self.verity, self.data, self.verity, self.state] {
            whole = whole.checked_add(round(part)?)?;
        }
        Some(whole)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REFERENCE: Needs = Needs { image: 134 * MIB + 5, boot_image: 13 * MIB, files: 0 };

    #[test]
    fn what_is_not_chosen_has_room_to_grow() {
        let sizes = Wishes::default().sizes(REFERENCE).unwrap();
        assert_eq!((sizes.esp, sizes.xbootldr, sizes.state), (512 * MIB, 0, 1024 * MIB));
        assert_eq!(sizes.data, 269 * MIB);
        assert!(sizes.verity >= Geometry::of_image(sizes.data).hash_size());
        let large = Wishes::default().sizes(Needs { boot_image: 200 * MIB, ..REFERENCE }).unwrap();
        assert_eq!(large.esp, 632 * MIB, "a larger boot image, a larger partition");
    }

    #[test]
    fn a_disk_of_a_size_gives_the_rest_to_the_state() {
        let usual = Wishes::default().sizes(REFERENCE).unwrap();
        let wishes = Wishes { disk: Some(20 << 30), ..Wishes::default() };
        let sizes = wishes.sizes(REFERENCE).unwrap();
        assert_eq!(sizes.disk(), 20 << 30);
        assert_eq!(Sizes { state: usual.state, ..sizes }, usual);
    }

    #[test]
    fn what_is_too_small_is_said_with_what_it_needs() {
        let refused = |wishes: Wishes| wishes.sizes(REFERENCE).unwrap_err();
        let least = least_for_entries(REFERENCE.boot_image);
        for wishes in [
            Wishes { esp: Some(least - MIB), ..Wishes::default() },
            Wishes { xbootldr: Some(least - MIB), ..Wishes::default() },
        ] {
            assert!(matches!(refused(wishes), SizeError::Boot { needs, .. } if needs == least));
        }
        assert!(Wishes { esp: Some(least), ..Wishes::default() }.sizes(REFERENCE).is_ok());
        let esp = Wishes { esp: Some(MIB), xbootldr: Some(512 * MIB), ..Wishes::default() };
        assert!(matches!(refused(esp), SizeError::Esp { .. }));
        assert!(matches!(refused(Wishes { slot: Some(134 * MIB), ..Wishes::default() }), SizeError::Slot { .. }));
        assert!(matches!(refused(Wishes { state: Some(MIB), ..Wishes::default() }), SizeError::State { .. }));
        let error = refused(Wishes { disk: Some(1 << 30), ..Wishes::default() });
        let SizeError::Disk { needs, .. } = error else { panic!("{error:?}") };
        assert!(
            Wishes { disk: Some(needs), ..Wishes::default() }.sizes(REFERENCE).is_ok(),
            "what it asks for is enough"
        );
        assert!(error.to_string().contains("the disk has 1024 MiB, and needs 1122: 512 for booting"), "{error}");
        let more = Needs { files: 900 * MIB, ..REFERENCE };
        assert!(Wishes { esp: Some(512 * MIB), ..Wishes::default() }.sizes(more).is_err(), "files take room, too");
    }

    proptest! {
        #[test]
        fn no_numbers_overflow_and_what_is_cut_holds_the_release(
            disk in proptest::option::of(any::<u64>()), esp in proptest::option::of(any::<u64>()),
            xbootldr in proptest::option::of(any::<u64>()), slot in proptest::option::of(any::<u64>()),
            state in proptest::option::of(any::<u64>()), image in any::<u64>(), boot_image in any::<u64>(), files in any::<u64>(),
            shift in 0u32..50,
        ) {
            let small = |bytes: Option<u64>| bytes.map(|bytes| bytes >> shift);
            let (disk, esp, xbootldr, slot, state) = (small(disk), small(esp), small(xbootldr), small(slot), small(state));
            let wishes = Wishes { disk, esp, xbootldr, slot, state, sector: SectorSize::B4096 };
            let needs = Needs { image: image >> shift, boot_image: boot_image >> shift, files: files >> shift };
            if let Ok(sizes) = wishes.sizes(needs) {
                prop_assert!(sizes.data >= needs.image);
                let entries = if sizes.xbootldr > 0 { sizes.xbootldr } else { sizes.esp };
                prop_assert!(entries >= least_for_entries(needs.boot_image));
                prop_assert!(wishes.disk.is_none_or(|disk| sizes.disk() <= disk));
            }
        }
    }
}
