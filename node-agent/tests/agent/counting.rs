//! Boot counting that does not work: found out where it shows, reported, and not trusted with another trial.

use std::sync::Arc;

use bascule_agent::core::Entry;
use bascule_api::{Counting, Goal, conditions};
use bascule_sim::firmware::BootLoader::{self, Gptprio, SystemdBoot};
use bascule_sim::firmware::Variables;
use bascule_sim::firmware::gptprio::Attributes;
use bascule_sim::firmware::systemd_boot::Defects;
use bascule_sim::host::{Failing, SimFirmware};
use bascule_sim::layout::Table;

use crate::machine::{AgentHost, entries, problem, release};

/// What is told of a boot loader, and what a grant then leads to: nothing.
fn is_not_trusted(machine: &mut AgentHost, version: &str, generation: i64, what: &str) {
    let release = release(version, &[]);
    let mut agent = machine.agent();
    let grant = machine.grant(generation);
    agent.handle(machine.word(Goal::Booted, &release, Some(grant))).unwrap();
    let status = agent.published().unwrap();
    assert_eq!(status.boot_control.as_ref().unwrap().counting, Counting::Broken, "{what}");
    assert!(!conditions::is_true(&status.conditions, conditions::BOOT_CONTROL_HEALTHY), "{what}");
    assert_eq!(problem(status), Some("BootControl"), "{what}");
    assert!(!matches!(entries(agent.state()).1, Entry::Trying { .. }), "{what}");
    assert!(machine.sim.bus.reboots().is_empty(), "{what}");
}

#[test]
fn what_systemd_boot_says_of_itself_is_known_before_the_first_trial() {
    type Change = fn(&mut Variables);
    let changes: [(&str, Change); 3] = [
        ("no LoaderFeatures", |variables| variables.unset("LoaderFeatures")),
        ("features without counting", |variables| variables.set_bytes("LoaderFeatures", vec![0; 8])),
        ("a pinned default", |variables| variables.set_string("LoaderEntryDefault", "acme-os_1.0.efi")),
    ];
    for (what, change) in changes {
        let mut machine = AgentHost::new(SystemdBoot, &release("1.0", &[]), &[&release("1.1", &[])]);
        change(&mut machine.hardware.variables);
        machine.sim.firmware = Arc::new(SimFirmware(machine.hardware.variables.clone()));
        is_not_trusted(&mut machine, "1.1", 1, what);
    }
}

/// A boot loader that promises to count and does not: its first trial shows it.
fn booted_without_counting(boot: BootLoader) -> AgentHost {
    let (old, new, next) = (release("1.0", &[]), release("1.1", &[]), release("1.2", &[]));
    let mut machine = AgentHost::new(boot, &old, &[&new, &next]);
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
    machine.hardware.defects = Defects { does_not_count: true, ..Defects::default() };
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", true), "{boot:?}");
    if boot == Gptprio {
        // As if the try had not been taken off.
        let mut table = Table::read(&machine.hardware.disk).unwrap();
        let slot = machine.system.slot.data();
        let bits = table.attributes(slot);
        let all = Attributes { tries: 3, ..Attributes::of(bits) };
        table.set_attributes(slot, all.merged_into(bits)).unwrap();
    }
    machine
}

#[test]
fn a_trial_that_was_not_counted_is_noticed_and_no_other_is_begun() {
    for boot in [SystemdBoot, Gptprio] {
        let mut machine = booted_without_counting(boot);
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Committed, &release("1.1", &[]), None)).unwrap();
        assert!(agent.published().unwrap().trial.is_none(), "{boot:?}: the release itself is good");
        is_not_trusted(&mut machine, "1.2", 2, &format!("{boot:?}"));
        // Also after another boot, in which nothing shows it any more.
        machine.reboot();
        is_not_trusted(&mut machine, "1.2", 3, &format!("{boot:?}, a boot later"));
    }
}

/// What was found wrong with a boot loader is said of that one. Another version, and nobody has to do anything.
#[test]
fn a_boot_loader_that_did_not_count_is_judged_anew_when_it_is_another() {
    let mut machine = booted_without_counting(SystemdBoot);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Committed, &release("1.1", &[]), None)).unwrap();
    machine.reboot();
    is_not_trusted(&mut machine, "1.2", 2, "the same one");
    machine.hardware.defects = Defects::default();
    machine.reboot();
    is_not_trusted(&mut machine, "1.2", 3, "it counts now, and nothing shows it");
    machine.hardware.variables.set_string("LoaderInfo", "systemd-boot 300");
    machine.sim.firmware = Arc::new(SimFirmware(machine.hardware.variables.clone()));
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &release("1.2", &[]), None)).unwrap();
    assert_eq!(agent.published().unwrap().boot_control.as_ref().unwrap().counting, Counting::Works);
    machine.update(&release("1.2", &[]), 4);
    // That it counts was seen with the trial, and the verdict is gone for good.
    machine.reboot();
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &release("1.2", &[]), None)).unwrap();
    assert_eq!(agent.state().journal.as_ref().unwrap().counting_seen, Some(true));
}

/// By GPT attributes the boot image of a slot has one name. What lies there is the agent's by its record or content, as elsewhere.
#[test]
fn a_slots_image_that_is_somebody_elses_or_can_not_be_read_is_left_alone() {
    const IMAGE: &str = "EFI/bascule/slot-b.efi";
    let (old, new, next) = (release("1.0", &[]), release("1.1", &[]), release("1.2", &[]));
    let mut machine = AgentHost::new(Gptprio, &old, &[&new, &next, &old]);
    let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
    esp.create_directory("EFI/bascule").unwrap();
    esp.write(IMAGE, b"a rescue system of somebody's").unwrap();
    esp.sync().unwrap();
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    let error = agent.published().unwrap().last_error.clone().unwrap();
    assert!(error.message.contains("slot-b.efi") && error.message.contains("move it away"), "{error:?}");
    assert_eq!(esp.read(IMAGE, 1 << 20).unwrap(), b"a rescue system of somebody's");
    esp.remove(IMAGE).unwrap();
    esp.sync().unwrap();
    machine.update(&new, 1);
    machine.update(&next, 2);

    // The agent's own, which can't be read for a while, in the slot that is to be written next.
    machine.unreadable.fail("slot-b", Failing { skip: 0, times: u64::MAX, error: 5 });
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &old, None)).unwrap();
    assert_eq!(problem(agent.published().unwrap()), Some("Storage"), "{:?}", agent.published());
    assert!(esp.exists(IMAGE).unwrap(), "removed unread");
    let held = agent.published().unwrap().slots.as_ref().unwrap().b.version.as_ref().map(ToString::to_string);
    assert_eq!(held.as_deref(), Some("1.1"), "its slot was overwritten");
    machine.unreadable.clear();
    machine.update(&old, 3);
}
