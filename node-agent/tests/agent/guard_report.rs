//! The report that the guard leaves behind, where it can't be read: whoever concludes something from it waits, and the guard, which
//! does not, goes on with its work.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bascule_agent::core::GuardReport;
use bascule_agent::guard::{self, Machinery, Outcome};
use bascule_agent::host::{Host, Space, StateStore};
use bascule_agent::observe::{LookSettings, observe};
use bascule_sim::host::SimClock;

use crate::guard::on_an_entry_without_a_counter;

/// A state folder with a file that can't be read.
struct Spoilt(Arc<dyn StateStore>);

impl StateStore for Spoilt {
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        if name == GuardReport::FILE {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.0.read(name, limit)
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.0.write(name, content)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn space(&self) -> io::Result<Space> {
        self.0.space()
    }

    fn lock(&self) -> io::Result<Box<dyn Send>> {
        self.0.lock()
    }

    fn path(&self) -> PathBuf {
        self.0.path()
    }
}

struct Waiting(Arc<SimClock>);

impl Machinery for Waiting {
    fn wait(&self, time: Duration) {
        self.0.pass(time);
    }

    fn reboot_hard(&self) {}
}

/// The entry lost its counter: a reboot alone would boot it again, for as long as the report can't be read.
#[test]
fn a_report_that_can_not_be_read_keeps_no_trial_from_being_taken_back() {
    let mut machine = on_an_entry_without_a_counter(true);
    let whole = machine.sim.host();
    let host = Host { state: Arc::new(Spoilt(whole.state.clone())), ..whole };
    let (settings, waiting) = (LookSettings::default(), Waiting(machine.clock.clone()));
    let outcome = guard::run(&host, &settings, Duration::from_secs(600), &waiting);
    assert!(matches!(outcome, Outcome::Rebooting(_)), "{outcome:?}");
    machine.reboot();
    assert_eq!(machine.system.version, "1.0");
    // The agent must not take what was given up for what was never tried.
    let whole = machine.sim.host();
    let host = Host { state: Arc::new(Spoilt(whole.state.clone())), ..whole };
    let error = observe(&host, &settings, &bascule_agent::boot::DigestCache::default()).unwrap_err();
    assert!(error.to_string().contains("the guard's report"), "{error}");
}
