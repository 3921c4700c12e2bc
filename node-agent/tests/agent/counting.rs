//! Boot counting that does not work: found out where it shows, reported, and not trusted with another trial.

use std::sync::Arc;

use bascule_agent::core::Entry;
use bascule_api::{Counting, Goal, conditions};
use bascule_sim::firmware::BootLoader::{self, Gptprio, SystemdBoot};
use bascule_sim::firmware::Variables;
use bascule_sim::firmware::gptprio::Attributes;
use bascule_sim::firmware::systemd_boot::Defects;
use bascule_sim::host::SimFirmware;
use bascule_sim::layout::Table;

use crate::machine::{Machine, entries, problem, release};

/// What is told of a boot loader, and what a grant then leads to: nothing.
fn is_not_trusted(machine: &mut Machine, version: &str, generation: i64, what: &str) {
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
        let mut machine = Machine::new(SystemdBoot, &release("1.0", &[]), &[&release("1.1", &[])]);
        change(&mut machine.hardware.variables);
        machine.sim.firmware = Arc::new(SimFirmware(machine.hardware.variables.clone()));
        is_not_trusted(&mut machine, "1.1", 1, what);
    }
}

/// A boot loader that promises to count and does not: its first trial shows it.
fn booted_without_counting(boot: BootLoader) -> Machine {
    let (old, new, next) = (release("1.0", &[]), release("1.1", &[]), release("1.2", &[]));
    let mut machine = Machine::new(boot, &old, &[&new, &next]);
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
