//! KWOK beside the real control plane: nodes and pods that only a benchmark needs in numbers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::time::Duration;

use bascule_tests::control_plane::{ControlPlane, Options};
use bascule_tests::kwok::{Kwok, Pace, add_node};
use bascule_tests::workload;

const NODES: usize = 20;
const PODS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_nodes_run_forty_pods() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let client = control_plane.client().await.unwrap();
    let kwok = Kwok::start(&control_plane, &Pace::default()).await.unwrap();
    for index in 0..NODES {
        add_node(&client, &format!("k{index}"), ["a", "b", "c"][index % 3]).await.unwrap();
    }
    control_plane.apply(&workload::deployment("load", PODS)).await.unwrap();
    let complete = workload::until_ready(&client, "load", 40, Duration::from_secs(90)).await;
    assert!(complete, "the pods never became ready; KWOK said:\n{}", kwok.log_tail());
}
