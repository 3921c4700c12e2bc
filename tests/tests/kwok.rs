//! KWOK beside the real control plane: nodes and pods that only a benchmark needs in numbers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::time::Duration;

use bascule_tests::control_plane::{ControlPlane, Options};
use bascule_tests::kwok::{Kwok, Pace, add_node};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::runtime::wait::await_condition;
use tokio::time::timeout;

const NODES: usize = 20;

const LOAD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: load, namespace: default}
spec:
  replicas: 40
  selector: {matchLabels: {app: load}}
  template:
    metadata: {labels: {app: load}}
    spec:
      containers: [{name: load, image: example.invalid/load}]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_nodes_run_forty_pods() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let client = control_plane.client().await.unwrap();
    let kwok = Kwok::start(&control_plane, &Pace::default()).await.unwrap();
    for index in 0..NODES {
        add_node(&client, &format!("k{index}"), ["a", "b", "c"][index % 3]).await.unwrap();
    }
    control_plane.apply(LOAD).await.unwrap();
    let deployments: Api<Deployment> = Api::namespaced(client, "default");
    let complete = |load: Option<&Deployment>| {
        load.and_then(|load| load.status.as_ref()).and_then(|status| status.ready_replicas) == Some(40)
    };
    let waited = timeout(Duration::from_secs(90), await_condition(deployments, "load", complete)).await;
    waited.unwrap_or_else(|_| panic!("the pods never became ready; KWOK said:\n{}", kwok.log_tail())).unwrap();
}
