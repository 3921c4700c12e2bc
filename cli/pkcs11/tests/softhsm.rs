//! A vendor whose keys lie in a token: SoftHSM (Debian: softhsm2), reached as `bascule --signer` reaches it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bascule_repository::publish::{
    self, Lifetimes, Outcome, PublicKey, Publisher, RoleSetup, Roles, Signing, SigningKey, View,
};
use chrono::{DateTime, Utc};
use tempfile::TempDir;

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A folder with a token and a script that signs with it.
struct Safe(TempDir);

impl Safe {
    fn new() -> Self {
        let safe = Self(tempfile::tempdir().unwrap());
        fs::create_dir(safe.path("tokens")).unwrap();
        let settings =
            format!("directories.tokendir = {}\nobjectstore.backend = file\n", safe.path("tokens").display());
        fs::write(safe.path("softhsm2.conf"), settings).unwrap();
        fs::write(safe.path("pin"), "1234\n").unwrap();
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", "release keys", "--so-pin", "5678", "--pin", "1234"])
            .env("SOFTHSM2_CONF", safe.path("softhsm2.conf"))
            .output()
            .expect("install softhsm2");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let script = format!(
            "#!/bin/sh\nSOFTHSM2_CONF={} exec {} \"$@\"\n",
            safe.path("softhsm2.conf").display(),
            env!("CARGO_BIN_EXE_bascule-sign-pkcs11")
        );
        safe.script("sign", &script);
        safe
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn script(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn uri(&self, object: &str) -> String {
        let pin = self.path("pin");
        format!("pkcs11:token=release%20keys;object={object}?module-path={MODULE}&pin-source={}", pin.display())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(self.path("sign")).args(arguments).output().unwrap()
    }

    /// Makes a key in the token and gives its public half.
    fn generate(&self, kind: &str, name: &str) -> PublicKey {
        let output = self.run(&["--generate", kind, &self.uri(name)]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = self.path(&format!("{name}.pub.json"));
        fs::write(&path, &output.stdout).unwrap();
        let again = self.run(&["--public", &self.uri(name)]);
        assert_eq!(again.stdout, output.stdout);
        PublicKey::read(&path).unwrap()
    }

    fn key(&self, public: &PublicKey, program: &str) -> SigningKey {
        let name = public.name().unwrap();
        SigningKey::program(public.clone(), &format!("{} {}", self.path(program).display(), self.uri(name))).unwrap()
    }
}

fn signing(keys: &[SigningKey]) -> Signing<'_> {
    let now: DateTime<Utc> = "2026-03-01T12:00:00Z".parse().unwrap();
    Signing { keys, lifetimes: Lifetimes::default(), now }
}

fn metadata(repository: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(repository.join("metadata")).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn a_token_signs_a_repository_and_its_keys_are_rotated_with_a_threshold() {
    let safe = Safe::new();
    let repository = safe.path("repository");
    let kinds =
        [("root", "ecdsa-p256"), ("targets-1", "ecdsa-p256"), ("targets-2", "ed25519"), ("online", "ecdsa-p256")];
    let publics: Vec<PublicKey> = kinds.iter().map(|(name, kind)| safe.generate(kind, name)).collect();
    let [root, targets_1, targets_2, online] = publics.as_slice() else { panic!("four keys") };
    let keys: Vec<SigningKey> = publics.iter().map(|public| safe.key(public, "sign")).collect();
    let one = |key: &PublicKey| RoleSetup { keys: vec![key.clone()], threshold: 1 };
    let roles = Roles { root: one(root), targets: one(targets_1), snapshot: one(online), timestamp: one(online) };
    publish::init(&repository, &roles, signing(&keys)).unwrap();
    let both = RoleSetup { keys: vec![targets_1.clone(), targets_2.clone()], threshold: 2 };
    let changes = BTreeMap::from([("targets".to_owned(), both)]);
    let mut publisher = Publisher::open(&repository).unwrap();
    let outcome = publisher.rotate(&changes, signing(&keys)).unwrap();
    assert!(matches!(outcome, Outcome::Published { root: 2, targets: 2, .. }), "{outcome:?}");
    drop(publisher);
    let standing = View::of_folder(&repository, None).unwrap().roles();
    let targets = standing.iter().find(|role| role.role == "targets").unwrap();
    assert_eq!((targets.threshold, targets.signed_by.len()), (2, 2));
    assert!(targets.signers().contains("targets-1 (") && targets.signers().contains("targets-2 ("), "{targets:?}");
}

#[test]
fn a_token_that_goes_away_in_the_middle_leaves_nothing_half_published() {
    let safe = Safe::new();
    let repository = safe.path("repository");
    let public = safe.generate("ecdsa-p256", "only");
    let keys = [safe.key(&public, "sign")];
    let role = RoleSetup { keys: vec![public.clone()], threshold: 1 };
    let roles = Roles { root: role.clone(), targets: role.clone(), snapshot: role.clone(), timestamp: role };
    publish::init(&repository, &roles, signing(&keys)).unwrap();
    let before = metadata(&repository);
    // The first, second, third signature of three is the one that fails.
    for signatures in 0..3 {
        let count = safe.path("count");
        fs::write(&count, "0").unwrap();
        let sign = safe.path("sign");
        let script = format!(
            "#!/bin/sh\nn=$(cat {count})\necho $((n + 1)) > {count}\n[ $n -lt {signatures} ] || exit 1\nexec {sign} \"$@\"\n",
            count = count.display(),
            sign = sign.display()
        );
        safe.script("sign-some", &script);
        let failing = [safe.key(&public, "sign-some")];
        let mut publisher = Publisher::open(&repository).unwrap();
        let error = publisher.refresh(signing(&failing)).unwrap_err();
        assert_eq!(error.category(), "signer", "{error}");
        assert_eq!(fs::read_to_string(&count).unwrap().trim(), (signatures + 1).to_string());
        drop(publisher);
        assert!(metadata(&repository) == before, "after {signatures} signatures");
    }
    Publisher::open(&repository).unwrap().refresh(signing(&keys)).unwrap();
    assert!(metadata(&repository) != before);
}

#[test]
fn what_the_token_can_not_do_is_said() {
    let safe = Safe::new();
    safe.generate("ecdsa-p256", "key");
    let refused = |arguments: &[&str]| {
        let output = safe.run(arguments);
        assert!(!output.status.success());
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["--generate", "ecdsa-p256", &safe.uri("key")]).contains("has such a key already"));
    assert!(refused(&[&safe.uri("other")]).contains("has no such key"));
    assert!(refused(&[&safe.uri("key").replace("release%20keys", "other")]).contains("no such token"));
    assert!(refused(&[&safe.uri("key").replace(MODULE, "/no/module.so")]).contains("can't load /no/module.so"));
    fs::write(safe.path("pin"), "0000").unwrap();
    assert!(refused(&[&safe.uri("key")]).contains("refuses the PIN"));
}
