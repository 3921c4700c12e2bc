//! An operator that is started where something it rests on is missing, old, or there twice.

use crate::agent::Habit;
use crate::proxy::Proxy;
use crate::world::{Cluster, PATIENCE};
use bascule_api::{UpdatePolicy, conditions};
use bascule_operator::{clock::Clock, run::run, settings::Settings};
use bascule_tests::bascule;
use bascule_tests::control_plane::{ControlPlane, Options};
use clap::Parser as _;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::json;
use std::time::{Duration, Instant};

async fn readyz(listen: &str) -> String {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    match client.get(format!("http://{listen}/readyz")).send().await {
        Ok(answer) => answer.text().await.unwrap(),
        Err(_) => String::new(),
    }
}

async fn until_readyz(listen: &str, parts: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = readyz(listen).await;
        if parts.iter().all(|part| said.contains(part)) {
            return;
        }
        assert!(Instant::now() < deadline, "it never said {parts:?}, but {said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_installed_is_named_and_waited_for() {
    bascule_tests::install_tls_provider();
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    bascule::install(&control_plane, &["operator/namespace.yaml", "operator/rbac.yaml"]).await.unwrap();
    let (_vendor, server) = bascule::repository().await;
    let files = tempfile::tempdir().unwrap();
    let launch = bascule::launch(&control_plane, &server, files.path(), "first", None).await;
    let arguments = std::iter::once("bascule-operator".to_owned()).chain(launch.arguments.clone());
    let task = tokio::spawn(run(Settings::parse_from(arguments), Clock::system(), std::future::pending()));

    let missing = ["the definition updatepolicies.bascule.dev is not there", "ValidatingAdmissionPolicy bascule-agent"];
    until_readyz(&launch.listen, &missing).await;
    bascule::install(&control_plane, bascule::MANIFESTS).await.unwrap();
    until_readyz(&launch.listen, &["ok"]).await;
    assert!(!task.is_finished());
    task.abort();
    let _ = task.await;

    // A definition of an older version.
    let definitions: Api<CustomResourceDefinition> = Api::all(control_plane.client().await.unwrap());
    let mut older = definitions.get("updatepolicies.bascule.dev").await.unwrap();
    let schema = older.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
    let spec = schema.properties.as_mut().unwrap().get_mut("spec").unwrap();
    spec.properties.as_mut().unwrap().remove("paused").unwrap();
    definitions.replace("updatepolicies.bascule.dev", &PostParams::default(), &older).await.unwrap();
    let launch = bascule::launch(&control_plane, &server, files.path(), "second", None).await;
    let arguments = std::iter::once("bascule-operator".to_owned()).chain(launch.arguments.clone());
    let task = tokio::spawn(run(Settings::parse_from(arguments), Clock::system(), std::future::pending()));
    until_readyz(&launch.listen, &["updatepolicies.bascule.dev is older than this operator: it lacks spec.paused"])
        .await;
    task.abort();
}

/// The API server is that of today; only what it says of its version is an older one's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubernetes_that_is_too_old_is_named_and_waited_for() {
    bascule_tests::install_tls_provider();
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    bascule::install(&control_plane, bascule::MANIFESTS).await.unwrap();
    let proxy = Proxy::honest(&control_plane).await;
    proxy.pretend_to_be(Some("33"));
    let (_vendor, server) = bascule::repository().await;
    let files = tempfile::tempdir().unwrap();
    let launch = bascule::launch(&control_plane, &server, files.path(), "early", Some(&proxy.url)).await;
    let arguments = std::iter::once("bascule-operator".to_owned()).chain(launch.arguments.clone());
    let task = tokio::spawn(run(Settings::parse_from(arguments), Clock::system(), std::future::pending()));

    let told = ["this is Kubernetes 1.33", "1.34 or newer: update the control plane first"];
    until_readyz(&launch.listen, &told).await;
    let leases: Api<Lease> = Api::namespaced(control_plane.client().await.unwrap(), "bascule-system");
    assert!(leases.get_opt("bascule-operator").await.unwrap().is_none(), "it does not even stand for election");
    // The control plane is updated.
    proxy.pretend_to_be(None);
    until_readyz(&launch.listen, &["ok"]).await;
    assert!(!task.is_finished());
    task.abort();
}

/// A Deployment that was put into another namespace than the Roles are for has another account of the same name.
const ELSEWHERE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: elsewhere}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: bascule-operator, namespace: elsewhere}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_in_another_namespace_than_its_roles_and_its_root_of_trust_names_it() {
    bascule_tests::install_tls_provider();
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    bascule::install(&control_plane, bascule::MANIFESTS).await.unwrap();
    control_plane.apply(ELSEWHERE).await.unwrap();
    let client = control_plane.client().await.unwrap();
    let (vendor, server) = bascule::repository().await;
    bascule::trust(&client, &vendor).await;
    let files = tempfile::tempdir().unwrap();
    let launch = bascule::launch(&control_plane, &server, files.path(), "lost", None).await;
    let account = control_plane.service_account("elsewhere", "bascule-operator").await.unwrap();
    account.write_to(&files.path().join("lost.kubeconfig")).unwrap();
    let own = ["bascule-operator"].into_iter().chain(launch.arguments.iter().map(String::as_str));
    let settings = Settings::parse_from(own.chain(["--namespace=elsewhere"]));
    let task = tokio::spawn(run(settings, Clock::system(), std::future::pending()));

    let told = ["the operator may not", "apply manifests/operator/rbac.yaml", "the operator runs (elsewhere)"];
    until_readyz(&launch.listen, &told).await;
    // What it says to do, with the namespace that it names.
    let rbac = include_str!("../../../manifests/operator/rbac.yaml").replace("bascule-system", "elsewhere");
    control_plane.apply(&rbac).await.unwrap();
    until_readyz(&launch.listen, &["ok"]).await;

    // The root of trust was left where nobody looks for it.
    let policy: UpdatePolicy = serde_json::from_value(json!({
        "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": "workers"},
        "spec": {
            "nodeSelector": {"matchLabels": {"role": "worker"}},
            "source": {"repository": server.url(), "channel": "stable"},
        },
    }))
    .unwrap();
    let policies: Api<UpdatePolicy> = Api::all(client);
    policies.create(&PostParams::default(), &policy).await.unwrap();
    let named = |policy: Option<&UpdatePolicy>| {
        let status = policy.and_then(|policy| policy.status.as_ref());
        let found = status.and_then(|status| conditions::get(&status.conditions, conditions::REPOSITORY_HEALTHY));
        found.is_some_and(|one| {
            let place = one.message.contains("ConfigMap elsewhere/bascule-trust-root does not exist");
            one.status == "False" && one.reason == conditions::reason::UNTRUSTED && place
        })
    };
    let waited = tokio::time::timeout(PATIENCE, await_condition(policies.clone(), "workers", named)).await;
    assert!(waited.is_ok(), "{:?}", policies.get("workers").await.unwrap().status);
    assert!(!task.is_finished());
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_operator_may_not_do_and_admission_that_holds_nobody_are_named_and_waited_for() {
    bascule_tests::install_tls_provider();
    let options = Options { disabled_admission: Some("ValidatingAdmissionPolicy".to_owned()), ..Options::default() };
    let control_plane = ControlPlane::start(options).await.unwrap();
    bascule::install(&control_plane, bascule::MANIFESTS).await.unwrap();
    let (_vendor, server) = bascule::repository().await;
    let files = tempfile::tempdir().unwrap();
    let start = async |identity: &str, more: &[&str]| {
        let launch = bascule::launch(&control_plane, &server, files.path(), identity, None).await;
        let own = ["bascule-operator"].into_iter().chain(launch.arguments.iter().map(String::as_str));
        let settings = Settings::parse_from(own.chain(more.iter().copied()));
        (tokio::spawn(run(settings, Clock::system(), std::future::pending())), launch.listen)
    };

    // Another namespace than the one that was installed into.
    let (elsewhere, listen) = start("elsewhere", &["--namespace=default"]).await;
    until_readyz(&listen, &["may not create leases", "patch leases", "namespace in which the operator runs (default)"])
        .await;
    elsewhere.abort();

    // Before there is any node to protect.
    let (unprotected, listen) = start("unprotected", &[]).await;
    until_readyz(&listen, &["does not enforce the ValidatingAdmissionPolicy", "--disable-admission-plugins"]).await;
    assert!(!unprotected.is_finished());
    unprotected.abort();

    // A right is missing.
    let roles: Api<ClusterRole> = Api::all(control_plane.client().await.unwrap());
    let mut role = roles.get("bascule-operator").await.unwrap();
    let nodes = |rule: &PolicyRule| rule.resources.as_ref().is_some_and(|all| all.iter().any(|one| one == "nodes"));
    role.rules.as_mut().unwrap().retain(|rule| !nodes(rule));
    roles.replace("bascule-operator", &PostParams::default(), &role).await.unwrap();
    let (unable, listen) = start("unable", &[]).await;
    until_readyz(&listen, &["may not list nodes, patch nodes, watch nodes", "apply manifests/operator/rbac.yaml"])
        .await;
    unable.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_no_longer_holds_everybody_stops_whoever_comes_to_lead() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let first = world.operator("first").await;
    world.eventually("the first leads", async || leads(&first.listen).await).await;
    let second = world.operator("second").await;
    until_readyz(&second.listen, &["ok"]).await;
    // Somebody has a look at who would be refused, and forgets it.
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(world.client.clone());
    let actions = |actions: &[&str]| Patch::Merge(json!({"spec": {"validationActions": actions}}));
    bindings.patch("bascule-agent", &PatchParams::default(), &actions(&["Audit"])).await.unwrap();
    first.stop().await;
    until_readyz(&second.listen, &["bascule-agent does not hold everybody", "do not name Deny"]).await;
    world.policy("workers", json!({})).await;
    // Who starts now does not even take part.
    let third = world.operator("third").await;
    until_readyz(&third.listen, &["bascule-agent does not hold everybody"]).await;
    let updates: Api<bascule_api::NodeUpdate> = Api::all(world.client.clone());
    assert!(updates.get_opt("n1").await.unwrap().is_none(), "nobody acts");

    bindings.patch("bascule-agent", &PatchParams::default(), &actions(&["Deny"])).await.unwrap();
    world.until_current("n1", "1.1").await;
    until_readyz(&second.listen, &["ok"]).await;
}

/// The rights of the operator of another namespace, as its manifests give them with other names.
const SECOND: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: second}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: second}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: bascule-operator}
subjects: [{kind: ServiceAccount, name: bascule-operator, namespace: bascule-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: second, namespace: second}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: bascule-operator, namespace: bascule-system}]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_installations_only_the_older_acts() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.control_plane.apply(SECOND).await.unwrap();
    let older = world.operator("older").await;
    world.eventually("the older leads", async || leads(&older.listen).await).await;
    // The pod that it runs in; the namespace may not have its account yet.
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "younger", "namespace": "second"},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "operator", "image": "operator"}]},
    }))
    .unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "second");
    world.eventually("its pod is there", async || pods.create(&PostParams::default(), &pod).await.is_ok()).await;
    let younger = world.operator_with("younger", None, &["--namespace=second"]).await;
    // It takes its own Lease, and does not lead.
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "second");
    let held = |lease: Option<&Lease>| {
        lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref()) == Some("younger")
    };
    world.until(leases, "bascule-operator", "held by the younger", held).await;
    world.policy("workers", json!({})).await;
    world.until_current("n1", "1.1").await;
    world.eventually("the older leads still", async || leads(&older.listen).await).await;
    assert!(!leads(&younger.listen).await);
    let told = "another installation of Bascule leads in this cluster (namespace bascule-system)";
    until_readyz(&younger.listen, &["ok", told]).await;
    let events: Api<Event> = Api::namespaced(world.client.clone(), "second");
    let on_its_pod = |event: &Event| {
        let about = event.regarding.as_ref().and_then(|about| about.name.as_deref());
        let says = event.note.as_deref().is_some_and(|note| note.contains(told));
        (about, event.reason.as_deref()) == (Some("younger"), Some("CannotAct")) && says
    };
    let is_told = async || events.list(&ListParams::default()).await.unwrap().iter().any(on_its_pod);
    world.eventually("it says so on its pod", is_told).await;
    // Once the older is gone, the other may.
    older.stop().await;
    world.eventually("the younger leads", async || leads(&younger.listen).await).await;
    let is_over = async || !readyz(&younger.listen).await.contains("another installation");
    world.eventually("nothing is in its way", is_over).await;
}

async fn leads(listen: &str) -> bool {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    match client.get(format!("http://{listen}/metrics")).send().await {
        Ok(answer) => answer.text().await.unwrap().lines().any(|line| line == "bascule_leader 1"),
        Err(_) => false,
    }
}
