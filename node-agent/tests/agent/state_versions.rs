//! What releases make of the machine's state, and who may go back over it.

use bascule_agent::core::{Event, ManualCommand};
use bascule_api::{Goal, Grant, NodeUpdateStatus};
use bascule_image::release::manifest::format_for;
use bascule_sim::firmware::BootLoader;
use bascule_sim::tiny::TinyRelease;

use crate::machine::{AgentHost, problem, release};

fn declaring(version: &str, state_version: u32) -> TinyRelease {
    TinyRelease::declaring("acme-os", version, 12 * 4096, state_version).unwrap()
}

/// A machine that runs 1.1, made for state version 2, and holds 1.0, made for 1.
fn updated() -> (AgentHost, TinyRelease, TinyRelease) {
    let (old, new) = (declaring("1.0", 1), declaring("1.1", 2));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    machine.update(&new, 1);
    (machine, old, new)
}

/// What the state was used with, and what slots A and B are made for.
fn numbers(status: &NodeUpdateStatus) -> (Option<u32>, [Option<u32>; 2]) {
    let slots = status.slots.as_ref().unwrap();
    (status.state_version, [slots.a.state_version, slots.b.state_version])
}

#[test]
fn a_trial_that_is_taken_back_has_used_nothing() {
    let (old, new) = (declaring("1.0", 1), declaring("1.1", 2));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, &new, Some(grant.clone()))).unwrap();
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", true));
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Booted, &new, Some(grant.clone()))).unwrap();
    assert_eq!(numbers(agent.published().unwrap()), (Some(1), [Some(1), Some(2)]));
    // Whatever takes a trial back asks nobody: the boot loader could not.
    agent.handle(machine.word(Goal::Reverted, &new, Some(grant))).unwrap();
    assert_ne!(problem(agent.published().unwrap()), Some("StateVersion"));
    machine.reboot();
    assert_eq!(machine.system.version, "1.0");
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Idle, &new, None)).unwrap();
    assert_eq!(agent.published().unwrap().state_version, Some(1));
}

/// An image that was built elsewhere may be declared by `bascule release build --state-version`, with nothing in its os-release.
#[test]
fn what_the_manifest_alone_declares_counts_too() {
    let (old, mut new) = (release("1.0", &[]), release("1.1", &[]));
    (new.manifest.format, new.manifest.state_version) = (format_for(Some(2)), Some(2));
    new.manifest_bytes = new.manifest.to_bytes().unwrap();
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    machine.update(&new, 1);
    let mut agent = machine.agent();
    let grant = machine.grant(2);
    agent.handle(machine.word(Goal::Reverted, &new, Some(grant))).unwrap();
    let status = agent.published().unwrap();
    assert_eq!((problem(status), numbers(status)), (Some("StateVersion"), (Some(2), [None, Some(2)])));
    assert!(machine.sim.bus.reboots().is_empty());
}

#[test]
fn a_committed_release_is_not_left_over_its_state_version_without_a_word() {
    let (mut machine, old, new) = updated();
    let mut agent = machine.agent();
    let grant = machine.grant(2);
    agent.handle(machine.word(Goal::Reverted, &new, Some(grant.clone()))).unwrap();
    let status = agent.published().unwrap();
    assert_eq!((problem(status), numbers(status).0), (Some("StateVersion"), Some(2)));
    let message = &status.last_error.as_ref().unwrap().message;
    assert!(message.contains("1.0 is made for state version 1") && message.contains("--accept-state"), "{message}");
    assert!(machine.sim.bus.reboots().is_empty());
    assert_eq!(status.last_grant, Some(1), "the grant is not used up by it");

    let accepted = Grant { accept_state: true, ..grant };
    agent.handle(machine.word(Goal::Reverted, &new, Some(accepted.clone()))).unwrap();
    assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
    machine.reboot();
    assert_eq!(machine.system.version, "1.0");
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Booted, &old, Some(accepted.clone()))).unwrap();
    assert_eq!(agent.published().unwrap().state_version, Some(2), "until it is committed");
    agent.handle(machine.word(Goal::Committed, &old, Some(accepted))).unwrap();
    let status = agent.published().unwrap();
    assert_eq!((problem(status), numbers(status).0), (None, Some(1)), "from there on it is asked anew");
}

#[test]
fn a_person_on_the_node_has_to_say_it_too() {
    let (mut machine, _, new) = updated();
    let mut agent = machine.agent();
    let revert = |accept_state| Event::Manual { command: ManualCommand::Revert { accept_state }, user: None };
    agent.handle(revert(false)).unwrap();
    agent.handle(machine.word(Goal::Idle, &new, None)).unwrap();
    assert!(machine.sim.bus.reboots().is_empty());
    agent.handle(revert(true)).unwrap();
    assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
}

#[test]
fn where_no_release_declares_anything_nothing_is_asked_and_nothing_said() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    machine.update(&new, 1);
    let mut agent = machine.agent();
    let grant = machine.grant(2);
    agent.handle(machine.word(Goal::Reverted, &new, Some(grant))).unwrap();
    assert_eq!(numbers(agent.published().unwrap()), (None, [None, None]));
    assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
}
