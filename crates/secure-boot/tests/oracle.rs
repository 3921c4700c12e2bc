//! Held against sbsign and sbverify (Debian package `sbsigntool`), with keys made by openssl: what they sign we accept, what
//! they would refuse we refuse, and the hash that they sign is the one we compute.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use bascule_image::uki::{self, Parts};
use bascule_secure_boot::{Acceptance, Databases, ImageError, Refusal, SignatureError, SignatureList, judge};
use ring::digest;

/// systemd's stub, from Debian's `systemd-boot-efi`.
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

fn run(program: &str, arguments: &[&str], folder: &Path) -> bool {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    output.status.success()
}

fn must(program: &str, arguments: &[&str], folder: &Path) {
    assert!(run(program, arguments, folder), "{program} {arguments:?}");
}

/// Keys made once for all tests: a root, an intermediate under it, a leaf under that, and a key that signs for itself.
struct Keys {
    folder: tempfile::TempDir,
}

static KEYS: LazyLock<Keys> = LazyLock::new(Keys::make);

impl Keys {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let extensions = "[ca]\nbasicConstraints=critical,CA:true\nsubjectKeyIdentifier=hash\n\
                          [leaf]\nbasicConstraints=critical,CA:false\nextendedKeyUsage=codeSigning\n";
        std::fs::write(at.join("ext"), extensions).unwrap();
        for (name, issuer, kind) in [
            ("root", None, "ca"),
            ("middle", Some("root"), "ca"),
            ("leaf", Some("middle"), "leaf"),
            ("own", None, "leaf"),
            ("stranger", None, "leaf"),
            ("false", Some("own"), "leaf"),
        ] {
            let (key, request, crt) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
            let subject = format!("/O=Acme/CN={name}");
            must(
                "openssl",
                &["req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &request, "-subj", &subject],
                at,
            );
            let mut arguments = vec![
                "x509",
                "-req",
                "-in",
                &request,
                "-out",
                &crt,
                "-days",
                "1",
                "-sha256",
                "-extfile",
                "ext",
                "-extensions",
                kind,
            ];
            let (ca, ca_key);
            match issuer {
                None => arguments.extend(["-signkey", &key]),
                Some(issuer) => {
                    (ca, ca_key) = (format!("{issuer}.crt"), format!("{issuer}.key"));
                    arguments.extend(["-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"]);
                }
            }
            must("openssl", &arguments, at);
            must("openssl", &["x509", "-in", &crt, "-outform", "DER", "-out", &format!("{name}.der")], at);
        }
        let chain = ["middle.crt", "root.crt"].map(|file| std::fs::read_to_string(at.join(file)).unwrap()).concat();
        std::fs::write(at.join("chain.crt"), chain).unwrap();
        std::fs::write(at.join("plain.efi"), image()).unwrap();
        Self { folder }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn der(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(&format!("{name}.der"))).unwrap()
    }

    /// The image signed by a key; sbverify must be of the same opinion before ours is asked.
    fn signed(&self, name: &str, output: &str) -> Vec<u8> {
        let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
        let mut arguments = vec!["--key", &key, "--cert", &crt, "--output", output];
        if name == "leaf" {
            arguments.extend(["--addcert", "chain.crt"]);
        }
        arguments.push("plain.efi");
        must("sbsign", &arguments, self.folder.path());
        std::fs::read(self.path(output)).unwrap()
    }

    fn sbverify(&self, anchor: &str, file: &str) -> bool {
        run("sbverify", &["--cert", &format!("{anchor}.crt"), file], self.folder.path())
    }
}

/// A UKI on systemd's own stub, whose length is no multiple of eight.
fn image() -> Vec<u8> {
    let stub = std::fs::read(STUB).expect("install systemd-boot-efi");
    let parts = Parts {
        stub: &stub,
        kernel: &[0x5A; 700_001],
        initrd: &[7; 3000],
        command_line: "roothash=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        os_release: "ID=acme\nVERSION_ID=1.0\n",
        kernel_release: None,
        pcr_public_key: &[],
        pcr_signature: &[],
    };
    uki::build(&parts).unwrap()
}

fn allowing(names: &[&str]) -> Databases {
    let certificates = names.iter().map(|name| KEYS.der(name)).collect();
    Databases { allowed: SignatureList { certificates, ..SignatureList::default() }, ..Databases::default() }
}

fn forbidding(allowed: &[&str], forbidden: SignatureList) -> Databases {
    Databases { forbidden, ..allowing(allowed) }
}

#[test]
fn what_sbverify_accepts_is_accepted_and_nothing_else() {
    let mut accepted = 0;
    for (signer, file) in [("own", "by-own.efi"), ("leaf", "by-leaf.efi"), ("false", "by-false.efi")] {
        let signed = KEYS.signed(signer, file);
        for anchor in ["own", "leaf", "root", "stranger", "false"] {
            let theirs = KEYS.sbverify(anchor, file);
            let ours = judge(&signed, &allowing(&[anchor]));
            // sbverify trusts nothing but self-signed anchors; firmware takes any certificate in db.
            let expected = theirs || signer == anchor;
            match ours {
                Ok(Acceptance::Certificate(name)) => {
                    assert!(expected && name.contains(anchor), "{signer} by {anchor}: {name}");
                    accepted += 1;
                }
                Err(Refusal::Unknown { signers }) => {
                    assert!(!expected && signers.contains(signer), "{signer} by {anchor}: {signers}");
                }
                other => panic!("{signer} by {anchor}: {other:?}"),
            }
        }
        // The way leads over the intermediate; firmware takes that as an anchor, too.
        assert_eq!(judge(&signed, &allowing(&["stranger", "middle"])).is_ok(), signer == "leaf");
    }
    assert_eq!(accepted, 4, "own by own, leaf by leaf and root, false by false");
}

#[test]
fn one_signature_of_two_is_enough_and_one_revoked_is_too_much() {
    KEYS.signed("own", "first.efi");
    let at = KEYS.folder.path();
    must("sbsign", &["--key", "stranger.key", "--cert", "stranger.crt", "--output", "both.efi", "first.efi"], at);
    let both = std::fs::read(KEYS.path("both.efi")).unwrap();
    for anchor in ["own", "stranger"] {
        assert!(judge(&both, &allowing(&[anchor])).is_ok(), "{anchor}");
    }
    let revoked = SignatureList { certificates: vec![KEYS.der("own")], ..SignatureList::default() };
    let verdict = judge(&both, &forbidding(&["stranger"], revoked));
    assert!(matches!(verdict, Err(Refusal::CertificateRevoked { certificate }) if certificate.contains("own")));
}

#[test]
fn revocation_wins_by_hash_certificate_issuer_and_hash_of_a_certificate() {
    let signed = KEYS.signed("leaf", "revoked.efi");
    assert!(judge(&signed, &allowing(&["root"])).is_ok());
    for revoked in ["leaf", "middle", "root"] {
        let list = SignatureList { certificates: vec![KEYS.der(revoked)], ..SignatureList::default() };
        let verdict = judge(&signed, &forbidding(&["root"], list));
        assert!(matches!(verdict, Err(Refusal::CertificateRevoked { .. })), "{revoked}: {verdict:?}");
        // The to-be-signed part is the first element of the outer sequence.
        let der = KEYS.der(revoked);
        let length = 4 + usize::from(u16::from_be_bytes([der[6], der[7]]));
        let hash = digest::digest(&digest::SHA256, &der[4..4 + length]).as_ref().to_vec();
        let list = SignatureList { certificate_hashes: vec![hash], ..SignatureList::default() };
        let verdict = judge(&signed, &forbidding(&["root"], list));
        assert!(matches!(verdict, Err(Refusal::CertificateRevoked { .. })), "hash of {revoked}: {verdict:?}");
    }
    let other = SignatureList { certificates: vec![KEYS.der("stranger")], ..SignatureList::default() };
    assert!(judge(&signed, &forbidding(&["root"], other)).is_ok());
    let hash = own_digest(&signed);
    let list = SignatureList { image_hashes: vec![hash], ..SignatureList::default() };
    assert!(matches!(judge(&signed, &forbidding(&["root"], list)), Err(Refusal::HashRevoked)));
}

fn own_digest(file: &[u8]) -> Vec<u8> {
    bascule_secure_boot::SignedImage::open(&file.to_vec()).unwrap().digest(&digest::SHA256).unwrap()
}

#[test]
fn an_image_without_a_signature_goes_by_its_hash() {
    let plain = std::fs::read(KEYS.path("plain.efi")).unwrap();
    assert!(matches!(judge(&plain, &allowing(&["own"])), Err(Refusal::Unsigned)));
    let mut databases = allowing(&[]);
    databases.allowed.image_hashes = vec![vec![0; 32], own_digest(&plain)];
    assert_eq!(judge(&plain, &databases).unwrap(), Acceptance::Hash);
    let longer = bascule_secure_boot::SignedImage::open(&plain).unwrap().digest(&digest::SHA512).unwrap();
    databases.allowed.image_hashes = vec![longer];
    assert_eq!(judge(&plain, &databases).unwrap(), Acceptance::Hash);
}

#[test]
fn a_change_after_signing_is_seen_wherever_it_counts() {
    let signed = KEYS.signed("own", "changed.efi");
    let databases = allowing(&["own"]);
    let (mut refused, mut kept) = (0, 0);
    // Every part of the file: headers, sections, the signature itself.
    for at in (0..signed.len()).step_by(signed.len() / 400) {
        let mut bad = signed.clone();
        bad[at] ^= 0x10;
        match judge(&bad, &databases) {
            Err(Refusal::Image(ImageError::Unreadable { .. })) => panic!("{at}"),
            Err(_) => refused += 1,
            // Checksum, padding, and parts of the signature that nothing depends on.
            Ok(_) => kept += 1,
        }
    }
    assert!(refused > 380 && kept < 20, "{refused} refused, {kept} kept");
    let mut bad = signed.clone();
    let middle = signed.len() / 2;
    bad[middle] ^= 1;
    let verdict = judge(&bad, &databases);
    assert!(matches!(verdict, Err(Refusal::Signature(SignatureError::OtherImage))), "{verdict:?}");
}

#[test]
fn cuts_and_nonsense_are_refused_and_never_a_panic() {
    let signed = KEYS.signed("own", "cut.efi");
    let databases = allowing(&["own"]);
    for length in (0..4096).chain((4096..signed.len()).step_by(9973)) {
        assert!(judge(&signed[..length].to_vec(), &databases).is_err(), "cut at {length}");
    }
    let mut nonsense = databases.clone();
    nonsense.allowed.certificates.insert(0, b"no certificate".to_vec());
    assert!(judge(&signed, &nonsense).is_ok(), "what else is listed does not get in the way");
}
