//! What a policy's channel offers, as the operator read and verified it.

use bascule_api::{Architecture, Digest, KubernetesVersion, RepositoryStatus, Severity, Time, Version};
use std::collections::BTreeMap;

/// A channel's releases and the health of the repository that lists them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offer {
    /// Whether the releases may be used.
    pub state: OfferState,
    /// The releases in the channel's own order; the last that is not withdrawn is what the channel offers.
    pub releases: Vec<Release>,
    /// What goes into the policy's status.
    pub repository: RepositoryStatus,
}

/// Whether a channel's releases may be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum OfferState {
    /// Nothing was read yet.
    #[default]
    Unread,
    /// Verified, and not expired.
    Valid,
    /// The last reading failed, but what was read before is verified and has not expired: it is used on.
    Stale {
        /// Reason for the condition, one of [`bascule_api::conditions::reason`].
        reason: &'static str,
        /// What happened and what to do.
        message: String,
    },
    /// There is nothing that could be trusted.
    Unusable {
        /// Reason for the condition, one of [`bascule_api::conditions::reason`].
        reason: &'static str,
        /// What happened and what to do.
        message: String,
    },
}

/// One release of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The version.
    pub version: Version,
    /// The digest of the manifest for each architecture the release exists for.
    pub digests: BTreeMap<Architecture, Digest>,
    /// How urgent it is.
    pub severity: Severity,
    /// When it was published.
    pub published_at: Time,
    /// The lowest version from which a node may go straight to this one.
    pub floor: Option<Version>,
    /// Whether nodes that run a newer version may install this one.
    pub downgrade: bool,
    /// The kubelet that it brings, where its manifest says so.
    pub kubelet: Option<KubernetesVersion>,
    /// Whether it brings the API server too, so that control planes go first.
    pub brings_api_server: bool,
    /// The state version that it declares.
    pub state_version: Option<u32>,
    /// Why its publisher withdrew it, if so.
    pub withdrawn: Option<String>,
}

impl Offer {
    /// The release with a version, withdrawn or not.
    #[must_use]
    pub fn release(&self, version: &Version) -> Option<&Release> {
        self.releases.iter().find(|release| release.version == *version)
    }
}
