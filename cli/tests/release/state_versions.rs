//! State versions: from os-release into the signed manifest, and never down in a channel.

use std::fs;

use serde_json::{Value, json};

use super::workshop::{ONLINE, Workshop};

fn build(workshop: &Workshop, version: &str, declares: &str) {
    let text = format!("ID=acme\nVERSION_ID={version}\nIMAGE_ID=acme-os\nIMAGE_VERSION={version}\n{declares}\n");
    fs::write(workshop.path("tree/usr/lib/os-release"), text).unwrap();
    workshop.step(&format!(
        "build build-{version} --product acme-os --release {version} --root tree --kernel vmlinuz --initrd initrd --cmdline quiet \
         --fast"
    ));
}

#[test]
fn a_state_version_is_signed_and_neither_published_nor_promoted_below_an_earlier_one() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("tree", "1.0", |number| number);
    for (version, declares) in [("1.0", ""), ("1.1", "BASCULE_STATE_VERSION=2"), ("1.2", "BASCULE_STATE_VERSION=1")] {
        build(&workshop, version, declares);
    }
    let signed = |version: &str| {
        let path = workshop.path(&format!("build-{version}/releases/{version}/x86-64/release.json"));
        let manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        (manifest["format"].clone(), manifest["stateVersion"].clone())
    };
    assert_eq!(signed("1.0"), (json!(1), Value::Null));
    assert_eq!(signed("1.1"), (json!(2), json!(2)));
    workshop.publish("build-1.0");
    workshop.publish("build-1.1");
    let is_refused = |arguments: &str| {
        let (code, message) = workshop.refused(&format!("{arguments} {ONLINE}"));
        assert!(code != 0 && message.contains("1.1 has state version 2, and 1.2 has 1"), "{arguments}: {message}");
    };
    is_refused("publish repository build-1.2 --channel stable");
    // Nor by way of another channel.
    workshop.step(&format!("publish repository build-1.2 --channel test {ONLINE}"));
    is_refused("promote repository --from test --to stable --release 1.2");
}
