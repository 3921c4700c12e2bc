//! The kubelet stand-in against the real control plane: scheduler, Deployment, eviction and node lifecycle must not be
//! able to tell it from a machine.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::sync::Arc;
use std::time::Duration;

use bascule_tests::control_plane::{ControlPlane, Options};
use bascule_tests::kubelet::{Health, Kubelet, KubeletHost, NoContainers};
use bascule_tests::workload;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{EvictParams, ListParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt};
use tokio::time::timeout;

/// Longer than anything here takes on a busy machine; a wait that ends this way is a failure.
const PATIENCE: Duration = Duration::from_secs(120);

fn ready(node: Option<&Node>) -> Option<String> {
    let conditions = node?.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready").map(|condition| condition.status.clone())
}

fn boot_id(node: Option<&Node>) -> Option<String> {
    node?.status.as_ref()?.node_info.as_ref().map(|info| info.boot_id.clone())
}

async fn wait_for_ready(nodes: &Api<Node>, node: &str, wanted: &'static str) {
    let holds = move |node: Option<&Node>| ready(node).as_deref() == Some(wanted);
    let waited = timeout(PATIENCE, await_condition(nodes.clone(), node, holds)).await;
    waited.unwrap_or_else(|_| panic!("{node} never became Ready={wanted}")).unwrap();
}

async fn wait_for_replicas(client: &Client, wanted: i32) {
    let ready = workload::until_ready(client, "shop", wanted, PATIENCE).await;
    assert!(ready, "the shop never had {wanted} ready replicas");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_containers_passes_for_a_node() {
    let options = Options { node_monitor_grace: Duration::from_secs(20), ..Options::default() };
    let control_plane = ControlPlane::start(options).await.unwrap();
    let client = control_plane.client().await.unwrap();
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");

    let mut kubelets = Vec::new();
    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        let identity = control_plane.kubelet(node).unwrap().client().await.unwrap();
        kubelets.push(Kubelet::start(identity, KubeletHost::named(node, zone), Health::Good, Arc::new(NoContainers)));
    }
    wait_for_ready(&nodes, "n1", "True").await;
    wait_for_ready(&nodes, "n2", "True").await;
    assert_eq!(nodes.get("n2").await.unwrap().labels()["topology.kubernetes.io/zone"], "b");
    control_plane.apply(&workload::shop(3)).await.unwrap();
    wait_for_replicas(&client, 3).await;

    // Eviction: the first is allowed, the pod ends, the Deployment makes another.
    let shop = ListParams::default().labels("app=shop");
    let victim = pods.list(&shop).await.unwrap().items.remove(0);
    wait_for_budget(&pods, &victim.name_any()).await;
    let gone = |pod: Option<&Pod>| pod.is_none();
    timeout(PATIENCE, await_condition(pods.clone(), &victim.name_any(), gone)).await.unwrap().unwrap();
    wait_for_replicas(&client, 3).await;

    // A release that breaks containers, and one that is mended.
    kubelets.iter().for_each(|kubelet| kubelet.set_health(Health::CrashLoop));
    wait_for_replicas(&client, 0).await;
    kubelets.iter().for_each(|kubelet| kubelet.set_health(Health::Good));
    wait_for_replicas(&client, 3).await;

    // A machine that goes dark is noticed by the control plane alone.
    let first = kubelets.remove(0);
    let before = boot_id(Some(&nodes.get("n1").await.unwrap()));
    first.stop().await;
    wait_for_ready(&nodes, "n1", "Unknown").await;

    // It comes back as the same node with another boot, first broken, then mended.
    let identity = control_plane.kubelet("n1").unwrap().client().await.unwrap();
    let machine = KubeletHost::named("n1", "a");
    let (again, expected) = (machine.boot_id.clone(), machine.boot_id.clone());
    let second = Kubelet::start(identity, machine, Health::NeverReady, Arc::new(NoContainers));
    wait_for_ready(&nodes, "n1", "False").await;
    second.set_health(Health::Good);
    wait_for_ready(&nodes, "n1", "True").await;
    let after = boot_id(Some(&nodes.get("n1").await.unwrap()));
    assert_eq!(after, Some(again));
    assert_ne!(before, Some(expected));
    wait_for_replicas(&client, 3).await;
}

/// Evicts `pod` as soon as the disruption controller has counted the pods.
async fn wait_for_budget(pods: &Api<Pod>, pod: &str) {
    let patience = tokio::time::Instant::now() + PATIENCE;
    loop {
        match pods.evict(pod, &EvictParams::default()).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 429 && tokio::time::Instant::now() < patience => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => panic!("eviction refused: {error}"),
        }
    }
}
