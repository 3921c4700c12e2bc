//! The live report, read as people read it: through the API server's pod proxy, with the rights that the manifests give them.

use crate::agent::Habit;
use crate::facts::facts;
use crate::world::Cluster;
use bascule_api::{LiveReport, NoReport, NodeUpdate, WaitReason};
use bascule_operator::clock::Clock;
use bascule_operator::gather::{Assembler, Outside};
use bascule_operator::health::Heard;
use bascule_operator::live::{Live, Planned};
use bascule_operator::metrics::Metrics;
use bascule_operator::server::{Readiness, serve};
use bascule_planner::{Planner, snapshot::Offer};
use bascule_tests::bascule;
use bascule_tests::control_plane::free_port;
use http_body_util::BodyExt as _;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding};
use kube::api::{ListParams, PostParams};
use kube::client::Body;
use kube::{Api, Client};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Somebody on call, with the two bindings that docs/install.md shows.
async fn on_call(world: &Cluster) -> Client {
    bascule::install(&world.control_plane, &["roles/people.yaml"]).await.unwrap();
    let subjects = json!([{"kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io"}]);
    let role = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let everywhere =
        json!({"metadata": {"name": "alice"}, "subjects": subjects, "roleRef": role("ClusterRole", "bascule-on-call")});
    let everywhere: ClusterRoleBinding = serde_json::from_value(everywhere).unwrap();
    Api::all(world.client.clone()).create(&PostParams::default(), &everywhere).await.unwrap();
    let there =
        json!({"metadata": {"name": "alice"}, "subjects": subjects, "roleRef": role("Role", "bascule-live-report")});
    let there: RoleBinding = serde_json::from_value(there).unwrap();
    Api::namespaced(world.client.clone(), "bascule-system").create(&PostParams::default(), &there).await.unwrap();
    user(world, "alice").await
}

/// A client that takes a 503 for an answer.
async fn user(world: &Cluster, name: &str) -> Client {
    let mut config = world.control_plane.user(name, &[]).unwrap().config().await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// What a replica answers through the API server.
async fn ask(client: &Client, pod: &str) -> (u16, Vec<u8>) {
    let path = format!("/api/v1/namespaces/bascule-system/pods/{pod}/proxy/report");
    let response = client.send(http::Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    (response.status().as_u16(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

fn report(answer: (u16, Vec<u8>)) -> Option<LiveReport> {
    (answer.0 == 200).then(|| serde_json::from_slice(&answer.1).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_read_what_is_so_now_and_the_objects_follow_within_a_minute() {
    let mut world = Cluster::new().await;
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c")] {
        world.machine(node, zone, Habit::Good).await;
    }
    let alice = on_call(&world).await;
    // n3 is the operator's own: it would wait for the others, and does not while a Freeze holds all.
    let shown = [free_port().unwrap(), free_port().unwrap()].map(|port| format!("127.0.0.1:{port}"));
    let dashboard = format!("--dashboard={}", shown[0]);
    let first = world.operator_with("first", None, &["--node-name=n3", &dashboard]).await;
    bascule::operator_pod(&world.client, "first", &first.listen).await;
    let window = json!([{"schedule": "0 0 1 1 *", "duration": "1h"}]);
    // Nobody listens there, and until the window opens no node waits for it.
    let nobody = format!("http://127.0.0.1:{}/", free_port().unwrap());
    let health = json!({"gates": [{"name": "shop", "http": {"url": nobody}}]});
    world.policy("workers", json!({"maintenanceWindows": window, "health": health})).await;
    for node in ["n1", "n2", "n3"] {
        world.until_reason(node, WaitReason::MaintenanceWindow).await;
    }
    world.eventually("the first serves its report", async || report(ask(&alice, "first").await).is_some()).await;
    let said = report(ask(&alice, "first").await).unwrap();
    assert_eq!((said.planned_by.as_str(), said.nodes.len(), said.policies.len()), ("first", 3, 1));
    for node in &said.nodes {
        let wait = said.wait(node).unwrap();
        assert_eq!((wait.reason, &node.zone.is_some()), (WaitReason::MaintenanceWindow, &true), "{node:?}");
        let gate = node.gates_passed.and_then(|passed| said.gates.get(passed)).map(String::as_str);
        assert_eq!(gate, Some("Window"), "{node:?}");
    }
    world
        .eventually("whoever reads learns of the gate that can't be read", async || {
            let Some(said) = report(ask(&alice, "first").await) else { return false };
            let [gate] = &said.health_gates[..] else { return false };
            !gate.asking && gate.at.is_some() && gate.holds.is_none() && gate.message.contains("can't be asked")
        })
        .await;

    let mut page = Stream::open(&shown[0]).await;
    let whole = page.until("whole").await;
    assert!(whole.contains(r#""reason":"MaintenanceWindow""#) && whole.contains(r#""name":"n2""#), "{whole}");
    let calendar = page.until("calendar").await;
    assert!(calendar.contains(r#""name":"workers""#), "{calendar}");

    let freeze = json!({"metadata": {"name": "now"}, "spec": {"reason": "a test", "duration": "1h"}});
    let freeze: bascule_api::Freeze = serde_json::from_value(freeze).unwrap();
    let begun = Instant::now();
    Api::all(alice.clone()).create(&PostParams::default(), &freeze).await.unwrap();
    world
        .eventually("the report knows the Freeze", async || {
            let Some(said) = report(ask(&alice, "first").await) else { return false };
            said.nodes.iter().all(|node| said.wait(node).is_some_and(|wait| wait.reason == WaitReason::Freeze))
        })
        .await;
    println!("the live report says Freeze after {} ms", begun.elapsed().as_millis());
    // What changed before it may come first.
    while !page.until("change").await.contains(r#""reason":"Freeze""#) {}
    for node in ["n1", "n2", "n3"] {
        world.until_reason(node, WaitReason::Freeze).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "the objects say it after {:?}", begun.elapsed());

    // The follower says who leads; nobody reads from the namespace without the Role.
    let second = world.operator_with("second", None, &[&format!("--dashboard={}", shown[1])]).await;
    bascule::operator_pod(&world.client, "second", &second.listen).await;
    world
        .eventually("the second knows the first", async || {
            let (status, body) = ask(&alice, "second").await;
            let told: Option<NoReport> = serde_json::from_slice(&body).ok();
            status == 503 && told.is_some_and(|told| told.leader.as_deref() == Some("first"))
        })
        .await;
    let away = Stream::open(&shown[1]).await.until("away").await;
    assert!(away.contains("first does"), "{away}");
    let mallory = user(&world, "mallory").await;
    assert_eq!(ask(&mallory, "first").await.0, 403);

    // Whoever was deposed tells nothing of the fleet any more, neither to people nor to Prometheus.
    let gauges = async |listen: &str| {
        let text = reqwest::get(format!("http://{listen}/metrics")).await.unwrap().text().await.unwrap();
        text.lines().filter(|line| line.starts_with("bascule_nodes{")).count()
    };
    assert!(gauges(&first.listen).await > 0 && gauges(&second.listen).await == 0);
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(world.client.clone(), "bascule-system");
    let steal = json!({"spec": {"holderIdentity": "nobody", "leaseDurationSeconds": 3600}});
    let merge = kube::api::Patch::Merge(&steal);
    leases.patch("bascule-operator", &kube::api::PatchParams::default(), &merge).await.unwrap();
    world
        .eventually("the deposed leader is silent", async || {
            ask(&alice, "first").await.0 == 503 && gauges(&first.listen).await == 0
        })
        .await;
    page.until("away").await;
}

/// What a browser that looks at the dashboard is sent.
struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(address: &str) -> Self {
        Self { response: reqwest::get(format!("http://{address}/events")).await.unwrap(), text: String::new() }
    }

    /// The next event of this name.
    async fn until(&mut self, name: &str) -> String {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                if event.starts_with(&format!("event: {name}\n")) {
                    return event;
                }
            }
            let bytes = tokio::time::timeout(crate::world::PATIENCE, self.response.chunk()).await.unwrap().unwrap();
            self.text.push_str(std::str::from_utf8(&bytes.expect("the stream goes on")).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_of_5000_nodes_is_small_and_quick() {
    const NODES: usize = 5_000;
    let world = Cluster::new().await;
    let alice = on_call(&world).await;
    let facts = facts(NODES);
    let drains = Default::default();
    let snapshot = Assembler::default().assemble(
        &facts,
        Outside {
            now: bascule_api::Time::new(bascule_tests::clock::now()),
            seed: 1,
            offer: &|_| Arc::new(Offer::default()),
            gates: Vec::new(),
            drains: &drains,
            ceiling: None,
            operator_node: None,
            own_pod: None,
            refused: Default::default(),
            writes: Default::default(),
        },
    );
    let (_, said) = Planner::default().plan(&snapshot);
    let live = Live::default();
    let (identity, gates) = (Arc::from("large"), Heard::new(Clock::system()));
    live.planned(Planned { snapshot: Arc::new(snapshot), report: Arc::new(said), world: facts, identity, gates });
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let listen = listener.local_addr().unwrap().to_string();
    let served = tokio::spawn(serve(listener, Metrics::new(), Readiness::default(), live));
    bascule::operator_pod(&world.client, "large", &listen).await;

    let begun = Instant::now();
    let (status, body) = ask(&alice, "large").await;
    let took = begun.elapsed();
    println!("{NODES} nodes: {} bytes through the API server in {} ms", body.len(), took.as_millis());
    let said: LiveReport = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, said.nodes.len()), (200, NODES));
    assert!(body.len() <= 5_000_000, "{} bytes", body.len());
    // Unoptimised and on a busy machine; docs/benchmarks.md has what a test build took. `cargo xtask bench people` measures
    // what is shipped.
    assert!(took < Duration::from_secs(10), "{took:?}");
    served.abort();
    let none: Vec<NodeUpdate> = Api::all(world.client.clone()).list(&ListParams::default()).await.unwrap().items;
    assert!(none.is_empty());
}
