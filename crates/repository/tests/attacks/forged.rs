//! Metadata that a team with a key of its own could sign to make readers take memory: within the bounds, and beyond them.

use bascule_image::Sha256;
use bascule_tests::vendor::{Vendor, describe};
use serde_json::{Value, json};

pub fn delegate_edge(vendor: &Vendor) {
    vendor.new_key("edge");
    let keys = vendor.keys(&["targets", "snapshot", "timestamp", "edge"]);
    let edge = "edge".parse().unwrap();
    vendor.publisher().delegate(&edge, &vendor.role(&["edge"], 1), vendor.signing(&keys)).unwrap();
}

/// The number of the newest file of a role.
fn newest(vendor: &Vendor, role: &str) -> u64 {
    let path = |version: &u64| vendor.repository().join(format!("metadata/{version}.{role}.json"));
    (1..40).rev().find(|version| path(version).exists()).unwrap()
}

/// Signs roles of the team's key, each given by name and content, under a version that is high enough for everything, and lets snapshot and
/// timestamp name them.
pub fn forge_roles(vendor: &Vendor, roles: Vec<(String, Value)>) {
    const VERSION: u64 = 30;
    let metadata = vendor.repository().join("metadata");
    let original = metadata.join(format!("{}.channel-edge.json", newest(vendor, "channel-edge")));
    let names: Vec<String> = roles.iter().map(|(name, _)| name.clone()).collect();
    for (name, content) in roles {
        let file = format!("{VERSION}.{name}.json");
        std::fs::copy(&original, metadata.join(&file)).unwrap();
        vendor.forge(&file, &["edge"], |signed| {
            signed["version"] = VERSION.into();
            signed["targets"] = json!({});
            signed.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
        });
        let length = std::fs::metadata(metadata.join(&file)).unwrap().len();
        assert!(length < 2 << 20, "{name} would be refused for its {length} bytes");
    }
    let snapshot = format!("{VERSION}.snapshot.json");
    std::fs::copy(metadata.join(format!("{}.snapshot.json", newest(vendor, "snapshot"))), metadata.join(&snapshot))
        .unwrap();
    vendor.forge(&snapshot, &["snapshot"], |signed| {
        signed["version"] = VERSION.into();
        for name in &names {
            signed["meta"][format!("{name}.json")] = json!({"version": VERSION});
        }
    });
    let snapshot = describe(&metadata.join(&snapshot), VERSION);
    vendor.forge("timestamp.json", &["timestamp"], |signed| {
        signed["version"] = VERSION.into();
        signed["meta"]["snapshot.json"] = snapshot;
    });
}

/// What the top-level role says of the team: its keys and their ids.
fn edge_keys(vendor: &Vendor) -> (Value, Value) {
    let path = vendor.repository().join(format!("metadata/{}.targets.json", newest(vendor, "targets")));
    let targets: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let delegations = &targets["signed"]["delegations"];
    (delegations["keys"].clone(), delegations["roles"][0]["keyids"].clone())
}

/// One team's role delegates to `many` others with names of `name` bytes, all of which may sign everything, and the first of those does so again,
/// `depth` times. A reader that wrote down the way to each of them took 312 MiB for 32,000, and 2.8 GiB for names of 15,000.
pub fn delegate_ever_further(vendor: &Vendor, depth: usize, many: usize, name: usize) {
    let (keys, keyids) = edge_keys(vendor);
    let names = |level: usize| (0..many).map(move |number| format!("{level}{number:0>5}{}", "n".repeat(name - 6)));
    let mut roles = vec!["channel-edge".to_owned()];
    roles.extend((0..depth).map(|level| names(level).next().unwrap()));
    let below = |level: usize| -> Value {
        names(level).map(|name| json!({"name": name, "keyids": keyids, "threshold": 1, "paths": ["*"]})).collect()
    };
    let content = |level: usize| json!({"delegations": {"keys": keys, "roles": below(level)}});
    forge_roles(vendor, roles.into_iter().enumerate().map(|(level, name)| (name, content(level))).collect());
}

/// Roles of nearly 2 MiB that are all within the bounds, and made of as many small parts of one kind as there is room for.
pub fn full_of_small_parts(vendor: &Vendor) -> Vec<(&'static str, Value)> {
    let (keys, keyids) = edge_keys(vendor);
    let delegation = |paths: Value| json!([{"name": "below", "keyids": keyids, "threshold": 1, "paths": paths}]);
    let many_keys = (0..4_000_u32).map(|number| {
        let key = json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": format!("{number:0>64x}")}});
        (format!("{number:x}"), key)
    });
    let many_keys: serde_json::Map<String, Value> = many_keys.collect();
    let targets = |hashes: Value, count: u32| -> Value {
        let target = |number: u32| (format!("{number:x}"), json!({"length": 1, "hashes": hashes}));
        (0..count).map(target).collect::<serde_json::Map<_, _>>().into()
    };
    vec![
        ("paths of one letter", json!({"delegations": {"keys": keys, "roles": delegation(json!(vec!["x"; 500_000]))}})),
        ("empty paths", json!({"delegations": {"keys": keys, "roles": delegation(json!(vec![""; 600_000]))}})),
        ("keys", json!({"delegations": {"keys": many_keys, "roles": []}})),
        ("files without digests", json!({"targets": targets(json!({}), 55_000)})),
        ("files", json!({"targets": targets(json!({"sha256": "0".repeat(64)}), 17_000)})),
        ("empty lists in an undefined member", json!({"more": vec![json!([]); 600_000]})),
        ("members of an undefined member", json!({"more": targets(json!(0), 60_000)})),
    ]
}

/// Below one team's role two lines of roles, `depth` each, as long as they may be: one for `releases/a/*/*`, one for `releases/b/*/*`.
pub fn nest_long_roles(vendor: &Vendor, depth: usize) {
    let (keys, keyids) = edge_keys(vendor);
    let below = |level: usize, lines: &[&str]| -> Value {
        let role = |line: &&str| {
            let paths = [format!("releases/{line}/*/*")];
            json!({"name": format!("{line}-{level}"), "keyids": keyids, "threshold": 1, "paths": paths})
        };
        let roles: Vec<Value> = if level < depth { lines.iter().map(role).collect() } else { Vec::new() };
        json!({"keys": keys, "roles": roles})
    };
    let file = |number: u32| (format!("{number:x}"), json!({"length": 1, "hashes": {}}));
    let files: serde_json::Map<String, Value> = (0..50_000).map(file).collect();
    let mut roles = vec![("channel-edge".to_owned(), json!({"delegations": below(0, &["a", "b"])}))];
    for (line, level) in ["a", "b"].into_iter().flat_map(|line| (0..depth).map(move |level| (line, level))) {
        roles.push((format!("{line}-{level}"), json!({"targets": files, "delegations": below(level + 1, &[line])})));
    }
    forge_roles(vendor, roles);
}

/// Seventy channels of other teams, each with a role of 1.5 MiB, all of which may sign release files. A reader that loads what it
/// doesn't need took 246 MB for them.
pub fn delegate_to_seventy_long_roles(vendor: &Vendor) {
    const LONG: usize = 3 << 19;
    delegate_edge(vendor);
    let metadata = vendor.repository().join("metadata");
    let path = |name: &str| metadata.join(name);
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
    std::fs::copy(path(&format!("{}.targets.json", newest(vendor, "targets"))), path("30.targets.json")).unwrap();
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
    std::fs::copy(path(&format!("{}.snapshot.json", newest(vendor, "snapshot"))), path("30.snapshot.json")).unwrap();
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
