//! `test_expiration.py` of the conformance suite. (`test_faketime` is about the suite's own tool.)

use chrono::TimeDelta;

use crate::client::{Client, category};
use crate::simulator::{Served, date, start};

fn days(count: i64) -> serde_json::Value {
    date(start() + TimeDelta::days(count))
}

#[tokio::test]
async fn test_root_expired() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().publish(&["root"]);
    client.refresh(&served).await.unwrap();
    served.repo().role("root")["expires"] = days(-1);
    served.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
    let asked = served.repo().asked.len();
    assert_eq!(category(client.refresh(&served).await), "expired");
    assert_eq!(client.versions(), [Some(3), Some(1), Some(1), Some(1)]);
    // Nothing was fetched after it.
    let after: Vec<_> = served.repo().asked[asked..].iter().map(|(role, _)| role.clone()).collect();
    assert_eq!(after, ["root", "root"]);
}

#[tokio::test]
async fn test_timestamp_expired() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().role("timestamp")["expires"] = days(-5);
    served.repo().publish(&["timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "expired");
    assert_eq!(client.versions(), [Some(1); 4]);
    assert_eq!(served.repo().asked.last(), Some(&("timestamp".to_owned(), None)));
    // What was refused is not remembered: an older one that is valid is no rollback.
    served.repo().published.get_mut("timestamp").unwrap().pop();
    client.refresh(&served).await.unwrap();
}

#[tokio::test]
async fn test_snapshot_expired() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().role("snapshot")["expires"] = days(-5);
    served.repo().publish(&["snapshot", "timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "expired");
    assert_eq!(client.versions(), [Some(1), Some(1), Some(1), Some(2)]);
}

#[tokio::test]
async fn test_targets_expired() {
    let served = Served::new();
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().role("targets")["expires"] = days(-5);
    served.repo().publish(&["targets", "snapshot", "timestamp"]);
    assert_eq!(category(client.refresh(&served).await), "expired");
    assert_eq!(client.versions(), [Some(1), Some(2), Some(1), Some(2)]);
}

#[tokio::test]
async fn test_expired_local_root() {
    let served = Served::new();
    let mut client = Client::of(&served);
    served.repo().role("root")["expires"] = days(7);
    served.repo().publish(&["root"]);
    client.refresh(&served).await.unwrap();
    served.repo().role("root")["expires"] = days(21);
    served.repo().publish(&["root"]);
    client.now = start() + TimeDelta::days(18);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.version("root"), Some(3));
}

#[tokio::test]
async fn test_expired_local_timestamp() {
    let served = Served::new();
    let mut client = Client::of(&served);
    served.repo().role("timestamp")["expires"] = days(7);
    served.repo().publish(&["timestamp"]);
    client.refresh(&served).await.unwrap();
    served.repo().role("timestamp")["expires"] = days(21);
    served.repo().publish(&["targets", "snapshot", "timestamp"]);
    client.now = start() + TimeDelta::days(18);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.versions(), [Some(1), Some(2), Some(2), Some(3)]);
}

#[tokio::test]
async fn what_is_remembered_and_has_expired_meanwhile_is_refused_without_asking_for_more() {
    for (role, last) in [("timestamp", "timestamp"), ("snapshot", "timestamp"), ("targets", "timestamp")] {
        let served = Served::new();
        let mut client = Client::of(&served);
        served.repo().role(role)["expires"] = days(7);
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        client.refresh(&served).await.unwrap();
        client.now = start() + TimeDelta::days(8);
        // Signed as the newest still.
        match client.refresh(&served).await {
            Err(bascule_repository::Error::Expired { role: expired, .. }) => assert_eq!(expired, role),
            other => panic!("{other:?}"),
        }
        assert_eq!(served.repo().asked.last().unwrap().0, last, "{role}");
    }
}
