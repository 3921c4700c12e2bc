//! Why a release that is signed and well-formed is still not for this node.

use bascule_names::{Architecture, ChannelName, Product, Version};

/// Why a signed, well-formed release is not for this node. Each says what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The file belongs to another product.
    #[error("this is a release of product {found}, this host accepts {accepted}")]
    OtherProduct {
        /// Product of the file.
        found: Product,
        /// Product of the host.
        accepted: Product,
    },
    /// The release does not exist for the host's architecture.
    #[error("release {version} exists for {}, this host accepts {accepted}", list(found))]
    OtherArchitecture {
        /// Version of the release.
        version: Version,
        /// Architectures it exists for.
        found: Vec<Architecture>,
        /// Architecture of the host.
        accepted: Architecture,
    },
    /// The channel does not hold the version.
    #[error("channel {channel} has no release {version}; {}", offer(newest))]
    NotInChannel {
        /// The channel.
        channel: ChannelName,
        /// Version asked for.
        version: Version,
        /// What the channel offers instead.
        newest: Option<Version>,
    },
    /// The vendor took the release back.
    #[error("release {version} was withdrawn ({reason}); {}", offer(newest))]
    Withdrawn {
        /// Version of the release.
        version: Version,
        /// The vendor's reason.
        reason: String,
        /// What the channel offers instead.
        newest: Option<Version>,
    },
    /// The node runs less than the release's floor.
    #[error("release {version} accepts nodes from {floor} on, this one runs {running}; install {floor} first")]
    BelowFloor {
        /// Version of the release.
        version: Version,
        /// Its floor.
        floor: Version,
        /// What the node runs.
        running: Version,
    },
    /// The node runs something newer, and the release does not say that going back is fine.
    #[error("release {version} is older than the running {running} and its channel entry does not allow a downgrade")]
    Downgrade {
        /// Version of the release.
        version: Version,
        /// What the node runs.
        running: Version,
    },
    /// Floors point at each other, or at something that is not below.
    #[error(
        "the minimum source versions of channel {channel} lead from {running} nowhere near {version}; the vendor must correct release {at}"
    )]
    NoWay {
        /// The channel.
        channel: ChannelName,
        /// Version asked for.
        version: Version,
        /// What the node runs.
        running: Version,
        /// Release whose floor leads nowhere.
        at: Version,
    },
}

impl Refusal {
    /// Stable label for metrics and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::OtherProduct { .. } => "other-product",
            Self::OtherArchitecture { .. } => "other-architecture",
            Self::NotInChannel { .. } => "not-in-channel",
            Self::Withdrawn { .. } => "withdrawn",
            Self::BelowFloor { .. } => "below-floor",
            Self::Downgrade { .. } => "downgrade",
            Self::NoWay { .. } => "no-way",
        }
    }
}

fn list(architectures: &[Architecture]) -> String {
    architectures.iter().map(|architecture| architecture.as_str()).collect::<Vec<_>>().join(", ")
}

fn offer(newest: &Option<Version>) -> String {
    match newest {
        Some(newest) => format!("it offers {newest}"),
        None => "it offers nothing for this host".to_owned(),
    }
}
