//! What attacks cost in memory, as the kernel counts it (proc_pid_status(5), `VmHWM`): a test program of its own with one test,
//! so that nothing else runs in the process. The hostile server runs in it too and is counted with the node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]
#![allow(dead_code, reason = "the node is shared with the other attacks, which need more of it")]

mod node;

use std::fs::File;

use bascule_image::Sha256;
use bascule_image::apply::{Apply, Options};
use bascule_image::pack::PackIndex;
use bascule_image::verity::Parameters;
use bascule_image::work::Watch;
use bascule_tests::https::{Fault, HttpsServer};
use bascule_tests::vendor::{Vendor, describe};

use node::{Node, category};

/// More than this is too much for any attack, in KiB: what two workers may hold (a raw and a stored frame each, three more on
/// their way), the server, and what allocators keep.
const BOUND: u64 = 16 << 10;
/// What the bombs decompress to.
const BOMB: usize = 1 << 30;
const FRAME: usize = 1 << 20;

fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Forgets the peak (proc(5), `clear_refs`: 5) and gives what is resident now.
fn begin() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    status("VmRSS:")
}

/// A measure that sees nothing would find every attack harmless.
fn the_measure_sees_memory() {
    let before = begin();
    let waste = vec![1_u8; 64 << 20];
    assert_eq!(waste.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>(), (64 << 20) / 4096);
    drop(waste);
    let grown = status("VmHWM:").saturating_sub(before);
    assert!(grown > 60 << 10, "64 MiB were held, {grown} KiB were seen");
}

fn assert_bounded(what: &str, before: u64) {
    let grown = status("VmHWM:").saturating_sub(before);
    #[allow(clippy::print_stdout, reason = "what was measured is worth reading")]
    {
        println!("{what}: {grown} KiB");
    }
    assert!(grown <= BOUND, "{what} took {grown} KiB, accepted are {BOUND}");
}

/// A zstd frame (RFC 8878, 3.1.1) of blocks that each repeat one byte 128 KiB long: 4 bytes for each.
fn bomb(header: &[u8]) -> Vec<u8> {
    let mut bytes = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    let blocks = BOMB / (128 << 10);
    for block in 1..=blocks {
        let last = u32::from(block == blocks);
        bytes.extend_from_slice(&((128_u32 << 10) << 3 | 1 << 1 | last).to_le_bytes()[..3]);
        bytes.push(b'b');
    }
    bytes
}

/// A full pack of one frame with these stored bytes, as docs/release-format.md lays it out.
fn pack_of(stored: &[u8]) -> (Vec<u8>, PackIndex) {
    let mut index = b"BascPack".to_vec();
    for number in [1_u32, 0] {
        index.extend(number.to_le_bytes());
    }
    index.extend((FRAME as u64).to_le_bytes());
    index.extend((FRAME as u32).to_le_bytes());
    index.extend(1_u32.to_le_bytes());
    index.extend([7; 32]);
    index.extend([0; 32]);
    index.extend(0_u64.to_le_bytes());
    index.extend((stored.len() as u64).to_le_bytes());
    index.resize(144, 0);
    index.extend(Sha256::of(b"whatever").as_bytes());
    index.extend((stored.len() as u32).to_le_bytes());
    index.extend([2, 0, 0, 0]);
    let parsed = PackIndex::parse(&index).unwrap();
    ([stored, &index].concat(), parsed)
}

fn decompression_bombs() {
    // A window of 2^41 bytes; and a content size of 2^62 bytes in a frame that is its own window.
    let headers: [&[u8]; 2] = [&[0x00, 0xF8], &[0xE0, 0, 0, 0, 0, 0, 0, 0, 0x40]];
    for header in headers {
        let (pack, index) = pack_of(&bomb(header));
        let slot = tempfile::tempfile().unwrap();
        slot.set_len(FRAME as u64).unwrap();
        let parameters = Parameters { salt: Vec::new(), uuid: [0; 16] };
        let before = begin();
        let job = Apply {
            index: &index,
            parameters: &parameters,
            source: &pack,
            base: None,
            sink: &slot as &File,
            options: Options::default(),
        };
        let error = job.run(&Watch::none()).unwrap_err();
        assert_eq!(error.category(), "frame-invalid", "{error}");
        assert_bounded("decompression bomb", before);
    }
}

/// Numbers near the ends of their types in an index: the bytes that are there bound what is allocated.
fn lying_indexes() {
    let (pack, index) = pack_of(b"xyz");
    let good = index.to_bytes();
    assert!(pack.ends_with(&good));
    let before = begin();
    for offset in [16, 24, 28, 96, 104, 112, 144 + 32, 144 + 36] {
        for number in [u64::from(u32::MAX), u64::MAX, u64::MAX / 2, 1 << 33] {
            let mut bad = good.clone();
            let width = if matches!(offset, 16 | 96 | 104) { 8 } else { 4 };
            bad[offset..offset + width].copy_from_slice(&number.to_le_bytes()[..width]);
            assert!(bad == good || PackIndex::parse(&bad).is_err(), "{number} at {offset}");
        }
    }
    assert_bounded("index that lies about its numbers", before);
}

fn delegate_edge(vendor: &Vendor) {
    vendor.new_key("edge");
    let keys = vendor.keys(&["targets", "snapshot", "timestamp", "edge"]);
    let edge = "edge".parse().unwrap();
    vendor.publisher().delegate(&edge, &vendor.role(&["edge"], 1), vendor.signing(&keys)).unwrap();
}

/// One team's role delegates to `many` others with names of `name` bytes, all of which may sign everything, and the first of those does so again,
/// `depth` times. A reader that wrote down the way to each of them took 312 MiB for 32,000, and 2.8 GiB for names of 15,000.
fn delegate_ever_further(vendor: &Vendor, depth: usize, many: usize, name: usize) {
    let metadata = vendor.repository().join("metadata");
    let path = |name: &str| metadata.join(name);
    let read = |name: &str| serde_json::from_slice::<serde_json::Value>(&std::fs::read(path(name)).unwrap()).unwrap();
    let newest =
        |role: &str| (1..20_u64).rev().find(|version| path(&format!("{version}.{role}.json")).exists()).unwrap();
    let original = format!("{}.channel-edge.json", newest("channel-edge"));
    let mut delegations = read(&format!("{}.targets.json", newest("targets")))["signed"]["delegations"].clone();
    let keyids = delegations["roles"][0]["keyids"].clone();
    let version = 30;
    let names = |level: usize| (0..many).map(move |number| format!("{level}{number:0>5}{}", "n".repeat(name - 6)));
    let mut roles = vec!["channel-edge".to_owned()];
    roles.extend((0..depth).map(|level| names(level).next().unwrap()));
    for (level, role) in roles.iter().enumerate() {
        let file = format!("{version}.{role}.json");
        std::fs::copy(path(&original), path(&file)).unwrap();
        delegations["roles"] = names(level)
            .map(|name| serde_json::json!({"name": name, "keyids": keyids, "threshold": 1, "paths": ["*"]}))
            .collect();
        vendor.forge(&file, &["edge"], |signed| {
            signed["version"] = version.into();
            signed["targets"] = serde_json::json!({});
            signed["delegations"] = delegations.clone();
        });
        assert!(std::fs::metadata(path(&file)).unwrap().len() < 2 << 20, "it would be refused for its length");
    }
    let snapshot = format!("{version}.snapshot.json");
    std::fs::copy(path(&format!("{}.snapshot.json", newest("snapshot"))), path(&snapshot)).unwrap();
    vendor.forge(&snapshot, &["snapshot"], |signed| {
        signed["version"] = version.into();
        for role in &roles {
            signed["meta"][format!("{role}.json")] = serde_json::json!({"version": version});
        }
    });
    let snapshot = describe(&path(&snapshot), version);
    vendor.forge("timestamp.json", &["timestamp"], |signed| {
        signed["version"] = version.into();
        signed["meta"]["snapshot.json"] = snapshot;
    });
}

/// Seventy channels of other teams, each with a role of 1.5 MiB, all of which may sign release files. A reader that loads what it
/// doesn't need took 246 MB for them.
fn delegate_to_seventy_long_roles(vendor: &Vendor) {
    const LONG: usize = 3 << 19;
    delegate_edge(vendor);
    let metadata = vendor.repository().join("metadata");
    let path = |name: &str| metadata.join(name);
    let newest =
        |role: &str| (1..20_u64).rev().find(|version| path(&format!("{version}.{role}.json")).exists()).unwrap();
    vendor.forge("1.channel-edge.json", &["edge"], |signed| {
        let file = |number: usize| {
            let digest = Sha256::of(&number.to_le_bytes()).to_string();
            (
                format!("releases/1.{number}/x86-64/full.pack"),
                serde_json::json!({"length": 1, "hashes": {"sha256": digest}}),
            )
        };
        signed["targets"] = (0..LONG / 160).map(file).collect::<serde_json::Map<_, _>>().into();
    });
    let role = describe(&path("1.channel-edge.json"), 1);
    assert!(role["length"].as_u64().unwrap() > 1_200_000, "{role}");
    let names: Vec<String> = (0..70).map(|number| format!("many-{number}")).collect();
    for name in &names {
        std::fs::copy(path("1.channel-edge.json"), path(&format!("1.{name}.json"))).unwrap();
    }
    std::fs::copy(path(&format!("{}.targets.json", newest("targets"))), path("30.targets.json")).unwrap();
    vendor.forge("30.targets.json", &["targets"], |signed| {
        signed["version"] = 30.into();
        let roles = signed["delegations"]["roles"].as_array_mut().unwrap();
        let pattern = roles[0].clone();
        *roles = names
            .iter()
            .map(|name| {
                let mut role = pattern.clone();
                role["name"] = name.as_str().into();
                role["paths"] = serde_json::json!([format!("{name}.json"), "releases/*/*/*"]);
                role
            })
            .collect();
    });
    std::fs::copy(path(&format!("{}.snapshot.json", newest("snapshot"))), path("30.snapshot.json")).unwrap();
    let targets = describe(&path("30.targets.json"), 30);
    vendor.forge("30.snapshot.json", &["snapshot"], |signed| {
        signed["version"] = 30.into();
        signed["meta"]["targets.json"] = targets;
        for name in &names {
            signed["meta"][format!("{name}.json")] = role.clone();
        }
    });
    let snapshot = describe(&path("30.snapshot.json"), 30);
    vendor.forge("timestamp.json", &["timestamp"], |signed| {
        signed["version"] = 30.into();
        signed["meta"]["snapshot.json"] = snapshot;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attack_takes_memory() {
    the_measure_sees_memory();
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    // Everything that is made once and kept, such as the images and tables of certificates, is made now.
    Node::of(&vendor).update(&server).await.unwrap();

    let before = begin();
    Node::of(&vendor).update(&server).await.unwrap();
    assert_bounded("honest update", before);

    for path in ["timestamp.json", "snapshot.json", "targets.json", "stable.json", "release.json"] {
        server.misbehave(path, Fault::Endless);
        let before = begin();
        let failure = Node::of(&vendor).update(&server).await.unwrap_err();
        assert_eq!(category(&failure), "endless-data", "{path}: {failure}");
        assert_bounded(&format!("endless {path}"), before);
        server.behave();
    }
    // Ranges that do not end: the node reads what it asked for, and gets its release from the good beginning.
    for path in ["from-", "full.pack"] {
        server.misbehave(path, Fault::Endless);
        let mut node = Node::of(&vendor);
        if path == "full.pack" {
            node.running = None;
        }
        let before = begin();
        node.update(&server).await.unwrap();
        assert_bounded(&format!("endless {path}"), before);
        server.behave();
    }
    decompression_bombs();
    lying_indexes();

    // Within all bounds; then with too many, with names that are too long, and with both.
    for (depth, many, name, fault) in [
        (9, 1024, 128, "limit"),
        (0, 1025, 128, "format"),
        (0, 9_000, 100, "format"),
        (0, 16_000, 6, "format"),
        (0, 100, 15_000, "format"),
        (0, 3, 1 << 19, "format"),
    ] {
        let vendor = Vendor::with_two_releases();
        delegate_edge(&vendor);
        delegate_ever_further(&vendor, depth, many, name);
        let server = HttpsServer::start(vendor.repository()).await.unwrap();
        let before = begin();
        let repository = Node::of(&vendor).open(&server).await.unwrap();
        let failure = repository.channel(&"edge".parse().unwrap()).await.unwrap_err();
        assert_eq!(failure.category(), fault, "{many} names of {name} bytes, {depth} deep: {failure}");
        assert_bounded(&format!("{many} delegations to names of {name} bytes, {depth} deep"), before);
        Node::of(&vendor).update(&server).await.unwrap();
        assert_bounded(&format!("an update beside {many} delegations"), before);
    }

    delegate_to_seventy_long_roles(&vendor);
    let before = begin();
    Node::of(&vendor).update(&server).await.unwrap();
    assert_bounded("seventy long roles of other channels", before);
    let before = begin();
    let repository = Node::of(&vendor).open(&server).await.unwrap();
    for name in ["many-3", "many-4", "many-5", "many-6"] {
        let failure = repository.channel(&name.parse().unwrap()).await.unwrap_err();
        assert_eq!(failure.category(), "absent", "{failure}");
    }
    assert_bounded("four channels with long roles", before);
    // None of them has this release, so the search for it goes from role to role until it may not fetch any more.
    let failure = repository.find("releases/9.9/x86-64/full.pack").await.unwrap_err();
    assert_eq!(failure.category(), "limit", "{failure}");
    assert_bounded("a search through long roles", before);
}
