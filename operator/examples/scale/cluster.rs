//! The cluster under the benchmark: nodes, pods with budgets, policies, and the operator's process.

use bascule_api::{Freeze, NodeUpdate, UpdatePolicy};
use bascule_tests::control_plane::ControlPlane;
use bascule_tests::https::HttpsServer;
use bascule_tests::supervise::Supervised;
use bascule_tests::{bascule, kwok, workload};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const APPS: usize = 20;

/// The nodes, and one without work that is updated alone.
pub(crate) async fn add_nodes(client: &Client, count: usize) {
    let nodes: Api<Node> = Api::all(client.clone());
    let label = |role: &str| json!({"metadata": {"labels": {"role": role}}});
    let add = |index: usize| {
        let (client, nodes) = (client.clone(), nodes.clone());
        async move {
            let name = format!("k{index:04}");
            kwok::add_node(&client, &name, ["a", "b", "c"][index % 3]).await.unwrap();
            nodes.patch(&name, &PatchParams::default(), &Patch::Merge(label("worker"))).await.unwrap();
        }
    };
    futures::stream::iter(0..count).map(add).buffer_unordered(16).collect::<Vec<()>>().await;
    kwok::add_node(client, "probe", "a").await.unwrap();
    let probe = json!({
        "metadata": {"labels": {"role": "probe"}},
        "spec": {"taints": [{"key": "example.com/empty", "effect": "NoSchedule"}]},
    });
    nodes.patch("probe", &PatchParams::default(), &Patch::Merge(probe)).await.unwrap();
}

pub(crate) async fn add_pods(control_plane: &ControlPlane, client: &Client, count: usize, patience: Duration) {
    let each = (count / APPS).max(1);
    for app in 0..APPS {
        let name = format!("app-{app}");
        let text = workload::deployment(&name, each) + &workload::budget(&name, "maxUnavailable: \"30%\"");
        control_plane.apply(&text).await.unwrap();
    }
    let count = i32::try_from(each).unwrap();
    for app in 0..APPS {
        let up = workload::until_ready(client, &format!("app-{app}"), count, patience).await;
        assert!(up, "the pods of app-{app} did not come up in time");
    }
}

pub(crate) struct Operator {
    process: Supervised,
    listen: String,
}

impl Operator {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn listen(&self) -> &str {
        &self.listen
    }

    pub(crate) async fn metrics(&self) -> String {
        reqwest::get(format!("http://{}/metrics", self.listen)).await.unwrap().text().await.unwrap()
    }

    /// Until it has read everything.
    pub(crate) async fn until_ready(&self, patience: Duration) {
        let url = format!("http://{}/readyz", self.listen);
        until("the replica is not ready", patience, async || {
            reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
    }

    /// Until it has made plans.
    pub(crate) async fn until_it_leads(&self, patience: Duration) {
        until("the replica does not lead", patience, async || {
            let metrics = self.metrics().await;
            let planned = metrics.lines().find_map(|line| line.strip_prefix("bascule_plan_seconds_count "));
            planned.is_some_and(|count| count.parse::<f64>().unwrap() > 1.0)
        })
        .await;
    }
}

async fn until(what: &str, patience: Duration, is_so: impl AsyncFn() -> bool) {
    let waits = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    assert!(tokio::time::timeout(patience, waits).await.is_ok(), "{what} in time");
}

/// The operator's own program with the rights that the manifests give it.
pub(crate) async fn start_operator(
    identity: &str,
    program: &Path,
    control_plane: &ControlPlane,
    server: &HttpsServer,
) -> Operator {
    let folder = control_plane.folder();
    let launch = bascule::launch(control_plane, server, folder, identity, None).await;
    let (environment, log) = (bascule::allocator(), folder.join(format!("operator-{identity}.log")));
    let process = Supervised::start(program, launch.arguments, &environment, &log).unwrap();
    Operator { process, listen: launch.listen }
}

/// A policy that keeps its nodes on 1.0 until [`release`].
pub(crate) async fn policy(policies: &Api<UpdatePolicy>, name: &str, role: &str, server: &HttpsServer) {
    let mut waves: Vec<_> = (1..10).map(|wave| json!({"name": format!("w{wave}"), "percent": 10})).collect();
    waves.push(json!({"name": "rest"}));
    let policy: UpdatePolicy = serde_json::from_value(json!({
        "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"matchLabels": {"role": role}},
            "source": {"repository": server.url(), "channel": "stable"},
            "version": "1.0",
            "provenAfter": "0s",
            "waves": waves,
            "budget": {"maxUnavailable": "10%"},
        },
    }))
    .unwrap();
    policies.create(&PostParams::default(), &policy).await.unwrap();
}

/// Lets a policy's nodes go to the newest release of the channel.
pub(crate) async fn release(policies: &Api<UpdatePolicy>, name: &str) {
    let newest = Patch::Merge(json!({"spec": {"version": null}}));
    policies.patch(name, &PatchParams::default(), &newest).await.unwrap();
}

/// Lets no more nodes of a policy begin, and waits until none is under way.
pub(crate) async fn pause(policies: &Api<UpdatePolicy>, name: &str, patience: Duration) {
    let paused = Patch::Merge(json!({"spec": {"paused": true}}));
    let generation = policies.patch(name, &PatchParams::default(), &paused).await.unwrap().metadata.generation;
    until("the nodes under way do not end", patience, async || {
        let status = policies.get(name).await.ok().and_then(|policy| policy.status);
        status.is_some_and(|status| status.observed_generation == generation && status.counts.in_progress == 0)
    })
    .await;
}

/// The nodes whose agents report that they run a version.
pub(crate) async fn that_run(version: &str, client: &Client) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut params = ListParams::default().limit(500);
    loop {
        let page = Api::<NodeUpdate>::all(client.clone()).list(&params).await.unwrap();
        let runs = |update: &NodeUpdate| {
            let booted = update.status.as_ref().and_then(|status| status.booted.as_ref());
            booted.is_some_and(|booted| booted.version.as_str() == version)
        };
        // The probe is no part of the rollout.
        let workers = page.items.iter().filter(|update| runs(update)).map(|update| update.name_any());
        found.extend(workers.filter(|name| name.starts_with('k')));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return found,
        }
    }
}

/// Freezes everything for a time.
pub(crate) async fn freeze(client: &Client, seconds: u64) {
    let freeze: Freeze = serde_json::from_value(json!({
        "apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": {"name": "bench"},
        "spec": {"reason": "how late do objects say so", "duration": format!("{seconds}s")},
    }))
    .unwrap();
    Api::<Freeze>::all(client.clone()).create(&PostParams::default(), &freeze).await.unwrap();
}

/// Until all nodes of a policy run a version and none is under way.
pub(crate) async fn until_all_run(
    version: &str,
    policies: &Api<UpdatePolicy>,
    name: &str,
    nodes: usize,
    patience: Duration,
) {
    until_run(version, policies, name, (nodes, true), patience).await;
}

/// Until at least so many nodes of a policy run a version; where that is `all` of them, until none is under way either.
pub(crate) async fn until_run(
    version: &str,
    policies: &Api<UpdatePolicy>,
    name: &str,
    (nodes, all): (usize, bool),
    patience: Duration,
) {
    let version = version.to_owned();
    let done = move |policy: Option<&UpdatePolicy>| {
        policy.and_then(|policy| policy.status.as_ref()).is_some_and(|status| {
            status.target.as_ref().is_some_and(|target| target.version.as_str() == version)
                && usize::try_from(status.counts.updated).is_ok_and(|updated| {
                    if all { updated == nodes && status.counts.in_progress == 0 } else { updated >= nodes }
                })
        })
    };
    let waited = await_condition(policies.clone(), name, done);
    if tokio::time::timeout(patience, waited).await.is_err() {
        let status = policies.get(name).await.ok().and_then(|policy| policy.status);
        panic!("the rollout did not end in time: {}", serde_json::to_string_pretty(&status).unwrap());
    }
}
