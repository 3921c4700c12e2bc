//! docs/install.md shows an overlay. What it shows is what is installed here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::path::Path;

use bascule_tests::control_plane::{ControlPlane, Options};
use bascule_tests::files::copy_folder;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, PodSpec};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The YAML between the marks of that name.
fn shown(page: &str, name: &str) -> String {
    let marked = page.split(&format!("<!-- {name}: begin")).nth(1).and_then(|rest| rest.split("```").nth(1));
    marked.and_then(|block| block.strip_prefix("yaml\n")).unwrap_or_else(|| panic!("no {name} on the page")).to_owned()
}

fn image(pod: Option<PodSpec>) -> Option<String> {
    pod?.containers.into_iter().next()?.image
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_overlay_of_the_page_installs() {
    let page = std::fs::read_to_string(format!("{ROOT}/docs/install.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&Path::new(ROOT).join("manifests"), &folder.path().join("manifests")).unwrap();
    for (name, content) in [
        ("kustomization.yaml", shown(&page, "overlay")),
        ("on-call.yaml", shown(&page, "on-call")),
        ("root.json", "{}".to_owned()),
    ] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    control_plane.apply_kustomization(folder.path()).await.unwrap();

    let client = control_plane.client().await.unwrap();
    let operator =
        Api::<Deployment>::namespaced(client.clone(), "bascule-system").get("bascule-operator").await.unwrap();
    let operator = image(operator.spec.and_then(|spec| spec.template.spec));
    assert_eq!(operator.as_deref(), Some("registry.example.com/bascule-operator:v1"));
    let agent = Api::<DaemonSet>::namespaced(client.clone(), "bascule-system").get("bascule-agent").await.unwrap();
    let agent = image(agent.spec.and_then(|spec| spec.template.spec));
    assert_eq!(agent.as_deref(), Some("registry.example.com/bascule-agent:v1"));
    let roots = Api::<ConfigMap>::namespaced(client.clone(), "bascule-system").get("bascule-trust-root").await.unwrap();
    assert_eq!(roots.data.unwrap().get("root.json").map(String::as_str), Some("{}"));
    let on_call = Api::<ClusterRoleBinding>::all(client).get("bascule-on-call").await.unwrap();
    assert_eq!(on_call.role_ref.name, "bascule-on-call");

    // The same with the agent as a service of the host: there is no DaemonSet.
    let overlay = format!("{}components: [manifests/components/host-agent]\n", shown(&page, "overlay"));
    std::fs::write(folder.path().join("kustomization.yaml"), overlay).unwrap();
    let applied = control_plane.apply_kustomization(folder.path()).await.unwrap();
    let kinds: Vec<&str> = applied.iter().map(|object| object.kind.as_str()).collect();
    assert!(kinds.contains(&"Deployment") && !kinds.contains(&"DaemonSet"), "{kinds:?}");
}
