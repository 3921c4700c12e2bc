//! Writing the statuses of policies, Freezes and Rollbacks: server-side apply of the whole status, which is ours alone.

use super::{ApplyError, Writer};
use crate::{
    gather::PolicyFact,
    notify::{Kind, Notification},
};
use bascule_api::{
    Freeze, FreezeStatus, OPERATOR_MANAGER, Rollback, RollbackStatus, UpdatePolicy, UpdatePolicyStatus,
    conditions::HALTED,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use std::time::Duration;

/// How long the write of one status may take.
pub(super) const SLOW_STATUS: Duration = Duration::from_secs(10);

impl Writer {
    /// Writes a policy's status, if it differs. The resourceVersion guards the policy's memory: a person may have taken
    /// a release off the block list meanwhile.
    pub(crate) async fn write_policy(
        &self,
        policy: &PolicyFact,
        status: &UpdatePolicyStatus,
    ) -> Result<bool, ApplyError> {
        if policy.status == *status {
            return Ok(false);
        }
        let version = Some(policy.resource_version.as_str());
        let written: UpdatePolicy =
            self.write_status("UpdatePolicy", &policy.name, &policy.uid, version, status).await?;
        self.world.policies.written(&written);
        // Here, since a failure that blocks a release is written with the policy's memory, and what follows it halts with that.
        if let Some(message) = halts(&policy.status, status) {
            self.notifier.tell(Notification {
                kind: Kind::Halted,
                policy: policy.name.clone(),
                release: status.target.as_ref().map(|target| target.version.clone()),
                message: message.to_owned(),
            });
        }
        Ok(true)
    }

    /// Writes a Freeze's status.
    pub(crate) async fn write_freeze(&self, name: &str, uid: &str, status: &FreezeStatus) -> Result<(), ApplyError> {
        let written: Freeze = self.write_status("Freeze", name, uid, None, status).await?;
        self.world.freezes.written(&written);
        Ok(())
    }

    /// Writes a Rollback's status.
    pub(crate) async fn write_rollback(
        &self,
        name: &str,
        uid: &str,
        status: &RollbackStatus,
    ) -> Result<(), ApplyError> {
        let written: Rollback = self.write_status("Rollback", name, uid, None, status).await?;
        self.world.rollbacks.written(&written);
        Ok(())
    }

    async fn write_status<K>(
        &self,
        kind: &'static str,
        name: &str,
        uid: &str,
        resource_version: Option<&str>,
        status: &impl Serialize,
    ) -> Result<K, ApplyError>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let mut metadata = json!({"name": name, "uid": uid});
        if let (Some(version), Some(metadata)) = (resource_version, metadata.as_object_mut()) {
            metadata.insert("resourceVersion".to_owned(), json!(version));
        }
        let document = json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": kind, "metadata": metadata, "status": status,
        });
        let params = PatchParams::apply(OPERATOR_MANAGER).force();
        let objects: Api<K> = Api::all(self.client.clone());
        let patch = Patch::Apply(&document);
        let written = tokio::time::timeout(SLOW_STATUS, objects.patch_status(name, &params, &patch)).await;
        let written = written.map_err(|_| ApplyError::TooSlow { action: "the status" })?;
        let written = written.map_err(|error| ApplyError::of(format!("the status of {kind} {name}"), error))?;
        self.metrics.wrote(&format!("{kind}/status"));
        Ok(written)
    }
}

/// Why a policy starts no more nodes that did before.
fn halts<'a>(before: &UpdatePolicyStatus, after: &'a UpdatePolicyStatus) -> Option<&'a str> {
    fn halted(status: &UpdatePolicyStatus) -> Option<&str> {
        let halted = status.conditions.iter().find(|one| one.type_ == HALTED && one.status == "True");
        halted.map(|one| one.message.as_str())
    }
    halted(after).filter(|_| halted(before).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_halt_is_told_when_it_begins() {
        let status = |halted: &str| -> UpdatePolicyStatus {
            let condition = json!({"type": HALTED, "status": halted, "reason": "FailureThreshold",
                "message": "41.3.0 failed on 2 nodes", "lastTransitionTime": "2026-11-28T23:00:00Z"});
            serde_json::from_value(json!({"conditions": [condition]})).unwrap()
        };
        let none = UpdatePolicyStatus::default();
        assert_eq!(halts(&none, &status("True")), Some("41.3.0 failed on 2 nodes"));
        assert_eq!(halts(&status("False"), &status("True")), Some("41.3.0 failed on 2 nodes"));
        assert_eq!(halts(&status("True"), &status("True")), None, "once");
        assert_eq!(halts(&status("True"), &status("False")), None);
    }
}
