//! Which partitions a disk has, in which order, and how they are known.

use bascule_gpt::{NewPartition, kind};
use bascule_image::Sha256;
use bascule_names::Architecture;
use uuid::Uuid;

use crate::size::Sizes;

/// Label of a slot without a release (systemd-sysupdate's convention).
pub const EMPTY_LABEL: &str = "_empty";

/// Number of the ESP in the table.
pub const ESP: u32 = 1;
/// Number of the state partition in the table.
pub const STATE: u32 = 6;
/// Number of the extended boot loader partition in the table, where there is one.
pub const XBOOTLDR: u32 = 7;

/// Numbers of a slot's partitions in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotNumbers {
    /// Data.
    pub data: u32,
    /// Superblock and hash tree.
    pub verity: u32,
}

impl SlotNumbers {
    /// Slot A, where the first release goes.
    pub const A: Self = Self { data: 2, verity: 3 };
    /// Slot B, which is empty.
    pub const B: Self = Self { data: 4, verity: 5 };
}

/// A GPT GUID from the 16 bytes of a root hash half, as systemd's `roothash=` look-up reads them (big-endian text form).
pub fn uuid_of_half(half: [u8; 16]) -> Uuid {
    Uuid::from_bytes(half)
}

/// The disk's own UUID where nobody chose one: from what is installed, so that the same release gives the same disk (RFC 9562,
/// version 8: custom).
pub fn identity_of(product: &str, version: &str, root_hash: Sha256) -> Uuid {
    let digest = Sha256::of(format!("bascule disk\n{product}\n{version}\n{root_hash}\n").as_bytes());
    uuid::Builder::from_custom_bytes(digest.first_half()).into_uuid()
}

/// UUID of what has no identity of its own, from the disk's.
pub(crate) fn own(identity: Uuid, number: u32) -> Uuid {
    Uuid::from_u128(identity.as_u128() ^ u128::from(number))
}

/// Types of a root and its verity partition.
const fn root_types(architecture: Architecture) -> (Uuid, Uuid) {
    match architecture {
        Architecture::X86_64 => (kind::ROOT_X86_64, kind::ROOT_X86_64_VERITY),
        Architecture::Arm64 => (kind::ROOT_ARM64, kind::ROOT_ARM64_VERITY),
    }
}

/// The partitions in the order in which they lie on the disk. The state partition is the last: only the last can grow.
pub(crate) fn partitions(
    sizes: Sizes,
    identity: Uuid,
    architecture: Architecture,
    version: &str,
    root_hash: Sha256,
) -> Vec<NewPartition> {
    let (root, verity) = root_types(architecture);
    let own = |number| own(identity, number);
    let (a, b) = (SlotNumbers::A, SlotNumbers::B);
    let all = [
        (ESP, kind::ESP, own(ESP), sizes.esp, "ESP"),
        (XBOOTLDR, kind::XBOOTLDR, own(XBOOTLDR), sizes.xbootldr, "XBOOTLDR"),
        (a.data, root, uuid_of_half(root_hash.first_half()), sizes.data, version),
        (a.verity, verity, uuid_of_half(root_hash.second_half()), sizes.verity, version),
        (b.data, root, own(b.data), sizes.data, EMPTY_LABEL),
        (b.verity, verity, own(b.verity), sizes.verity, EMPTY_LABEL),
        (STATE, kind::VAR, own(STATE), sizes.state, "state"),
    ];
    let wanted = all.into_iter().filter(|(_, _, _, length, _)| *length > 0);
    wanted
        .map(|(number, kind, uuid, length, label)| NewPartition { number, kind, uuid, length, label: label.to_owned() })
        .collect()
}
