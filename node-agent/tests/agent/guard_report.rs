//! A guard whose state folder does not answer. For the report that it leaves behind itself, whoever concludes something from it waits;
//! the guard, which does not, goes on with its work. Without any state folder it goes by the entry.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bascule_agent::agent::Agent;
use bascule_agent::core::{Config, Event, GuardReport};
use bascule_agent::engine::{Engine, StageLimits};
use bascule_agent::guard::{self, Machinery, Outcome};
use bascule_agent::host::Host;
use bascule_agent::observe::LookSettings;
use bascule_api::Goal;
use bascule_sim::firmware::BootLoader;
use bascule_sim::host::SimClock;

use crate::guard::{on_an_entry_without_a_counter, on_trial};
use crate::machine::{AgentHost, release};
use crate::state_folder::{Answer, with_state_folder};

/// A host on which the guard's report can be neither read nor written, or nothing of the state folder.
fn spoilt(host: Host, whole: bool) -> Host {
    with_state_folder(host, move |name, _| {
        let is_broken = whole || name == GuardReport::FILE;
        if is_broken { Answer::Broken } else { Answer::Whole }
    })
}

struct Waiting(Arc<SimClock>);

impl Machinery for Waiting {
    fn wait(&self, time: Duration) {
        self.0.pass(time);
    }

    fn reboot_hard(&self) {}
}

fn agent_on(host: Host) -> Agent {
    let limits = StageLimits { workers: NonZeroUsize::MIN, low_priority: false, ..StageLimits::default() };
    let mut agent = Agent::new(Engine::new(host, LookSettings::default(), limits), Config::default());
    agent.handle(Event::Tick).unwrap();
    agent
}

/// By the guard itself, in this boot, and not by the count of tries in the next ones.
fn is_taken_back(machine: &mut AgentHost, whole: bool) {
    let host = spoilt(machine.sim.host(), whole);
    let waiting = Waiting(machine.clock.clone());
    let outcome = guard::run(&host, &LookSettings::default(), Duration::from_secs(600), &waiting);
    assert!(matches!(outcome, Outcome::Rebooting(_)), "{outcome:?}");
    machine.reboot();
    assert_eq!(machine.system.version, "1.0");
}

/// The entry lost its counter: a reboot alone would boot it again, for as long as the report can't be read.
#[test]
fn a_report_that_can_not_be_read_keeps_no_trial_from_being_taken_back() {
    let mut machine = on_an_entry_without_a_counter(true);
    is_taken_back(&mut machine, false);
    // The agent must take what was given up neither for what was never tried nor for what failed to boot.
    let agent = agent_on(spoilt(machine.sim.host(), false));
    let problem = agent.state().problem.as_ref().unwrap();
    assert!(problem.message.contains("the guard's report"), "{problem:?}");
    assert!(agent.state().journal.as_ref().unwrap().armed.is_some(), "nothing is concluded");
}

/// Nothing is concluded from it there: a good release is not taken back for one sector of an earlier trial's report.
#[test]
fn a_report_that_can_not_be_read_costs_a_good_trial_no_commit() {
    let mut machine = on_trial(BootLoader::SystemdBoot, "1.0", "1.1");
    let mut agent = agent_on(spoilt(machine.sim.host(), false));
    agent.handle(machine.word(Goal::Committed, &release("1.1", &[]), None)).unwrap();
    let status = agent.published().unwrap();
    assert!(status.trial.is_none() && status.last_error.is_none(), "{status:?}");
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", false));
}

#[test]
fn without_any_state_folder_a_trial_with_a_counter_is_taken_back() {
    for loader in [BootLoader::SystemdBoot, BootLoader::Gptprio] {
        is_taken_back(&mut on_trial(loader, "1.0", "1.1"), true);
    }
}
