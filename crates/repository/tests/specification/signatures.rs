//! `test_keys.py` of the conformance suite.

use serde_json::json;

use crate::client::{Client, category};
use crate::keys::TestKey;
use crate::simulator::Served;

#[tokio::test]
async fn test_snapshot_does_not_meet_threshold() {
    let served = Served::new();
    let client = Client::of(&served);
    served.repo().role("root")["roles"]["snapshot"]["threshold"] = 3.into();
    served.repo().add_key("snapshot");
    served.repo().add_key("snapshot");
    served.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
    client.refresh(&served).await.unwrap();
    served.repo().signers.get_mut("snapshot").unwrap().pop();
    served.repo().publish(&["targets", "snapshot", "timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "signature");
    assert_eq!(client.version("snapshot"), Some(2));
}

#[tokio::test]
async fn test_snapshot_has_too_few_keys() {
    let served = Served::new();
    let client = Client::of(&served);
    for _ in 0..4 {
        served.repo().add_key("snapshot");
    }
    served.repo().role("root")["roles"]["snapshot"]["threshold"] = 6.into();
    served.repo().publish(&["root", "snapshot", "timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "signature");
    assert_eq!((client.version("root"), client.version("snapshot")), (Some(2), None));
}

#[tokio::test]
async fn test_duplicate_keys() {
    let served = Served::new();
    let client = Client::of(&served);
    let key = served.repo().new_key();
    for _ in 0..9 {
        served.repo().add_this_key("snapshot", &key);
    }
    served.repo().role("root")["roles"]["snapshot"]["threshold"] = 6.into();
    served.repo().publish(&["root", "snapshot", "timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "signature");
    assert_eq!(client.version("snapshot"), None);
}

#[tokio::test]
async fn one_key_under_many_names_counts_once() {
    let served = Served::new();
    let key = served.repo().signers["snapshot"][0].clone();
    for name in ["a", "b"] {
        let renamed = key.renamed(json!({ "x-owner": name }));
        served.repo().add_this_key("snapshot", &renamed);
    }
    served.repo().role("root")["roles"]["snapshot"]["threshold"] = 2.into();
    served.repo().publish(&["root", "snapshot", "timestamp"]);
    let client = Client::of(&served);
    assert_eq!(category(client.refresh(&served).await), "signature");
    // A second key makes two.
    served.repo().add_key("snapshot");
    served.repo().publish(&["root", "snapshot", "timestamp"]);
    client.refresh(&served).await.unwrap();
}

#[tokio::test]
async fn test_duplicate_sig_keyids() {
    let served = Served::new();
    let client = Client::of(&served);
    served.repo().tamper("snapshot", |file| {
        let twice = file["signatures"][0].clone();
        file["signatures"].as_array_mut().unwrap().push(twice);
    });
    assert_eq!(category(client.refresh(&served).await), "signature");
    assert_eq!(client.version("snapshot"), None);
}

#[tokio::test]
async fn test_keytype_and_scheme() {
    for (kind, key) in [("rsa", TestKey::rsa()), ("ecdsa", TestKey::p256()), ("ed25519", TestKey::ed25519(1000))] {
        let served = Served::new();
        let client = Client::of(&served);
        served.repo().add_this_key("root", &key);
        served.repo().role("root")["roles"]["root"]["threshold"] = 2.into();
        served.repo().publish(&["root"]);
        client.refresh(&served).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(client.version("root"), Some(2));
        served.repo().publish(&["root"]);
        let other = hex::encode(key.sign(b"something else"));
        served.repo().tamper("root", |file| {
            for signature in file["signatures"].as_array_mut().unwrap() {
                if signature["keyid"] == key.id() {
                    signature["sig"] = other.clone().into();
                }
            }
        });
        assert_eq!(category(client.refresh(&served).await), "signature", "{kind}");
        assert_eq!(client.version("root"), Some(2));
    }
}

#[tokio::test]
async fn test_invalid_sig_in_valid_metadata() {
    for invalid in ["00", "", "no hex", &"00".repeat(64)] {
        let served = Served::new();
        let client = Client::of(&served);
        served.repo().add_key("timestamp");
        served.repo().publish(&["root", "timestamp"]);
        served.repo().tamper("timestamp", |file| file["signatures"][0]["sig"] = invalid.into());
        client.refresh(&served).await.unwrap_or_else(|error| panic!("{invalid:?}: {error}"));
    }
}

#[tokio::test]
async fn a_threshold_of_none_is_no_threshold() {
    let served = Served::new();
    served.repo().role("root")["roles"]["timestamp"]["threshold"] = 0.into();
    served.repo().publish(&["root"]);
    assert_eq!(category(Client::of(&served).refresh(&served).await), "format");
}
