//! Which partitions are the slots, and what their labels and PARTUUIDs say they hold.

use bascule_api::{Architecture, NodeError, RootHash, SlotName, Version};
use bascule_gpt::kind;
use bascule_image::command_line::VerityOption;
use uuid::Uuid;

use crate::core::{Partition, PerSlot, SlotContent};
use crate::gpt::Change;

/// GPT flag "no automatic mounting" (Discoverable Partitions Specification, "Partition Flags").
pub const NO_AUTO: u64 = 1 << 63;
/// GPT flag "read-only" (same).
pub const READ_ONLY: u64 = 1 << 60;
/// Label of a slot without a release (systemd-sysupdate's convention).
pub const EMPTY_LABEL: &str = "_empty";
/// Start of the label of a slot that is being written (Discoverable Partitions Specification, "Partition Names": reserved
/// for partitions that are partially updated).
pub const WRITING_PREFIX: &str = "PRT#";

// A label is a version, with the prefix at most; the product, which may be longer, is in none. A partition name has 36 UTF-16
// units (UEFI 2.10, 5.3.3), and both texts are ASCII.
const _: () = assert!(WRITING_PREFIX.len() + Version::MAX_LENGTH <= 36);

/// Which kind of file system a slot holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotKind {
    /// The root file system; `roothash=` on the command line.
    #[default]
    Root,
    /// `/usr`; `usrhash=` on the command line.
    Usr,
}

impl SlotKind {
    /// Types of data and verity partition (Discoverable Partitions Specification, "Defined Partition Type UUIDs").
    const fn types(self, architecture: Architecture) -> (Uuid, Uuid) {
        match (self, architecture) {
            (Self::Root, Architecture::X86_64) => (kind::ROOT_X86_64, kind::ROOT_X86_64_VERITY),
            (Self::Root, Architecture::Arm64) => (kind::ROOT_ARM64, kind::ROOT_ARM64_VERITY),
            (Self::Usr, Architecture::X86_64) => (kind::USR_X86_64, kind::USR_X86_64_VERITY),
            (Self::Usr, Architecture::Arm64) => (kind::USR_ARM64, kind::USR_ARM64_VERITY),
        }
    }

    /// The option of the kernel's command line that names the root hash.
    pub const fn option(self) -> VerityOption {
        match self {
            Self::Root => VerityOption::Root,
            Self::Usr => VerityOption::Usr,
        }
    }
}

/// Numbers of a slot's partitions, where they are not to be found by type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SlotNumbers {
    /// The data partition.
    pub data: u32,
    /// The verity partition.
    pub verity: u32,
}

/// How the slots are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotLayout {
    /// What they hold.
    pub kind: SlotKind,
    /// Their partitions' numbers; without it, the two pairs of the kind's types in the order of their numbers.
    pub numbers: Option<PerSlot<SlotNumbers>>,
}

/// Why the slots are not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Not two of each.
    #[error(
        "there are {data} data and {verity} verity partitions of the slots' types, expected are two of each: name their \
         numbers in the settings (slots.a, slots.b)"
    )]
    Number {
        /// Data partitions.
        data: usize,
        /// Verity partitions.
        verity: usize,
    },
    /// The settings name a partition that is not there.
    #[error("the settings name partition {0} for a slot, and there is none")]
    Missing(u32),
    /// The settings name a partition twice.
    #[error(
        "the settings name partition {0} more than once: each slot needs a data and a verity partition of its own (a hash tree \
         behind the data, on the same partition, can't be used)"
    )]
    Shared(u32),
    /// What a slot is found by is another partition's, too.
    #[error(
        "partitions {slot} and {other} both have PARTUUID {uuid}, by which the slot is found at boot, so that either may be what \
         runs: give the one that is not in use another (sgdisk --partition-guid={other}:R, after a look at lsblk)"
    )]
    Same {
        /// A partition of a slot.
        slot: u32,
        /// Another partition.
        other: u32,
        /// What both have.
        uuid: Uuid,
    },
    /// Neither slot is the one that runs.
    #[error("no slot holds the running root hash {0}: this system was not booted from one of the two slots")]
    NotBooted(RootHash),
    /// The command line has no root hash.
    #[error(
        "the kernel's command line has no {0}= of 64 hexadecimal digits: this system runs without dm-verity and can't be updated by slots"
    )]
    NoRootHash(&'static str),
}

impl SlotError {
    /// The kind, for status and metrics.
    pub const fn category(&self) -> NodeError {
        match self {
            Self::Number { .. } | Self::Missing(_) | Self::Shared(_) => NodeError::Settings,
            Self::Same { .. } | Self::NotBooted(_) | Self::NoRootHash(_) => NodeError::Unsuitable,
        }
    }
}

/// Data and verity partition of each slot.
///
/// # Errors
/// [`SlotError`] when there are not exactly two pairs, or another partition has the PARTUUID of one of theirs.
pub fn find(
    partitions: &[(Uuid, Partition)],
    layout: SlotLayout,
    architecture: Architecture,
) -> Result<PerSlot<(Partition, Partition)>, SlotError> {
    let found = pairs(partitions, layout, architecture)?;
    for slot in [&found.a, &found.b].into_iter().flat_map(|(data, verity)| [data, verity]) {
        let same = |other: &&Partition| other.number != slot.number && other.uuid == slot.uuid;
        if let Some(other) = partitions.iter().map(|(_, partition)| partition).find(same) {
            return Err(SlotError::Same { slot: slot.number, other: other.number, uuid: slot.uuid });
        }
    }
    Ok(found)
}

/// The pairs by their types, or by the numbers that the settings name.
fn pairs(
    partitions: &[(Uuid, Partition)],
    layout: SlotLayout,
    architecture: Architecture,
) -> Result<PerSlot<(Partition, Partition)>, SlotError> {
    if let Some(numbers) = layout.numbers {
        let mut all = [numbers.a.data, numbers.a.verity, numbers.b.data, numbers.b.verity];
        all.sort_unstable();
        if let Some([twice, _]) = all.array_windows().find(|[one, next]| one == next) {
            return Err(SlotError::Shared(*twice));
        }
        let by_number = |number: u32| {
            let found = partitions.iter().find(|(_, partition)| partition.number == number);
            found.map(|(_, partition)| partition.clone()).ok_or(SlotError::Missing(number))
        };
        return Ok(PerSlot {
            a: (by_number(numbers.a.data)?, by_number(numbers.a.verity)?),
            b: (by_number(numbers.b.data)?, by_number(numbers.b.verity)?),
        });
    }
    let (data_type, verity_type) = layout.kind.types(architecture);
    let of_type = |wanted: Uuid| -> Vec<&Partition> {
        partitions.iter().filter(|(kind, _)| *kind == wanted).map(|(_, partition)| partition).collect()
    };
    let (data, verity) = (of_type(data_type), of_type(verity_type));
    match (data.as_slice(), verity.as_slice()) {
        ([a, b], [va, vb]) => Ok(PerSlot { a: ((*a).clone(), (*va).clone()), b: ((*b).clone(), (*vb).clone()) }),
        _ => Err(SlotError::Number { data: data.len(), verity: verity.len() }),
    }
}

/// What a slot's partitions say they hold.
pub fn content(data: &Partition, verity: &Partition) -> SlotContent {
    let label = data.label.as_str();
    if label == EMPTY_LABEL {
        return SlotContent::Empty;
    }
    if let Some(version) = label.strip_prefix(WRITING_PREFIX) {
        return SlotContent::Writing { version: Version::parse(version).ok() };
    }
    // A change of labels that power loss cut is undone by the table's other copy, so both always agree.
    match Version::parse(label) {
        Ok(version) if verity.label == data.label => {
            SlotContent::Release { version, root_hash: root_hash(data, verity) }
        }
        _ => SlotContent::Foreign,
    }
}

/// The root hash that two PARTUUIDs make (Discoverable Partitions Specification: the first 128 bits are the data
/// partition's, the last those of the verity partition).
pub fn root_hash(data: &Partition, verity: &Partition) -> RootHash {
    let mut bytes = [0; 32];
    let halves = data.uuid.as_bytes().iter().chain(verity.uuid.as_bytes());
    bytes.iter_mut().zip(halves).for_each(|(to, from)| *to = *from);
    RootHash::from_bytes(&bytes)
}

/// The slot that runs.
///
/// # Errors
/// [`SlotError::NotBooted`] when neither has the running root hash.
pub fn booted(slots: &PerSlot<(Partition, Partition)>, running: &RootHash) -> Result<SlotName, SlotError> {
    let runs = |slot: SlotName| {
        let (data, verity) = slots.get(slot);
        root_hash(data, verity) == *running
    };
    [SlotName::A, SlotName::B].into_iter().find(|slot| runs(*slot)).ok_or_else(|| SlotError::NotBooted(running.clone()))
}

fn halves(root_hash: &RootHash) -> (Uuid, Uuid) {
    let bytes = root_hash.to_bytes();
    let (first, last) = bytes.split_at(16);
    (Uuid::from_slice(first).unwrap_or_default(), Uuid::from_slice(last).unwrap_or_default())
}

/// Changes that say: a release is being written here. The PARTUUIDs become others that belong to no release, so that
/// no old boot entry finds its root file system in what is half-written.
pub fn writing(version: &Version, root_hash: &RootHash) -> (Change, Change) {
    let (first, last) = halves(root_hash);
    let label = format!("{WRITING_PREFIX}{version}");
    let invert = |uuid: Uuid| Uuid::from_u128(!uuid.as_u128());
    let change = |uuid| Change { label: Some(label.clone()), uuid: Some(uuid), set: NO_AUTO, clear: READ_ONLY };
    (change(invert(first)), change(invert(last)))
}

/// Changes that say: this release is here, whole.
pub fn sealed(version: &Version, root_hash: &RootHash) -> (Change, Change) {
    let (first, last) = halves(root_hash);
    let change = |uuid| Change { label: Some(version.to_string()), uuid: Some(uuid), set: READ_ONLY, clear: NO_AUTO };
    (change(first), change(last))
}

/// Changes that say: nothing is here.
pub fn emptied() -> (Change, Change) {
    let change = || Change { label: Some(EMPTY_LABEL.to_owned()), uuid: None, set: NO_AUTO, clear: READ_ONLY };
    (change(), change())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Extent;

    #[test]
    fn no_partition_is_data_and_tree_at_once() {
        let partition = |number: u32| {
            let extent = Extent { start: u64::from(number) << 20, length: 1 << 20 };
            let uuid = Uuid::from_u128(number.into());
            (Uuid::nil(), Partition { number, label: String::new(), uuid, attributes: 0, extent })
        };
        let partitions = [3, 4, 10, 11].map(partition);
        let find = |a: (u32, u32), b: (u32, u32)| {
            let slot = |(data, verity)| SlotNumbers { data, verity };
            let layout = SlotLayout { kind: SlotKind::Usr, numbers: Some(PerSlot { a: slot(a), b: slot(b) }) };
            find(&partitions, layout, Architecture::X86_64).map(|_| ())
        };
        assert_eq!(find((3, 10), (4, 11)), Ok(()));
        for (a, b, twice) in [((3, 3), (4, 4), 3), ((3, 10), (4, 10), 10), ((3, 10), (3, 11), 3)] {
            let refused = find(a, b).unwrap_err();
            assert_eq!((refused.clone(), refused.category()), (SlotError::Shared(twice), NodeError::Settings));
        }
        assert_eq!(find((3, 10), (4, 12)), Err(SlotError::Missing(12)));
    }

    /// A copy of a slot (by dd, or by an installer that filled both): whichever the initrd finds first is what runs.
    #[test]
    fn a_partuuid_that_two_partitions_have_is_no_way_to_find_a_slot() {
        let (data, verity) = SlotKind::Root.types(Architecture::X86_64);
        let partition = |number: u32, kind: Uuid, uuid: u128| {
            let extent = Extent { start: u64::from(number) << 20, length: 1 << 20 };
            let uuid = Uuid::from_u128(uuid);
            (kind, Partition { number, label: String::new(), uuid, attributes: 0, extent })
        };
        let disk = |uuids: [u128; 6]| {
            let kinds = [Uuid::nil(), data, verity, data, verity, Uuid::nil()];
            let numbered = (1..).zip(kinds).zip(uuids);
            numbered.map(|((number, kind), uuid)| partition(number, kind, uuid)).collect::<Vec<_>>()
        };
        let find = |uuids| find(&disk(uuids), SlotLayout::default(), Architecture::X86_64).map(|_| ());
        assert_eq!(find([1, 2, 3, 4, 5, 6]), Ok(()));
        // Those of others are theirs.
        assert_eq!(find([1, 2, 3, 4, 5, 1]), Ok(()));
        for (uuids, slot, other) in [
            ([1, 2, 3, 2, 3, 6], 2, 4),
            ([1, 2, 3, 4, 3, 6], 3, 5),
            ([1, 2, 3, 4, 5, 4], 4, 6),
            ([2, 2, 3, 4, 5, 6], 2, 1),
        ] {
            let refused = find(uuids).unwrap_err();
            assert_eq!(refused.category(), NodeError::Unsuitable);
            let told = refused.to_string();
            assert!(told.contains(&format!("partitions {slot} and {other} both have PARTUUID")), "{told}");
            assert!(told.contains(&format!("--partition-guid={other}:R")), "{told}");
        }
    }
}
