//! Pruning: what is taken away is what no reader can want, at no moment more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bascule_names::ChannelName;
use bascule_repository::publish::{Notes, Outcome, Publisher};
use bascule_tests::vendor::{CHANNEL, Vendor, copy_folder, days, version};
use chrono::{DateTime, TimeDelta, Utc};

use super::publisher::{ONLINE, content, newest};

/// When the newest metadata was written, by the files' own time stamps.
pub fn written(repository: &Path) -> DateTime<Utc> {
    let modified: SystemTime =
        std::fs::metadata(repository.join("metadata/timestamp.json")).unwrap().modified().unwrap();
    modified.into()
}

fn channel() -> ChannelName {
    CHANNEL.parse().unwrap()
}

fn with_three_releases() -> Vendor {
    let vendor = Vendor::with_two_releases();
    vendor.publish("1.2", Some("1.1"));
    vendor
}

fn leave_out(vendor: &Vendor, path: &Path, keep: usize) -> Publisher {
    let keys = vendor.keys(&ONLINE);
    let mut publisher = Publisher::open(path).unwrap();
    let old = publisher.superfluous(&channel(), keep).unwrap();
    let outcome = publisher.leave_out(&channel(), &old, vendor.signing(&keys)).unwrap();
    assert!(matches!(outcome, Outcome::Published { .. }), "{outcome:?}");
    publisher
}

/// Opens every file that the newest metadata names.
fn everything_named_is_there(vendor: &Vendor, versions: &[&str]) {
    for version in versions {
        for file in ["release.json", "full.pack", "uki.efi"] {
            let path = vendor.published(&format!("releases/{version}/x86-64/{file}"));
            assert!(path.is_file(), "{}", path.display());
        }
    }
    assert!(vendor.published("stable.json").is_file());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_when_no_reader_can_want_them() {
    let vendor = with_three_releases();
    let path = vendor.repository();
    let grace = days(10);
    let at = written(&path);
    let manifest_of_old = vendor.published("releases/1.0/x86-64/release.json");
    // Nothing is superfluous yet, and all that was replaced was replaced just now.
    assert!(vendor.publisher().unwanted(at, grace).unwrap().now.is_empty());

    let publisher = leave_out(&vendor, &path, 2);
    let at = written(&path);
    let names = |files: &mut dyn Iterator<Item = &PathBuf>| -> Vec<String> {
        files.map(|path| path.display().to_string()).filter(|path| path.contains("/1.0/")).collect()
    };
    let soon = publisher.unwanted(at + grace - TimeDelta::hours(1), grace).unwrap();
    assert_eq!(names(&mut soon.now.iter().map(|file| &file.path)), [] as [&str; 0]);
    assert_eq!(names(&mut soon.later.iter().map(|(file, _)| &file.path)).len(), 3, "{soon:?}");
    assert!(manifest_of_old.is_file());
    let last = soon.later.iter().map(|(_, until)| *until).max().unwrap();
    assert!(last <= at + grace);

    let then = publisher.unwanted(at + grace + TimeDelta::seconds(1), grace).unwrap();
    assert_eq!(names(&mut then.now.iter().map(|file| &file.path)).len(), 3, "{then:?}");
    assert_eq!(then.later, []);
    // Removed one by one, as if killed in between: readers notice nothing at any moment, nor does the next run.
    let datastore = tempfile::tempdir().unwrap();
    for file in &then.now {
        publisher.remove(std::slice::from_ref(file)).unwrap();
        assert_eq!(newest(&path, &vendor.trust_root(), datastore.path()).await.unwrap(), "1.2");
    }
    assert_eq!(publisher.unwanted(at + grace + TimeDelta::seconds(1), grace).unwrap(), Default::default());
    drop(publisher);
    everything_named_is_there(&vendor, &["1.1", "1.2"]);
    let left: BTreeMap<PathBuf, _> = content(&path);
    assert!(!left.keys().any(|path| path.display().to_string().contains("/1.0/")), "{:?}", left.keys());
    assert!(!path.join("targets/releases/1.0").exists());
    assert!(left.contains_key(Path::new("metadata/1.root.json")));
    // And publishing goes on.
    vendor.publish("1.3", Some("1.2"));
    assert_eq!(newest(&path, &vendor.trust_root(), datastore.path()).await.unwrap(), "1.3");
}

#[test]
fn the_newest_and_the_floors_stay() {
    let vendor = with_three_releases();
    let keys = vendor.keys(&ONLINE);
    let build = vendor.build("2.0", None);
    let notes = Notes { floor: Some(version("1.1")), ..Notes::default() };
    vendor.publisher().add_release(&channel(), &build, &notes, vendor.signing(&keys)).unwrap();
    let publisher = vendor.publisher();
    let superfluous = |keep| -> Vec<String> {
        publisher.superfluous(&channel(), keep).unwrap().iter().map(ToString::to_string).collect()
    };
    assert_eq!(superfluous(1), ["1.0", "1.2"]);
    assert_eq!(superfluous(0), superfluous(1));
    assert_eq!(superfluous(2), ["1.0"]);
    assert_eq!(superfluous(4), [] as [&str; 0]);
    assert_eq!(superfluous(usize::MAX), [] as [&str; 0]);
    drop(publisher);
    // One that was withdrawn does not count as one that is kept.
    let mut publisher = vendor.publisher();
    publisher.withdraw(&channel(), &version("2.0"), "broken", vendor.signing(&keys)).unwrap();
    let kept: Vec<String> = publisher.superfluous(&channel(), 1).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(kept, ["1.0"], "1.2 is what is offered, and 1.1 the floor of the withdrawn one");
}

#[test]
fn what_another_channel_or_a_waiting_change_names_stays() {
    let vendor = with_three_releases();
    let keys = vendor.keys(&ONLINE);
    let test: ChannelName = "test".parse().unwrap();
    let mut publisher = vendor.publisher();
    publisher.promote(&channel(), &test, &version("1.0"), vendor.signing(&keys)).unwrap();
    drop(publisher);
    drop(leave_out(&vendor, &vendor.repository(), 1));
    everything_named_is_there(&vendor, &["1.0", "1.2"]);

    // A release waits for the signature of the targets key.
    let build = vendor.build("1.3", None);
    let few = vendor.keys(&["snapshot", "timestamp"]);
    let mut publisher = vendor.publisher();
    let outcome = publisher.add_release(&channel(), &build, &Notes::default(), vendor.signing(&few)).unwrap();
    assert!(matches!(outcome, Outcome::Waiting(_)), "{outcome:?}");
    let later = written(&vendor.repository()) + days(100);
    let unwanted = publisher.unwanted(later, days(10)).unwrap();
    publisher.remove(&unwanted.now).unwrap();
    assert!(unwanted.now.iter().any(|file| file.path.display().to_string().contains("/1.1/")), "{unwanted:?}");
    drop(publisher);
    vendor.publisher().sign_pending(vendor.signing(&keys)).unwrap();
    everything_named_is_there(&vendor, &["1.0", "1.2", "1.3"]);
}

#[test]
fn files_of_others_and_what_a_killed_publisher_left() {
    let vendor = with_three_releases();
    let other = tempfile::tempdir().unwrap();
    copy_folder(&vendor.repository(), other.path());
    let put = |name: &str| std::fs::write(other.path().join(name), "x").unwrap();
    for name in
        ["targets/index.html", "targets/.well-known", "metadata/README", "targets/.scratch-ab", "metadata/.scratch-cd"]
    {
        put(name);
    }
    // Copied by a publisher that was killed before it signed anything.
    put(&format!("targets/releases/1.2/x86-64/{}.full.pack", "0".repeat(64)));
    // The next version, of which no timestamp speaks yet.
    std::fs::copy(other.path().join("metadata/4.targets.json"), other.path().join("metadata/5.targets.json")).unwrap();
    let publisher = Publisher::open(other.path()).unwrap();
    let unwanted = publisher.unwanted(written(other.path()), days(10)).unwrap();
    let mut found: Vec<String> = unwanted.now.iter().map(|file| file.path.display().to_string()).collect();
    found.sort();
    let full = format!("targets/releases/1.2/x86-64/{}.full.pack", "0".repeat(64));
    assert_eq!(found, ["metadata/.scratch-cd".to_owned(), "targets/.scratch-ab".to_owned(), full]);
}
