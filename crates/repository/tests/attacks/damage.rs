//! Metadata that was damaged at any place: refused, or it means the same (a hex digit in the other case, say). Never a panic,
//! never another meaning.

use std::path::Path;

use bascule_repository::time::Now;
use bascule_repository::{DatastoreLocation, Fetcher, OpenOptions, Repository, RoleExpiry};
use url::Url;

use bascule_tests::vendor::{Vendor, start};

/// Every so many bytes one bit is flipped; which one depends on the place.
const STRIDE: usize = 13;

async fn meaning(repository: &Path, trust_root: &[u8]) -> Option<(Vec<RoleExpiry>, Vec<String>)> {
    let opened = Repository::open(OpenOptions {
        trust_root: trust_root.to_vec(),
        base: Url::from_directory_path(repository).unwrap(),
        datastore: DatastoreLocation::Ephemeral,
        fetcher: Fetcher::Directory,
        now: Now::at(start()),
    })
    .await
    .ok()?;
    let channel = opened.channel(&"stable".parse().unwrap()).await.ok()?;
    let versions = channel.releases.iter().map(|release| release.version.to_string()).collect();
    Some((opened.metadata().roles.clone(), versions))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_or_a_cut_anywhere_is_refused_or_means_the_same() {
    let vendor = Vendor::with_two_releases();
    let keys = vendor.keys(&["root-1", "root-2", "timestamp"]);
    vendor.publisher().rotate(&Default::default(), vendor.signing(&keys)).unwrap();
    let root = vendor.trust_root();
    let good = meaning(&vendor.repository(), &root).await.unwrap();
    let metadata = vendor.repository().join("metadata");
    let files = [
        metadata.join("timestamp.json"),
        metadata.join("3.snapshot.json"),
        metadata.join("3.targets.json"),
        metadata.join("2.root.json"),
        vendor.published("stable.json"),
    ];
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        let mut refused = 0;
        let places = (0..bytes.len()).step_by(STRIDE);
        let flipped = places.clone().map(|at| {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            (format!("bit {} of byte {at}", at % 8), damaged)
        });
        let cut = places.step_by(8).map(|at| (format!("cut at {at}"), bytes[..at].to_vec()));
        for (damage, content) in flipped.chain(cut) {
            std::fs::write(&path, content).unwrap();
            match meaning(&vendor.repository(), &root).await {
                None => refused += 1,
                Some(meaning) => assert_eq!(meaning, good, "{damage} of {}", path.display()),
            }
        }
        assert!(refused * STRIDE > bytes.len() / 2, "only {refused} refused in {}", path.display());
        std::fs::write(&path, bytes).unwrap();
    }
    assert_eq!(meaning(&vendor.repository(), &root).await, Some(good));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_root_that_is_none_is_refused() {
    let vendor = Vendor::with_two_releases();
    let root = vendor.trust_root();
    let timestamp = std::fs::read(vendor.repository().join("metadata/timestamp.json")).unwrap();
    let mut unsigned: serde_json::Value = serde_json::from_slice(&root).unwrap();
    unsigned["signatures"] = serde_json::json!([]);
    for bad in [&b""[..], b"{}", &root[..root.len() / 2], &timestamp, unsigned.to_string().as_bytes()] {
        assert_eq!(meaning(&vendor.repository(), bad).await, None);
    }
}
