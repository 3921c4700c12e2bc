//! KWOK as kubelet of a thousand nodes at once, for benchmarks of scale: nodes stay Ready by their leases alone, pods
//! become Ready and end. Nodes that reboot need [`crate::kubelet`]; a benchmark that only needs another boot id patches
//! it into the Node's status.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::control_plane::{Binaries, ControlPlane, ControlPlaneError};
use crate::supervise::Supervised;

/// The label of the nodes that KWOK plays; it leaves others alone.
pub const LABEL: &str = "bascule.dev/played-by";
/// Its value there.
pub const PLAYED_BY_KWOK: &str = "kwok";

/// How fast pods are.
#[derive(Debug, Clone)]
pub struct Pace {
    /// From a pod being bound to it being Ready.
    pub pod_start: Duration,
    /// From a pod's deletion to its end.
    pub pod_stop: Duration,
    /// From a Job's pod running to its end.
    pub job: Duration,
    /// How long a node's Lease lasts, in whole seconds; it is renewed four times as often. A kubelet's lasts 40 s. Zero:
    /// whoever holds a node's Lease, KWOK plays the node.
    pub lease: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            pod_start: Duration::from_millis(500),
            pod_stop: Duration::from_millis(500),
            job: Duration::from_secs(60),
            lease: Duration::from_secs(40),
        }
    }
}

/// A running KWOK. It ends when this is dropped, or when we are killed.
#[derive(Debug)]
pub struct Kwok {
    process: Supervised,
}

impl Kwok {
    /// Starts KWOK for a control plane, building it the first time (minutes).
    ///
    /// # Errors
    /// It can't be built or started.
    pub async fn start(control_plane: &ControlPlane, pace: &Pace) -> Result<Self, ControlPlaneError> {
        let say = |sentence: &str| tracing::info!("{sentence}");
        let program = tokio::task::spawn_blocking(move || Binaries::kwok(&say)).await??;
        let config = control_plane.folder().join("kwok.yaml");
        std::fs::write(&config, stages(pace))
            .map_err(|source| ControlPlaneError::Folder { path: config.clone(), source })?;
        let credentials = control_plane.user("kwok", &["system:masters"])?;
        let kubeconfig = control_plane.folder().join("kwok.kubeconfig");
        credentials.write_to(&kubeconfig)?;
        let arguments = [
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--config={}", config.display()),
            format!("--manage-nodes-with-label-selector={LABEL}={PLAYED_BY_KWOK}"),
            format!("--node-lease-duration-seconds={}", pace.lease.as_secs()),
        ];
        let log = control_plane.folder().join("kwok.log");
        Ok(Self { process: Supervised::start(&program, arguments, &[], &log)? })
    }

    /// The end of what KWOK said, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.log_tail(15)
    }
}

/// Makes a node for KWOK to play.
///
/// # Errors
/// The API server refuses.
pub async fn add_node(client: &Client, name: &str, zone: &str) -> Result<(), ControlPlaneError> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                LABEL: PLAYED_BY_KWOK,
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": zone,
            },
        },
    });
    let params = PatchParams::apply("bascule-tests").force();
    Api::<Node>::all(client.clone()).patch(name, &params, &Patch::Apply(&node)).await?;
    Ok(())
}

/// What happens to nodes and pods, in KWOK's own format (kwok.x-k8s.io/v1alpha1 Stage): a node that is not Ready gets
/// room and conditions, a bound pod becomes Ready, a Job's completes after its time, a deleted one goes.
fn stages(pace: &Pace) -> String {
    let (start, stop, job) = (pace.pod_start.as_millis(), pace.pod_stop.as_millis(), pace.job.as_millis());
    format!(
        r#"apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: node-comes-up}}
spec:
  resourceRef: {{apiGroup: v1, kind: Node}}
  selector:
    matchExpressions:
    - {{key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: NotIn, values: ["True"]}}
  next:
    statusTemplate: |
      phase: Running
      capacity: {{cpu: 8, memory: 16Gi, pods: 110}}
      allocatable: {{cpu: 8, memory: 16Gi, pods: 110}}
      nodeInfo:
        architecture: amd64
        bootID: {{{{ or .status.nodeInfo.bootID .metadata.uid | Quote }}}}
        containerRuntimeVersion: none
        kernelVersion: none
        kubeProxyVersion: none
        kubeletVersion: kwok
        machineID: {{{{ .metadata.name | Quote }}}}
        operatingSystem: linux
        osImage: kwok
        systemUUID: {{{{ .metadata.name | Quote }}}}
      conditions:
      - type: Ready
        status: "True"
        reason: KubeletReady
        message: played by KWOK
        lastHeartbeatTime: {{{{ Now | Quote }}}}
        lastTransitionTime: {{{{ Now | Quote }}}}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: pod-comes-up}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
    - {{key: .metadata.deletionTimestamp, operator: DoesNotExist}}
    - {{key: .status.phase, operator: In, values: [Pending]}}
  delay: {{durationMilliseconds: {start}}}
  next:
    statusTemplate: |
      phase: Running
      startTime: {{{{ Now | Quote }}}}
      conditions:
      - {{type: Initialized, status: "True", lastTransitionTime: {{{{ Now | Quote }}}}}}
      - {{type: ContainersReady, status: "True", lastTransitionTime: {{{{ Now | Quote }}}}}}
      - {{type: Ready, status: "True", lastTransitionTime: {{{{ Now | Quote }}}}}}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: job-completes}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
    - {{key: .metadata.deletionTimestamp, operator: DoesNotExist}}
    - {{key: '.metadata.ownerReferences.[].kind', operator: In, values: [Job]}}
    - {{key: .status.phase, operator: In, values: [Running]}}
  delay: {{durationMilliseconds: {job}}}
  next:
    statusTemplate: |
      phase: Succeeded
      conditions:
      - {{type: ContainersReady, status: "False", reason: PodCompleted, lastTransitionTime: {{{{ Now | Quote }}}}}}
      - {{type: Ready, status: "False", reason: PodCompleted, lastTransitionTime: {{{{ Now | Quote }}}}}}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: pod-ends}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
    - {{key: .metadata.deletionTimestamp, operator: Exists}}
  delay: {{durationMilliseconds: {stop}}}
  next:
    finalizers: {{empty: true}}
    delete: true
"#
    )
}
