//! `test_basic.py` of the conformance suite.

use serde_json::json;

use crate::client::{Client, category};
use crate::keys::TestKey;
use crate::simulator::Served;

fn first_requests() -> Vec<(String, Option<u64>)> {
    [("root", Some(2)), ("timestamp", None), ("snapshot", Some(1)), ("targets", Some(1))]
        .map(|(role, version)| (role.to_owned(), version))
        .to_vec()
}

#[tokio::test]
async fn test_basic_refresh_requests() {
    let served = Served::new();
    Client::of(&served).refresh(&served).await.unwrap();
    assert_eq!(served.repo().asked, first_requests());
}

#[tokio::test]
async fn test_basic_refresh_trusted_data() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    for role in ["root", "timestamp", "snapshot", "targets"] {
        assert_eq!(client.trusted(role).as_ref(), served.repo().published[role].last(), "{role}");
    }
}

#[tokio::test]
async fn test_implicit_refresh() {
    let served = Served::new();
    let client = Client::of(&served);
    assert_eq!(category(client.download(&served, "nonexistent artifact").await), "absent");
    assert_eq!(served.repo().asked, first_requests());
    assert_eq!(client.versions(), [Some(1); 4]);
}

#[tokio::test]
async fn test_invalid_initial_root() {
    let served = Served::new();
    let mut client = Client::of(&served);
    let mut root: serde_json::Value = serde_json::from_slice(&client.trust_root).unwrap();
    root["signed"].as_object_mut().unwrap().remove("version");
    client.trust_root = root.to_string().into_bytes();
    assert_eq!(category(client.refresh(&served).await), "trust-root");
    assert!(served.repo().asked.is_empty());
}

#[tokio::test]
async fn test_unsigned_initial_root() {
    let served = Served::new();
    let mut client = Client::of(&served);
    let mut root: serde_json::Value = serde_json::from_slice(&client.trust_root).unwrap();
    root["signatures"][0]["sig"] = "00".repeat(64).into();
    client.trust_root = root.to_string().into_bytes();
    assert_eq!(category(client.refresh(&served).await), "trust-root");
    assert!(served.repo().asked.is_empty());
}

#[tokio::test]
async fn test_unsigned_metadata() {
    let expected = [
        ("root", [Some(1), None, None, None]),
        ("timestamp", [Some(2), None, None, None]),
        ("snapshot", [Some(2), None, None, Some(2)]),
        ("targets", [Some(2), Some(2), None, Some(2)]),
    ];
    for (role, versions) in expected {
        let served = Served::new();
        served.repo().signers.remove(role);
        served.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
        let client = Client::of(&served);
        assert_eq!(category(client.refresh(&served).await), "signature", "{role}");
        assert_eq!(client.versions(), versions, "{role}");
    }
}

#[tokio::test]
async fn test_url_and_metadata_version_mismatch() {
    let expected = [
        ("root", "rollback", [Some(1), None, None, None]),
        ("snapshot", "not-found", [Some(2), None, None, Some(2)]),
        ("targets", "not-found", [Some(2), Some(2), None, Some(2)]),
    ];
    for (role, fault, versions) in expected {
        let served = Served::new();
        served.repo().role(role)["version"] = 2.into();
        served.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
        let client = Client::of(&served);
        assert_eq!(category(client.refresh(&served).await), fault, "{role}");
        assert_eq!(client.versions(), versions, "{role}");
    }
}

#[tokio::test]
async fn metadata_of_another_version_than_its_name_says() {
    for role in ["snapshot", "targets"] {
        let served = Served::new();
        // The file that the pin names says another version of itself.
        served.repo().role(role)["version"] = 7.into();
        served.repo().publish_as_it_is(role);
        let pinned = json!({"version": 2});
        match role {
            "snapshot" => served.repo().role("timestamp")["meta"]["snapshot.json"] = pinned,
            _ => {
                served.repo().role("snapshot")["meta"]["targets.json"] = pinned;
                served.repo().publish(&["snapshot"]);
            }
        }
        served.repo().publish(&["timestamp"]);
        let client = Client::of(&served);
        assert_eq!(category(client.refresh(&served).await), "mismatch", "{role}");
    }
}

#[tokio::test]
async fn test_timestamp_content_changes() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    let first = client.trusted("timestamp");
    served.repo().published.remove("timestamp");
    served.repo().role("timestamp")["meta"]["snapshot.json"]["version"] = 100.into();
    served.repo().publish(&["timestamp"]);
    client.refresh(&served).await.unwrap();
    assert_eq!(served.repo().asked.last(), Some(&("timestamp".to_owned(), None)));
    assert_eq!(client.trusted("timestamp"), first);
}

#[tokio::test]
async fn test_basic_metadata_hash_support() {
    let served = Served::new();
    served.repo().pin_hashes = true;
    served.repo().publish(&["targets", "snapshot", "timestamp"]);
    Client::of(&served).refresh(&served).await.unwrap();
}

#[tokio::test]
async fn test_targets_hash_mismatch() {
    let served = Served::new();
    served.repo().pin_hashes = true;
    served.repo().publish(&["targets", "snapshot", "timestamp"]);
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().publish(&["targets"]);
    served.repo().role("snapshot")["meta"]["targets.json"]["hashes"]["sha256"] = "0".repeat(64).into();
    served.repo().publish(&["snapshot", "timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "mismatch");
    assert_eq!(client.versions(), [Some(1), Some(3), Some(2), Some(3)]);
}

#[tokio::test]
async fn test_snapshot_hash_mismatch() {
    let served = Served::new();
    served.repo().pin_hashes = true;
    served.repo().publish(&["snapshot", "timestamp"]);
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().publish(&["snapshot"]);
    served.repo().role("timestamp")["meta"]["snapshot.json"]["hashes"]["sha256"] = "0".repeat(64).into();
    served.repo().publish(&["timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "mismatch");
    assert_eq!(client.versions(), [Some(1), Some(2), Some(1), Some(3)]);
}

#[tokio::test]
async fn test_metadata_bytes_match() {
    let served = Served::new();
    served.repo().published.get_mut("timestamp").unwrap()[0].push(b' ');
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.trusted("timestamp").as_ref(), served.repo().published["timestamp"].last());
}

#[tokio::test]
async fn test_custom_fields() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    let key = TestKey::ed25519(1000).renamed(json!({"extra-field": {"a": 1, "b": 2}}));
    served.repo().role("root")["custom-field"] = "value".into();
    served.repo().role("root")["roles"]["root"]["another-field"] = "value".into();
    served.repo().add_this_key("root", &key);
    // Everywhere, not only in the root.
    served.repo().delegate("targets", "delegated", &["*"], false);
    for role in ["timestamp", "snapshot", "targets", "delegated"] {
        served.repo().role(role)["custom"] = json!({"a": [null, true, -1, "x\ny"]});
    }
    served.repo().add_artifact("delegated", "file", b"content");
    served.repo().role("delegated")["targets"]["file"]["custom"] = json!({"x": 1});
    served.repo().role("targets")["delegations"]["roles"][0]["custom"] = json!([1]);
    served.repo().role("targets")["delegations"]["custom"] = json!({});
    served.repo().publish(&["root"]);
    served.repo().publish_all();
    assert_eq!(client.download(&served, "file").await.unwrap(), "content");
    assert_eq!(client.version("root"), Some(2));
    // And they are signed: another value is another file.
    served.repo().publish(&["timestamp"]);
    served.repo().tamper("timestamp", |file| file["signed"]["custom"]["a"][2] = 1.into());
    assert_eq!(category(client.refresh(&served).await), "signature");
}

#[tokio::test]
async fn test_deprecated_keyid_hash_algorithms() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().role("root")["roles"]["snapshot"]["keyids"] = json!([]);
    served.repo().signers.remove("snapshot");
    let key = TestKey::ed25519(1000).renamed(json!({"keyid_hash_algorithms": "md5"}));
    served.repo().add_this_key("snapshot", &key);
    served.repo().publish(&["root", "snapshot", "timestamp"]);
    client.refresh(&served).await.unwrap();
    assert_eq!((client.version("root"), client.version("snapshot")), (Some(2), Some(2)));
}

#[tokio::test]
async fn test_snapshot_404() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().role("timestamp")["meta"]["snapshot.json"]["version"] = 2.into();
    served.repo().publish(&["timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "not-found");
    assert_eq!(served.repo().asked.last(), Some(&("snapshot".to_owned(), Some(2))));
    assert_eq!(client.versions(), [Some(1), Some(1), Some(1), Some(2)]);
    // It comes later, under the timestamp that is remembered already.
    served.repo().publish(&["snapshot"]);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.versions(), [Some(1), Some(2), Some(1), Some(2)]);
}

#[tokio::test]
async fn test_targets_404() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().role("snapshot")["meta"]["targets.json"]["version"] = 2.into();
    served.repo().publish(&["snapshot", "timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "not-found");
    assert_eq!(served.repo().asked.last(), Some(&("targets".to_owned(), Some(2))));
    assert_eq!(client.versions(), [Some(1), Some(2), Some(1), Some(2)]);
}

#[tokio::test]
async fn test_timestamp_404() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().published.remove("timestamp");
    assert_eq!(category(client.refresh(&served).await), "not-found");
    assert_eq!(served.repo().asked.last(), Some(&("timestamp".to_owned(), None)));
}

#[tokio::test]
async fn test_incorrect_metadata_type() {
    let served = Served::new();
    let client = Client::of(&served);
    let key = served.repo().signers["timestamp"][0].clone();
    served.repo().add_this_key("snapshot", &key);
    served.repo().role("snapshot")["meta"] = json!({"snapshot.json": {"version": 1}});
    served.repo().publish(&["root", "snapshot"]);
    let snapshot = served.repo().published.get_mut("snapshot").unwrap().pop().unwrap();
    served.repo().published.get_mut("timestamp").unwrap().push(snapshot);
    assert_eq!(category(client.refresh(&served).await), "unacceptable");
    assert_eq!(client.versions(), [Some(2), None, None, None]);
}

#[tokio::test]
async fn another_specification_is_refused_and_named() {
    for role in ["root", "timestamp", "snapshot", "targets"] {
        let served = Served::new();
        served.repo().role(role)["spec_version"] = "2.0.0".into();
        served.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
        let error = Client::of(&served).refresh(&served).await.unwrap_err();
        assert_eq!(error.category(), "spec-version", "{role}");
        assert!(error.to_string().contains(role) && error.to_string().contains("2.0.0"), "{error}");
    }
}
