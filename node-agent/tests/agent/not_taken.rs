//! An armed entry that the boot loader did not take: it costs one drain, and not one after the other.

use bascule_agent::agent::Agent;
use bascule_agent::core::boot::Safeguard;
use bascule_agent::core::{Config, Desired, Event, ManualCommand};
use bascule_api::{Counting, Goal};

use crate::machine::{AgentHost, named, release};
use crate::way_back::{is_refused, machine, set};

/// Case 7: something decides that nobody here can see.
fn not_taken(config: &Config) -> (AgentHost, usize) {
    let new = release("1.1", &[]);
    let mut machine = machine();
    let mut reboots = 0;
    for generation in 1..4 {
        let mut agent = machine.agent_with(config.clone());
        agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
        let broken = agent.published().unwrap().boot_control.as_ref().unwrap().counting == Counting::Broken;
        if broken {
            break;
        }
        let grant = machine.grant(generation);
        agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
        reboots += machine.sim.bus.reboots().len();
        machine.hardware.variables.set_string("LoaderEntryOneShot", "acme-os-1.0.efi");
        machine.reboot();
        assert_eq!(machine.system.version, "1.0");
    }
    (machine, reboots)
}

#[test]
fn an_armed_entry_that_was_not_taken_is_never_armed_again_by_itself() {
    let (mut machine, reboots) = not_taken(&Config::default());
    assert_eq!(reboots, 1);
    is_refused(&mut machine, "was armed and the boot loader did not take it");
    let (_, reboots) = not_taken(&Config { without: Some(Safeguard::NotTakenIsRemembered), ..Config::default() });
    assert_eq!(reboots, 3, "without that memory it is a cycle");

    // A person who has mended it stages the release by hand, and all is well again.
    let new = release("1.1", &[]);
    let mut agent = machine.agent();
    agent.handle(Event::Manual { command: ManualCommand::Stage(named(&new)), user: None }).unwrap();
    machine.update(&new, 9);
}

/// The same by way of the operator (`bascule retry`): once for each word, and it survives a restart of the agent.
#[test]
fn what_was_not_taken_is_tried_again_when_a_person_says_so_and_once() {
    let (mut machine, _) = not_taken(&Config::default());
    let new = release("1.1", &[]);
    let said = |machine: &mut AgentHost, at: i64| {
        let Event::Desired(Some(desired)) = machine.word(Goal::Staged, &new, None) else { unreachable!() };
        let at = chrono::DateTime::from_timestamp(at, 0).unwrap().into();
        Event::Desired(Some(Desired { retry: Some(at), ..desired }))
    };
    let counting = |agent: &Agent| agent.published().unwrap().boot_control.as_ref().unwrap().counting;
    let mut agent = machine.agent();
    agent.handle(said(&mut machine, 1)).unwrap();
    assert_eq!(counting(&agent), Counting::Works);
    let answered = agent.published().unwrap().retried.map(|at| at.get().timestamp());
    assert_eq!(answered, Some(1));

    // It is not taken once more: the same word does not help again, not even a new agent.
    let grant = machine.grant(8);
    let Event::Desired(Some(desired)) = machine.word(Goal::Booted, &new, Some(grant)) else { unreachable!() };
    let retry = Some(chrono::DateTime::from_timestamp(1, 0).unwrap().into());
    agent.handle(Event::Desired(Some(Desired { retry, ..desired }))).unwrap();
    machine.hardware.variables.set_string("LoaderEntryOneShot", "acme-os-1.0.efi");
    machine.reboot();
    let mut agent = machine.agent();
    agent.handle(said(&mut machine, 1)).unwrap();
    assert_eq!(counting(&agent), Counting::Broken);
    agent.handle(said(&mut machine, 2)).unwrap();
    assert_eq!(counting(&agent), Counting::Works);
}

#[test]
fn another_set_up_of_the_boot_loader_is_judged_anew() {
    let (mut machine, _) = not_taken(&Config::default());
    set(&mut machine, "LoaderInfo", "systemd-boot 300");
    let new = release("1.1", &[]);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    assert_eq!(agent.published().unwrap().boot_control.as_ref().unwrap().counting, Counting::Works);
}
