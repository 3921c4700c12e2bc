//! Mistakes of a build, found before a node finds them (cases 39 and 44).

use std::fs;
use std::process::Command;

use super::workshop::{ONLINE, Workshop, noise};

const BUILD: &str = "build out --product acme-os --release 1.0 --fast --initrd initrd";

#[test]
fn a_build_that_no_node_could_boot_is_refused_with_the_reason() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    workshop.arm64();
    fs::create_dir(workshop.path("empty")).unwrap();
    fs::write(workshop.path("random"), noise(7, 100_000)).unwrap();
    let mkfs = Command::new("mkfs.erofs")
        .args(["--quiet", "-zlz4"])
        .args([workshop.path("compressed"), workshop.path("tree")])
        .output()
        .expect("install erofs-utils");
    assert!(mkfs.status.success());
    fs::create_dir_all(workshop.path("modules/usr/lib/modules/6.9.9-other")).unwrap();
    fs::write(workshop.path("modules/usr/lib/os-release"), "IMAGE_ID=acme-os\nIMAGE_VERSION=1.0\n").unwrap();
    let good = "--root tree --kernel vmlinuz";
    for (arguments, number, part) in [
        ("--root tree --kernel random".to_owned(), 5, "the kernel is no PE file"),
        ("--root empty --kernel vmlinuz".to_owned(), 1, "is empty"),
        ("--image compressed --kernel vmlinuz".to_owned(), 8, "the EROFS image is compressed"),
        (format!("{good} --cmdline roothash=deadbeef"), 6, "--cmdline has roothash=deadbeef"),
        (format!("{good} --architecture arm64"), 4, "the stub is for x86-64, the release for arm64"),
        ("--root tree --kernel vmlinuz-arm64".to_owned(), 4, "the kernel is for arm64, the release for x86-64"),
        (format!("{good} --stub stub-arm64"), 4, "the stub is for arm64"),
        ("--root modules --kernel vmlinuz".to_owned(), 9, "the kernel that boots is 6.12.1-test"),
        (format!("{good} --slot-size 1MiB"), 10, "its partition 1 MiB"),
        (format!("{good} --verity-size 4096"), 10, "the hash tree"),
        (format!("{good} --esp-size 32MiB"), 11, "3 UKIs"),
    ] {
        let (code, message) = workshop.refused(&format!("{BUILD} {arguments}"));
        assert_eq!(code, 1, "{arguments}: {message}");
        assert!(message.contains(&format!("error {number}: ")) && message.contains(part), "{arguments}: {message}");
        let _ = fs::remove_dir_all(workshop.path("out"));
    }
    for (line, number) in [("IMAGE_ID=other-os\nIMAGE_VERSION=1.0\n", 2), ("IMAGE_ID=acme-os\nIMAGE_VERSION=1.1\n", 3)]
    {
        fs::write(workshop.path("tree/usr/lib/os-release"), line).unwrap();
        let (_, message) = workshop.refused(&format!("{BUILD} {good}"));
        assert!(message.contains(&format!("error {number}: the tree's os-release has IMAGE_")), "{message}");
    }
}

#[test]
fn warnings_have_numbers_and_are_accepted_by_them() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    let build = format!("{BUILD} --root tree --kernel vmlinuz");
    let told = |more: &str| {
        let _ = fs::remove_dir_all(workshop.path("out"));
        let output = workshop.run(&format!("{build} {more}"));
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = told("--explain");
    assert_eq!(code, 0, "{message}");
    assert!(message.contains("warning 23: the command line has no panic=SECONDS"), "{message}");
    assert!(message.contains("If it is meant: --accept 23"), "{message}");
    let (code, message) = told("--strict");
    assert_eq!(code, 1);
    assert!(message.contains("stop the release"), "{message}");
    let accepted = "--accept 22 --accept 27 --accept 23 --accept 24";
    let (code, message) = told(&format!("--strict {accepted}"));
    // What is said of a stub whose measurements are not known is no warning.
    let warnings = message.lines().filter(|line| !line.starts_with("what a TPM will hold")).count();
    assert_eq!((code, warnings), (0, 0), "{message}");
}

/// Such a release would be left on its own: without a guard, without an agent, or without anything to judge the next one by.
#[test]
fn a_tree_without_root_of_trust_guard_or_agent_is_refused_until_that_is_said_to_be_meant() {
    let workshop = Workshop::new();
    let build = format!("{BUILD} --root tree --kernel vmlinuz");
    for (missing, number, part) in [
        ("usr/lib/bascule/root.json", 14, "the tree has no usr/lib/bascule/root.json"),
        ("etc/systemd/system/sysinit.target.wants/bascule-guard.service", 15, "starts bascule-guard.service"),
        ("usr/bin/bascule-agent", 15, "the program of guard and agent"),
        ("etc/systemd/system/multi-user.target.wants/bascule-agent.service", 16, "starts bascule-agent.service"),
    ] {
        workshop.tree("tree", "1.0", |number| number);
        fs::remove_file(workshop.path("tree").join(missing)).unwrap();
        let (code, message) = workshop.refused(&build);
        assert_eq!(code, 1, "{missing}: {message}");
        assert!(message.contains(&format!("error {number}: ")) && message.contains(part), "{missing}: {message}");
        assert!(message.contains("1 finding stops the release"), "{missing}: {message}");
        workshop.step(&format!("{build} --accept {number}"));
        for folder in ["tree", "out"] {
            fs::remove_dir_all(workshop.path(folder)).unwrap();
        }
    }
}

#[test]
fn what_was_built_elsewhere_is_looked_at_before_it_is_published() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("one", "1.0", |number| number);
    workshop.build("one-built", "1.0", "one", "");
    let manifest = workshop.path("one-built/releases/1.0/x86-64/release.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let root_hash = {
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        manifest["verity"]["rootHash"].as_str().unwrap().to_owned()
    };
    let other = if root_hash.starts_with('a') { 'b' } else { 'a' };
    let changed = text.replace(&root_hash, &format!("{other}{}", &root_hash[1..]));
    fs::write(&manifest, changed).unwrap();
    let (code, message) = workshop.refused(&format!("publish repository one-built --channel stable {ONLINE}"));
    assert_eq!(code, 1);
    assert!(message.contains("error 7: "), "{message}");
    fs::write(&manifest, text).unwrap();
    workshop.publish("one-built");

    // Another product into the same repository, whatever the channel.
    fs::write(workshop.path("one/usr/lib/os-release"), "IMAGE_ID=other-os\nIMAGE_VERSION=1.1\n").unwrap();
    workshop.step("build other --product other-os --release 1.1 --root one --kernel vmlinuz --fast");
    for channel in ["stable", "test"] {
        let (code, message) = workshop.refused(&format!("publish repository other --channel {channel} {ONLINE}"));
        assert_eq!(code, 1);
        assert!(message.contains("the repository is for acme-os") && message.contains("other-os"), "{message}");
    }
}

#[test]
fn what_has_grown_since_the_last_release_is_said_before_it_is_published() {
    let workshop = Workshop::new();
    workshop.repository();
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("before", "1.0", "tree", "");
    workshop.publish("before");
    fs::write(workshop.path("tree/usr/log"), noise(9, 3_000_000)).unwrap();
    workshop.build("grown", "1.1", "tree", "");
    let publish = format!("publish repository grown --channel stable {ONLINE}");
    let (code, message) = workshop.refused(&format!("{publish} --strict"));
    assert_eq!(code, 1);
    assert!(message.contains("warning 31: the image is") && message.contains("larger than that of 1.0"), "{message}");
    workshop.step(&format!("{publish} --strict --accept 31"));
}
