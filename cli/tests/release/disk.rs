//! `bascule disk`: the disk of a built release, and each mistake as a sentence.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use super::workshop::Workshop;

/// A workshop with release 1.0 in `build`.
fn built() -> Workshop {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    workshop.build("build", "1.0", "tree", "");
    workshop
}

fn step(workshop: &Workshop, arguments: &str) -> String {
    let output = workshop.bascule(arguments);
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_built_release_becomes_a_disk_and_the_same_one_again() {
    let workshop = built();
    let told = step(&workshop, "disk build host.raw");
    assert!(told.starts_with("acme-os 1.0 for x86-64: a disk of "), "{told}");
    assert!(told.contains("boot loader, acme-os_1.0.efi") && told.contains("slot B: empty"), "{told}");
    step(&workshop, "disk build again.raw --architecture x86-64");
    assert!(fs::read(workshop.path("host.raw")).unwrap() == fs::read(workshop.path("again.raw")).unwrap());
    step(&workshop, "disk build host.qcow2");
    let compared = std::process::Command::new("qemu-img")
        .args(["compare", "-q"])
        .args([workshop.path("host.raw"), workshop.path("host.qcow2")])
        .status();
    assert!(compared.expect("install qemu-utils").success());
    let left: Vec<_> = fs::read_dir(workshop.path(".")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".disk-")), "{left:?}");
    let larger = step(&workshop, "disk build larger.raw --size 4GiB --xbootldr-size 256MiB --esp-size 64MiB");
    assert_eq!(fs::metadata(workshop.path("larger.raw")).unwrap().len(), 4 << 30, "{larger}");
    assert!(larger.contains("XBOOTLDR  acme-os_1.0.efi"), "{larger}");
}

#[test]
fn a_disk_that_would_not_boot_or_not_update_is_refused_with_what_to_do() {
    let workshop = built();
    fs::write(workshop.path("there.raw"), "mine").unwrap();
    fs::create_dir(workshop.path("none")).unwrap();
    fs::create_dir_all(workshop.path("bad-names/EFI")).unwrap();
    fs::write(workshop.path("bad-names/EFI/a:b"), "").unwrap();
    fs::write(workshop.path("script"), "#!/bin/sh").unwrap();
    fs::write(workshop.path("wrong.toml"), "[node]\nnam = \"n1\"\n").unwrap();
    fs::write(workshop.path("good.toml"), "[node]\nname = \"n1\"\n").unwrap();
    fs::create_dir_all(workshop.path("taken/etc/bascule")).unwrap();
    fs::write(workshop.path("taken/etc/bascule/agent.toml"), "").unwrap();
    let stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
    for (arguments, part) in [
        ("build there.raw", "is there already"),
        ("none host.raw", "is no build folder"),
        ("build host.raw --architecture arm64", "build is built for x86-64, not for arm64"),
        ("build host.raw --size 512MiB", "the disk has 512 MiB, and needs "),
        ("build host.raw --esp-size 32MiB", "a third while it is written"),
        ("build host.raw --slot-size 1MiB", "a slot has 1 MiB, the image "),
        ("build host.raw --state-size 1MiB", "needs at least 64"),
        ("build host.raw --boot-loader missing.efi", "apt install systemd-boot-efi"),
        ("build host.raw --boot-loader script", "is no EFI program"),
        (&format!("build host.raw --boot-loader {stub}"), "is not systemd-boot"),
        ("build host.raw --esp bad-names", "'EFI/a:b' is no path for a boot partition"),
        ("build host.raw --state missing", "can't read missing"),
        ("build host.raw --settings missing.toml", "the settings file missing.toml can't be read"),
        (
            "build host.raw --settings wrong.toml",
            "wrong.toml:2: there is no setting 'node.nam'; did you mean 'node.name'?",
        ),
        ("build host.raw --settings good.toml --state taken", "is in the way of the settings"),
        ("build no-such-folder/host.raw", "can't write to no-such-folder"),
    ] {
        let output = workshop.bascule(&format!("disk {arguments}"));
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments}: {message}");
        assert!(message.contains(part), "{arguments}: {message}");
        assert!(!workshop.path("host.raw").exists(), "{arguments}");
    }
    assert_eq!(fs::read(workshop.path("there.raw")).unwrap(), b"mine");
    let image = workshop.path("build/image.raw");
    let mut bytes = fs::read(&image).unwrap();
    bytes[70_000] ^= 1;
    fs::write(&image, bytes).unwrap();
    let message = String::from_utf8(workshop.bascule("disk build host.raw").stderr).unwrap();
    assert!(message.contains("is not the image that the manifest describes"), "{message}");
}

#[test]
fn a_disk_with_what_one_machine_is_to_know_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let workshop = built();
    fs::write(workshop.path("machine.toml"), "[node]\nname = \"n1\"\n").unwrap();
    fs::create_dir(workshop.path("first-files")).unwrap();
    for (disk, more, others) in [
        ("any.raw", "", true),
        ("settings.raw", "--settings machine.toml", false),
        ("files.raw", "--state first-files", false),
    ] {
        step(&workshop, &format!("disk build {disk} {more}"));
        let mode = fs::metadata(workshop.path(disk)).unwrap().permissions().mode();
        // Whoever runs the tests may have a umask that leaves nobody else anything.
        assert!(mode & 0o077 == 0 || others, "{disk}: {mode:o}");
    }
}

#[test]
fn the_definition_that_lets_the_state_partition_grow_goes_into_a_tree() {
    let workshop = Workshop::new();
    workshop.tree("tree", "1.0", |number| number);
    step(&workshop, "disk --definitions tree");
    let written = fs::read_to_string(workshop.path("tree/usr/lib/repart.d/60-state.conf")).unwrap();
    assert!(written.contains("[Partition]\nType=var\n"), "{written}");
    assert_eq!(workshop.bascule("disk --definitions nowhere").status.code(), Some(1));
}

/// A loop device with a disk of 2 GiB.
struct Device(String);

impl Device {
    /// `None`, said loudly, where none can be had.
    fn new(workshop: &Workshop) -> Option<Self> {
        let image = workshop.path("device");
        fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
        let output = Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok();
        let Some(output) = output.filter(|output| output.status.success()) else {
            // Past the harness, which keeps to itself what a test that passes prints.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no loop device can be had here");
            return None;
        };
        Some(Self(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_release_is_installed_on_a_device_and_nothing_is_lost_unasked() {
    let workshop = built();
    fs::write(workshop.path("machine.toml"), "[node]\nname = \"n1\"\n").unwrap();
    let install = |disk: &str, more: &str| {
        let output = workshop.bascule(&format!("install build --disk {disk} {more}"));
        let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), told)
    };
    let (code, told) = install("build/image.raw", "--yes");
    assert!(code == 1 && told.contains("is no block device; name a disk"), "{code}: {told}");
    let Some(device) = Device::new(&workshop) else { return };
    let untouched =
        || fs::metadata(workshop.path("device")).map(|found| std::os::unix::fs::MetadataExt::blocks(&found));
    let before = untouched().unwrap();
    // Without a terminal nobody is asked.
    let (code, told) = install(&device.0, "--other-machine");
    assert!(code == 1 && told.contains("there is no terminal to ask on, say --yes"), "{code}: {told}");
    let (code, told) = install(&device.0, "--other-machine --yes --slot-size 1GiB");
    assert!(code == 1 && told.contains("the disk has 2048 MiB, and needs "), "{code}: {told}");
    assert_eq!(untouched().unwrap(), before, "nothing was written");
    let (code, told) = install(&device.0, "--other-machine --yes --settings machine.toml");
    assert!(code == 0 && told.starts_with("acme-os 1.0 for x86-64: a disk of 2048 MiB"), "{code}: {told}");
    let (code, told) = install(&device.0, "--other-machine --yes");
    assert!(code == 3 && told.contains("1 ESP (512 MiB)") && told.contains("say --replace"), "{code}: {told}");
    let (code, told) = install(&device.0, "--other-machine --yes --replace --esp-size 256MiB");
    assert!(code == 0 && told.contains("256 MiB"), "{code}: {told}");
}
