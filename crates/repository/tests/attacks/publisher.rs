//! The publisher's own promises: atomic for readers, safe against being killed, the same bytes for the same input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bascule_names::ChannelName;
use bascule_repository::publish::{Notes, PublishError, Publisher};
use bascule_repository::time::Now;
use bascule_repository::{DatastoreLocation, Fetcher, OpenOptions, Repository};
use url::Url;

use bascule_tests::vendor::{CHANNEL, Vendor, copy_folder, start, version};

pub const ONLINE: [&str; 3] = ["targets", "snapshot", "timestamp"];

/// All files below a folder, by their path in it.
pub fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

pub async fn newest(
    repository: &Path,
    trust_root: &[u8],
    datastore: &Path,
) -> Result<String, bascule_repository::Error> {
    let opened = Repository::open(OpenOptions {
        trust_root: trust_root.to_vec(),
        base: Url::from_directory_path(repository).unwrap(),
        datastore: DatastoreLocation::Persistent(datastore.to_owned()),
        fetcher: Fetcher::Directory,
        now: Now::at(start()),
    })
    .await?;
    let channel = opened.channel(&CHANNEL.parse().unwrap()).await?;
    Ok(channel.releases.last().unwrap().version.to_string())
}

/// Copies `old`, then the files of `new` one by one in the order they were made visible, and looks at each state.
async fn look_at_each_state(
    old: &Path,
    new: &Path,
    written: &[PathBuf],
    trust_root: &[u8],
    retry: impl Fn(&Path),
) -> Vec<String> {
    let changed: Vec<PathBuf> = {
        let (before, after) = (content(old), content(new));
        let differs = |path: &&PathBuf| before.get(*path) != after.get(*path) && !path.starts_with(".publish.lock");
        after.keys().filter(differs).cloned().collect()
    };
    assert!(changed.iter().all(|path| written.contains(path)), "{changed:?} {written:?}");
    let state = tempfile::tempdir().unwrap();
    let datastore = tempfile::tempdir().unwrap();
    copy_folder(old, state.path());
    let mut seen = vec![newest(state.path(), trust_root, datastore.path()).await.unwrap()];
    for relative in written {
        let to = state.path().join(relative);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(new.join(relative), &to).unwrap();
        let release = newest(state.path(), trust_root, datastore.path()).await;
        seen.push(release.unwrap_or_else(|error| panic!("after {}: {error}", relative.display())));
        // Killed here, the same command is given again: it must go through.
        let again = tempfile::tempdir().unwrap();
        copy_folder(state.path(), again.path());
        retry(again.path());
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_publishing_at_any_file_readers_see_the_old_state_whole() {
    let vendor = Vendor::empty();
    vendor.publish("1.0", None);
    let old = tempfile::tempdir().unwrap();
    copy_folder(&vendor.repository(), old.path());
    let build = vendor.build("1.1", Some("1.0"));
    let channel: ChannelName = CHANNEL.parse().unwrap();
    let keys = vendor.keys(&ONLINE);
    let mut publisher = vendor.publisher();
    publisher.add_release(&channel, &build, &Notes::default(), vendor.signing(&keys)).unwrap();
    let written = publisher.written();
    drop(publisher);
    assert_eq!(written.last().unwrap(), Path::new("metadata/timestamp.json"));
    let retry = |path: &Path| {
        let mut publisher = Publisher::open(path).unwrap();
        match publisher.add_release(&channel, &build, &Notes::default(), vendor.signing(&keys)) {
            Ok(_) => {}
            // Only where nothing was left to be done.
            Err(PublishError::Channel { .. }) => {
                assert!(publisher.channel(&channel).unwrap().release(&version("1.1")).is_some())
            }
            Err(error) => panic!("{error}"),
        }
    };
    let seen = look_at_each_state(old.path(), &vendor.repository(), &written, &vendor.trust_root(), retry).await;
    assert!(seen.len() > 6, "{seen:?}");
    let (last, before) = seen.split_last().unwrap();
    assert_eq!(last, "1.1");
    assert!(before.iter().all(|release| release == "1.0"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_never_notice_that_keys_are_being_rotated() {
    let vendor = Vendor::with_two_releases();
    let old = tempfile::tempdir().unwrap();
    copy_folder(&vendor.repository(), old.path());
    let mut changes = BTreeMap::new();
    for role in ONLINE {
        let new = format!("{role}-2");
        vendor.new_key(&new);
        changes.insert(role.to_owned(), vendor.role(&[&new], 1));
    }
    let all = ["root-1", "root-2", "targets", "targets-2", "snapshot", "snapshot-2", "timestamp", "timestamp-2"];
    let keys = vendor.keys(&all);
    let mut publisher = vendor.publisher();
    publisher.rotate(&changes, vendor.signing(&keys)).unwrap();
    let written = publisher.written();
    drop(publisher);
    let retry = |path: &Path| {
        let mut publisher = Publisher::open(path).unwrap();
        publisher.rotate(&changes, vendor.signing(&keys)).unwrap();
    };
    let seen = look_at_each_state(old.path(), &vendor.repository(), &written, &vendor.trust_root(), retry).await;
    assert_eq!(seen.len(), 5, "targets, snapshot, timestamp, root: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_input_gives_the_same_bytes() {
    let vendor = Vendor::empty();
    let other = tempfile::tempdir().unwrap();
    copy_folder(&vendor.repository(), other.path());
    let build = vendor.build("1.0", None);
    let channel: ChannelName = CHANNEL.parse().unwrap();
    for (path, order) in
        [(vendor.repository(), ONLINE), (other.path().to_owned(), ["timestamp", "targets", "snapshot"])]
    {
        let keys = vendor.keys(&order);
        let mut publisher = Publisher::open(&path).unwrap();
        publisher.add_release(&channel, &build, &Notes::default(), vendor.signing(&keys)).unwrap();
    }
    let (one, two) = (content(&vendor.repository()), content(other.path()));
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    for (path, bytes) in &one {
        assert!(bytes == &two[path], "{} differs", path.display());
    }
}

#[test]
fn a_build_that_is_not_what_its_manifest_says_is_not_published() {
    let vendor = Vendor::empty();
    let build = vendor.build("1.0", None);
    let keys = vendor.keys(&ONLINE);
    let channel: ChannelName = CHANNEL.parse().unwrap();
    for name in ["uki.efi", "full.pack"] {
        let path = build.join("releases/1.0/x86-64").join(name);
        let good = std::fs::read(&path).unwrap();
        for bad in [&good[1..], &{
            let mut flipped = good.clone();
            let last = flipped.len() - 20;
            flipped[last] ^= 1;
            flipped
        }] {
            std::fs::write(&path, bad).unwrap();
            let mut publisher = vendor.publisher();
            let error = publisher.add_release(&channel, &build, &Notes::default(), vendor.signing(&keys)).unwrap_err();
            assert_eq!(error.category(), "content", "{name}: {error}");
        }
        std::fs::write(&path, good).unwrap();
    }
    vendor.publisher().add_release(&channel, &build, &Notes::default(), vendor.signing(&keys)).unwrap();
}

#[test]
fn two_publishers_at_once_and_tampered_metadata_are_refused() {
    let vendor = Vendor::with_two_releases();
    let first = vendor.publisher();
    assert!(matches!(Publisher::open(&vendor.repository()), Err(PublishError::Busy { .. })));
    drop(first);
    let path = vendor.repository().join("metadata/3.targets.json");
    let text = std::fs::read_to_string(&path).unwrap().replace("full.pack", "fool.pack");
    std::fs::write(&path, text).unwrap();
    assert!(matches!(Publisher::open(&vendor.repository()), Err(PublishError::Broken { .. })));
}
