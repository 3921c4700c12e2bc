//! docs/install.md, followed: what it shows is what is installed, looked at, and taken out here.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use bascule_api::conditions::{NODE_DRAINED, NODE_MAINTENANCE_IN_PROGRESS};
use bascule_api::{
    AUTOSCALER_ANNOTATIONS, CORDONED_BY_ANNOTATION, HOLD_TAINT, OLD_HOLD_TAINT, OUTDATED_TAINT, TRUCE_ANNOTATION,
};
use bascule_tests::bascule;
use bascule_tests::control_plane::{Binaries, ControlPlane, Options};
use bascule_tests::files::copy_folder;
use bascule_tests::page::{self, Page};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, PodSpec};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

fn image(pod: Option<PodSpec>) -> Option<String> {
    pod?.containers.into_iter().next()?.image
}

/// The page, and a folder as it describes it.
fn follow() -> (Page, tempfile::TempDir) {
    let (page, folder) = (Page::read(), tempfile::tempdir().unwrap());
    page.lay_out(folder.path(), &page::tree().join("manifests"), "{}");
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
    // What is an admin's own to change.
    let overlay = std::fs::read_to_string(folder.join("kustomization.yaml")).unwrap();
    std::fs::write(folder.join("kustomization.yaml"), format!("{overlay}{}", page.block("patches"))).unwrap();
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    kubectl(&control_plane, &["apply", "--server-side", "-k", "."], folder);

    let client = control_plane.client().await.unwrap();
    let operator =
        Api::<Deployment>::namespaced(client.clone(), "bascule-system").get("bascule-operator").await.unwrap();
    let spec = operator.spec.unwrap();
    assert_eq!(spec.replicas, Some(2), "high availability is what the page shows");
    // In a cluster all of whose nodes are new, and held back, somebody has to update them.
    let tolerated = spec.template.spec.clone().and_then(|spec| spec.tolerations).unwrap_or_default();
    let held = [HOLD_TAINT, OLD_HOLD_TAINT];
    assert!(held.iter().all(|key| tolerated.iter().any(|one| one.key.as_deref() == Some(*key))), "{tolerated:?}");
    let container = &spec.template.spec.as_ref().unwrap().containers[0];
    assert_eq!(container.resources.as_ref().unwrap().limits.as_ref().unwrap()["memory"].0, "1Gi");
    let more = container.env.iter().flatten().filter(|one| one.value_from.is_none()).map(|one| one.name.as_str());
    let more: Vec<_> = more.filter(|name| !name.starts_with("MALLOC_")).collect();
    assert_eq!(more, ["BASCULE_STATE_DIR", "HTTPS_PROXY", "NO_PROXY", "BASCULE_MAX_UNAVAILABLE"]);
    let operator = image(spec.template.spec);
    assert_eq!(operator.as_deref(), Some("registry.example.com/platform/bascule-operator:0.1.0"));
    let agent = Api::<DaemonSet>::namespaced(client.clone(), "bascule-agents").get("bascule-agent").await.unwrap();
    let pod = agent.spec.and_then(|spec| spec.template.spec);
    let pulls =
        |pod: &Option<PodSpec>| pod.as_ref()?.image_pull_secrets.as_ref()?.first().map(|secret| secret.name.clone());
    assert_eq!(pulls(&pod).as_deref(), Some("registry"));
    let keeps_to = pod.as_ref().and_then(|pod| pod.node_selector.clone()).unwrap_or_default();
    assert_eq!(keeps_to, [("example.com/os".to_owned(), "acme-os".to_owned())].into());
    let boot = pod
        .as_ref()
        .and_then(|pod| pod.volumes.as_ref()?.iter().find(|volume| volume.name == "efi")?.host_path.clone());
    assert_eq!(boot.map(|path| path.path).as_deref(), Some("/boot/efi"));
    let agent = image(pod);
    assert_eq!(agent.as_deref(), Some("registry.example.com/platform/bascule-agent:0.1.0"));
    let roots = Api::<ConfigMap>::namespaced(client.clone(), "bascule-system").get("bascule-trust-root").await.unwrap();
    assert_eq!(roots.data.unwrap().get("root.json").map(String::as_str), Some("{}"));
    let on_call = Api::<ClusterRoleBinding>::all(client.clone()).get("bascule-on-call").await.unwrap();
    assert_eq!(on_call.role_ref.name, "bascule-on-call");
    kubectl(&control_plane, &["apply", "-f", "workers.yaml"], folder);
    the_page_of_rights_is_what_kubectl_says(&control_plane, folder).await;

    // Again: nothing changes.
    let before = changes(&control_plane, folder);
    assert!(before.len() > 30, "{before:?}");
    kubectl(&control_plane, &["apply", "--server-side", "-k", "."], folder);
    assert_eq!(changes(&control_plane, folder), before);

    // The order that the page warns of: everything goes while a node is being drained.
    control_plane.apply(LEFT_BEHIND).await.unwrap();
    let nodes: Api<Node> = Api::all(client);
    // As the operator writes them with `--node-conditions`, and one of somebody else.
    let conditions = Patch::Strategic(json!({"status": {"conditions": [
        {"type": NODE_DRAINED, "status": "True", "reason": "BasculeUpdate"},
        {"type": NODE_MAINTENANCE_IN_PROGRESS, "status": "True", "reason": "BasculeUpdate"},
        {"type": "Theirs", "status": "True", "reason": "Theirs"},
    ]}}));
    nodes.patch_status("ours", &PatchParams::default(), &conditions).await.unwrap();
    kubectl(&control_plane, &["delete", "-k", "."], folder);
    let left = kubectl(&control_plane, &["get", "-k", ".", "--ignore-not-found", "-o", "name"], folder);
    assert_eq!(left, "", "something is left");
    let script = page.block("give-back");
    let marks = [CORDONED_BY_ANNOTATION, TRUCE_ANNOTATION, OUTDATED_TAINT, HOLD_TAINT, OLD_HOLD_TAINT];
    assert!(marks.iter().chain(&AUTOSCALER_ANNOTATIONS).all(|mark| script.contains(*mark)), "{script}");
    let output = page::shell(&control_plane, &script, folder, &[]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ours = nodes.get("ours").await.unwrap();
    let said = ours.status.iter().flat_map(|status| status.conditions.iter().flatten());
    // The node lifecycle controller adds those of a kubelet that it misses.
    let said: Vec<&str> = said.map(|one| one.type_.as_str()).filter(|type_| !KUBELETS.contains(type_)).collect();
    assert_eq!(said, ["Theirs"]);
    let spec = ours.spec.clone().unwrap_or_default();
    // No kubelet reports for it, and the node lifecycle controller may have said so by now.
    let taints = spec.taints.unwrap_or_default();
    let taints: Vec<_> = taints.iter().filter(|taint| !taint.key.starts_with("node.kubernetes.io/")).collect();
    assert_eq!((spec.unschedulable.unwrap_or_default(), taints), (false, vec![]));
    let mut left = ours.annotations().clone();
    // The node controllers' own, of every Node (`pkg/controller/ttl`).
    left.remove("node.alpha.kubernetes.io/ttl");
    assert_eq!(left, [(AUTOSCALER_ANNOTATIONS[1].to_owned(), "true".to_owned())].into());
    assert!(ours.labels().is_empty(), "{ours:?}");
    let theirs = nodes.get("theirs").await.unwrap();
    assert_eq!(theirs.labels().len(), 1, "{theirs:?}");
    assert_eq!(theirs.spec.unwrap().unschedulable, Some(true), "an admin's cordon is the admin's");
}

/// Verbs by resource and object's name, which is empty for all.
type Rights = BTreeMap<(String, String), BTreeSet<String>>;

fn add(rights: &mut Rights, resource: &str, names: &[String], verbs: &[String]) {
    let all = [String::new()];
    for name in if names.is_empty() { &all } else { names } {
        rights.entry((resource.to_owned(), name.clone())).or_default().extend(verbs.iter().cloned());
    }
}

/// The roles of docs/rights.md, with whether they are of the operator's namespace only.
fn rights_page() -> BTreeMap<String, (bool, Rights)> {
    let page = std::fs::read_to_string(page::tree().join("docs/rights.md")).unwrap();
    let words = |cell: &str| -> Vec<String> {
        cell.split(['`', ' ', ',']).filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect()
    };
    let mut roles = BTreeMap::new();
    for section in page.split("\n## ").skip(1) {
        let head = section.lines().next().unwrap();
        let name = format!("{} {}", head.split(' ').next().unwrap(), head.split('`').nth(1).unwrap());
        let mut rights = Rights::new();
        for row in section.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let names = if cells[1] == "all" { Vec::new() } else { words(cells[1]) };
            for resource in words(cells[0]) {
                add(&mut rights, &resource, &names, &words(cells[2]));
            }
        }
        roles.insert(name, (head.starts_with("Role "), rights));
    }
    roles
}

/// What somebody may do in the operator's namespace, as `kubectl auth can-i --list` prints it.
fn can_i(control_plane: &ControlPlane, user: &str, folder: &Path) -> Rights {
    let told = kubectl(control_plane, &["auth", "can-i", "--list", "-n", "bascule-system", "--as", user], folder);
    let mut rights = Rights::new();
    // What begins with a space is about URLs and not resources.
    for line in told.lines().skip(1).filter(|line| !line.starts_with(' ')) {
        let resource = line.split_whitespace().next().unwrap();
        let list = |number: usize| -> Vec<String> {
            let inner = line.split('[').nth(number).and_then(|rest| rest.split(']').next()).unwrap();
            inner.split_whitespace().map(ToOwned::to_owned).collect()
        };
        add(&mut rights, resource, &list(2), &list(3));
    }
    rights
}

async fn the_page_of_rights_is_what_kubectl_says(control_plane: &ControlPlane, folder: &Path) {
    // The role of a component that the page does not take.
    bascule::install(control_plane, &["components/node-conditions/rbac.yaml"]).await.unwrap();
    let everybody = can_i(control_plane, "nobody", folder);
    let roles = rights_page();
    assert!(roles.len() >= 7, "{roles:?}");
    for (number, (role, (namespaced, written))) in roles.iter().enumerate() {
        let (kind, name) = role.split_once(' ').unwrap();
        let user = format!("someone-{number}");
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": if *namespaced { "RoleBinding" } else { "ClusterRoleBinding" },
            "metadata": {"name": user, "namespace": namespaced.then_some("bascule-system")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        });
        control_plane.apply(&binding.to_string()).await.unwrap();
        // The authorizer learns of a binding by a watch.
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let mut told = can_i(control_plane, &user, folder);
            told.retain(|right, _| !everybody.contains_key(right));
            if told == *written {
                break;
            }
            assert!(Instant::now() < deadline, "{role}: docs/rights.md has {written:#?}, kubectl {told:#?}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// The conditions of a Node that a kubelet writes, and the node lifecycle controller in its place.
const KUBELETS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// A node in the middle of a drain as the operator leaves it, and one that an admin cordoned.
const LEFT_BEHIND: &str = r#"
apiVersion: v1
kind: Node
metadata:
  name: ours
  annotations:
    bascule.dev/cordoned-by: ours/1
    bascule.dev/autoscaler-truce: '{"until":null,"before":{"karpenter.sh/do-not-disrupt":"true"}}'
    cluster-autoscaler.kubernetes.io/scale-down-disabled: "true"
    karpenter.sh/do-not-disrupt: "true"
  labels: {node.kubernetes.io/exclude-from-external-load-balancers: bascule}
spec:
  unschedulable: true
  taints:
  - {key: bascule.dev/outdated, effect: PreferNoSchedule}
  - {key: startup-taint.cluster-autoscaler.kubernetes.io/bascule-hold, effect: NoSchedule}
  - {key: bascule.dev/hold-until-updated, effect: NoSchedule}
---
apiVersion: v1
kind: Node
metadata:
  name: theirs
  labels: {node.kubernetes.io/exclude-from-external-load-balancers: "true"}
spec: {unschedulable: true}
"#;

/// The page's block for Helm, typed with the real Helm: installed in a namespace that is held to `restricted`, upgraded without
/// a change, and taken out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chart_installs_upgrades_and_takes_out() {
    let (page, folder) = follow();
    let folder = folder.path();
    copy_folder(&page::tree().join("charts"), &folder.join("charts")).unwrap();
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let helm = Binaries::helm(&|_| {}).unwrap().parent().unwrap().to_owned();
    // What Helm keeps on this machine is nobody's.
    let home = folder.join("home");
    let typed = |script: &str| {
        let mut shell = page::shell(&control_plane, script, folder, std::slice::from_ref(&helm));
        let output = shell.env("HOME", &home).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let install = page.block("helm");
    let said = typed(&install);
    assert!(said.contains("STATUS: deployed"), "{said}");

    // Nothing in the operator's pods is against what their namespace is held to: they are made.
    let client = control_plane.client().await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "bascule-system");
    let deadline = Instant::now() + Duration::from_secs(60);
    while pods.list(&ListParams::default()).await.unwrap().items.len() < 2 {
        let events = kubectl(&control_plane, &["-n", "bascule-system", "get", "events"], folder);
        assert!(Instant::now() < deadline, "no pod of the operator was made: {events}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let before = changes(&control_plane, folder);
    assert!(before.len() > 30, "{before:?}");
    let said = typed(&install);
    assert!(said.contains("REVISION: 2"), "{said}");
    assert_eq!(changes(&control_plane, folder), before, "the same chart again changes nothing");

    typed("helm uninstall bascule --namespace bascule-system");
    let own: BTreeSet<String> = [
        "clusterrolebinding.rbac.authorization.k8s.io/bascule-on-call",
        "namespace/bascule-system",
        "rolebinding.rbac.authorization.k8s.io/bascule-live-report",
    ]
    .map(str::to_owned)
    .into();
    let left = || -> BTreeSet<String> {
        let names = kubectl(&control_plane, &["get", "-k", ".", "--ignore-not-found", "-o", "name"], folder);
        names.lines().map(str::to_owned).collect()
    };
    // Helm does not wait: definitions, and the agents' namespace, go when all that is in them has gone.
    let deadline = Instant::now() + Duration::from_secs(60);
    while left() != own && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(left(), own, "the namespace and on-call.yaml were not Helm's to make");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_component_fits_the_others_and_a_namespace_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let page = Page::read().with(&[("bascule-system", "updates")]);
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    // The Prometheus operator's definitions, as far as they matter here.
    for (kind, plural) in [("PodMonitor", "podmonitors"), ("PrometheusRule", "prometheusrules")] {
        control_plane.apply(&definition(kind, plural)).await.unwrap();
    }
    // Another namespace, as the page has it.
    page.lay_out(folder, &page::tree().join("manifests"), "{}");
    page::in_namespaces(folder, "updates", "bascule-agents");
    page::add_components(folder, &OF_EVERY_AGENT);
    page::add_components(folder, &["host-agent"]);
    page.add_authority(folder, "pem");
    kubectl(&control_plane, &["apply", "--server-side", "-k", "."], folder);
    let before = changes(&control_plane, folder);
    kubectl(&control_plane, &["apply", "--server-side", "-k", "."], folder);
    assert_eq!(changes(&control_plane, folder), before);
    let text = kubectl(&control_plane, &["kustomize", "."], folder);
    let kinds: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    for (kind, count) in
        [("Deployment", 1), ("DaemonSet", 0), ("Namespace", 1), ("ServiceAccount", 2), ("NetworkPolicy", 2)]
    {
        assert_eq!(kinds.iter().filter(|one| **one == kind).count(), count, "{kind}: {kinds:?}");
    }
    let other = |line: &&str| line.contains("namespace: bascule-") || line.contains("name: bascule-system");
    assert_eq!(text.lines().find(other), None, "a namespace is named that is not there");
    kubectl(&control_plane, &["-n", "updates", "get", "deployment/bascule-operator"], folder);
    kubectl(&control_plane, &["delete", "-k", "."], folder);
    assert_eq!(kubectl(&control_plane, &["get", "-k", ".", "--ignore-not-found", "-o", "name"], folder), "");

    // With the DaemonSet, which is what one of them is for.
    page.lay_out(folder, &page::tree().join("manifests"), "{}");
    page::in_namespaces(folder, "updates", "bascule-agents");
    page::add_components(folder, &OF_EVERY_AGENT);
    page::add_components(folder, &["xbootldr"]);
    kubectl(&control_plane, &["apply", "--server-side", "-k", "."], folder);
    let text =
        kubectl(&control_plane, &["-n", "bascule-agents", "get", "daemonset/bascule-agent", "-o", "json"], folder);
    let agent: Value = serde_json::from_str(&text).unwrap();
    let volumes = agent["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
    assert!(volumes.iter().any(|volume| volume["hostPath"]["path"] == "/boot"), "{volumes:?}");

    // None was left out: high-availability is part of the page's overlay.
    let there = std::fs::read_dir(page::tree().join("manifests/components")).unwrap();
    let there: BTreeSet<String> = there.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let taken = OF_EVERY_AGENT.iter().chain(&["high-availability", "extra-ca", "host-agent", "xbootldr"]);
    assert_eq!(there, taken.map(|name| (*name).to_owned()).collect::<BTreeSet<String>>());
    let table = Page::read();
    assert!(there.iter().all(|name| table.names(name)), "step 4 does not say what each of {there:?} does");
}

/// Components that have to do with the operator alone.
const OF_EVERY_AGENT: [&str; 5] = ["alerts", "prometheus", "network-policy", "dashboard", "node-conditions"];

fn definition(kind: &str, plural: &str) -> String {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.monitoring.coreos.com")},
        "spec": {
            "group": "monitoring.coreos.com", "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
    .to_string()
}
