//! Partition types that a host of Bascule has: those of the UEFI specification (section 5.3.3) and of the Discoverable Partitions
//! Specification ("Defined Partition Type UUIDs").

use uuid::{Uuid, uuid};

/// EFI system partition.
pub const ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// Extended boot loader partition.
pub const XBOOTLDR: Uuid = uuid!("bc13c2ff-59e6-4262-a352-b275fd6f7172");
/// Variable data (`/var`), where the state lives.
pub const VAR: Uuid = uuid!("4d21b016-b534-45c2-a9fb-5c16e091fd2d");

/// Root, x86-64.
pub const ROOT_X86_64: Uuid = uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
/// Verity data of a root, x86-64.
pub const ROOT_X86_64_VERITY: Uuid = uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5");
/// Root, arm64.
pub const ROOT_ARM64: Uuid = uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae");
/// Verity data of a root, arm64.
pub const ROOT_ARM64_VERITY: Uuid = uuid!("df3300ce-d69f-4c92-978c-9bfb0f38d820");

/// `/usr`, x86-64.
pub const USR_X86_64: Uuid = uuid!("8484680c-9521-48c6-9c11-b0720656f69e");
/// Verity data of a `/usr`, x86-64.
pub const USR_X86_64_VERITY: Uuid = uuid!("77ff5f63-e7b6-4633-acf4-1565b864c0e6");
/// `/usr`, arm64.
pub const USR_ARM64: Uuid = uuid!("b0e01050-ee5f-4390-949a-9101b17104e9");
/// Verity data of a `/usr`, arm64.
pub const USR_ARM64_VERITY: Uuid = uuid!("6e11a4e7-fbca-4ded-b9e9-e1a512bb664e");
