//! The simulated firmware and kernel do what systemd-boot, the gptprio loaders, and dm-verity do: this is what all other
//! tests lean on.

use crate::support::{Writer, installed, machine, release};
use bascule_sim::disk::{Cache, Disk, Part};
use bascule_sim::firmware::BootLoader::{Gptprio, SystemdBoot};
use bascule_sim::firmware::boot_image::Fault;
use bascule_sim::firmware::gptprio::Attributes;
use bascule_sim::firmware::systemd_boot::Defects;
use bascule_sim::firmware::{BootLoader, Variables};
use bascule_sim::layout::{ESP, Slot, Table};
use bascule_sim::machine::Hardware;
use bascule_sim::tiny::{TinyRelease, boot_image};

/// 1.0 runs from A, `second` is staged in B and armed with three tries.
fn armed(boot: BootLoader, second: &TinyRelease) -> Hardware {
    let hardware = machine(boot, installed(boot, &release("1.0")));
    let writer = Writer { disk: &hardware.disk, boot, mistake: None };
    writer.stage(Slot::B, second);
    writer.arm(Slot::B, second);
    hardware
}

fn versions(hardware: &mut Hardware, starts: usize) -> Vec<String> {
    (0..starts).map(|_| hardware.power_on().system.map_or("nothing".into(), |system| system.version)).collect()
}

#[test]
fn a_trial_that_nobody_commits_ends_after_its_tries() {
    for boot in [SystemdBoot, Gptprio] {
        assert_eq!(versions(&mut armed(boot, &release("1.1")), 5), ["1.1", "1.1", "1.1", "1.0", "1.0"], "{boot:?}");
    }
}

#[test]
fn each_start_has_its_own_boot_id_and_tells_what_it_booted() {
    let mut hardware = armed(SystemdBoot, &release("1.1"));
    let first = hardware.power_on().system.unwrap();
    assert_eq!((first.entry.as_str(), first.trial), ("acme-os-1.1+2-1.efi", true));
    let variables = &hardware.variables;
    assert_eq!(variables.string("LoaderBootCountPath").unwrap(), "\\EFI\\Linux\\acme-os-1.1+2-1.efi");
    // As systemd-boot has known entries since it takes counters out of their names (src/boot/boot.c, boot_entry_parse_tries).
    assert_eq!(variables.string("LoaderEntrySelected").unwrap(), "acme-os-1.1.efi");
    assert_eq!(variables.bytes("LoaderFeatures").unwrap()[0] & 1 << 4, 1 << 4);
    assert_ne!(hardware.power_on().system.unwrap().boot_id, first.boot_id);
    versions(&mut hardware, 2);
    assert_eq!(hardware.variables.string("LoaderBootCountPath"), None, "a permanent entry has no counter");
}

#[test]
fn a_release_that_panics_falls_back_by_itself() {
    let broken = TinyRelease::new("acme-os", "1.1", 48 << 10, &[Fault::Panic]).unwrap();
    let mut hardware = armed(SystemdBoot, &broken);
    let started = hardware.power_on();
    assert_eq!(started.system.unwrap().version, "1.0");
    assert_eq!(started.log.len(), 4, "three tries and then the old one: {:?}", started.log);
}

#[test]
fn one_wrong_bit_anywhere_in_a_slot_is_refused() {
    for boot in [SystemdBoot, Gptprio] {
        let whole = armed(boot, &release("1.1")).disk.snapshot().unwrap();
        for number in [Slot::B.data(), Slot::B.verity()] {
            // Inside image, superblock and tree; what lies behind them is nobody's.
            for offset in [0, 4096 * 2 - 1] {
                let mut hardware = machine(boot, whole.clone());
                let part = Table::read(&hardware.disk).unwrap().part(number).unwrap();
                let mut byte = [0];
                part.read(offset, &mut byte).unwrap();
                part.write_all(offset, &[byte[0] ^ 0x10]).unwrap();
                let started = hardware.power_on();
                assert_eq!(started.system.unwrap().version, "1.0", "{boot:?} {number} {offset}: {:?}", started.log);
            }
        }
    }
}

#[test]
fn a_pinned_default_wins_over_used_up_counters() {
    // systemd #31215: why the agent never sets it.
    let broken = TinyRelease::new("acme-os", "1.1", 48 << 10, &[Fault::Panic]).unwrap();
    let mut hardware = armed(SystemdBoot, &broken);
    hardware.variables.set_string("LoaderEntryDefault", "acme-os-1.1*");
    assert_eq!(versions(&mut hardware, 1), ["nothing"]);
}

#[test]
fn one_shot_is_used_once() {
    let mut hardware = armed(SystemdBoot, &release("1.1"));
    hardware.variables.set_string("LoaderEntryOneShot", "acme-os-1.0.efi");
    assert_eq!(versions(&mut hardware, 2), ["1.0", "1.1"]);
}

#[test]
fn a_loader_that_does_not_count_tries_for_ever() {
    let mut hardware = armed(SystemdBoot, &release("1.1"));
    hardware.defects = Defects { does_not_count: true, tells_nothing: true };
    assert_eq!(versions(&mut hardware, 6), ["1.1"; 6]);
    assert_eq!(hardware.variables, Variables::default());
}

#[test]
fn the_backup_table_boots_when_the_primary_is_broken() {
    for sector in [1u64, 2] {
        let mut hardware = machine(SystemdBoot, installed(SystemdBoot, &release("1.0")));
        Part::whole(&hardware.disk).write_all(sector * 512, &[0xff; 512]).unwrap();
        assert_eq!(versions(&mut hardware, 1), ["1.0"]);
    }
}

#[test]
fn without_table_or_esp_nothing_boots_and_the_log_says_why() {
    let whole = installed(SystemdBoot, &release("1.0"));
    let mut hardware = machine(SystemdBoot, whole.clone());
    let esp = Table::read(&hardware.disk).unwrap().part(ESP).unwrap();
    esp.write_all(0, &vec![0; esp.length() as usize]).unwrap();
    let started = hardware.power_on();
    assert!(started.system.is_none());
    assert!(started.log[0].contains("can't read the disk"), "{:?}", started.log);

    let mut hardware = machine(SystemdBoot, whole);
    let disk: &Disk = &hardware.disk;
    disk.write_all(Cache::WHOLE, 0, &vec![0; 40 * 512]).unwrap();
    disk.write_all(Cache::WHOLE, disk.length() - 40 * 512, &vec![0; 40 * 512]).unwrap();
    assert!(hardware.power_on().system.is_none());
}

#[test]
fn gptprio_takes_the_highest_priority_that_may_boot() {
    let whole = armed(Gptprio, &release("1.1")).disk.snapshot().unwrap();
    let mut hardware = machine(Gptprio, whole);
    let set = |disk: &Disk, slot: Slot, priority: u8, tries: u8, successful: bool| {
        let mut table = Table::read(disk).unwrap();
        let bits = Attributes { priority, tries, successful }.merged_into(table.attributes(slot.data()));
        table.set_attributes(slot.data(), bits).unwrap();
    };
    set(&hardware.disk, Slot::B, 15, 0, false);
    assert_eq!(versions(&mut hardware, 1), ["1.0"], "no tries and never successful");
    set(&hardware.disk, Slot::B, 0, 7, true);
    assert_eq!(versions(&mut hardware, 1), ["1.0"], "priority 0 never boots");
    set(&hardware.disk, Slot::B, 1, 0, true);
    assert_eq!(versions(&mut hardware, 1), ["1.0"], "equal: the first");
    set(&hardware.disk, Slot::B, 2, 1, false);
    assert_eq!(versions(&mut hardware, 2), ["1.1", "1.0"]);
}

/// systemd-boot looks at section table and os-release, and at nothing behind them.
#[test]
fn an_image_that_is_cut_short_is_picked_and_does_not_start() {
    let mut hardware = machine(SystemdBoot, installed(SystemdBoot, &release("1.0")));
    let esp = Table::read(&hardware.disk).unwrap().esp().unwrap();
    let uki = release("1.1").uki;
    esp.write("EFI/Linux/acme-os-1.1.efi", &uki[..uki.len() - 1000]).unwrap();
    esp.sync().unwrap();
    let started = hardware.power_on();
    let refused = started.log.iter().all(|line| line.contains("acme-os-1.1.efi is not whole"));
    assert!(started.system.is_none() && refused, "{:?}", started.log);
}

#[test]
fn the_profiles_of_an_image_are_entries_of_their_own_and_have_one_counter() {
    let old = release("1.0");
    let mut hardware = machine(SystemdBoot, installed(SystemdBoot, &old));
    let esp = Table::read(&hardware.disk).unwrap().esp().unwrap();
    let (main, debug) = (format!("roothash={} main", old.root_hash), format!("roothash={} debug", old.root_hash));
    let image = boot_image(&[
        (".osrel", b"IMAGE_ID=acme-os\nIMAGE_VERSION=1.1\n"),
        (".linux", b"no kernel"),
        (".profile", b"ID=main\n"),
        (".cmdline", main.as_bytes()),
        (".profile", b"ID=Debug\n"),
        (".cmdline", debug.as_bytes()),
    ]);
    esp.write("EFI/Linux/acme-os-1.1+3-0.efi", &image).unwrap();
    esp.sync().unwrap();
    let system = hardware.power_on().system.unwrap();
    assert_eq!((system.entry.as_str(), system.command_line.as_str()), ("acme-os-1.1+2-1.efi", main.as_str()));
    hardware.variables.set_string("LoaderEntryOneShot", "acme-os-1.1.efi@debug");
    let system = hardware.power_on().system.unwrap();
    assert_eq!((system.entry.as_str(), system.command_line.as_str()), ("acme-os-1.1+1-2.efi", debug.as_str()));
    assert_eq!(hardware.variables.string("LoaderEntrySelected").unwrap(), "acme-os-1.1.efi@debug");
    assert_eq!(hardware.variables.string("LoaderBootCountPath").unwrap(), "\\EFI\\Linux\\acme-os-1.1+1-2.efi");
}
