//! `bascule-agent guard`: the dead man as a unit of the host.

use std::time::Duration;

use bascule_agent::guard::{self, Machinery, Outcome};
use bascule_agent::linux;
use bascule_agent::settings::Settings;
use tokio::runtime::Handle;

use super::{Exit, complain};

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
    let host = linux::open_for_guard(settings, runtime);
    match guard::run(&host, &settings.look_settings(), settings.trial_deadline, &Kernel) {
        Outcome::Ended(why) => {
            tracing::info!(why, "nothing is left to guard");
            Exit::Done
        }
        Outcome::Rebooting(_) => Exit::Done,
    }
}
