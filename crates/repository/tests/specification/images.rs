//! OS images with trust roots of their own, forward and back: what was trusted under one holds under each other of the same vendor, so
//! that keys which were revoked in between stay revoked. A vendor who begins anew is not held up by what was.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bascule_repository::time::Now;
use bascule_repository::{DatastoreLocation, Error, Fetcher, OpenOptions, Repository, Transport};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::category;
use crate::datastore::Watched;
use crate::keys::TestKey;
use crate::simulator::{Served, sign, start};

/// A node with two slots: one memory, whichever image runs.
struct TwoSlots {
    folder: TempDir,
}

impl TwoSlots {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("trusted.json")
    }

    fn put(&self, state: &[u8]) {
        std::fs::write(self.state(), state).unwrap();
    }

    /// An update of the image with this trust root.
    async fn run(&self, trust_root: &[u8], served: &Served) -> Result<Repository, Error> {
        open(trust_root, Fetcher::Custom(Arc::new(served.clone())), self.folder.path()).await
    }

    /// The same; each state that the disk is in on the way, the last one too.
    async fn run_and_watch(&self, trust_root: &[u8], served: &Served) -> (Result<Repository, Error>, Vec<Vec<u8>>) {
        let watched = Arc::new(Watched { served: served.clone(), state: self.state(), seen: Mutex::default() });
        let transport = Arc::clone(&watched) as Arc<dyn Transport>;
        let outcome = open(trust_root, Fetcher::Custom(transport), self.folder.path()).await;
        let mut states: Vec<Vec<u8>> = watched.seen.lock().unwrap().drain(..).flatten().collect();
        states.push(std::fs::read(self.state()).unwrap());
        (outcome, states)
    }

    /// Versions of timestamp and snapshot that are remembered.
    fn versions(&self) -> [Option<u64>; 2] {
        let state: Value = serde_json::from_slice(&std::fs::read(self.state()).unwrap()).unwrap();
        ["timestamp", "snapshot"].map(|name| {
            let file: Value = serde_json::from_str(state[name].as_str()?).unwrap();
            file["signed"]["version"].as_u64()
        })
    }

    fn roots(&self) -> Vec<String> {
        let state: Value = serde_json::from_slice(&std::fs::read(self.state()).unwrap()).unwrap();
        state["roots"].as_object().unwrap().keys().cloned().collect()
    }
}

async fn open(trust_root: &[u8], fetcher: Fetcher, folder: &Path) -> Result<Repository, Error> {
    Repository::open(OpenOptions {
        trust_root: trust_root.to_vec(),
        base: "memory://repository/".parse().unwrap(),
        datastore: DatastoreLocation::Persistent(folder.to_owned()),
        fetcher,
        now: Now::at(start()),
    })
    .await
}

/// A vendor who published `before` times, then revoked the keys of timestamp and snapshot with each of `roots` new roots, and published again.
fn vendor(before: usize, roots: usize) -> Served {
    let served = Served::new();
    {
        let mut repo = served.repo();
        for _ in 0..before {
            repo.publish(&["targets", "snapshot", "timestamp"]);
        }
        for _ in 0..roots {
            repo.rotate("timestamp");
            repo.rotate("snapshot");
            repo.publish(&["root", "targets", "snapshot", "timestamp"]);
        }
    }
    served
}

fn root(served: &Served, version: usize) -> Vec<u8> {
    served.repo().published["root"][version - 1].clone()
}

#[tokio::test]
async fn going_back_to_an_older_image_does_not_bring_revoked_keys_back() {
    let (old, new) = (vendor(3, 0), vendor(5, 1));
    let (first, second) = (root(&new, 1), root(&new, 2));
    let node = TwoSlots::new();
    node.run(&first, &new).await.unwrap();
    assert_eq!(node.versions(), [Some(7), Some(7)]);
    assert_eq!(category(node.run(&first, &old).await), "signature");
    // The next image, and back to the other slot.
    node.run(&second, &new).await.unwrap();
    assert_eq!(category(node.run(&first, &old).await), "signature");
    assert_eq!(node.versions(), [Some(7), Some(7)]);
    node.run(&first, &new).await.unwrap();
    assert_eq!(node.roots(), ["1", "2"]);
}

#[tokio::test]
async fn images_go_forward_and_back_with_a_kill_at_each_write() {
    let (old, new) = (vendor(3, 0), vendor(5, 3));
    let images: Vec<Vec<u8>> = (1..=4).map(|version| root(&new, version)).collect();
    let node = TwoSlots::new();
    node.run(&images[0], &old).await.unwrap();
    let mut states = Vec::new();
    for (number, image) in [0, 3, 0, 3, 1, 2, 0].into_iter().enumerate() {
        let (outcome, seen) = node.run_and_watch(&images[image], &new).await;
        outcome.unwrap();
        // From the end of the first of them on, the old keys are known to be revoked.
        states.extend(seen.into_iter().map(|state| (number > 0, state)));
    }
    let last = node.versions();
    assert_eq!(last, [Some(9), Some(9)]);
    let seen: std::collections::BTreeMap<Vec<u8>, bool> =
        states.into_iter().map(|(later, state)| (state, later)).collect();
    assert!(seen.len() > 6, "{} states", seen.len());
    for (state, later) in &seen {
        for image in &images {
            // Powered off here; then the network is the attacker's, then the vendor's.
            node.put(state);
            let replayed = node.run(image, &old).await;
            if *later || image != &images[0] {
                assert!(matches!(category(replayed), "signature" | "rollback"));
                let kept = node.versions();
                assert!(kept[0].is_none_or(|version| version >= 4), "{kept:?}");
            }
            node.run(image, &new).await.unwrap();
            assert_eq!(node.versions(), last);
        }
    }
}

/// The image brings a root that is several versions ahead of all that the node has seen.
#[tokio::test]
async fn an_image_far_ahead_is_what_an_older_image_has_to_reach() {
    let (old, new) = (vendor(3, 0), vendor(5, 4));
    let (first, last) = (root(&new, 1), root(&new, 5));
    let node = TwoSlots::new();
    node.run(&first, &old).await.unwrap();
    node.run(&last, &new).await.unwrap();
    assert_eq!(node.roots(), ["1", "5"]);
    let refused = node.run(&first, &old).await.unwrap_err();
    assert_eq!(refused.category(), "rollback", "{refused}");
    assert!(refused.to_string().contains("root version 5") && refused.to_string().contains("version 1"), "{refused}");
    // Also where the server gives some of them.
    let part = vendor(5, 4);
    part.repo().published.get_mut("root").unwrap().truncate(3);
    assert_eq!(category(node.run(&first, &part).await), "rollback");
    assert_eq!(node.versions(), [Some(10), Some(10)]);
    node.run(&first, &new).await.unwrap();
    assert_eq!(node.roots(), ["1", "2", "3", "4", "5"]);
    // An image that is older than all that ran here, of the same root keys.
    let node = TwoSlots::new();
    node.run(&last, &new).await.unwrap();
    assert_eq!(category(node.run(&root(&new, 3), &old).await), "rollback");
    node.run(&root(&new, 3), &new).await.unwrap();
}

/// Who holds the root keys of before makes other roots than those that the vendor made.
#[tokio::test]
async fn revoked_root_keys_can_not_lead_an_older_image_past_the_root_that_revokes_them() {
    const VENDOR: u32 = 7001;
    // Four roots: who may sign the third and the fourth, and whether the third says something else than the vendor's.
    let make = |third: Option<u32>, fourth: u32, other: bool| {
        let served = Served::new();
        let mut repo = served.repo();
        let old = repo.signers["root"][0].clone();
        repo.publish(&["root"]);
        if other {
            repo.rotate("snapshot");
        }
        for key in [third, Some(fourth)] {
            if let Some(key) = key {
                repo.role("root")["roles"]["root"]["keyids"] = json!([]);
                repo.signers.insert("root".to_owned(), vec![old.clone()]);
                repo.add_this_key("root", &TestKey::ed25519(key));
            }
            repo.publish(&["root"]);
        }
        repo.publish(&["targets", "snapshot", "timestamp"]);
        drop(repo);
        served
    };
    let honest = make(None, VENDOR, false);
    let first = root(&honest, 1);
    for thief in [make(Some(THIEF), THIEF, false), make(None, THIEF, true)] {
        let node = TwoSlots::new();
        node.run(&first, &Served::new()).await.unwrap();
        node.run(&root(&honest, 4), &honest).await.unwrap();
        assert_eq!(node.roots(), ["1", "4"]);
        let refused = node.run(&first, &thief).await.unwrap_err();
        assert_eq!(refused.category(), "rollback", "{refused}");
        node.run(&first, &honest).await.unwrap();
        node.run(&root(&honest, 4), &honest).await.unwrap();
    }
}

const THIEF: u32 = 7002;
/// Signs the third root beside the key that the fourth revokes.
const SECOND: u32 = 7003;

/// A vendor whose fourth root revokes the first one's root key and the timestamp's and snapshot's keys. `published`: so far.
fn vendor_who_revokes_root_keys(published: usize) -> Served {
    let served = Served::new();
    let mut repo = served.repo();
    let stolen = repo.signers["root"][0].clone();
    for number in 2..=published {
        match number {
            3 => {
                repo.add_this_key("root", &TestKey::ed25519(SECOND));
                repo.role("root")["roles"]["root"]["threshold"] = 2.into();
            }
            4 => {
                repo.rotate("timestamp");
                repo.rotate("snapshot");
                repo.role("root")["roles"]["root"] = json!({"keyids": [], "threshold": 1});
                repo.signers.insert("root".to_owned(), vec![stolen.clone(), TestKey::ed25519(SECOND)]);
                repo.add_this_key("root", &TestKey::ed25519(7001));
            }
            _ => {}
        }
        repo.publish(&["root", "targets", "snapshot", "timestamp"]);
    }
    drop(repo);
    served
}

/// Roots after the first by who stole its key: `number` of them, the last one signed by `last` beside the stolen key, and nothing new otherwise.
fn roots_of_a_thief(number: usize, last: Option<u32>) -> Served {
    let served = vendor_who_revokes_root_keys(1);
    let mut repo = served.repo();
    repo.role("root")["forged"] = true.into();
    for made in 1..=number {
        if let Some(key) = last.filter(|_| made == number) {
            repo.role("root")["roles"]["root"]["keyids"] = json!([]);
            repo.add_this_key("root", &TestKey::ed25519(key));
        }
        repo.publish(&["root"]);
    }
    drop(repo);
    served
}

/// Whoever holds a root key that the newest root revoked, and the network, ends without a trace: each image goes on with the vendor, and none
/// takes what the revoked keys sign.
#[tokio::test]
async fn roots_below_the_newest_leave_nothing_behind_that_stands_in_the_way_of_the_honest_ones() {
    let honest = vendor_who_revokes_root_keys(4);
    let replays: Vec<Served> = (1..=3).map(vendor_who_revokes_root_keys).collect();
    let images: Vec<Vec<u8>> = (1..=4).map(|version| root(&honest, version)).collect();
    // One that leads nowhere, one of the stolen key alone, and one that leads to the vendor's fourth, without a signature that it has no need of.
    let closed = roots_of_a_thief(2, None);
    {
        let mut stripped: Value = serde_json::from_slice(&images[3]).unwrap();
        let signatures = stripped["signatures"].as_array_mut().unwrap();
        signatures.retain(|signature| signature["keyid"] != TestKey::ed25519(SECOND).id());
        assert_eq!(signatures.len(), 2);
        let mut repo = closed.repo();
        repo.published.get_mut("root").unwrap().push(serde_json::to_vec(&stripped).unwrap());
        for role in ["timestamp", "snapshot", "targets"] {
            let files = honest.repo().published[role].clone();
            repo.published.insert(role.to_owned(), files);
        }
    }
    let thieves = [
        (roots_of_a_thief(1, Some(THIEF)), "rollback", vec!["1", "4"]),
        (roots_of_a_thief(3, None), "rollback", vec!["1", "4"]),
        (closed, "nothing went wrong", vec!["1", "2", "3", "4"]),
    ];
    for (number, (thief, expected, left)) in thieves.into_iter().enumerate() {
        let node = TwoSlots::new();
        node.run(&images[3], &honest).await.unwrap();
        assert_eq!(category(node.run(&images[0], &thief).await), expected, "thief {number}");
        assert_eq!(node.roots(), left, "thief {number}");
        let mut states = vec![std::fs::read(node.state()).unwrap()];
        // What the version before this one left behind.
        let mut left: Value = serde_json::from_slice(&states[0]).unwrap();
        left["roots"]["2"] = String::from_utf8(root(&thief, 2)).unwrap().into();
        states.push(left.to_string().into_bytes());
        let last = node.versions();
        for state in states {
            for (version, image) in (1..).zip(&images) {
                let shown = format!("thief {number}, image {version}");
                node.put(&state);
                for replay in &replays {
                    let replayed = category(node.run(image, replay).await);
                    assert!(matches!(replayed, "rollback" | "signature"), "{shown}: {replayed}");
                    assert_eq!(node.versions(), last, "{shown}");
                }
                for next in [image, &images[0], &images[2], &images[1], &images[3]] {
                    node.run(next, &honest).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
                    assert_eq!(node.versions(), last, "{shown}");
                    let replayed = category(node.run(next, &replays[2]).await);
                    assert!(matches!(replayed, "rollback" | "signature"), "{shown}: {replayed}");
                }
            }
        }
    }
}

/// The newest root does not bear the stolen key's signature until the thief adds it.
#[tokio::test]
async fn a_signature_that_a_thief_adds_to_the_newest_root_does_not_lead_to_it() {
    // The second root replaces the first one's key, the fourth the second one's.
    let vendor = |published: usize| {
        let served = Served::new();
        let mut repo = served.repo();
        for number in 2..=published {
            if number % 2 == 0 {
                let old = repo.signers["root"].last().unwrap().clone();
                repo.rotate("timestamp");
                repo.rotate("snapshot");
                repo.role("root")["roles"]["root"]["keyids"] = json!([]);
                repo.signers.insert("root".to_owned(), vec![old]);
                repo.add_this_key("root", &TestKey::ed25519(7100 + u32::try_from(number).unwrap()));
            } else {
                let newest = repo.signers["root"].last().unwrap().clone();
                repo.signers.insert("root".to_owned(), vec![newest]);
            }
            repo.publish(&["root", "targets", "snapshot", "timestamp"]);
        }
        drop(repo);
        served
    };
    let honest = vendor(4);
    let thief = roots_of_a_thief(2, None);
    {
        let mut repo = thief.repo();
        let mut fourth: Value = serde_json::from_slice(&root(&honest, 4)).unwrap();
        let added: Value = serde_json::from_slice(&sign(&fourth["signed"], &repo.signers["root"])).unwrap();
        fourth["signatures"].as_array_mut().unwrap().push(added["signatures"][0].clone());
        repo.published.get_mut("root").unwrap().push(serde_json::to_vec(&fourth).unwrap());
        for role in ["timestamp", "snapshot", "targets"] {
            let files = honest.repo().published[role].clone();
            repo.published.insert(role.to_owned(), files);
        }
    }
    let node = TwoSlots::new();
    node.run(&root(&honest, 1), &vendor(2)).await.unwrap();
    node.run(&root(&honest, 4), &honest).await.unwrap();
    assert_eq!(node.roots(), ["1", "2", "4"]);
    assert_eq!(category(node.run(&root(&honest, 1), &thief).await), "rollback");
    assert_eq!(node.roots(), ["1", "2", "4"]);
    let mut states = vec![std::fs::read(node.state()).unwrap()];
    // Nor where the node has the newest root from him, with his signature: then it follows from roots of his.
    let honest = vendor(5);
    let signed_by_thief = |number: usize| {
        let mut fifth: Value = serde_json::from_slice(&root(&honest, number)).unwrap();
        let added: Value = serde_json::from_slice(&sign(&fifth["signed"], &thief.repo().signers["root"])).unwrap();
        fifth["signatures"].as_array_mut().unwrap().push(added["signatures"][0].clone());
        serde_json::to_vec(&fifth).unwrap()
    };
    let (signs, leads) = (vendor(5), roots_of_a_thief(3, None));
    signs.repo().published.get_mut("root").unwrap()[4] = signed_by_thief(5);
    leads.repo().published.get_mut("root").unwrap().push(signed_by_thief(5));
    for role in ["timestamp", "snapshot", "targets"] {
        let files = honest.repo().published[role].clone();
        leads.repo().published.insert(role.to_owned(), files);
    }
    node.run(&root(&honest, 4), &signs).await.unwrap();
    node.run(&root(&honest, 1), &leads).await.unwrap();
    assert_eq!(node.roots(), ["1", "2", "3", "4", "5"]);
    states.push(std::fs::read(node.state()).unwrap());
    for (state, version) in states.iter().flat_map(|state| (1..=4).map(move |version| (state, version))) {
        node.put(state);
        let replayed = category(node.run(&root(&honest, version), &vendor(3)).await);
        assert!(matches!(replayed, "rollback" | "signature"), "image {version}: {replayed}");
        node.run(&root(&honest, version), &honest).await.unwrap();
    }
}

/// The root keys are lost, and the next image brings the root of a repository that was made anew: neither holds up the other, whatever the versions are.
#[tokio::test]
async fn a_vendor_who_begins_anew_is_not_held_up_by_what_was() {
    let one = vendor(5, 3);
    let other = {
        let served = Served::new();
        let mut repo = served.repo();
        for role in ["root", "timestamp", "snapshot", "targets"] {
            repo.role("root")["roles"][role]["keyids"] = json!([]);
            repo.signers.remove(role);
            repo.published.remove(role);
            repo.role(role)["version"] = 1.into();
            let key = TestKey::ed25519(9000 + u32::try_from(role.len()).unwrap());
            repo.add_this_key(role, &key);
        }
        repo.publish(&["root", "targets", "snapshot", "timestamp"]);
        repo.publish(&["root"]);
        repo.publish(&["root"]);
        drop(repo);
        served
    };
    for (mine, theirs) in [(1, 1), (4, 1), (4, 3), (1, 3), (2, 3)] {
        let node = TwoSlots::new();
        for _ in 0..2 {
            node.run(&root(&one, mine), &one).await.unwrap();
            node.run(&root(&other, theirs), &other).await.unwrap();
        }
    }
}

/// What the version before this one wrote: the roots after the trust root, without it.
#[tokio::test]
async fn a_memory_without_the_trust_root_is_taken_over() {
    let (old, new) = (vendor(3, 0), vendor(5, 1));
    let node = TwoSlots::new();
    node.run(&root(&new, 1), &new).await.unwrap();
    let mut state: Value = serde_json::from_slice(&std::fs::read(node.state()).unwrap()).unwrap();
    state["roots"].as_object_mut().unwrap().remove("1").unwrap();
    for image in [1, 2] {
        node.put(state.to_string().as_bytes());
        node.run(&root(&new, image), &new).await.unwrap();
        assert_eq!(category(node.run(&root(&new, 1), &old).await), "signature");
        assert_eq!(node.versions(), [Some(7), Some(7)]);
    }
}

/// 5.3.3: what one update reads does not reach the newest root that is known. That is no fault of the repository's.
#[tokio::test]
async fn an_image_that_is_too_many_roots_behind_is_told_so() {
    let served = Served::new();
    for _ in 0..299 {
        served.repo().publish(&["root"]);
    }
    let (first, last) = {
        let roots = &served.repo().published["root"];
        (roots[0].clone(), roots[299].clone())
    };
    let slots = TwoSlots::new();
    slots.run(&last, &served).await.unwrap();
    let refused = slots.run(&first, &served).await.unwrap_err();
    assert!(matches!(refused, Error::Limit { .. }), "{refused}");
    assert!(refused.to_string().contains("ship a newer trust root"), "{refused}");
    slots.run(&last, &served).await.unwrap();
}
