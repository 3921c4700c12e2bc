//! Health gates against what they really ask: Debian's Prometheus, an HTTP service, objects of the API server; DaemonSets
//! on a node; and what is said when nobody answers.

use crate::agent::Habit;
use crate::object_gates::PODS_OF_DEFAULT;
use crate::world::Cluster;
use axum::http::StatusCode;
use bascule_api::{Gate, UpdatePolicy, WaitReason};
use bascule_operator::health::{Asker, GateAnswer};
use bascule_tests::bascule;
use bascule_tests::control_plane::free_port;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Node, Secret, ServiceAccount};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

/// Prometheus, which watches itself once a second.
struct Prometheus {
    child: Child,
}

impl Prometheus {
    fn start(folder: &Path, port: u16) -> Self {
        Self::start_with(folder, port, &[])
    }

    fn start_with(folder: &Path, port: u16, more: &[String]) -> Self {
        let config = folder.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- {{job_name: own, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}\n"
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package prometheus is installed by `cargo xtask test`");
        Self { child }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A service that answers with the status it is told.
async fn service() -> (String, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(503));
    let shown = Arc::clone(&status);
    let answer = move || {
        let shown = Arc::clone(&shown);
        async move { StatusCode::from_u16(shown.load(Ordering::SeqCst)).unwrap() }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/ready", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, status)
}

/// A service that notes what it is asked, and answers with a redirect.
async fn redirecting(to: &str) -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (notes, to) = (Arc::clone(&asked), to.to_owned());
    let answer = move |request: axum::extract::Request| {
        notes.lock().unwrap().push(format!("{} {} {:?}", request.method(), request.uri(), request.headers()));
        let to = to.clone();
        async move { (StatusCode::FOUND, [("location", to), ("set-cookie", "a=b".to_owned())]) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/ready", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, asked)
}

#[tokio::test]
async fn a_gate_asks_whom_it_names_without_credentials_and_nobody_else() {
    bascule_tests::install_tls_provider();
    let (other, asked_other) = redirecting("/").await;
    let (service, asked) = redirecting(&other).await;
    let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
    let client = kube::Client::try_from(config).unwrap();
    let asker = Asker::new(client.clone(), client, "default", &[]).unwrap();
    let gate = |gate: Value| serde_json::from_value::<Gate>(gate).unwrap();
    let health: bascule_api::Health = serde_json::from_value(json!({"prometheus": service})).unwrap();

    let http = asker.ask(&health, &gate(json!({"http": {"url": service}})), None).await.answer;
    assert!(matches!(&http, GateAnswer::Failed(said) if said.contains("answers with status 302")), "{http:?}");
    let prom_ql = gate(json!({"promQL": {"query": "up", "min": 1}}));
    let prom_ql = asker.ask(&health, &prom_ql, None).await.answer;
    assert!(matches!(&prom_ql, GateAnswer::Unknown(said) if said.contains("302 and no JSON")), "{prom_ql:?}");
    assert_eq!(*asked_other.lock().unwrap(), [""; 0], "a redirect led to another server");
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2);
    for one in &asked {
        assert!(one.starts_with("GET ") && !one.contains("authorization") && !one.contains("cookie"), "{one}");
    }
    // Within one server a redirect is followed, and not for ever.
    let within = asker.ask(&health, &gate(json!({"http": {"url": other}})), None).await.answer;
    assert!(matches!(&within, GateAnswer::Failed(said) if said.contains("302")), "{within:?}");
    assert_eq!(asked_other.lock().unwrap().len(), 4);
}

/// Waits until a policy's status says this.
async fn until_told(world: &Cluster, policy: &str, part: &str) {
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let says = |policy: Option<&UpdatePolicy>| {
        let status = policy.and_then(|policy| policy.status.as_ref());
        status.is_some_and(|status| status.conditions.iter().any(|one| one.message.contains(part)))
    };
    world.until(policies, policy, part, says).await;
}

/// What an admin grants whose policies ask about a Node.
const MAY_GET_NODES: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: gates-nodes, labels: {bascule.dev/aggregate-to-gates: "true"}}
rules: [{apiGroups: [""], resources: [nodes], verbs: [get]}]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_ask_prometheus_http_and_objects_and_fail_closed_when_nobody_answers() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let server = format!("http://127.0.0.1:{port}");
    let (service, status) = service().await;
    let prometheus = Prometheus::start(folder.path(), port);
    let _operator = world.operator("first").await;
    let prom_ql = |query: &str, more: Value| {
        let mut gate = json!({"query": query});
        gate.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"name": "alerts", "promQL": gate})
    };
    let gates = |gates: Value| json!({"prometheus": server, "gates": gates});
    let two = gates(json!([prom_ql("sum(up)", json!({"equals": 2}))]));
    world.policy("workers", json!({"health": two})).await;
    let set = async |health: Value| world.change_policy("workers", json!({"health": health})).await;

    // What Prometheus really says.
    world.until_message("n1", WaitReason::HealthGate, "is 1, wanted 2").await;
    set(gates(json!([prom_ql("sum(up", json!({"min": 1}))]))).await;
    world.until_message("n1", WaitReason::HealthGate, "parse error").await;
    set(gates(json!([prom_ql("up{job=\"nobody\"}", json!({"min": 1}))]))).await;
    world.until_message("n1", WaitReason::HealthGate, "no sample").await;

    // An HTTP gate holds although Prometheus is content.
    let good = prom_ql("sum(up)", json!({"min": 1}));
    let http = json!({"name": "shop", "http": {"url": service}});
    set(gates(json!([good, http]))).await;
    world.until_message("n1", WaitReason::HealthGate, "503").await;

    // An object gate, about the node itself.
    let object = json!({"name": "fit", "object": {
        "apiVersion": "v1", "kind": "Node", "name": "n1", "cel": "'fit' in object.metadata.labels"
    }});
    status.store(200, Ordering::SeqCst);
    set(gates(json!([good, http, object]))).await;
    // What nobody granted to gates is not read, though the operator itself may list nodes; and that is said, with what
    // grants it.
    until_told(&world, "workers", "spec.health.gates[2].object: object gates may not get nodes; an admin allows that")
        .await;
    world.control_plane.apply(MAY_GET_NODES).await.unwrap();
    world.until_message("n1", WaitReason::HealthGate, "Node n1 does not fulfil").await;

    // Prometheus goes down: nothing moves, and the node says why.
    drop(prometheus);
    // Which of two gates holds is a detail, told in pauses that grow; whoever changes a policy is told at once.
    world.change_policy("workers", json!({"drain": {"timeout": "50m"}})).await;
    world.until_message("n1", WaitReason::HealthGate, "Prometheus can't be asked").await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let fit = json!({"metadata": {"labels": {"fit": "yes"}}});
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&fit)).await.unwrap();
    let update = world.update("n1").await;
    assert!(update.spec.grant.is_none(), "never granted while a gate was closed: {update:?}");

    let _again = Prometheus::start(folder.path(), port);
    world.until_current("n1", "1.1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_about_the_cluster_that_closes_during_a_trial_holds_it_and_blames_nobody() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let (service, status) = service().await;
    status.store(200, Ordering::SeqCst);
    let _operator = world.operator("first").await;
    let gates = json!([{"name": "shop", "http": {"url": service}}]);
    // Whoever comes too late to close the gate before the trial has the soak for that.
    world.policy("workers", json!({"health": {"nodeReadyTimeout": "60s", "nodeSoak": "20s", "gates": gates}})).await;
    let granted = |update: Option<&bascule_api::NodeUpdate>| update.is_some_and(|one| one.spec.disruption.is_some());
    world.until_update("n1", "granted", granted).await;
    status.store(503, Ordering::SeqCst);
    world.until_message("n1", WaitReason::HealthGate, "is held as a trial, and not blamed: gate shop").await;
    let told = async || world.notes("TrialHeld").await.iter().any(|note| note.contains("gate shop"));
    world.eventually("somebody is told", told).await;
    status.store(200, Ordering::SeqCst);
    world.until_current("n1", "1.1").await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    assert!(policies.get("workers").await.unwrap().status.unwrap().failures.is_empty());
    assert_eq!(world.update("n1").await.spec.grant.map(|grant| grant.generation), Some(1), "one reboot");
}

const AGENT: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: logs, namespace: default}
spec:
  selector: {matchLabels: {app: logs}}
  template:
    metadata: {labels: {app: logs}}
    spec: {containers: [{name: logs, image: example.invalid/logs}]}
"#;

fn maintenance(node: Option<&Node>, type_: &str) -> Option<String> {
    let conditions = node?.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|one| one.type_ == type_).map(|one| one.status.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_without_its_daemon_sets_goes_back_and_the_node_shows_its_maintenance() {
    let mut world = Cluster::new().await;
    bascule::install(&world.control_plane, &["components/node-conditions/rbac.yaml"]).await.unwrap();
    world.machine("n1", "a", Habit::Good).await;
    world.control_plane.apply(AGENT).await.unwrap();
    let _operator = world.operator_with("first", None, &["--node-conditions"]).await;
    world.policy("workers", json!({"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n1"}}})).await;
    let shown = |node: Option<&Node>, wanted: &str| {
        maintenance(node, bascule_api::conditions::NODE_MAINTENANCE_IN_PROGRESS).as_deref() == Some(wanted)
    };
    world.until_node("n1", "in maintenance", |node| shown(node, "True")).await;
    world.until_current("n1", "1.1").await;
    world.until_node("n1", "out of maintenance", |node| shown(node, "False")).await;
    world
        .until_node("n1", "not drained", |node| {
            maintenance(node, bascule_api::conditions::NODE_DRAINED).as_deref() == Some("False")
        })
        .await;

    // On this machine no container of the new release comes up.
    world.machine("n2", "b", Habit::PodsCrash).await;
    // What is not ready before the reboot is not asked of the release.
    world.until_ready_on("logs", "n2").await;
    world
        .policy(
            "others",
            json!({
                "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n2"}},
                "health": {"nodeReadyTimeout": "45s"},
            }),
        )
        .await;
    world.until_message("n2", WaitReason::Trial, "not default/logs").await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let blocked = |policy: Option<&UpdatePolicy>| {
        policy
            .and_then(|policy| policy.status.as_ref())
            .is_some_and(|status| status.blocked.iter().any(|block| block.reason.contains("DaemonSet")))
    };
    world.until(policies, "others", "blocked", blocked).await;
    world
        .until_update("n2", "back on 1.0", |update| {
            update.is_some_and(|update| {
                let booted = update.status.as_ref().and_then(|status| status.booted.as_ref());
                update.spec.disruption.is_none() && booted.is_some_and(|booted| booted.version.as_str() == "1.0")
            })
        })
        .await;
}

/// An authority, a certificate of it for localhost, and one for a client: as files that Prometheus reads, and the PEM of the
/// authority, the client's certificate and its key.
fn certificates(folder: &Path) -> [String; 3] {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (server, client) = (signed("localhost"), signed("operator"));
    for (file, text) in [("ca.crt", &ca.pem()), ("server.crt", &server.0), ("server.key", &server.1)] {
        std::fs::write(folder.join(file), text).unwrap();
    }
    [ca.pem(), client.0, client.1]
}

/// A server that wants TLS with a client certificate of its own authority, and a user whose password is `test` (Prometheus,
/// "Securing Prometheus API and UI endpoints using basic auth", has this hash of it).
const WEB: &str = "\
tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
basic_auth_users:
  bascule: $2b$12$hNf2lSsxfm0.i4a.1kVpSOVyBCfIB51VRjgBUyv6kdnyTlgWj81Ay
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prometheus_that_does_not_answer_everybody_is_asked_with_what_a_secret_holds() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let [ca, certificate, key] = certificates(folder.path());
    let web = folder.path().join("web.yml");
    std::fs::write(&web, WEB).unwrap();
    let _prometheus = Prometheus::start_with(folder.path(), port, &[format!("--web.config.file={}", web.display())]);
    let _operator = world.operator("first").await;
    // It can't scrape itself without a certificate, so that there is nothing but constants to ask for.
    let gate = json!([{"name": "alerts", "promQL": {"query": "vector(1)", "equals": 1}}]);
    let health = json!({"prometheus": format!("https://localhost:{port}"), "gates": gate});
    world.policy("workers", json!({"health": health})).await;
    world.until_message("n1", WaitReason::HealthGate, "Prometheus can't be asked").await;
    world.change_policy("workers", json!({"health": {"prometheusSecret": "bascule-prometheus"}})).await;
    world.until_message("n1", WaitReason::HealthGate, "is not there").await;

    let secrets: Api<Secret> = Api::namespaced(world.client.clone(), "bascule-system");
    let secret = |data: Value| -> Secret {
        serde_json::from_value(json!({"metadata": {"name": "bascule-prometheus"}, "stringData": data})).unwrap()
    };
    let apply = async |data: Value| {
        let params = PatchParams::apply("admin").force();
        secrets.patch("bascule-prometheus", &params, &Patch::Apply(&apply_kind(&secret(data)))).await.unwrap();
    };
    let server = format!("https://localhost:{port}/");
    let shown = |password: &str, server: &str| {
        json!({
            "username": "bascule", "password": password, "server": server,
            "ca.crt": ca, "tls.crt": certificate, "tls.key": key,
        })
    };
    // Whoever writes the policy says where to, and whoever wrote the Secret has the last word on it.
    apply(shown("test", "https://prometheus.example")).await;
    world.until_message("n1", WaitReason::HealthGate, &format!("it is not for https://localhost:{port}")).await;
    apply(shown("wrong", &server)).await;
    world.until_message("n1", WaitReason::HealthGate, "status 401").await;
    assert!(world.update("n1").await.spec.grant.is_none());
    apply(shown("test", &server)).await;
    world.until_current("n1", "1.1").await;
}

/// As Mimir, Thanos or a mesh before Prometheus want it. Who wants a token and knows a wrong one is at hand: the API server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_and_a_tenants_header_are_sent_as_the_secret_says() {
    let world = Cluster::new().await;
    let asker = Asker::new(world.client.clone(), world.client.clone(), "bascule-system", &[]).unwrap();
    let gate: Gate = serde_json::from_value(json!({"promQL": {"query": "up", "min": 1}})).unwrap();
    let secrets: Api<Secret> = Api::namespaced(world.client.clone(), "bascule-system");
    let ask = async |name: &str, server: &str, mut data: Value| {
        data["server"] = json!(server);
        let secret = serde_json::from_value(json!({"metadata": {"name": name}, "stringData": data})).unwrap();
        secrets.create(&PostParams::default(), &secret).await.unwrap();
        let health = serde_json::from_value(json!({"prometheus": server, "prometheusSecret": name})).unwrap();
        let answer = asker.ask(&health, &gate, None).await.answer;
        let GateAnswer::Unknown(said) = answer else { panic!("{answer:?}") };
        said
    };
    let (plain, asked) = redirecting("/").await;
    ask("tenant", &plain, json!({"header.X-Scope-OrgID": "team-a"})).await;
    let heard = asked.lock().unwrap().clone();
    assert!(heard.len() == 1 && heard[0].contains(r#""x-scope-orgid": "team-a""#), "{heard:?}");

    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), "bascule-system");
    let request = TokenRequest { spec: Some(Default::default()), ..TokenRequest::default() };
    let token = accounts.create_token_request("default", &PostParams::default(), &request).await.unwrap();
    let token = token.status.unwrap().token;
    let said = ask("in-the-clear", &plain, json!({"token": token})).await;
    assert!(said.contains("token") && asked.lock().unwrap().len() == 1, "a token went in the clear: {said}");

    let (server, ca) = (world.control_plane.server(), world.control_plane.authority_certificate());
    let said = ask("wrong", server, json!({"token": "wrong", "ca.crt": ca})).await;
    assert!(said.contains("status 401"), "{said}");
    // It knows who asks, and that is not its business.
    let said = ask("right", server, json!({"token": token, "ca.crt": ca})).await;
    assert!(said.contains("status 403"), "{said}");
}

fn apply_kind(secret: &Secret) -> Value {
    let mut value = serde_json::to_value(secret).unwrap();
    value["apiVersion"] = json!("v1");
    value["kind"] = json!("Secret");
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_writes_a_policy_gets_nothing_out_through_the_operator() {
    const HELD: &str = "s3cr3t-0f-an-0ther";
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.control_plane.apply(PODS_OF_DEFAULT).await.unwrap();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bascule-prometheus", "namespace": "bascule-system"},
        "stringData": {"token": HELD, "header.X-Key": HELD, "server": "https://prometheus.example"},
    });
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "own", "namespace": "bascule-system"}, "data": {"a": HELD},
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"schedulerName": "nobody",
            "containers": [{"name": "web", "image": "web", "env": [{"name": "KEY", "value": HELD}]}]},
    });
    for object in [secret, map, pod] {
        world.control_plane.apply(&object.to_string()).await.unwrap();
    }
    let (evil, asked) = redirecting("/").await;
    let _operator = world.operator("first").await;
    let policy = world.policy("workers", json!({"paused": true})).await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let object = |kind: &str, namespace: &str, name: Option<&str>, cel: &str| {
        json!([{"name": "out", "object": {
            "apiVersion": "v1", "kind": kind, "namespace": namespace, "name": name, "cel": cel,
        }}])
    };

    // The API server itself refuses a gate about a Secret.
    let gates = object("Secret", "bascule-system", Some("bascule-prometheus"), "{'a': true}[object.data.token]");
    let change = json!({"spec": {"health": {"gates": gates}}});
    let refused = policies.patch("workers", &PatchParams::default(), &Patch::Merge(&change)).await.unwrap_err();
    assert!(refused.to_string().contains("no object gate reads a Secret"), "{refused}");
    // What the operator may read for itself is not for gates.
    let own = object("ConfigMap", "bascule-system", Some("own"), "{'a': true}[object.data.a]");
    world.change_policy("workers", json!({"paused": false, "health": {"gates": own}})).await;
    until_told(&world, "workers", "object gates may not get configmaps in the namespace bascule-system").await;
    // What was granted is judged, and not shown.
    let granted = object("Pod", "default", Some("web"), "{'a': true}[object.spec.containers[0].env[0].value]");
    world.change_policy("workers", json!({"health": {"gates": granted}})).await;
    until_told(&world, "workers", "object gates may not get pods").await;
    let granted = object("Pod", "default", None, "{'a': true}[object.spec.containers[0].env[0].value]");
    world.change_policy("workers", json!({"health": {"gates": granted}})).await;
    world.until_message("n1", WaitReason::HealthGate, "it lacks a key that the expression makes of a value").await;
    // A Secret goes to the server that it names.
    let gate = json!([{"name": "out", "promQL": {"query": "up", "min": 1}}]);
    let health = json!({"gates": gate, "prometheus": evil, "prometheusSecret": "bascule-prometheus"});
    world.change_policy("workers", json!({"health": health})).await;
    world.until_message("n1", WaitReason::HealthGate, &format!("it is not for {evil}")).await;
    assert_eq!(*asked.lock().unwrap(), [""; 0], "the operator called on a server that no Secret names");

    let events: Api<k8s_openapi::api::events::v1::Event> = Api::all(world.client.clone());
    let told = format!("{:?} {}", events.list(&Default::default()).await.unwrap().items, world.story().await);
    assert!(!told.contains(HELD), "{told}");
    let status = policies.get(&policy.metadata.name.unwrap()).await.unwrap();
    assert!(status.status.is_some_and(|status| status.conditions.iter().any(|one| one.type_ == "Accepted")));
    assert!(world.update("n1").await.spec.grant.is_none());
}
