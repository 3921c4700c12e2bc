//! What is signed for Secure Boot, judged by sbverify (Debian: sbsigntool).

use std::fs;
use std::process::Command;

use super::workshop::{ONLINE, Workshop};

pub(crate) fn openssl(workshop: &Workshop, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(workshop.path(""))
        .output()
        .expect("install openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn key(workshop: &Workshop, name: &str) {
    openssl(
        workshop,
        &format!("req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN={name} -keyout {name}.key -out {name}.crt"),
    );
}

/// What sbverify says of a file and a certificate.
fn verifies(workshop: &Workshop, certificate: &str, file: &str) -> bool {
    let output = Command::new("sbverify")
        .args(["--cert", certificate, file])
        .current_dir(workshop.path(""))
        .output()
        .expect("install sbsigntool");
    output.status.success()
}

#[test]
fn a_signed_uki_and_boot_loader_are_accepted_and_a_changed_one_is_not() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    key(&workshop, "vendor");
    key(&workshop, "other");
    workshop.build("build", "1.0", "tree", "--secure-boot-key vendor.key --secure-boot-cert vendor.crt");
    let uki = "build/releases/1.0/x86-64/uki.efi";
    assert!(verifies(&workshop, "vendor.crt", uki));
    assert!(!verifies(&workshop, "other.crt", uki));
    let signed = fs::read(workshop.path(uki)).unwrap();
    for at in [0x200, signed.len() / 2] {
        let mut changed = signed.clone();
        changed[at] ^= 1;
        fs::write(workshop.path("changed.efi"), changed).unwrap();
        assert!(!verifies(&workshop, "vendor.crt", "changed.efi"), "{at}");
    }
    // The same input gives the same bytes, and a program that keeps the key gives them too.
    fs::write(workshop.path("sign"), "#!/bin/sh\nexec openssl dgst -sha256 -sign vendor.key\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(workshop.path("sign"), fs::Permissions::from_mode(0o755)).unwrap();
    workshop.build("again", "1.0", "tree", "--secure-boot-signer ./sign --secure-boot-cert vendor.crt");
    assert!(fs::read(workshop.path("again/releases/1.0/x86-64/uki.efi")).unwrap() == signed);

    let loader = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
    workshop.step(&format!("sign-efi {loader} loader.efi --secure-boot-key vendor.key --secure-boot-cert vendor.crt"));
    assert!(verifies(&workshop, "vendor.crt", "loader.efi"));
    // Signed again, the new signature takes the place of the old one.
    workshop.step("sign-efi loader.efi loader-2.efi --secure-boot-key other.key --secure-boot-cert other.crt");
    assert!(verifies(&workshop, "other.crt", "loader-2.efi") && !verifies(&workshop, "vendor.crt", "loader-2.efi"));
}

#[test]
fn keys_and_certificates_that_are_of_no_use_are_refused_before_the_build() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    key(&workshop, "vendor");
    key(&workshop, "other");
    openssl(&workshop, "genpkey -algorithm ed25519 -out ed25519.key");
    let build = "build out --product acme-os --release 1.0 --root tree --kernel vmlinuz --fast";
    for (arguments, part) in [
        ("--secure-boot-key other.key --secure-boot-cert vendor.crt", "does not belong to the certificate vendor.crt"),
        ("--secure-boot-key ed25519.key --secure-boot-cert vendor.crt", "is no RSA key"),
        ("--secure-boot-key vendor.crt --secure-boot-cert vendor.crt", "is no PKCS#8 private key"),
        ("--secure-boot-key vendor.key --secure-boot-cert vendor.key", "is no certificate"),
        ("--secure-boot-cert vendor.crt", "needs the key too"),
        ("--secure-boot-signer false --secure-boot-cert vendor.crt", "gave no signature"),
        ("--secure-boot-signer echo --secure-boot-cert vendor.crt", "does not verify with the certificate"),
    ] {
        let (code, message) = workshop.refused(&format!("{build} {arguments}"));
        assert_eq!(code, 1, "{arguments}");
        assert!(message.contains(part), "{arguments}: {message}");
    }
    let output = workshop.bascule(&format!(
        "--at 2060-01-01T00:00:00Z release {build} --secure-boot-key vendor.key --secure-boot-cert vendor.crt"
    ));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("the certificate vendor.crt expired at"), "{message}");
    let (_, message) =
        workshop.refused("sign-efi vmlinuz out.efi --secure-boot-key vendor.key --secure-boot-cert vendor.crt");
    assert!(message.contains("can't sign vmlinuz"), "{message}");
}

#[test]
fn what_the_nodes_firmware_would_not_start_is_not_published() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("tree", "1.0", |number| number);
    key(&workshop, "vendor");
    key(&workshop, "other");
    let signed = "--secure-boot-key vendor.key --secure-boot-cert vendor.crt";
    workshop.build("signed", "1.0", "tree", signed);
    workshop.build("unsigned", "1.1", "tree", "");
    let publish = |build: &str, more: &str| format!("publish repository {build} --channel stable {ONLINE} {more}");
    for (build, certificate, part) in [
        ("unsigned", "vendor.crt", "is not signed for Secure Boot"),
        ("signed", "other.crt", "is signed by 'CN=vendor', for whom no given certificate vouches"),
    ] {
        let (code, message) = workshop.refused(&publish(build, &format!("--secure-boot-cert {certificate}")));
        assert_eq!(code, 1, "{message}");
        assert!(message.contains("error 12: ") && message.contains(part), "{message}");
    }
    workshop.step(&publish("signed", "--secure-boot-cert other.crt --secure-boot-cert vendor.crt"));
    // Without a word about certificates, too: what is offered now is signed.
    let (code, message) = workshop.refused(&publish("unsigned", ""));
    assert_eq!(code, 1);
    assert!(message.contains("what stable offers is signed for Secure Boot, and 1.1 is not"), "{message}");
    workshop.step(&publish("unsigned", "--yes"));
}

#[test]
fn a_disk_with_one_of_the_two_signed_is_warned_about() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    key(&workshop, "vendor");
    let signed = "--secure-boot-key vendor.key --secure-boot-cert vendor.crt";
    workshop.build("build", "1.0", "tree", signed);
    let half = workshop.bascule("disk build half.raw --strict");
    let message = String::from_utf8(half.stderr).unwrap();
    assert!(!half.status.success() && message.contains("warning 32: the boot image is signed"), "{message}");
    let whole = workshop.bascule(&format!("disk build whole.raw --strict {signed}"));
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
}
