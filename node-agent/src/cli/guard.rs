//! `bascule-agent guard`: the dead man as a unit of the host.

use std::time::Duration;

use bascule_agent::guard::{self, Machinery, Outcome, POLITE};
use bascule_agent::host::{Clock as _, Firmware as _};
use bascule_agent::linux::{self, EfiVariables, LinuxClock};
use bascule_agent::settings::Settings;
use tokio::runtime::Handle;

use super::{Exit, complain};

/// How much longer than everything else the last resort waits.
const LAST_RESORT: Duration = Duration::from_secs(60);
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
    if let Err(error) = last_resort(settings.trial_deadline) {
        tracing::error!(%error, "the guard runs without its last resort");
    }
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

fn booted_with_counter() -> std::io::Result<bool> {
    let path = EfiVariables::default().variable("LoaderBootCountPath")?;
    Ok(path.is_some_and(|path| path.iter().any(|byte| *byte != 0)))
}

/// A thread that touches neither disk nor bus: when the guard itself hangs in one of them past its time, and the boot
/// loader said that this boot counts, the machine goes down all the same.
fn last_resort(deadline: Duration) -> std::io::Result<()> {
    // What could not be read now is looked at again when it counts.
    if booted_with_counter().is_ok_and(|counted| !counted) {
        return Ok(());
    }
    let over = deadline + POLITE + LAST_RESORT;
    let wait = move || {
        while LinuxClock.since_boot() < over {
            std::thread::park_timeout(over.saturating_sub(LinuxClock.since_boot()));
        }
        if !booted_with_counter().unwrap_or(false) {
            return;
        }
        tracing::error!("the guard hangs past its deadline: the kernel is told to reboot without it");
        // No sync here: it may be what hangs.
        let outcome = rustix::system::reboot(rustix::system::RebootCommand::Restart);
        tracing::error!(?outcome, "reboot(2) came back");
    };
    std::thread::Builder::new().name("last-resort".to_owned()).spawn(wait)?;
    Ok(())
}
