//! Teams that sign channels of their own, as those see it who publish beside them: whatever one team does to its role stops
//! nobody else, it is said which role it is and why, and delegating again mends it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bascule_names::ChannelName;
use bascule_repository::publish::{Notes, Outcome, PublishError, Publisher, Unnamed, View};
use bascule_repository::{DatastoreLocation, Error, Fetcher, OpenOptions, Repository};
use bascule_tests::https::{Fault, HttpsServer};
use bascule_tests::vendor::{CHANNEL, Vendor, copy_folder, describe, start, version};
use chrono::TimeDelta;
use serde_json::{Value, json};
use url::Url;

use crate::node::Node;
use crate::prune::written;
use crate::publisher::{ONLINE, newest};

const ROLE: &str = "channel-edge";

fn metadata(vendor: &Vendor, name: &str) -> PathBuf {
    vendor.repository().join("metadata").join(name)
}

/// The newest file of a role, and its version.
fn file_of(vendor: &Vendor, role: &str) -> (String, u64) {
    let name = |version: u64| format!("{version}.{role}.json");
    let version = (1..40).rev().find(|version| metadata(vendor, &name(*version)).exists()).unwrap();
    (name(version), version)
}

/// Signs the team's role with other content, and lets snapshot and timestamp name it.
fn sign(vendor: &Vendor, change: impl FnOnce(&mut Value)) {
    let (file, _) = file_of(vendor, ROLE);
    vendor.forge(&file, &["edge"], change);
    name_it(vendor);
}

/// Lets snapshot and timestamp name the team's role as it lies there.
fn name_it(vendor: &Vendor) {
    let (file, number) = file_of(vendor, ROLE);
    let pin = describe(&metadata(vendor, &file), number);
    resnapshot(vendor, |meta| meta[format!("{ROLE}.json")] = pin);
}

fn resnapshot(vendor: &Vendor, change: impl FnOnce(&mut Value)) {
    let (snapshot, number) = file_of(vendor, "snapshot");
    vendor.forge(&snapshot, &["snapshot"], |signed| change(&mut signed["meta"]));
    let pin = describe(&metadata(vendor, &snapshot), number);
    vendor.forge("timestamp.json", &["timestamp"], |signed| signed["meta"]["snapshot.json"] = pin);
}

/// A way to break the role, what is said of it, and whether nodes refuse it too.
type Way = (&'static str, fn(&Vendor), &'static str, bool);

/// Ways that are nobody's trouble who only publishes: they say nothing of the role's form.
const WELL_FORMED: [&str; 2] = ["of other teams' names", "expired"];
const WAYS: [Way; 12] = [
    ("expired", |vendor| sign(vendor, |signed| signed["expires"] = "2026-02-01T00:00:00Z".into()), "", true),
    ("missing", |vendor| std::fs::remove_file(metadata(vendor, &file_of(vendor, ROLE).0)).unwrap(), "is missing", true),
    ("junk", |vendor| std::fs::write(metadata(vendor, &file_of(vendor, ROLE).0), "junk").unwrap(), "bytes came", true),
    (
        "junk that the snapshot names",
        |vendor| {
            std::fs::write(metadata(vendor, &file_of(vendor, ROLE).0), "junk").unwrap();
            name_it(vendor);
        },
        "can't be read",
        true,
    ),
    (
        "a folder",
        |vendor| {
            let path = metadata(vendor, &file_of(vendor, ROLE).0);
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
        },
        "can't read",
        true,
    ),
    (
        "longer than a role may be",
        |vendor| {
            let path = metadata(vendor, &file_of(vendor, ROLE).0);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.extend(vec![b' '; 3 << 20]);
            std::fs::write(&path, bytes).unwrap();
            name_it(vendor);
        },
        "longer than",
        true,
    ),
    (
        "signed by another key",
        |vendor| {
            vendor.forge(&file_of(vendor, ROLE).0, &["targets"], |_| {});
            name_it(vendor);
        },
        "not signed by enough of its keys",
        true,
    ),
    (
        "not in the snapshot",
        |vendor| {
            resnapshot(vendor, |meta| drop(meta.as_object_mut().unwrap().remove("channel-edge.json")));
        },
        "the snapshot does not name it",
        true,
    ),
    (
        "of an undefined member in its delegations",
        |vendor| sign(vendor, |signed| signed["delegations"] = json!({"keys": {}, "roles": [], "more": 1})),
        "would be lost",
        false,
    ),
    (
        "of files with SHA-512 alone",
        |vendor| {
            sign(vendor, |signed| {
                signed["targets"]["other"] = json!({"length": 1, "hashes": {"sha512": "00".repeat(64)}});
            });
        },
        "sha256",
        false,
    ),
    (
        "of a channel file that is not there",
        |vendor| {
            sign(vendor, |signed| {
                signed["targets"]["edge.json"] = json!({"length": 1, "hashes": {"sha256": "00".repeat(32)}});
            });
        },
        "",
        true,
    ),
    (
        "of other teams' names",
        |vendor| {
            sign(vendor, |signed| {
                for name in ["stable.json", "other.json", "releases/1.1/x86-64/release.json", "odd name.json"] {
                    signed["targets"][name] = json!({"length": 1, "hashes": {"sha256": "00".repeat(32)}});
                }
            });
        },
        "",
        true,
    ),
];

/// `stable` of the release team with 1.0 and 1.1, and `edge` of a team with 1.2.
fn vendor() -> (Vendor, [PathBuf; 2]) {
    let vendor = Vendor::with_two_releases();
    vendor.new_key("edge");
    let edge: ChannelName = "edge".parse().unwrap();
    let keys = vendor.keys(&["targets", "snapshot", "timestamp", "edge"]);
    vendor.publisher().delegate(&edge, &vendor.role(&["edge"], 1), vendor.signing(&keys)).unwrap();
    let builds = ["1.2", "1.3"].map(|version| vendor.build(version, None));
    vendor.publisher().add_release(&edge, &builds[0], &Notes::default(), vendor.signing(&keys)).unwrap();
    (vendor, builds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_team_does_to_its_role_the_others_publish() {
    let (vendor, builds) = vendor();
    let relative = |path: PathBuf| path.strip_prefix(vendor.repository()).unwrap().to_owned();
    let packs =
        ["1.1", "1.2"].map(|version| relative(vendor.published(&format!("releases/{version}/x86-64/full.pack"))));
    // What publishers that were killed have left: nothing names it.
    let left = format!("targets/releases/1.2/x86-64/{}.full.pack", "0".repeat(64));
    std::fs::write(vendor.repository().join(&left), "x").unwrap();
    std::fs::write(vendor.repository().join("targets/.scratch-ab"), "x").unwrap();
    let pristine = tempfile::tempdir().unwrap();
    copy_folder(&vendor.repository(), pristine.path());
    let (stable, edge): (ChannelName, ChannelName) = (CHANNEL.parse().unwrap(), "edge".parse().unwrap());
    let (online, stamp, release) = (vendor.keys(&ONLINE), vendor.keys(&["timestamp"]), vendor.keys(&["targets"]));
    let all = vendor.keys(&["targets", "snapshot", "timestamp", "edge"]);
    for (way, break_it, reason, nodes_refuse) in WAYS {
        std::fs::remove_dir_all(vendor.repository()).unwrap();
        copy_folder(pristine.path(), &vendor.repository());
        break_it(&vendor);

        // Who only looks, at the folder and at the server.
        let server = HttpsServer::start(vendor.repository()).await.unwrap();
        let node = Node::of(&vendor);
        let client = node.client(server.ca_pem());
        let url: Url = server.url().parse().unwrap();
        let views = [
            View::of_folder(&vendor.repository(), None),
            View::of_folder(&vendor.repository(), Some(vendor.trust_root())),
            View::of_address(client, &url, vendor.trust_root()).await,
        ];
        for (number, view) in views.into_iter().enumerate() {
            let view = view.unwrap_or_else(|error| panic!("{way}, {number}: {error}"));
            assert!(view.channel(&stable).is_ok(), "{way}");
            let told: Vec<String> = view.problems().iter().map(ToString::to_string).collect();
            let expected = usize::from(!WELL_FORMED.contains(&way));
            assert_eq!(told.len(), expected, "{way}: {told:?}");
            for problem in view.problems() {
                assert_eq!((problem.role.as_str(), problem.nodes_refuse), (ROLE, nodes_refuse), "{way}: {told:?}");
                // From a server, what can't be fetched is another sentence.
                assert!(number == 2 || problem.reason.contains(reason), "{way}: {told:?}");
            }
        }

        // Who refreshes, publishes and withdraws.
        let mut publisher = vendor.publisher();
        publisher.refresh(vendor.signing(&stamp)).unwrap_or_else(|error| panic!("{way}: {error}"));
        publisher.refresh(vendor.signing(&online)).unwrap_or_else(|error| panic!("{way}: {error}"));
        // The release waits for the signatures of others meanwhile.
        let outcome = publisher.add_release(&stable, &builds[1], &Notes::default(), vendor.signing(&release));
        let outcome = outcome.unwrap_or_else(|error| panic!("{way}: {error}"));
        assert!(matches!(outcome, Outcome::Waiting(_)), "{way}: {outcome:?}");
        publisher.sign_pending(vendor.signing(&online)).unwrap_or_else(|error| panic!("{way}: {error}"));
        publisher
            .promote(&stable, &"test".parse().unwrap(), &version("1.3"), vendor.signing(&online))
            .unwrap_or_else(|error| panic!("{way}: {error}"));
        publisher
            .withdraw(&stable, &version("1.1"), "test", vendor.signing(&online))
            .unwrap_or_else(|error| panic!("{way}: {error}"));
        let state = tempfile::tempdir().unwrap();
        let seen = newest(&vendor.repository(), &vendor.trust_root(), state.path()).await;
        assert_eq!(seen.unwrap_or_else(|error| panic!("{way}: {error}")), "1.3", "{way}");
        // Who prunes: metadata goes in any case, a release file only where it is known that no role names it.
        let unwanted = |publisher: &Publisher, after: TimeDelta| {
            let unwanted = publisher.unwanted(written(&vendor.repository()) + after, TimeDelta::days(10));
            let unwanted = unwanted.unwrap_or_else(|error| panic!("{way}: {error}"));
            let paths = |files: &mut dyn Iterator<Item = &Unnamed>| files.map(|file| file.path.clone()).collect();
            let kept: BTreeSet<&str> = unwanted.unknown.iter().map(|(_, role)| role.as_str()).collect();
            assert!(kept.iter().all(|role| *role == ROLE), "{way}: {kept:?}");
            let sets: [BTreeSet<PathBuf>; 3] = [
                paths(&mut unwanted.now.iter()),
                paths(&mut unwanted.later.iter().map(|(file, _)| file)),
                paths(&mut unwanted.unknown.iter().map(|(file, _)| file)),
            ];
            sets
        };
        let [now, later, unknown] = unwanted(&publisher, TimeDelta::days(30));
        let readable = publisher.problems().iter().all(|problem| !problem.nodes_refuse);
        assert!(now.contains(Path::new("targets/.scratch-ab")), "{way}: {now:?}");
        let old =
            |path: &PathBuf| path.starts_with("metadata") && path.display().to_string().ends_with("snapshot.json");
        assert!(now.iter().any(old), "{way}: {now:?}");
        assert_eq!(now.contains(Path::new(&left)), readable, "{way}: {now:?}");
        assert_eq!(unknown.contains(Path::new(&left)), !readable, "{way}: {unknown:?}");
        for pack in &packs {
            assert!(!now.contains(pack) && !later.contains(pack), "{way}: {pack:?}");
        }
        if publisher.problems().is_empty() {
            continue;
        }

        // Nothing is signed on top of the broken role.
        for refused in [
            publisher.withdraw(&edge, &version("1.2"), "test", vendor.signing(&all)).unwrap_err(),
            publisher.add_release(&edge, &builds[1], &Notes::default(), vendor.signing(&all)).unwrap_err(),
        ] {
            assert!(matches!(&refused, PublishError::Broken { what, .. } if what == ROLE), "{way}: {refused}");
        }

        // Delegating again makes it anew, above the version that readers have seen.
        let (_, before) = file_of(&vendor, ROLE);
        publisher.delegate(&edge, &vendor.role(&["edge"], 1), vendor.signing(&all)).unwrap();
        publisher.add_release(&edge, &builds[1], &Notes::default(), vendor.signing(&all)).unwrap();
        assert!(publisher.problems().is_empty(), "{way}");
        // Also while the broken one may still be in a reader's hands.
        let [_, _, unknown] = unwanted(&publisher, TimeDelta::hours(1));
        assert!(unknown.is_empty(), "{way}: {unknown:?}");
        let [now, ..] = unwanted(&publisher, TimeDelta::days(30));
        assert!(now.contains(Path::new(&left)), "{way}: {now:?}");
        if way != "not in the snapshot" {
            assert!(file_of(&vendor, ROLE).1 > before, "{way}");
        }
        let opened = Repository::open(OpenOptions {
            trust_root: vendor.trust_root(),
            base: Url::from_directory_path(vendor.repository()).unwrap(),
            datastore: DatastoreLocation::Persistent(state.path().to_owned()),
            fetcher: Fetcher::Directory,
            now: bascule_repository::time::Now::at(start()),
        })
        .await
        .unwrap_or_else(|error| panic!("{way}: {error}"));
        assert_eq!(opened.channel(&edge).await.unwrap().releases[0].version.to_string(), "1.3", "{way}");
    }
}

/// Three hundred teams: those far behind and the top-level role itself are looked at too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_teams_are_all_looked_at() {
    let (vendor, _) = vendor();
    let (targets, number) = file_of(&vendor, "targets");
    let (role, at) = file_of(&vendor, ROLE);
    let names: Vec<String> = (0..300).map(|number| format!("channel-a{number:03}")).collect();
    for name in &names {
        std::fs::copy(metadata(&vendor, &role), metadata(&vendor, &format!("{at}.{name}.json"))).unwrap();
    }
    let odd = "a name/of another tool";
    vendor.forge(&targets, &["targets"], |signed| {
        let roles = signed["delegations"]["roles"].as_array_mut().unwrap();
        let pattern = roles[0].clone();
        for name in names.iter().map(String::as_str).chain([odd]) {
            let mut role = pattern.clone();
            role["name"] = name.into();
            role["paths"] = json!([format!("{}.json", name.trim_start_matches("channel-"))]);
            roles.push(role);
        }
    });
    let pin = describe(&metadata(&vendor, &role), at);
    let top = describe(&metadata(&vendor, &targets), number);
    resnapshot(&vendor, |meta| {
        meta["targets.json"] = top;
        for name in &names {
            meta[format!("{name}.json")] = pin.clone();
        }
    });
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let client = Node::of(&vendor).client(server.ca_pem());
    let view = View::of_address(client, &server.url().parse().unwrap(), vendor.trust_root()).await.unwrap();
    let told: Vec<&str> = view.problems().iter().map(|problem| problem.role.as_str()).collect();
    assert_eq!(told, [odd]);
    assert_eq!(view.roles().len(), 4 + 1 + 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fails_for_one_teams_role_fails_for_its_channel_alone() {
    let (vendor, _) = vendor();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    for (fault, expected) in [
        (Fault::Status(503), "http-status"),
        (Fault::Stall, "slow-retrieval"),
        (Fault::Trickle { bytes: 1, every: Duration::from_millis(20) }, "slow-retrieval"),
        (Fault::Endless, "endless-data"),
    ] {
        server.misbehave("channel-edge.json", fault.clone());
        let mut node = Node::of(&vendor);
        node.change_settings = |settings| {
            // Honest files have to keep to it, too, on a machine that does other things beside.
            settings.rate_window = Duration::from_secs(2);
            settings.minimum_bytes_per_second = 20_000;
        };
        let opened = node.open(&server).await.unwrap();
        let refused = opened.channel(&"edge".parse().unwrap()).await.unwrap_err();
        assert_eq!(refused.category(), expected, "{fault:?}: {refused}");
        assert!(matches!(&refused, Error::Role { role, .. } if role == ROLE), "{fault:?}: {refused:?}");
        opened.channel(&CHANNEL.parse().unwrap()).await.unwrap();
        node.update(&server).await.unwrap();
        server.behave();
    }
}

/// A server that fails is not a file that is lost, for whoever looks at the repository.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_looks_at_a_server_that_fails_for_a_teams_channel_is_told_that_it_fails() {
    let (vendor, _) = vendor();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    server.misbehave("edge.json", Fault::Status(503));
    let client = Node::of(&vendor).client(server.ca_pem());
    let view = View::of_address(client, &server.url().parse().unwrap(), vendor.trust_root()).await.unwrap();
    assert!(view.channel(&CHANNEL.parse().unwrap()).is_ok());
    let [told] = view.problems() else { panic!("{:?}", view.problems()) };
    assert_eq!(told.role, ROLE);
    assert!(told.reason.contains("503") && !told.reason.contains("missing"), "{}", told.reason);
}
