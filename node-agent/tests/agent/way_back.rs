//! No arming without a way back: found out before the node is drained, and never a cycle of drains and reboots.

use std::sync::Arc;

use bascule_agent::boot::DigestCache;
use bascule_agent::core::Config;
use bascule_agent::core::boot::{BootInventory, FileContent, Safeguard};
use bascule_agent::host::Host;
use bascule_agent::linux::MountedEsp;
use bascule_api::{BootControlBackend, Counting, Goal, NodeUpdateStatus, conditions};
use bascule_sim::firmware::BootLoader::SystemdBoot;
use bascule_sim::firmware::boot_image::Fault;
use bascule_sim::host::{Failing, SimFirmware, SimReleases};
use bascule_sim::layout::{ESP, Sizes, Table, XBOOTLDR};
use bascule_sim::tiny::boot_image;

use crate::machine::{AgentHost, problem, release};

pub(crate) fn machine() -> AgentHost {
    AgentHost::new(SystemdBoot, &release("1.0", &[]), &[&release("1.1", &[])])
}

/// A machine whose entries lie on an XBOOTLDR.
pub(crate) fn with_xbootldr() -> AgentHost {
    let sizes = Sizes { xbootldr: 1200 << 10, ..Sizes::tiny() };
    let new = release("1.1", &[]);
    AgentHost::laid_out(SystemdBoot, sizes, &release("1.0", &[]), SimReleases::of([&new]))
}

fn message(status: &NodeUpdateStatus) -> String {
    let found = status.conditions.iter().find(|condition| condition.type_ == conditions::BOOT_CONTROL_HEALTHY);
    found.map(|condition| condition.message.clone()).unwrap_or_default()
}

/// Stages, and expects that boot control is reported broken with these words before anything was granted, and that a grant
/// then leads to nothing.
pub(crate) fn is_refused(machine: &mut AgentHost, words: &str) {
    let new = release("1.1", &[]);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    let status = agent.published().unwrap().clone();
    assert_eq!(status.boot_control.as_ref().unwrap().counting, Counting::Broken, "{words}");
    assert!(!conditions::is_true(&status.conditions, conditions::BOOT_CONTROL_HEALTHY), "{words}");
    assert!(message(&status).contains(words), "{words}: {}", message(&status));
    let grant = machine.grant(50);
    agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
    assert_eq!(problem(agent.published().unwrap()), Some("BootControl"), "{words}");
    assert!(machine.sim.bus.reboots().is_empty(), "{words}");
}

#[test]
fn entries_on_the_xbootldr_are_found_and_updated_there() {
    let mut machine = with_xbootldr();
    machine.update(&release("1.1", &[]), 1);
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", false));
    let table = Table::read(&machine.hardware.disk).unwrap();
    let list = |number| bascule_sim::esp::Esp::new(table.part(number).unwrap()).list("EFI/Linux").unwrap();
    assert!(list(ESP).is_empty(), "nothing was put beside the entries that count");
    let names: Vec<_> = list(XBOOTLDR).into_iter().map(|file| file.name).collect();
    assert!(names.contains(&"acme-os_1.1.efi".to_owned()), "{names:?}");
}

#[test]
fn an_xbootldr_that_is_not_mounted_is_no_way_back() {
    let mut machine = with_xbootldr();
    machine.sim.xbootldr = None;
    is_refused(&mut machine, "no unified kernel image on the boot partitions boots what runs");
}

#[test]
fn a_system_that_was_booted_by_another_kind_of_entry_is_not_armed() {
    let mut machine = machine();
    let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
    esp.remove("EFI/Linux/acme-os-1.0.efi").unwrap();
    esp.sync().unwrap();
    is_refused(&mut machine, "it may be an entry of type #1");
}

#[test]
fn a_default_in_loader_conf_is_found_before_the_drain() {
    for line in ["default acme-os-1.0*", "default @saved", "preferred acme-os-1.0.efi"] {
        let mut machine = machine();
        let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
        esp.write("loader/loader.conf", format!("timeout 0\n{line}\n").as_bytes()).unwrap();
        esp.sync().unwrap();
        is_refused(&mut machine, "in loader.conf pins");
    }
    // One that fits all of the product's entries decides nothing.
    let mut machine = machine();
    let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
    esp.write("loader/loader.conf", b"default acme-os*\n").unwrap();
    esp.sync().unwrap();
    machine.update(&release("1.1", &[]), 1);
}

/// What the variables say of the next boot is seen by an agent that runs.
pub(crate) fn set(machine: &mut AgentHost, variable: &str, value: &str) {
    machine.hardware.variables.set_string(variable, value);
    machine.sim.firmware = Arc::new(SimFirmware(machine.hardware.variables.clone()));
}

#[test]
fn an_entry_that_is_pinned_in_the_firmware_is_found_before_the_drain() {
    for (variable, undo) in [
        ("LoaderEntryDefault", "set-default"),
        ("LoaderEntryPreferred", "set-preferred"),
        ("LoaderEntryOneShot", "set-oneshot"),
    ] {
        let mut machine = machine();
        set(&mut machine, variable, "acme-os-1.0.efi");
        is_refused(&mut machine, &format!("{variable} pins"));
        is_refused(&mut machine, undo);
        // What stands for one boot only is over with it, whatever was booted.
        machine.hardware.variables.unset(variable);
        machine.reboot();
        machine.update(&release("1.1", &[]), 60);
    }
}

/// Decision 39: `preferred` is read, and does not replace the order of entries.
#[test]
fn a_preferred_entry_is_left_by_the_boot_loader_when_its_tries_are_used_up() {
    // As somebody prefers the release that comes: it is taken, and is for good.
    let good = release("1.1", &[]);
    let mut machine = machine();
    set(&mut machine, "LoaderEntryPreferred", "acme-os_1.1.efi");
    machine.update(&good, 1);
    machine.reboot();
    assert_eq!(machine.system.version, "1.1");

    // One that never comes up is left after its tries, though it is preferred.
    let bad = release("1.1", &[Fault::Panic]);
    let mut machine = AgentHost::new(SystemdBoot, &release("1.0", &[]), &[&bad]);
    machine.hardware.faults.insert(bad.root_hash, vec![Fault::Panic]);
    set(&mut machine, "LoaderEntryPreferred", "acme-os_1.1.efi");
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, &bad, Some(grant))).unwrap();
    assert_eq!(machine.sim.bus.reboots().len(), 1);
    machine.reboot();
    assert_eq!(machine.system.version, "1.0");

    // As a default it would be booted for ever: nothing is armed.
    let mut machine = AgentHost::new(SystemdBoot, &release("1.0", &[]), &[&bad]);
    set(&mut machine, "LoaderEntryDefault", "acme-os_1.1.efi");
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &bad, None)).unwrap();
    assert!(message(agent.published().unwrap()).contains("LoaderEntryDefault pins"));
}

#[test]
fn a_device_of_the_boot_loader_that_can_not_be_told_is_no_device_that_fits() {
    let mut machine = machine();
    set(&mut machine, "LoaderDevicePartUUID", "no uuid");
    let new = release("1.1", &[]);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    let status = agent.published().unwrap().clone();
    assert!(!conditions::is_true(&status.conditions, conditions::BOOT_CONTROL_HEALTHY));
    assert!(message(&status).contains("is no PARTUUID"), "{}", message(&status));
    // What was not seen is looked at again; nothing is armed meanwhile.
    let grant = machine.grant(50);
    agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
    assert_eq!(problem(agent.published().unwrap()), Some("Storage"));
    assert!(machine.sim.bus.reboots().is_empty());
}

#[test]
fn a_boot_loader_from_another_partition_is_found_before_the_drain() {
    let mut machine = machine();
    set(&mut machine, "LoaderDevicePartUUID", "11111111-2222-4333-8444-555555555555");
    is_refused(&mut machine, "the boot loader came from partition");
}

#[test]
fn an_esp_that_is_a_mirror_of_two_disks_is_found_before_the_drain() {
    let mut machine = machine();
    machine.sim.esp.mirror(true);
    is_refused(&mut machine, "what is mounted as ESP is no partition of a disk");
    machine.sim.esp.mirror(false);
    machine.update(&release("1.1", &[]), 60);
}

/// FAT does that by itself when it finds damage (`errors=remount-ro`): everything can be read, and nothing renamed.
#[test]
fn a_boot_partition_that_became_read_only_is_found_before_the_drain() {
    let mut machine = machine();
    let new = release("1.1", &[]);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    machine.sim.esp.remount(true);
    is_refused(&mut machine, "the ESP is mounted read-only");
    machine.sim.esp.remount(false);
    machine.update(&new, 60);

    // Of two, the one that the entries are on decides.
    let mut machine = with_xbootldr();
    machine.sim.esp.remount(true);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    let status = agent.published().unwrap().clone();
    assert!(conditions::is_true(&status.conditions, conditions::BOOT_CONTROL_HEALTHY), "{}", message(&status));
    machine.sim.xbootldr.as_ref().unwrap().remount(true);
    is_refused(&mut machine, "the XBOOTLDR is mounted read-only");
}

#[test]
fn a_file_that_would_be_booted_instead_is_named() {
    let os_release = b"ID=aaa\nIMAGE_ID=aaa\nIMAGE_VERSION=1\nPRETTY_NAME=x\n";
    // The boot loader does not look at the command line: also at one that names no root hash of ours, or that is no text.
    let other_hash = format!("roothash={}", "ab".repeat(64));
    let lines = [&b"quiet"[..], other_hash.as_bytes(), b"roothash=deadbeef", b"a\tb\nc", b"caf\xe9"];
    for line in lines {
        let mut machine = machine();
        let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
        let image = bascule_sim::tiny::boot_image(&[(".osrel", &os_release[..]), (".cmdline", line), (".linux", b"k")]);
        esp.write("EFI/Linux/aaa.efi", &image).unwrap();
        esp.sync().unwrap();
        is_refused(&mut machine, "aaa.efi");
    }
}

/// The boot loader looks at section table and os-release alone: it shows an image that is cut short, and takes it, and it does not start.
/// What lies behind both releases is in nobody's way, and is left alone.
#[test]
fn an_image_that_is_cut_short_and_would_be_booted_instead_is_named() {
    let image = |sort_key: &str| {
        let os_release = format!("IMAGE_ID={sort_key}\nIMAGE_VERSION=9\nPRETTY_NAME=x\n");
        let whole = boot_image(&[(".osrel", os_release.as_bytes()), (".cmdline", b"quiet"), (".linux", &[7; 900])]);
        whole[..whole.len() - 500].to_vec()
    };
    for (name, sort_key) in [("aaa.efi", "aaa"), ("acme-os_9.efi", "acme-os"), ("acme-os_1.1.efi", "acme-os")] {
        let mut machine = machine();
        let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
        let path = format!("EFI/Linux/{name}");
        esp.write(&path, &image(sort_key)).unwrap();
        esp.sync().unwrap();
        is_refused(
            &mut machine,
            &format!("the boot loader would take {name}, which is not this agent's, and no whole image"),
        );
        assert_eq!(esp.read(&path, 1 << 20).unwrap(), image(sort_key), "{name}");
        // So it is: that is what is started, and nothing comes up.
        let mut started_again = machine.hardware.clone();
        let started = started_again.power_on();
        assert!(started.system.is_none(), "{name}: {:?}", started.log);
        esp.remove(&path).unwrap();
        esp.sync().unwrap();
        machine.update(&release("1.1", &[]), 60);
    }
    let mut machine = machine();
    let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
    esp.write("EFI/Linux/zulu.efi", &image("zulu")).unwrap();
    esp.sync().unwrap();
    machine.update(&release("1.1", &[]), 1);
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", false));
    assert_eq!(esp.read("EFI/Linux/zulu.efi", 1 << 20).unwrap(), image("zulu"));
}

/// systemd-boot shows an entry for each profile of an image, sorted by an os-release of its own where it has one.
#[test]
fn a_further_profile_that_would_be_booted_instead_is_named() {
    let image = |sort_key: &str| {
        let own = format!("IMAGE_ID={sort_key}\nIMAGE_VERSION=9\nPRETTY_NAME=x\n");
        boot_image(&[
            (".osrel", b"ID=zulu\nVERSION_ID=1\n"),
            (".cmdline", b"quiet"),
            (".linux", b"no kernel"),
            (".profile", b"ID=main\n"),
            (".profile", b"ID=rescue\n"),
            (".osrel", own.as_bytes()),
        ])
    };
    let mut machine = machine();
    let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
    let write = |sort_key| {
        esp.write("EFI/Linux/zulu.efi", &image(sort_key)).unwrap();
        esp.sync().unwrap();
    };
    write("aaa");
    is_refused(&mut machine, "the boot loader would take zulu.efi@rescue, which is not this agent's");
    write("zulu");
    machine.update(&release("1.1", &[]), 60);
}

/// The disk says that there is one, and nobody here can look at it: for an agent in a pod, where it was not mounted into it. Which
/// entries the boot loader finds there is not known, and what boots the other slot may be among them.
#[test]
fn an_xbootldr_that_nobody_can_look_at_is_said_before_the_drain() {
    let new = release("1.1", &[]);
    let mut machine = with_xbootldr();
    machine.sim.xbootldr = None;
    machine.sim.unmounted = Some("partition 7 of /dev/sda is an XBOOTLDR".to_owned());
    is_refused(&mut machine, "partition 7 of /dev/sda is an XBOOTLDR");
    // Also where what runs is on the ESP.
    let mut machine = AgentHost::new(SystemdBoot, &release("1.0", &[]), &[&new]);
    machine.sim.unmounted = Some("partition 7 of /dev/sda is an XBOOTLDR".to_owned());
    is_refused(&mut machine, "partition 7 of /dev/sda is an XBOOTLDR");
    machine.sim.unmounted = None;
    machine.update(&new, 60);
}

/// An entry of type #1 that starts a system: an image outside of the folder of type #2.
fn text_entry(machine: &AgentHost, name: &str, sorted_by: &str) {
    let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
    for folder in ["EFI/rescue", "loader/entries"] {
        esp.create_directory(folder).unwrap();
    }
    esp.write("EFI/rescue/old.efi", &release("1.0", &[]).uki).unwrap();
    let text = format!("title Rescue\n{sorted_by}uki \\EFI\\rescue\\old.efi\n");
    esp.write(&format!("loader/entries/{name}"), text.as_bytes()).unwrap();
    esp.sync().unwrap();
}

#[test]
fn an_entry_of_type_1_that_would_be_booted_instead_is_named() {
    let sorted_by = "sort-key acme-os\nversion 1.5\n";
    let mut machine = machine();
    text_entry(&machine, "rescue.conf", sorted_by);
    is_refused(&mut machine, "the boot loader would take rescue.conf");
    // So it is: with the release armed all the same, that is what runs.
    let mut agent = machine.agent_with(Config { without: Some(Safeguard::WayBackBeforeArming), ..Config::default() });
    let grant = machine.grant(70);
    agent.handle(machine.word(Goal::Booted, &release("1.1", &[]), Some(grant))).unwrap();
    assert_eq!(machine.sim.bus.reboots().len(), 1);
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.entry.as_str()), ("1.0", "rescue.conf"));

    // Behind both, for another processor, or used up, it is in nobody's way.
    for (name, sorted_by) in [
        ("rescue.conf", "sort-key acme-os\nversion 0.1\n"),
        ("rescue.conf", "sort-key acme-os\nversion 1.5\nmachine-id 2f\n"),
        ("rescue.conf", "sort-key acme-os\nversion 1.5\narchitecture zz80\n"),
        ("rescue+0-1.conf", sorted_by),
    ] {
        let mut machine = self::machine();
        text_entry(&machine, name, sorted_by);
        machine.update(&release("1.1", &[]), 1);
    }
}

/// SMBIOS structures with one string of type 11 (DMTF DSP0134), and the end.
fn smbios(string: &str) -> Vec<u8> {
    [&[11, 5, 0, 0, 1][..], string.as_bytes(), &[0, 0], &[127, 4, 1, 0, 0, 0]].concat()
}

#[test]
fn an_entry_that_comes_with_the_machine_is_one_of_type_1() {
    let entry = |name: &str, key: &str| {
        smbios(&format!("{name}:rescue.conf=sort-key {key}\nversion 1.5\nuki-url https://images.example/rescue.efi\n"))
    };
    // As systemd's code calls it, and as its manual does.
    for name in ["io.systemd.boot.entries-extra", "io.systemd.boot-entries.extra"] {
        let mut machine = machine();
        machine.smbios = entry(name, "acme-os");
        is_refused(&mut machine, "the boot loader would take rescue.conf (it comes with the machine: SMBIOS type 11)");
        machine.smbios = entry(name, "zz-rescue");
        machine.update(&release("1.1", &[]), 60);
    }
}

#[test]
fn an_entry_of_type_1_between_the_two_releases_is_in_the_way_of_the_way_back() {
    let old = release("1.0", &[]);
    let mut machine = AgentHost::new(SystemdBoot, &old, &[&old, &release("1.1", &[])]);
    machine.update(&release("1.1", &[]), 1);
    // What runs goes first, and so does a newer release; an older one would not.
    text_entry(&machine, "rescue.conf", "sort-key acme-os\nversion 1.0.5\n");
    let mut agent = machine.agent();
    let grant = machine.grant(2);
    agent.handle(machine.word(Goal::Reverted, &release("1.1", &[]), Some(grant))).unwrap();
    let status = agent.published().unwrap();
    assert_eq!(problem(status), Some("BootControl"));
    assert!(message(status).contains("would take rescue.conf"), "{}", message(status));
    assert!(machine.sim.bus.reboots().is_empty());
}

#[test]
fn an_entry_of_type_1_that_can_not_be_read_is_not_absent() {
    for failing in ["rescue.conf", "loader.conf"] {
        let mut machine = machine();
        text_entry(&machine, "rescue.conf", "sort-key acme-os\nversion 0.1\n");
        machine.unreadable.fail(failing, Failing { skip: 0, times: u64::MAX, error: 5 });
        let new = release("1.1", &[]);
        let mut agent = machine.agent();
        let grant = machine.grant(1);
        agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
        let status = agent.published().unwrap();
        assert_eq!(problem(status), Some("Storage"), "{failing}: {status:?}");
        assert!(message(status).contains(failing), "{}", message(status));
        assert!(machine.sim.bus.reboots().is_empty(), "{failing}");
        machine.unreadable.clear();
        machine.update(&new, 2);
    }
}

/// The boot loader takes it first; the agent's own reader gives it up half-way, so nobody knows what it boots.
#[test]
fn an_image_beyond_the_limits_of_the_agents_reader_is_not_absent() {
    let os_release = b"ID=acme-os\nIMAGE_ID=acme-os\nIMAGE_VERSION=9\n";
    let long_release = [&os_release[..], b"#", &[b'x'; 64 << 10], b"\n"].concat();
    let long_line = [&b"quiet "[..], &[b'x'; 2048]].concat();
    for (osrel, cmdline, words) in [
        (long_release.as_slice(), &b"quiet"[..], "acme-os_9.efi on the ESP"),
        (os_release, long_line.as_slice(), "the command line has 2054 bytes"),
    ] {
        let mut machine = machine();
        let new = release("1.1", &[]);
        let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
        let image = boot_image(&[(".osrel", osrel), (".cmdline", cmdline), (".linux", b"no kernel")]);
        esp.write("EFI/Linux/acme-os_9.efi", &image).unwrap();
        esp.sync().unwrap();
        let mut agent = machine.agent();
        let grant = machine.grant(1);
        agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
        let status = agent.published().unwrap();
        assert_eq!(problem(status), Some("Storage"), "{words}: {status:?}");
        assert!(message(status).contains(words), "{words}: {}", message(status));
        assert!(machine.sim.bus.reboots().is_empty(), "{words}");
        let left = esp.list("EFI/Linux").unwrap();
        assert!(left.iter().any(|file| file.name == "acme-os_9.efi"), "{left:?}");
        esp.remove("EFI/Linux/acme-os_9.efi").unwrap();
        esp.sync().unwrap();
        machine.update(&new, 2);
    }
}

/// A folder that can't be listed, of the partition that the trial's entry is not on or of entries of another kind, stops what would
/// be armed, and costs no trial its commit.
#[test]
fn a_folder_that_can_not_be_listed_stops_arming_and_no_commit() {
    // On the XBOOTLDR lie the entries, and what fails is the ESP's.
    for (folder, two) in [("Linux", true), ("entries", true), ("entries", false)] {
        let what = format!("{folder}, two partitions: {two}");
        let (new, newer) = (release("1.1", &[]), release("1.2", &[]));
        let sizes = Sizes { xbootldr: if two { 1200 << 10 } else { 0 }, ..Sizes::tiny() };
        let mut machine =
            AgentHost::laid_out(SystemdBoot, sizes, &release("1.0", &[]), SimReleases::of([&new, &newer]));
        let mut agent = machine.agent();
        let grant = machine.grant(1);
        agent.handle(machine.word(Goal::Booted, &new, Some(grant.clone()))).unwrap();
        machine.reboot();
        assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", true), "{what}");
        machine.unreadable.fail(folder, Failing { skip: 0, times: u64::MAX, error: 5 });
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Committed, &new, Some(grant))).unwrap();
        let status = agent.published().unwrap();
        assert!(status.trial.is_none() && status.booted.as_ref().unwrap().committed_at.is_some(), "{what}: {status:?}");
        assert_eq!(problem(status), Some("Storage"), "{what}");
        assert!(message(status).contains(folder), "{what}: {}", message(status));
        let grant = machine.grant(2);
        agent.handle(machine.word(Goal::Booted, &newer, Some(grant))).unwrap();
        assert!(machine.sim.bus.reboots().is_empty(), "{what}");
        machine.unreadable.clear();
        machine.update(&newer, 3);
    }
}

/// The same image on the other partition is somebody's mirror, whatever becomes of the agent's own: taken away for an update that
/// breaks off there, or replaced.
#[test]
fn a_mirror_is_left_alone_while_an_update_has_taken_the_agents_own_away() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (old, new, newer) = (release("1.0", &[]), release("1.1", &[]), release("1.2", &[]));
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = broken.clone();
    let releases = SimReleases::of([&new, &newer]).failing(move || is_broken.load(Ordering::SeqCst));
    let sizes = Sizes { xbootldr: 1200 << 10, ..Sizes::tiny() };
    let mut machine = AgentHost::laid_out(SystemdBoot, sizes, &old, releases);
    let on = |machine: &AgentHost, number| {
        bascule_sim::esp::Esp::new(Table::read(&machine.hardware.disk).unwrap().part(number).unwrap())
    };
    let write = |machine: &AgentHost, number, path: &str, bytes: &[u8]| {
        on(machine, number).write(path, bytes).unwrap();
        on(machine, number).sync().unwrap();
    };
    // Of two that are equal the boot loader takes the ESP's, and what was installed on the XBOOTLDR is the mirror.
    write(&machine, ESP, "EFI/Linux/acme-os-1.0.efi", &old.uki);
    let mut mirrors = vec![("EFI/Linux/acme-os-1.0.efi", old.uki.clone())];
    machine.update(&new, 1);
    machine.reboot();
    write(&machine, XBOOTLDR, "EFI/Linux/acme-os_1.1.efi", &new.uki);
    mirrors.push(("EFI/Linux/acme-os_1.1.efi", new.uki.clone()));
    let untouched = |machine: &AgentHost| {
        for (path, bytes) in &mirrors {
            let found = on(machine, XBOOTLDR).read(path, 1 << 20);
            assert_eq!(found.ok().as_ref(), Some(bytes), "{path} is a mirror, and was touched");
        }
    };
    // Room for a third image only once the other slot's is gone: half of that is missing.
    let margin = (1 << 20) + newer.uki.len() as u64 - old.uki.len() as u64 / 2;
    let filler = on(&machine, ESP).free().unwrap().saturating_sub(margin);
    write(&machine, ESP, "EFI/filler.bin", &vec![1; usize::try_from(filler).unwrap()]);
    broken.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Staged, &newer, None)).unwrap();
        assert!(agent.published().unwrap().last_error.is_some());
        untouched(&machine);
    }
    let names = on(&machine, ESP).list("EFI/Linux").unwrap();
    assert!(names.iter().all(|file| file.name != "acme-os-1.0.efi"), "its own was taken away: {names:?}");
    broken.store(false, Ordering::SeqCst);
    machine.update(&newer, 2);
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.2", false));
    machine.agent().handle(machine.word(Goal::Idle, &newer, None)).unwrap();
    untouched(&machine);
}

/// A name that is no UTF-8 (a mount with another `iocharset=`) is one of a file that the boot loader may take.
#[test]
fn an_entry_whose_name_can_not_be_told_is_not_absent() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = tempfile::tempdir().unwrap();
    let machine = machine();
    let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
    let linux = folder.path().join("EFI/Linux");
    std::fs::create_dir_all(&linux).unwrap();
    for file in esp.list("EFI/Linux").unwrap() {
        let content = esp.read(&format!("EFI/Linux/{}", file.name), 1 << 20).unwrap();
        std::fs::write(linux.join(&file.name), content).unwrap();
    }
    let inventory = || {
        let host = Host { esp: Arc::new(MountedEsp::new(folder.path().to_owned())), ..machine.sim.host() };
        bascule_agent::boot::read(&host, BootControlBackend::SystemdBoot, &[], &DigestCache::default()).unwrap()
    };
    let unread = |inventory: &BootInventory| {
        let files = inventory.files.iter().filter(|file| matches!(file.content, FileContent::Unread(_)));
        let texts = inventory.texts.iter().filter(|text| text.unread().is_some()).map(|text| text.name.clone());
        files.map(|file| file.name.clone()).chain(texts).collect::<Vec<_>>()
    };
    assert_eq!(unread(&inventory()), Vec::<String>::new());
    let odd = |name: &[u8]| std::ffi::OsStr::from_bytes(name).to_owned();
    std::fs::write(linux.join(odd(b"caf\xe9.efi")), "x").unwrap();
    let texts = folder.path().join("loader/entries");
    std::fs::create_dir_all(&texts).unwrap();
    std::fs::write(texts.join(odd(b"th\xe9.conf")), "linux /x\n").unwrap();
    assert_eq!(unread(&inventory()), ["caf\u{fffd}.efi", "th\u{fffd}.conf"]);
}
