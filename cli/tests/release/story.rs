//! A vendor's story: from a tree to what a node fetches, and what is refused on the way.

use std::fs;
use std::path::Path;

use super::workshop::{ONLINE, Workshop, contents};

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let workshop = Workshop::new();
    workshop.tree("one", "1.0", |number| number);
    workshop.tree("two", "1.0", |number| 199 - number);
    workshop.build("build-one", "1.0", "one", "");
    // Another order of files, other times, another number of threads.
    workshop.build("build-two", "1.0", "two", "--workers 1");
    let (one, two) = (contents(&workshop.path("build-one")), contents(&workshop.path("build-two")));
    assert!(one.keys().eq(two.keys()), "{:?} {:?}", one.keys(), two.keys());
    for (path, bytes) in &one {
        assert!(*bytes == two[path], "{} differs", path.display());
    }
    let list = String::from_utf8(one[Path::new("releases/1.0/x86-64/packages.cdx.json")].clone()).unwrap();
    assert!(list.contains("pkg:deb/acme/bash@5.2-1?arch=amd64"), "{list}");
}

#[test]
fn from_a_tree_to_what_a_node_fetches() {
    let workshop = Workshop::new();
    workshop.tree("one", "1.0", |number| number);
    workshop.tree("two", "1.1", |number| number);
    fs::write(workshop.path("two/usr/bin/tool-7"), "changed").unwrap();
    workshop.build("build-1.0", "1.0", "one", "");
    workshop.build("build-1.1", "1.1", "two", "");
    workshop.step("delta build-1.1 --base build-1.0 --fast");
    workshop.repository();
    workshop.publish("build-1.0");
    workshop.publish("build-1.1");

    let report: serde_json::Value =
        serde_json::from_str(&workshop.step("verify repository --running 1.0 -o json")).unwrap();
    assert_eq!((&report["decision"], &report["release"]["packKind"]), (&"install 1.1".into(), &"delta".into()));
    workshop.step("fetch repository fetched --base build-1.0");
    assert_eq!(
        fs::read(workshop.path("fetched/image.raw")).unwrap(),
        fs::read(workshop.path("build-1.1/image.raw")).unwrap()
    );
    let uki = "releases/1.1/x86-64/uki.efi";
    assert_eq!(
        fs::read(workshop.path("fetched").join(uki)).unwrap(),
        fs::read(workshop.path("build-1.1").join(uki)).unwrap()
    );
    // What was fetched is as good a base as what was built.
    workshop.tree("three", "1.2", |number| number);
    workshop.build("build-1.2", "1.2", "three", "--base fetched");

    let yaml = workshop.step("inspect repository --channel stable --release 1.1 -o yaml");
    assert!(yaml.contains("kind: delta"), "{yaml}");
    workshop.step(&format!("withdraw repository --channel stable --release 1.1 --reason broken {ONLINE}"));
    assert!(workshop.step("inspect repository --channel stable").contains("withdrawn: broken"));
    let (code, message) = workshop.refused("verify repository --running 1.0 --wanted 1.1");
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("withdrawn") && message.contains("1.0"), "{message}");
}

#[test]
fn refusals_are_one_sentence_and_an_exit_code() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    let build = "build out --product acme-os --release 1.0";
    let kernel = "--kernel vmlinuz --initrd initrd --cmdline quiet";
    let cases = [
        (format!("{build} --root tree"), 1, "--kernel"),
        (format!("{build} --root tree {kernel} --stub no-stub"), 1, "install systemd's EFI stub"),
        (format!("{build} --root missing {kernel}"), 1, "is no folder"),
        (format!("{build} --root tree --image vmlinuz {kernel}"), 2, "cannot be used with"),
        ("build out --product Acme_OS --release 1.0".to_owned(), 2, "lower-case"),
        ("verify repository".to_owned(), 1, "is no folder"),
        ("verify http://localhost/ --trust-root tree/etc/os-release".to_owned(), 1, "does not use https"),
        ("publish nowhere out --channel stable".to_owned(), 1, "bascule release init"),
        ("sign tree".to_owned(), 1, "holds no repository"),
        ("keygen".to_owned(), 2, "required"),
        ("refresh nowhere --timestamp-lifetime 7w".to_owned(), 2, "write days like 7d"),
    ];
    for (arguments, expected, part) in cases {
        let (code, message) = workshop.refused(&arguments);
        assert_eq!(code, expected, "{arguments}: {message}");
        assert!(message.contains(part), "{arguments}: {message}");
        let _ = fs::remove_dir_all(workshop.path("out"));
    }
    let without_tools =
        workshop.command(&format!("{build} --root tree {kernel}")).env("PATH", "/nonexistent").output().unwrap();
    let message = String::from_utf8_lossy(&without_tools.stderr);
    assert!(message.contains("install erofs-utils"), "{message}");
}

#[test]
fn what_a_node_refuses_is_exit_code_3() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("build", "1.0", "tree", "");
    workshop.repository();
    workshop.publish("build");
    workshop.step("verify repository --datastore seen");
    fs::copy(workshop.path("repository/metadata/1.root.json"), workshop.path("root.json")).unwrap();

    // Tampered: the timestamp of another repository.
    workshop.step("keygen other/key");
    workshop.step(
        "init other-repository --root other/key.pem --targets other/key.pem --snapshot other/key.pem --timestamp other/key.pem",
    );
    let (code, message) = workshop.refused("verify other-repository --trust-root root.json");
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("not signed by enough of its keys"), "{message}");

    // Replayed: what was seen before is remembered.
    let older = fs::read(workshop.path("repository/metadata/timestamp.json")).unwrap();
    workshop.step("refresh repository --key keys/timestamp.pem");
    workshop.step("verify repository --datastore seen");
    fs::write(workshop.path("repository/metadata/timestamp.json"), older).unwrap();
    let (code, message) = workshop.refused("verify repository --datastore seen");
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("rollback"), "{message}");

    // A key that may not sign publishes nothing; the change waits and is invisible.
    workshop.tree("next", "1.1", |number| number);
    workshop.build("build-next", "1.1", "next", "");
    let output = workshop.run("publish repository build-next --channel stable --key keys/snapshot.pem");
    assert_eq!(output.status.code(), Some(5));
    let waiting = String::from_utf8(output.stdout).unwrap();
    assert!(waiting.contains("targets") && waiting.contains("waits"), "{waiting}");
    assert!(!workshop.step("inspect repository --channel stable").contains("1.1"));
    workshop.step("sign repository --discard");
}

#[test]
fn a_broken_role_of_another_team_is_shown_and_stops_its_own_channel_only() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("build", "1.0", "tree", "");
    workshop.repository();
    workshop.publish("build");
    workshop.step("keygen keys/edge");
    workshop.step(
        "delegate repository --channel edge --channel-key keys/edge.pem --key keys/targets.pem --key keys/snapshot.pem \
         --key keys/timestamp.pem",
    );
    let good = workshop.step("inspect repository");
    assert!(good.contains("channel-edge") && good.contains("channels: edge, stable"), "{good}");
    fs::write(workshop.path("repository/metadata/1.channel-edge.json"), "{}").unwrap();
    let overview = workshop.step("inspect repository");
    assert!(overview.contains("the role channel-edge can't be used"), "{overview}");
    workshop.step("verify repository --channel stable");
    let (code, message) = workshop.refused("verify repository --channel edge");
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("channel-edge") && message.contains("edge.json"), "{message}");

    // Monitoring hears of it; whoever publishes beside it is told and goes on.
    let status = workshop.run("status repository");
    let said = String::from_utf8_lossy(&status.stdout);
    assert_eq!(status.status.code(), Some(3), "{said}");
    assert!(said.contains("channel-edge can't be used") && said.contains("no other"), "{said}");
    let goes_on = |arguments: &str| {
        let output = workshop.run(arguments);
        let warning = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {warning}");
        assert!(warning.contains("warning: the role channel-edge can't be used"), "{arguments}: {warning}");
        String::from_utf8(output.stdout).unwrap()
    };
    workshop.build("build-1.1", "1.1", "tree", "");
    goes_on("refresh repository --key keys/timestamp.pem");
    goes_on(&format!("refresh repository {ONLINE}"));
    goes_on(&format!("publish repository build-1.1 --channel stable {ONLINE}"));
    goes_on(&format!("withdraw repository --channel stable --release 1.0 --reason broken {ONLINE}"));
    fs::write(workshop.path(&format!("repository/targets/{}.edge.json", "0".repeat(64))), "x").unwrap();
    let pruned = goes_on("prune repository --yes");
    assert!(
        pruned.contains("kept") && pruned.contains("the role channel-edge") && pruned.contains("1 files"),
        "{pruned}"
    );

    let anew = "delegate repository --channel edge --channel-key keys/edge.pem";
    goes_on(&format!("{anew} {ONLINE}"));
    workshop.step("status repository");
    workshop.step(&format!("publish repository build-1.1 --channel edge --yes --key keys/edge.pem {ONLINE}"));
    workshop.step("verify repository --channel edge");
    let pruned = workshop.step("prune repository --yes");
    assert!(!pruned.contains("kept, because"), "{pruned}");

    // Nor does one that expires let the nightly refresh of the others fail.
    let publish = "publish repository build --channel edge --yes --targets-lifetime 1d";
    workshop.step(&format!("{publish} --key keys/edge.pem --key keys/snapshot.pem --key keys/timestamp.pem"));
    let later = (bascule_tests::clock::now() + chrono::TimeDelta::days(2)).to_rfc3339();
    let refreshed = workshop.bascule(&format!("--at {later} release refresh repository --key keys/timestamp.pem"));
    let said = String::from_utf8_lossy(&refreshed.stdout);
    assert_eq!(refreshed.status.code(), Some(0), "{said}");
    assert!(said.contains("the channel-edge has expired and nodes refuse channel edge and no other"), "{said}");
    let status = workshop.bascule(&format!("--at {later} release status repository"));
    assert_eq!(status.status.code(), Some(3), "{}", String::from_utf8_lossy(&status.stdout));
}

/// How many files there are; one that goes away meanwhile counts or not.
fn names(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 1 };
    entries.flatten().map(|entry| names(&entry.path())).sum()
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in contents(from) {
        let to = to.join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
    }
}

/// SIGKILL when the first, second, … new file shows up. Which step is hit differs a little from run to run; what must hold does
/// not. (Every step in turn: `killed_while_publishing_at_any_file_readers_see_the_old_state_whole`.)
#[test]
fn a_publisher_that_is_killed_leaves_a_repository_that_readers_accept() {
    let workshop = Workshop::new();
    workshop.tree("one", "1.0", |number| number);
    workshop.build("build-1.0", "1.0", "one", "");
    workshop.build("build-1.1", "1.1", "one", "--base build-1.0");
    workshop.repository();
    workshop.publish("build-1.0");
    let publish =
        |repository: &str| workshop.command(&format!("publish {repository} build-1.1 --channel stable {ONLINE}"));
    let offered = |repository: &str| -> String {
        let report = workshop.step(&format!("verify {repository} -o json"));
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        report["decision"].as_str().unwrap().to_owned()
    };
    copy(&workshop.path("repository"), &workshop.path("whole"));
    let files = |repository: &str| contents(&workshop.path(repository)).len();
    let before = files("whole");
    assert!(publish("whole").output().unwrap().status.success());
    assert_eq!(offered("whole"), "install 1.1");
    let new = files("whole") - before;
    assert!(new > 6, "{new}");
    for moment in 0..=new {
        let repository = format!("killed-{moment}");
        copy(&workshop.path("repository"), &workshop.path(&repository));
        let mut publisher = publish(&repository).stdout(std::process::Stdio::null()).spawn().unwrap();
        while publisher.try_wait().unwrap().is_none() && names(&workshop.path(&repository)) < before + moment {
            std::thread::yield_now();
        }
        publisher.kill().unwrap();
        publisher.wait().unwrap();
        let found = offered(&repository);
        assert!(["install 1.0", "install 1.1"].contains(&found.as_str()), "{found}");
        let again = publish(&repository).output().unwrap();
        let message = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success() || found == "install 1.1" && message.contains("already"), "{found}: {message}");
        assert_eq!(offered(&repository), "install 1.1");
        workshop.step(&format!("prune {repository} --grace 1h --yes"));
        assert_eq!(offered(&repository), "install 1.1");
    }
}

#[test]
fn prune_says_what_it_would_do_and_does_it_when_told() {
    let workshop = Workshop::new();
    workshop.tree("one", "1.0", |number| number);
    workshop.repository();
    for version in ["1.0", "1.1", "1.2"] {
        let build = format!("build-{version}");
        workshop.build(&build, version, "one", "");
        workshop.publish(&build);
    }
    let before = contents(&workshop.path("repository"));
    let said = workshop.step("prune repository --channel stable --keep 2");
    assert!(said.contains("would be removed from stable: 1.0") && said.contains("--yes"), "{said}");
    assert!(before == contents(&workshop.path("repository")), "a dry run changed something");
    let done = workshop.step(&format!("prune repository --channel stable --keep 2 --yes {ONLINE}"));
    assert!(done.contains("removed from stable: 1.0") && done.contains("readers may still be on their way"), "{done}");
    let channel = workshop.step("inspect repository --channel stable");
    assert!(!channel.contains("1.0") && channel.contains("1.1") && channel.contains("1.2"), "{channel}");
    let (code, message) = workshop.refused("prune repository --channel stable --keep 0");
    assert_eq!(code, 2, "{message}");
    // Without keys nothing is left out, nothing goes away and nothing waits.
    let before = contents(&workshop.path("repository"));
    let (code, message) = workshop.refused("prune repository --channel stable --keep 1 --yes");
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("targets") && message.contains("nothing was changed"), "{message}");
    assert!(before == contents(&workshop.path("repository")), "{message}");
}

#[test]
fn a_ready_image_and_a_ready_uki_make_the_same_release_as_their_tree() {
    let workshop = Workshop::new();
    workshop.tree("one", "1.0", |number| number);
    workshop.build("built", "1.0", "one", "");
    let ready = "--product acme-os --release 1.0 --image built/image.raw";
    let root_hash = workshop.step(&format!("build hash-only {ready} --only-root-hash"));
    let manifest = |build: &str| -> serde_json::Value {
        let path = workshop.path(build).join("releases/1.0/x86-64/release.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    assert_eq!(manifest("built")["verity"]["rootHash"], root_hash.trim());
    workshop.step(&format!("build ready {ready} --uki built/releases/1.0/x86-64/uki.efi --fast"));
    let (built, ready_made) = (manifest("built"), manifest("ready"));
    for part in ["image", "verity", "uki", "packs"] {
        assert_eq!(built[part], ready_made[part], "{part}");
    }
    // A tree has a list of its packages, a ready image has the one that is given with it, or none.
    assert!(built["packages"].is_object() && ready_made.get("packages").is_none());

    // The UKI of another image would boot that, or nothing.
    workshop.tree("two", "1.1", |number| number);
    workshop.build("other", "1.1", "two", "");
    let (code, message) =
        workshop.refused(&format!("build mixed {ready} --uki other/releases/1.1/x86-64/uki.efi --fast"));
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("does not carry the image's root hash"), "{message}");
    // Two ways to boot it at once are none.
    let (code, message) = workshop.refused(&format!("build both {ready} --uki x --kernel vmlinuz"));
    assert_eq!(code, 2, "{message}");
}
