//! `test_rollback.py` of the conformance suite.

use serde_json::json;

use crate::client::{Client, category};
use crate::simulator::Served;

fn remove_key(served: &Served, role: &str, member: &str) {
    served.repo().role(role)["meta"].as_object_mut().unwrap().remove(member);
}

/// Begins a role's versions anew.
fn restart(served: &Served, role: &str) {
    served.repo().published.remove(role);
    served.repo().role(role)["version"] = 1.into();
}

#[tokio::test]
async fn test_new_timestamp_version_rollback() {
    let served = Served::new();
    let client = Client::of(&served);
    served.repo().publish(&["timestamp"]);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.version("timestamp"), Some(2));
    restart(&served, "timestamp");
    served.repo().publish(&["timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "rollback");
    assert_eq!(client.version("timestamp"), Some(2));
    assert_eq!(served.repo().asked.last(), Some(&("timestamp".to_owned(), None)));
}

#[tokio::test]
async fn test_snapshot_rollback() {
    for use_hashes in [false, true] {
        let served = Served::new();
        let client = Client::of(&served);
        served.repo().pin_hashes = use_hashes;
        served.repo().publish(&["snapshot", "timestamp"]);
        client.refresh(&served).await.unwrap();
        restart(&served, "snapshot");
        served.repo().publish(&["snapshot", "timestamp"]);
        assert_eq!(category(client.refresh(&served).await), "rollback");
        assert_eq!((client.version("timestamp"), client.version("snapshot")), (Some(2), Some(2)));
        assert_eq!(served.repo().asked.last(), Some(&("timestamp".to_owned(), None)));
    }
}

#[tokio::test]
async fn test_targets_role_removal() {
    let served = Served::new();
    let client = Client::of(&served);
    served.repo().delegate("targets", "delegated", &["delegatedpath/*"], false);
    served.repo().publish(&["delegated", "targets", "snapshot", "timestamp"]);
    client.refresh(&served).await.unwrap();
    remove_key(&served, "snapshot", "delegated.json");
    served.repo().publish(&["snapshot", "timestamp"]);
    let refused = client.refresh(&served).await.unwrap_err();
    assert_eq!(refused.category(), "rollback");
    assert!(refused.to_string().contains("delegated.json"), "{refused}");
    assert_eq!(client.version("snapshot"), Some(2));
}

#[tokio::test]
async fn test_targets_fast_forward_recovery() {
    let served = Served::new();
    let client = Client::of(&served);
    served.repo().delegate("targets", "delegated", &["delegatedpath/*"], false);
    served.repo().publish(&["delegated"]);
    for _ in 0..99 {
        served.repo().publish(&["targets"]);
    }
    served.repo().publish(&["snapshot", "timestamp"]);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.version("targets"), Some(100));
    served.repo().rotate("snapshot");
    restart(&served, "targets");
    remove_key(&served, "snapshot", "delegated.json");
    served.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.version("targets"), Some(1));
}

#[tokio::test]
async fn test_new_snapshot_fast_forward_recovery() {
    let served = Served::new();
    let client = Client::of(&served);
    for _ in 0..99 {
        served.repo().publish(&["snapshot"]);
    }
    served.repo().publish(&["timestamp"]);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.version("snapshot"), Some(100));
    served.repo().rotate("snapshot");
    served.repo().rotate("timestamp");
    restart(&served, "snapshot");
    served.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.version("snapshot"), Some(1));
}

#[tokio::test]
async fn test_new_timestamp_fast_forward_recovery() {
    let served = Served::new();
    let client = Client::of(&served);
    for _ in 0..99 {
        served.repo().publish(&["timestamp"]);
    }
    client.refresh(&served).await.unwrap();
    assert_eq!(client.version("timestamp"), Some(100));
    served.repo().rotate("timestamp");
    restart(&served, "timestamp");
    served.repo().publish(&["root", "timestamp"]);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.version("timestamp"), Some(1));
}

#[tokio::test]
async fn test_targets_rollback() {
    for use_hashes in [false, true] {
        let served = Served::new();
        let client = Client::of(&served);
        served.repo().pin_hashes = use_hashes;
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        client.refresh(&served).await.unwrap();
        restart(&served, "targets");
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        assert_eq!(category(client.refresh(&served).await), "rollback");
        assert_eq!((client.version("snapshot"), client.version("targets")), (Some(2), Some(2)));
    }
}

/// 5.3.11 in the cases that the suite does not have: the reset may not get lost with an update that broke off, nor with a
/// root that was expired for a while, nor where the OS image brought the new root.
#[tokio::test]
async fn the_reset_after_a_rotation_survives_whatever_breaks_the_update() {
    for story in ["timestamp missing", "root expired", "root from the image"] {
        let served = Served::new();
        let mut client = Client::of(&served);
        for _ in 0..9 {
            served.repo().publish(&["snapshot", "timestamp"]);
        }
        client.refresh(&served).await.unwrap();
        // Only the snapshot's keys are replaced: the timestamp has to be forgotten with it, although its keys still hold.
        served.repo().rotate("snapshot");
        restart(&served, "snapshot");
        restart(&served, "timestamp");
        served.repo().role("timestamp")["version"] = 20.into();
        match story {
            "timestamp missing" => {
                served.repo().publish(&["root"]);
                assert_eq!(category(client.refresh(&served).await), "not-found");
            }
            "root expired" => {
                let good = served.repo().role("root")["expires"].clone();
                served.repo().role("root")["expires"] = crate::simulator::date(crate::simulator::start());
                served.repo().publish(&["root"]);
                assert_eq!(category(client.refresh(&served).await), "expired");
                served.repo().role("root")["expires"] = good;
                served.repo().publish(&["root"]);
            }
            _ => {
                served.repo().publish(&["root"]);
                client.trust_root = served.repo().published["root"][1].clone();
            }
        }
        served.repo().publish(&["snapshot", "timestamp"]);
        client.refresh(&served).await.unwrap_or_else(|error| panic!("{story}: {error}"));
        assert_eq!(client.version("snapshot"), Some(1), "{story}");
    }
}

/// A new key beside the old ones is another set of keys: the versions are forgotten once, and count from then on.
#[tokio::test]
async fn versions_count_again_after_a_rotation() {
    let served = Served::new();
    let client = Client::of(&served);
    served.repo().publish(&["timestamp"]);
    client.refresh(&served).await.unwrap();
    let old = served.repo().published["timestamp"].clone();
    served.repo().rotate("timestamp");
    served.repo().publish(&["root", "timestamp"]);
    client.refresh(&served).await.unwrap();
    served.repo().published.insert("timestamp".to_owned(), old);
    assert_eq!(category(client.refresh(&served).await), "signature");
    restart(&served, "timestamp");
    served.repo().role("timestamp")["meta"]["snapshot.json"] = json!({"version": 1});
    served.repo().publish(&["timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "rollback");
}

/// A stolen timestamp key names a snapshot far ahead that does not exist. Only the snapshot's keys are replaced: the timestamp's own
/// signatures still hold, and no remembered snapshot fails, so the reset hangs on the remembered keys alone.
#[tokio::test]
async fn the_reset_does_not_need_a_remembered_snapshot() {
    let served = Served::new();
    let client = Client::of(&served);
    served.repo().role("timestamp")["meta"]["snapshot.json"]["version"] = 1000.into();
    served.repo().publish(&["timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "not-found");
    served.repo().rotate("snapshot");
    served.repo().publish(&["root", "snapshot", "timestamp"]);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.version("snapshot"), Some(2));
}
