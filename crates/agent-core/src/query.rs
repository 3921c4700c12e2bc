//! Plain values that stand between the state machine and the host traits.

use bascule_api::{Architecture, ChannelName, Digest, Product, RootHash, Version};

/// Where a partition lies on its disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Which release is asked for, and what the node is and holds: the repository's own rules (product, architecture,
/// floor, no way down) are judged against that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseQuery {
    /// Address of the repository.
    pub repository: String,
    /// The channel that lists the release.
    pub channel: ChannelName,
    /// Its version.
    pub version: Version,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The host's product.
    pub product: Product,
    /// The host's architecture.
    pub architecture: Architecture,
    /// What runs: version and root hash.
    pub booted: Option<(Version, RootHash)>,
    /// What the other slot holds, if that is a whole release that this node once verified.
    pub other: Option<(Version, RootHash)>,
}
