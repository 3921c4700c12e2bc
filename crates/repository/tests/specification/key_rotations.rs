//! `test_updater_key_rotations.py` of the conformance suite.

use serde_json::json;

use crate::client::{Client, category};
use crate::keys::TestKey;
use crate::simulator::Served;

/// Keys of a role, its threshold, and who signs.
type Version = (&'static [u32], u64, &'static [u32]);

const ALL: &[u32] = &[0, 1, 2, 3, 4];
const ONE_NEW: &[u32] = &[0, 1, 3, 4, 5];

fn set_keys(served: &Served, role: &str, (keys, threshold, signers): Version) {
    let key = |number: &u32| TestKey::ed25519(2000 + number);
    let mut repo = served.repo();
    repo.role("root")["roles"][role] = json!({"keyids": [], "threshold": threshold});
    for key in keys.iter().map(key) {
        repo.add_this_key(role, &key);
    }
    repo.signers.insert(role.to_owned(), signers.iter().map(key).collect());
}

#[tokio::test]
async fn test_root_rotation() {
    let cases: &[(&str, &[Version], bool)] = &[
        ("1-of-1-key-rotation", &[(&[1], 1, &[1]), (&[2], 1, &[2, 1]), (&[2], 1, &[2])], true),
        (
            "1-of-1-key-rotation-unused-signatures",
            &[(&[1], 1, &[3, 1, 4]), (&[2], 1, &[3, 2, 1, 4]), (&[2], 1, &[3, 2, 4])],
            true,
        ),
        (
            "3-of-5-sign-with-different-keycombos",
            &[(ALL, 3, &[0, 2, 4]), (ALL, 3, &[0, 4, 1]), (ALL, 3, &[0, 1, 3]), (ALL, 3, &[0, 1, 3])],
            true,
        ),
        ("3-of-5-one-key-rotated", &[(ALL, 3, &[0, 2, 4]), (ONE_NEW, 3, &[0, 4, 1])], true),
        (
            "3-of-5-one-key-rotated-with-intermediate-step",
            &[(ALL, 3, &[0, 2, 4]), (ONE_NEW, 3, &[0, 2, 4, 5]), (ONE_NEW, 3, &[0, 4, 5])],
            true,
        ),
        (
            "3-of-5-all-keys-rotated-with-intermediate-step",
            &[(ALL, 3, &[0, 2, 4]), (&[5, 6, 7, 8, 9], 3, &[0, 2, 4, 5, 6, 7]), (&[5, 6, 7, 8, 9], 3, &[5, 6, 7])],
            true,
        ),
        ("1-of-3-threshold-increase-to-2-of-3", &[(&[1, 2, 3], 1, &[1]), (&[1, 2, 3], 2, &[1, 2])], true),
        (
            "2-of-3-threshold-decrease-to-1-of-3",
            &[(&[1, 2, 3], 2, &[1, 2]), (&[1, 2, 3], 1, &[1, 2]), (&[1, 2, 3], 1, &[1])],
            true,
        ),
        ("1-of-2-threshold-increase-to-2-of-2", &[(&[1], 1, &[1]), (&[1, 2], 2, &[1, 2])], true),
        ("1-of-1-key-rotation-fail-not-signed-with-old-key", &[(&[1], 1, &[1]), (&[2], 1, &[2, 3, 4])], false),
        ("1-of-1-key-rotation-fail-not-signed-with-new-key", &[(&[1], 1, &[1]), (&[2], 1, &[1, 3, 4])], false),
        (
            "3-of-5-one-key-rotate-fails-not-signed-with-3-new-keys",
            &[(ALL, 3, &[0, 2, 4]), (ONE_NEW, 3, &[0, 2, 4])],
            false,
        ),
        (
            "3-of-5-one-key-rotate-fails-not-signed-with-3-old-keys",
            &[(ALL, 3, &[0, 2, 4]), (ONE_NEW, 3, &[0, 4, 5])],
            false,
        ),
        (
            "1-of-3-threshold-bump-to-2-of-3-fails-new-threshold-not-reached",
            &[(&[1, 2, 3], 1, &[1]), (&[1, 2, 3], 2, &[2])],
            false,
        ),
        (
            "2-of-3-threshold-decr-to-1-of-3-fails-old-threshold-not-eached",
            &[(&[1, 2, 3], 2, &[1, 2]), (&[1, 2, 3], 1, &[1])],
            false,
        ),
    ];
    for (name, versions, good) in cases {
        let served = Served::new();
        served.repo().published.remove("root");
        served.repo().role("root")["version"] = 1.into();
        for version in *versions {
            set_keys(&served, "root", *version);
            served.repo().publish(&["root"]);
        }
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        let client = Client::of(&served);
        let outcome = client.refresh(&served).await;
        let expected = if *good { "nothing went wrong" } else { "signature" };
        assert_eq!(category(outcome), expected, "{name}");
        let last = versions.len() - usize::from(!good);
        assert_eq!(client.trusted("root").as_ref(), served.repo().published["root"].get(last - 1), "{name}");
    }
}

#[tokio::test]
async fn test_non_root_rotations() {
    let cases: &[(&str, Version, bool)] = &[
        ("1-of-1-key-rotation", (&[2], 1, &[2]), true),
        ("1-of-1-key-rotation-unused-signatures", (&[1], 1, &[3, 1, 4]), true),
        ("1-of-1-key-rotation-fail-not-signed-with-new-key", (&[2], 1, &[1, 3, 4]), false),
        ("3-of-5-one-key-signature-wrong-not-signed-with-3-expected-keys", (ONE_NEW, 3, &[0, 2, 4]), false),
        ("2-of-5-one-key-signature-mising-threshold-not-reached", (ONE_NEW, 3, &[0, 4]), false),
        ("3-of-5-sign-first-combo", (ALL, 3, &[0, 2, 4]), true),
        ("3-of-5-sign-second-combo", (ALL, 3, &[0, 4, 1]), true),
        ("3-of-5-sign-third-combo", (ALL, 3, &[0, 1, 3]), true),
        ("3-of-5-sign-fourth-combo", (ALL, 3, &[1, 2, 3]), true),
        ("3-of-5-sign-fifth-combo", (ALL, 3, &[2, 3, 4]), true),
    ];
    for (name, version, good) in cases {
        let served = Served::new();
        let client = Client::of(&served);
        for role in ["timestamp", "snapshot", "targets"] {
            set_keys(&served, role, *version);
            served.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
            let outcome = client.refresh(&served).await;
            let expected = if *good { "nothing went wrong" } else { "signature" };
            assert_eq!(category(outcome), expected, "{name} {role}");
            if *good {
                assert_eq!(client.trusted(role).as_ref(), served.repo().published[role].last(), "{name} {role}");
            }
        }
    }
}

/// 5.3.3: after Y roots the update goes on with the last of them, and the next one follows the rest.
#[tokio::test]
async fn more_roots_than_one_update_follows() {
    let served = Served::new();
    for _ in 0..299 {
        served.repo().publish(&["root"]);
    }
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.versions(), [Some(257), Some(1), Some(1), Some(1)]);
    client.refresh(&served).await.unwrap();
    assert_eq!(client.version("root"), Some(300));
}
