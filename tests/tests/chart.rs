//! The Helm chart against `manifests/`: Helm and kustomize make the same objects of them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

use std::collections::BTreeMap;
use std::process::{Command, Output};

use bascule_tests::control_plane::Binaries;
use bascule_tests::files::copy_folder;
use bascule_tests::page::tree;
use serde_json::Value;

/// Kinds without a namespace, which kustomize gives one all the same.
const CLUSTER_SCOPED: [&str; 4] =
    ["FlowSchema", "PriorityLevelConfiguration", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];

type Objects = BTreeMap<String, Value>;

/// kustomize writes 100 where the definitions have 100.0, which is the same number.
fn plain(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(plain),
        Value::Array(items) => items.iter_mut().for_each(plain),
        Value::Number(number) => {
            let written = number.to_string();
            if let Some(Ok(whole)) = written.strip_suffix(".0").map(str::parse::<i64>) {
                *value = Value::from(whole);
            }
        }
        _ => {}
    }
}

fn objects(yaml: &[u8]) -> Objects {
    let documents: Vec<Value> = serde_saphyr::from_multiple(std::str::from_utf8(yaml).unwrap()).unwrap();
    let named = documents.into_iter().filter(|document| !document.is_null()).map(|mut object| {
        plain(&mut object);
        let kind = object["kind"].as_str().unwrap().to_owned();
        if CLUSTER_SCOPED.contains(&kind.as_str()) {
            object["metadata"].as_object_mut().unwrap().remove("namespace");
        }
        (format!("{kind} {}", object["metadata"]["name"]), object)
    });
    named.collect()
}

fn render(values: &[&str]) -> Output {
    let mut helm = Command::new(Binaries::helm(&|_| {}).unwrap());
    // Without a server there is none that could say its version.
    helm.args(["template", "bascule", "--namespace", "bascule-system", "--kube-version", "1.36.0"])
        .arg(tree().join("charts/bascule"));
    helm.args(values.iter().flat_map(|value| ["--set", value])).output().unwrap()
}

fn helm(values: &[&str]) -> Objects {
    let output = render(values);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    objects(&output.stdout)
}

fn kustomize(components: &[&str]) -> Objects {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&tree().join("manifests"), &folder.path().join("manifests")).unwrap();
    let components: Vec<String> = components.iter().map(|name| format!("manifests/components/{name}")).collect();
    let text = format!("resources: [manifests]\ncomponents: [{}]\n", components.join(", "));
    std::fs::write(folder.path().join("kustomization.yaml"), text).unwrap();
    let kubectl = Binaries::locate(&|_| {}).unwrap().path("kubectl");
    let output = Command::new(kubectl).arg("kustomize").arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut objects = objects(&output.stdout);
    // Helm's own to make: `--create-namespace`.
    objects.remove("Namespace \"bascule-system\"").unwrap();
    objects
}

fn assert_same(helm: &Objects, kustomize: &Objects) {
    let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(helm), names(kustomize));
    for (name, object) in helm {
        assert_eq!(object, &kustomize[name], "{name}");
    }
}

#[test]
fn helm_and_kustomize_install_the_same() {
    let images = ["operator.image=bascule-operator", "agent.image=bascule-agent"];
    let with = |more: &[&'static str]| images.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>();
    assert_same(&helm(&with(&["operator.replicas=1"])), &kustomize(&[]));
    let all = [
        "agent.as=HostService",
        "networkPolicy=true",
        "podMonitor=true",
        "alerts=true",
        "dashboard=true",
        "operator.nodeConditions=true",
    ];
    let mut kustomized = kustomize(&[
        "host-agent",
        "high-availability",
        "network-policy",
        "prometheus",
        "alerts",
        "dashboard",
        "node-conditions",
    ]);
    kustomized.remove("Service \"bascule-operator\"").unwrap();
    assert_same(&helm(&with(&all)), &kustomized);

    // An authority of one's own: the chart also brings the ConfigMap, which with kustomize is the overlay's.
    let mut extra = helm(&with(&["operator.replicas=1", "operator.extraCA=pem"]));
    assert_eq!(extra.remove("ConfigMap \"bascule-extra-ca\"").unwrap()["data"]["ca.pem"], "pem");
    assert_same(&extra, &kustomize(&["extra-ca"]));

    let boot = helm(&with(&["operator.replicas=1", "agent.xbootldr=/boot"]));
    assert_same(&boot, &kustomize(&["xbootldr"]));

    let own = helm(&with(&[
        "operator.resources.limits.memory=1Gi",
        "operator.env[0].name=HTTPS_PROXY",
        "operator.env[0].value=http://proxy.example:3128",
        "agent.bootPartition=/boot/efi",
        "agent.resources.requests.cpu=20m",
        "imagePullSecrets[0].name=registry",
        "operator.nodeSelector.pool=control",
        "agent.nodeSelector.os=acme",
    ]));
    let pod = |name: &str| own[name]["spec"]["template"]["spec"].clone();
    let operator = &pod("Deployment \"bascule-operator\"")["containers"][0];
    assert_eq!(operator["resources"]["limits"]["memory"], "1Gi");
    assert_eq!(operator["env"].as_array().unwrap().last().unwrap()["value"], "http://proxy.example:3128");
    let spec = pod("Deployment \"bascule-operator\"");
    assert_eq!(
        (&spec["imagePullSecrets"][0]["name"], &spec["nodeSelector"]["pool"]),
        (&"registry".into(), &"control".into())
    );
    assert_eq!(pod("DaemonSet \"bascule-agent\"")["imagePullSecrets"][0]["name"], "registry");
    let agent = pod("DaemonSet \"bascule-agent\"");
    assert_eq!(agent["containers"][0]["resources"]["requests"]["cpu"], "20m");
    assert_eq!(agent["nodeSelector"]["os"], "acme");
    let boot = agent["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "efi").unwrap();
    assert_eq!(boot["hostPath"]["path"], "/boot/efi");

    let elsewhere = helm(&with(&["agent.namespace=hosts", "trustRoot=signed"]));
    assert_eq!(elsewhere["DaemonSet \"bascule-agent\""]["metadata"]["namespace"], "hosts");
    assert_eq!(elsewhere["ConfigMap \"bascule-trust-root\""]["data"]["root.json"], "signed");
}

#[test]
fn a_chart_without_images_says_what_is_missing() {
    let output = render(&[]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("image is yours to set"), "{said}");
}
