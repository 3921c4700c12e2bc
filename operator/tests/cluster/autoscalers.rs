//! The truce with autoscalers, judged by the real Karpenter: what it does with a node of ours is its own decision.

use crate::agent::Habit;
use crate::drain::cordoned;
use crate::world::{Cluster, PATIENCE};
use bascule_api::{HOLD_TAINT, WaitReason};
use bascule_tests::karpenter::{Karpenter, POOL, POOL_LABEL, removes};
use bascule_tests::kubelet::{Health, Kubelet, KubeletHost, NoContainers};
use bascule_tests::workload;
use chrono::TimeDelta;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::Api;
use kube::api::DeleteParams;
use kube::runtime::wait::await_condition;
use serde_json::json;
use std::sync::Arc;

/// What tells the node that the policy updates from its twin, which is nobody's.
const LABEL: &str = "example.com/judged";

/// Longer than the truce that follows an uncordon.
const AFTER_THE_TRUCE: TimeDelta = TimeDelta::minutes(11);

impl Cluster {
    /// Waits until a Node shows something of Karpenter's doing, and tells what Karpenter said if it does not come.
    async fn until_karpenter(
        &self,
        karpenter: &Karpenter,
        node: &str,
        what: &str,
        holds: impl Fn(Option<&Node>) -> bool,
    ) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let waited = tokio::time::timeout(PATIENCE, await_condition(nodes, node, |node: Option<&Node>| holds(node)));
        if waited.await.is_err() {
            panic!("Karpenter never {what} {node}; it said:\n{}\n{}", karpenter.log_tail(), self.story().await);
        }
    }
}

/// What the node lifecycle controller gives a Node that is cordoned.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn karpenter_leaves_an_empty_node_alone_while_it_is_under_way_and_removes_it_after_the_truce() {
    let mut world = Cluster::new().await;
    let karpenter = Karpenter::start(&world.control_plane, &[]).await.unwrap();
    let ours = karpenter.node("ours", (LABEL, "ours")).await.unwrap();
    world.machine(&ours, "test-zone-a", Habit::Good).await;
    world.control_plane.apply(&workload::deployment("shop", 1)).await.unwrap();
    world.until_ready_on("shop", &ours).await;
    world.machine("home", "test-zone-a", Habit::Good).await;
    // The drain moves the pod, and then this volume holds the reboot: the node is empty, and nobody needs it.
    let attachment = format!(
        "{{apiVersion: storage.k8s.io/v1, kind: VolumeAttachment, metadata: {{name: csi-1}}, spec: {{attacher: csi.example.com, \
         nodeName: {ours}, source: {{persistentVolumeName: pv-of-db}}}}}}"
    );
    world.control_plane.apply(&attachment).await.unwrap();
    let operator = world.operator("first").await;
    world.policy("elastic", json!({"nodeSelector": {"matchLabels": {LABEL: "ours"}}})).await;
    world.until_reason(&ours, WaitReason::VolumesDetaching).await;
    world.until_ready_on("shop", "home").await;
    karpenter.until_consolidatable("ours").await.unwrap();

    // A twin that is as empty goes in the first of Karpenter's rounds that sees it. That round has seen ours, too.
    let twin = karpenter.node("twin", (LABEL, "twin")).await.unwrap();
    let machine = KubeletHost::named(&twin, "test-zone-a");
    let kubelet = world.control_plane.kubelet(&twin).unwrap().client().await.unwrap();
    let _twin = Kubelet::start(kubelet, machine, Health::Good, Arc::new(NoContainers));
    let deleted = |node: Option<&Node>| node.is_none_or(|node| node.metadata.deletion_timestamp.is_some());
    world.until_karpenter(&karpenter, &twin, "deleted", deleted).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let node = nodes.get_opt(&ours).await.unwrap();
    assert!(!removes(node.as_ref()), "{node:?}\nKarpenter said: {}", karpenter.log_tail());

    let attachments: Api<VolumeAttachment> = Api::all(world.client.clone());
    attachments.delete("csi-1", &DeleteParams::default()).await.unwrap();
    world.until_current(&ours, "1.1").await;
    // Still there, and Karpenter would have it: once the truce is over, it goes.
    assert!(!removes(nodes.get_opt(&ours).await.unwrap().as_ref()));
    operator.stop().await;
    let _operator = world.operator_later("second", AFTER_THE_TRUCE).await;
    world.until_karpenter(&karpenter, &ours, "chose", removes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_karpenter_adds_is_updated_before_its_pods_come_and_no_second_one_is_added() {
    let mut world = Cluster::new().await;
    // As docs/drain.md says.
    let karpenter = Karpenter::start(&world.control_plane, &[HOLD_TAINT, UNSCHEDULABLE]).await.unwrap();
    let _operator = world.operator("first").await;
    let nodes = json!({"matchLabels": {POOL_LABEL: POOL}});
    // Cordoned for long enough that Karpenter, which gathers pods for ten seconds at most, looks meanwhile.
    let drain = json!({"loadBalancerDelay": "15s"});
    world.policy("elastic", json!({"nodeSelector": nodes, "newNodes": {"hold": true}, "drain": drain})).await;
    // A pod without a place makes it add a node, whether the repository has been read by then or not.
    world.control_plane.apply(&workload::deployment("shop", 1)).await.unwrap();
    let added = async || karpenter.claims().await.unwrap().into_iter().find_map(|(claim, node)| Some((claim, node?)));
    world.eventually("Karpenter adds a node", async || added().await.is_some()).await;
    let (claim, node) = added().await.unwrap();
    world.machine(&node, "test-zone-a", Habit::Good).await;
    world.until_node(&node, "cordoned for its update", cordoned).await;
    world.control_plane.apply(&workload::deployment("shop", 2)).await.unwrap();
    world.until_ready_on("shop", &node).await;
    let booted = world.update(&node).await.status.and_then(|status| status.booted);
    assert_eq!(booted.unwrap().version.as_str(), "1.1", "the pod came before the update\n{}", world.story().await);
    karpenter.until_initialized(&claim).await.unwrap();
    let claims = karpenter.claims().await.unwrap();
    assert_eq!(claims.keys().collect::<Vec<_>>(), [&claim], "Karpenter said: {}", karpenter.log_tail());
}
