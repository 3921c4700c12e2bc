//! Attacks with old or far too new metadata: rollback, freeze, fast-forward; and clocks that lie.

use bascule_repository::publish::RoleSetup;
use bascule_tests::https::HttpsServer;
use chrono::TimeDelta;
use std::collections::BTreeMap;

use super::node::{Node, category};
use bascule_tests::vendor::{Vendor, copy_folder, days, describe, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_to_a_replayed_repository() {
    let vendor = Vendor::empty();
    vendor.publish("1.0", None);
    let old = tempfile::tempdir().unwrap();
    copy_folder(&vendor.repository(), old.path());
    vendor.publish("1.1", Some("1.0"));
    let node = Node::of(&vendor);
    node.update(&HttpsServer::start(vendor.repository()).await.unwrap()).await.unwrap();
    // Each opening starts from the disk, as after a restart.
    let replayed = HttpsServer::start(old.path()).await.unwrap();
    let failure = node.update(&replayed).await.unwrap_err();
    assert_eq!(category(&failure), "rollback", "{failure}");
    // Without a memory the node could not know: the datastore is what holds.
    std::fs::remove_dir_all(node.datastore()).unwrap();
    assert!(node.open(&replayed).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_of_the_snapshot_with_a_stolen_timestamp_key() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    node.open(&server).await.unwrap();
    let old_snapshot = describe(&vendor.repository().join("metadata/2.snapshot.json"), 2);
    vendor.forge("timestamp.json", &["timestamp"], |signed| {
        signed["version"] = 9.into();
        signed["meta"]["snapshot.json"] = old_snapshot;
    });
    assert_eq!(node.open(&server).await.unwrap_err().category(), "rollback");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_after_keys_were_rotated() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let before_rotation = tempfile::tempdir().unwrap();
    copy_folder(&vendor.repository(), before_rotation.path());
    rotate_timestamp(&vendor, "timestamp-2");
    let after_rotation = tempfile::tempdir().unwrap();
    copy_folder(&vendor.repository(), after_rotation.path());
    let keys = vendor.keys(&["timestamp-2"]);
    vendor.publisher().refresh(vendor.signing(&keys)).unwrap();

    let node = Node::of(&vendor);
    node.open(&server).await.unwrap();
    // The node's own root is still version 1, from its OS image; what it learnt since must not be forgotten.
    let replayed = HttpsServer::start(after_rotation.path()).await.unwrap();
    assert_eq!(node.open(&replayed).await.unwrap_err().category(), "rollback");
    let replayed = HttpsServer::start(before_rotation.path()).await.unwrap();
    assert_eq!(node.open(&replayed).await.unwrap_err().category(), "signature");
    node.open(&server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freeze_by_serving_the_same_timestamp_for_ever() {
    let mut vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.clock = start() + days(6);
    node.open(&server).await.unwrap();
    node.clock = start() + days(7);
    let failure = node.update(&server).await.unwrap_err();
    assert_eq!(category(&failure), "expired", "{failure}");
    assert!(failure.to_string().contains("timestamp"), "{failure}");
    vendor.now = start() + days(7);
    let keys = vendor.keys(&["timestamp"]);
    vendor.publisher().refresh(vendor.signing(&keys)).unwrap();
    node.update(&server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freeze_by_holding_the_clock_of_a_node() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.clock = start() + days(6);
    node.open(&server).await.unwrap();
    // A small step back is daily life; a large one is an error and no licence to accept old metadata.
    node.clock = start() + days(6) - TimeDelta::minutes(9);
    node.open(&server).await.unwrap();
    node.clock = start();
    assert_eq!(node.open(&server).await.unwrap_err().category(), "clock-behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumped_into_the_future_does_no_lasting_harm() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.clock = start() + days(50 * 365);
    assert_eq!(node.open(&server).await.unwrap_err().category(), "expired");
    node.clock = start() + days(1);
    node.update(&server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freeze_of_any_single_role() {
    let mut vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    // Which role expires when only those before it are signed afresh (lifetimes: 7, 30, 180, 365 days).
    let story = [
        (31, &["timestamp"][..], "snapshot"),
        (181, &["timestamp", "snapshot"], "targets"),
        (366, &["timestamp", "snapshot", "targets"], "root"),
    ];
    for (day, keys, expected) in story {
        vendor.now = start() + days(day);
        let keys = vendor.keys(keys);
        vendor.publisher().refresh(vendor.signing(&keys)).unwrap();
        let mut node = Node::of(&vendor);
        node.clock = vendor.now;
        match node.open(&server).await {
            Err(bascule_repository::Error::Expired { role, .. }) => assert_eq!(role, expected),
            other => panic!("{other:?}"),
        }
    }
    let keys = vendor.keys(&["root-1", "root-2", "timestamp"]);
    vendor.publisher().rotate(&BTreeMap::new(), vendor.signing(&keys)).unwrap();
    let mut node = Node::of(&vendor);
    node.clock = vendor.now;
    node.update(&server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fast_forward_with_stolen_online_keys_and_recovery() {
    let vendor = Vendor::with_two_releases();
    let attacked = tempfile::tempdir().unwrap();
    let honest = tempfile::tempdir().unwrap();
    copy_folder(&vendor.repository(), honest.path());
    vendor.forge("3.snapshot.json", &["snapshot"], |signed| signed["version"] = u64::MAX.into());
    let from = vendor.repository().join("metadata");
    std::fs::copy(from.join("3.snapshot.json"), from.join(format!("{}.snapshot.json", u64::MAX))).unwrap();
    let snapshot = describe(&from.join("3.snapshot.json"), u64::MAX);
    vendor.forge("timestamp.json", &["timestamp"], |signed| {
        signed["version"] = u64::MAX.into();
        signed["meta"]["snapshot.json"] = snapshot;
    });
    copy_folder(&vendor.repository(), attacked.path());
    std::fs::remove_dir_all(vendor.repository()).unwrap();
    copy_folder(honest.path(), &vendor.repository());

    let node = Node::of(&vendor);
    node.open(&HttpsServer::start(attacked.path()).await.unwrap()).await.unwrap();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    assert_eq!(node.open(&server).await.unwrap_err().category(), "rollback", "no honest version is high enough");
    // The vendor finds the theft and replaces both keys: TUF 1.0, 5.3.11.
    vendor.new_key("timestamp-2");
    vendor.new_key("snapshot-2");
    let changes = BTreeMap::from([
        ("timestamp".to_owned(), vendor.role(&["timestamp-2"], 1)),
        ("snapshot".to_owned(), vendor.role(&["snapshot-2"], 1)),
    ]);
    let keys = vendor.keys(&["root-1", "root-2", "timestamp-2", "snapshot-2"]);
    vendor.publisher().rotate(&changes, vendor.signing(&keys)).unwrap();
    node.update(&server).await.unwrap();
    // And from here on versions count again.
    let replayed = HttpsServer::start(attacked.path()).await.unwrap();
    assert_eq!(node.open(&replayed).await.unwrap_err().category(), "signature");
}

pub fn rotate_timestamp(vendor: &Vendor, new: &str) {
    vendor.new_key(new);
    let changes: BTreeMap<String, RoleSetup> = BTreeMap::from([("timestamp".to_owned(), vendor.role(&[new], 1))]);
    let keys = vendor.keys(&["root-1", "root-2", "timestamp", new]);
    vendor.publisher().rotate(&changes, vendor.signing(&keys)).unwrap();
}
