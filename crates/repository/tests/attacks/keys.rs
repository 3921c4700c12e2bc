//! Attacks with some stolen keys, but fewer than a role's threshold; and keys that were revoked.

use std::collections::BTreeMap;

use bascule_repository::publish::Outcome;
use bascule_tests::https::HttpsServer;

use super::node::{Node, category};
use super::time::rotate_timestamp;
use bascule_tests::vendor::{Vendor, describe};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_compromise_below_the_threshold_of_the_root() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    // One of two root keys signs a root that gives everything to the attacker.
    let metadata = vendor.repository().join("metadata");
    let attacker = Vendor::empty();
    let stolen = std::fs::read(attacker.repository().join("metadata/1.root.json")).unwrap();
    std::fs::write(metadata.join("2.root.json"), stolen).unwrap();
    vendor.forge("2.root.json", &["root-1"], |signed| signed["version"] = 2.into());
    assert_eq!(node.open(&server).await.unwrap_err().category(), "signature");
    // The same signature twice is still one key.
    let text = std::fs::read_to_string(metadata.join("2.root.json")).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let twice = document["signatures"][0].clone();
    document["signatures"].as_array_mut().unwrap().push(twice);
    std::fs::write(metadata.join("2.root.json"), document.to_string()).unwrap();
    assert_eq!(node.open(&server).await.unwrap_err().category(), "signature");
    // Nor does the publisher's own tool go along.
    std::fs::remove_file(metadata.join("2.root.json")).unwrap();
    let keys = vendor.keys(&["root-1", "timestamp"]);
    let outcome = vendor.publisher().rotate(&BTreeMap::new(), vendor.signing(&keys)).unwrap();
    assert!(matches!(outcome, Outcome::Waiting(_)), "{outcome:?}");
    node.update(&server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_compromise_below_the_threshold_of_the_targets() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    vendor.new_key("targets-2");
    let changes = BTreeMap::from([("targets".to_owned(), vendor.role(&["targets", "targets-2"], 2))]);
    let keys = vendor.keys(&["root-1", "root-2", "targets", "targets-2", "snapshot", "timestamp"]);
    vendor.publisher().rotate(&changes, vendor.signing(&keys)).unwrap();
    let node = Node::of(&vendor);
    node.update(&server).await.unwrap();
    // All online keys and one of the two targets keys: enough to name anything, not enough to be believed.
    let metadata = vendor.repository().join("metadata");
    std::fs::copy(metadata.join("4.targets.json"), metadata.join("9.targets.json")).unwrap();
    vendor.forge("9.targets.json", &["targets"], |signed| signed["version"] = 9.into());
    let targets = describe(&metadata.join("9.targets.json"), 9);
    std::fs::copy(metadata.join("4.snapshot.json"), metadata.join("9.snapshot.json")).unwrap();
    vendor.forge("9.snapshot.json", &["snapshot"], |signed| {
        signed["version"] = 9.into();
        signed["meta"]["targets.json"] = targets;
    });
    let snapshot = describe(&metadata.join("9.snapshot.json"), 9);
    vendor.forge("timestamp.json", &["timestamp"], |signed| {
        signed["version"] = 9.into();
        signed["meta"]["snapshot.json"] = snapshot;
    });
    let failure = node.update(&server).await.unwrap_err();
    assert_eq!(category(&failure), "signature", "{failure}");
    assert!(failure.to_string().contains("targets"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_signs_nothing_any_more() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    rotate_timestamp(&vendor, "timestamp-2");
    // Also a node that meets the new root and the forged timestamp for the first time at once.
    let node = Node::of(&vendor);
    vendor.forge("timestamp.json", &["timestamp"], |signed| signed["version"] = 99.into());
    assert_eq!(node.open(&server).await.unwrap_err().category(), "signature");
    // What was learnt on the way is kept although the update failed: the new root can't be hidden again.
    std::fs::remove_file(vendor.repository().join("metadata/2.root.json")).unwrap();
    assert_eq!(node.open(&server).await.unwrap_err().category(), "signature");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_threshold_is_met_by_people_who_sign_one_after_the_other() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    vendor.new_key("root-3");
    let changes = BTreeMap::from([("root".to_owned(), vendor.role(&["root-2", "root-3"], 2))]);
    let waits = |outcome: Outcome| matches!(outcome, Outcome::Waiting(_));
    assert!(waits(vendor.publisher().rotate(&changes, vendor.signing(&vendor.keys(&["root-1"]))).unwrap()));
    assert!(waits(vendor.publisher().sign_pending(vendor.signing(&vendor.keys(&["root-2"]))).unwrap()));
    assert!(waits(vendor.publisher().sign_pending(vendor.signing(&vendor.keys(&["root-3"]))).unwrap()));
    let node = Node::of(&vendor);
    assert_eq!(node.open(&server).await.unwrap().metadata().roles[0].version, 1);
    let outcome = vendor.publisher().sign_pending(vendor.signing(&vendor.keys(&["timestamp"]))).unwrap();
    assert!(matches!(outcome, Outcome::Published { root: 2, .. }), "{outcome:?}");
    assert_eq!(node.open(&server).await.unwrap().metadata().roles[0].version, 2);
    node.update(&server).await.unwrap();
}
