//! Repositories that are down, tampered with or expired: nothing is staged from them, and policy and node say why.

use crate::agent::Habit;
use crate::world::Cluster;
use bascule_api::{UpdatePolicy, WaitReason, conditions};
use bascule_image::release::manifest::Kubernetes;
use bascule_tests::https::Fault;
use kube::Api;
use serde_json::json;

async fn until_unhealthy(world: &Cluster, reason: &str) {
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let says = |policy: Option<&UpdatePolicy>| {
        let conditions = policy.and_then(|policy| policy.status.as_ref()).map(|status| status.conditions.clone());
        let found = conditions.as_deref().and_then(|all| conditions::get(all, conditions::REPOSITORY_HEALTHY)).cloned();
        found.is_some_and(|one| one.status == "False" && one.reason == reason && !one.message.is_empty())
    };
    world.until(policies, "workers", reason, says).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_is_down_tampered_with_or_expired_moves_nothing_and_is_named() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.server.misbehave("timestamp.json", Fault::Status(503));
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    until_unhealthy(&world, conditions::reason::UNREACHABLE).await;
    world.until_reason("n1", WaitReason::RepositoryUnavailable).await;

    world.server.behave();
    world.server.misbehave("timestamp.json", Fault::FlipBit(100));
    until_unhealthy(&world, conditions::reason::UNTRUSTED).await;

    let path = world.vendor.repository().join("metadata/timestamp.json");
    let good = std::fs::read(&path).unwrap();
    world.vendor.forge("timestamp.json", &["timestamp"], |signed| signed["expires"] = "2020-01-01T00:00:00Z".into());
    world.server.behave();
    until_unhealthy(&world, conditions::reason::EXPIRED).await;
    let update = world.update("n1").await;
    assert!(update.spec.release.is_none() && update.spec.grant.is_none(), "{update:?}");

    std::fs::write(&path, good).unwrap();
    world.until_current("n1", "1.1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_whose_kubelet_is_newer_than_the_api_server_waits_before_the_disruption() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let brings = |kubelet: &str| Kubernetes { kubelet: kubelet.parse().unwrap(), api_server: false };
    world.vendor.publish_with("1.2", Some("1.1"), |manifest| manifest.kubernetes = Some(brings("v1.99.0")));
    let _operator = world.operator("first").await;
    world.policy("workers", json!({})).await;
    world
        .until_message("n1", WaitReason::VersionSkew, "1.2 brings kubelet 1.99, and the oldest API server is 1.")
        .await;
    assert!(world.update("n1").await.spec.grant.is_none());
    // One that the API server is made for takes its place.
    let server = world.client.apiserver_version().await.unwrap();
    let fits = brings(&server.git_version);
    world.vendor.publish_with("1.3", Some("1.1"), |manifest| manifest.kubernetes = Some(fits));
    world.until_current("n1", "1.3").await;
}
