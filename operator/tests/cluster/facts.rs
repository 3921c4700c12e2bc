//! A large cluster as the watches bring it, without a cluster: for a test and for the example that measures.

use bascule_api::{NodeUpdate, UpdatePolicy};
use bascule_operator::gather::Caches as Facts;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;
use serde_json::json;
use std::sync::Arc;

/// Facts of so many nodes as the watches bring them.
pub fn facts(count: usize) -> Facts {
    let facts = Facts::new(Arc::new(tokio::sync::watch::Sender::new(0)), &bascule_operator::clock::Clock::system());
    let policy: UpdatePolicy = serde_json::from_value(json!({
        "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
        "metadata": {"name": "workers", "uid": "p", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeSelector": {}, "source": {"repository": "https://images.example.com/os", "channel": "stable"}},
    }))
    .unwrap();
    facts.policies.apply(&watcher::Event::Apply(policy));
    for index in 0..count {
        let name =
            format!("ip-10-{}-{}-{}.eu-central-1.compute.internal", index / 65_536, index / 256 % 256, index % 256);
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "uid": format!("u{index}"), "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"topology.kubernetes.io/zone": format!("eu-central-1{}", ["a", "b", "c"][index % 3])}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"architecture": "amd64",
                "bootID": format!("b{index}"), "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
                "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""}},
        }))
        .unwrap();
        facts.nodes.apply(&watcher::Event::Apply(node));
        // Some agents report, each with an error of its own: the longest reports are those of trouble.
        let update: NodeUpdate = serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate",
            "metadata": {"name": name, "uid": format!("n{index}"), "generation": 1},
            "spec": {"policy": "workers"},
            "status": {
                "bootID": if index % 4 == 0 { "another".to_owned() } else { format!("b{index}") },
                "booted": {"slot": "A", "version": "41.2.0", "rootHash": "a".repeat(64)},
                "failedReleases": [{"version": "41.3.0", "digest": format!("sha256:{}", "3".repeat(64)),
                    "at": "2026-11-01T00:00:00Z", "category": "TrialFailed", "message": format!("unit {index} did not start")}],
                "bootControl": {"backend": "SystemdBoot", "counting": if index % 2 == 0 { "Works" } else { "Broken" }},
            },
        }))
        .unwrap();
        facts.updates.apply(&watcher::Event::Apply(update));
    }
    facts
}
