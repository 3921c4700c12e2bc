//! Which volumes are attached to which node, and whose they are.

use crate::Fact;
use bascule_api::{Duration, Time};
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::VolumeAttachment};

/// One VolumeAttachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentFact {
    /// The node.
    pub node: String,
    /// The PersistentVolume; the attachment's own name for a volume that is written into its pod.
    pub volume: String,
    /// Since when it is to be detached: Kubernetes deletes the VolumeAttachment, and the driver lets it go when that is done.
    pub detaching_since: Option<Time>,
}

impl AttachmentFact {
    /// Whether its detaching had all the time that a drain gives it before the drain began: it was broken before.
    #[must_use]
    pub fn was_stuck_before(&self, begun: Time, within: Duration) -> bool {
        self.detaching_since.is_some_and(|since| since.after(within) <= begun)
    }
}

impl Fact for AttachmentFact {
    type Raw = VolumeAttachment;

    fn of(attachment: &VolumeAttachment) -> Self {
        let spec = &attachment.spec;
        let volume = spec.source.persistent_volume_name.clone();
        Self {
            node: spec.node_name.clone(),
            volume: volume.or_else(|| attachment.metadata.name.clone()).unwrap_or_default(),
            detaching_since: attachment.metadata.deletion_timestamp.as_ref().map(Time::from_kubernetes),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_should_have_been_detached_long_before_the_drain_was_broken_before() {
        let at = |seconds: i64| Time::new(chrono::DateTime::from_timestamp(1_795_000_000 + seconds, 0).unwrap());
        let fact = |since: Option<Time>| {
            let since = since.map(|since| since.to_string());
            let raw = json!({
                "metadata": {"name": "csi-1", "deletionTimestamp": since},
                "spec": {"attacher": "csi.example.com", "nodeName": "n1", "source": {"persistentVolumeName": "pv-1"}}
            });
            AttachmentFact::of(&serde_json::from_value(raw).unwrap())
        };
        let stuck = |since: Option<Time>| fact(since).was_stuck_before(at(0), Duration::from_secs(300));
        assert_eq!(fact(Some(at(-300))).detaching_since, Some(at(-300)));
        assert!(stuck(Some(at(-300))) && !stuck(Some(at(-299))), "it has its time first");
        assert!(!stuck(Some(at(5))) && !stuck(None));
    }
}
