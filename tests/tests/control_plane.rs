//! The fixture itself: it is what every other whole-system test stands on.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bascule_tests::control_plane::{ControlPlane, ControlPlaneError, Options, RequestCounts};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};

const AGENT_POD: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: agent, namespace: default}
---
apiVersion: v1
kind: Pod
metadata: {name: agent-1, namespace: default}
spec:
  nodeName: n1
  serviceAccountName: agent
  containers: [{name: agent, image: example.invalid/agent}]
"#;

/// The answer to `kubectl auth whoami`: user and extra claims.
async fn who_am_i(client: Client) -> (String, Vec<String>) {
    let reviews: Api<SelfSubjectReview> = Api::all(client);
    let answer = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await.unwrap();
    let user = answer.status.and_then(|status| status.user_info).unwrap();
    let node = user.extra.unwrap_or_default().remove("authentication.kubernetes.io/node-name");
    (user.username.unwrap_or_default(), node.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_are_what_a_cluster_gives_them() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    control_plane.apply(AGENT_POD).await.unwrap();

    let (user, node) = who_am_i(control_plane.client().await.unwrap()).await;
    assert_eq!((user.as_str(), node.as_slice()), ("bascule-admin", [].as_slice()));

    let agent = control_plane.pod_token("default", "agent-1").await.unwrap();
    let (user, node) = who_am_i(agent.client().await.unwrap()).await;
    assert_eq!(user, "system:serviceaccount:default:agent");
    assert_eq!(node, ["n1"], "the token of a pod names the pod's node");

    let unbound = control_plane.service_account("default", "agent").await.unwrap();
    let (user, node) = who_am_i(unbound.client().await.unwrap()).await;
    assert_eq!(user, agent.user());
    assert!(node.is_empty(), "a token bound to no pod names no node");

    // RBAC is on: the service account may nothing.
    let nodes: Api<Node> = Api::all(agent.client().await.unwrap());
    let refused = nodes.get("n1").await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");

    // NodeRestriction is on: a kubelet may change its own node and no other.
    let nodes: Api<Node> = Api::all(control_plane.kubelet("n1").unwrap().client().await.unwrap());
    let change = Patch::Merge(serde_json::json!({ "metadata": { "annotations": { "seen": "yes" } } }));
    nodes.patch("n1", &PatchParams::default(), &change).await.unwrap();
    let refused = nodes.patch("n2", &PatchParams::default(), &change).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");

    // The audit log counts by user.
    let counts = RequestCounts::of(&control_plane.requests().unwrap());
    let by_kind = &counts.0["system:node:n1"];
    assert_eq!(by_kind.get("patch nodes"), Some(&2), "{by_kind:?}");

    // A token ends with its pod.
    let pods: Api<Pod> = Api::namespaced(control_plane.client().await.unwrap(), "default");
    pods.delete("agent-1", &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
    let reviews: Api<SelfSubjectReview> = Api::all(agent.client().await.unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    // The server caches a token's good standing for ten seconds.
    while reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await.is_ok() {
        assert!(Instant::now() < deadline, "the token of a deleted pod is still good");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_run_side_by_side_and_leave_nothing_behind() {
    let (first, second) = tokio::join!(
        ControlPlane::start(Options::default()),
        ControlPlane::start(Options { audit: false, ..Options::default() })
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_ne!(first.server(), second.server());
    // Neither trusts the other's admin.
    let stranger = first.admin().kubeconfig().replace(first.server(), second.server());
    assert!(stranger.contains(second.server()));
    let mut remains = Vec::new();
    for each in [first, second] {
        remains.push((each.folder().to_owned(), each.process_ids()));
        drop(each);
    }
    for (folder, processes) in remains {
        assert!(!folder.exists(), "{} is still there", folder.display());
        for process in processes {
            assert!(!alive(process), "process {process} still runs");
        }
    }
}

#[test]
fn it_ends_with_a_parent_that_is_killed() {
    let mut parent = Command::new(env!("CARGO_BIN_EXE_control-plane"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let kubeconfig = PathBuf::from(line.trim().strip_prefix("export KUBECONFIG=").unwrap());
    let mut said = BufReader::new(parent.stderr.take().unwrap()).lines();
    let sentence = said.find_map(|line| line.ok()?.strip_prefix("running as processes ").map(str::to_owned)).unwrap();
    let processes: Vec<u32> =
        sentence.split(' ').take_while(|word| *word != "after").map(|word| word.parse().unwrap()).collect();
    assert!(kubeconfig.exists() && processes.iter().all(|process| alive(*process)));

    parent.kill().unwrap();
    parent.wait().unwrap();

    let folder = kubeconfig.parent().unwrap();
    wait_until(
        || !folder.exists() && !processes.iter().any(|process| alive(*process)),
        || format!("{} or one of {processes:?} outlived its parent", folder.display()),
    );
}

#[tokio::test]
async fn a_part_that_dies_says_so_with_its_log() {
    // One thing only is wrong: no time.
    let options = Options { start_timeout: Duration::ZERO, ..Options::default() };
    let error = ControlPlane::start(options).await.unwrap_err();
    assert!(matches!(&error, ControlPlaneError::NotReady { program, .. } if program == "etcd"), "{error}");
}

/// Whether a process exists that is no zombie.
fn alive(process: u32) -> bool {
    let status = std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status"));
    status.is_ok_and(|text| !text.lines().any(|line| line.starts_with("State:") && line.contains('Z')))
}

fn wait_until(mut done: impl FnMut() -> bool, complaint: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{}", complaint());
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
