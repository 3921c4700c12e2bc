//! Nothing is armed without a grant for this very boot, used once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bascule_agent::core::{Desired, Event};
use bascule_api::{Goal, Grant};
use bascule_sim::firmware::BootLoader;
use bascule_sim::tiny::TinyRelease;

use crate::machine::{AgentHost, problem, release};

fn staged() -> (AgentHost, TinyRelease, TinyRelease) {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new, &old]);
    (machine, old, new)
}

#[test]
fn a_grant_for_another_boot_is_refused() {
    let (mut machine, _, new) = staged();
    let mut agent = machine.agent();
    let other = Grant { boot_id: "00000000-0000-4000-8000-000000000000".into(), generation: 1, accept_state: false };
    agent.handle(machine.word(Goal::Booted, &new, Some(other))).unwrap();
    assert_eq!(problem(agent.published().unwrap()), Some("Grant"));
    assert!(machine.sim.bus.reboots().is_empty());
    assert_eq!(agent.published().unwrap().last_grant, None);
}

#[test]
fn a_grant_without_a_disruption_is_only_a_counter() {
    let (mut machine, _, new) = staged();
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    let Event::Desired(Some(desired)) = machine.word(Goal::Booted, &new, Some(grant)) else { panic!() };
    agent.handle(Event::Desired(Some(Desired { disruption_begun: false, ..desired }))).unwrap();
    assert_eq!(problem(agent.published().unwrap()), Some("Grant"));
    assert!(machine.sim.bus.reboots().is_empty());
}

#[test]
fn a_node_that_nobody_could_reboot_says_so_before_it_is_drained() {
    let (mut machine, _, new) = staged();
    machine.sim.bus.gone.store(true, Ordering::SeqCst);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    let status = agent.published().unwrap();
    assert_eq!((problem(status), status.staged.as_ref()), (Some("SystemBus"), None));
    machine.sim.bus.gone.store(false, Ordering::SeqCst);
    machine.clock.pass(Duration::from_secs(3_600));
    agent.handle(Event::Tick).unwrap();
    let status = agent.published().unwrap();
    assert_eq!(problem(status), None);
    assert!(status.staged.is_some(), "{status:?}");
}

#[test]
fn an_old_grant_of_a_restored_backup_does_not_reboot_again() {
    let (mut machine, old, new) = staged();
    machine.update(&new, 7);
    let mut agent = machine.agent();
    // The backup is from before the update: its grant names a boot that is over.
    let spent = Grant { boot_id: "00000000-0000-4000-8000-000000000000".into(), generation: 7, accept_state: false };
    agent.handle(machine.word(Goal::Booted, &old, Some(spent))).unwrap();
    assert_eq!(problem(agent.published().unwrap()), Some("Grant"));
    // Even one that somehow names this boot is refused by its generation.
    let grant = machine.grant(7);
    agent.handle(machine.word(Goal::Booted, &old, Some(grant))).unwrap();
    let status = agent.published().unwrap();
    assert_eq!(problem(status), Some("Grant"));
    assert!(status.last_error.as_ref().unwrap().message.contains("spent"), "{status:?}");
    assert!(machine.sim.bus.reboots().is_empty());
    // The next real one works.
    let grant = machine.grant(8);
    agent.handle(machine.word(Goal::Booted, &old, Some(grant))).unwrap();
    assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
}

#[test]
fn a_grant_that_is_taken_back_before_the_reboot_disarms() {
    let (mut machine, _, new) = staged();
    // Somebody blocks the reboot, so that there is a time between arming and rebooting.
    let inhibitor = bascule_agent::host::Inhibitor {
        what: "shutdown".into(),
        who: "x".into(),
        why: "y".into(),
        mode: "block".into(),
    };
    machine.sim.bus.others.lock().unwrap().push(inhibitor);
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, &new, Some(grant.clone()))).unwrap();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    machine.sim.bus.others.lock().unwrap().clear();
    machine.clock.pass(Duration::from_secs(3_600));
    agent.handle(Event::Tick).unwrap();
    assert!(machine.sim.bus.reboots().is_empty());
    assert!(agent.published().unwrap().staged.is_some(), "what was armed is staged again");
    machine.reboot();
    assert_eq!(machine.system.version, "1.0", "any other reboot starts no trial");
}

#[test]
fn a_deleted_node_gets_no_reboot_and_keeps_what_it_has() {
    let (mut machine, _, new) = staged();
    let inhibitor = bascule_agent::host::Inhibitor {
        what: "shutdown".into(),
        who: "x".into(),
        why: "y".into(),
        mode: "block".into(),
    };
    machine.sim.bus.others.lock().unwrap().push(inhibitor);
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
    agent.handle(Event::Desired(None)).unwrap();
    machine.sim.bus.others.lock().unwrap().clear();
    machine.clock.pass(Duration::from_secs(3_600));
    agent.handle(Event::Tick).unwrap();
    assert!(machine.sim.bus.reboots().is_empty());
    machine.reboot();
    assert_eq!(machine.system.version, "1.0");
}

#[test]
fn an_agent_that_hears_nothing_leaves_what_was_granted_before() {
    let (mut machine, _, new) = staged();
    let inhibitor = bascule_agent::host::Inhibitor {
        what: "shutdown".into(),
        who: "x".into(),
        why: "y".into(),
        mode: "block".into(),
    };
    machine.sim.bus.others.lock().unwrap().push(inhibitor);
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    let word = machine.word(Goal::Booted, &new, Some(grant));
    agent.handle(word.clone()).unwrap();
    // The agent dies, and comes back while the API server is away: neither does it reboot on its own word, nor does it
    // take back what it was granted.
    machine.sim.bus.others.lock().unwrap().clear();
    let mut agent = machine.agent();
    assert!(machine.sim.bus.reboots().is_empty());
    agent.handle(word).unwrap();
    assert_eq!(
        machine.sim.bus.reboots().len(),
        1,
        "the same grant continues what it began: {:?}",
        agent.state().problem
    );
}
