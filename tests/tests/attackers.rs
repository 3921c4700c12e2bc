//! What somebody gets who took over one part of Bascule: real tokens and certificates, raw requests to a real API server
//! with `manifests/` installed. kubectl reads before it writes and would stop earlier than an attacker does.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

use std::time::{Duration, Instant};

use bascule_tests::bascule;
use bascule_tests::control_plane::{ControlPlane, Credentials, Options};
use http::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

const API: &str = "/apis/bascule.dev/v1alpha1";

const CLUSTER: &str = include_str!("attackers/cluster.yaml");

/// Mistakes that somebody could make: nodes that may write NodeUpdates, and agents in pods that may create and delete them.
const TOO_MUCH: &str = include_str!("attackers/too-much.yaml");

/// What a node is told that tries more than to report.
const NOTHING_ELSE: &str = "an agent writes the status of its NodeUpdate and nothing else";

/// Somebody with credentials.
struct Attacker {
    who: &'static str,
    client: Client,
}

impl Attacker {
    async fn new(who: &'static str, credentials: &Credentials) -> Self {
        Self { who, client: credentials.client().await.unwrap() }
    }

    /// The API server's answer: the object, or code and sentence of the refusal.
    async fn sends(&self, method: Method, path: &str, body: &Value) -> Result<Value, (u16, String)> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(serde_json::to_vec(body).unwrap()).unwrap();
        match self.client.request::<Value>(request).await {
            Ok(answer) => Ok(answer),
            Err(kube::Error::Api(status)) => Err((status.code, status.message.clone())),
            Err(error) => panic!("{}: neither accepted nor refused: {error}", self.who),
        }
    }

    /// Asks under another name, which whoever may impersonate may.
    async fn is_nobody_else(&self) {
        for name in ["admin", "system:node:n2", "system:serviceaccount:bascule-system:bascule-operator"] {
            let request = Request::builder().uri("/api/v1/nodes").header("impersonate-user", name);
            match self.client.request::<Value>(request.body(Vec::new()).unwrap()).await {
                Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains("impersonate") => {}
                other => panic!("{} is {name}: {other:?}", self.who),
            }
        }
    }

    async fn is_refused(&self, method: Method, path: &str, body: Value, because: &str) {
        match self.sends(method.clone(), path, &body).await {
            Err((403 | 422, sentence)) if sentence.contains(because) => {}
            other => panic!("{} {method} {path} {body}: {other:?}, not refused with '{because}'", self.who),
        }
    }
}

fn status(content: Value) -> Value {
    json!({ "status": content })
}

async fn install(control_plane: &ControlPlane) {
    bascule::install_all(control_plane).await;
    control_plane.apply(CLUSTER).await.unwrap();
}

/// A policy takes effect, and loses it, a moment after it was written.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What no part of Bascule and nobody who works with it may do.
async fn reaches_nothing_else(attacker: &Attacker, may_read_pods: bool) {
    const CANNOT: &str = "cannot";
    let account = |namespace: &str, name: &str| format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
        "spec": {"containers": [{"name": "x", "image": "x"}]}});
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}}});
    let everything = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "x"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "mallory"}]});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}});
    let label = json!({"metadata": {"labels": {"app.kubernetes.io/name": "bascule-operator"}}});
    attacker.is_nobody_else().await;
    for (method, path, body) in [
        (Method::POST, "/api/v1/nodes".to_owned(), &node),
        (Method::PATCH, "/api/v1/namespaces/bascule-system/pods/operator-n2".to_owned(), &label),
        (Method::DELETE, format!("{API}/nodeupdates"), &Value::Null),
        (Method::POST, account("bascule-system", "bascule-operator"), &token),
        (Method::POST, account("bascule-agents", "bascule-agent"), &token),
        (Method::POST, account("kube-system", "default"), &token),
        (Method::GET, "/api/v1/secrets".to_owned(), &Value::Null),
        (Method::GET, "/api/v1/namespaces/kube-system/secrets/bascule-prometheus".to_owned(), &Value::Null),
        (Method::POST, "/api/v1/namespaces/default/pods".to_owned(), &pod),
        (Method::POST, "/apis/batch/v1/namespaces/default/jobs".to_owned(), &job),
        (Method::POST, "/apis/batch/v1/namespaces/kube-system/jobs".to_owned(), &job),
        (Method::DELETE, "/api/v1/nodes/n2".to_owned(), &Value::Null),
        (Method::POST, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".to_owned(), &everything),
        (
            Method::DELETE,
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/bascule-agent".to_owned(),
            &Value::Null,
        ),
        (
            Method::DELETE,
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nodeupdates.bascule.dev".to_owned(),
            &Value::Null,
        ),
    ] {
        attacker.is_refused(method, &path, body.clone(), CANNOT).await;
    }
    if !may_read_pods {
        attacker.is_refused(Method::GET, "/api/v1/pods", Value::Null, CANNOT).await;
    }
}

/// What the owner of one namespace, who may do much in it, may not do outside of it.
async fn reaches_nothing_else_in_the_cluster(attacker: &Attacker) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
        "spec": {"containers": [{"name": "x", "image": "x"}]}});
    for (method, path, body) in [
        (Method::GET, "/api/v1/namespaces/bascule-system/secrets/bascule-prometheus".to_owned(), &Value::Null),
        (Method::POST, "/api/v1/namespaces/bascule-agents/pods".to_owned(), &pod),
        (Method::GET, format!("{API}/updatepolicies"), &Value::Null),
        (Method::GET, "/api/v1/nodes".to_owned(), &Value::Null),
    ] {
        attacker.is_refused(method, &path, body.clone(), "cannot").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_over_a_part_gets_that_part() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    install(&control_plane).await;
    let agent =
        Attacker::new("agent of n1", &control_plane.pod_token("bascule-agents", "agent-n1").await.unwrap()).await;
    let unbound = control_plane.service_account("bascule-agents", "bascule-agent").await.unwrap();
    let unbound = Attacker::new("stolen agent token without a node", &unbound).await;
    let host = Attacker::new("host agent of n2", &control_plane.kubelet("n2").unwrap()).await;
    let operator = control_plane.pod_token("bascule-system", "operator-n2").await.unwrap();
    let operator = Attacker::new("operator", &operator).await;
    let [alice, bob, carol, dave] =
        ["alice", "bob", "carol", "dave"].map(|name| control_plane.user(name, &[]).unwrap());
    let alice = Attacker::new("on call", &alice).await;
    let bob = Attacker::new("viewer", &bob).await;
    let carol = Attacker::new("policy author", &carol).await;
    let dave = Attacker::new("owner of a namespace", &dave).await;
    let update = |node: &str| format!("{API}/nodeupdates/{node}");
    let reported = |node: &str| format!("{API}/nodeupdates/{node}/status");
    let lie = status(json!({"agentVersion": "6.6.6", "bootID": "forged"}));
    // Each takes effect at a moment of its own. What is written meanwhile differs each time, so that there is something to
    // refuse.
    let tries = std::sync::atomic::AtomicU32::new(0);
    let another = || {
        let number = tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        status(json!({"agentVersion": format!("6.6.{number}")}))
    };
    until("agents are held", async || agent.sends(Method::PATCH, &reported("n2"), &another()).await.is_err()).await;
    until("the operator is held", async || operator.sends(Method::PATCH, &reported("n2"), &another()).await.is_err())
        .await;
    let endless = json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": {"generateName": "f-"},
        "spec": {"reason": "because", "duration": "999d"}});
    until("on call is held", async || alice.sends(Method::POST, &format!("{API}/freezes"), &endless).await.is_err())
        .await;

    // An agent speaks for its own node and does nothing else.
    agent.is_refused(Method::PATCH, &reported("n2"), lie.clone(), "the agent of node n1 may not write").await;
    let explained = status(json!({"rollout": {"state": "Current", "reason": "Current"}}));
    agent.is_refused(Method::PATCH, &reported("n1"), explained, "status.rollout is the operator's").await;
    let granted = json!({"spec": {"goal": "Booted", "grant": {"bootID": "b1", "generation": 1}}});
    agent.is_refused(Method::PATCH, &update("n1"), granted.clone(), "cannot patch").await;
    // The status is all that a request to it can change.
    let both = json!({"status": {"bootID": "b1"}, "spec": {"goal": "Booted"}, "metadata": {"ownerReferences": []}});
    let after = agent.sends(Method::PATCH, &reported("n1"), &both).await.unwrap();
    assert_eq!((&after["spec"]["goal"], &after["status"]["bootID"]), (&json!("Idle"), &json!("b1")));
    agent.is_refused(Method::PUT, &reported("n1"), after.clone(), "cannot update").await;
    let own = json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": "n9"},
        "spec": {"policy": "workers", "goal": "Idle"}});
    agent.is_refused(Method::POST, &format!("{API}/nodeupdates"), own.clone(), "cannot create").await;
    agent.is_refused(Method::DELETE, &update("n2"), Value::Null, "cannot delete").await;
    agent
        .is_refused(Method::PATCH, "/api/v1/nodes/n1", json!({"spec": {"unschedulable": false}}), "cannot patch")
        .await;
    agent.is_refused(Method::PATCH, "/api/v1/nodes/n1/status", status(json!({})), "cannot patch").await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "operator-n2"}});
    let evict = "/api/v1/namespaces/bascule-system/pods/operator-n2/eviction";
    agent.is_refused(Method::POST, evict, eviction, "cannot create").await;
    let unpaused = json!({"spec": {"budget": {"maxUnavailable": "100%"}}});
    agent.is_refused(Method::PATCH, &format!("{API}/updatepolicies/workers"), unpaused.clone(), "cannot patch").await;
    let orders = |kind: &str| {
        json!({"apiVersion": "bascule.dev/v1alpha1", "kind": kind, "metadata": {"generateName": "x-"}, "spec": {
            "policy": "workers", "reason": "because", "duration": "1h",
            "source": {"repository": "https://images.example.com/os", "channel": "stable"}}})
    };
    let kinds = [("UpdatePolicy", "updatepolicies"), ("Freeze", "freezes"), ("Rollback", "rollbacks")];
    for (kind, plural) in kinds {
        agent.is_refused(Method::POST, &format!("{API}/{plural}"), orders(kind), "cannot create").await;
        operator.is_refused(Method::POST, &format!("{API}/{plural}"), orders(kind), "cannot create").await;
        bob.is_refused(Method::POST, &format!("{API}/{plural}"), orders(kind), "cannot create").await;
    }
    reaches_nothing_else(&agent, false).await;
    unbound.is_refused(Method::PATCH, &reported("n1"), lie.clone(), "this token names no node").await;
    reaches_nothing_else(&unbound, false).await;
    host.is_refused(Method::PATCH, &reported("n1"), lie.clone(), "the agent of node n2 may not write").await;
    let explained = status(json!({"rollout": {"state": "Current", "reason": "Current"}}));
    host.is_refused(Method::PATCH, &reported("n2"), explained, "status.rollout is the operator's").await;
    // What n2 said once, said again for it by another, who may read it, is a lie like any other.
    host.sends(Method::PATCH, &reported("n2"), &status(json!({"bootID": "b1"}))).await.unwrap();
    let of_n2 = format!("{API}/nodeupdates?fieldSelector=metadata.name=n2");
    let recorded = agent.sends(Method::GET, &of_n2, &Value::Null).await.unwrap();
    host.sends(Method::PATCH, &reported("n2"), &status(json!({"bootID": "b2"}))).await.unwrap();
    let replayed = status(recorded["items"][0]["status"].clone());
    agent.is_refused(Method::PATCH, &reported("n2"), replayed.clone(), "the agent of node n1 may not write").await;
    host.is_refused(Method::PATCH, &update("n2"), granted.clone(), "cannot patch").await;
    // What it said itself it can say again, about its own node. That moves nothing but what it says: neither its order nor
    // anybody else's, and what the operator had said beside it does not come back.
    let explain = |state: &str, reason: &str| status(json!({"rollout": {"state": state, "reason": reason}}));
    let seen = async |node: &str| {
        let listed = format!("{API}/nodeupdates?fieldSelector=metadata.name={node}");
        agent.sends(Method::GET, &listed, &Value::Null).await.unwrap()["items"][0].clone()
    };
    operator.sends(Method::PATCH, &reported("n1"), &explain("Current", "Current")).await.unwrap();
    let whole = status(seen("n1").await["status"].clone());
    operator.sends(Method::PATCH, &reported("n1"), &explain("Waiting", "Paused")).await.unwrap();
    agent.sends(Method::PATCH, &reported("n1"), &status(json!({"bootID": "b3"}))).await.unwrap();
    let (mut own_node, other_node) = (seen("n1").await, seen("n2").await);
    agent.is_refused(Method::PATCH, &reported("n1"), whole.clone(), "status.rollout is the operator's").await;
    let mut own_words = whole.clone();
    own_words["status"].as_object_mut().unwrap().remove("rollout");
    agent.sends(Method::PATCH, &reported("n1"), &own_words).await.unwrap();
    let after = seen("n1").await;
    assert_eq!(after["status"]["bootID"], "b1");
    own_node["status"]["bootID"] = json!("b1");
    assert_eq!((&after["spec"], &after["status"]), (&own_node["spec"], &own_node["status"]));
    assert_eq!(seen("n2").await, other_node);
    // Nor does a wrong Role let a node order itself, or make up a node that is not there: its certificate is held whatever it
    // was given besides.
    let (made_up, order) = (own.clone(), json!({"spec": {"policy": "others"}}));
    control_plane.apply(TOO_MUCH).await.unwrap();
    until("the wrong Role is known", async || {
        let answer = host.sends(Method::POST, &format!("{API}/nodeupdates"), &made_up).await;
        matches!(answer, Err((403, said)) if said.contains(NOTHING_ELSE))
    })
    .await;
    until("the wrong Role for pods is known", async || {
        let answer = agent.sends(Method::POST, &format!("{API}/nodeupdates"), &made_up).await;
        matches!(answer, Err((403, said)) if said.contains(NOTHING_ELSE))
    })
    .await;
    agent.is_refused(Method::DELETE, &update("n2"), Value::Null, NOTHING_ELSE).await;
    host.is_refused(Method::PATCH, &update("n2"), order.clone(), NOTHING_ELSE).await;
    host.is_refused(Method::DELETE, &update("n1"), Value::Null, NOTHING_ELSE).await;

    // Root on a node is its kubelet: it gets the tokens of its own pods, so that of an operator there (docs/security.md), and of
    // nobody else's.
    let pods: Api<Pod> = Api::namespaced(control_plane.client().await.unwrap(), "bascule-system");
    let uid = pods.get("operator-n2").await.unwrap().uid();
    let for_pod = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "operator-n2", "uid": uid}}});
    let tokens = "/api/v1/namespaces/bascule-system/serviceaccounts/bascule-operator/token";
    host.sends(Method::POST, tokens, &for_pod).await.unwrap();
    let other = Attacker::new("host agent of n1", &control_plane.kubelet("n1").unwrap()).await;
    other.is_refused(Method::POST, tokens, for_pod, "no relationship found").await;
    let secret = "/api/v1/namespaces/bascule-system/secrets/bascule-prometheus";
    other.is_refused(Method::GET, secret, Value::Null, "no relationship found").await;

    // The operator gives orders and never speaks for an agent, not even for the node it runs on.
    for node in ["n1", "n2"] {
        operator.is_refused(Method::PATCH, &reported(node), lie.clone(), "the rest is the agent's").await;
    }
    operator
        .is_refused(Method::PATCH, &format!("{API}/updatepolicies/workers"), unpaused.clone(), "cannot patch")
        .await;
    operator.is_refused(Method::DELETE, &update("n1"), Value::Null, "cannot delete").await;
    reaches_nothing_else(&operator, true).await;

    // People.
    let freeze = |duration: &str| {
        json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": {"generateName": "f-"},
            "spec": {"reason": "because", "duration": duration}})
    };
    let freezes = format!("{API}/freezes");
    for never in ["32d", "999d", "745h", "44641m", "2678401s", "30d25h"] {
        alice.is_refused(Method::POST, &freezes, freeze(never), "no on-call decision").await;
    }
    let mine = alice.sends(Method::POST, &freezes, &freeze("31d")).await.unwrap();
    let own = format!("{freezes}/{}", mine["metadata"]["name"].as_str().unwrap());
    alice.is_refused(Method::PATCH, &own, json!({"spec": {"duration": "999d"}}), "a Freeze is not changed").await;
    let policies = format!("{API}/updatepolicies");
    let workers = format!("{policies}/workers");
    alice.is_refused(Method::PATCH, &workers, unpaused.clone(), "cannot patch").await;
    alice.is_refused(Method::POST, &policies, orders("UpdatePolicy"), "cannot create").await;
    alice.is_refused(Method::PATCH, "/api/v1/nodes/n1", json!({"spec": {"unschedulable": true}}), "cannot patch").await;
    bob.is_refused(Method::PATCH, &workers, unpaused, "cannot patch").await;
    // NodeUpdates are the operator's, also one for a node that is not there, and what it remembers of a policy is.
    for who in [&alice, &bob, &carol] {
        who.is_refused(Method::POST, &format!("{API}/nodeupdates"), made_up.clone(), "cannot create").await;
        who.is_refused(Method::DELETE, &update("n1"), Value::Null, "cannot delete").await;
        who.is_refused(Method::PATCH, &update("n1"), order.clone(), "cannot patch").await;
        who.is_refused(Method::PATCH, &reported("n1"), lie.clone(), "cannot patch").await;
        let forgotten = status(json!({"blocked": []}));
        who.is_refused(Method::PATCH, &format!("{workers}/status"), forgotten, "cannot patch").await;
    }
    // One without an end.
    let endless = json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": {"generateName": "f-"},
        "spec": {"reason": "because"}});
    alice.is_refused(Method::POST, &freezes, endless, "spec.duration").await;
    reaches_nothing_else(&alice, true).await;
    bob.is_refused(Method::POST, &freezes, freeze("1h"), "cannot create").await;
    bob.is_refused(Method::DELETE, &own, Value::Null, "cannot delete").await;
    bob.sends(Method::GET, &update("n1"), &Value::Null).await.unwrap();
    carol.is_refused(Method::PATCH, &update("n1"), granted, "cannot patch").await;
    carol.is_refused(Method::PATCH, "/api/v1/nodes/n1", json!({"spec": {"unschedulable": true}}), "cannot patch").await;
    let long = carol.sends(Method::POST, &freezes, &freeze("60d")).await.unwrap();
    reaches_nothing_else(&carol, false).await;

    // A Freeze changes once, by its end, under the name of whoever ends it; on call ends those of others, however long.
    let ended = |by: Option<&str>| json!({"spec": {"endedBy": by}});
    bob.is_refused(Method::PATCH, &own, ended(Some("bob")), "cannot patch").await;
    alice.is_refused(Method::PUT, &own, mine.clone(), "cannot update").await;
    for who in [&alice, &carol] {
        who.is_refused(Method::PATCH, &own, ended(Some("bob")), "endedBy must be your own name").await;
        for (field, other) in [
            ("duration", json!("30d")),
            ("reason", json!("another")),
            ("requestedBy", json!(who.who)),
            ("nodes", json!(["n1"])),
            ("policies", json!(["workers"])),
            ("policySelector", json!({"matchLabels": {"a": "b"}})),
            ("undoDrains", json!(true)),
        ] {
            let mut patch = ended(Some(who.who));
            patch["spec"][field] = other;
            who.is_refused(Method::PATCH, &own, patch, "a Freeze is not changed, it is only ended").await;
        }
    }
    // None is born so that nobody else can end it.
    let mut odd = freeze("1h");
    odd["spec"]["endedBy"] = Value::Null;
    let odd = alice.sends(Method::POST, &freezes, &odd).await.unwrap();
    let odd = format!("{freezes}/{}", odd["metadata"]["name"].as_str().unwrap());
    carol.sends(Method::PATCH, &odd, &ended(Some("carol"))).await.unwrap();
    let long = format!("{freezes}/{}", long["metadata"]["name"].as_str().unwrap());
    for freeze in [&own, &long] {
        alice.sends(Method::PATCH, freeze, &ended(Some("alice"))).await.unwrap();
        alice.sends(Method::PATCH, freeze, &ended(Some("alice"))).await.unwrap();
        for by in [None, Some("alicia")] {
            alice.is_refused(Method::PATCH, freeze, ended(by), "was ended already").await;
        }
        carol.is_refused(Method::PATCH, freeze, ended(Some("carol")), "was ended already").await;
    }

    // Who owns a namespace, any namespace, is not an installation of Bascule, and stops none: not with a Lease that is older than
    // the operator's, nor with a new one.
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = |name: &str| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": "mallory", "leaseDurationSeconds": i32::MAX}})
    };
    let (theirs, renewed) = (format!("{leases}/bascule-operator"), json!({"spec": {"holderIdentity": "mallory"}}));
    dave.sends(Method::POST, leases, &lease("a-name-of-its-own")).await.unwrap();
    until("Leases are held", async || {
        dave.sends(
            Method::PATCH,
            &theirs,
            &json!({"spec": {"leaseTransitions":
        tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed)}}),
        )
        .await
        .is_err()
    })
    .await;
    dave.is_refused(Method::PATCH, &theirs, renewed.clone(), "only its operator says so").await;
    dave.sends(Method::DELETE, &theirs, &Value::Null).await.unwrap();
    dave.is_refused(Method::POST, leases, lease("bascule-operator"), "only its operator says so").await;
    operator.is_refused(Method::POST, leases, lease("bascule-operator"), "cannot create").await;
    let own = "/apis/coordination.k8s.io/v1/namespaces/bascule-system/leases";
    operator.sends(Method::POST, own, &lease("bascule-operator")).await.unwrap();
    reaches_nothing_else_in_the_cluster(&dave).await;
    let signed_by_another = json!({"apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze",
        "metadata": {"generateName": "f-"}, "spec": {"reason": "because", "duration": "1h", "requestedBy": "carol"}});
    alice.is_refused(Method::POST, &freezes, signed_by_another.clone(), "must be your own name").await;
    let explained = explain("Waiting", "Paused");

    // It is the admission policies that hold this: each is taken away, and what it refused is accepted.
    let admin = control_plane.client().await.unwrap();
    let without = async |name: &str| {
        let path = format!("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/{name}");
        let request = Request::builder().method(Method::DELETE).uri(path).body(Vec::new()).unwrap();
        admin.request::<Value>(request).await.unwrap();
    };
    without("bascule-agent").await;
    until("agents write for others without their policy", async || {
        agent.sends(Method::PATCH, &reported("n2"), &lie).await.is_ok()
    })
    .await;
    agent.sends(Method::PATCH, &reported("n2"), &replayed).await.unwrap();
    host.sends(Method::PATCH, &update("n2"), &order).await.unwrap();
    host.sends(Method::POST, &format!("{API}/nodeupdates"), &made_up).await.unwrap();
    host.sends(Method::DELETE, &update("n9"), &Value::Null).await.unwrap();
    agent.sends(Method::POST, &format!("{API}/nodeupdates"), &made_up).await.unwrap();
    agent.sends(Method::DELETE, &update("n9"), &Value::Null).await.unwrap();
    let replayed = agent.sends(Method::PATCH, &reported("n1"), &whole).await.unwrap();
    assert_eq!(replayed["status"]["rollout"]["state"], "Current", "what the operator says now is gone");
    agent.sends(Method::PATCH, &reported("n1"), &explained).await.unwrap();
    unbound.sends(Method::PATCH, &reported("n1"), &another()).await.unwrap();
    without("bascule-lease").await;
    until("anybody is an installation without the policy", async || {
        dave.sends(Method::POST, leases, &lease("bascule-operator")).await.is_ok()
    })
    .await;
    dave.sends(Method::PATCH, &theirs, &renewed).await.unwrap();
    without("bascule-operator").await;
    until("the operator speaks for agents without its policy", async || {
        operator.sends(Method::PATCH, &reported("n1"), &lie).await.is_ok()
    })
    .await;
    // The wrong Role had made it an operator too, to which this policy holds.
    host.sends(Method::PATCH, &reported("n1"), &another()).await.unwrap();
    without("bascule-on-call").await;
    until("freezes last for years without the policy", async || {
        alice.sends(Method::POST, &freezes, &freeze("999d")).await.is_ok()
    })
    .await;
    let signed = alice.sends(Method::POST, &freezes, &signed_by_another).await.unwrap();
    let signed = format!("{freezes}/{}", signed["metadata"]["name"].as_str().unwrap());
    alice.sends(Method::PATCH, &signed, &ended(Some("carol"))).await.unwrap();
}
