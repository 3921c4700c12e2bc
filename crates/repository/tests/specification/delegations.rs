//! `test_updater_delegation_graphs.py` and `test_quoting_issues.py` of the conformance suite.

use bascule_repository::tuf::quote;
use serde_json::json;

use crate::client::{Client, category};
use crate::simulator::Served;

/// Delegator, role, whether it is terminating, and its paths.
type Edge = (&'static str, &'static str, bool, &'static [&'static str]);

const ANY: &[&str] = &["*"];

fn asked_after_the_top(served: &Served) -> Vec<(String, Option<u64>)> {
    served.repo().asked[4..].to_vec()
}

#[tokio::test]
async fn test_graph_traversal() {
    let cases: &[(&str, &[Edge], &[&str])] = &[
        ("basic-delegation", &[("targets", "A", false, ANY)], &["A"]),
        ("single-level-delegations", &[("targets", "A", false, ANY), ("targets", "B", false, ANY)], &["A", "B"]),
        (
            "two-level-delegations",
            &[("targets", "A", false, ANY), ("targets", "B", false, ANY), ("B", "C", false, ANY)],
            &["A", "B", "C"],
        ),
        (
            "two-level-test-DFS-order-of-traversal",
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("A", "C", false, ANY),
                ("A", "D", false, ANY),
            ],
            &["A", "C", "D", "B"],
        ),
        (
            "three-level-delegation-test-DFS-order-of-traversal",
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("A", "C", false, ANY),
                ("C", "D", false, ANY),
            ],
            &["A", "C", "D", "B"],
        ),
        (
            "two-level-terminating-ignores-all-but-roles-descendants",
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("A", "C", true, ANY),
                ("A", "D", false, ANY),
            ],
            &["A", "C"],
        ),
        (
            "three-level-terminating-ignores-all-but-roles-descendants",
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("A", "C", true, ANY),
                ("C", "D", false, ANY),
            ],
            &["A", "C", "D"],
        ),
        (
            "two-level-ignores-all-branches-not-matching-paths",
            &[("targets", "A", false, &["*.py"]), ("targets", "B", false, ANY), ("A", "C", false, ANY)],
            &["B"],
        ),
        (
            "three-level-ignores-all-branches-not-matching-paths",
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("A", "C", false, &["*.py"]),
                ("C", "D", false, ANY),
            ],
            &["A", "B"],
        ),
        (
            "cyclic-graph",
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("B", "C", false, ANY),
                ("C", "D", false, ANY),
                ("D", "B", false, ANY),
            ],
            &["A", "B", "C", "D"],
        ),
        (
            "two-roles-delegating-to-a-third",
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("B", "C", false, ANY),
                ("A", "C", false, ANY),
            ],
            &["A", "C", "B"],
        ),
        (
            "two-roles-delegating-to-a-third-different-paths",
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("B", "C", false, ANY),
                ("A", "C", false, &["*.py"]),
            ],
            &["A", "B", "C"],
        ),
    ];
    for (name, edges, visited) in cases {
        let served = Served::new();
        for (delegator, role, terminating, paths) in *edges {
            served.repo().delegate(delegator, role, paths, *terminating);
        }
        served.repo().publish_all();
        assert_eq!(category(Client::of(&served).download(&served, "missingpath").await), "absent", "{name}");
        let visited: Vec<_> = visited.iter().map(|role| ((*role).to_owned(), Some(1))).collect();
        assert_eq!(asked_after_the_top(&served), visited, "{name}");
    }
}

#[tokio::test]
async fn test_targetfile_search() {
    let cases: &[(&str, bool, &[&str])] = &[
        ("targetfile", true, &[]),
        ("README.md", true, &["A"]),
        ("releases/x/x_v1", true, &["B", "C"]),
        ("releases/y/y_v1.zip", true, &["B", "D"]),
        ("releases/z/z_v1.zip", false, &["B"]),
        ("releases/README.md", false, &[]),
        ("foo-1.tgz", true, &["A"]),
        ("foo-alpha.tgz", false, &[]),
        ("README.MD", false, &[]),
    ];
    let served = Served::new();
    {
        let mut repo = served.repo();
        repo.delegate("targets", "A", &["*.doc", "*.md", "foo-?.tgz"], false);
        repo.delegate("targets", "B", &["releases/*/*"], false);
        repo.delegate("B", "C", &["releases/x/*"], false);
        repo.delegate("B", "D", &["releases/y/*.zip"], false);
        let files = [
            ("targets", "targetfile"),
            ("A", "README.md"),
            ("A", "releases/README.md"),
            ("A", "foo-1.tgz"),
            ("A", "foo-alpha.tgz"),
            ("C", "releases/x/x_v1"),
            ("D", "releases/y/y_v1.zip"),
            ("D", "releases/z/z_v1.zip"),
        ];
        for (role, path) in files {
            repo.add_artifact(role, path, format!("{path} by {role}").as_bytes());
        }
        repo.publish_all();
    }
    for (path, found, visited) in cases {
        served.repo().asked.clear();
        let outcome = Client::of(&served).download(&served, path).await;
        assert_eq!(category(outcome), if *found { "nothing went wrong" } else { "absent" }, "{path}");
        let visited: Vec<_> = visited.iter().map(|role| ((*role).to_owned(), Some(1))).collect();
        assert_eq!(asked_after_the_top(&served), visited, "{path}");
    }
}

#[tokio::test]
async fn test_cached_role_is_verified_against_current_delegator() {
    let served = Served::new();
    {
        let mut repo = served.repo();
        repo.delegate("targets", "parent-a", &["team-a/*"], false);
        repo.delegate("targets", "parent-b", &["team-b/*"], false);
        let of_a = repo.delegate("parent-a", "release", &["team-a/*"], false);
        repo.delegate("parent-b", "release", &["team-b/*"], false);
        repo.signers.insert("release".to_owned(), vec![of_a]);
        repo.add_artifact("release", "team-a/file", b"trusted A");
        repo.add_artifact("release", "team-b/file", b"malicious B");
        repo.publish_all();
    }
    let client = Client::of(&served);
    // In one open repository, the good way first.
    let repository = client.refresh(&served).await.unwrap();
    let file = repository.find("team-a/file").await.unwrap();
    assert_eq!(repository.fetch(&file, 100).await.unwrap(), "trusted A");
    let refused = repository.find("team-b/file").await.unwrap_err();
    assert_eq!(refused.category(), "signature");
    assert!(refused.to_string().contains("release"), "{refused}");
    // And the other way round: what was refused for one does not harm the other.
    let repository = client.refresh(&served).await.unwrap();
    assert_eq!(category(repository.find("team-b/file").await), "signature");
    repository.find("team-a/file").await.unwrap();
}

#[tokio::test]
async fn test_delegation_not_in_snapshot() {
    let served = Served::new();
    served.repo().delegate("targets", "delegated", &["delegatedpath/*"], false);
    served.repo().delegate("targets", "sibling", &["other/*"], false);
    served.repo().add_artifact("sibling", "other/file", b"content");
    served.repo().publish(&["delegated", "sibling", "targets"]);
    served.repo().role("snapshot")["meta"].as_object_mut().unwrap().remove("delegated.json");
    served.repo().publish(&["snapshot", "timestamp"]);
    let client = Client::of(&served);
    client.refresh(&served).await.unwrap();
    served.repo().asked.clear();
    let refused = client.download(&served, "delegatedpath/foo").await.unwrap_err();
    assert_eq!(refused.category(), "absent");
    assert!(refused.to_string().contains("delegated"), "{refused}");
    assert_eq!(served.repo().asked, [("root".to_owned(), Some(2)), ("timestamp".to_owned(), None)]);
    // It takes nothing with it.
    assert_eq!(client.download(&served, "other/file").await.unwrap(), "content");
}

#[tokio::test]
async fn test_unusual_role_name() {
    for role in ["?", "#", "/delegatedrole", "../delegatedrole", "a.b", "ä", "a b", "%2e%2e"] {
        let served = Served::new();
        served.repo().delegate("targets", role, ANY, false);
        served.repo().publish_all();
        let repository = Client::of(&served).refresh(&served).await.unwrap();
        assert_eq!(category(repository.find("nonexistent target").await), "absent", "{role}");
        assert!(served.repo().asked.contains(&(quote(role), Some(1))), "{role}");
        assert_eq!(repository.delegated_roles()[0].role, role);
    }
}

#[tokio::test]
async fn what_a_delegation_must_not_say_is_refused() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change); 4] = [
        ("unacceptable", |roles| {
            let twice = roles[0].clone();
            roles.as_array_mut().unwrap().push(twice);
        }),
        ("unacceptable", |roles| roles[0]["path_hash_prefixes"] = json!([""])),
        ("format", |roles| roles[0]["threshold"] = 0.into()),
        ("unacceptable", |roles| roles[0]["name"] = "timestamp".into()),
    ];
    for (fault, change) in cases {
        let served = Served::new();
        served.repo().delegate("targets", "A", ANY, false);
        served.repo().publish_all();
        change(&mut served.repo().role("targets")["delegations"]["roles"]);
        served.repo().publish(&["targets", "snapshot", "timestamp"]);
        assert_eq!(category(Client::of(&served).download(&served, "file").await), fault);
    }
}
