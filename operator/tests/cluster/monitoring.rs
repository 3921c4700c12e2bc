//! Debian's Prometheus scrapes a running operator under the rules that are shipped, and an alert fires.

use crate::world::Cluster;
use bascule_tests::control_plane::free_port;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};

struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_the_operator_and_an_alert_fires() {
    let world = Cluster::new().await;
    let operator = world.operator("first").await;
    // A machine whose agent never comes.
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {"role": "worker"}}})).unwrap();
    Api::all(world.client.clone()).create(&PostParams::default(), &node).await.unwrap();
    world.policy("workers", json!({})).await;

    let folder = tempfile::tempdir().unwrap();
    let shipped = include_str!("../../../manifests/components/alerts/rules.yaml");
    let mut rules: Value = serde_saphyr::from_str(shipped).unwrap();
    // As shipped, but for the time: nobody waits a quarter of an hour here.
    for group in rules["spec"]["groups"].as_array_mut().unwrap() {
        group["interval"] = json!("1s");
        for rule in group["rules"].as_array_mut().unwrap() {
            rule["for"] = json!("0s");
        }
    }
    std::fs::write(folder.path().join("rules.yml"), rules["spec"].to_string()).unwrap();
    let config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "bascule", "static_configs": [{"targets": [operator.listen]}]}],
    });
    std::fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
    let port = free_port().unwrap();
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("Debian's package prometheus is installed by `cargo xtask test`");
    let _prometheus = Prometheus(child);
    let asks = async |path: &str| -> Option<Value> {
        let answer = reqwest::get(format!("http://127.0.0.1:{port}/api/v1/{path}")).await.ok()?;
        serde_json::from_slice(&answer.bytes().await.ok()?).ok()
    };
    world
        .eventually("the alert fires", async || {
            let Some(answer) = asks("alerts").await else { return false };
            let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
            alerts.iter().any(|alert| {
                alert["state"] == "firing"
                    && alert["labels"]["alertname"] == "BasculeAgentMissing"
                    && alert["labels"]["policy"] == "workers"
                    && alert["annotations"]["command"] == "bascule explain workers"
            })
        })
        .await;
    // Prometheus has nothing to complain about what it reads.
    // A single scrape may take longer than its second on a busy machine; one that fails each time says so for good.
    world
        .eventually("Prometheus reads the leader's figures", async || {
            asks("targets").await.is_some_and(|answer| answer["data"]["activeTargets"][0]["lastError"] == "")
        })
        .await;
    // Nor does an alert go on for a leader that is there: before the first scrape there was none to be seen.
    world
        .eventually("no alert says that nobody leads", async || {
            asks("alerts").await.is_some_and(|answer| !answer.to_string().contains("BasculeNoLeader"))
        })
        .await;
}
