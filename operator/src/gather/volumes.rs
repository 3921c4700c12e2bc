//! Which volumes are attached to which node, and whose they are.

use super::cache::Fact;
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::VolumeAttachment};

/// One VolumeAttachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentFact {
    /// The node.
    pub node: String,
    /// The PersistentVolume; the attachment's own name for a volume that is written into its pod.
    pub volume: String,
}

impl Fact for AttachmentFact {
    type Raw = VolumeAttachment;

    fn of(attachment: &VolumeAttachment) -> Self {
        let spec = &attachment.spec;
        let volume = spec.source.persistent_volume_name.clone();
        Self {
            node: spec.node_name.clone(),
            volume: volume.or_else(|| attachment.metadata.name.clone()).unwrap_or_default(),
        }
    }

    fn place(&self) -> &str {
        &self.node
    }
}

/// One PersistentVolumeClaim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimFact {
    /// The PersistentVolume that it is bound to; empty while it is none.
    pub volume: String,
}

impl Fact for ClaimFact {
    type Raw = PersistentVolumeClaim;

    fn of(claim: &PersistentVolumeClaim) -> Self {
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
        Self { volume: volume.unwrap_or_default() }
    }
}
