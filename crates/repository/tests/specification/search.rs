//! Random graphs of delegations, with random faults, against a literal model of 5.6.7: the same answer, and the same roles asked in
//! the same order.

use std::collections::BTreeSet;

use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::client::Client;
use crate::simulator::{Served, Simulator, date, start};

const ROLES: [&str; 6] = ["A", "B", "C", "D", "E", "F"];
/// Patterns, and which of the two paths each of them covers.
const PATTERNS: [(&str, [bool; 2]); 5] = [
    ("*", [true, false]),
    ("x/*", [false, true]),
    ("file", [true, false]),
    ("?/f*e", [false, true]),
    ("*/*/*", [false, false]),
];
const PATHS: [&str; 2] = ["file", "x/file"];

#[derive(Debug, PartialEq)]
enum Found {
    By(String),
    Nowhere,
    Trouble(String),
}

/// What one role's faults are to those who come through a certain delegator.
struct Story {
    edges: Vec<(String, String, bool, usize)>,
    files: Vec<(String, usize)>,
    broken: BTreeSet<String>,
    /// Which delegator's key has signed a role: the others' delegations don't verify it.
    signer: Vec<(String, usize)>,
}

impl Story {
    /// 5.6.7, as it stands there: pre-order, depth first; `None`: go on with the next delegation.
    fn search(&self, role: &str, path: usize, visited: &mut Vec<String>) -> Result<Option<Found>, ()> {
        if self.files.iter().any(|(owner, file)| owner == role && *file == path) {
            return Ok(Some(Found::By(role.to_owned())));
        }
        for (number, (delegator, name, terminating, pattern)) in self.edges.iter().enumerate() {
            if delegator != role || !PATTERNS[*pattern].1[path] {
                continue;
            }
            // 5.6.7.1: skipped, but the delegation may still be terminating.
            if !visited.contains(name) {
                visited.push(name.clone());
                let signed = self.signer.iter().any(|(signed, by)| signed == name && *by == number);
                if self.broken.contains(name) || !signed {
                    return Ok(Some(Found::Trouble(name.clone())));
                }
                if let Some(found) = self.search(name, path, visited)? {
                    return Ok(Some(found));
                }
            }
            if *terminating {
                // 5.6.7.2.1: nothing after it is asked, on no level.
                return Err(());
            }
        }
        Ok(None)
    }
}

fn random_story(random: &mut ChaCha8Rng, repo: &mut Simulator) -> Story {
    let mut story = Story { edges: Vec::new(), files: Vec::new(), broken: BTreeSet::new(), signer: Vec::new() };
    let mut keys = Vec::new();
    for _ in 0..random.random_range(2..9) {
        let from = if story.edges.is_empty() || random.random_bool(0.4) {
            "targets".to_owned()
        } else {
            story.edges.choose(random).unwrap().1.clone()
        };
        let to = (*ROLES.choose(random).unwrap()).to_owned();
        if from == to || story.edges.iter().any(|(delegator, name, ..)| *delegator == from && *name == to) {
            continue;
        }
        let (terminating, pattern) = (random.random_bool(0.2), random.random_range(0..PATTERNS.len()));
        keys.push(repo.delegate(&from, &to, &[PATTERNS[pattern].0], terminating));
        story.edges.push((from, to, terminating, pattern));
    }
    let roles: BTreeSet<String> = story.edges.iter().map(|(_, name, ..)| name.clone()).collect();
    for role in roles {
        for (path, name) in PATHS.iter().enumerate() {
            if random.random_bool(0.2) {
                repo.add_artifact(&role, name, format!("{name} by {role}").as_bytes());
                story.files.push((role.clone(), path));
            }
        }
        // Signed for all delegators, or for the first one alone.
        let into: Vec<usize> = (0..story.edges.len()).filter(|edge| story.edges[*edge].1 == role).collect();
        let valid = if random.random_bool(0.3) { into[..1].to_vec() } else { into };
        repo.signers.insert(role.clone(), valid.iter().map(|edge| keys[*edge].clone()).collect());
        story.signer.extend(valid.into_iter().map(|edge| (role.clone(), edge)));
        if random.random_bool(0.1) {
            repo.role(&role)["expires"] = date(start());
            story.broken.insert(role);
        }
    }
    repo.publish_all();
    story
}

#[tokio::test]
async fn any_graph_is_searched_as_the_specification_says() {
    let mut random = ChaCha8Rng::seed_from_u64(17);
    let mut outcomes = [0_u32; 3];
    for round in 0..300 {
        let served = Served::new();
        let story = random_story(&mut random, &mut served.repo());
        let client = Client::of(&served);
        // All paths in one open repository, so that roles which are kept are used under other delegations too.
        let opened = client.refresh(&served).await.unwrap();
        for (number, path) in PATHS.iter().enumerate() {
            let mut visited = Vec::new();
            let expected = match story.search("targets", number, &mut visited) {
                Ok(Some(found)) => found,
                Ok(None) | Err(()) => Found::Nowhere,
            };
            served.repo().asked.clear();
            let found = match opened.find(path).await {
                Ok(file) => Found::By(file.roles().last().map_or("targets", String::as_str).to_owned()),
                Err(bascule_repository::Error::Role { role, .. }) => Found::Trouble(role),
                Err(bascule_repository::Error::Absent { .. }) => Found::Nowhere,
                Err(other) => panic!("{round}: {other}"),
            };
            assert_eq!(found, expected, "round {round}, {path}: {:?}", story.edges);
            let asked: Vec<String> = served.repo().asked.iter().map(|(role, _)| role.clone()).collect();
            if number == 0 {
                assert_eq!(asked, visited, "round {round}, {path}: {:?}", story.edges);
            } else {
                assert!(asked.iter().all(|role| visited.contains(role)), "round {round}, {path}: {asked:?}");
            }
            outcomes[match expected {
                Found::By(_) => 0,
                Found::Nowhere => 1,
                Found::Trouble(_) => 2,
            }] += 1;
        }
    }
    assert!(outcomes.iter().all(|count| *count > 30), "each outcome occurs: {outcomes:?}");
}
