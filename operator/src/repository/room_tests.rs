//! Repositories that would have the operator's folder for themselves.

use super::{Channels, ROOM, Tools};
use crate::clock::Clock;
use bascule_api::{Duration, PackFallback, Source, TrustRoot, conditions::reason};
use bascule_planner::snapshot::OfferState;
use bascule_repository::{Bounds, Fetcher, Volume};
use bascule_tests::vendor::{CHANNEL, Vendor, describe, start};
use kube::{Client, Config};
use std::{path::Path, sync::Arc};
use tokio::sync::watch;
use url::Url;

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);
const KIB: u64 = 1 << 10;
/// Room for one that is large, and for a few more that are as they should be. All may take 164 KiB where one is large: one such
/// (some 90, as [`GREEDY`] is told with roots and signatures) with all that the others have (60 at most), and never two.
const LITTLE: Bounds = Bounds {
    total: 360 * KIB,
    each: 96 * KIB,
    small: 32 * KIB,
    for_small: 96 * KIB,
    unused: 8,
    unused_bytes: 96 * KIB,
};

/// Bytes that say nothing, in metadata of which there is room once.
const GREEDY: usize = 80 << 10;

/// A vendor whose targets are signed with so many bytes that say nothing.
fn padded(bytes: usize) -> Vendor {
    let vendor = Vendor::empty();
    let path = |name: &str| vendor.repository().join("metadata").join(name);
    vendor.forge("1.targets.json", &["targets"], |signed| signed["padding"] = "x".repeat(bytes).into());
    let targets = describe(&path("1.targets.json"), 1);
    vendor.forge("1.snapshot.json", &["snapshot"], |signed| signed["meta"]["targets.json"] = targets);
    let snapshot = describe(&path("1.snapshot.json"), 1);
    vendor.forge("timestamp.json", &["timestamp"], |signed| signed["meta"]["snapshot.json"] = snapshot);
    vendor
}

fn source(vendor: &Vendor) -> Source {
    Source {
        repository: Url::from_directory_path(vendor.repository()).unwrap().to_string(),
        channel: CHANNEL.parse().unwrap(),
        trust_root: TrustRoot { inline: Some(String::from_utf8(vendor.trust_root()).unwrap()), config_map: None },
        poll_interval: Duration::from_minutes(5),
        pack_fallback: PackFallback::Allow,
    }
}

fn taken(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| if entry.path().is_dir() { taken(&entry.path()) } else { entry.metadata().unwrap().len() })
        .sum()
}

struct Reader {
    channels: Channels,
    changes: watch::Receiver<u64>,
}

impl Reader {
    fn new(folder: &Path) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let changes = Arc::new(watch::Sender::new(0));
        let receiver = changes.subscribe();
        let tools = Tools {
            // No trust root comes from the cluster here.
            client: Client::try_from(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap(),
            namespace: "bascule-system".to_owned(),
            fetcher: Fetcher::Directory,
            memory: Arc::new(Volume::new(folder.to_owned(), LITTLE)),
            clock: Clock::from_fn(start),
            own_clock: Clock::from_fn(start),
            changes,
        };
        Self { channels: Channels::new(tools), changes: receiver }
    }

    /// Waits until what is offered is so.
    async fn until(&mut self, sources: &[Source], holds: impl Fn(&[OfferState]) -> bool) -> Vec<OfferState> {
        let states = |channels: &Channels| -> Vec<OfferState> {
            sources.iter().map(|source| channels.offer(source).state.clone()).collect()
        };
        let so = async {
            while !holds(&states(&self.channels)) {
                self.changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, so).await.is_err() {
            panic!("it never came to this: {:?}", states(&self.channels));
        }
        states(&self.channels)
    }
}

fn no_room(state: &OfferState) -> Option<&str> {
    match state {
        OfferState::Unusable { reason: reason::NO_ROOM, message } => Some(message),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repositories_that_fill_the_folder_leave_others_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (endless, greedy, greedier) = (padded(120 << 10), padded(GREEDY), padded(GREEDY));
    let honest = Vendor::with_two_releases();
    let sources = [&endless, &greedy, &greedier, &honest].map(source);
    let mut reader = Reader::new(folder.path());
    reader.channels.set(&sources);
    let read = |states: &[OfferState]| states.iter().all(|state| *state != OfferState::Unread);
    let states = reader.until(&sources, read).await;
    assert_eq!(states[3], OfferState::Valid);
    let said = no_room(&states[0]).unwrap();
    assert!(said.contains("and 98304 are allowed here; its publisher has to make its metadata smaller"), "{said}");
    // Each of the two would fit; whichever came second does not.
    let refused: Vec<&str> = states[1..3].iter().filter_map(no_room).collect();
    assert_eq!(refused.len(), 1, "{states:?}");
    assert!(refused[0].contains("there is no room to remember"), "{refused:?}");
    assert!(taken(folder.path()) < LITTLE.total, "{}", taken(folder.path()));

    // Once no policy names the others there is room again, and the one that was there is read on.
    let second = sources[1..3].iter().zip(&states[1..3]).find(|(_, state)| no_room(state).is_some()).unwrap().0;
    reader.channels.set([&sources[3]]);
    let left = [second.clone(), sources[3].clone()];
    reader.channels.set(&left);
    // What reads it from before may still hold its folder for a moment.
    let fits = |states: &[OfferState]| matches!(&states[0], OfferState::Unusable { message, .. } if message.contains("has no channel"));
    let states = reader.until(&left, fits).await;
    assert_eq!(states[1], OfferState::Valid);
}

#[test]
fn what_is_remembered_fits_into_the_volume_of_the_manifest() {
    let manifest = include_str!("../../../manifests/operator/deployment.yaml");
    let limit = manifest.split("emptyDir: {sizeLimit: ").nth(1).and_then(|rest| rest.split("Mi}").next()).unwrap();
    let limit: u64 = limit.parse().unwrap();
    // What the kubelet counts besides are the folder itself and the blocks of files that have no name any more.
    assert!(ROOM.total + (4 << 20) <= limit << 20, "{limit} MiB");
    const { assert!(ROOM.each + ROOM.for_small + ROOM.unused_bytes < ROOM.total) };
    const { assert!(ROOM.small < ROOM.each) };
}
