//! `manifests/` against the real API server: who may write what. An agent that is taken over must not be able to speak
//! for another node, nor the operator for an agent, and RBAC alone can't say so.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::time::{Duration, Instant};

use bascule_api::{Freeze, NodeUpdate};
use bascule_tests::bascule;
use bascule_tests::control_plane::{ControlPlane, Credentials, Options};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

const NODES_AND_PODS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
---
apiVersion: v1
kind: Pod
metadata: {name: agent-n1, namespace: bascule-agents}
spec:
  nodeName: n1
  serviceAccountName: bascule-agent
  containers: [{name: agent, image: example.invalid/agent}]
"#;

async fn updates(credentials: &Credentials) -> Api<NodeUpdate> {
    Api::all(credentials.client().await.unwrap())
}

async fn write_status(as_whom: &Credentials, node: &str, status: Value) -> Result<(), String> {
    let change = Patch::Merge(json!({ "status": status }));
    refusal(updates(as_whom).await.patch_status(node, &PatchParams::default(), &change).await)
}

async fn write_spec(as_whom: &Credentials, node: &str, spec: Value) -> Result<(), String> {
    let change = Patch::Merge(json!({ "spec": spec }));
    refusal(updates(as_whom).await.patch(node, &PatchParams::default(), &change).await)
}

/// The API server's sentence if it refused with 403; any other failure is a failure of the test.
fn refusal<T>(answer: kube::Result<T>) -> Result<(), String> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 403 => Err(status.message.clone()),
        Err(error) => panic!("neither accepted nor refused: {error}"),
    }
}

fn assert_refused(answer: Result<(), String>, because: &str) {
    let sentence = answer.unwrap_err();
    assert!(sentence.contains(because), "refused for another reason: {sentence}");
}

async fn install(control_plane: &ControlPlane) -> Client {
    let client = control_plane.client().await.unwrap();
    bascule::install_all(control_plane).await;
    control_plane.apply(NODES_AND_PODS).await.unwrap();
    for node in ["n1", "n2"] {
        let object = json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
            "metadata": { "name": node }, "spec": { "policy": "workers", "goal": "Idle" },
        });
        control_plane.apply(&object.to_string()).await.unwrap();
    }
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_writes_only_what_is_theirs() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let client = install(&control_plane).await;

    let agent = control_plane.pod_token("bascule-agents", "agent-n1").await.unwrap();
    let operator = control_plane.service_account("bascule-system", "bascule-operator").await.unwrap();
    // A policy takes effect a moment after it was written, each at a moment of its own; a write that it refuses tells when.
    let foreign = json!({ "agentVersion": "0.0.1" });
    let deadline = Instant::now() + Duration::from_secs(120);
    for whom in [&agent, &operator] {
        while write_status(whom, "n2", foreign.clone()).await.is_ok() {
            assert!(Instant::now() < deadline, "the admission policies never took effect");
            // The same again would change nothing, and so be nothing to refuse.
            let other = json!({ "agentVersion": null });
            updates(&control_plane.admin().clone())
                .await
                .patch_status("n2", &PatchParams::default(), &Patch::Merge(json!({ "status": other })))
                .await
                .unwrap();
        }
    }

    // An agent in a pod.
    write_status(&agent, "n1", json!({ "agentVersion": "0.1.0", "bootID": "b1" })).await.unwrap();
    assert_refused(write_status(&agent, "n2", foreign.clone()).await, "the agent of node n1 may not write");
    let explained = json!({ "rollout": { "state": "Current", "reason": "Current" } });
    assert_refused(write_status(&agent, "n1", explained.clone()).await, "status.rollout is the operator's");
    let granted = json!({ "goal": "Booted", "grant": { "bootID": "b1", "generation": 1 } });
    assert_refused(write_spec(&agent, "n1", granted.clone()).await, "cannot patch resource");

    // A token that was not made for a pod says nothing about a node.
    let unbound = control_plane.service_account("bascule-agents", "bascule-agent").await.unwrap();
    assert_refused(write_status(&unbound, "n1", foreign.clone()).await, "this token names no node");

    // An agent as a host service.
    let host = control_plane.kubelet("n2").unwrap();
    write_status(&host, "n2", json!({ "agentVersion": "0.1.0", "bootID": "b2" })).await.unwrap();
    assert_refused(write_status(&host, "n1", foreign.clone()).await, "the agent of node n2 may not write");
    assert_refused(write_spec(&host, "n2", granted.clone()).await, "cannot patch resource");

    // The operator.
    write_spec(&operator, "n1", json!({ "policy": "others" })).await.unwrap();
    write_status(&operator, "n1", explained.clone()).await.unwrap();
    let lie = json!({ "bootID": "b9" });
    assert_refused(write_status(&operator, "n1", lie).await, "the rest is the agent's");
    let erased = json!({ "agentVersion": null });
    assert_refused(write_status(&operator, "n1", erased).await, "the rest is the agent's");
    // The agent goes on beside the operator's explanation.
    write_status(&agent, "n1", json!({ "agentVersion": "0.1.1" })).await.unwrap();
    let erased = json!({ "rollout": null });
    assert_refused(write_status(&agent, "n1", erased).await, "status.rollout is the operator's");
    let after = Api::<NodeUpdate>::all(client).get("n1").await.unwrap().status.unwrap();
    assert_eq!(after.agent_version.as_deref(), Some("0.1.1"));
    assert!(after.rollout.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_call_stops_and_goes_back_and_edits_nothing() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    install(&control_plane).await;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "on-call" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "bascule-on-call" },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "alice" }],
    });
    control_plane.apply(&binding.to_string()).await.unwrap();
    let alice = control_plane.user("alice", &[]).unwrap();
    let freezes: Api<Freeze> = Api::all(alice.client().await.unwrap());
    let freeze = |name: &str, by: Option<&str>| -> Freeze {
        serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": { "name": name },
            "spec": { "reason": "checkout incident", "duration": "2h", "requestedBy": by },
        }))
        .unwrap()
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut tries = 0;
    let refused = loop {
        tries += 1;
        match refusal(freezes.create(&PostParams::default(), &freeze(&format!("forged-{tries}"), Some("bob"))).await) {
            // The authorizer learns of a new binding by a watch, as the admission plugin of its policies.
            Err(sentence) if sentence.contains("cannot create resource") => {
                assert!(Instant::now() < deadline, "the binding never took effect: {sentence}");
            }
            Err(sentence) => break sentence,
            Ok(()) => assert!(Instant::now() < deadline, "the admission policy never took effect"),
        }
    };
    assert!(refused.contains("requestedBy must be your own name, alice"), "{refused}");
    freezes.create(&PostParams::default(), &freeze("mine", Some("alice"))).await.unwrap();
    freezes.create(&PostParams::default(), &freeze("nameless", None)).await.unwrap();

    assert_refused(write_spec(&alice, "n1", json!({ "goal": "Idle" })).await, "cannot patch resource");
    assert_refused(write_status(&alice, "n1", json!({ "bootID": "x" })).await, "cannot patch resource");
}
