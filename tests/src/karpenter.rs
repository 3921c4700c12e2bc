//! The real Karpenter, with the provider that makes Nodes and no machines (its "kwok"): the judge of what we tell
//! autoscalers. It decides, taints, drains and deletes as in a cloud; a test plays the kubelets of its Nodes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use crate::control_plane::{Binaries, ControlPlane, ControlPlaneError};
use crate::supervise::Supervised;

/// Longer than it takes to bring up a Node on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The taint on a Node that Karpenter has decided to remove.
pub const DISRUPTED_TAINT: &str = "karpenter.sh/disrupted";

/// The label with the NodePool's name on everything that belongs to it.
pub const POOL_LABEL: &str = "karpenter.sh/nodepool";
/// The NodePool's name.
pub const POOL: &str = "default";

/// A NodePool that removes every empty Node as soon as it may, all of them at once. Its Nodes come with
/// these start-up taints.
fn pool(startup_taints: &[&str]) -> String {
    let taints: Vec<String> = startup_taints.iter().map(|key| format!("{{key: {key}, effect: NoSchedule}}")).collect();
    let taints = taints.join(", ");
    format!(
        r#"
apiVersion: karpenter.kwok.sh/v1alpha1
kind: KWOKNodeClass
metadata: {{name: default}}
---
apiVersion: karpenter.sh/v1
kind: NodePool
metadata: {{name: {POOL}}}
spec:
  disruption: {{consolidationPolicy: WhenEmpty, consolidateAfter: 0s, budgets: [{{nodes: "100%"}}]}}
  template:
    spec:
      expireAfter: Never
      startupTaints: [{taints}]
      nodeClassRef: {{group: karpenter.kwok.sh, kind: KWOKNodeClass, name: default}}
      requirements: [{{key: kubernetes.io/arch, operator: In, values: [amd64]}}]
"#
    )
}

/// A running Karpenter with one NodePool. It ends when this is dropped, or when we are killed.
pub struct Karpenter {
    process: Supervised,
    client: Client,
}

impl std::fmt::Debug for Karpenter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Karpenter").field("process", &self.process).finish_non_exhaustive()
    }
}

impl Karpenter {
    /// Starts Karpenter for a control plane, building it the first time (minutes). Nodes that it adds by itself, for pods
    /// that have none, come with a start-up taint where one is named.
    ///
    /// # Errors
    /// It can't be built or started, or the API server refuses what belongs to it.
    pub async fn start(control_plane: &ControlPlane, startup_taints: &[&str]) -> Result<Self, ControlPlaneError> {
        let say = |sentence: &str| tracing::info!("{sentence}");
        let folder = tokio::task::spawn_blocking(move || Binaries::karpenter(&say)).await??;
        control_plane.apply(&definitions(&folder.join("crds"))?).await?;
        control_plane.apply(&pool(startup_taints)).await?;
        let credentials = control_plane.user("karpenter", &["system:masters"])?;
        let kubeconfig = control_plane.folder().join("karpenter.kubeconfig");
        credentials.write_to(&kubeconfig)?;
        // Port 0 is one that is free.
        let arguments =
            ["--disable-leader-election=true", "--metrics-port=0", "--health-probe-port=0"].map(str::to_owned);
        let environment = [("KUBECONFIG".to_owned(), kubeconfig.display().to_string())];
        let log = control_plane.folder().join("karpenter.log");
        let process = Supervised::start(&folder.join("karpenter"), arguments, &environment, &log)?;
        Ok(Self { process, client: control_plane.client().await? })
    }

    /// Asks for a Node with a label, and waits for it: its kubelet is still to come. Returns its name.
    ///
    /// # Errors
    /// The API server refuses, or Karpenter does nothing.
    pub async fn node(&self, claim: &str, label: (&str, &str)) -> Result<String, ControlPlaneError> {
        let (key, value) = label;
        let manifest = format!(
            r#"
apiVersion: karpenter.sh/v1
kind: NodeClaim
metadata: {{name: {claim}, labels: {{{POOL_LABEL}: {POOL}, {key}: {value}}}}}
spec:
  expireAfter: Never
  nodeClassRef: {{group: karpenter.kwok.sh, kind: KWOKNodeClass, name: default}}
  requirements:
  - {{key: node.kubernetes.io/instance-type, operator: In, values: [c-8x-amd64-linux]}}
  - {{key: karpenter.sh/capacity-type, operator: In, values: [on-demand]}}
  - {{key: topology.kubernetes.io/zone, operator: In, values: [test-zone-a]}}
"#
        );
        crate::control_plane::apply(self.client.clone(), &manifest).await?;
        let registered = self.until_claim(claim, |claim| condition(claim, "Registered")).await?;
        Ok(node_of(&registered).unwrap_or_default())
    }

    /// Waits until Karpenter would remove a Node if it were empty and nobody spoke for it.
    ///
    /// # Errors
    /// It never comes to that.
    pub async fn until_consolidatable(&self, claim: &str) -> Result<(), ControlPlaneError> {
        self.until_claim(claim, |claim| condition(claim, "Consolidatable")).await.map(drop)
    }

    /// Waits until Karpenter takes a Node for one that is ready for pods.
    ///
    /// # Errors
    /// It never comes to that.
    pub async fn until_initialized(&self, claim: &str) -> Result<(), ControlPlaneError> {
        self.until_claim(claim, |claim| condition(claim, "Initialized")).await.map(drop)
    }

    /// What Karpenter has asked for so far: the claims by name, each with its Node once that is registered.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn claims(&self) -> Result<BTreeMap<String, Option<String>>, ControlPlaneError> {
        let all = self.all_claims().list(&ListParams::default()).await?;
        Ok(all.into_iter().map(|claim| (claim.name_any(), node_of(&claim.data))).collect())
    }

    fn all_claims(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("karpenter.sh", "v1", "NodeClaim");
        Api::all_with(self.client.clone(), &ApiResource::from_gvk(&kind))
    }

    async fn until_claim(
        &self,
        name: &str,
        holds: impl Fn(&DynamicObject) -> bool + Send,
    ) -> Result<Value, ControlPlaneError> {
        let waited =
            await_condition(self.all_claims(), name, |claim: Option<&DynamicObject>| claim.is_some_and(&holds));
        let Ok(waited) = tokio::time::timeout(PATIENCE, waited).await else {
            let program = format!("karpenter, with NodeClaim {name},");
            return Err(ControlPlaneError::NotReady { program, waited: PATIENCE, log: self.log_tail() });
        };
        let found = waited.map_err(|error| ControlPlaneError::Manifest {
            name: format!("NodeClaim {name}"),
            problem: error.to_string(),
        })?;
        Ok(found.map(|claim| claim.data).unwrap_or_default())
    }

    /// The end of what Karpenter said, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.log_tail(30)
    }
}

/// Whether Karpenter removes a Node, or has done so.
#[must_use]
pub fn removes(node: Option<&Node>) -> bool {
    node.is_none_or(|node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        node.metadata.deletion_timestamp.is_some() || taints.iter().any(|taint| taint.key == DISRUPTED_TAINT)
    })
}

fn node_of(claim: &Value) -> Option<String> {
    claim.pointer("/status/nodeName").and_then(Value::as_str).map(str::to_owned)
}

fn condition(object: &DynamicObject, kind: &str) -> bool {
    let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
    let says = |one: &Value, key: &str, text: &str| one.get(key).and_then(Value::as_str) == Some(text);
    conditions.is_some_and(|all| all.iter().any(|one| says(one, "type", kind) && says(one, "status", "True")))
}

/// All definitions as one text.
fn definitions(folder: &Path) -> Result<String, ControlPlaneError> {
    let failed = |source| ControlPlaneError::Folder { path: folder.to_owned(), source };
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        text.push_str("---\n");
        text.push_str(&std::fs::read_to_string(entry.map_err(failed)?.path()).map_err(failed)?);
    }
    Ok(text)
}
