//! docs/install.md, followed: what it shows is what is installed, looked at, and taken out here.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use bascule_api::CORDONED_BY_ANNOTATION;
use bascule_tests::control_plane::{ControlPlane, Options};
use bascule_tests::files::copy_folder;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Node, PodSpec};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The block between the marks of that name.
fn shown(page: &str, name: &str) -> String {
    let marked = page.split(&format!("<!-- {name}: begin")).nth(1).and_then(|rest| rest.split("```").nth(1));
    let block = marked.and_then(|block| block.split_once('\n')).map(|(_, block)| block.to_owned());
    block.unwrap_or_else(|| panic!("no {name} on the page"))
}

fn image(pod: Option<PodSpec>) -> Option<String> {
    pod?.containers.into_iter().next()?.image
}

/// The page, and a folder as it describes it.
fn follow() -> (String, tempfile::TempDir) {
    let page = std::fs::read_to_string(format!("{ROOT}/docs/install.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&Path::new(ROOT).join("manifests"), &folder.path().join("manifests")).unwrap();
    for (name, content) in [
        ("kustomization.yaml", shown(&page, "overlay")),
        ("on-call.yaml", shown(&page, "on-call")),
        ("workers.yaml", shown(&page, "first-policy")),
        ("root.json", "{}".to_owned()),
    ] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    (page, folder)
}

/// Runs kubectl; gives what it printed.
fn kubectl(control_plane: &ControlPlane, arguments: &[&str], folder: &Path) -> String {
    let output = control_plane.kubectl().args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// How often each object was changed: its generation, or where it has none its version.
fn changes(control_plane: &ControlPlane, folder: &Path) -> BTreeMap<String, Value> {
    let all: Value = serde_json::from_str(&kubectl(control_plane, &["get", "-k", ".", "-o", "json"], folder)).unwrap();
    let of = |object: &Value| {
        let meta = &object["metadata"];
        let name = format!("{} {}", object["kind"], meta["name"]);
        (name, if meta["generation"].is_null() { meta["resourceVersion"].clone() } else { meta["generation"].clone() })
    };
    all["items"].as_array().unwrap().iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_installs_and_takes_out() {
    let (page, folder) = follow();
    let folder = folder.path();
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    kubectl(&control_plane, &["apply", "--server-side", "-k", "."], folder);

    let client = control_plane.client().await.unwrap();
    let operator =
        Api::<Deployment>::namespaced(client.clone(), "bascule-system").get("bascule-operator").await.unwrap();
    let spec = operator.spec.unwrap();
    assert_eq!(spec.replicas, Some(2), "high availability is what the page shows");
    let operator = image(spec.template.spec);
    assert_eq!(operator.as_deref(), Some("registry.example.com/platform/bascule-operator:0.1.0"));
    let agent = Api::<DaemonSet>::namespaced(client.clone(), "bascule-agents").get("bascule-agent").await.unwrap();
    let agent = image(agent.spec.and_then(|spec| spec.template.spec));
    assert_eq!(agent.as_deref(), Some("registry.example.com/platform/bascule-agent:0.1.0"));
    let roots = Api::<ConfigMap>::namespaced(client.clone(), "bascule-system").get("bascule-trust-root").await.unwrap();
    assert_eq!(roots.data.unwrap().get("root.json").map(String::as_str), Some("{}"));
    let on_call = Api::<ClusterRoleBinding>::all(client.clone()).get("bascule-on-call").await.unwrap();
    assert_eq!(on_call.role_ref.name, "bascule-on-call");
    kubectl(&control_plane, &["apply", "-f", "workers.yaml"], folder);

    // Again: nothing changes.
    let before = changes(&control_plane, folder);
    assert!(before.len() > 30, "{before:?}");
    kubectl(&control_plane, &["apply", "--server-side", "-k", "."], folder);
    assert_eq!(changes(&control_plane, folder), before);

    // The order that the page warns of: everything goes while a node is being drained.
    control_plane.apply(LEFT_BEHIND).await.unwrap();
    kubectl(&control_plane, &["delete", "-k", "."], folder);
    let left = kubectl(&control_plane, &["get", "-k", ".", "--ignore-not-found", "-o", "name"], folder);
    assert_eq!(left, "", "something is left");
    give_back(&control_plane, &shown(&page, "give-back"));
    let nodes: Api<Node> = Api::all(client);
    let ours = nodes.get("ours").await.unwrap();
    let spec = ours.spec.unwrap_or_default();
    assert_eq!((spec.unschedulable.unwrap_or_default(), spec.taints.unwrap_or_default().len()), (false, 0));
    assert!(!ours.metadata.annotations.unwrap_or_default().contains_key(CORDONED_BY_ANNOTATION));
    assert!(ours.metadata.labels.unwrap_or_default().keys().all(|key| !key.contains("load-balancers")));
    let theirs = nodes.get("theirs").await.unwrap().spec.unwrap();
    assert_eq!(theirs.unschedulable, Some(true), "an admin's cordon is the admin's");
}

/// A node in the middle of a drain as the operator leaves it, and one that an admin cordoned.
const LEFT_BEHIND: &str = r#"
apiVersion: v1
kind: Node
metadata:
  name: ours
  annotations: {bascule.dev/cordoned-by: workers}
  labels: {node.kubernetes.io/exclude-from-external-load-balancers: bascule}
spec:
  unschedulable: true
  taints: [{key: bascule.dev/outdated, effect: PreferNoSchedule}]
---
apiVersion: v1
kind: Node
metadata: {name: theirs}
spec: {unschedulable: true}
"#;

/// The page's script, as it stands.
fn give_back(control_plane: &ControlPlane, script: &str) {
    assert!(script.contains(CORDONED_BY_ANNOTATION));
    let kubectl = PathBuf::from(control_plane.kubectl().get_program());
    let mut path = OsString::from(kubectl.parent().unwrap());
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    shell.args(["-eu", "-c", script]).env("PATH", path).env("KUBECONFIG", control_plane.admin_kubeconfig());
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_component_fits_the_others_and_a_namespace_of_ones_own() {
    let (page, folder) = follow();
    let folder = folder.path();
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    // The Prometheus operator's definition, as far as it matters here.
    control_plane.apply(POD_MONITORS).await.unwrap();
    // Another namespace, as the page has it: one line of the copy, and the overlay's own mention.
    let file = folder.join("manifests/operator/kustomization.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, text.replace("namespace: bascule-system", "namespace: updates")).unwrap();
    let component = "  - manifests/components/high-availability\n";
    let more: String = ["host-agent", "prometheus", "network-policy"]
        .iter()
        .map(|name| format!("  - manifests/components/{name}\n"))
        .collect();
    let overlay = shown(&page, "overlay").replace(component, &format!("{component}{more}"));
    let overlay = overlay.replace("bascule-system", "updates");
    std::fs::write(folder.join("on-call.yaml"), shown(&page, "on-call").replace("bascule-system", "updates")).unwrap();
    std::fs::write(folder.join("kustomization.yaml"), overlay).unwrap();
    kubectl(&control_plane, &["apply", "--server-side", "-k", "."], folder);
    let before = changes(&control_plane, folder);
    kubectl(&control_plane, &["apply", "--server-side", "-k", "."], folder);
    assert_eq!(changes(&control_plane, folder), before);
    let text = kubectl(&control_plane, &["kustomize", "."], folder);
    let kinds: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    for (kind, count) in
        [("Deployment", 1), ("DaemonSet", 0), ("Namespace", 1), ("ServiceAccount", 1), ("NetworkPolicy", 1)]
    {
        assert_eq!(kinds.iter().filter(|one| **one == kind).count(), count, "{kind}: {kinds:?}");
    }
    let other = |line: &&str| line.contains("namespace: bascule-") || line.contains("name: bascule-system");
    assert_eq!(text.lines().find(other), None, "a namespace is named that is not there");
    kubectl(&control_plane, &["-n", "updates", "get", "deployment/bascule-operator"], folder);
    kubectl(&control_plane, &["delete", "-k", "."], folder);
    assert_eq!(kubectl(&control_plane, &["get", "-k", ".", "--ignore-not-found", "-o", "name"], folder), "");
}

const POD_MONITORS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  names: {kind: PodMonitor, plural: podmonitors, singular: podmonitor}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;
