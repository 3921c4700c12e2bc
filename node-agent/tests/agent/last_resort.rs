//! The guard's last resort, with the program itself: it hangs as on a machine whose disk does not answer, and the kernel is told
//! to reboot. And the guard of a release that lacks what an image should have. In namespaces of its own, where reboot(2) ends the namespace's first process by SIGHUP (pid_namespaces(7)), where the
//! boot is as old as the test wants it (time_namespaces(7)), and where the boot loader said what the test wants it to say. Being root
//! in a user namespace only, nothing in it can reboot the machine that the tests run on.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bascule_agent::engine::COMMIT_FILE;
use bascule_agent::host::{BOOT_LOADER_VENDOR, Clock as _};
use bascule_agent::linux::LinuxClock;

use crate::exit_codes::host;

/// The shortest that can be set.
const DEADLINE: u64 = 30;
/// When the last resort acts, in seconds since the boot (docs/agent.md, "The guard").
const OVER: u64 = DEADLINE + 120;
/// What reboot(2) does to the first process of a PID namespace.
const SIGHUP: i32 = 1;
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

/// Makes the world that the guard sees, and becomes the guard: `$1` is the folder of the host,
/// `$2` what the boot loader says, `$3` the guard, `$4` the boot loader's name for variables.
const BECOME: &str = r#"set -e
mount -t tmpfs tmpfs /sys/firmware
mkdir -p /sys/firmware/efi/efivars
[ -z "$2" ] || printf '\006\000\000\000%s\000' "$2" > "/sys/firmware/efi/efivars/LoaderBootCountPath-$4"
mount --bind "$1/kmsg" /dev/kmsg
exec "$3" guard"#;

/// The tools and the namespaces, or `None`, said loudly, where the kernel or whoever runs the tests does not allow them.
fn namespaces(seconds_since_boot: u64) -> Option<Command> {
    let offset = i64::try_from(seconds_since_boot).unwrap() - i64::try_from(LinuxClock.since_boot().as_secs()).unwrap();
    let command = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child", "--time"]);
        command.args(["--boottime", &offset.to_string()]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        command
    };
    let allowed = command().args(["mount", "-t", "tmpfs", "tmpfs", "/sys/firmware"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        bascule_tests::skipped("no namespaces for users, networks, processes and time can be had here");
        return None;
    }
    Some(command())
}

/// The guard on a host that is a folder.
fn command(host: &Path, mut namespaces: Command, boot_count_path: &str, log: Stdio) -> Command {
    std::fs::write(host.join("kmsg"), "").unwrap();
    namespaces
        .args(["sh", "-c", BECOME, "sh"])
        .args([host.as_os_str(), boot_count_path.as_ref(), env!("CARGO_BIN_EXE_bascule-agent").as_ref()])
        .arg(BOOT_LOADER_VENDOR)
        .env("BASCULE_SETTINGS", host.join("agent.toml"))
        .env("BASCULE_TRIAL_DEADLINE", format!("{DEADLINE}s"))
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere")
        .stderr(log);
    namespaces
}

/// Starts the guard on a host that is a folder.
fn guard(host: &Path, namespaces: Command, boot_count_path: &str, log: Stdio) -> Child {
    command(host, namespaces, boot_count_path, log).spawn().unwrap()
}

/// The signal that ended it; none if it still runs after `patience`.
fn ended_by(guard: &mut Child, patience: Duration) -> Option<i32> {
    let until = LinuxClock.since_boot() + patience;
    while LinuxClock.since_boot() < until {
        if let Some(status) = guard.try_wait().unwrap() {
            return status.signal().or_else(|| panic!("the guard ended with {status}"));
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    guard.kill().unwrap();
    guard.wait().unwrap();
    None
}

/// A file that keeps whoever reads it waiting for as long as the test holds it.
fn hang(path: &Path) -> std::fs::File {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Waits until the guard reads the FIFO, which hangs until this end is closed.
fn opened_by_its_reader(fifo: &Path, guard: &mut Child) -> std::fs::File {
    let until = LinuxClock.since_boot() + Duration::from_secs(60);
    loop {
        match OpenOptions::new().write(true).custom_flags(NONBLOCK).open(fifo) {
            Ok(held) => return held,
            // Nobody reads it (fifo(7)).
            Err(error) => {
                assert!(LinuxClock.since_boot() < until, "the settings are not read: {error}");
                assert_eq!(guard.try_wait().unwrap(), None);
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
    }
}

/// That it was the last resort, and not the guard: it alone speaks there.
fn said(host: &Path) -> bool {
    std::fs::read_to_string(host.join("kmsg")).unwrap().contains("the guard hangs past its deadline")
}

#[test]
fn a_guard_that_hangs_is_rebooted_without_it_and_not_before_its_time() {
    const LEFT: u64 = 2;
    // From before its clock is set: what the preparation takes is gone from its time.
    let begun = LinuxClock.since_boot();
    let Some(namespaces) = namespaces(OVER - LEFT) else { return };
    let host = host();
    std::fs::create_dir(host.path().join("state")).unwrap();
    let _held = hang(&host.path().join("state").join(COMMIT_FILE));
    let mut guard = guard(host.path(), namespaces, "/EFI/Linux/acme-os_1.1+2-1.efi", Stdio::null());
    assert_eq!(ended_by(&mut guard, Duration::from_secs(60)), Some(SIGHUP));
    assert!(said(host.path()), "somebody else rebooted");
    // Offsets are whole seconds.
    assert!(LinuxClock.since_boot() - begun > Duration::from_secs(LEFT - 1), "that was too early");
}

/// Whoever waits for the journal to take a line holds standard error.
#[test]
fn a_log_that_takes_nothing_does_not_keep_the_last_resort() {
    let Some(namespaces) = namespaces(OVER - 2) else { return };
    let host = host();
    // What the guard complains of once its time is over.
    std::fs::remove_file(host.path().join("disk.img")).unwrap();
    let (full, mut log) = std::io::pipe().unwrap();
    let mut filler = OpenOptions::new()
        .write(true)
        .custom_flags(NONBLOCK)
        .open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&log)))
        .unwrap();
    while filler.write(b".").is_ok() {}
    log.flush().unwrap();
    let mut guard = guard(host.path(), namespaces, "/EFI/Linux/acme-os_1.1+2-1.efi", log.into());
    assert_eq!(ended_by(&mut guard, Duration::from_secs(60)), Some(SIGHUP));
    assert!(said(host.path()), "somebody else rebooted");
    drop(full);
}

/// The settings lie on the state partition, too. A boot that does not count is left alone: nothing would end the reboots.
#[test]
fn the_last_resort_is_there_before_settings_are_read_and_only_where_a_boot_counts() {
    for (boot_count_path, wanted) in [("/EFI/Linux/acme-os_1.1+2-1.efi", true), ("", false)] {
        // Far from its end: it is looked at, and must not act meanwhile.
        let Some(namespaces) = namespaces(OVER - 100) else { return };
        let host = host();
        let settings = host.path().join("agent.toml");
        std::fs::remove_file(&settings).unwrap();
        assert!(Command::new("mkfifo").arg(&settings).status().unwrap().success());
        let mut guard = guard(host.path(), namespaces, boot_count_path, Stdio::null());
        let _held = opened_by_its_reader(&settings, &mut guard);
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", guard.id())).unwrap();
        let name = |thread: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap()
        };
        let names = || -> Vec<String> {
            std::fs::read_dir(format!("/proc/{}/task", children.trim())).unwrap().map(name).collect()
        };
        // A thread takes its name itself, a moment after it was made.
        let until = LinuxClock.since_boot() + Duration::from_secs(60);
        let is_named = || names().iter().any(|name| name.trim() == "last-resort");
        while names().len() > 1 && !is_named() && LinuxClock.since_boot() < until {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let (found, names) = (is_named(), names());
        guard.kill().unwrap();
        guard.wait().unwrap();
        assert_eq!((found, names.len() > 1), (wanted, wanted), "'{boot_count_path}': {names:?}");
    }
}

/// A release without root of trust, settings and network is the one that has to be taken back.
#[test]
fn without_root_of_trust_settings_and_network_the_guard_itself_leaves_the_trial() {
    let Some(namespaces) = namespaces(DEADLINE + 1) else { return };
    let host = host();
    let root = host.path();
    std::fs::remove_file(root.join("agent.toml")).unwrap();
    let mut command = command(root, namespaces, "/EFI/Linux/acme-os_1.1+2-1.efi", Stdio::null());
    // Only where the host's folder has what is elsewhere on a host.
    for (setting, place) in [
        ("BASCULE_BOOT_PARTITION", "efi"),
        ("BASCULE_SLOTS_DISK", "disk.img"),
        ("BASCULE_STATE_DIRECTORY", "state"),
        ("BASCULE_REPOSITORY_TRUST_ROOT", "root.json"),
    ] {
        command.env(setting, root.join(place));
    }
    let mut guard = command.env_remove("BASCULE_SETTINGS").spawn().unwrap();
    assert_eq!(ended_by(&mut guard, Duration::from_secs(60)), Some(SIGHUP));
    assert!(!said(root), "it hung, and was rebooted without its doing");
}
