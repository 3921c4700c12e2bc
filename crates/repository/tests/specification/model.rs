//! Random stories of a vendor and of an attacker who holds all of the network and some keys, told to the reader and to a slow,
//! literal model of section 5: after each update both must say the same and remember the same. And an attacker with fewer keys
//! than a threshold never gets anything in that the vendor did not sign.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bascule_repository::tuf::{Limits, Memory, Refresh};
use chrono::{DateTime, TimeDelta, Utc};
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::keys::TestKey;
use crate::simulator::{Simulator, date, sign, start};

const LIMITS: Limits = Limits { requests: 100, bytes: 10 << 20, roles: 8, depth: 8, time: Duration::from_secs(1) };
const ROLES: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];

/// Stands for an answer that is neither the file nor "not there": to the model it is no metadata.
const FAILURE: &[u8] = br#"{"failure":503}"#;
/// What a server answers, by file name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Section 5 as it stands there, over JSON values. It knows the private keys, and checks a signature by making it again.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    roots: Vec<Vec<u8>>,
    timestamp: Option<Vec<u8>>,
    snapshot: Option<Vec<u8>>,
    targets: Option<Vec<u8>>,
    /// Keys and thresholds of timestamp and snapshot at the last 5.3.11.
    rotation: Option<Value>,
}

type Keys = BTreeMap<String, TestKey>;

fn parse(bytes: &[u8], kind: &str) -> Option<Value> {
    let file: Value = serde_json::from_slice(bytes).ok()?;
    let signed = &file["signed"];
    let good = signed["_type"] == kind
        && signed["spec_version"].as_str()?.starts_with("1.")
        && signed["version"].as_u64()? > 0
        && file["signatures"].is_array();
    good.then_some(file)
}

fn signed_by(file: &Value, root: &Value, role: &str, keys: &Keys) -> bool {
    let rules = &root["signed"]["roles"][role];
    let message = file["signed"].to_string();
    let mut good = BTreeSet::new();
    let mut named = BTreeSet::new();
    for signature in file["signatures"].as_array().unwrap() {
        let id = signature["keyid"].as_str().unwrap();
        if !named.insert(id) {
            return false;
        }
        let may = rules["keyids"].as_array().unwrap().iter().any(|key| key == id);
        if may && keys.get(id).is_some_and(|key| signature["sig"] == hex::encode(key.sign(message.as_bytes()))) {
            good.insert(id);
        }
    }
    good.len() as u64 >= rules["threshold"].as_u64().unwrap()
}

fn version(file: &Value) -> u64 {
    file["signed"]["version"].as_u64().unwrap()
}

fn expired(file: &Value, now: DateTime<Utc>) -> bool {
    file["signed"]["expires"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap() <= now
}

fn is_pinned(bytes: &[u8], file: &Value, pin: &Value) -> bool {
    let digest = || hex::encode(digest(&SHA256, bytes));
    (pin["length"].is_null() || pin["length"] == bytes.len())
        && (pin["hashes"].is_null() || pin["hashes"]["sha256"] == digest())
        && pin["version"] == version(file)
}

impl Model {
    fn refresh(&mut self, files: &Files, now: DateTime<Utc>, keys: &Keys) -> Result<(), &'static str> {
        // 5.3.2 to 5.3.9
        let mut root = parse(self.roots.last().unwrap(), "root").unwrap();
        while let Some(bytes) = files.get(&format!("{}.root.json", version(&root) + 1)) {
            let new = parse(bytes, "root").ok_or("no root")?;
            if !signed_by(&new, &root, "root", keys) || !signed_by(&new, &new, "root", keys) {
                return Err("5.3.4");
            }
            if version(&new) != version(&root) + 1 {
                return Err("5.3.5");
            }
            self.roots.push(bytes.clone());
            root = new;
        }
        if expired(&root, now) {
            return Err("5.3.10");
        }
        let roles = &root["signed"]["roles"];
        let rules = json!([roles["timestamp"], roles["snapshot"]]);
        if self.rotation.as_ref().is_some_and(|before| *before != rules) {
            self.timestamp = None;
            self.snapshot = None;
        }
        self.rotation = Some(rules);

        let bytes = files.get("timestamp.json").ok_or("5.4.1")?;
        let new = parse(bytes, "timestamp").ok_or("no timestamp")?;
        if !signed_by(&new, &root, "timestamp", keys) {
            return Err("5.4.2");
        }
        let pin_of = |timestamp: &Value| timestamp["signed"]["meta"]["snapshot.json"].clone();
        let trusted = self.timestamp.as_ref().map(|bytes| parse(bytes, "timestamp").unwrap());
        let timestamp = match trusted {
            Some(trusted) if version(&new) < version(&trusted) => return Err("5.4.3.1"),
            Some(trusted) if version(&new) == version(&trusted) => trusted,
            Some(trusted) if pin_of(&new)["version"].as_u64() < pin_of(&trusted)["version"].as_u64() => {
                return Err("5.4.3.2");
            }
            _ => new,
        };
        if expired(&timestamp, now) {
            return Err("5.4.4");
        }
        if Some(version(&timestamp))
            != self.timestamp.as_ref().map(|bytes| version(&parse(bytes, "timestamp").unwrap()))
        {
            self.timestamp = Some(bytes.clone());
        }

        let pin = pin_of(&timestamp);
        let trusted = self.snapshot.clone().map(|bytes| (parse(&bytes, "snapshot").unwrap(), bytes));
        let snapshot = match trusted {
            Some((snapshot, bytes)) if is_pinned(&bytes, &snapshot, &pin) => snapshot,
            trusted => {
                let bytes = files.get(&format!("{}.snapshot.json", pin["version"])).ok_or("5.5.1")?;
                let new = parse(bytes, "snapshot").ok_or("no snapshot")?;
                if !is_pinned(bytes, &new, &pin) {
                    return Err("5.5.2 or 5.5.4");
                }
                if !signed_by(&new, &root, "snapshot", keys) {
                    return Err("5.5.3");
                }
                for (name, before) in trusted.iter().flat_map(|(old, _)| old["signed"]["meta"].as_object().unwrap()) {
                    let now = &new["signed"]["meta"][name];
                    if now.is_null() || now["version"].as_u64() < before["version"].as_u64() {
                        return Err("5.5.5");
                    }
                }
                if expired(&new, now) {
                    return Err("5.5.6");
                }
                self.snapshot = Some(bytes.clone());
                new
            }
        };
        if expired(&snapshot, now) {
            return Err("5.5.6");
        }

        let pin = &snapshot["signed"]["meta"]["targets.json"];
        let trusted = self.targets.clone().map(|bytes| (parse(&bytes, "targets").unwrap(), bytes));
        // What the keys of today would not sign is nothing that is trusted.
        let trusted = trusted.filter(|(targets, _)| signed_by(targets, &root, "targets", keys));
        let targets = match trusted {
            Some((targets, bytes)) if is_pinned(&bytes, &targets, pin) => targets,
            _ => {
                let bytes = files.get(&format!("{}.targets.json", pin["version"])).ok_or("5.6.1")?;
                let new = parse(bytes, "targets").ok_or("no targets")?;
                if !is_pinned(bytes, &new, pin) || !signed_by(&new, &root, "targets", keys) {
                    return Err("5.6.2 to 5.6.4");
                }
                if expired(&new, now) {
                    return Err("5.6.5");
                }
                self.targets = Some(bytes.clone());
                new
            }
        };
        if expired(&targets, now) { Err("5.6.5") } else { Ok(()) }
    }
}

/// The reader, with the caller's part of persisting.
pub fn read(trust_root: &[u8], memory: &mut Memory, files: &Files, now: DateTime<Utc>) -> Result<(), String> {
    let mut refresh = Refresh::begin(trust_root, memory.clone(), now, LIMITS).map_err(|error| error.to_string())?;
    loop {
        let next = refresh.step(Duration::ZERO);
        if let Some(changed) = refresh.unsaved() {
            *memory = changed.clone();
        }
        let Some(request) = next.map_err(|error| error.to_string())? else { break };
        let came = match files.get(&request.name) {
            Some(bytes) if bytes == FAILURE => return Err("the server failed".to_owned()),
            Some(bytes) => refresh.came(Some(bytes)),
            None if request.may_be_absent => refresh.came(None),
            None => return Err("not found".to_owned()),
        };
        if let Some(changed) = refresh.unsaved() {
            *memory = changed.clone();
        }
        came.map_err(|error| error.to_string())?;
    }
    *memory = refresh.finish().unwrap().1;
    Ok(())
}

/// A vendor with three keys for each role and a threshold of one to three, and all that was ever public.
struct Story {
    random: ChaCha8Rng,
    repo: Simulator,
    now: DateTime<Utc>,
    keys: Keys,
    /// What the vendor publishes now, and what it ever published.
    files: Files,
    ever: Vec<(String, Vec<u8>)>,
    /// Of each role one key less than its threshold, of each set of keys that it ever had.
    stolen: BTreeMap<String, Vec<TestKey>>,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut repo = Simulator::new();
        repo.pin_hashes = random.random_bool(0.5);
        for role in ROLES {
            repo.role("root")["roles"][role]["threshold"] = json!(random.random_range(1..4_u64));
            repo.add_key(role);
            repo.add_key(role);
        }
        for role in ROLES {
            repo.published.remove(role);
            repo.role(role)["version"] = 1.into();
        }
        let mut story = Self {
            random,
            repo,
            now: start(),
            keys: Keys::new(),
            files: Files::new(),
            ever: Vec::new(),
            stolen: BTreeMap::new(),
        };
        story.publish(&["root", "targets", "snapshot", "timestamp"]);
        story
    }

    fn publish(&mut self, roles: &[&str]) {
        for role in roles {
            let days = self.random.random_range(2..40);
            self.repo.role(role)["expires"] = date(self.now + TimeDelta::days(days));
            self.repo.publish(&[role]);
            let bytes = self.repo.published[*role].last().unwrap().clone();
            let version = self.repo.roles[*role]["version"].clone();
            let name =
                if *role == "timestamp" { "timestamp.json".to_owned() } else { format!("{version}.{role}.json") };
            self.files.insert(name.clone(), bytes.clone());
            self.ever.push((name, bytes));
        }
        for key in self.repo.signers.values().flatten() {
            self.keys.insert(key.id().to_owned(), key.clone());
        }
    }

    /// Something that an honest vendor does.
    fn vendor(&mut self) {
        match self.random.random_range(0..6) {
            0 => self.publish(&["timestamp"]),
            1 => self.publish(&["snapshot", "timestamp"]),
            2 => self.publish(&["targets", "snapshot", "timestamp"]),
            3 => self.publish(&["root"]),
            4 => {
                let role = *ROLES.choose(&mut self.random).unwrap();
                let old = self.repo.signers[role].clone();
                if self.random.random_bool(0.3) {
                    self.repo.role("root")["roles"][role]["threshold"] = json!(self.random.random_range(1..4_u64));
                }
                self.repo.rotate(role);
                let new = self.repo.signers[role].clone();
                if role == "root" {
                    // 5.3.4: signed by the keys of both.
                    self.repo.signers.insert(role.to_owned(), [old, new.clone()].concat());
                }
                self.publish(&["root"]);
                self.repo.signers.insert(role.to_owned(), new);
                if self.random.random_bool(0.8) {
                    self.publish(&["targets", "snapshot", "timestamp"]);
                }
            }
            _ => self.now += TimeDelta::days(self.random.random_range(1..9)),
        }
        for role in ROLES {
            let threshold = self.repo.roles["root"]["roles"][role]["threshold"].as_u64().unwrap();
            let few = usize::try_from(threshold).unwrap() - 1;
            let keys = self.repo.signers[role][..few].to_vec();
            self.stolen.entry(role.to_owned()).or_default().extend(keys);
        }
    }

    /// What the attacker serves instead.
    fn attack(&mut self, whole_roles: &[&str]) -> Files {
        let mut files = self.files.clone();
        for _ in 0..self.random.random_range(0..4) {
            let names: Vec<String> = files.keys().cloned().collect();
            let name = names.choose(&mut self.random).unwrap().clone();
            match self.random.random_range(0..8) {
                0 => drop(files.remove(&name)),
                4 => {
                    let next = self.repo.roles["root"]["version"].as_u64().unwrap() + 1;
                    let name = if self.random.random_bool(0.2) { format!("{next}.root.json") } else { name };
                    files.insert(name, FAILURE.to_vec());
                }
                1 => drop(files.insert(name, b"{\"signed\": {}, \"signatures\": []}".to_vec())),
                2 => {
                    // Replay, also under another name.
                    let (old, bytes) = self.ever.choose(&mut self.random).unwrap().clone();
                    files.insert(if self.random.random_bool(0.8) { old } else { name }, bytes);
                }
                3 => {
                    // One signature twice, or taken from elsewhere.
                    let mut file: Value = serde_json::from_slice(&files[&name]).unwrap_or_default();
                    if let Some(signatures) = file["signatures"].as_array_mut().filter(|list| !list.is_empty()) {
                        let first = signatures[0].clone();
                        signatures.truncate(1);
                        signatures.push(first);
                    }
                    files.insert(name, file.to_string().into_bytes());
                }
                _ => {
                    let role = *ROLES.choose(&mut self.random).unwrap();
                    let whole = whole_roles.contains(&role);
                    self.forge(&mut files, role, whole);
                }
            }
        }
        files
    }

    /// Signs any content for a role with the stolen keys, or, where the attacker has the role whole, with all of them.
    fn forge(&mut self, files: &mut Files, role: &str, whole: bool) {
        let mut signed = self.repo.roles[role].clone();
        let version = signed["version"].as_u64().unwrap();
        let version = [version, version + 1, version + 3, 1].choose(&mut self.random).copied().unwrap();
        signed["version"] = version.into();
        signed["forged"] = true.into();
        if let Some(meta) = signed["meta"].as_object_mut() {
            for pin in meta.values_mut() {
                if self.random.random_bool(0.3) {
                    *pin = json!({"version": self.random.random_range(1..6)});
                }
            }
        }
        if self.random.random_bool(0.3) {
            signed["expires"] = date(self.now + TimeDelta::days(self.random.random_range(-3..90)));
        }
        let keys =
            if whole { self.repo.signers[role].clone() } else { self.stolen.get(role).cloned().unwrap_or_default() };
        let mut seen = BTreeSet::new();
        let keys: Vec<TestKey> = keys.into_iter().filter(|key| seen.insert(key.id().to_owned())).collect();
        // Any subset of those that he holds.
        let keys: Vec<TestKey> = keys.into_iter().filter(|_| whole || self.random.random_bool(0.9)).collect();
        let name = if role == "timestamp" { "timestamp.json".to_owned() } else { format!("{version}.{role}.json") };
        files.insert(name, sign(&signed, &keys));
    }
}

fn remembered(memory: &Memory) -> [Option<&[u8]>; 3] {
    [&memory.timestamp, &memory.snapshot, &memory.targets].map(|text| text.as_deref().map(str::as_bytes))
}

/// Plays stories; says how many updates went well and how many of those that did not are different.
fn play(seeds: std::ops::Range<u64>, whole_roles: &[&str]) -> (usize, BTreeMap<String, usize>) {
    let mut good = 0;
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for seed in seeds {
        let mut story = Story::new(seed);
        let trust_root = story.files["1.root.json"].clone();
        let mut memory = Memory::default();
        let mut model = Model { roots: vec![trust_root.clone()], ..Model::default() };
        for step in 0..14 {
            for _ in 0..story.random.random_range(0..3) {
                story.vendor();
            }
            let files = story.attack(whole_roles);
            let expected = model.refresh(&files, story.now, &story.keys);
            let outcome = read(&trust_root, &mut memory, &files, story.now);
            let shown = || format!("seed {seed}, step {step}: the model says {expected:?}, the reader {outcome:?}");
            assert_eq!(outcome.is_ok(), expected.is_ok(), "{}", shown());
            let roots: Vec<&[u8]> = memory.roots.values().map(String::as_bytes).collect();
            let expected_roots: Vec<&[u8]> = model.roots.iter().map(Vec::as_slice).collect();
            assert_eq!(roots, expected_roots, "{}", shown());
            let known = [&model.timestamp, &model.snapshot, &model.targets].map(Option::as_deref);
            assert!(remembered(&memory) == known, "{}", shown());
            match expected {
                Ok(()) => good += 1,
                Err(section) => *refused.entry(section.to_owned()).or_default() += 1,
            }
            if whole_roles.is_empty() {
                let honest = |bytes: &[u8]| story.ever.iter().any(|(_, own)| own == bytes);
                assert!(roots.into_iter().chain(known.into_iter().flatten()).all(honest), "{}", shown());
            }
        }
    }
    (good, refused)
}

#[test]
fn attackers_below_the_thresholds_get_nothing_in() {
    let (good, refused) = play(0..120, &[]);
    assert!(good > 240, "{good} updates went well");
    for section in ["5.3.4", "5.3.10", "5.4.1", "5.4.2", "5.4.3.1", "5.4.4", "5.5.1", "5.6.1", "5.5.2 or 5.5.4"] {
        assert!(refused.contains_key(section), "no story ended at {section}: {refused:?}");
    }
}

#[test]
fn with_stolen_roles_the_reader_does_what_the_specification_says() {
    let (mut good, mut refused) = (0, BTreeMap::new());
    for whole in [&["timestamp"][..], &["timestamp", "snapshot"], &["timestamp", "snapshot", "targets"], &["root"]] {
        let (more, others) = play(1000..1080, whole);
        good += more;
        others.into_iter().for_each(|(section, count)| *refused.entry(section).or_insert(0) += count);
    }
    assert!(good > 150, "{good} updates went well");
    for section in ["5.4.3.1", "5.4.3.2", "5.5.3", "5.5.5", "5.5.6"] {
        assert!(refused.contains_key(section), "no story ended at {section}: {refused:?}");
    }
}
