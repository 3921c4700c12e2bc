//! Random stories of a node that goes from OS image to OS image, each with a trust root of its own, of a vendor who replaces root keys and
//! online keys meanwhile, and of an attacker who holds all of the network and each root key that a root which the node knows has revoked.
//! One root key stays in the vendor's safe, so that every two of his roots can be seen to be of one line.

use std::collections::BTreeMap;

use bascule_repository::tuf::Memory;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::keys::TestKey;
use crate::model::{Files, read};
use crate::simulator::{Simulator, sign, start};

/// A root key that was revoked: which roots name it.
struct Revoked {
    key: TestKey,
    from: u64,
    before: u64,
}

struct Story {
    random: ChaCha8Rng,
    repo: Simulator,
    safe: TestKey,
    root_key: TestKey,
    root_key_since: u64,
    revoked: Vec<Revoked>,
    files: Files,
    /// What was served at some time.
    states: Vec<Files>,
    keys: u32,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut repo = Simulator::new();
        for role in ["root", "targets", "snapshot", "timestamp"] {
            repo.published.remove(role);
            repo.role(role)["version"] = 1.into();
        }
        let safe = repo.signers["root"][0].clone();
        let root_key = repo.add_key("root");
        let mut story = Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            repo,
            safe,
            root_key,
            root_key_since: 1,
            revoked: Vec::new(),
            files: Files::new(),
            states: Vec::new(),
            keys: 8000,
        };
        story.publish(&["root", "targets", "snapshot", "timestamp"]);
        story
    }

    fn new_key(&mut self) -> TestKey {
        self.keys += 1;
        TestKey::ed25519(self.keys)
    }

    fn newest_root(&self) -> u64 {
        self.repo.roles["root"]["version"].as_u64().unwrap()
    }

    fn publish(&mut self, roles: &[&str]) {
        self.repo.publish(roles);
        for role in roles {
            let bytes = self.repo.published[*role].last().unwrap().clone();
            let version = self.repo.roles[*role]["version"].clone();
            let name =
                if *role == "timestamp" { "timestamp.json".to_owned() } else { format!("{version}.{role}.json") };
            self.files.insert(name, bytes);
        }
        self.states.push(self.files.clone());
    }

    fn vendor(&mut self) {
        let online = self.random.random_bool(0.5);
        match self.random.random_range(0..4) {
            0 => return self.publish(&["targets", "snapshot", "timestamp"]),
            1 => {}
            _ => {
                let new = self.new_key();
                let old = std::mem::replace(&mut self.root_key, new.clone());
                self.repo.role("root")["roles"]["root"]["keyids"] = json!([]);
                self.repo.signers.insert("root".to_owned(), vec![old.clone()]);
                for key in [self.safe.clone(), new] {
                    self.repo.add_this_key("root", &key);
                }
                let before = self.newest_root() + 1;
                self.revoked.push(Revoked { key: old, from: self.root_key_since, before });
                self.root_key_since = before;
            }
        }
        if online {
            self.repo.rotate("timestamp");
            self.repo.rotate("snapshot");
        }
        self.publish(&["root", "targets", "snapshot", "timestamp"]);
        let signers = vec![self.safe.clone(), self.root_key.clone()];
        self.repo.signers.insert("root".to_owned(), signers);
    }

    /// What is served to a node that knows of this root: an older state, with or without the roots since then, and roots that
    /// revoked keys have signed.
    fn attack(&mut self, image: u64, known: u64) -> Files {
        let mut files = self.states.choose(&mut self.random).unwrap().clone();
        if self.random.random_bool(0.8) {
            files.extend(
                self.files.iter().filter(|(name, _)| name.ends_with("root.json")).map(|(a, b)| (a.clone(), b.clone())),
            );
        }
        // Those that a root after the image's revoked, and that are not good for anything that the node knows.
        let stolen = self.revoked.iter().filter(|revoked| revoked.before <= known && revoked.before > image);
        let Some(stolen) = stolen.collect::<Vec<_>>().choose(&mut self.random).copied() else { return files };
        let key = stolen.key.clone();
        let first = self.random.random_range(stolen.from.max(image) + 1..=stolen.before);
        // As far as to the vendor's next root, which this key has signed too, often.
        let last =
            if self.random.random_bool(0.7) { stolen.before - 1 } else { first + self.random.random_range(0..3) };
        let mut signed = self.repo.roles["root"].clone();
        signed["forged"] = self.random.random_range(0..1000).into();
        let mut keys = vec![key];
        if self.random.random_bool(0.2) {
            keys.push(self.new_key());
        }
        signed["keys"][keys[0].id()] = keys[0].public();
        let own = keys.last().unwrap();
        signed["keys"][own.id()] = own.public();
        signed["roles"]["root"] = json!({"keyids": [own.id()], "threshold": 1});
        for version in first..=last {
            signed["version"] = version.into();
            files.insert(format!("{version}.root.json"), sign(&signed, &keys));
        }
        files
    }
}

fn timestamp_version(memory: &Memory) -> Option<u64> {
    let file: Value = serde_json::from_str(memory.timestamp.as_deref()?).unwrap();
    file["signed"]["version"].as_u64()
}

#[test]
fn revoked_keys_get_nothing_in_and_nothing_in_the_way_whichever_image_runs() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..120 {
        let mut story = Story::new(seed);
        let mut memory = Memory::default();
        let mut known = 0;
        for step in 0..8 {
            for _ in 0..story.random.random_range(0..4) {
                story.vendor();
            }
            let newest = story.newest_root();
            let image = if story.random.random_bool(0.4) { newest } else { story.random.random_range(1..=newest) };
            known = known.max(image);
            let files = if story.random.random_bool(0.1) { story.files.clone() } else { story.attack(image, known) };
            let roots = story.files.clone();
            let honest = |version: u64| roots[&format!("{version}.root.json")].as_slice();
            let before = memory.clone();
            let outcome = read(honest(image), &mut memory, &files, start());
            let least = known;
            let shown = || format!("seed {seed}, step {step}, image {image}, known {least}: {outcome:?}");

            let (newest, text) = memory.roots.last_key_value().unwrap();
            assert!(*newest >= least && text.as_bytes() == honest(*newest), "{}: newest is {newest}", shown());
            known = *newest;
            if memory.accepted_by == before.accepted_by {
                assert!(timestamp_version(&memory) >= timestamp_version(&before), "{}", shown());
            }
            let forged = memory.roots.iter().any(|(version, text)| text.as_bytes() != honest(*version));
            let what = match (&outcome, forged) {
                (_, true) => "forged roots that lead to the honest one",
                (Ok(()), _) => "good",
                (Err(error), _) if error.contains("trusted here before") => "rollback",
                (Err(_), _) => "otherwise refused",
            };
            *seen.entry(what).or_default() += 1;
            // Whatever it was, the vendor is heard, under this image and any other.
            let other = story.random.random_range(1..=story.newest_root());
            for image in [image, other] {
                let heard = read(honest(image), &mut memory.clone(), &story.files, start());
                heard.unwrap_or_else(|error| panic!("{}, then image {image}: {error}", shown()));
            }
        }
    }
    assert!(seen.len() == 4 && seen.values().all(|count| *count > 10), "{seen:?}");
}
