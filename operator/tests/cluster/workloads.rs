//! Drains against workloads that real clusters run: pods that come back, budgets that never open or open only after the
//! cordon, builds that end late, an operator that has nowhere else to go, and people who uncordon.

use crate::agent::Habit;
use crate::audit_log;
use crate::world::{Cluster, Operator};
use bascule_api::{DisruptionOutcome, NodeUpdate, Rollback, WaitReason};
use bascule_operator::gather::EXCLUDE_LABEL;
use bascule_tests::control_plane::Binaries;
use bascule_tests::kwok::{self, Kwok, Pace};
use bascule_tests::workload;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn cordoned(node: Option<&Node>) -> bool {
    node.and_then(|node| node.spec.as_ref()?.unschedulable).unwrap_or(false)
}

/// A Deployment of one pod with more lines of its pod's spec.
pub fn one_pod(name: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: default}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers: [{{name: c, image: example.invalid/c}}]
      {more}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: {name}, namespace: default}}
spec: {{minAvailable: 1, selector: {{matchLabels: {{app: {name}}}}}}}
"#
    )
}

impl Cluster {
    /// Starts a build that asks not to be disrupted; the name of its pod once it runs.
    pub async fn a_build_runs(&self) -> String {
        self.control_plane.apply(BUILD).await.unwrap();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let labelled = ListParams::default().labels("app=build");
        let runs = async || {
            let all = pods.list(&labelled).await.unwrap().items;
            all.iter().any(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running"))
        };
        self.eventually("the build runs", runs).await;
        pods.list(&labelled).await.unwrap().items.remove(0).metadata.name.unwrap()
    }

    /// Lets it end well.
    pub async fn the_build_ends(&self, pod: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let succeeded = json!({"status": {"phase": "Succeeded"}});
        pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(&succeeded)).await.unwrap();
    }

    pub async fn starts(&self, manifest: &str, app: &str) {
        self.control_plane.apply(manifest).await.unwrap();
        let patience = crate::world::PATIENCE;
        assert!(bascule_tests::workload::until_ready(&self.client, app, 1, patience).await, "{app} never was ready");
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), "default");
        let seen = |budget: Option<&PodDisruptionBudget>| {
            budget.is_none_or(|budget| budget.status.as_ref().is_some_and(|status| status.current_healthy == Some(1)))
        };
        self.until(budgets, app, "counted", seen).await;
    }

    /// How many pods were evicted, by the operator's own count.
    async fn evictions(&self, listen: &str) -> u32 {
        let text = reqwest::get(format!("http://{listen}/metrics")).await.unwrap().text().await.unwrap();
        let lines =
            text.lines().filter(|line| line.starts_with("bascule_evictions_total") && line.contains("accepted"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()).sum()
    }

    pub async fn notes(&self, reason: &str) -> Vec<String> {
        let events: Api<Event> = Api::all(self.client.clone());
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let those = all.into_iter().filter(|event| event.reason.as_deref() == Some(reason));
        those.filter_map(|event| event.note).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_tolerates_the_cordon_is_evicted_once_and_lets_its_node_go() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let pinned = "nodeSelector: {kubernetes.io/hostname: n1}\n      tolerations: [{operator: Exists}]";
    let stubborn = one_pod("stubborn", pinned);
    world.starts(&stubborn, "stubborn").await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), "default");
    budgets.delete("stubborn", &DeleteParams::default()).await.unwrap();
    let operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_current("n1", "1.1").await;
    assert_eq!(world.evictions(&operator.listen).await, 1);
    let drained = async || world.notes("Drained").await.iter().any(|note| note.contains("default/stubborn-"));
    world.eventually("the event names who came back", drained).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_replica_under_a_budget_is_deleted_after_the_timeout_where_the_policy_says_so() {
    audit_log::keep();
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let apps = ["single", "lone"];
    for app in apps {
        world.starts(&one_pod(app, ""), app).await;
    }
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let before: Vec<String> = pods
        .list(&ListParams::default())
        .await
        .unwrap()
        .iter()
        .map(|pod| format!("Pod default/{}", pod.name_any()))
        .collect();
    assert_eq!(before.len(), apps.len());
    world.machine("n2", "b", Habit::Good).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"drain": {"timeout": "4s", "onTimeout": "Delete"}})).await;
    world.until_current("n2", "1.1").await;
    world.until_current("n1", "1.1").await;
    let told = async || {
        let notes = world.notes("Deleted").await;
        notes.iter().filter(|note| note.contains("without its budget's leave")).count() >= before.len()
    };
    world.eventually("each deletion is an event on the pod", told).await;
    for pod in &before {
        let told = async || world.notes("PodDeleted").await.iter().any(|note| note.contains(pod));
        world.eventually("and on the node", told).await;
        let lines = audit_log::about(pod);
        let deleted: Vec<_> = lines.iter().filter(|line| line.contains("action=\"DeletePod\"")).collect();
        let [line] = deleted[..] else { panic!("one line for {pod}: {lines:?}") };
        for part in ["node=\"n1\"", "by=\"UpdatePolicy workers\"", "without its budget's leave", "onTimeout: Delete"] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_that_opens_only_after_the_cordon_is_given_time_where_its_annotation_says_so() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.starts(&one_pod("db", ""), "db").await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_message("n1", WaitReason::DisruptionBudget, "bascule.dev/opens-after-cordon").await;
    // Whoever keeps the database says so, and its controller lets go of the pod once its node is cordoned.
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), "default");
    let says = json!({"metadata": {"annotations": {"bascule.dev/opens-after-cordon": "2s"}}});
    budgets.patch("db", &PatchParams::default(), &Patch::Merge(&says)).await.unwrap();
    world.until_node("n1", "cordoned", cordoned).await;
    // It does not open in time: given back, with the reason.
    world.until_message("n1", WaitReason::DrainBackoff, "did not open within 2s of the cordon").await;
    world.until_node("n1", "uncordoned", |node| !cordoned(node)).await;

    let mut second = Cluster::new().await;
    second.machine("n1", "a", Habit::Good).await;
    second.starts(&one_pod("db", ""), "db").await;
    second.shop(2).await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(second.client.clone(), "default");
    let open = |budget: Option<&PodDisruptionBudget>| {
        budget.and_then(|budget| budget.status.as_ref()).is_some_and(|status| status.disruptions_allowed == Some(1))
    };
    second.until(budgets.clone(), "shop", "open", open).await;
    let _operator = second.operator("first").await;
    second.policy("workers", json!({"drain": {"budgetsOpenAfterCordon": "45s"}})).await;
    second.until_node("n1", "cordoned", cordoned).await;
    budgets.delete("db", &DeleteParams::default()).await.unwrap();
    // One that was open at the grant is used up by the drain itself, there being no other node, and is waited for like any other.
    let disruption = second.update("n1").await.spec.disruption.unwrap();
    assert_eq!(disruption.closed_budgets, ["default/db"]);
    let over = disruption.drain_started_at.unwrap().after(bascule_api::Duration::from_secs(50));
    let waited = async || bascule_api::Time::new(bascule_tests::clock::now()) > over;
    second.eventually("the time of the budgets that were closed is over", waited).await;
    second.until_the_shop_holds("n1").await;
    second.clear_of_the_shop("n1").await;
    second.until_current("n1", "1.1").await;
    let generation = second.update("n1").await.spec.grant.map(|grant| grant.generation);
    assert_eq!(generation, Some(1), "it was not given up in between");
}

const BUILD: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: build, namespace: default}
spec:
  activeDeadlineSeconds: 600
  template:
    metadata: {labels: {app: build}, annotations: {karpenter.sh/do-not-disrupt: "true"}}
    spec:
      restartPolicy: Never
      activeDeadlineSeconds: 3600
      containers: [{name: c, image: example.invalid/c}]
"#;

/// One node, and on it a build; the world, its operator, and the build's pod.
async fn a_drain_waits_for_a_build() -> (Cluster, Operator, String) {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let build = world.a_build_runs().await;
    let operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_message("n1", WaitReason::PodsCompleting, "Pod default/build-").await;
    world.until_message("n1", WaitReason::PodsCompleting, "(its annotation karpenter.sh/do-not-disrupt)").await;
    (world, operator, build)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_asks_not_to_be_disrupted_is_waited_for_until_it_has_completed() {
    let (world, operator, build) = a_drain_waits_for_a_build().await;
    assert!(cordoned(Some(&Api::<Node>::all(world.client.clone()).get("n1").await.unwrap())), "takes no new builds");
    // The Job says when it ends, which is before the drain would.
    let job = Api::<Job>::namespaced(world.client.clone(), "default").get("build").await.unwrap();
    let started_at = bascule_api::Time::from_kubernetes(&job.status.unwrap().start_time.unwrap());
    let until = world.update("n1").await.status.unwrap().rollout.unwrap().until;
    assert_eq!(until, Some(started_at.after(bascule_api::Duration::from_secs(600))));
    world.the_build_ends(&build).await;
    world.until_current("n1", "1.1").await;
    assert!(world.evictions(&operator.listen).await <= 1, "at most the finished pod");
}

/// Somebody looks around on a node.
const DEBUG: &str = "
apiVersion: v1
kind: Pod
metadata: {name: debug, namespace: default, labels: {app: debug}}
spec: {containers: [{name: c, image: example.invalid/c}]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_say_who_is_waited_for_who_stays_and_who_goes_last() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    for (app, manifest) in [
        ("web", workload::deployment("web", 1)),
        ("storage", workload::deployment("storage", 1)),
        ("debug", DEBUG.to_owned()),
    ] {
        world.control_plane.apply(&manifest).await.unwrap();
        world.until_ready_on(app, "n1").await;
    }
    let build = world.a_build_runs().await;
    world.machine("n2", "b", Habit::Good).await;
    let operator = world.operator("first").await;
    let of = |app: &str| json!({"matchLabels": {"app": app}});
    let rules = json!([
        {"name": "builds", "selector": of("build"), "behavior": "WaitCompleted", "order": -1},
        {"name": "disks", "selector": of("storage"), "behavior": "Drain", "order": 10},
        {"name": "looks", "selector": of("debug"), "behavior": "Skip"},
    ]);
    let first = json!({"matchLabels": {"kubernetes.io/hostname": "n1"}});
    world.policy("workers", json!({"nodeSelector": first, "drain": {"rules": rules}})).await;
    world.until_message("n1", WaitReason::PodsCompleting, &format!("Pod default/{build} (rule builds)")).await;
    assert_eq!(world.evictions(&operator.listen).await, 0, "builds come first");
    world.the_build_ends(&build).await;
    world.until_current("n1", "1.1").await;
    let left = async || {
        let named = "left for the reboot: default/debug (rule looks)";
        world.notes("Drained").await.iter().any(|note| note.contains(named))
    };
    world.eventually("who was left is named", left).await;
    let events: Api<Event> = Api::all(world.client.clone());
    let evicted = events.list(&ListParams::default()).await.unwrap().items.into_iter().filter_map(|event| {
        let pod = event.regarding.as_ref()?.name.clone()?;
        (event.reason.as_deref() == Some("Evicted")).then_some((event.event_time?.0, pod))
    });
    let evicted: Vec<String> = evicted.collect::<BTreeSet<_>>().into_iter().map(|(_, pod)| pod).collect();
    let at = |app: &str| evicted.iter().position(|pod| pod.starts_with(app));
    assert!(at("web").is_some() && at("web") < at("storage") && at("debug").is_none(), "{evicted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_completes_late_is_evicted_by_nobody() {
    // Built before the Job's ten minutes begin: on a machine that has none yet it takes minutes.
    tokio::task::spawn_blocking(|| Binaries::kwok(&|_| {})).await.unwrap().unwrap();
    let (world, operator, build) = a_drain_waits_for_a_build().await;
    // From here on KWOK has the node's pods, too, and this build takes its time.
    let nodes: Api<Node> = Api::all(world.client.clone());
    let played = json!({"metadata": {"labels": {kwok::LABEL: kwok::PLAYED_BY_KWOK}}});
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&played)).await.unwrap();
    let late = Duration::from_secs(10);
    let begin = Instant::now();
    // The node's Lease stays its kubelet's.
    let pace = Pace { job: late, lease: Duration::ZERO, ..Pace::default() };
    let kwok = Kwok::start(&world.control_plane, &pace).await.unwrap();
    let jobs: Api<Job> = Api::namespaced(world.client.clone(), "default");
    let done = |job: Option<&Job>| job.and_then(|job| job.status.as_ref()?.succeeded) == Some(1);
    world.until(jobs.clone(), "build", &format!("done; KWOK said: {}", kwok.log_tail()), done).await;
    assert!(begin.elapsed() >= late, "the drain was told to wait for it");
    world.until_current("n1", "1.1").await;
    let status = jobs.get("build").await.unwrap().status.unwrap();
    assert_eq!((status.succeeded, status.failed.unwrap_or_default()), (Some(1), 0), "it ran once: {build}");
    assert!(world.evictions(&operator.listen).await <= 1, "at most the finished pod");
}

/// The operator's own pod under the name that it is started with, as the manifests make it.
const OPERATOR: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: op, namespace: bascule-system}
spec:
  replicas: 1
  serviceName: op
  selector: {matchLabels: {app.kubernetes.io/name: bascule-operator}}
  template:
    metadata: {labels: {app.kubernetes.io/name: bascule-operator}}
    spec:
      # Its namespace enforces `restricted`.
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: c
        image: example.invalid/c
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: op, namespace: bascule-system}
spec: {minAvailable: 1, selector: {matchLabels: {app.kubernetes.io/name: bascule-operator}}}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_node_is_updated_with_the_operator_on_it() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.control_plane.apply(OPERATOR).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "bascule-system");
    let ready = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
    };
    world.until(pods.clone(), "op-0", "ready", ready).await;
    let before = pods.get("op-0").await.unwrap().metadata.uid;
    let _operator = world.operator_with("op-0", None, &["--node-name=n1"]).await;
    world.policy("workers", json!({})).await;
    world.until_current("n1", "1.1").await;
    world.until_node("n1", "uncordoned", |node| !cordoned(node)).await;
    assert_eq!(pods.get("op-0").await.unwrap().metadata.uid, before, "the operator did not evict itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_two_nodes_is_updated_with_a_replica_of_the_operator_on_each() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.machine("n2", "b", Habit::Good).await;
    let spread = "topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, \
                  labelSelector: {matchLabels: {app.kubernetes.io/name: bascule-operator}}}]\n      containers:";
    let two = OPERATOR.replace("replicas: 1", "replicas: 2").replacen("containers:", spread, 1);
    world.control_plane.apply(&two).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "bascule-system");
    let ready = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
    };
    let mut operators = Vec::new();
    for name in ["op-0", "op-1"] {
        world.until(pods.clone(), name, "ready", ready).await;
        let node = pods.get(name).await.unwrap().spec.unwrap().node_name.unwrap();
        operators.push(world.operator_with(name, None, &[&format!("--node-name={node}")]).await);
    }
    world.policy("workers", json!({})).await;
    for node in ["n1", "n2"] {
        world.until_current(node, "1.1").await;
        world.until_node(node, "uncordoned", |node| !cordoned(node)).await;
    }
    for name in ["op-0", "op-1"] {
        world.until(pods.clone(), name, "ready after all", ready).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uncordon_by_a_person_ends_the_drain_and_is_told() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.a_build_runs().await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_reason("n1", WaitReason::PodsCompleting).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.uncordon("n1").await.unwrap();
    let ended = |update: Option<&NodeUpdate>| {
        let last = update.and_then(|update| update.spec.last_disruption.as_ref());
        last.is_some_and(|last| last.outcome == DisruptionOutcome::Uncordoned)
    };
    world.until_update("n1", "given back", ended).await;
    world.until_message("n1", WaitReason::DrainBackoff, "somebody uncordoned the node").await;
    let told = async || !world.notes("UncordonedByOthers").await.is_empty();
    world.eventually("it is an event", told).await;
    assert!(!cordoned(Some(&nodes.get("n1").await.unwrap())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_that_names_a_cordoned_node_takes_it_and_leaves_it_cordoned() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"drain": {"loadBalancerDelay": "3s"}})).await;
    world.until_current("n1", "1.1").await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let excluded = |node: Option<&Node>| node.is_some_and(|node| node.labels().contains_key(EXCLUDE_LABEL));
    world.until_node("n1", "uncordoned", |node| !cordoned(node) && !excluded(node)).await;
    nodes.cordon("n1").await.unwrap();
    let rollback: Rollback = serde_json::from_value(json!({
        "metadata": {"name": "back"}, "spec": {"reason": "bad disk", "policy": "workers", "nodes": ["n1"]}
    }))
    .unwrap();
    Api::<Rollback>::all(world.client.clone()).create(&PostParams::default(), &rollback).await.unwrap();
    let back = |update: Option<&NodeUpdate>| {
        let booted = update.and_then(|update| update.status.as_ref()?.booted.as_ref());
        booted.is_some_and(|booted| booted.version.as_str() == "1.0")
            && update.is_some_and(|update| update.spec.disruption.is_none())
    };
    world.until_node("n1", "out of load balancers", excluded).await;
    world.until_update("n1", "back on 1.0", back).await;
    world.until_node("n1", "as the person left it", |node| !excluded(node)).await;
    assert!(cordoned(Some(&nodes.get("n1").await.unwrap())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reboot_waits_for_volumes_to_be_detached_and_autoscalers_leave_the_node_alone_meanwhile() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let attachment = "
apiVersion: storage.k8s.io/v1
kind: VolumeAttachment
metadata: {name: csi-1}
spec: {attacher: csi.example.com, nodeName: n1, source: {persistentVolumeName: pv-of-db}}
";
    world.control_plane.apply(attachment).await.unwrap();
    let nodes: Api<Node> = Api::all(world.client.clone());
    let said = json!({"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "false"}}});
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&said)).await.unwrap();
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_message("n1", WaitReason::VolumesDetaching, "pv-of-db").await;
    let rollout = world.update("n1").await.status.unwrap().rollout.unwrap();
    assert!(rollout.until.is_some() && rollout.object.unwrap().name == "pv-of-db");
    let annotations = nodes.get("n1").await.unwrap().metadata.annotations.unwrap();
    for key in bascule_api::AUTOSCALER_ANNOTATIONS {
        assert_eq!(annotations[key], "true");
    }
    let attachments: Api<VolumeAttachment> = Api::all(world.client.clone());
    attachments.delete("csi-1", &DeleteParams::default()).await.unwrap();
    world.until_current("n1", "1.1").await;
    // For some time beyond the uncordon, and what somebody had said before is not forgotten.
    let note = nodes.get("n1").await.unwrap().metadata.annotations.unwrap()[bascule_api::TRUCE_ANNOTATION].clone();
    let note: serde_json::Value = serde_json::from_str(&note).unwrap();
    assert!(note["until"].is_string() && note["before"]["karpenter.sh/do-not-disrupt"] == "false", "{note}");
}

/// A Deployment of one pod with a volume of its own, which is attached to n1 as an attacher does it: a finalizer keeps the
/// VolumeAttachment until the volume is detached (Kubernetes CSI, "external-attacher").
fn with_a_volume(app: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{name: pv-of-{app}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  claimRef: {{namespace: default, name: {app}}}
  csi: {{driver: csi.example.com, volumeHandle: {app}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {app}, namespace: default}}
spec:
  storageClassName: ""
  volumeName: pv-of-{app}
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 1Gi}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {app}, namespace: default}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {app}}}}}
  template:
    metadata: {{labels: {{app: {app}}}}}
    spec:
      containers: [{{name: c, image: example.invalid/c}}]
      volumes: [{{name: data, persistentVolumeClaim: {{claimName: {app}}}}}]
---
{}"#,
        attached(app, "n1")
    )
}

fn attached(app: &str, node: &str) -> String {
    format!(
        r#"
apiVersion: storage.k8s.io/v1
kind: VolumeAttachment
metadata: {{name: csi-{app}, finalizers: [external-attacher/csi-example-com]}}
spec: {{attacher: csi.example.com, nodeName: {node}, source: {{persistentVolumeName: pv-of-{app}}}}}
"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_the_drain_lets_go_of_is_waited_for_until_it_is_detached() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    for app in ["db", "cache"] {
        world.control_plane.apply(&with_a_volume(app)).await.unwrap();
        world.until_ready_on(app, "n1").await;
    }
    // It has been asked to be detached for longer than a drain gives it, and never was.
    world.machine("n2", "b", Habit::Good).await;
    world.control_plane.apply(&attached("lost", "n2")).await.unwrap();
    let attachments: Api<VolumeAttachment> = Api::all(world.client.clone());
    attachments.delete("csi-lost", &DeleteParams::default()).await.unwrap();
    let asked = attachments.get("csi-lost").await.unwrap().metadata.deletion_timestamp.unwrap();
    let within = bascule_api::Duration::from_secs(3);
    let began = bascule_api::Time::from_kubernetes(&asked).after(within);
    let over = async || bascule_operator::clock::Clock::system().now() > began.get();
    world.eventually("it had its time", over).await;

    let _operator = world.operator("first").await;
    let on = |node: &str| json!({"matchLabels": {"kubernetes.io/hostname": node}});
    world.policy("second", json!({"nodeSelector": on("n2"), "drain": {"volumeDetachTimeout": "3s"}})).await;
    world.until_current("n2", "1.1").await;
    let told = async || {
        let notes = world.notes("Drained").await;
        assert!(!notes.iter().any(|note| note.contains("still attached")), "{notes:?}");
        notes.iter().any(|note| note.contains("was not detached before the drain either: pv-of-lost"))
    };
    world.eventually("what was broken before is named", told).await;

    let cache = json!({"matchLabels": {"app": "cache"}});
    let rules = json!([{"name": "caches", "selector": cache, "behavior": "Skip"}]);
    world.policy("first", json!({"nodeSelector": on("n1"), "drain": {"rules": rules, "waitForPlaces": false}})).await;
    world.until_message("n1", WaitReason::VolumesDetaching, "pv-of-db").await;
    let rollout = world.update("n1").await.status.unwrap().rollout.unwrap();
    assert!(rollout.until.is_some() && !rollout.message.contains("cache"), "{rollout:?}");
    assert_eq!(rollout.object.unwrap().name, "pv-of-db");
    // That it is to be detached does not mean that it is.
    attachments.delete("csi-db", &DeleteParams::default()).await.unwrap();
    let detaching = |one: Option<&VolumeAttachment>| one.is_some_and(|one| one.metadata.deletion_timestamp.is_some());
    world.until(attachments.clone(), "csi-db", "being detached", detaching).await;
    world.until_reason("n1", WaitReason::VolumesDetaching).await;
    assert_eq!(world.update("n1").await.spec.disruption.unwrap().drained_at, None, "it is still there");
    let detached = json!({"metadata": {"finalizers": null}});
    attachments.patch("csi-db", &PatchParams::default(), &Patch::Merge(&detached)).await.unwrap();
    world.until_current("n1", "1.1").await;
    assert!(attachments.get("csi-cache").await.is_ok(), "its pod stayed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_an_autoscaler_removes_is_not_begun() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let taints = |taints: serde_json::Value| json!({"spec": {"taints": taints}});
    let removing = taints(json!([{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]));
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&removing)).await.unwrap();
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world.until_message("n1", WaitReason::NodeLeaving, "karpenter.sh/disrupted").await;
    assert!(!cordoned(Some(&nodes.get("n1").await.unwrap())));
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&taints(json!([])))).await.unwrap();
    world.until_current("n1", "1.1").await;
}
