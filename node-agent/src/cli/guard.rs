//! `bascule-agent guard`: the dead man as a unit of the host.

use std::time::Duration;

use bascule_agent::guard::{self, Machinery, Outcome};
use bascule_agent::host::Clock as _;
use bascule_agent::linux::{self, LinuxClock};
use bascule_agent::settings::Settings;
use tokio::runtime::Handle;

use super::last_resort::booted_with_counter;
use super::{Exit, complain};

/// How often the host is tried again while it can't be opened.
const RETRY: Duration = Duration::from_secs(2);

/// The machine itself.
struct Kernel;

impl Machinery for Kernel {
    fn wait(&self, time: Duration) {
        // Nobody unparks this thread; waking early is harmless.
        std::thread::park_timeout(time);
    }

    fn reboot_hard(&self) {
        rustix::fs::sync();
        let outcome = rustix::system::reboot(rustix::system::RebootCommand::Restart);
        tracing::error!(?outcome, "reboot(2) came back");
    }
}

pub(super) async fn run(settings: &Settings, runtime: &Handle) -> Exit {
    let (settings, runtime) = (settings.clone(), runtime.clone());
    match tokio::task::spawn_blocking(move || watch(&settings, &runtime)).await {
        Ok(exit) => exit,
        Err(error) => {
            complain(&error);
            Exit::Internal
        }
    }
}

fn watch(settings: &Settings, runtime: &Handle) -> Exit {
    let kernel = Kernel;
    // Early in the boot, the boot partition and the state folder may not be mounted yet.
    let host = loop {
        match linux::open_for_guard(settings, runtime) {
            Ok(host) => break host,
            Err(error) if LinuxClock.since_boot() < settings.trial_deadline => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the host can't be opened yet");
                kernel.wait(RETRY);
            }
            Err(error) => {
                complain(&error);
                if booted_with_counter().unwrap_or(false) {
                    kernel.reboot_hard();
                }
                return Exit::Host;
            }
        }
    };
    match guard::run(&host, &settings.look_settings(), settings.trial_deadline, &kernel) {
        Outcome::Ended(why) => {
            tracing::info!(why, "nothing is left to guard");
            Exit::Done
        }
        Outcome::Rebooting(_) => Exit::Done,
    }
}
