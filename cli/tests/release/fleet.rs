//! What a publisher must not do to his fleet by accident, and what he must be told.

use std::fs;
use std::process::Command;

use super::workshop::{ONLINE, Workshop, contents};

/// Root keys 2 of 3, one of each other role.
fn with_three_root_keys() -> Workshop {
    let workshop = Workshop::new();
    workshop.step("keygen keys/a keys/b keys/c keys/targets keys/snapshot keys/timestamp");
    workshop.step(
        "init repository --root keys/a.pem --root keys/b.pem --root keys/c.pem --root-threshold 2 --targets keys/targets.pem \
         --snapshot keys/snapshot.pem --timestamp keys/timestamp.pem",
    );
    workshop
}

fn role(workshop: &Workshop, name: &str) -> serde_json::Value {
    let text = workshop.step("inspect repository -o json");
    let overview: serde_json::Value = serde_json::from_str(&text).unwrap();
    overview["roles"].as_array().unwrap().iter().find(|role| role["role"] == name).unwrap().clone()
}

/// Case 40.
#[test]
fn a_threshold_falls_only_when_somebody_says_so() {
    let workshop = with_three_root_keys();
    workshop.step("keygen keys/d");
    let rotate =
        "rotate repository --role root=keys/a.pub.json --role root=keys/b.pub.json --role root=keys/d.pub.json";
    let signers = "--key keys/a.pem --key keys/b.pem --key keys/timestamp.pem";
    workshop.step(&format!("{rotate} {signers}"));
    let root = role(&workshop, "root");
    assert_eq!((&root["version"], &root["threshold"]), (&2.into(), &2.into()), "{root}");
    assert!(root["keys"].to_string().contains("d (") && !root["keys"].to_string().contains("c ("), "{root}");

    let (code, message) = workshop.refused(&format!("rotate repository --role root=keys/a.pub.json {signers}"));
    assert_eq!(code, 1);
    assert!(message.contains("needs signatures of 2") && message.contains("--threshold root=1"), "{message}");
    let lower = format!("rotate repository --threshold root=1 {signers}");
    let (code, message) = workshop.refused(&lower);
    assert_eq!(code, 1);
    assert!(message.contains("1 of 3 keys can sign for root (now: 2)") && message.contains("--yes"), "{message}");
    assert_eq!(role(&workshop, "root")["threshold"], 2);
    workshop.step(&format!("{lower} --yes"));
    assert_eq!(role(&workshop, "root")["threshold"], 1);
}

/// Case 40, of a channel's own keys.
#[test]
fn the_threshold_of_a_channel_stays_too() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.step("keygen keys/e1 keys/e2 keys/e3");
    let delegate = |more: &str| format!("delegate repository --channel edge {more} {ONLINE}");
    workshop.step(&delegate("--channel-key keys/e1.pem --channel-key keys/e2.pem --threshold 2"));
    assert_eq!(role(&workshop, "channel-edge")["threshold"], 2);
    workshop.step(&delegate("--channel-key keys/e1.pem --channel-key keys/e3.pem"));
    assert_eq!(role(&workshop, "channel-edge")["threshold"], 2);
    let (code, message) = workshop.refused(&delegate("--channel-key keys/e1.pem --threshold 1"));
    assert_eq!(code, 1);
    assert!(message.contains("--yes"), "{message}");
}

/// Case 41.
#[test]
fn what_waits_for_signatures_blocks_nobody() {
    let workshop = with_three_root_keys();
    workshop.tree("tree", "1.0", |number| number);
    for version in ["1.0", "1.1", "1.2"] {
        workshop.build(&format!("build-{version}"), version, "tree", "");
    }
    workshop.publish("build-1.0");
    // A new root and a release wait for other people.
    workshop.step("keygen keys/timestamp-2");
    let waits = |arguments: &str| {
        let output = workshop.run(arguments);
        assert_eq!(output.status.code(), Some(5), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let rotate = "rotate repository --role timestamp=keys/timestamp-2.pub.json";
    waits(&format!("{rotate} --key keys/a.pem"));
    waits("publish repository build-1.1 --channel stable --key keys/snapshot.pem --key keys/timestamp.pem");
    let waiting = workshop.step("sign repository --show");
    assert!(waiting.contains("other keys for timestamp") && waiting.contains("offer 1.1 in stable"), "{waiting}");

    // Everything goes on: the nightly refresh, an emergency release, a withdrawal, another day.
    workshop.step("refresh repository --key keys/timestamp.pem");
    workshop.step(&format!("refresh repository {ONLINE}"));
    workshop.publish("build-1.2");
    workshop.step(&format!("withdraw repository --channel stable --release 1.0 --reason broken {ONLINE}"));
    let offered =
        || -> serde_json::Value { serde_json::from_str(&workshop.step("verify repository -o json")).unwrap() };
    assert_eq!(offered()["decision"], "install 1.2");

    // What waited is still there. The release has to be made afresh, and says so; the root has not.
    let id = |what: &str| {
        let text = workshop.step("inspect repository -o json");
        let overview: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut found = overview["waiting"].as_array().unwrap().iter();
        found.find(|change| change["summary"].as_str().unwrap().contains(what)).unwrap().clone()
    };
    assert_eq!((&id("offer 1.1")["stale"], &id("timestamp")["stale"]), (&true.into(), &false.into()));
    let (code, message) = workshop.refused("sign repository --key keys/targets.pem");
    assert_eq!(code, 1);
    assert!(message.contains("2 changes wait") && message.contains("offer 1.1"), "{message}");
    let release = id("offer 1.1")["id"].as_str().unwrap().to_owned();
    let signed = workshop.step(&format!("sign repository --change {release} {ONLINE}"));
    assert!(signed.contains("earlier signatures are void"), "{signed}");
    assert_eq!(offered()["decision"], "install 1.2", "the higher version stays what is offered");
    let root = id("timestamp")["id"].as_str().unwrap().to_owned();
    workshop.step(&format!(
        "sign repository --change {root} --key keys/b.pem --key keys/timestamp.pem --key keys/timestamp-2.pem"
    ));
    assert_eq!(role(&workshop, "root")["version"], 2);
    workshop.step("verify repository");
    assert!(!workshop.path("repository/pending").exists());
}

/// Case 42.
#[test]
fn not_done_is_not_success_and_nothing_goes_away_unsigned() {
    let workshop = with_three_root_keys();
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("build", "1.0", "tree", "");
    workshop.step("keygen keys/stranger");
    for keys in ["", "--key keys/stranger.pem", "--key keys/a.pem"] {
        let (code, message) = workshop.refused(&format!("publish repository build --channel stable {keys}"));
        assert_eq!(code, 1, "{keys}: {message}");
        assert!(message.contains("none of the given keys") && message.contains("targets ("), "{keys}: {message}");
        assert!(!workshop.path("repository/pending").exists(), "{keys}: nothing may be left waiting");
    }
    // The retry with the right keys goes through, and the useless one is named.
    let output = workshop.run(&format!("publish repository build --channel stable --key keys/stranger.pem {ONLINE}"));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{message}");
    assert!(message.contains("not used: keys/stranger.pem") && !message.contains("keys/targets.pem"), "{message}");

    // A second signature of the same person is none.
    let rotate = "rotate repository --key keys/a.pem --key keys/timestamp.pem";
    assert_eq!(workshop.run(rotate).status.code(), Some(5));
    for keys in ["--key keys/a.pem", "--key keys/timestamp.pem", "--key keys/stranger.pem", ""] {
        let (code, message) = workshop.refused(&format!("sign repository {keys}"));
        assert_eq!(code, 1, "{keys}: {message}");
        assert!(message.contains("root (old keys): 1 more of b ("), "{keys}: {message}");
    }
    // The same command with the keys that were missing ends what waits.
    workshop.step("rotate repository --key keys/b.pem --key keys/timestamp.pem");
    assert_eq!(role(&workshop, "root")["version"], 2);

    // A prune that waits takes nothing away.
    for version in ["1.1", "1.2"] {
        workshop.build(&format!("build-{version}"), version, "tree", "");
        workshop.publish(&format!("build-{version}"));
    }
    let targets = || contents(&workshop.path("repository/targets"));
    let before = targets();
    let prune = "prune repository --channel stable --keep 1 --grace 1h --yes";
    let output = workshop.run(&format!("{prune} --key keys/snapshot.pem"));
    assert_eq!(output.status.code(), Some(5));
    assert!(before.keys().all(|path| targets().contains_key(path)));
    workshop.step("verify repository");
}

/// Case 43.
#[test]
fn refresh_says_what_has_expired_and_who_must_sign() {
    let workshop = with_three_root_keys();
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("build", "1.0", "tree", "");
    workshop.publish("build");
    let later = |days: i64| (bascule_tests::clock::now() + chrono::TimeDelta::days(days)).to_rfc3339();
    let at = |days: i64, arguments: &str| {
        let output = workshop.bascule(&format!("--at {} release {arguments}", later(days)));
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    };
    let (code, text) = at(31, "refresh repository --key keys/timestamp.pem");
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("the snapshot has expired") && text.contains("signed by 1 of snapshot ("), "{text}");
    assert!(!text.contains("the root has expired"), "{text}");
    let (code, text) = at(31, "status repository");
    assert_eq!(code, 3);
    assert!(text.contains("NODES REFUSE THIS REPOSITORY: the snapshot expired"), "{text}");
    let (code, text) = at(31, "refresh repository --key keys/timestamp.pem --key keys/snapshot.pem");
    assert_eq!(code, 0, "{text}");
    assert_eq!(at(31, "verify repository").0, 0);

    let (code, text) =
        at(400, "refresh repository --key keys/timestamp.pem --key keys/snapshot.pem --key keys/targets.pem");
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("the root has expired") && text.contains("2 of a (") && text.contains("rotate"), "{text}");
    assert_eq!(at(400, "verify repository").0, 3);
    let (code, text) = at(400, "inspect repository");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("EXPIRED") && text.contains("channels: stable"), "{text}");
    assert_eq!(at(400, "inspect repository --channel stable --release 1.0").0, 0);
    let (code, text) = at(400, "rotate repository --key keys/a.pem --key keys/c.pem --key keys/timestamp.pem");
    assert_eq!(code, 0, "{text}");
    assert_eq!(at(400, "verify repository").0, 0);
    let (code, text) = at(400, "status repository");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("nodes can update until") && text.contains("then the timestamp expires"), "{text}");
    assert_eq!(at(400, "status repository --within 8d").0, 3);
    assert_eq!(at(400, "status repository --within 6d").0, 0);
}

/// Case 45.
#[test]
fn a_channel_goes_on_offering_its_highest_version() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("tree", "1.0", |number| number);
    for version in ["1.0", "1.2", "1.3"] {
        workshop.build(&format!("build-{version}"), version, "tree", "");
    }
    workshop.publish("build-1.3");
    let publish =
        |version: &str, more: &str| format!("publish repository build-{version} --channel stable {more} {ONLINE}");
    let offered = || -> serde_json::Value {
        let report: serde_json::Value = serde_json::from_str(&workshop.step("verify repository -o json")).unwrap();
        report["decision"].clone()
    };
    let (code, message) = workshop.refused(&publish("1.2", ""));
    assert_eq!(code, 1);
    assert!(message.contains("stable offers 1.3 and goes on with that") && message.contains("--yes"), "{message}");
    let said = workshop.step(&publish("1.2", "--yes"));
    assert!(said.contains("1.2 is in stable, which offers 1.3"), "{said}");
    assert_eq!(offered(), "install 1.3");
    // Withdrawn, the next lower one is offered.
    workshop.step(&format!("withdraw repository --channel stable --release 1.3 --reason broken {ONLINE}"));
    assert_eq!(offered(), "install 1.2");
    // Said, nodes go down.
    let (_, message) = workshop.refused(&publish("1.0", "--allow-downgrade"));
    assert!(message.contains("every node that runs it goes back"), "{message}");
    workshop.step(&publish("1.0", "--allow-downgrade --yes"));
    assert_eq!(offered(), "install 1.0");
}

/// Case 46.
#[test]
fn whoever_signs_sees_what_he_signs() {
    let workshop = Workshop::new();
    workshop.step("keygen keys/root keys/t1 keys/t2 keys/snapshot keys/timestamp keys/new");
    workshop.step(
        "init repository --root keys/root.pem --targets keys/t1.pem --targets keys/t2.pem --targets-threshold 2 \
         --snapshot keys/snapshot.pem --timestamp keys/timestamp.pem",
    );
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("build", "1.0", "tree", "");
    let online = "--key keys/snapshot.pem --key keys/timestamp.pem";
    let output = workshop.run(&format!(
        "publish repository build --channel stable --severity High --fixes CVE-2026-1 --key keys/t1.pem {online}"
    ));
    assert_eq!(output.status.code(), Some(5));
    let seen = workshop.step(&format!("sign repository --key keys/t2.pem {online}"));
    let digest = {
        let text = workshop.step("inspect repository --channel stable --release 1.0 -o json");
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["digest"].as_str().unwrap().to_owned()
    };
    for part in [
        "offer 1.0 in stable",
        "+ channel stable: release 1.0 (x86-64 sha256:",
        &digest,
        "severity High, fixes 1",
        "channel stable offers 1.0 (before: nothing)",
        "targets 1 -> 2, expires ",
        "+ file releases/1.0/x86-64/full.pack",
    ] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    let waits = workshop.run(
        "rotate repository --role targets=keys/t1.pub.json --role targets=keys/new.pub.json --threshold targets=1 --yes \
         --key keys/root.pem",
    );
    assert_eq!(waits.status.code(), Some(5));
    let seen = workshop.step("sign repository --show");
    for part in
        ["+ targets: key new (", "- targets: key t2 (", "~ targets: threshold 2 -> 1 (LOWER)", "root 1 -> 2, expires "]
    {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    // A forged channel file in the folder that is sent around is seen for what it is.
    let inspect = workshop.step("inspect repository");
    assert!(inspect.contains("waits for signatures: change") && inspect.contains("threshold 2 -> 1"), "{inspect}");
}

/// Case 47.
#[test]
fn two_architectures_are_one_release_and_leftovers_block_no_retry() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("x86", "1.0", "tree", "");
    workshop.arm64();
    workshop.step(
        "build arm --product acme-os --release 1.0 --root tree --kernel vmlinuz-arm64 --stub stub-arm64 --architecture arm64 \
         --fast",
    );
    workshop.step(&format!("publish repository x86 arm --channel stable {ONLINE}"));
    let channel = workshop.step("inspect repository --channel stable");
    assert!(channel.contains("arm64,x86-64") || channel.contains("x86-64,arm64"), "{channel}");
    workshop.step("verify repository --architecture arm64");
    let (code, message) = workshop.refused(&format!("publish repository x86 x86 --channel test {ONLINE}"));
    assert_eq!(code, 1);
    assert!(message.contains("two builds are for x86-64"), "{message}");

    // A build that fails on the way, and the same command again.
    let build = "build out --product acme-os --release 1.1 --root tree --initrd initrd --cmdline quiet --fast --kernel";
    fs::write(workshop.path("no-list"), "{}").unwrap();
    fs::write(workshop.path("tree/usr/lib/os-release"), "IMAGE_ID=acme-os\nIMAGE_VERSION=1.1\n").unwrap();
    let (code, message) = workshop.refused(&format!("{build} vmlinuz --packages no-list"));
    assert_eq!(code, 1);
    assert!(message.contains("neither CycloneDX nor SPDX"), "{message}");
    assert!(workshop.path("out/image.raw").is_file());
    workshop.step(&format!("{build} vmlinuz"));
    let (_, message) = workshop.refused(&format!("{build} vmlinuz"));
    assert!(message.contains("is not empty"), "a finished build is never taken over: {message}");
    // Readable for whoever publishes.
    use std::os::unix::fs::PermissionsExt as _;
    let manifest = workshop.path("x86/releases/1.0/x86-64/release.json");
    assert_eq!(fs::metadata(manifest).unwrap().permissions().mode() & 0o777, 0o644);
}

/// Case 47: a full disk, played by a limit on the size of files.
#[test]
fn a_key_that_could_not_be_written_is_not_there() {
    let workshop = Workshop::new();
    let program = env!("CARGO_BIN_EXE_bascule");
    let script = format!("trap '' XFSZ; ulimit -f 0; exec {program} release keygen keys/root");
    let output = Command::new("sh").arg("-c").arg(script).current_dir(workshop.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(contents(&workshop.path("keys")).len(), 0, "no empty key may be left");
    workshop.step("keygen keys/root");
    workshop.step("keygen keys/kms --algorithm ecdsa-p256");
    let (code, message) = workshop.refused("keygen keys/root");
    assert_eq!(code, 1);
    assert!(message.contains("keys/root.pem"), "{message}");
}

/// Case 48.
#[test]
fn exit_codes_are_those_of_the_documentation() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("build", "1.0", "tree", "");
    workshop.publish("build");
    for command in ["verify repository", "inspect repository", "fetch repository out"] {
        let (code, message) = workshop.refused(&format!("{command} --channel stabel"));
        assert_eq!(
            (code, message.as_str()),
            (1, "bascule: there is no channel stabel; there are: stable\n"),
            "{command}"
        );
    }
    let (code, message) =
        workshop.refused(&format!("withdraw repository --channel stabel --release 1.0 --reason x {ONLINE}"));
    assert_eq!((code, message.as_str()), (1, "bascule: there is no channel stabel; there are: stable\n"));
    let lock = fs::File::open(workshop.path("repository/.publish.lock")).unwrap();
    lock.lock().unwrap();
    let (code, message) = workshop.refused("refresh repository --key keys/timestamp.pem");
    assert_eq!(code, 4, "{message}");
    drop(lock);

    fs::write(
        workshop.path("away"),
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n\
         contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n",
    )
    .unwrap();
    for arguments in
        ["--kubeconfig away status", "status --kubeconfig away", "--kubeconfig away freeze --for 1h --reason x"]
    {
        let output = workshop.bascule(arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{arguments}: {message}");
        assert_eq!(message.matches("refused").count(), 1, "{arguments}: {message}");
        assert!(!message.contains('\u{1b}'), "{message}");
    }
}

/// Case 49.
#[test]
fn sentences_are_sentences() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("build", "1.0", "tree", "");
    workshop.publish("build");
    let said = workshop.step("verify repository --running 1.0");
    assert!(said.contains("\na node that runs 1.0 has nothing to do: it runs what is wanted\n"), "{said}");
    let said = workshop.step("verify repository");
    assert!(said.contains("\na new node would install 1.0\n"), "{said}");
    // Whatever is logged into a pipe is plain.
    for path in
        contents(&workshop.path("repository")).keys().filter(|path| path.display().to_string().ends_with(".pack"))
    {
        fs::remove_file(workshop.path("repository").join(path)).unwrap();
    }
    let output = workshop.bascule("release verify repository");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("WARN") && log.contains("missing on the server") && !log.contains('\u{1b}'), "{log}");
}

/// The guide's disaster, rehearsed: the timestamp key is stolen, and one of three root keys is lost.
#[test]
fn a_stolen_online_key_and_a_lost_root_key_are_replaced() {
    let workshop = with_three_root_keys();
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("build", "1.0", "tree", "");
    workshop.publish("build");
    workshop.step("verify repository --datastore node");
    // Stolen: the new key signs, the old one is not asked.
    workshop.step("keygen keys/timestamp-2 keys/snapshot-2 keys/d");
    workshop.step(
        "rotate repository --role timestamp=keys/timestamp-2.pub.json --role snapshot=keys/snapshot-2.pub.json --key keys/a.pem \
         --key keys/b.pem --key keys/timestamp-2.pem --key keys/snapshot-2.pem",
    );
    workshop.step("verify repository --datastore node");
    let (code, message) = workshop.refused("refresh repository --key keys/timestamp.pem");
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("the timestamp role needs signatures"), "{message}");
    // Lost: the other two replace it, with the same threshold.
    fs::remove_file(workshop.path("keys/c.pem")).unwrap();
    workshop.step(
        "rotate repository --role root=keys/a.pub.json --role root=keys/b.pub.json --role root=keys/d.pub.json --key keys/a.pem \
         --key keys/b.pem --key keys/timestamp-2.pem",
    );
    let root = role(&workshop, "root");
    assert_eq!((&root["version"], &root["threshold"]), (&3.into(), &2.into()));
    workshop.step("rotate repository --key keys/a.pem --key keys/d.pem --key keys/timestamp-2.pem");
    workshop.step("verify repository --datastore node");
}
