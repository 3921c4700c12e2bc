//! Everything else that touches the machine: mounts, modules, the watchdog, device events, the console, the reboot.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{self, Updater, opcode};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink};
use rustix::system::RebootCommand;

use crate::Error;

/// What systemd's stub hands to the initrd of a TPM's policies, and where systemd looks for it after the initrd
/// (systemd-stub(7), "Initrd Resources"; tmpfiles.d/20-systemd-stub.conf does this where systemd runs in the initrd).
const POLICIES: [(&str, &str); 2] = [
    ("/.extra/tpm2-pcr-signature.json", "/run/systemd/tpm2-pcr-signature.json"),
    ("/.extra/tpm2-pcr-public-key.pem", "/run/systemd/tpm2-pcr-public-key.pem"),
];
const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";
/// Set by systemd-boot when it booted an entry with a counter (systemd: Boot Loader Interface).
const BOOT_COUNT_PATH: &str = "LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Writes to the kernel's log, and so to the console and later to the journal.
#[derive(Debug, Default)]
pub(crate) struct Console(Option<File>);

impl Console {
    pub(crate) fn open(&mut self) {
        self.0 = File::options().write(true).open("/dev/kmsg").ok();
    }

    pub(crate) fn say(&mut self, line: &str) {
        if let Some(file) = &mut self.0 {
            // "<5>" is the level "notice"; a log that can't be written must not stop a boot.
            let _ = file.write_all(format!("<5>bascule-init: {line}\n").as_bytes());
        }
    }
}

pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::system(format!("reading {}", path.display())))
}

pub(crate) fn mount_kernel_file_systems() -> Result<(), Error> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, place, kind, MountFlags::NOSUID, None).map_err(Error::system(format!("mounting {place}")))?;
    }
    Ok(())
}

/// Loads the modules listed in `order`, one path a line.
pub(crate) fn load_modules(order: &Path) -> Result<(), Error> {
    for path in read_text(order)?.lines() {
        let step = || format!("loading {path}");
        let module = File::open(path).map_err(Error::system(step()))?;
        match rustix::system::finit_module(&module, c"", 0) {
            // A watchdog driver without its device, or a module that came with another: not ours to judge.
            Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::NODEV) => {}
            Err(error) => return Err(Error::system(step())(error)),
        }
    }
    Ok(())
}

/// The hardware watchdog.
#[derive(Debug)]
pub(crate) struct Watchdog;

impl Watchdog {
    /// Starts it. It is never stopped here: closed without the magic letter it goes on, and systemd takes it over.
    #[allow(unsafe_code)]
    pub(crate) fn arm(seconds: i32) -> Result<(), Error> {
        /// `WDIOC_SETTIMEOUT` of linux/watchdog.h.
        const SET_TIMEOUT: ioctl::Opcode = opcode::read_write::<i32>(b'W', 6);
        let device =
            File::options().write(true).open("/dev/watchdog").map_err(Error::system("opening /dev/watchdog"))?;
        let mut timeout = seconds;
        // SAFETY: the kernel reads and writes one int for this code.
        let done = unsafe { ioctl::ioctl(&device, Updater::<SET_TIMEOUT, i32>::new(&mut timeout)) };
        done.map_err(Error::system("setting the watchdog's time"))
    }
}

/// Whether systemd-boot counted this boot: nobody has blessed this release yet.
pub(crate) fn boots_as_trial() -> bool {
    let mounted = mount("efivarfs", EFI_VARIABLES, "efivarfs", MountFlags::NOSUID, None);
    mounted.is_ok() && Path::new(EFI_VARIABLES).join(BOOT_COUNT_PATH).exists()
}

/// The kernel's announcements of devices.
#[derive(Debug)]
pub(crate) struct DeviceEvents(OwnedFd);

impl DeviceEvents {
    pub(crate) fn subscribe() -> Result<Self, Error> {
        let step = "listening for devices";
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::KOBJECT_UEVENT))
                .map_err(Error::system(step))?;
        // Group 1 is the kernel's own; group 2 would be udev's.
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 1)).map_err(Error::system(step))?;
        Ok(Self(socket))
    }

    /// Waits for the next announcement; `false` once `deadline` has passed.
    pub(crate) fn wait_until(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else { return false };
        let mut sources = [PollFd::new(&self.0, PollFlags::IN)];
        let announced = poll(&mut sources, Some(&timeout)).is_ok_and(|ready| ready > 0);
        let mut message = [0; 4096];
        while rustix::io::read(&self.0, &mut message[..]).is_ok_and(|length| length > 0) {}
        announced
    }
}

/// Keeps what the stub said of a TPM's policies in a /run that outlives the initrd; systemd takes over one that is mounted. Whether
/// there was any.
fn keep_policies() -> Result<bool, Error> {
    if !POLICIES.iter().any(|(from, _)| Path::new(from).exists()) {
        return Ok(false);
    }
    // As systemd mounts it.
    let options = c"mode=0755,size=20%,nr_inodes=800k";
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::STRICTATIME, options)
        .map_err(Error::system("mounting /run"))?;
    fs::create_dir_all("/run/systemd").map_err(Error::system("making /run/systemd"))?;
    for (from, to) in POLICIES {
        if Path::new(from).exists() {
            fs::copy(from, to).map_err(Error::system(format!("copying {from}")))?;
        }
    }
    Ok(true)
}

/// Makes the file system on `device` the root and starts systemd in it.
pub(crate) fn switch_root(device: &Path, place: &Path) -> Result<Infallible, Error> {
    mount(device, place, "erofs", MountFlags::RDONLY, None)
        .map_err(Error::system(format!("mounting {}", device.display())))?;
    let run = keep_policies()?.then_some("run");
    for folder in ["dev", "proc", "sys"].into_iter().chain(run) {
        mount_move(Path::new("/").join(folder), place.join(folder))
            .map_err(Error::system(format!("moving /{folder}")))?;
    }
    // The initrd lives in memory until its files are gone.
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
    std::env::set_current_dir(place).map_err(Error::system("entering the new root"))?;
    mount_move(".", "/").map_err(Error::system("moving the new root"))?;
    rustix::process::chroot(".").map_err(Error::system("changing the root"))?;
    std::env::set_current_dir("/").map_err(Error::system("entering the new root"))?;
    let failed = Command::new("/usr/lib/systemd/systemd").exec();
    Err(Error::system("starting systemd")(failed))
}

/// Restarts the machine now. Nothing was written, so nothing is to be flushed.
pub(crate) fn reboot() -> ! {
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // Should even that be refused: the kernel panics when its first program ends, and `panic=` restarts it.
    std::process::abort()
}
