//! A repository in memory whose every file can be made wrong: the roles are JSON values, published when a test says so and served
//! to the shipped reader through a transport that counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bascule_repository::tuf::{canonical, quote};
use bascule_repository::{FetchError, Transport};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use ring::digest::{SHA256, SHA512, digest};
use serde_json::{Value, json};
use url::Url;

use crate::keys::TestKey;

pub const TOP: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];

pub fn start() -> DateTime<Utc> {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

pub fn date(time: DateTime<Utc>) -> Value {
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

pub fn hashes(bytes: &[u8]) -> Value {
    json!({"sha256": hex::encode(digest(&SHA256, bytes))})
}

/// What the vendor holds and what was published.
pub struct Simulator {
    /// The next content of each role, without signatures.
    pub roles: BTreeMap<String, Value>,
    /// Who signs each role.
    pub signers: BTreeMap<String, Vec<TestKey>>,
    /// Published versions of each role, the first one first: version N is at N - 1, whatever it says of itself.
    pub published: BTreeMap<String, Vec<Vec<u8>>>,
    /// Files by path.
    pub artifacts: BTreeMap<String, Vec<u8>>,
    /// Whether snapshot and timestamp name lengths and digests.
    pub pin_hashes: bool,
    /// Requests for metadata: role and version.
    pub asked: Vec<(String, Option<u64>)>,
    /// Requests for files.
    pub fetched: Vec<String>,
    /// Roles whose files the server does not give, and how it fails.
    pub failing: BTreeMap<String, fn(String) -> FetchError>,
    next_key: u32,
}

impl Simulator {
    pub fn new() -> Self {
        let expires = date(start() + TimeDelta::days(30));
        let role = |kind: &str, more: Value| {
            let mut role = json!({"_type": kind, "spec_version": "1.0.34", "version": 1, "expires": expires});
            role.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            (kind.to_owned(), role)
        };
        let roles = BTreeMap::from([
            role("root", json!({"consistent_snapshot": true, "keys": {}, "roles": {}})),
            role("timestamp", json!({"meta": {}})),
            role("snapshot", json!({"meta": {}})),
            role("targets", json!({"targets": {}})),
        ]);
        let mut simulator = Self {
            roles,
            signers: BTreeMap::new(),
            published: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            pin_hashes: false,
            asked: Vec::new(),
            fetched: Vec::new(),
            failing: BTreeMap::new(),
            next_key: 0,
        };
        for role in TOP {
            simulator.roles.get_mut("root").unwrap()["roles"][role] = json!({"keyids": [], "threshold": 1});
            simulator.add_key(role);
        }
        simulator.publish(&["targets", "snapshot", "timestamp", "root"]);
        simulator
    }

    pub fn role(&mut self, name: &str) -> &mut Value {
        self.roles.get_mut(name).unwrap()
    }

    pub fn new_key(&mut self) -> TestKey {
        self.next_key += 1;
        TestKey::ed25519(self.next_key)
    }

    /// Gives a top-level role one more key, which also signs from now on.
    pub fn add_key(&mut self, role: &str) -> TestKey {
        let key = self.new_key();
        self.add_this_key(role, &key);
        key
    }

    pub fn add_this_key(&mut self, role: &str, key: &TestKey) {
        let root = self.role("root");
        root["keys"][key.id()] = key.public();
        root["roles"][role]["keyids"].as_array_mut().unwrap().push(key.id().into());
        self.signers.entry(role.to_owned()).or_default().push(key.clone());
    }

    /// Replaces the keys of a top-level role by as many new ones as its threshold.
    pub fn rotate(&mut self, role: &str) {
        self.role("root")["roles"][role]["keyids"] = json!([]);
        self.signers.remove(role);
        for _ in 0..self.role("root")["roles"][role]["threshold"].as_u64().unwrap() {
            self.add_key(role);
        }
    }

    /// Delegates, at the end of the delegator's list and with one new key, to a role that is made if it is new.
    pub fn delegate(&mut self, delegator: &str, name: &str, paths: &[&str], terminating: bool) -> TestKey {
        let key = self.new_key();
        self.roles.entry(name.to_owned()).or_insert_with(|| {
            let expires = date(start() + TimeDelta::days(30));
            json!({"_type": "targets", "spec_version": "1.0.34", "version": 1, "expires": expires, "targets": {}})
        });
        let delegator = self.role(delegator);
        if delegator.get("delegations").is_none() {
            delegator["delegations"] = json!({"keys": {}, "roles": []});
        }
        delegator["delegations"]["keys"][key.id()] = key.public();
        delegator["delegations"]["roles"].as_array_mut().unwrap().push(json!({
            "name": name, "keyids": [key.id()], "threshold": 1, "terminating": terminating, "paths": paths,
        }));
        self.signers.entry(name.to_owned()).or_default().push(key.clone());
        key
    }

    /// Names a file in a role and serves it.
    pub fn add_artifact(&mut self, role: &str, path: &str, content: &[u8]) {
        self.role(role)["targets"][path] = json!({"length": content.len(), "hashes": hashes(content)});
        self.artifacts.insert(path.to_owned(), content.to_vec());
    }

    /// Signs roles and makes them public, each with the next version if it was public before.
    pub fn publish(&mut self, roles: &[&str]) {
        for role in roles {
            if self.published.contains_key(*role) {
                let version = self.role(role)["version"].as_u64().unwrap();
                self.role(role)["version"] = (version + 1).into();
            }
            self.publish_as_it_is(role);
        }
    }

    /// Signs a role and makes it public under the next version, whatever it says of itself.
    pub fn publish_as_it_is(&mut self, role: &str) {
        let signed = self.roles[role].clone();
        let bytes = sign(&signed, self.signers.get(role).map(Vec::as_slice).unwrap_or_default());
        let mut pin = json!({"version": signed["version"]});
        if self.pin_hashes {
            pin["length"] = bytes.len().into();
            pin["hashes"] = hashes(&bytes);
        }
        self.published.entry(role.to_owned()).or_default().push(bytes);
        match role {
            "root" | "timestamp" => {}
            "snapshot" => self.role("timestamp")["meta"]["snapshot.json"] = pin,
            role => self.role("snapshot")["meta"][format!("{role}.json")] = pin,
        }
    }

    /// Publishes everything that changed in delegated roles and above them.
    pub fn publish_all(&mut self) {
        let delegated: Vec<String> = self.roles.keys().filter(|role| !TOP.contains(&role.as_str())).cloned().collect();
        for role in &delegated {
            self.publish(&[role]);
        }
        self.publish(&["targets", "snapshot", "timestamp"]);
    }

    /// Changes the newest published file of a role without signing it again.
    pub fn tamper(&mut self, role: &str, change: impl FnOnce(&mut Value)) {
        let bytes = self.published.get_mut(role).unwrap().last_mut().unwrap();
        let mut file: Value = serde_json::from_slice(bytes).unwrap();
        change(&mut file);
        *bytes = serde_json::to_vec(&file).unwrap();
    }

    pub fn trust_root(&self) -> Vec<u8> {
        self.published["root"][0].clone()
    }

    fn serve(&mut self, path: &str) -> Option<Vec<u8>> {
        let (folder, rest) = path.trim_start_matches('/').split_once('/')?;
        let consistent = self.roles["root"]["consistent_snapshot"].as_bool().unwrap_or_default();
        if folder == "metadata" {
            let name = rest.strip_suffix(".json")?;
            let (version, role) = match name.split_once('.') {
                Some((version, role)) if role == "root" || (consistent && name != "timestamp") => {
                    (Some(version.parse::<u64>().ok()?), role)
                }
                _ => (None, name),
            };
            self.asked.push((role.to_owned(), version));
            let (_, files) = self.published.iter().find(|(known, _)| quote(known) == role)?;
            return match version {
                Some(version) => files.get(usize::try_from(version).ok()?.checked_sub(1)?).cloned(),
                None => files.last().cloned(),
            };
        }
        self.fetched.push(rest.to_owned());
        let (folder, name) = rest.rsplit_once('/').map_or(("", rest), |(folder, name)| (folder, name));
        let slash = if folder.is_empty() { "" } else { "/" };
        let (prefix, name) = if consistent { name.split_once('.')? } else { ("", name) };
        let path = format!("{folder}{slash}{name}");
        // The name carries the signed digest; what is served may be other bytes.
        let named = self.roles.values().filter_map(|role| role["targets"].get(&path));
        let known = !consistent
            || named.flat_map(|target| target["hashes"].as_object().unwrap().values()).any(|digest| digest == prefix);
        self.artifacts.get(&path).filter(|_| known).cloned()
    }
}

/// A signed file: the signatures of these keys over the canonical form.
pub fn sign(signed: &Value, keys: &[TestKey]) -> Vec<u8> {
    let message = canonical(signed.to_string().as_bytes()).unwrap();
    let signatures: Vec<Value> =
        keys.iter().map(|key| json!({"keyid": key.id(), "sig": hex::encode(key.sign(&message))})).collect();
    serde_json::to_vec(&json!({"signed": signed, "signatures": signatures})).unwrap()
}

/// SHA-512 of bytes, as metadata writes it.
pub fn sha512(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA512, bytes))
}

/// The simulator behind the reader's transport.
#[derive(Clone)]
pub struct Served(Arc<Mutex<Simulator>>);

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Served")
    }
}

impl Served {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Simulator::new())))
    }

    pub fn repo(&self) -> MutexGuard<'_, Simulator> {
        self.0.lock().unwrap()
    }
}

#[async_trait]
impl Transport for Served {
    async fn get(&self, url: &Url, limit: u64, _: Duration) -> Result<Bytes, FetchError> {
        let failing = |(role, _): &(&String, _)| url.path().ends_with(&format!(".{}.json", quote(role)));
        let failure = self.repo().failing.iter().find(failing).map(|(_, failure)| *failure);
        if let Some(failure) = failure {
            return Err(failure(url.to_string()));
        }
        let found = self.repo().serve(url.path());
        let bytes = found.ok_or_else(|| FetchError::NotFound { url: url.to_string(), status: 404 })?;
        if bytes.len() as u64 > limit {
            return Err(FetchError::TooLarge { url: url.to_string(), limit });
        }
        Ok(bytes.into())
    }
}
