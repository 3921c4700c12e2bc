//! One task for each repository that some policy names; it reads the metadata and every channel asked for, again and
//! again.

use super::{after_failure, offer_of, reason_of};
use crate::clock::Clock;
use bascule_api::{ChannelName, Duration, RepositoryStatus, Source, Time, TrustRoot, conditions::reason};
use bascule_planner::snapshot::Offer;
use bascule_repository::{Fetcher, OpenOptions, Repository, Volume, time::Now};
use chrono::TimeDelta;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::watch, task::AbortHandle};
use url::Url;

/// The ConfigMap a policy's trust root comes from unless it says otherwise.
const DEFAULT_TRUST_ROOT: &str = "bascule-trust-root";
/// The key in it.
const DEFAULT_KEY: &str = "root.json";
/// The first wait after a reading that failed.
const FIRST_RETRY: std::time::Duration = std::time::Duration::from_secs(2);
/// A reading that brings nothing new changes no status for so long; the metrics tell the exact age meanwhile.
const SILENT_FOR: TimeDelta = TimeDelta::hours(6);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Reading {
    repository: String,
    trust_root: String,
}

impl Reading {
    fn of(source: &Source) -> Self {
        Self { repository: source.repository.clone(), trust_root: trust_root_key(&source.trust_root) }
    }

    /// What names its datastore.
    fn key(&self) -> String {
        format!("{}\n{}", self.repository, self.trust_root)
    }
}

fn trust_root_key(trust_root: &TrustRoot) -> String {
    match (&trust_root.inline, &trust_root.config_map) {
        (Some(text), _) => format!("inline:{}", fingerprint(text)),
        (None, Some(key)) => format!("config-map:{}/{}", key.name, key.key),
        (None, None) => format!("config-map:{DEFAULT_TRUST_ROOT}/{DEFAULT_KEY}"),
    }
}

fn fingerprint(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What was read of a channel.
#[derive(Debug, Clone)]
struct Known {
    offer: Arc<Offer>,
    /// When it was verified last, also where that changed nothing.
    verified_at: Option<Time>,
}

type Offers = Arc<Mutex<HashMap<(Reading, ChannelName), Known>>>;

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tools")
            .field("namespace", &self.namespace)
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

/// What reading needs.
#[derive(Clone)]
pub struct Tools {
    /// For ConfigMaps with trust roots.
    pub client: Client,
    /// The operator's namespace.
    pub namespace: String,
    /// How repositories are fetched.
    pub fetcher: Fetcher,
    /// Where the newest metadata is remembered.
    pub memory: Arc<Volume>,
    /// The time that is told of a reading.
    pub clock: Clock,
    /// The time that signatures must not have outlived: of this machine's clock, which nothing in the cluster sets.
    pub own_clock: Clock,
    /// Told when an offer changes.
    pub changes: Arc<watch::Sender<u64>>,
}

/// The channels that are read.
pub struct Channels {
    tools: Tools,
    offers: Offers,
    tasks: BTreeMap<Reading, Task>,
}

struct Task {
    asked: watch::Sender<Asked>,
    handle: AbortHandle,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    trust_root: TrustRoot,
    channels: BTreeSet<ChannelName>,
    interval: Duration,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.tasks.keys()).finish()
    }
}

impl Channels {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(tools: Tools) -> Self {
        Self { tools, offers: Arc::default(), tasks: BTreeMap::new() }
    }

    /// Reads these channels from now on, and no others.
    pub fn set<'a>(&mut self, sources: impl IntoIterator<Item = &'a Source>) {
        let mut wanted: BTreeMap<Reading, Asked> = BTreeMap::new();
        for source in sources {
            let asked = wanted.entry(Reading::of(source)).or_insert_with(|| Asked {
                trust_root: source.trust_root.clone(),
                channels: BTreeSet::new(),
                interval: source.poll_interval,
            });
            asked.channels.insert(source.channel.clone());
            asked.interval = asked.interval.min(source.poll_interval);
        }
        self.tasks.retain(|reading, _| wanted.contains_key(reading));
        let keys: Vec<String> = wanted.keys().map(Reading::key).collect();
        if self.tools.memory.set_used(keys.iter().map(String::as_str)) {
            let memory = Arc::clone(&self.tools.memory);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = memory.tidy() {
                    tracing::warn!(
                        error = crate::one_line(&error),
                        "repositories that no policy names can't be forgotten"
                    );
                }
            });
        }
        self.offers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(reading, channel), _| wanted.get(reading).is_some_and(|asked| asked.channels.contains(channel)));
        for (reading, asked) in wanted {
            match self.tasks.get(&reading) {
                Some(task) => {
                    task.asked.send_if_modified(|before| {
                        let changed = *before != asked;
                        *before = asked;
                        changed
                    });
                }
                None => {
                    let (sender, receiver) = watch::channel(asked);
                    let task = poll(reading.clone(), receiver, self.tools.clone(), Arc::clone(&self.offers));
                    let handle = tokio::spawn(task).abort_handle();
                    self.tasks.insert(reading, Task { asked: sender, handle });
                }
            }
        }
    }

    /// What a source's channel offers, as far as it was read.
    #[must_use]
    pub fn offer(&self, source: &Source) -> Arc<Offer> {
        let key = (Reading::of(source), source.channel.clone());
        self.offers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .map(|known| Arc::clone(&known.offer))
            .unwrap_or_default()
    }

    /// When a source's channel was verified last, to the second; its offer keeps an older time while nothing changes.
    #[must_use]
    pub fn verified_at(&self, source: &Source) -> Option<Time> {
        let key = (Reading::of(source), source.channel.clone());
        self.offers.lock().unwrap_or_else(PoisonError::into_inner).get(&key)?.verified_at
    }
}

async fn poll(reading: Reading, mut asked: watch::Receiver<Asked>, tools: Tools, offers: Offers) {
    let mut failures = 0_u32;
    loop {
        let now_asked = asked.borrow_and_update().clone();
        let answers = read(&reading, &now_asked, &tools).await;
        let failed = answers.values().any(Result::is_err);
        take(&reading, answers, &tools, &offers);
        failures = if failed { failures.saturating_add(1) } else { 0 };
        let interval = now_asked.interval.to_std().max(std::time::Duration::from_secs(1));
        let pause = if failed { FIRST_RETRY.saturating_mul(1 << failures.min(8)).min(interval) } else { interval };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = asked.changed() => if changed.is_err() { return },
        }
    }
}

type Answer = Result<Offer, (&'static str, String)>;

async fn read(reading: &Reading, asked: &Asked, tools: &Tools) -> BTreeMap<ChannelName, Answer> {
    let all = |failed: (&'static str, String)| {
        asked.channels.iter().map(|channel| (channel.clone(), Err(failed.clone()))).collect()
    };
    let repository = match open(reading, asked, tools).await {
        Ok(repository) => repository,
        Err(failed) => return all(failed),
    };
    let mut answers = BTreeMap::new();
    for channel in &asked.channels {
        let answer = match repository.channel(channel).await {
            Ok(found) => Ok(offer_of(&found, repository.metadata(), Time::new(tools.clock.now()))),
            Err(error) => Err((reason_of(&error), crate::one_line(&error))),
        };
        answers.insert(channel.clone(), answer);
    }
    answers
}

async fn open(reading: &Reading, asked: &Asked, tools: &Tools) -> Result<Repository, (&'static str, String)> {
    let base = Url::parse(&reading.repository)
        .map_err(|error| (reason::UNREACHABLE, format!("spec.source.repository is no URL: {error}")))?;
    let trust_root = trust_root(&asked.trust_root, tools).await.map_err(|message| (reason::UNTRUSTED, message))?;
    let options = OpenOptions {
        trust_root,
        base,
        datastore: tools.memory.datastore(&reading.key()),
        fetcher: tools.fetcher.clone(),
        now: Now::at(tools.own_clock.now()),
    };
    Repository::open(options).await.map_err(|error| (reason_of(&error), crate::one_line(&error)))
}

async fn trust_root(trust_root: &TrustRoot, tools: &Tools) -> Result<Vec<u8>, String> {
    if let Some(inline) = &trust_root.inline {
        return Ok(inline.clone().into_bytes());
    }
    let (name, key) = match &trust_root.config_map {
        Some(place) => (place.name.as_str(), place.key.as_str()),
        None => (DEFAULT_TRUST_ROOT, DEFAULT_KEY),
    };
    let place = format!("ConfigMap {}/{name}", tools.namespace);
    let maps: Api<ConfigMap> = Api::namespaced(tools.client.clone(), &tools.namespace);
    let map = maps
        .get_opt(name)
        .await
        .map_err(|error| format!("{place} can't be read: {}", crate::one_line(&error)))?
        .ok_or_else(|| format!("{place} does not exist; it must hold the repository's TUF root under the key {key}"))?;
    let text = map.data.unwrap_or_default().remove(key);
    let bytes = map.binary_data.unwrap_or_default().remove(key);
    text.map(String::into_bytes)
        .or_else(|| bytes.map(|bytes| bytes.0))
        .ok_or_else(|| format!("{place} has no key {key}; it must hold the repository's TUF root"))
}

fn take(reading: &Reading, answers: BTreeMap<ChannelName, Answer>, tools: &Tools, offers: &Offers) {
    let now = Time::new(tools.own_clock.now());
    let mut changed = false;
    let mut offers = offers.lock().unwrap_or_else(PoisonError::into_inner);
    for (channel, answer) in answers {
        let key = (reading.clone(), channel);
        let before = offers.get(&key).map(|known| Arc::clone(&known.offer));
        let mut verified_at = offers.get(&key).and_then(|known| known.verified_at);
        let after = match answer {
            Ok(offer) => {
                verified_at = offer.repository.verified_at;
                quiet(before.as_deref(), offer)
            }
            Err((failed, message)) => {
                if before.as_ref().is_none_or(|offer| offer.repository.error.as_deref() != Some(message.as_str())) {
                    tracing::warn!(repository = reading.repository, channel = %key.1, reason = failed, message, "reading failed");
                }
                after_failure(before.as_deref(), failed, message, now)
            }
        };
        let same = before.filter(|before| **before == after);
        changed |= same.is_none();
        let offer = same.unwrap_or_else(|| Arc::new(after));
        offers.insert(key, Known { offer, verified_at });
    }
    drop(offers);
    if changed {
        tools.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// A reading that brought the same again keeps the time of the first, so that a quiet repository causes no writes.
fn quiet(before: Option<&Offer>, mut after: Offer) -> Offer {
    let without = |status: &RepositoryStatus| RepositoryStatus { verified_at: None, ..status.clone() };
    if let Some(before) = before
        && before.state == after.state
        && without(&before.repository) == without(&after.repository)
        && let (Some(first), Some(latest)) = (before.repository.verified_at, after.repository.verified_at)
        && latest.get() - first.get() < SILENT_FOR
    {
        after.repository.verified_at = Some(first);
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_planner::snapshot::OfferState;

    fn at(seconds: i64) -> Option<Time> {
        Some(Time::new(chrono::DateTime::from_timestamp(seconds, 0).unwrap()))
    }

    fn offer(verified: i64, version: i64) -> Offer {
        Offer {
            state: OfferState::Valid,
            releases: Vec::new(),
            repository: RepositoryStatus {
                verified_at: at(verified),
                timestamp_version: Some(version),
                ..RepositoryStatus::default()
            },
        }
    }

    #[test]
    fn the_same_metadata_again_changes_nothing_for_hours() {
        assert_eq!(quiet(Some(&offer(10, 1)), offer(500, 1)), offer(10, 1));
        assert_eq!(quiet(Some(&offer(10, 1)), offer(500, 2)), offer(500, 2));
        assert_eq!(quiet(Some(&offer(10, 1)), offer(10 + 6 * 3600, 1)), offer(10 + 6 * 3600, 1));
        assert_eq!(quiet(None, offer(500, 1)), offer(500, 1));
    }

    #[test]
    fn one_repository_with_one_root_is_read_once() {
        let source = |channel: &str, inline: Option<&str>| Source {
            repository: "https://images.example.com/os".into(),
            channel: channel.parse().unwrap(),
            trust_root: TrustRoot { inline: inline.map(str::to_owned), config_map: None },
            poll_interval: Duration::from_minutes(5),
            pack_fallback: bascule_api::PackFallback::Allow,
        };
        assert_eq!(Reading::of(&source("stable", None)), Reading::of(&source("beta", None)));
        assert_ne!(Reading::of(&source("stable", None)), Reading::of(&source("stable", Some("{}"))));
    }
}
