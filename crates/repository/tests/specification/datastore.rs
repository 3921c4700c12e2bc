//! What is remembered, through a kill at any write: before each request everything that was accepted is on the disk, and from each
//! state in between the next update ends where an undisturbed one would.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bascule_repository::time::Now;
use bascule_repository::{DatastoreLocation, FetchError, Fetcher, OpenOptions, Repository, Transport};
use bytes::Bytes;
use chrono::TimeDelta;
use serde_json::{Value, json};
use url::Url;

use crate::client::{Client, category};
use crate::keys::TestKey;
use crate::simulator::{Served, Simulator, date, start};

/// Keeps the datastore's file as it is at each request.
#[derive(Debug)]
pub struct Watched {
    pub served: Served,
    pub state: std::path::PathBuf,
    pub seen: Mutex<Vec<Option<Vec<u8>>>>,
}

#[async_trait]
impl Transport for Watched {
    async fn get(&self, url: &Url, limit: u64, within: Duration) -> Result<Bytes, FetchError> {
        self.seen.lock().unwrap().push(std::fs::read(&self.state).ok());
        self.served.get(url, limit, within).await
    }
}

async fn open(
    client: &Client,
    fetcher: Fetcher,
    folder: &std::path::Path,
) -> Result<Repository, bascule_repository::Error> {
    Repository::open(OpenOptions {
        trust_root: client.trust_root.clone(),
        base: "memory://repository/".parse().unwrap(),
        datastore: DatastoreLocation::Persistent(folder.to_owned()),
        fetcher,
        now: Now::at(start()),
    })
    .await
}

fn versions(state: &[u8]) -> (Vec<u64>, [Option<u64>; 3]) {
    let state: Value = serde_json::from_slice(state).unwrap();
    let roots = state["roots"].as_object().unwrap().keys().map(|version| version.parse().unwrap()).collect();
    let version = |name: &str| {
        let file: Value = serde_json::from_str(state[name].as_str()?).unwrap();
        file["signed"]["version"].as_u64()
    };
    (roots, ["timestamp", "snapshot", "targets"].map(version))
}

/// An old state of the repository, and one with two new roots, of which the second replaces the timestamp's key.
fn old_and_new() -> (Served, Served) {
    let make = |new: bool| {
        let served = Served::new();
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        if new {
            served.repo().publish(&["root"]);
            served.repo().rotate("timestamp");
            served.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
        }
        served
    };
    (make(false), make(true))
}

#[tokio::test]
async fn what_was_accepted_is_on_the_disk_before_anything_else_is_asked_for() {
    let (old, new) = old_and_new();
    let client = Client::of(&old);
    let folder = tempfile::tempdir().unwrap();
    open(&client, Fetcher::Custom(Arc::new(old.clone())), folder.path()).await.unwrap();
    let state = folder.path().join("trusted.json");
    let watched = Arc::new(Watched { served: new.clone(), state: state.clone(), seen: Mutex::default() });
    open(&client, Fetcher::Custom(Arc::clone(&watched) as Arc<dyn Transport>), folder.path()).await.unwrap();
    let last = std::fs::read(&state).unwrap();
    let seen: Vec<Vec<u8>> = watched.seen.lock().unwrap().iter().flatten().cloned().collect();
    let known: Vec<_> = seen.iter().map(|state| versions(state)).collect();
    let two = Some(2);
    let expected = [
        (vec![1], [two, two, two]),
        (vec![1, 2], [two, two, two]),
        (vec![1, 2, 3], [two, two, two]),
        // 5.3.11
        (vec![1, 2, 3], [None, None, two]),
        (vec![1, 2, 3], [Some(3), None, two]),
        (vec![1, 2, 3], [Some(3), Some(3), two]),
    ];
    assert_eq!(known, expected);
    assert_eq!(versions(&last), (vec![1, 2, 3], [Some(3); 3]));

    // A kill at each write, which is atomic: the next update ends the same, and nothing that was known is forgotten.
    for (number, interrupted) in seen.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("trusted.json");
        std::fs::write(&state, interrupted).unwrap();
        open(&client, Fetcher::Custom(Arc::new(new.clone())), folder.path()).await.unwrap();
        assert_eq!(versions(&std::fs::read(&state).unwrap()), versions(&last), "after write {number}");
        // The old repository, replayed from here.
        std::fs::write(&state, interrupted).unwrap();
        let replayed = open(&client, Fetcher::Custom(Arc::new(old.clone())), folder.path()).await;
        let expected = if number < 2 { "nothing went wrong" } else { "signature" };
        assert_eq!(category(replayed), expected, "after write {number}");
    }
}

type Change = fn(&mut Simulator);

/// What a repository says next, and how an update to it ends.
const NEXT: [(&str, &str, Change); 9] = [
    ("the same", "nothing went wrong", |_| {}),
    ("an equal timestamp", "nothing went wrong", |repo| {
        repo.role("timestamp")["other"] = 1.into();
        repo.publish_as_it_is("timestamp");
    }),
    ("an expired timestamp", "expired", |repo| {
        expire(repo, "timestamp");
        repo.publish(&["targets", "snapshot", "timestamp"]);
    }),
    ("an expired snapshot", "expired", |repo| {
        expire(repo, "snapshot");
        repo.publish(&["targets", "snapshot", "timestamp"]);
    }),
    ("expired targets", "expired", |repo| {
        expire(repo, "targets");
        repo.publish(&["targets", "snapshot", "timestamp"]);
    }),
    ("an expired root that replaces a key", "expired", |repo| {
        expire(repo, "root");
        repo.rotate("timestamp");
        repo.publish(&["root", "timestamp"]);
    }),
    ("an older timestamp", "rollback", |repo| {
        repo.role("timestamp")["version"] = 1.into();
        repo.publish_as_it_is("timestamp");
    }),
    ("an older snapshot", "rollback", |repo| {
        repo.role("snapshot")["version"] = 1.into();
        repo.publish_as_it_is("snapshot");
        repo.publish(&["timestamp"]);
    }),
    ("older targets", "rollback", |repo| {
        repo.role("snapshot")["meta"]["targets.json"]["version"] = 1.into();
        repo.publish(&["snapshot", "timestamp"]);
    }),
];

fn expire(repo: &mut Simulator, role: &str) {
    repo.role(role)["expires"] = date(start() - TimeDelta::days(1));
}

/// However an update ends: killed at any write and begun again, it ends the same, and remembers the same.
#[tokio::test]
async fn an_update_that_is_refused_is_refused_the_same_after_a_kill_at_each_write() {
    for (what, expected, change) in NEXT {
        let served = Served::new();
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        let client = Client::of(&served);
        let folder = tempfile::tempdir().unwrap();
        open(&client, Fetcher::Custom(Arc::new(served.clone())), folder.path()).await.unwrap();
        change(&mut served.repo());
        let state = folder.path().join("trusted.json");
        let watched = Arc::new(Watched { served: served.clone(), state: state.clone(), seen: Mutex::default() });
        let transport = Arc::clone(&watched) as Arc<dyn Transport>;
        let outcome = open(&client, Fetcher::Custom(transport), folder.path()).await;
        assert_eq!(category(outcome), expected, "{what}");
        let last = versions(&std::fs::read(&state).unwrap());
        let seen: Vec<Vec<u8>> = watched.seen.lock().unwrap().drain(..).flatten().collect();
        assert!(seen.len() > 1, "{what}");
        for (number, interrupted) in seen.iter().enumerate() {
            std::fs::write(&state, interrupted).unwrap();
            let outcome = open(&client, Fetcher::Custom(Arc::new(served.clone())), folder.path()).await;
            assert_eq!(category(outcome), expected, "{what}, after write {number}");
            assert_eq!(versions(&std::fs::read(&state).unwrap()), last, "{what}, after write {number}");
        }
    }
}

#[tokio::test]
async fn what_is_remembered_adds_no_trust() {
    let (old, _) = old_and_new();
    let client = Client::of(&old);
    let folder = tempfile::tempdir().unwrap();
    let fetcher = || Fetcher::Custom(Arc::new(old.clone()));
    open(&client, fetcher(), folder.path()).await.unwrap();
    let path = folder.path().join("trusted.json");
    let good: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // Someone writes into it what nobody signed: it is not used, and the update goes on from the rest.
    for name in ["timestamp", "snapshot", "targets"] {
        let mut forged = good.clone();
        let text = good[name].as_str().unwrap().replace("2026-03-31", "2036-03-31");
        assert_ne!(good[name].as_str(), Some(text.as_str()));
        forged[name] = text.into();
        std::fs::write(&path, forged.to_string()).unwrap();
        open(&client, fetcher(), folder.path()).await.unwrap();
        let after: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(after[name], good[name], "{name}");
    }
    let foreign = {
        let other = Served::new();
        let mut repo = other.repo();
        repo.role("root")["roles"]["root"]["keyids"] = json!([]);
        repo.signers.remove("root");
        repo.add_this_key("root", &TestKey::ed25519(9100));
        repo.publish(&["root"]);
        Value::from(String::from_utf8(repo.published["root"][1].clone()).unwrap())
    };
    for root in [&good["timestamp"], &foreign] {
        let mut forged = good.clone();
        forged["roots"]["2"] = root.clone();
        std::fs::write(&path, forged.to_string()).unwrap();
        open(&client, fetcher(), folder.path()).await.unwrap();
        let after: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(after["roots"], good["roots"]);
    }
    assert_eq!(good["roots"].as_object().unwrap().keys().collect::<Vec<_>>(), ["1"]);
}
