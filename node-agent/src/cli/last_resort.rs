//! The guard's last resort: a thread that reboots a machine whose guard hangs.
//!
//! It begins before anything is read that may hang (settings lie on the state partition, too), and touches no disk, no bus and no
//! log: whoever waits for one of them may hold standard error. Where the boot loader said that this boot counts, the count of
//! tries does the rest.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

use bascule_agent::guard::POLITE;
use bascule_agent::host::{Clock as _, Firmware as _};
use bascule_agent::linux::{EfiVariables, LinuxClock};

/// How much longer than everything else it waits.
const LONGER: Duration = Duration::from_secs(60);
/// What it goes by where nobody has said: the default of `trial.deadline`.
const UNTOLD: Duration = Duration::from_secs(45 * 60);
/// What it says, and where: the kernel's own log waits for nobody (kernel, Documentation/ABI/testing/dev-kmsg).
const WORDS: &[u8] = b"<2>bascule-agent: the guard hangs past its deadline: the kernel is told to reboot without it\n";
const KERNEL_LOG: &str = "/dev/kmsg";

/// The thread, where this boot counts or may count.
#[derive(Debug)]
pub(super) struct LastResort {
    /// In seconds since the boot; 0: nobody has said.
    told: Arc<AtomicU64>,
    thread: Option<Thread>,
}

impl LastResort {
    /// Begins.
    ///
    /// # Errors
    /// The kernel has no room for a thread.
    pub(super) fn begin() -> std::io::Result<Self> {
        let told = Arc::new(AtomicU64::new(0));
        // What could not be read now is looked at again when it counts.
        if booted_with_counter().is_ok_and(|counted| !counted) {
            return Ok(Self { told, thread: None });
        }
        let (begun, heard) = (LinuxClock.since_boot(), Arc::clone(&told));
        let thread = std::thread::Builder::new().name("last-resort".to_owned()).spawn(move || wait(begun, &heard));
        let thread = thread.map_err(|error| {
            let what =
                format!("the guard runs without its last resort, a thread that reboots a machine that hangs: {error}");
            std::io::Error::new(error.kind(), what)
        })?;
        Ok(Self { told, thread: Some(thread.thread().clone()) })
    }

    /// Says when the guard is to act, in time since the boot.
    pub(super) fn go_by(&self, deadline: Duration) {
        self.told.store(deadline.as_secs(), Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

/// When it acts, in time since the boot. A guard that begins anew late in a boot has time to read what its deadline is.
fn over(begun: Duration, told: Option<Duration>) -> Duration {
    told.unwrap_or_else(|| UNTOLD.max(begun)) + POLITE + LONGER
}

fn wait(begun: Duration, told: &AtomicU64) {
    let left = || {
        let told = Some(told.load(Ordering::Acquire)).filter(|seconds| *seconds > 0);
        over(begun, told.map(Duration::from_secs)).saturating_sub(LinuxClock.since_boot())
    };
    while !left().is_zero() {
        std::thread::park_timeout(left());
    }
    if !booted_with_counter().unwrap_or(false) {
        return;
    }
    if let Ok(mut log) = std::fs::OpenOptions::new().write(true).open(KERNEL_LOG) {
        // Whether it is heard or not: the machine goes down.
        let _ = log.write_all(WORDS);
    }
    // No sync here: it may be what hangs.
    let outcome = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    tracing::error!(?outcome, "reboot(2) came back");
}

/// Whether the boot loader said that it booted an entry that counts.
fn booted_with_counter() -> std::io::Result<bool> {
    let path = EfiVariables::default().variable("LoaderBootCountPath")?;
    Ok(path.is_some_and(|path| path.iter().any(|byte| *byte != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_agent::settings::{Settings, Sources};

    #[test]
    fn it_waits_longer_than_the_guard_whether_it_was_told_or_not() {
        let longer = POLITE + LONGER;
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        assert_eq!(over(minutes(0), None), UNTOLD + longer);
        assert_eq!(UNTOLD, Settings::load(&Sources::default()).unwrap().trial_deadline);
        assert_eq!(over(minutes(0), Some(minutes(10))), minutes(10) + longer);
        assert_eq!(over(minutes(50), Some(minutes(120))), minutes(120) + longer);
        // A guard that died and begins again must not reboot a trial whose deadline it has not read yet.
        assert_eq!(over(minutes(50), None), minutes(50) + longer);
    }
}
