//! What a TPM will hold: in the signed manifest, and nothing of it lost on the way.

use std::fs;

use bascule_image::uki::Uki;
use serde_json::Value;

use super::secure_boot::key;
use super::workshop::{ONLINE, Workshop};

/// systemd's stub, saying that it is of a version whose measurements are known.
fn stub(workshop: &Workshop) {
    let mut stub = fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").expect("install systemd-boot-efi");
    let start = b"#### LoaderInfo: systemd-stub ";
    let at = stub.windows(start.len()).position(|text| text == start).unwrap() + start.len();
    stub[at..at + 3].copy_from_slice(b"257");
    fs::write(workshop.path("stub-257"), stub).unwrap();
}

fn manifest(workshop: &Workshop, build: &str) -> Value {
    let path = workshop.path(build).join("releases/1.0/x86-64/release.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn uki(workshop: &Workshop, build: &str) -> Vec<u8> {
    fs::read(workshop.path(build).join("releases/1.0/x86-64/uki.efi")).unwrap()
}

/// Renames a section.
fn rename(file: &mut [u8], from: &[u8; 8], to: &[u8; 8]) {
    let at = file.windows(8).position(|name| name == from).unwrap();
    file[at..at + 8].copy_from_slice(to);
}

#[test]
fn what_a_tpm_will_hold_is_signed_and_shown_and_no_signature_changes_it() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("tree", "1.0", |number| number);
    stub(&workshop);
    key(&workshop, "vendor");
    workshop.build("build", "1.0", "tree", "--stub stub-257");
    workshop.build(
        "signed",
        "1.0",
        "tree",
        "--stub stub-257 --secure-boot-key vendor.key --secure-boot-cert vendor.crt",
    );
    let measured = manifest(&workshop, "build")["measured"].clone();
    assert!(measured["stub"].as_str().unwrap().starts_with("257"), "{measured}");
    assert_eq!(measured["pcr11"].as_array().unwrap().len(), 5, "{measured}");
    assert_eq!(manifest(&workshop, "signed")["measured"], measured, "the firmware's signature is no section");
    // Another command line, another value.
    workshop.step(
        "build other --product acme-os --release 1.0 --root tree --kernel vmlinuz --initrd initrd --cmdline other --fast \
         --stub stub-257",
    );
    assert_ne!(manifest(&workshop, "other")["measured"], measured);
    workshop.publish("build");
    let shown = workshop.step("inspect repository --channel stable --release 1.0");
    let value = measured["pcr11"][4]["value"].as_str().unwrap();
    assert!(shown.contains(value) && shown.contains("enter-initrd:leave-initrd:sysinit:ready"), "{shown}");
}

#[test]
fn a_manifest_that_promises_other_values_is_not_published() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("tree", "1.0", |number| number);
    stub(&workshop);
    workshop.build("build", "1.0", "tree", "--stub stub-257");
    let mut changed = manifest(&workshop, "build");
    changed["measured"]["pcr11"][0]["value"] = format!("sha256:{}", "0".repeat(64)).into();
    let path = workshop.path("build/releases/1.0/x86-64/release.json");
    fs::write(path, serde_json::to_vec_pretty(&changed).unwrap()).unwrap();
    let (code, message) = workshop.refused(&format!("publish repository build --channel stable {ONLINE}"));
    assert!(code == 1 && message.contains("other values of PCR 11"), "{message}");
}

#[test]
fn a_signed_policy_in_a_ready_image_is_passed_on_untouched() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    stub(&workshop);
    key(&workshop, "vendor");
    workshop.build("build", "1.0", "tree", "--stub stub-257");
    let mut ready = uki(&workshop, "build");
    rename(&mut ready, b".sbat\0\0\0", b".pcrsig\0");
    rename(&mut ready, b".initrd\0", b".pcrpkey");
    fs::write(workshop.path("ready.efi"), &ready).unwrap();
    let build = "--product acme-os --release 1.0 --image build/image.raw --uki ready.efi --fast";
    workshop.step(&format!("build plain {build}"));
    assert!(uki(&workshop, "plain") == ready, "not one byte of it changes");
    workshop.step(&format!("build signed {build} --secure-boot-key vendor.key --secure-boot-cert vendor.crt"));
    let signed = uki(&workshop, "signed");
    for section in [".pcrsig", ".pcrpkey"] {
        let of = |file: &Vec<u8>| Uki::open(file).unwrap().section(section, 1 << 20).unwrap();
        assert!(!of(&ready).is_empty() && of(&signed) == of(&ready), "{section}");
    }
    let measured = manifest(&workshop, "signed")["measured"].clone();
    assert_eq!(measured, manifest(&workshop, "plain")["measured"]);
    // The key is measured, and the kernel is not told what a signature says of all this.
    assert_ne!(measured, manifest(&workshop, "build")["measured"]);
}
