//! What people and networks get wrong: each is refused or explained, and nothing moves because of it.

use crate::agent::Habit;
use crate::world::Cluster;
use bascule_api::{Goal, NodeUpdate, UpdatePolicy, WaitReason, conditions};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

async fn refused(world: &Cluster, kind: &str, spec: Value) -> String {
    let resource = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("bascule.dev", "v1alpha1", kind),
        match kind {
            "UpdatePolicy" => "updatepolicies",
            "NodeUpdate" => "nodeupdates",
            "Freeze" => "freezes",
            _ => "rollbacks",
        },
    );
    let objects: Api<DynamicObject> = Api::all_with(world.client.clone(), &resource);
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "bascule.dev/v1alpha1", "kind": kind, "metadata": {"name": "bad"}, "spec": spec
    }))
    .unwrap();
    match objects.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await {
        Ok(_) => panic!("{kind} was accepted: {spec}"),
        Err(kube::Error::Api(status)) => status.message.clone(),
        Err(other) => panic!("{other}"),
    }
}

fn policy(more: Value) -> Value {
    let mut spec = json!({
        "nodeSelector": {"matchLabels": {"role": "worker"}},
        "source": {"repository": "https://images.example.com/os", "channel": "stable"},
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

/// The change that takes back every mistake of this test.
fn clean(world: &Cluster) -> Value {
    json!({"spec": {
        "maintenanceWindows": null, "waves": null, "health": null,
        "nodeSelector": {"matchLabels": {"role": "worker"}, "matchExpressions": null},
        "source": {"repository": world.server.url()},
    }})
}

fn condition(policy: Option<&UpdatePolicy>, type_: &str, reason: &str) -> bool {
    let conditions = policy.and_then(|policy| policy.status.as_ref()).map(|status| status.conditions.clone());
    let found = conditions.as_deref().and_then(|all| conditions::get(all, type_)).cloned();
    found.is_some_and(|one| one.status == "False" && one.reason == reason && !one.message.is_empty())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_objects_are_refused_or_explained_and_edits_by_hand_are_set_right() {
    let mut world = Cluster::new().await;
    // What the API server refuses by itself, with a sentence that says how to mend it.
    for (kind, spec, part) in [
        (
            "UpdatePolicy",
            policy(json!({"version": "1.1", "blockedVersions": ["1.1"]})),
            "remove it from one of the two",
        ),
        (
            "UpdatePolicy",
            policy(json!({"health": {"gates": [{"promQL": {"query": "up", "min": 1}}]}})),
            "health.prometheus",
        ),
        ("UpdatePolicy", policy(json!({"waves": [{"name": "a", "count": 1, "percent": 5}]})), "keep one of them"),
        ("UpdatePolicy", policy(json!({"budget": {"maxUnavailable": "150%"}})), "maxUnavailable"),
        (
            "UpdatePolicy",
            policy(json!({"source": {"repository": "http://plain.example.com", "channel": "stable"}})),
            "repository",
        ),
        (
            "NodeUpdate",
            json!({"policy": "workers", "goal": "Booted", "release": {
            "version": "1.1", "digest": format!("sha256:{}", "0".repeat(64)), "repository": "https://a.example.com",
            "channel": "stable"}}),
            "goal Booted needs a grant",
        ),
        ("Freeze", json!({"reason": "x", "duration": "1h"}), "reason"),
        ("Rollback", json!({"policy": "workers"}), "reason"),
        (
            "UpdatePolicy",
            policy(json!({"allowedVersions": ["1.1"], "blockedVersions": ["1.0", "1.1"]})),
            "in both allowedVersions and blockedVersions",
        ),
        ("UpdatePolicy", policy(json!({"allowedVersions": vec!["1.1"; 65]})), "allowedVersions"),
        (
            "UpdatePolicy",
            policy(json!({"health": {"gates": [{"http": {"url": "ftp://example.com"}}]}})),
            "write an http:// or https:// URL",
        ),
        (
            "UpdatePolicy",
            policy(json!({"health": {"prometheus": "http://p.example.com", "gates": [{"promQL": {"query": "up"}}]}})),
            "equals, max or min",
        ),
        (
            "UpdatePolicy",
            policy(json!({"maintenanceWindows": [{"schedule": "0 22 * *", "duration": "5h"}]})),
            "write five fields",
        ),
    ] {
        let message = refused(&world, kind, spec).await;
        assert!(message.contains(part), "{kind}: {message}");
    }

    // What only the operator can see, it says in the policy's conditions.
    world.machine("n1", "a", Habit::Good).await;
    let _operator = world.operator("first").await;
    let zone =
        json!({"maintenanceWindows": [{"schedule": "0 22 * * *", "duration": "5h", "timeZone": "Europe/Atlantis"}]});
    world.policy("workers", zone).await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let invalid = |policy: Option<&UpdatePolicy>| condition(policy, conditions::ACCEPTED, conditions::reason::INVALID);
    world.until(policies.clone(), "workers", "not accepted", invalid).await;

    // Each field that only the operator can judge is named, with what is wrong and what would be right.
    let object =
        |cel: &str| json!({"health": {"gates": [{"object": {"apiVersion": "v1", "kind": "Node", "cel": cel}}]}});
    for (spec, parts) in [
        (
            json!({"maintenanceWindows": [{"schedule": "0 25 * * *", "duration": "5h"}]}),
            ["spec.maintenanceWindows[0].schedule", "write minute, hour"],
        ),
        (
            json!({"maintenanceWindows": [{"schedule": "0 0 31 2 *", "duration": "5h"}]}),
            ["spec.maintenanceWindows[0].schedule", ""],
        ),
        (
            json!({"nodeSelector": {"matchExpressions": [{"key": "role", "operator": "In"}]}}),
            ["spec.nodeSelector", "needs at least one value"],
        ),
        (json!({"waves": [{"name": "all"}, {"name": "late", "count": 1}]}), ["spec.waves[0]", "move it to the end"]),
        (
            json!({"source": {"repository": "https://user:secret@images.example.com/os"}}),
            ["spec.source.repository", ""],
        ),
        (object("object.spec.("), ["spec.health.gates[0].object.cel", "can't be parsed"]),
    ] {
        // From one mistake straight to the next, so that the policy is never valid in between.
        let mut change = clean(&world);
        change["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        policies.patch("workers", &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
        let says = |policy: Option<&UpdatePolicy>| {
            let conditions = policy.and_then(|policy| policy.status.as_ref()).map(|status| status.conditions.clone());
            let found = conditions.as_deref().and_then(|all| conditions::get(all, conditions::ACCEPTED)).cloned();
            found.is_some_and(|one| one.status == "False" && parts.iter().all(|part| one.message.contains(part)))
        };
        world.until(policies.clone(), "workers", parts[0], says).await;
    }
    // A root of trust that is none.
    let mut no_root = clean(&world);
    no_root["spec"]["source"]["trustRoot"] = json!({"inline": "{\"signed\": 1}"});
    policies.patch("workers", &PatchParams::default(), &Patch::Merge(&no_root)).await.unwrap();
    let untrusted = |policy: Option<&UpdatePolicy>| {
        condition(policy, conditions::REPOSITORY_HEALTHY, conditions::reason::UNTRUSTED)
    };
    world.until(policies.clone(), "workers", "untrusted", untrusted).await;

    // A repository that can't be trusted moves nothing: another vendor's root.
    let stranger = bascule_tests::vendor::Vendor::empty();
    let root = String::from_utf8(stranger.trust_root()).unwrap();
    let distrusting = json!({"spec": {"maintenanceWindows": null, "source": {"trustRoot": {"inline": root}}}});
    policies.patch("workers", &PatchParams::default(), &Patch::Merge(&distrusting)).await.unwrap();
    world.until(policies.clone(), "workers", "untrusted", untrusted).await;
    world.until_reason("n1", WaitReason::RepositoryUnavailable).await;

    // Prometheus is down: the gate does not pass, and says so.
    let closed = json!({"spec": {
        "source": {"trustRoot": null},
        "health": {"prometheus": "http://127.0.0.1:9", "gates": [{"name": "alerts", "promQL": {"query": "up", "min": 1}}]},
    }});
    policies.patch("workers", &PatchParams::default(), &Patch::Merge(&closed)).await.unwrap();
    world.until_reason("n1", WaitReason::HealthGate).await;
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    let rollout = updates.get("n1").await.unwrap().status.unwrap().rollout.unwrap();
    assert!(rollout.message.contains("alerts"), "{rollout:?}");

    // Somebody edits the NodeUpdate: the operator's word is set right, and the node was not disrupted.
    let edit = json!({"spec": {"goal": "Idle", "release": null}});
    updates.patch("n1", &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
    let right = |update: Option<&NodeUpdate>| update.is_some_and(|update| update.spec.goal == Goal::Staged);
    world.until_update("n1", "set right", right).await;
    assert!(updates.get("n1").await.unwrap().spec.disruption.is_none());

    // The gate goes, and the node goes.
    let open = json!({"spec": {"health": {"gates": null}}});
    policies.patch("workers", &PatchParams::default(), &Patch::Merge(&open)).await.unwrap();
    world.until_current("n1", "1.1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_image_for_another_machine_is_named_where_its_report_is_missing() {
    let world = Cluster::new().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"role": "worker"}}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "bascule-agent-1", "namespace": "default", "labels": {"app.kubernetes.io/name": "bascule-agent"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "agent", "image": "bascule-agent"}]},
    });
    world.control_plane.apply(&format!("{node}\n---\n{pod}\n")).await.unwrap();
    let nodes: Api<Node> = Api::all(world.client.clone());
    let machine = json!({"status": {"nodeInfo": {
        "machineID": "", "systemUUID": "", "bootID": "b", "kernelVersion": "", "osImage": "", "kubeletVersion": "",
        "kubeProxyVersion": "", "containerRuntimeVersion": "", "operatingSystem": "linux", "architecture": "arm64",
    }}});
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(&machine)).await.unwrap();
    // As a kubelet tells it, with the manifest's `terminationMessagePolicy`.
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let status = json!({"status": {"containerStatuses": [{
        "name": "agent", "image": "bascule-agent", "imageID": "", "ready": false, "restartCount": 4,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": {"terminated": {"exitCode": 255, "message": "exec /bascule-agent: exec format error"}},
    }]}});
    pods.patch_status("bascule-agent-1", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    let named =
        "exec format error. Its image is for another architecture than its node, which is arm64: build one with";
    world.until_message("n1", WaitReason::AgentNotReporting, named).await;

    // The right one is there, and begins.
    let begins = json!({"status": {"containerStatuses": [{
        "name": "agent", "image": "bascule-agent", "imageID": "", "ready": false, "restartCount": 5, "state": {"running": {}},
    }]}});
    pods.patch_status("bascule-agent-1", &PatchParams::default(), &Patch::Merge(&begins)).await.unwrap();
    world.until_message("n1", WaitReason::AgentNotReporting, "the agent has not reported").await;
}
