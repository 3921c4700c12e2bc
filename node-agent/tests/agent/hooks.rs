//! Hooks of the OS image: when they run, and what comes of one that fails.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bascule_agent::agent::Agent;
use bascule_agent::core::{Config, Entry, Event};
use bascule_agent::engine::{Engine, StageLimits, Stop};
use bascule_agent::host::{BusError, Host, Inhibition, Inhibitor, SystemBus, UnitRun, UnitState};
use bascule_agent::observe::LookSettings;
use bascule_api::{Goal, Grant};
use bascule_sim::disk::{Access, Cache, Effect, FaultRule, Part};
use bascule_sim::firmware::BootLoader;
use bascule_sim::tiny::TinyRelease;

use crate::machine::{AgentHost, entries, problem, release};

const BEFORE_ARM: &str = "bascule-before-arm@1.1.service";
const AFTER_COMMIT: &str = "bascule-after-commit@1.1.service";

fn machine() -> (AgentHost, TinyRelease) {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    (AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]), new)
}

/// Granted and armed by an agent, and booted as a trial; the grant.
fn boots(machine: &mut AgentHost, release: &TinyRelease) -> Grant {
    let grant = machine.grant(1);
    machine.agent().handle(machine.word(Goal::Booted, release, Some(grant.clone()))).unwrap();
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), (release.version.as_str(), true));
    grant
}

fn ends(machine: &AgentHost, unit: &str, end: UnitRun) {
    machine.sim.bus.runs.lock().unwrap().insert(unit.to_owned(), end);
}

#[test]
fn each_hook_runs_once_in_its_own_release() {
    let (mut machine, new) = machine();
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    assert!(machine.sim.bus.ran().is_empty(), "staging is nobody's business");
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, &new, Some(grant.clone()))).unwrap();
    assert_eq!(machine.sim.bus.ran(), [BEFORE_ARM]);
    // logind is asked to reboot again, and nothing is armed anew for it.
    machine.clock.pass(Duration::from_secs(600));
    agent.handle(Event::Tick).unwrap();
    assert_eq!((machine.sim.bus.ran().len(), machine.sim.bus.reboots().len()), (1, 2));
    machine.reboot();
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Booted, &new, Some(grant.clone()))).unwrap();
    assert!(machine.sim.bus.ran().is_empty(), "not while it is a trial");
    agent.handle(machine.word(Goal::Committed, &new, Some(grant))).unwrap();
    assert_eq!(machine.sim.bus.ran(), [AFTER_COMMIT]);
    let mut again = machine.agent();
    again.handle(Event::Tick).unwrap();
    assert_eq!(machine.sim.bus.ran().len(), 1, "once for each commit");
}

#[test]
fn nothing_is_armed_where_the_hook_before_it_fails() {
    for end in [UnitRun::Failed("ended with failed".to_owned()), UnitRun::TimedOut] {
        let (mut machine, new) = machine();
        ends(&machine, BEFORE_ARM, end);
        let mut agent = machine.agent();
        let grant = machine.grant(1);
        agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
        let status = agent.published().unwrap();
        assert_eq!((problem(status), status.last_grant), (Some("Hook"), None));
        let message = &status.last_error.as_ref().unwrap().message;
        assert!(message.contains("journalctl -u 'bascule-before-arm@1.1.service'"), "{message}");
        assert_eq!(entries(agent.state()), (Entry::Good, Entry::None));
        assert!(machine.sim.bus.reboots().is_empty());
        ends(&machine, BEFORE_ARM, UnitRun::Done);
        machine.clock.pass(Duration::from_secs(3_600));
        agent.handle(Event::Tick).unwrap();
        assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
    }
}

#[test]
fn a_hook_after_the_commit_that_fails_is_tried_again_and_holds_nothing_up() {
    let (mut machine, new) = machine();
    let grant = boots(&mut machine, &new);
    ends(&machine, AFTER_COMMIT, UnitRun::TimedOut);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Committed, &new, Some(grant))).unwrap();
    let status = agent.published().unwrap();
    assert!(status.trial.is_none() && status.booted.as_ref().unwrap().committed_at.is_some(), "{status:?}");
    assert_eq!(problem(status), Some("Hook"));
    machine.reboot();
    assert_eq!(machine.system.version, "1.1", "it is committed all the same");
    // The next boot knows of it still.
    ends(&machine, AFTER_COMMIT, UnitRun::Done);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Idle, &new, None)).unwrap();
    assert_eq!(machine.sim.bus.ran(), [AFTER_COMMIT]);
    assert_eq!(problem(agent.published().unwrap()), None);
}

#[test]
fn a_trial_that_is_taken_back_was_no_commit() {
    let (mut machine, new) = machine();
    let grant = boots(&mut machine, &new);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Reverted, &new, Some(grant))).unwrap();
    assert!(machine.sim.bus.ran().is_empty());
    machine.reboot();
    machine.agent().handle(Event::Tick).unwrap();
    assert_eq!((machine.system.version.as_str(), machine.sim.bus.ran().len()), ("1.0", 0));
}

#[test]
fn a_hook_that_is_owed_still_outlives_the_trial_of_another_release() {
    let (old, new, newer) = (release("1.0", &[]), release("1.1", &[]), release("1.2", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new, &newer]);
    let grant = boots(&mut machine, &new);
    ends(&machine, AFTER_COMMIT, UnitRun::TimedOut);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Committed, &new, Some(grant))).unwrap();
    let grant = machine.grant(2);
    agent.handle(machine.word(Goal::Booted, &newer, Some(grant.clone()))).unwrap();
    assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.2", true));
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Reverted, &newer, Some(grant))).unwrap();
    assert!(machine.sim.bus.ran().is_empty());
    machine.reboot();
    assert_eq!(machine.system.version, "1.1");
    machine.agent().handle(Event::Tick).unwrap();
    assert_eq!(machine.sim.bus.ran(), [AFTER_COMMIT]);
}

/// A bus on which the first hook takes so long that the word is taken back meanwhile.
struct SlowOnce {
    bus: Arc<dyn SystemBus>,
    stop: Mutex<Option<Stop>>,
}

impl SystemBus for SlowOnce {
    fn inhibitors(&self) -> Result<Vec<Inhibitor>, BusError> {
        self.bus.inhibitors()
    }

    fn inhibit_shutdown(&self, why: &str) -> Result<Box<dyn Inhibition>, BusError> {
        self.bus.inhibit_shutdown(why)
    }

    fn reboot(&self, message: &str) -> Result<(), BusError> {
        self.bus.reboot(message)
    }

    fn unit_states(&self, units: &[String]) -> Result<BTreeMap<String, UnitState>, BusError> {
        self.bus.unit_states(units)
    }

    fn run_unit(&self, unit: &str, limit: Duration) -> Result<UnitRun, BusError> {
        let end = self.bus.run_unit(unit, limit);
        if let Some(stop) = self.stop.lock().unwrap().take() {
            stop.stop();
        }
        end
    }
}

/// The operator frees the place of a node whose agent has taken note and has armed nothing.
#[test]
fn what_was_taken_back_while_a_hook_ran_is_not_armed_behind_it() {
    let (mut machine, new) = machine();
    let host = machine.sim.host();
    let bus = Arc::new(SlowOnce { bus: host.bus.clone(), stop: Mutex::new(None) });
    let limits = StageLimits { workers: NonZeroUsize::MIN, low_priority: false, ..StageLimits::default() };
    let engine = Engine::new(Host { bus: bus.clone(), ..host }, LookSettings::default(), limits);
    *bus.stop.lock().unwrap() = Some(engine.stop_handle());
    let mut agent = Agent::new(engine, Config::default());
    agent.handle(Event::Tick).unwrap();
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
    // Here the word still stands when the agent looks again, so that it begins anew: what it had begun has armed nothing.
    assert_eq!(machine.sim.bus.ran(), [BEFORE_ARM, BEFORE_ARM]);
    assert_eq!((machine.sim.bus.reboots().len(), agent.published().unwrap().last_grant), (1, Some(1)));
}

#[test]
fn a_hook_after_the_commit_does_not_wait_for_a_repair_that_fails() {
    let (mut machine, new) = machine();
    let grant = boots(&mut machine, &new);
    // The backup of the partition table is broken and can't be written.
    let disk = machine.hardware.disk.clone();
    Part::whole(&disk).write_all(disk.length() - 512, &[0xaa; 512]).unwrap();
    disk.inject(FaultRule::always(Access::Write, Some(Cache::WHOLE), Effect::Eio));
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Committed, &new, Some(grant))).unwrap();
    for _ in 0..2 {
        machine.clock.pass(Duration::from_secs(3_600));
        agent.handle(Event::Tick).unwrap();
    }
    assert_eq!(machine.sim.bus.ran(), [AFTER_COMMIT]);
    assert_eq!(problem(agent.published().unwrap()), Some("Storage"), "and the repair is still to be done");
}

/// The word to reboot has its time (`nodeReadyTimeout`), of which each run of a hook that hangs takes five minutes.
#[test]
fn a_hook_after_the_commit_that_hangs_does_not_keep_a_node_from_the_release_that_mends_it() {
    let (old, new, newer) = (release("1.0", &[]), release("1.1", &[]), release("1.2", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new, &newer]);
    let grant = boots(&mut machine, &new);
    ends(&machine, AFTER_COMMIT, UnitRun::TimedOut);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Committed, &new, Some(grant))).unwrap();
    agent.handle(machine.word(Goal::Staged, &newer, None)).unwrap();
    let before = machine.sim.bus.ran().len();
    assert!(before > 1, "at rest it is tried again");
    let grant = machine.grant(2);
    agent.handle(machine.word(Goal::Staged, &newer, Some(grant.clone()))).unwrap();
    agent.handle(machine.word(Goal::Booted, &newer, Some(grant))).unwrap();
    assert_eq!(machine.sim.bus.ran()[before..], ["bascule-before-arm@1.2.service"]);
    assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
}
