//! Channels that other teams sign: one that is broken in any way fails alone, and none can get between another channel and its
//! releases, although all of them may sign `releases/*/*/*`.

use std::collections::BTreeMap;
use std::time::Duration;

use bascule_names::{Architecture, ChannelName};
use bascule_repository::{Error, FetchError, Repository};
use chrono::TimeDelta;
use ring::digest::{SHA256, digest};
use serde_json::json;

use crate::client::{Client, category};
use crate::simulator::{Served, Simulator, date, sha512, sign, start};

/// The first one is delegated first: a search for any release file comes to it first.
const TEAMS: [&str; 3] = ["alpha", "beta", "gamma"];

fn file(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest(&SHA256, content)))
}

/// A channel with one release of its own, in this role.
fn add_channel(repo: &mut Simulator, role: &str, channel: &str) {
    let version = format!("1.0-{channel}");
    let path = format!("releases/{version}/x86-64");
    let index = json!({"length": 184, "digest": file(b"index")});
    let manifest = json!({
        "format": 1, "product": "acme-os", "version": version, "architecture": "x86-64", "image": {"size": 1_048_576},
        "verity": {
            "algorithm": "sha256", "blockSize": 4096, "salt": "00ff", "uuid": "01234567-89ab-cdef-0123-456789abcdef",
            "rootHash": "a".repeat(64), "hashTreeSize": 16384,
        },
        "uki": {"path": format!("{path}/uki.efi"), "size": 3, "digest": file(b"uki")},
        "packs": [{
            "kind": "full", "path": format!("{path}/full.pack"), "size": 500, "index": index, "transferBytes": 500,
        }],
    })
    .to_string();
    let described =
        json!({"path": format!("{path}/release.json"), "size": manifest.len(), "digest": file(manifest.as_bytes())});
    let release =
        json!({"version": version, "manifests": {"x86-64": described}, "publishedAt": "2026-03-01T12:00:00Z"});
    let content = json!({"format": 1, "product": "acme-os", "channel": channel, "releases": [release]}).to_string();
    repo.add_artifact(role, &format!("{path}/uki.efi"), b"uki");
    repo.add_artifact(role, &format!("{path}/release.json"), manifest.as_bytes());
    repo.add_artifact(role, &format!("{channel}.json"), content.as_bytes());
}

/// `stable` of the top-level role and a delegated channel of each team, as `bascule release delegate` makes them.
fn repository() -> Served {
    let served = Served::new();
    {
        let mut repo = served.repo();
        add_channel(&mut repo, "targets", "stable");
        for team in TEAMS {
            let role = format!("channel-{team}");
            repo.delegate("targets", &role, &[&format!("{team}.json"), "releases/*/*/*"], false);
            add_channel(&mut repo, &role, team);
        }
        repo.publish_all();
    }
    served
}

/// Goes from a channel to its manifest and its boot file.
async fn read(repository: &Repository, channel: &str) -> Result<(), Error> {
    let channel = repository.channel(&channel.parse::<ChannelName>().unwrap()).await?;
    let manifest = repository.manifest(&channel, &channel.releases[0], Architecture::X86_64).await?;
    let uki = manifest.manifest.uki.path.as_str();
    assert!(uki.contains(channel.channel.as_str()));
    let refused = repository.open_file(&manifest, &manifest.manifest.uki, Default::default()).await.unwrap_err();
    assert!(
        refused.to_string().contains("whole files only"),
        "found, but not to be opened by this transport: {refused}"
    );
    Ok(())
}

type Break = fn(&mut Simulator);

/// Ways to break the first team's role, and the fault that is reported.
fn ways() -> BTreeMap<&'static str, (&'static str, Break)> {
    const ROLE: &str = "channel-alpha";
    let mut ways: BTreeMap<&'static str, (&'static str, Break)> = BTreeMap::new();
    ways.insert(
        "missing on the server",
        ("not-found", |repo| {
            repo.published.insert(ROLE.to_owned(), Vec::new());
        }),
    );
    ways.insert(
        "not in the snapshot",
        ("absent", |repo| {
            repo.role("snapshot")["meta"].as_object_mut().unwrap().remove("channel-alpha.json");
            repo.publish(&["snapshot", "timestamp"]);
        }),
    );
    ways.insert(
        "expired",
        ("expired", |repo| {
            repo.role(ROLE)["expires"] = date(start() - TimeDelta::days(1));
            repo.publish_all();
        }),
    );
    ways.insert(
        "signed by a key that it should not have",
        ("signature", |repo| {
            let other = repo.signers["channel-beta"].clone();
            repo.signers.insert(ROLE.to_owned(), other);
            repo.publish_all();
        }),
    );
    ways.insert(
        "not signed by enough keys",
        ("signature", |repo| {
            repo.role("targets")["delegations"]["roles"][0]["threshold"] = 2.into();
            repo.publish_all();
        }),
    );
    ways.insert(
        "of another digest",
        ("mismatch", |repo| {
            repo.pin_hashes = true;
            repo.publish_all();
            repo.published.get_mut(ROLE).unwrap().last_mut().unwrap()[0] = b' ';
        }),
    );
    ways.insert(
        "of another version",
        ("mismatch", |repo| {
            let first = repo.published[ROLE][0].clone();
            repo.publish_all();
            *repo.published.get_mut(ROLE).unwrap().last_mut().unwrap() = first;
        }),
    );
    ways.insert(
        "no metadata",
        ("format", |repo| {
            *repo.published.get_mut(ROLE).unwrap().last_mut().unwrap() = b"{}".to_vec();
        }),
    );
    ways.insert(
        "of another specification",
        ("spec-version", |repo| {
            repo.role(ROLE)["spec_version"] = "2.0.0".into();
            repo.publish_all();
        }),
    );
    ways.insert(
        "of another type",
        ("unacceptable", |repo| {
            let mut snapshot = repo.roles["snapshot"].clone();
            snapshot["version"] = 1.into();
            let bytes = sign(&snapshot, &repo.signers[ROLE]);
            *repo.published.get_mut(ROLE).unwrap().last_mut().unwrap() = bytes;
        }),
    );
    ways.insert(
        "signed as too long",
        ("limit", |repo| {
            repo.role("snapshot")["meta"]["channel-alpha.json"]["length"] = (1_u64 << 40).into();
            repo.publish(&["snapshot", "timestamp"]);
        }),
    );
    ways.insert(
        "endless",
        ("endless-data", |repo| {
            repo.published.get_mut(ROLE).unwrap().last_mut().unwrap().extend(vec![b' '; 3 << 20]);
        }),
    );
    ways.insert(
        "an endless tree of roles",
        ("limit", |repo| {
            repo.role(ROLE)["targets"] = json!({});
            let mut above = ROLE.to_owned();
            for number in 0..100 {
                let name = format!("below-{number}");
                repo.delegate(&above, &name, &["alpha.json", "releases/*/*/*"], false);
                above = name;
            }
            repo.publish_all();
        }),
    );
    ways.insert(
        "a wide tree of roles",
        ("limit", |repo| {
            repo.role(ROLE)["targets"] = json!({});
            for number in 0..100 {
                repo.delegate(ROLE, &format!("below-{number}"), &["alpha.json"], false);
            }
            repo.publish_all();
        }),
    );
    ways.insert(
        "a tree of long roles",
        ("limit", |repo| {
            repo.pin_hashes = true;
            repo.role(ROLE)["targets"] = json!({});
            for number in 0..10 {
                let name = format!("below-{number}");
                repo.delegate(ROLE, &name, &["alpha.json"], false);
                repo.role(&name)["filler"] = "x".repeat(1_500_000).into();
            }
            repo.publish_all();
        }),
    );
    ways
}

#[tokio::test]
async fn a_broken_channel_fails_alone_and_says_which_role_and_why() {
    for (way, (fault, break_it)) in ways() {
        let served = repository();
        break_it(&mut served.repo());
        let client = Client::of(&served);
        let opened = client.refresh(&served).await.unwrap_or_else(|error| panic!("{way}: {error}"));
        assert_eq!(opened.channel_names(), ["alpha", "beta", "gamma", "stable"], "{way}");
        served.repo().asked.clear();
        let refused = read(&opened, "alpha").await.expect_err(way);
        assert_eq!(refused.category(), fault, "{way}: {refused}");
        let Error::Role { role, path, .. } = &refused else { panic!("{way}: {refused:?}") };
        assert!(role == "channel-alpha" || role.starts_with("below-"), "{way}: {role}");
        assert_eq!(path, "alpha.json", "{way}");
        let requests = served.repo().asked.len();
        let bytes = fetched_bytes(&served);
        assert!(requests <= 32 && bytes <= 4 << 20, "{way}: {requests} requests, {bytes} bytes");
        for channel in ["stable", "beta", "gamma"] {
            served.repo().asked.clear();
            read(&opened, channel).await.unwrap_or_else(|error| panic!("{way}: {channel}: {error}"));
            let only = served.repo().asked.iter().all(|(role, _)| role.ends_with(channel));
            assert!(only, "{way}: {channel} asked for {:?}", served.repo().asked);
        }
    }
}

type Failure = fn(String) -> FetchError;

/// How a server fails for one file, and what is reported.
const FAILURES: [(&str, Failure); 4] = [
    ("http-status", |url| FetchError::Status { url, status: 503 }),
    ("slow-retrieval", |url| FetchError::TooSlow { url, minimum: 1 }),
    ("slow-retrieval", |url| FetchError::Deadline { url, limit: Duration::from_secs(1) }),
    ("truncated", |url| FetchError::Truncated { url, got: 1, expected: 2 }),
];

/// Each team's role, and each two at once: one that is broken in any way beside one that the server does not give.
#[tokio::test]
async fn several_broken_channels_fail_each_for_itself() {
    for (fault, failure) in FAILURES {
        for broken in [&TEAMS[..1], &TEAMS[1..2], &TEAMS[2..], &TEAMS[..2], &TEAMS[1..], &TEAMS[..]] {
            let served = repository();
            for team in broken {
                served.repo().failing.insert(format!("channel-{team}"), failure);
            }
            let opened = Client::of(&served).refresh(&served).await.unwrap();
            for channel in TEAMS.iter().chain(&["stable"]) {
                let outcome = read(&opened, channel).await;
                let expected = if broken.contains(channel) { fault } else { "nothing went wrong" };
                assert_eq!(category(outcome), expected, "{broken:?}: {channel}");
            }
        }
    }
    for (way, (fault, break_it)) in ways() {
        let served = repository();
        break_it(&mut served.repo());
        served.repo().failing.insert("channel-beta".to_owned(), FAILURES[0].1);
        let opened = Client::of(&served).refresh(&served).await.unwrap();
        for (channel, expected) in [
            ("alpha", fault),
            ("beta", FAILURES[0].0),
            ("gamma", "nothing went wrong"),
            ("stable", "nothing went wrong"),
        ] {
            assert_eq!(category(read(&opened, channel).await), expected, "{way}: {channel}");
        }
    }
}

fn fetched_bytes(served: &Served) -> usize {
    let repo = served.repo();
    let length = |(role, version): &(String, Option<u64>)| {
        let files = repo.published.get(role)?;
        files.get(usize::try_from((*version)?).ok()? - 1).map(Vec::len).filter(|length| *length <= 2 << 20)
    };
    repo.asked.iter().filter_map(length).sum()
}

#[tokio::test]
async fn a_team_can_not_speak_for_another_channel_nor_stand_in_its_way() {
    let served = repository();
    {
        let mut repo = served.repo();
        // Everything that the others have, under the same names with other content.
        for channel in ["stable", "beta", "gamma"] {
            for name in [format!("{channel}.json"), format!("releases/1.0-{channel}/x86-64/release.json")] {
                let length = repo.artifacts[&name].len();
                repo.role("channel-alpha")["targets"][name] =
                    json!({"length": length, "hashes": {"sha256": "0".repeat(64)}});
            }
        }
        let alpha = repo.role("channel-alpha");
        alpha["targets"]["other.json"] = json!({"length": 1, "hashes": {"sha256": "0".repeat(64)}});
        repo.publish_all();
    }
    let opened = Client::of(&served).refresh(&served).await.unwrap();
    for channel in ["alpha", "stable", "beta", "gamma"] {
        read(&opened, channel).await.unwrap_or_else(|error| panic!("{channel}: {error}"));
    }
    assert_eq!(category(opened.channel(&"other".parse().unwrap()).await), "absent");
}

/// Another tool may name files by SHA-512 alone. Then their bytes are judged by it, and by what channel and manifest say.
#[tokio::test]
async fn a_channel_whose_files_have_sha512_alone_is_read() {
    const MANIFEST: &str = "releases/1.0-alpha/x86-64/release.json";
    let served = repository();
    let with_sha512_alone = |repo: &mut Simulator| {
        let artifacts = repo.artifacts.clone();
        for (path, target) in repo.role("channel-alpha")["targets"].as_object_mut().unwrap() {
            target["hashes"] = json!({"sha512": sha512(&artifacts[path])});
        }
        repo.publish_all();
    };
    with_sha512_alone(&mut served.repo());
    let opened = Client::of(&served).refresh(&served).await.unwrap();
    read(&opened, "alpha").await.unwrap();
    // Another manifest of the same length, which the role names and the channel does not.
    {
        let mut repo = served.repo();
        let manifest = String::from_utf8(repo.artifacts[MANIFEST].clone()).unwrap().replace("00ff", "00fe");
        repo.artifacts.insert(MANIFEST.to_owned(), manifest.into_bytes());
        with_sha512_alone(&mut repo);
    }
    let opened = Client::of(&served).refresh(&served).await.unwrap();
    assert_eq!(category(read(&opened, "alpha").await), "mismatch");
}

#[tokio::test]
async fn a_terminating_delegation_of_one_channel_does_not_end_the_search_of_another() {
    let served = repository();
    served.repo().role("targets")["delegations"]["roles"][0]["terminating"] = true.into();
    served.repo().publish_all();
    let opened = Client::of(&served).refresh(&served).await.unwrap();
    for channel in ["alpha", "beta", "gamma", "stable"] {
        read(&opened, channel).await.unwrap_or_else(|error| panic!("{channel}: {error}"));
    }
}

#[tokio::test]
async fn a_role_is_fetched_once_for_all_files_of_its_channel() {
    let served = repository();
    let opened = Client::of(&served).refresh(&served).await.unwrap();
    served.repo().asked.clear();
    for _ in 0..3 {
        read(&opened, "gamma").await.unwrap();
    }
    assert_eq!(served.repo().asked, [("channel-gamma".to_owned(), Some(1))]);
    let channel = opened.channel(&"gamma".parse().unwrap()).await.unwrap();
    assert_eq!(channel.expires(), Some(start() + TimeDelta::days(30)));
    assert_eq!(opened.channel(&"stable".parse().unwrap()).await.unwrap().expires(), None);
}
