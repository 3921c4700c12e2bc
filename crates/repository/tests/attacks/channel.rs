//! Wrong software: validly signed, but not for this node; and the rules for going back.

use bascule_image::release::channel::Release;
use bascule_names::{Architecture, ChannelName};
use bascule_repository::publish::{Notes, Outcome};
use bascule_repository::select::{self, Choice, Held, Host, Wanted};
use bascule_tests::https::{Fault, HttpsServer};

use super::node::{Node, category};
use bascule_tests::vendor::{CHANNEL, Vendor, root_hash, version};

const ONLINE: [&str; 3] = ["targets", "snapshot", "timestamp"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_software_for_another_product_or_architecture() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.product = "other-os".to_owned();
    assert_eq!(category(&node.update(&server).await.unwrap_err()), "other-product");
    node.product = "acme-os".to_owned();
    node.architecture = Architecture::Arm64;
    let failure = node.update_to(&server, Wanted::Version(version("1.1"))).await.unwrap_err();
    assert_eq!(category(&failure), "other-architecture", "{failure}");
    assert!(failure.to_string().contains("x86-64"), "it says what exists: {failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_software_by_swapping_files_that_are_both_signed() {
    let vendor = Vendor::with_two_releases();
    let edge: ChannelName = "edge".parse().unwrap();
    let build = vendor.build("2.0", None);
    let keys = vendor.keys(&ONLINE);
    vendor.publisher().add_release(&edge, &build, &Notes::default(), vendor.signing(&keys)).unwrap();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    let other_channel = std::fs::read(vendor.published("edge.json")).unwrap();
    server.misbehave("stable.json", Fault::Replace(other_channel));
    let failure = node.update(&server).await.unwrap_err();
    assert!(["mismatch", "endless-data"].contains(&category(&failure).as_str()), "{failure}");
    server.behave();
    assert_eq!(node.update(&server).await.unwrap().version, version("1.1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_release_is_not_installed() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let keys = vendor.keys(&ONLINE);
    let channel: ChannelName = CHANNEL.parse().unwrap();
    vendor.publisher().withdraw(&channel, &version("1.1"), "loses packets", vendor.signing(&keys)).unwrap();
    let node = Node::of(&vendor);
    let failure = node.update_to(&server, Wanted::Version(version("1.1"))).await.unwrap_err();
    assert_eq!(category(&failure), "withdrawn");
    assert!(failure.to_string().contains("loses packets"), "{failure}");
    // The newest is now what the node runs already.
    assert!(node.update(&server).await.unwrap_err().to_string().contains("Booted"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_go_down_only_with_the_channels_word_or_to_what_the_other_slot_holds() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.running = Some("1.1".to_owned());
    let back = Wanted::Version(version("1.0"));
    assert_eq!(category(&node.update_to(&server, back.clone()).await.unwrap_err()), "downgrade");

    let repository = node.open(&server).await.unwrap();
    let mut channel = repository.channel(&CHANNEL.parse().unwrap()).await.unwrap().into_channel();
    let held = |text: &str| Held { version: version(text), root_hash: root_hash(text) };
    let mut host = Host {
        product: "acme-os".parse().unwrap(),
        architecture: Architecture::X86_64,
        booted: Some(held("1.1")),
        other: Some(held("1.0")),
    };
    let chosen = |choice: Choice<'_>| choice.release().map(|release: &Release| release.version.clone());
    assert!(matches!(select::decide(&channel, &back, &host), Ok(Choice::InOtherSlot(_))));
    host.other = None;
    channel.releases[0].downgrade = true;
    assert_eq!(select::decide(&channel, &back, &host).ok().and_then(chosen), Some(version("1.0")));
    // Asked for the newest, a node never goes down by itself.
    channel.releases[0].downgrade = false;
    channel.releases.pop();
    assert!(matches!(select::decide(&channel, &Wanted::Newest, &host), Ok(Choice::Stay { newest: Some(_) })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegated_channel_speaks_for_itself_only() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let edge: ChannelName = "edge".parse().unwrap();
    vendor.new_key("edge");
    let keys = vendor.keys(&["targets", "snapshot", "timestamp", "edge"]);
    vendor.publisher().delegate(&edge, &vendor.role(&["edge"], 1), vendor.signing(&keys)).unwrap();
    // The team has its own key and no other: what it signs waits for whoever holds the online keys.
    let (team, online) = (vendor.keys(&["edge"]), vendor.keys(&["snapshot", "timestamp"]));
    let build = vendor.build("2.0", Some("1.1"));
    let outcome = vendor.publisher().add_release(&edge, &build, &Notes::default(), vendor.signing(&team)).unwrap();
    let Outcome::Waiting(waiting) = outcome else { panic!("{outcome:?}") };
    let missing: Vec<&str> = waiting.missing.iter().map(|missing| missing.role.as_str()).collect();
    assert_eq!(missing, ["snapshot", "timestamp"]);
    let node = Node::of(&vendor);
    let refused = node.open(&server).await.unwrap().channel(&edge).await.unwrap_err();
    assert_eq!(refused.category(), "absent", "{refused}");
    let outcome = vendor.publisher().sign_pending(vendor.signing(&online)).unwrap();
    assert!(matches!(outcome, Outcome::Published { .. }), "{outcome:?}");
    let repository = node.open(&server).await.unwrap();
    assert_eq!(repository.channel_names(), ["edge", "stable"]);
    let channel = repository.channel(&edge).await.unwrap();
    repository.manifest(&channel, &channel.releases[0], Architecture::X86_64).await.unwrap();

    // It can't publish to another channel, also not with the online keys.
    let stable: ChannelName = CHANNEL.parse().unwrap();
    assert!(vendor.publisher().promote(&edge, &stable, &version("2.0"), vendor.signing(&team)).is_err());
    let both = vendor.keys(&["edge", "snapshot", "timestamp"]);
    let outcome = vendor.publisher().promote(&edge, &stable, &version("2.0"), vendor.signing(&both)).unwrap();
    let Outcome::Waiting(waiting) = outcome else { panic!("{outcome:?}") };
    assert!(waiting.missing.iter().any(|missing| missing.role == "targets"), "{waiting:?}");
    vendor.publisher().discard_waiting(None).unwrap();

    // Nor does a name outside its paths count when it is signed into its own file.
    let metadata = vendor.repository().join("metadata");
    let stable_of_edge = bascule_tests::vendor::describe(&vendor.published("edge.json"), 1);
    vendor.forge("2.channel-edge.json", &["edge"], |signed| {
        signed["version"] = 9.into();
        let file = serde_json::json!({"hashes": stable_of_edge["hashes"], "length": stable_of_edge["length"]});
        signed["targets"]["other.json"] = file;
    });
    std::fs::copy(metadata.join("2.channel-edge.json"), metadata.join("9.channel-edge.json")).unwrap();
    let role = bascule_tests::vendor::describe(&metadata.join("9.channel-edge.json"), 9);
    let newest = (1..20).rev().find(|n| metadata.join(format!("{n}.snapshot.json")).exists()).unwrap();
    std::fs::copy(metadata.join(format!("{newest}.snapshot.json")), metadata.join("19.snapshot.json")).unwrap();
    vendor.forge("19.snapshot.json", &["snapshot"], |signed| {
        signed["version"] = 19.into();
        signed["meta"]["channel-edge.json"] = role;
    });
    let snapshot = bascule_tests::vendor::describe(&metadata.join("19.snapshot.json"), 19);
    vendor.forge("timestamp.json", &["timestamp"], |signed| {
        signed["version"] = 19.into();
        signed["meta"]["snapshot.json"] = snapshot;
    });
    let refused = match node.open(&server).await {
        Err(error) => error,
        Ok(repository) => repository.channel(&"other".parse().unwrap()).await.unwrap_err(),
    };
    assert!(["unacceptable", "absent"].contains(&refused.category()), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promotion_offers_the_same_bytes() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let (edge, stable): (ChannelName, ChannelName) = ("edge".parse().unwrap(), CHANNEL.parse().unwrap());
    let keys = vendor.keys(&ONLINE);
    let build = vendor.build("1.2", Some("1.1"));
    let mut publisher = vendor.publisher();
    publisher.add_release(&edge, &build, &Notes::default(), vendor.signing(&keys)).unwrap();
    publisher.promote(&edge, &stable, &version("1.2"), vendor.signing(&keys)).unwrap();
    assert!(publisher.promote(&edge, &stable, &version("1.2"), vendor.signing(&keys)).is_err(), "it is there already");
    drop(publisher);
    let mut node = Node::of(&vendor);
    node.running = Some("1.1".to_owned());
    let updated = node.update(&server).await.unwrap();
    assert_eq!(updated.version, version("1.2"));
    assert!(updated.pack.contains("/from-"));
}
