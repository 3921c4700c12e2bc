//! A vendor for tests: keys, small images that look like releases, and a published repository.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use bascule_image::Sha256;
use bascule_image::build::{self, Effort, Image};
use bascule_image::release::manifest::{self, Manifest, Verity};
use bascule_image::verity::{self, Parameters};
use bascule_image::work::Watch;
use bascule_names::{Architecture, ChannelName, Digest, RootHash, Version};
use bascule_repository::publish::{
    self, Lifetimes, Notes, Outcome, PublicKey, Publisher, RoleSetup, Roles, Signing, SigningKey,
};
use chrono::{DateTime, TimeDelta, Utc};
use ring::signature::Ed25519KeyPair;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use tempfile::TempDir;

/// When the vendor's story begins. All times of the tests are given, none is read from a clock.
pub fn start() -> DateTime<Utc> {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

pub const CHANNEL: &str = "stable";
const IMAGE_SIZE: usize = 6 << 20;

/// A vendor's safe and its repository folder.
pub struct Vendor {
    folder: TempDir,
    pub now: DateTime<Utc>,
}

impl Vendor {
    /// Two root keys of which both must sign, one of each other role, and releases 1.0 and 1.1 in `stable`.
    ///
    /// Made once and copied: all these vendors have the same keys.
    pub fn with_two_releases() -> Self {
        static TEMPLATE: OnceLock<Vendor> = OnceLock::new();
        let template = TEMPLATE.get_or_init(Self::with_two_releases_and_own_keys);
        let vendor = Self { folder: tempfile::tempdir().unwrap(), now: template.now };
        copy_folder(template.folder.path(), vendor.folder.path());
        vendor
    }

    /// The same, with keys that no other vendor has.
    pub fn with_two_releases_and_own_keys() -> Self {
        let vendor = Self::empty();
        vendor.publish("1.0", None);
        vendor.publish("1.1", Some("1.0"));
        vendor
    }

    /// A repository without releases.
    pub fn empty() -> Self {
        let vendor = Self { folder: tempfile::tempdir().unwrap(), now: start() };
        for key in ["root-1", "root-2", "targets", "snapshot", "timestamp"] {
            publish::generate(&vendor.key_stem(key)).unwrap();
        }
        let roles = Roles {
            root: vendor.role(&["root-1", "root-2"], 2),
            targets: vendor.role(&["targets"], 1),
            snapshot: vendor.role(&["snapshot"], 1),
            timestamp: vendor.role(&["timestamp"], 1),
        };
        let keys = vendor.keys(&["root-1", "root-2", "targets", "snapshot", "timestamp"]);
        publish::init(&vendor.repository(), &roles, vendor.signing(&keys)).unwrap();
        vendor
    }

    pub fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    pub fn key_stem(&self, name: &str) -> PathBuf {
        let keys = self.folder.path().join("keys");
        std::fs::create_dir_all(&keys).unwrap();
        keys.join(name)
    }

    pub fn new_key(&self, name: &str) {
        publish::generate(&self.key_stem(name)).unwrap();
    }

    pub fn role(&self, names: &[&str], threshold: u64) -> RoleSetup {
        let read = |name: &&str| PublicKey::read(&self.key_stem(name).with_extension("pub.json")).unwrap();
        RoleSetup { keys: names.iter().map(read).collect(), threshold }
    }

    pub fn keys(&self, names: &[&str]) -> Vec<SigningKey> {
        names.iter().map(|name| SigningKey::read(&self.key_stem(name).with_extension("pem")).unwrap()).collect()
    }

    pub fn signing<'a>(&self, keys: &'a [SigningKey]) -> Signing<'a> {
        Signing { keys, lifetimes: Lifetimes::default(), now: self.now }
    }

    pub fn trust_root(&self) -> Vec<u8> {
        std::fs::read(self.repository().join("metadata/1.root.json")).unwrap()
    }

    pub fn publisher(&self) -> Publisher {
        Publisher::open(&self.repository()).unwrap()
    }

    /// Builds and publishes a release, with a delta from `base`.
    pub fn publish(&self, version: &str, base: Option<&str>) {
        self.publish_noted(version, base, &Notes::default());
    }

    /// The same with what the channel says of it.
    pub fn publish_noted(&self, version: &str, base: Option<&str>, notes: &Notes) {
        let build = self.build(version, base);
        let keys = self.keys(&["targets", "snapshot", "timestamp"]);
        let channel: ChannelName = CHANNEL.parse().unwrap();
        let outcome = self.publisher().add_release(&channel, &build, notes, self.signing(&keys)).unwrap();
        assert!(matches!(outcome, Outcome::Published { .. }), "{outcome:?}");
    }

    /// The same with a manifest that says more.
    pub fn publish_with(&self, version: &str, base: Option<&str>, change: impl FnOnce(&mut Manifest)) {
        let build = self.build(version, base);
        let path = build.join(format!("releases/{version}/x86-64/release.json"));
        let mut manifest = Manifest::parse(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        std::fs::write(&path, manifest.to_bytes().unwrap()).unwrap();
        let keys = self.keys(&["targets", "snapshot", "timestamp"]);
        let channel: ChannelName = CHANNEL.parse().unwrap();
        let outcome = self.publisher().add_release(&channel, &build, &Notes::default(), self.signing(&keys)).unwrap();
        assert!(matches!(outcome, Outcome::Published { .. }), "{outcome:?}");
    }

    /// A build folder, as `bascule release build` would leave it.
    pub fn build(&self, version: &str, base: Option<&str>) -> PathBuf {
        self.build_for("acme-os", version, base)
    }

    pub fn build_for(&self, product: &str, version: &str, base: Option<&str>) -> PathBuf {
        let root = self.folder.path().join("builds").join(format!("{product}-{version}"));
        let path = |name: &str| format!("releases/{version}/x86-64/{name}");
        std::fs::create_dir_all(root.join(path(""))).unwrap();
        let bytes = image(version);
        let (tree_root, parameters, hash_tree_size) = verity_of(&bytes);
        let options = build::Options {
            effort: Effort::Fast,
            workers: std::num::NonZeroUsize::new(2).unwrap(),
            ..build::Options::default()
        };
        let mut packs = Vec::new();
        let this = Image { root_hash: tree_root, bytes: bytes.as_ref() };
        let mut out = Vec::new();
        let built = build::build_full(this, &mut out, &options, &Watch::none()).unwrap();
        std::fs::write(root.join(path("full.pack")), &out).unwrap();
        packs.push(built.to_manifest_entry(path("full.pack").parse().unwrap()));
        if let Some(base) = base {
            let base_bytes = image(base);
            let base_root = verity_of(&base_bytes).0;
            let mut out = Vec::new();
            let from = Image { root_hash: base_root, bytes: base_bytes.as_ref() };
            let built = build::build_delta(this, from, &mut out, &options, &Watch::none()).unwrap();
            let name = path(&format!("from-{base_root}.pack"));
            std::fs::write(root.join(&name), &out).unwrap();
            packs.push(built.to_manifest_entry(name.parse().unwrap()));
        }
        let uki = noise(version, 300_000);
        std::fs::write(root.join(path("uki.efi")), &uki).unwrap();
        let manifest = Manifest {
            format: manifest::FORMAT,
            product: product.parse().unwrap(),
            version: version.parse().unwrap(),
            architecture: Architecture::X86_64,
            image: manifest::Image { size: bytes.len() as u64 },
            verity: Verity {
                algorithm: "sha256".to_owned(),
                block_size: 4096,
                salt: parameters.salt.clone(),
                uuid: uuid::Uuid::from_bytes(parameters.uuid),
                root_hash: RootHash::from_bytes(tree_root.as_bytes()),
                hash_tree_size,
            },
            uki: manifest::File {
                path: path("uki.efi").parse().unwrap(),
                size: uki.len() as u64,
                digest: Digest::from(Sha256::of(&uki)),
            },
            packs,
            packages: None,
            kubernetes: None,
            state_version: None,
            measured: None,
        };
        std::fs::write(root.join(path("release.json")), manifest.to_bytes().unwrap()).unwrap();
        root
    }

    /// Where a published file lies, by what the newest metadata says of it.
    pub fn published(&self, name: &str) -> PathBuf {
        let read = |file: String| -> Value {
            serde_json::from_slice(&std::fs::read(self.repository().join("metadata").join(file)).unwrap()).unwrap()
        };
        let version = read("timestamp.json".to_owned())["signed"]["meta"]["snapshot.json"]["version"].clone();
        let roles = read(format!("{version}.snapshot.json"))["signed"]["meta"].clone();
        for (role, meta) in roles.as_object().unwrap() {
            let targets = read(format!("{}.{role}", meta["version"]));
            if let Some(digest) = targets["signed"]["targets"][name]["hashes"]["sha256"].as_str() {
                let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
                return self.repository().join("targets").join(folder).join(format!("{digest}.{file}"));
            }
        }
        panic!("no role names {name}");
    }

    /// Signs a metadata file as whoever holds these keys could: any content.
    pub fn forge(&self, name: &str, keys: &[&str], change: impl FnOnce(&mut Value)) {
        let path = self.repository().join("metadata").join(name);
        let mut document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut document["signed"]);
        let message = canonical(&document["signed"]);
        let signatures = keys.iter().map(|key| {
            let pem = std::fs::read(self.key_stem(key).with_extension("pem")).unwrap();
            let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).unwrap();
            let id = self.role(&[*key], 1).keys[0].id();
            serde_json::json!({"keyid": id, "sig": hex::encode(pair.sign(message.as_bytes()))})
        });
        document["signatures"] = signatures.collect();
        std::fs::write(&path, serde_json::to_vec(&document).unwrap()).unwrap();
    }
}

/// OLPC canonical JSON for what TUF metadata holds: sorted members, no spaces, no floats.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let mut names: Vec<&String> = members.keys().collect();
            names.sort();
            let members: Vec<String> =
                names.iter().map(|name| format!("{:?}:{}", name, canonical(&members[*name]))).collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// SHA-256, length and version as a snapshot or timestamp describes a file.
pub fn describe(path: &Path, version: u64) -> Value {
    let bytes = std::fs::read(path).unwrap();
    serde_json::json!({
        "hashes": {"sha256": Sha256::of(&bytes).to_string()},
        "length": bytes.len(),
        "version": NonZeroU64::new(version).unwrap(),
    })
}

/// The image of a release: most blocks the same in each version, some of its own, some zeros.
pub fn image(version: &str) -> Arc<Vec<u8>> {
    static IMAGES: Mutex<BTreeMap<String, Arc<Vec<u8>>>> = Mutex::new(BTreeMap::new());
    let mut images = IMAGES.lock().unwrap();
    Arc::clone(images.entry(version.to_owned()).or_insert_with(|| Arc::new(make_image(version))))
}

fn make_image(version: &str) -> Vec<u8> {
    let mut image = Vec::with_capacity(IMAGE_SIZE);
    let own = noise(version, 4096 * 64);
    for block in 0..IMAGE_SIZE / 4096 {
        match block % 16 {
            0 => image.extend_from_slice(&[0; 4096]),
            1 if block % 48 == 1 => image.extend_from_slice(&own[4096 * (block % 64)..][..4096]),
            _ => image.extend_from_slice(&noise(&format!("shared {block}"), 4096)),
        }
    }
    image
}

fn verity_of(image: &[u8]) -> (Sha256, Parameters, u64) {
    let parameters = Parameters { salt: vec![7; 32], uuid: [9; 16] };
    let workers = std::num::NonZeroUsize::new(2).unwrap();
    let tree = verity::build(&image.to_vec(), image.len() as u64, &parameters, workers, &Watch::none()).unwrap();
    (tree.root_hash(), parameters, tree.hash_size())
}

pub fn root_hash(version: &str) -> RootHash {
    static KNOWN: Mutex<BTreeMap<String, RootHash>> = Mutex::new(BTreeMap::new());
    let make = || RootHash::from_bytes(verity_of(&image(version)).0.as_bytes());
    KNOWN.lock().unwrap().entry(version.to_owned()).or_insert_with(make).clone()
}

/// Bytes that don't compress and depend on the seed only.
pub fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(length + 32);
    let mut block = Sha256::of(seed.as_bytes());
    while out.len() < length {
        out.extend_from_slice(block.as_bytes());
        block = Sha256::of(block.as_bytes());
    }
    out.truncate(length);
    out
}

pub fn version(text: &str) -> Version {
    text.parse().unwrap()
}

pub fn days(count: i64) -> TimeDelta {
    TimeDelta::days(count)
}

/// Copies a repository, so that an attacker can serve it later.
pub fn copy_folder(from: &Path, to: &Path) {
    crate::files::copy_folder(from, to).unwrap();
}
