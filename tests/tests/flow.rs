//! Whose queues the API server puts requests into, by its own word: the answer names the FlowSchema and the level that the
//! request fell under (Kubernetes, "API Priority and Fairness"). A schema that nothing falls under would do nothing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

use std::time::{Duration, Instant};

use bascule_tests::bascule;
use bascule_tests::control_plane::{ControlPlane, Credentials, Options};
use http::Request;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use kube::{Api, Client, ResourceExt as _};

/// The UIDs of the schema and the level that a request for `path` falls under.
async fn matched(client: &Client, path: &str) -> [String; 2] {
    let request = Request::builder().uri(path).body(kube::client::Body::empty()).unwrap();
    let answer = client.send(request).await.unwrap();
    ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"]
        .map(|name| answer.headers().get(name).map(|uid| uid.to_str().unwrap().to_owned()).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_operator_and_agents_wait_in_queues_of_their_own() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    bascule::install_all(&control_plane).await;
    let admin = control_plane.client().await.unwrap();
    let schemas: Api<FlowSchema> = Api::all(admin.clone());
    let levels: Api<PriorityLevelConfiguration> = Api::all(admin);
    let operator = control_plane.service_account("bascule-system", "bascule-operator").await.unwrap();
    let pod = control_plane.service_account("bascule-agents", "bascule-agent").await.unwrap();
    let host = control_plane.kubelet("n1").unwrap();
    let updates = "/apis/bascule.dev/v1alpha1/nodeupdates";
    let client = async |credentials: &Credentials| credentials.client().await.unwrap();
    let mut seen = Vec::new();
    for (who, client, path, schema, level) in [
        ("operator", client(&operator).await, "/api/v1/pods", "bascule-operator", "workload-high"),
        ("agent in a pod", client(&pod).await, updates, "bascule-agent", "bascule-agent"),
        ("agent of a host", client(&host).await, updates, "bascule-host-agent", "bascule-agent"),
        // What the same node's kubelet asks for stays where Kubernetes puts it.
        ("kubelet", client(&host).await, "/api/v1/services", "system-nodes", "system"),
    ] {
        let wanted =
            [schemas.get(schema).await.unwrap().uid().unwrap(), levels.get(level).await.unwrap().uid().unwrap()];
        // A new schema takes effect a moment after it was written.
        let deadline = Instant::now() + Duration::from_secs(120);
        while matched(&client, path).await != wanted {
            assert!(Instant::now() < deadline, "{who}: a request for {path} does not fall under {schema}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        seen.push(wanted);
    }
    assert_eq!(seen[1][1], seen[2][1], "both kinds of agents share a level");
    assert_ne!(seen[1][1], seen[0][1], "and nobody else has it");
}
