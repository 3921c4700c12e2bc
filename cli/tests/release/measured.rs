//! What a TPM will hold: in the signed manifest, and nothing of it lost on the way.

use std::fs;
use std::process::Command;

use bascule_image::uki::Uki;
use serde_json::Value;

use super::secure_boot::{key, openssl};
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

/// Keys of a TPM's policies: `NAME.pem`, `NAME.pub`.
fn policy_key(workshop: &Workshop, name: &str, bits: usize) {
    openssl(workshop, &format!("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:{bits} -out {name}.pem"));
    openssl(workshop, &format!("pkey -in {name}.pem -pubout -out {name}.pub"));
}

#[allow(clippy::ptr_arg, reason = "the reader of UKIs takes a sized thing")]
fn section(file: &Vec<u8>, name: &'static str) -> Vec<u8> {
    Uki::open(file).unwrap().section(name, 1 << 20).unwrap()
}

/// What lies in `.pcrsig`.
#[allow(clippy::ptr_arg, reason = "the reader of UKIs takes a sized thing")]
fn signed(file: &Vec<u8>) -> Vec<Value> {
    let signed: Value = serde_json::from_slice(&section(file, ".pcrsig")).unwrap();
    assert_eq!(signed.as_object().unwrap().len(), 1, "{signed}");
    signed["sha256"].as_array().unwrap().clone()
}

/// Whether openssl finds each signature right.
fn holds(workshop: &Workshop, entry: &Value, key: &str) -> bool {
    use base64::Engine as _;
    let text = |field: &str| entry[field].as_str().unwrap().to_owned();
    let policy: Vec<u8> =
        (0..64).step_by(2).map(|at| u8::from_str_radix(&text("pol")[at..at + 2], 16).unwrap()).collect();
    fs::write(workshop.path("policy"), policy).unwrap();
    let signature = base64::engine::general_purpose::STANDARD.decode(text("sig")).unwrap();
    fs::write(workshop.path("signature"), signature).unwrap();
    Command::new("openssl")
        .args(["dgst", "-sha256", "-verify", key, "-signature", "signature", "policy"])
        .current_dir(workshop.path(""))
        .output()
        .expect("install openssl")
        .status
        .success()
}

#[test]
fn what_a_tpm_will_hold_is_signed_by_a_key_of_its_own_or_a_program_that_keeps_it() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    stub(&workshop);
    key(&workshop, "vendor");
    policy_key(&workshop, "tpm", 2048);
    policy_key(&workshop, "other", 2048);
    workshop.build("build", "1.0", "tree", "--stub stub-257 --pcr-public-key tpm.pub --pcr-key tpm.pem");
    let built = uki(&workshop, "build");
    assert!(section(&built, ".pcrpkey") == fs::read(workshop.path("tpm.pub")).unwrap());
    let entries = signed(&built);
    assert_eq!(entries.len(), 4, "one for each phase of systemd's");
    for entry in &entries {
        assert!(holds(&workshop, entry, "tpm.pub") && !holds(&workshop, entry, "other.pub"), "{entry}");
    }
    // A program gives the same bytes; so does what was signed elsewhere, and a signature for the firmware changes nothing.
    fs::write(workshop.path("sign"), "#!/bin/sh\nexec openssl dgst -sha256 -sign tpm.pem\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(workshop.path("sign"), fs::Permissions::from_mode(0o755)).unwrap();
    workshop.build("program", "1.0", "tree", "--stub stub-257 --pcr-public-key tpm.pub --pcr-signer ./sign");
    assert!(uki(&workshop, "program") == built);
    fs::write(workshop.path("signed.json"), section(&built, ".pcrsig")).unwrap();
    let elsewhere = "--stub stub-257 --pcr-public-key tpm.pub --pcr-signature signed.json";
    workshop.build("elsewhere", "1.0", "tree", elsewhere);
    assert!(uki(&workshop, "elsewhere") == built);
    let both = "--secure-boot-key vendor.key --secure-boot-cert vendor.crt";
    workshop.build("both", "1.0", "tree", &format!("{elsewhere} {both}"));
    assert_eq!(manifest(&workshop, "both")["measured"], manifest(&workshop, "build")["measured"]);

    // Of an OS with other phases.
    let phases = "--stub stub-257 --pcr-public-key tpm.pub --pcr-key tpm.pem --pcr-phase= --pcr-phase=mine:sysinit";
    workshop.build("phases", "1.0", "tree", phases);
    assert_eq!(signed(&uki(&workshop, "phases")).len(), 2);
    let measured = manifest(&workshop, "phases")["measured"]["pcr11"].clone();
    assert_eq!((measured.as_array().unwrap().len(), measured[5]["phase"].as_str()), (6, Some("mine:sysinit")));
    workshop.repository();
    workshop.publish("phases");
}

#[test]
fn what_was_signed_for_another_image_or_by_another_key_is_refused() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    stub(&workshop);
    policy_key(&workshop, "tpm", 2048);
    policy_key(&workshop, "other", 2048);
    policy_key(&workshop, "long", 3072);
    workshop.build("build", "1.0", "tree", "--stub stub-257 --pcr-public-key tpm.pub --pcr-key tpm.pem");
    let built = uki(&workshop, "build");
    fs::write(workshop.path("signed.json"), section(&built, ".pcrsig")).unwrap();
    fs::write(workshop.path("text.json"), "{\"sha256\": 7}").unwrap();
    fs::write(workshop.path("nothing.json"), "{\"sha1\": []}").unwrap();
    let build = "--product acme-os --release 1.0 --root tree --kernel vmlinuz --initrd initrd --fast --stub stub-257";
    for (arguments, part) in [
        ("--cmdline other --pcr-public-key tpm.pub --pcr-signature signed.json", "error 17: 4 of 4 signatures"),
        ("--cmdline quiet --pcr-public-key tpm.pub --pcr-signature text.json", "error 17: the UKI's .pcrsig holds no"),
        ("--cmdline quiet --pcr-public-key other.pub --pcr-signature signed.json", "error 18: no signature"),
        ("--cmdline quiet --pcr-public-key other.pub --pcr-key tpm.pem", "does not belong to the public key other.pub"),
        ("--cmdline quiet --pcr-public-key long.pub --pcr-key long.pem", "it has 3072 bits"),
        ("--cmdline quiet --pcr-public-key tpm.pem --pcr-key tpm.pem", "it is no public key in PEM"),
        ("--cmdline quiet --pcr-public-key tpm.pub", "needs what it signed too"),
        ("--cmdline quiet --pcr-public-key tpm.pub --pcr-signer false", "gave no signature"),
        ("--cmdline quiet --pcr-public-key tpm.pub --pcr-signer echo", "does not verify with --pcr-public-key"),
    ] {
        let (code, message) = workshop.refused(&format!("build refused {build} {arguments}"));
        assert_eq!(code, 1, "{arguments}");
        assert!(message.contains(part), "{arguments}: {message}");
        let _ = fs::remove_dir_all(workshop.path("refused"));
    }
    let said_nothing = "--cmdline quiet --pcr-public-key tpm.pub --pcr-signature nothing.json";
    let output = workshop.run(&format!("build nothing {build} {said_nothing}"));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && message.contains("warning 33: the UKI's .pcrsig says nothing"), "{message}");
    let unknown = "build unknown --product acme-os --release 1.0 --root tree --kernel vmlinuz --fast \
                   --stub stub-old --pcr-public-key tpm.pub --pcr-key tpm.pem";
    let mut old = fs::read(workshop.path("stub-257")).unwrap();
    let start = b"#### LoaderInfo: systemd-stub ";
    let at = old.windows(start.len()).position(|text| text == start).unwrap() + start.len();
    old[at..at + 3].copy_from_slice(b"252");
    fs::write(workshop.path("stub-old"), old).unwrap();
    let (_, message) = workshop.refused(unknown);
    assert!(message.contains("nothing can be signed of what a TPM will hold"), "{message}");

    // One digit of one signature, in an image that was made elsewhere.
    let mut broken = built.clone();
    let at = built.windows(6).position(|text| text == b"\"sig\":").unwrap() + 20;
    broken[at] = if broken[at] == b'A' { b'B' } else { b'A' };
    fs::write(workshop.path("broken.efi"), &broken).unwrap();
    let ready = "--product acme-os --release 1.0 --image build/image.raw --fast";
    let (_, message) = workshop.refused(&format!("build refused {ready} --uki broken.efi"));
    assert!(message.contains("error 18: 1 of 4 signatures"), "{message}");
}

#[test]
fn a_signed_policy_in_a_ready_image_is_passed_on_untouched() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    stub(&workshop);
    key(&workshop, "vendor");
    policy_key(&workshop, "tpm", 2048);
    workshop.build("build", "1.0", "tree", "--stub stub-257 --pcr-public-key tpm.pub --pcr-key tpm.pem");
    workshop.build("without", "1.0", "tree", "--stub stub-257");
    let ready = uki(&workshop, "build");
    fs::write(workshop.path("ready.efi"), &ready).unwrap();
    let build = "--product acme-os --release 1.0 --image build/image.raw --uki ready.efi --fast";
    workshop.step(&format!("build plain {build}"));
    assert!(uki(&workshop, "plain") == ready, "not one byte of it changes");
    workshop.step(&format!("build signed {build} --secure-boot-key vendor.key --secure-boot-cert vendor.crt"));
    let firmware = uki(&workshop, "signed");
    for name in [".pcrsig", ".pcrpkey"] {
        assert!(section(&firmware, name) == section(&ready, name), "{name}");
    }
    let measured = manifest(&workshop, "signed")["measured"].clone();
    assert_eq!(measured, manifest(&workshop, "plain")["measured"]);
    // The key is measured.
    assert_ne!(measured, manifest(&workshop, "without")["measured"]);
}
