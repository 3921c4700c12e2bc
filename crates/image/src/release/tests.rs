//! The signed files: what is accepted, what is refused, and what the refusal says.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};

use super::ParseError;
use super::channel::{self, Channel, Refusal};
use super::manifest::{self, Manifest, PackKind};
use bascule_names::{Architecture, RootHash, Version};

fn hash(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn manifest_json() -> Value {
    let index = json!({"length": 184, "digest": format!("sha256:{}", hash('1'))});
    json!({
        "format": 1,
        "product": "acme-os",
        "version": "41.3.0",
        "architecture": "x86-64",
        "image": {"size": 1048576},
        "verity": {
            "algorithm": "sha256", "blockSize": 4096, "salt": "00ff", "uuid": "01234567-89ab-cdef-0123-456789abcdef",
            "rootHash": hash('a'), "hashTreeSize": 4096 * 4
        },
        "uki": {"path": "releases/41.3.0/x86-64/uki.efi", "size": 1000, "digest": format!("sha256:{}", hash('2'))},
        "packs": [
            {"kind": "full", "path": "releases/41.3.0/x86-64/full.pack", "size": 500000, "index": index, "transferBytes": 500000},
            {"kind": "delta", "base": hash('b'), "path": "releases/41.3.0/x86-64/from-b.pack", "size": 9000, "index": index,
             "transferBytes": 9000},
            {"kind": "delta", "base": hash('c'), "path": "releases/41.3.0/x86-64/from-c.pack", "size": 600000, "index": index,
             "transferBytes": 600000}
        ],
        "packages": {"format": "CycloneDX", "path": "releases/41.3.0/x86-64/packages.json", "size": 10,
                     "digest": format!("sha256:{}", hash('3'))},
        "measured": {"stub": "257.9-1", "pcr11": [{"phase": "", "value": format!("sha256:{}", hash('5'))}]},
        "bootLoader": {"version": "257.9-1~deb13u1", "size": 140800, "digest": format!("sha256:{}", hash('6'))}
    })
}

fn channel_json() -> Value {
    let release = |version: &str| {
        json!({
            "version": version,
            "manifests": {"x86-64": {
                "path": format!("releases/{version}/x86-64/release.json"), "size": 900, "digest": format!("sha256:{}", hash('4'))
            }},
            "publishedAt": "2026-11-01T08:00:00Z"
        })
    };
    let mut releases: Vec<Value> = ["1.0", "1.1", "2.0", "2.1", "2.2"].into_iter().map(release).collect();
    releases[2]["floor"] = json!("1.1");
    releases[3]["floor"] = json!("2.0");
    releases[3]["severity"] = json!("Critical");
    releases[3]["fixes"] = json!(["CVE-2026-12345"]);
    releases[3]["notesUrl"] = json!("https://images.example.com/notes/2.1");
    releases[4]["withdrawn"] = json!({"at": "2026-11-02T08:00:00Z", "reason": "breaks NIC offload"});
    json!({"format": 1, "product": "acme-os", "channel": "stable", "releases": releases})
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

#[test]
fn a_manifest_round_trips_and_prints_one_way() {
    let manifest = Manifest::parse(&bytes(&manifest_json())).unwrap();
    let printed = manifest.to_bytes().unwrap();
    assert_eq!(Manifest::parse(&printed).unwrap(), manifest);
    assert_eq!(Manifest::parse(&printed).unwrap().to_bytes().unwrap(), printed);
    assert_eq!(serde_json::from_slice::<Value>(&printed).unwrap(), manifest_json());
}

/// An agent that does not know the field leaves the boot loader as it is, which is no harm: the format stays.
#[test]
fn a_boot_loader_is_an_addition_that_older_readers_pass_over() {
    let with = Manifest::parse(&bytes(&manifest_json())).unwrap();
    assert_eq!(
        (with.format, with.boot_loader.as_ref().map(|loader| loader.downgrade)),
        (manifest::FORMAT, Some(false))
    );
    let mut without = manifest_json();
    without.as_object_mut().unwrap().remove("bootLoader");
    let without = Manifest::parse(&bytes(&without)).unwrap();
    assert_eq!((without.format, &without.boot_loader), (manifest::FORMAT, &None));
    assert!(!String::from_utf8(without.to_bytes().unwrap()).unwrap().contains("bootLoader"));
    let mut down = manifest_json();
    down["bootLoader"]["downgrade"] = json!(true);
    let printed = Manifest::parse(&bytes(&down)).unwrap().to_bytes().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&printed).unwrap(), down);
}

#[test]
fn the_cheapest_usable_pack_comes_first_and_the_full_one_is_always_there() {
    let manifest = Manifest::parse(&bytes(&manifest_json())).unwrap();
    let names = |held: &[char]| -> Vec<String> {
        let held: Vec<RootHash> = held.iter().map(|digit| hash(*digit).parse().unwrap()).collect();
        let packs = manifest.usable_packs(&held);
        packs.iter().map(|pack| pack.path.as_str().rsplit('/').next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&[]), ["full.pack"]);
    assert_eq!(names(&['b']), ["from-b.pack", "full.pack"]);
    // A delta that is larger than the full pack is the last resort, not the first.
    assert_eq!(names(&['c', 'b']), ["from-b.pack", "full.pack", "from-c.pack"]);
    assert_eq!(manifest.packs[1].kind, PackKind::Delta { base: hash('b').parse().unwrap() });
}

#[test]
fn every_number_that_does_not_fit_is_refused_by_name() {
    let near = [1_u64 << 32, u64::MAX - 4095, u64::MAX];
    let mut cases = vec![
        ("/verity/algorithm", json!("sha1"), "verity.algorithm"),
        ("/verity/blockSize", json!(1024), "verity.blockSize"),
        ("/verity/salt", json!("00".repeat(257)), "verity.salt"),
        ("/verity/hashTreeSize", json!(4096), "verity.hashTreeSize"),
        ("/image/size", json!(0), "image.size"),
        ("/image/size", json!(1_048_577), "image.size"),
        ("/image/size", json!(2_097_152), "verity.hashTreeSize"),
        ("/uki/size", json!(0), "uki.size"),
        ("/packs/0/size", json!(100), "packs.index.length"),
        ("/packs/1/transferBytes", json!(9001), "packs.transferBytes"),
        ("/packs/1/kind", json!("full"), "packs"),
        ("/packs/2/base", json!(hash('b')), "packs.base"),
        ("/packs/2/base", json!(hash('a')), "packs.base"),
        ("/measured", json!({"stub": "257", "pcr11": []}), "measured.pcr11"),
        ("/measured/stub", json!("two words"), "measured"),
        ("/measured/pcr11/0/phase", json!("x".repeat(129)), "measured"),
        ("/bootLoader/size", json!(0), "bootLoader.size"),
        ("/bootLoader/size", json!((4_u64 << 20) + 1), "bootLoader.size"),
        ("/bootLoader/version", json!(""), "bootLoader.version"),
        ("/bootLoader/version", json!("two words"), "bootLoader.version"),
        ("/packs/2/path", json!("releases/41.3.0/x86-64/full.pack"), "packs.path"),
    ];
    for value in near {
        cases.push(("/uki/size", json!(value), "uki.size"));
        cases.push(("/packs/0/size", json!(value), "packs.size"));
        cases.push(("/packs/0/index/length", json!(value), "packs.index.length"));
        cases.push(("/packages/size", json!(value), "packages.size"));
    }
    for (pointer, value, wanted) in cases {
        let mut bad = manifest_json();
        *bad.pointer_mut(pointer).unwrap() = value.clone();
        match Manifest::parse(&bytes(&bad)) {
            Err(ParseError::Invalid { field, .. }) => assert_eq!(field, wanted, "{pointer} {value}"),
            other => panic!("{pointer} {value}: {other:?}"),
        }
    }
}

#[test]
fn what_is_unknown_is_refused_and_says_what_would_be_accepted() {
    let mut newer = manifest_json();
    newer["format"] = json!(3);
    newer["image"] = json!("another shape");
    let error = Manifest::parse(&bytes(&newer)).unwrap_err();
    assert_eq!(error.category(), "format-unknown");
    assert!(error.to_string().contains("format version 3, this version accepts 2 at most"), "{error}");

    let mut foreign = manifest_json();
    foreign["architecture"] = json!("riscv64");
    let error = Manifest::parse(&bytes(&foreign)).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("riscv64") && cause.contains("x86-64 and arm64"), "{cause}");

    let manifest = Manifest::parse(&bytes(&manifest_json())).unwrap();
    let refusal = manifest.accept_for(&"other-os".parse().unwrap(), Architecture::X86_64).unwrap_err();
    assert_eq!(refusal.to_string(), "this is a release of product acme-os, this host accepts other-os");
    let refusal = manifest.accept_for(&"acme-os".parse().unwrap(), Architecture::Arm64).unwrap_err();
    assert_eq!(refusal.to_string(), "release 41.3.0 exists for x86-64, this host accepts arm64");
    assert_eq!(manifest.accept_for(&"acme-os".parse().unwrap(), Architecture::X86_64), Ok(()));
}

#[test]
fn a_state_version_is_in_a_format_that_older_readers_refuse() {
    let mut with = manifest_json();
    with["stateVersion"] = json!(4);
    for (format, number, wanted) in [
        (1, json!(4), Some("format")),
        (2, json!(4), None),
        (2, json!(0), Some("stateVersion")),
        (2, Value::Null, Some("format")),
        (1, Value::Null, None),
    ] {
        (with["format"], with["stateVersion"]) = (json!(format), number.clone());
        let found = match Manifest::parse(&bytes(&with)) {
            Ok(manifest) => {
                assert_eq!(manifest.format, manifest::format_for(manifest.state_version));
                None
            }
            Err(ParseError::Invalid { field, .. }) => Some(field),
            Err(other) => panic!("{format} {number}: {other}"),
        };
        assert_eq!(found, wanted, "{format} {number}");
    }
    // Without one, nothing of the published bytes changes.
    let before = Manifest::parse(&bytes(&manifest_json())).unwrap().to_bytes().unwrap();
    assert!(!String::from_utf8(before).unwrap().contains("stateVersion"));
}

#[test]
fn files_longer_than_their_cap_are_not_even_looked_at() {
    let spaces = vec![b' '; manifest::MAX_LENGTH + 1];
    assert!(matches!(Manifest::parse(&spaces), Err(ParseError::TooLong { .. })));
    let spaces = vec![b' '; channel::MAX_LENGTH + 1];
    assert!(matches!(Channel::parse(&spaces), Err(ParseError::TooLong { .. })));
    let deep = format!("{{\"format\":1,\"x\":{}", "[".repeat(100_000));
    assert!(matches!(Manifest::parse(deep.as_bytes()), Err(ParseError::Json { .. })));
}

#[test]
fn a_channel_round_trips_and_offers_its_last_release_that_stands() {
    let channel = Channel::parse(&bytes(&channel_json())).unwrap();
    assert_eq!(Channel::parse(&channel.to_bytes().unwrap()).unwrap(), channel);
    assert_eq!(channel.newest(Architecture::X86_64).unwrap().version, version("2.1"));
    assert_eq!(channel.newest(Architecture::Arm64), None);
}

#[test]
fn a_node_steps_through_every_floor_on_its_way() {
    let channel = Channel::parse(&bytes(&channel_json())).unwrap();
    let next = |running: &str, target: &str| {
        let step = channel.step_towards(&version(target), &version(running), Architecture::X86_64);
        step.map(|release| release.version.to_string())
    };
    assert_eq!(next("1.0", "2.1").unwrap(), "1.1");
    assert_eq!(next("1.1", "2.1").unwrap(), "2.0");
    assert_eq!(next("2.0", "2.1").unwrap(), "2.1");
    assert_eq!(next("2.1", "2.1").unwrap(), "2.1");
    assert_eq!(next("2.1", "1.0").unwrap_err().category(), "downgrade");
    let error = next("2.0", "2.2").unwrap_err();
    assert_eq!(error.to_string(), "release 2.2 was withdrawn (breaks NIC offload); it offers 2.1");
    let error = next("2.0", "3.0").unwrap_err();
    assert_eq!(error.to_string(), "channel stable has no release 3.0; it offers 2.1");
    let below = channel.release(&version("2.1")).unwrap().accept_from(&version("1.1")).unwrap_err();
    let (floor, running) = (version("2.0"), version("1.1"));
    assert_eq!(below, Refusal::BelowFloor { version: version("2.1"), floor, running });
}

#[test]
fn a_floor_that_is_gone_and_an_allowed_downgrade() {
    let mut gone = channel_json();
    gone["releases"][2]["withdrawn"] = json!({"at": "2026-11-02T08:00:00Z", "reason": "bad"});
    gone["releases"][0]["downgrade"] = json!(true);
    let channel = Channel::parse(&bytes(&gone)).unwrap();
    let next = |running: &str, target: &str| {
        channel
            .step_towards(&version(target), &version(running), Architecture::X86_64)
            .map(|release| release.version.clone())
    };
    assert_eq!(next("1.0", "2.1").unwrap_err().category(), "withdrawn");
    assert_eq!(next("2.1", "1.0"), Ok(version("1.0")));
    assert_eq!(
        channel.installable(&version("1.0"), Architecture::Arm64).unwrap_err().to_string(),
        "release 1.0 exists for x86-64, this host accepts arm64"
    );
}

#[test]
fn channel_entries_that_make_no_sense_are_refused_by_name() {
    for (pointer, value, wanted) in [
        ("/releases/1/version", json!("1.0"), "releases.version"),
        ("/releases/2/floor", json!("2.0"), "releases.floor"),
        ("/releases/0/manifests", json!({}), "releases.manifests"),
        ("/releases/0/manifests/x86-64/size", json!(u64::MAX), "releases.manifests.size"),
        ("/releases/3/fixes", json!(["x".repeat(33)]), "releases.fixes"),
        ("/releases/3/fixes", json!(["CVE 1"]), "releases.fixes"),
        ("/releases/3/notesUrl", json!("http://images.example.com"), "releases.notesUrl"),
        ("/releases/4/withdrawn/reason", json!("two\nlines"), "releases.withdrawn.reason"),
    ] {
        let mut bad = channel_json();
        *bad.pointer_mut(pointer).unwrap() = value;
        match Channel::parse(&bytes(&bad)) {
            Err(ParseError::Invalid { field, .. }) => assert_eq!(field, wanted, "{pointer}"),
            other => panic!("{pointer}: {other:?}"),
        }
    }
    let mut many = channel_json();
    let entry = many["releases"][0].clone();
    many["releases"] = (0..257)
        .map(|at| {
            let mut entry = entry.clone();
            entry["version"] = json!(format!("1.{at}"));
            entry
        })
        .collect();
    assert!(matches!(Channel::parse(&bytes(&many)), Err(ParseError::Invalid { field: "releases", .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, rng_seed: RngSeed::Fixed(41), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_parser_panic(noise in proptest::collection::vec(any::<u8>(), 0..300), at in 0_usize..4096, cut in 0_usize..4096) {
        let _ = (Manifest::parse(&noise), Channel::parse(&noise));
        for good in [bytes(&manifest_json()), bytes(&channel_json())] {
            let mut bad = good.clone();
            let at = at % bad.len();
            bad[at] = noise.first().copied().unwrap_or(0);
            let _ = (Manifest::parse(&bad), Channel::parse(&bad));
            prop_assert!(Manifest::parse(&good[..cut % good.len()]).is_err());
            prop_assert!(Channel::parse(&good[..cut % good.len()]).is_err());
        }
    }
}
