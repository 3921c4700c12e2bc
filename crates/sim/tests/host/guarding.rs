//! The shipped guard on a trial that nobody commits, with an agent that is dead: it takes the machine back, and a power
//! cut in the middle of that leaves a machine that boots.

use std::sync::Arc;
use std::time::Duration;

use bascule_agent::guard::{self, Machinery, Outcome};
use bascule_agent::observe::LookSettings;
use bascule_api::Goal;
use bascule_sim::disk::Loss;
use bascule_sim::firmware::BootLoader::{Gptprio, SystemdBoot};
use bascule_sim::host::{SimClock, SimHost};

use crate::operator::Verdict;
use crate::power_cuts::{sound, world};
use crate::support::{installed, machine, release};

const DEADLINE: Duration = Duration::from_secs(600);

/// Time passes while the guard waits.
struct Waits(Arc<SimClock>);

impl Machinery for Waits {
    fn wait(&self, time: Duration) {
        self.0.pass(time);
    }

    fn reboot_hard(&self) {}
}

#[test]
fn a_trial_that_nobody_commits_is_taken_back_wherever_the_power_fails() {
    for boot in [SystemdBoot, Gptprio] {
        let mut world = world(boot, installed(boot, &release("1.0")), "1.1", Verdict::Silence);
        let trial = world.settle().unwrap_or_else(|wrong| panic!("{boot:?}: {wrong}\n  {}", world.told()));
        assert_eq!((trial.version.as_str(), trial.trial), ("1.1", true), "{boot:?}:\n  {}", world.told());

        let clock = world.clock.clone();
        clock.restart();
        let host = SimHost::new(&world.hardware, &trial, clock.clone(), world.releases.clone()).unwrap();
        world.hardware.disk.start_recording();
        let outcome = guard::run(&host.host(), &LookSettings::default(), DEADLINE, &Waits(clock));
        assert!(matches!(outcome, Outcome::Rebooting(_)), "{boot:?}: {outcome:?}");
        assert_eq!(host.bus.reboots().len(), 1, "{boot:?}");
        let recording = world.hardware.disk.take_recording().unwrap();

        let end = recording.operations().len();
        for at in recording.cut_points() {
            for loss in [Loss::Nothing, Loss::Everything, Loss::Torn(at as u64), Loss::Torn(!(at as u64))] {
                let started = machine(boot, recording.cut(at, loss)).power_on();
                let story = || format!("{boot:?}: {loss:?} {:?}\n{}", started.log, recording.story(at, 30));
                assert_eq!(started.log.len(), 1, "{}", story());
                let system = started.system.as_ref().unwrap_or_else(|| panic!("{}", story()));
                let expected = system.version == "1.0" || (system.version == "1.1" && system.trial && at < end);
                assert!(expected, "{}", story());
            }
        }

        // The agent of the old release finds what happened, and the operator never asks for that release again.
        let back = world.settle().unwrap_or_else(|wrong| panic!("{boot:?}: {wrong}\n  {}", world.told()));
        assert_eq!(back.version, "1.0", "{boot:?}:\n  {}", world.told());
        assert_eq!(world.operator.goal, Goal::Idle, "{boot:?}:\n  {}", world.told());
        sound(&world).unwrap_or_else(|wrong| panic!("{boot:?}: {wrong}\n  {}", world.told()));
    }
}
