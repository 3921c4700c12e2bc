//! The boot loader that a release brings: found in the tree, looked at, signed for by the manifest, shown.

use std::fs;

use bascule_image::Sha256;
use serde_json::{Value, json};

use super::secure_boot::key;
use super::workshop::Workshop;

const LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const IN_TREE: &str = "tree/usr/lib/systemd/boot/efi";

/// A tree with this file where systemd's package has its boot loader.
fn with_loader(workshop: &Workshop, name: &str, bytes: &[u8]) {
    fs::create_dir_all(workshop.path(IN_TREE)).unwrap();
    fs::write(workshop.path(IN_TREE).join(name), bytes).unwrap();
}

fn loader() -> Vec<u8> {
    fs::read(LOADER).expect("install systemd-boot-efi")
}

fn brought(workshop: &Workshop, build: &str) -> Value {
    let path = workshop.path(build).join("releases/1.0/x86-64/release.json");
    let manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(manifest["format"], json!(1), "an older agent passes over it");
    manifest["bootLoader"].clone()
}

#[test]
fn the_boot_loader_in_the_tree_is_signed_for_and_shown() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("tree", "1.0", |number| number);
    let loader = loader();
    with_loader(&workshop, "systemd-bootx64.efi", &loader);
    workshop.build("without", "1.0", "tree", "");
    assert_eq!(brought(&workshop, "without"), Value::Null, "that the package is installed says nothing");
    workshop.build("build", "1.0", "tree", "--boot-loader");
    let found = brought(&workshop, "build");
    assert_eq!(found["size"], json!(loader.len()));
    assert_eq!(found["digest"], json!(format!("sha256:{}", Sha256::of(&loader))));
    assert_eq!(found["downgrade"], Value::Null);
    let version = found["version"].as_str().unwrap();
    assert!(version.starts_with(|first: char| first.is_ascii_digit()), "{version}");
    workshop.publish("build");
    let shown = workshop.step("inspect repository --channel stable --release 1.0");
    assert!(shown.contains(&format!("systemd-boot {version} (")), "{shown}");
    workshop.build("down", "1.0", "tree", "--boot-loader --boot-loader-downgrade");
    assert_eq!(brought(&workshop, "down")["downgrade"], json!(true));
    // An image that is built elsewhere.
    let ready = "--product acme-os --release 1.0 --image build/image.raw --kernel vmlinuz --initrd initrd --fast";
    workshop.step(&format!("build ready {ready} --boot-loader={LOADER}"));
    assert_eq!(brought(&workshop, "ready"), found);
}

#[test]
fn what_no_node_would_start_is_refused() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    let build =
        "build out --product acme-os --release 1.0 --root tree --kernel vmlinuz --initrd initrd --fast --boot-loader";
    let refused = |more: &str, part: &str| {
        let (code, message) = workshop.refused(&format!("{build}{more}"));
        assert!(code != 0 && message.contains(part), "{part}: {message}");
        let _ = fs::remove_dir_all(workshop.path("out"));
    };
    refused("", "error 20: the tree has neither usr/lib/systemd/boot/efi/systemd-bootx64.efi.signed nor");
    let good = loader();
    let mut arm = good.clone();
    let headers = u32::from_le_bytes(arm[0x3C..0x40].try_into().unwrap()) as usize;
    arm[headers + 4..headers + 6].copy_from_slice(&0xAA64_u16.to_le_bytes());
    let stub = fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").unwrap();
    for (bytes, part) in [
        (b"#!/bin/sh".to_vec(), "error 20: "),
        (stub, "is no systemd-boot that says its version"),
        (arm, "error 4: the boot loader is for arm64, the release for x86-64"),
        (vec![0; (4 << 20) + 1], "is longer than 4194304 bytes"),
    ] {
        with_loader(&workshop, "systemd-bootx64.efi", &bytes);
        refused("", part);
    }
    with_loader(&workshop, "systemd-bootx64.efi", &good);
    refused("=vmlinuz", "is not what nodes will find in the tree");
    let image = "build out --product acme-os --release 1.0 --image vmlinuz --kernel vmlinuz --fast --boot-loader";
    let (_, message) = workshop.refused(image);
    assert!(message.contains("--boot-loader=FILE"), "{message}");
    let (code, _) = workshop.refused("build out --product acme-os --release 1.0 --root tree --boot-loader-downgrade");
    assert_eq!(code, 2, "it needs the other option");
}

#[test]
fn a_boot_loader_is_signed_as_the_uki_is() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    key(&workshop, "vendor");
    key(&workshop, "other");
    with_loader(&workshop, "systemd-bootx64.efi", &loader());
    let signing = "--secure-boot-key vendor.key --secure-boot-cert vendor.crt";
    let build = "--product acme-os --release 1.0 --root tree --kernel vmlinuz --initrd initrd --fast --boot-loader";
    let (_, message) = workshop.refused(&format!("build unsigned {build} {signing}"));
    assert!(message.contains("error 35: the boot loader is not signed for Secure Boot"), "{message}");
    let signed = format!("{IN_TREE}/systemd-bootx64.efi.signed");
    workshop.step(&format!("sign-efi {LOADER} {signed} --secure-boot-key other.key --secure-boot-cert other.crt"));
    let (_, message) = workshop.refused(&format!("build other {build} {signing}"));
    assert!(message.contains("error 35: the boot loader is signed by 'CN=other'"), "{message}");
    workshop.step(&format!("sign-efi {LOADER} {signed} {signing}"));
    workshop.step(&format!("build signed {build} {signing}"));
    let digest = format!("sha256:{}", Sha256::of(&fs::read(workshop.path(&signed)).unwrap()));
    assert_eq!(brought(&workshop, "signed")["digest"], json!(digest), "the signed one goes first");
    // A UKI that was signed elsewhere.
    fs::copy(workshop.path("signed/releases/1.0/x86-64/uki.efi"), workshop.path("ready.efi")).unwrap();
    fs::remove_file(workshop.path(&signed)).unwrap();
    let ready = "--product acme-os --release 1.0 --image signed/image.raw --uki ready.efi --fast";
    let (_, message) = workshop.refused(&format!("build ready {ready} --boot-loader={LOADER}"));
    assert!(message.contains("error 35: the UKI is signed for Secure Boot, the boot loader is not"), "{message}");
    let _ = fs::remove_dir_all(workshop.path("ready"));
    workshop.step(&format!("build ready {ready} --boot-loader={LOADER} --accept 35"));
    assert_ne!(brought(&workshop, "ready"), Value::Null);
}
