//! `test_file_download.py` of the conformance suite. (`test_artifact_cache` is about a folder that the agent does not have; the
//! driver program has one.)

use serde_json::json;

use crate::client::{Client, category};
use crate::simulator::{Served, hashes, sha512};

const PATH: &str = "target_file.txt";
const CONTENT: &[u8] = b"target file contents";

#[tokio::test]
async fn test_client_downloads_expected_file() {
    let served = Served::new();
    let client = Client::of(&served);
    served.repo().add_artifact("targets", PATH, CONTENT);
    served.repo().publish(&["targets", "snapshot", "timestamp"]);
    assert_eq!(client.download(&served, PATH).await.unwrap(), CONTENT);
}

#[tokio::test]
async fn test_client_downloads_expected_file_in_sub_dir() {
    let served = Served::new();
    let client = Client::of(&served);
    served.repo().add_artifact("targets", "path/to/a/target_file.txt", CONTENT);
    served.repo().publish(&["targets", "snapshot", "timestamp"]);
    assert_eq!(client.download(&served, "path/to/a/target_file.txt").await.unwrap(), CONTENT);
}

#[tokio::test]
async fn test_repository_substitutes_target_file() {
    let served = Served::new();
    let client = Client::of(&served);
    served.repo().add_artifact("targets", PATH, CONTENT);
    served.repo().publish(&["targets", "snapshot", "timestamp"]);
    client.download(&served, PATH).await.unwrap();
    // As long, shorter and longer than what is signed.
    for (content, fault) in
        [(&b"TARGET FILE CONTENTS"[..], "mismatch"), (b"t", "mismatch"), (&[7; 100], "endless-data")]
    {
        served.repo().artifacts.insert(PATH.to_owned(), content.to_vec());
        assert_eq!(category(client.download(&served, PATH).await), fault);
    }
}

#[tokio::test]
async fn test_multiple_changes_to_target() {
    let served = Served::new();
    let client = Client::of(&served);
    for round in 0..11 {
        let content = format!("modified file contents {round}");
        served.repo().add_artifact("targets", PATH, content.as_bytes());
        served.repo().add_artifact("targets", &format!("new-target-{round}"), b"new");
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        if round % 5 == 0 {
            assert_eq!(client.download(&served, PATH).await.unwrap(), content);
            assert_eq!(client.download(&served, &format!("new-target-{round}")).await.unwrap(), "new");
            served.repo().artifacts.insert(PATH.to_owned(), b"malicious".to_vec());
            served.repo().publish(&["targets", "snapshot", "timestamp"]);
            assert_eq!(category(client.download(&served, PATH).await), "mismatch");
        }
    }
}

#[tokio::test]
async fn test_download_with_hash_algorithms() {
    let sha256 = hashes(CONTENT)["sha256"].clone();
    let sha512 = sha512(CONTENT);
    for algorithms in
        [json!({"sha256": sha256}), json!({"sha512": sha512}), json!({"sha256": sha256, "sha512": sha512})]
    {
        let served = Served::new();
        served.repo().add_artifact("targets", PATH, CONTENT);
        served.repo().role("targets")["targets"][PATH]["hashes"] = algorithms.clone();
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        let client = Client::of(&served);
        assert_eq!(client.download(&served, PATH).await.unwrap(), CONTENT, "{algorithms}");
        assert_eq!(served.repo().fetched.len(), 1);
        // Each digest that is known has to match.
        let wrong = "0".repeat(algorithms["sha512"].as_str().map_or(64, str::len));
        let last = algorithms.as_object().unwrap().keys().next_back().unwrap();
        served.repo().role("targets")["targets"][PATH]["hashes"][last] = wrong.into();
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        assert!(["mismatch", "not-found"].contains(&category(client.download(&served, PATH).await)), "{algorithms}");
    }
}

#[tokio::test]
async fn test_download_with_unknown_hash_algorithm() {
    let served = Served::new();
    served.repo().add_artifact("targets", PATH, CONTENT);
    served.repo().role("targets")["targets"][PATH]["hashes"] = json!({"unknown-hash": sha512(CONTENT)});
    served.repo().publish(&["targets", "snapshot", "timestamp"]);
    assert_eq!(category(Client::of(&served).download(&served, PATH).await), "unacceptable");
    assert!(served.repo().fetched.is_empty());
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_not_fetched() {
    for path in ["../escape", "a/../../escape", "/etc/passwd", "a//b", ".", "a/.", ""] {
        let served = Served::new();
        served.repo().add_artifact("targets", path, CONTENT);
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        assert_eq!(category(Client::of(&served).download(&served, path).await), "unacceptable", "{path:?}");
        assert!(served.repo().fetched.is_empty());
    }
}

#[tokio::test]
async fn repositories_without_consistent_snapshots_are_read() {
    let served = Served::new();
    served.repo().role("root")["consistent_snapshot"] = false.into();
    served.repo().delegate("targets", "delegated", &["*"], false);
    served.repo().add_artifact("delegated", PATH, CONTENT);
    served.repo().publish(&["root"]);
    served.repo().publish_all();
    assert_eq!(Client::of(&served).download(&served, PATH).await.unwrap(), CONTENT);
    let asked: Vec<_> = served.repo().asked.clone();
    let unversioned = ["timestamp", "snapshot", "targets", "delegated"].map(|role| (role.to_owned(), None));
    assert_eq!(asked[asked.len() - 4..], unversioned);
    assert_eq!(served.repo().fetched, [PATH]);
}
