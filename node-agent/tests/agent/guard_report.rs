//! A guard whose state folder does not answer. For the report that it leaves behind itself, whoever concludes something from it waits;
//! the guard, which does not, goes on with its work. Without any state folder it goes by the entry.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bascule_agent::core::GuardReport;
use bascule_agent::guard::{self, Machinery, Outcome};
use bascule_agent::host::{Host, Space, StateStore};
use bascule_agent::observe::{LookSettings, observe};
use bascule_sim::firmware::BootLoader;
use bascule_sim::host::SimClock;

use crate::guard::{on_an_entry_without_a_counter, on_trial};
use crate::machine::Machine;

/// A state folder of which a file can't be read, or nothing at all.
struct Spoilt {
    state: Arc<dyn StateStore>,
    whole: bool,
}

impl Spoilt {
    fn answer(&self, name: &str) -> io::Result<()> {
        let broken = self.whole || name == GuardReport::FILE;
        if broken { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn under(host: Host, whole: bool) -> Host {
        Host { state: Arc::new(Self { state: host.state.clone(), whole }), ..host }
    }
}

impl StateStore for Spoilt {
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        self.answer(name)?;
        self.state.read(name, limit)
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.answer(name)?;
        self.state.write(name, content)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state.remove(name)
    }

    fn space(&self) -> io::Result<Space> {
        self.state.space()
    }

    fn lock(&self) -> io::Result<Box<dyn Send>> {
        self.state.lock()
    }

    fn path(&self) -> PathBuf {
        self.state.path()
    }
}

struct Waiting(Arc<SimClock>);

impl Machinery for Waiting {
    fn wait(&self, time: Duration) {
        self.0.pass(time);
    }

    fn reboot_hard(&self) {}
}

/// By the guard itself, in this boot, and not by the count of tries in the next ones.
fn is_taken_back(machine: &mut Machine, whole: bool) {
    let host = Spoilt::under(machine.sim.host(), whole);
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
    // The agent must not take what was given up for what was never tried.
    let host = Spoilt::under(machine.sim.host(), false);
    let looked = observe(&host, &LookSettings::default(), &bascule_agent::boot::DigestCache::default());
    let error = looked.unwrap_err();
    assert!(error.to_string().contains("the guard's report"), "{error}");
}

#[test]
fn without_any_state_folder_a_trial_with_a_counter_is_taken_back() {
    for loader in [BootLoader::SystemdBoot, BootLoader::Gptprio] {
        is_taken_back(&mut on_trial(loader, "1.0", "1.1"), true);
    }
}
