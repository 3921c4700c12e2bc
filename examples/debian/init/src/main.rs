//! The first program of the reference OS: everything between the kernel and systemd on a dm-verity root.
//!
//! Five steps: load modules, arm the watchdog, find the slot that the signed command line names by its root hash, set
//! up dm-verity over it, make it the root and start systemd. Any failure reboots the machine at once, because a trial
//! that can't find its root must count down and give way; a hang is ended by the watchdog, which is armed first.

mod cmdline;
mod device_mapper;
mod error;
mod fault;
mod slot;
mod superblock;
mod system;

use std::path::Path;

use error::Error;
use fault::Fault;
use system::{Console, Watchdog};

/// Seconds until the watchdog resets the machine unless systemd has taken it over (`RuntimeWatchdogSec=`).
const WATCHDOG_SECONDS: i32 = 60;

fn main() {
    let mut console = Console::default();
    let Err(error) = start(&mut console);
    console.say(&format!("this release can't start: {error}; rebooting"));
    system::reboot();
}

/// Returns only if something fails.
fn start(console: &mut Console) -> Result<std::convert::Infallible, Error> {
    system::mount_kernel_file_systems()?;
    console.open();
    system::load_modules(Path::new("/modules/order"))?;
    match Watchdog::arm(WATCHDOG_SECONDS) {
        Ok(()) => console.say(&format!("watchdog armed, {WATCHDOG_SECONDS} s")),
        // A machine without one still boots: counting needs a reset only when the kernel or this program hangs.
        Err(error) => console.say(&format!("no watchdog: {error}")),
    }
    if let Some(fault) = Fault::of_this_release() {
        console.say("this release carries a fault for a test");
        fault.happen();
    }

    let root_hash = cmdline::root_hash(&system::read_text(Path::new("/proc/cmdline"))?)?;
    let slot = slot::find(&root_hash)?;
    let verity = superblock::read(&slot.hashes)?;
    let on_corruption = if system::boots_as_trial() {
        // Nobody depends on a trial yet: a damaged block sends the machine back to the other slot.
        console.say("this boot is a trial: a damaged block restarts the machine");
        Some("restart_on_corruption")
    } else {
        None
    };
    let table = verity.table(&slot, &root_hash, on_corruption);
    let root = device_mapper::create_read_only("root", &verity.device_uuid("root"), verity.sectors(), &table)?;
    console.say(&format!("root is {} with dm-verity over {}", root.display(), slot.data.display()));
    system::switch_root(&root, Path::new("/root"))
}
