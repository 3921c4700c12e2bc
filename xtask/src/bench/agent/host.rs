//! The host of the measured agent: a root that holds the program and nothing else of an OS, with the files a kernel and a
//! boot loader would show, a disk image, and its ESP mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bascule_sim::disk::Disk;
use bascule_sim::layout::{ESP, Table};
use bascule_tests::control_plane::Credentials;
use bascule_tests::supervise::Supervised;
use uuid::Uuid;

use super::logind::Bus;
use super::systemd::Unit;
use crate::sandbox::{Built, Repository, write_disk};

/// Vendor GUID of the Boot Loader Interface's EFI variables (systemd, "The Boot Loader Interface").
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// LoaderFeatures with boot counting (bit 4).
const FEATURES: u64 = 1 << 4;
/// Where the agent finds the bus in its root.
const BUS: &str = "run/dbus/system_bus_socket";

/// The host.
#[derive(Debug)]
pub(super) struct Host {
    // Dropped in this order: the agent ends before its root goes.
    agent: Option<Supervised>,
    bus: Bus,
    unit: Unit,
    _esp: Mounted,
    root: PathBuf,
    log: PathBuf,
}

impl Host {
    /// Installs `release` in slot A.
    pub(super) async fn install(
        program: &Path,
        root: &Path,
        release: &Built,
        repository: &Repository,
        credentials: &Credentials,
    ) -> anyhow::Result<Self> {
        for folder in [
            "efi",
            "etc",
            "proc/sys/kernel/random",
            "run/bascule",
            "run/dbus",
            "sys/firmware/efi/efivars",
            "usr/lib/bascule",
            "var/lib",
        ] {
            fs::create_dir_all(root.join(folder)).with_context(|| format!("making {folder}"))?;
        }
        fs::copy(program, root.join("bascule-agent"))?;
        credentials.write_to(&root.join("etc/kubeconfig"))?;
        let settings = format!(
            "[node]\nname = \"{}\"\n[slots]\ndisk = \"/disk.img\"\n[kubernetes]\nkubeconfig = \"/etc/kubeconfig\"\n\
             [repository]\nextra-ca = [\"/usr/lib/bascule/ca.pem\"]\nonly-extra-ca = true\nproxy = \"direct\"\n",
            super::NODE
        );
        let trust_root = repository.trust_root()?;
        for (name, content) in [
            ("usr/lib/bascule/agent.toml", settings.as_str()),
            ("usr/lib/bascule/root.json", &trust_root),
            ("usr/lib/bascule/ca.pem", repository.ca_pem()),
            ("etc/hosts", "127.0.0.1 localhost\n"),
        ] {
            fs::write(root.join(name), content).with_context(|| format!("writing {name}"))?;
        }
        let disk = root.join("disk.img");
        write_disk(&disk, release)?;
        let esp = Mounted::esp(&disk, &root.join("efi"))?;
        let bus = Bus::start(&root.join(BUS)).await?;
        let unit = Unit::listen(root)?;
        let host = Self { agent: None, bus, unit, _esp: esp, root: root.to_owned(), log: PathBuf::new() };
        host.variable("LoaderFeatures", Some(&FEATURES.to_le_bytes()))?;
        host.show(release)?;
        Ok(host)
    }

    /// Starts the agent in its root.
    pub(super) fn start_agent(&mut self, logs: &Path) -> anyhow::Result<()> {
        self.log = logs.join("agent.log");
        let arguments = [self.root.as_os_str(), "/bascule-agent".as_ref(), "run".as_ref()];
        let mut environment = self.unit.environment();
        environment.push(("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), format!("unix:path=/{BUS}")));
        self.agent = Some(Supervised::start(Path::new("chroot"), arguments, &environment, &self.log)?);
        Ok(())
    }

    /// The agent's process.
    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        self.agent.as_ref().map(Supervised::pid).context("the agent does not run")
    }

    /// The patience of the watchdog in the agent's unit.
    pub(super) const fn patience(&self) -> Duration {
        self.unit.patience
    }

    /// What systemd's watchdog heard of the agent.
    pub(super) fn watchdog_told(&self) -> String {
        self.unit.watchdog_told()
    }

    /// Where the agent logs to.
    pub(super) fn log(&self) -> PathBuf {
        self.log.clone()
    }

    /// When logind was asked for a reboot.
    pub(super) async fn reboot_asked(&mut self) -> anyhow::Result<Instant> {
        self.bus.reboots.recv().await.context("the bus is gone")
    }

    /// The boot entries.
    pub(super) fn entries(&self) -> anyhow::Result<Vec<String>> {
        let folder = self.root.join("efi/EFI/Linux");
        let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        Ok(entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()?)
    }

    /// Ends the agent as a reboot does, boots the armed entry as systemd-boot does (one try less in its name, the path in
    /// LoaderBootCountPath), and starts the agent again.
    pub(super) async fn reboot_into(&mut self, release: &Built, logs: &Path) -> anyhow::Result<()> {
        self.end_agent().await?;
        let entries = self.entries()?;
        let armed = entries.iter().find(|entry| entry.ends_with("+3-0.efi"));
        let Some(armed) = armed else { bail!("no entry is armed: {entries:?}") };
        let counted = armed.replace("+3-0.efi", "+2-1.efi");
        let folder = self.root.join("efi/EFI/Linux");
        fs::rename(folder.join(armed), folder.join(&counted)).context("counting down")?;
        let path = format!("\\EFI\\Linux\\{counted}\0");
        let units: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
        self.variable("LoaderBootCountPath", Some(&units))?;
        self.show(release)?;
        self.start_agent(logs)
    }

    /// What the running system says of itself.
    fn show(&self, release: &Built) -> anyhow::Result<()> {
        let os_release = format!("ID=reference\nIMAGE_ID={}\nIMAGE_VERSION={}\n", release.product, release.version);
        for (name, content) in [
            ("proc/cmdline", format!("roothash={} ro\n", release.root_hash)),
            ("proc/sys/kernel/random/boot_id", format!("{}\n", Uuid::new_v4())),
            ("usr/lib/os-release", os_release),
        ] {
            fs::write(self.root.join(name), content).with_context(|| format!("writing {name}"))?;
        }
        Ok(())
    }

    /// Sets an EFI variable: four bytes of attributes, then the value (kernel, efivarfs).
    fn variable(&self, name: &str, value: Option<&[u8]>) -> anyhow::Result<()> {
        let path = self.root.join("sys/firmware/efi/efivars").join(format!("{name}-{VENDOR}"));
        let content: Vec<u8> = [6_u8, 0, 0, 0].into_iter().chain(value.unwrap_or_default().iter().copied()).collect();
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
    }

    async fn end_agent(&mut self) -> anyhow::Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        agent.terminate()?;
        let began = Instant::now();
        while agent.ended()?.is_none() {
            if began.elapsed() > Duration::from_secs(30) {
                bail!("the agent did not end within 30 s of SIGTERM");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// A file system that is unmounted when this is dropped.
#[derive(Debug)]
struct Mounted(PathBuf);

impl Mounted {
    /// The disk's own ESP where the kernel can mount it, else ext4 with the same files: FAT is a module that not every
    /// kernel has, and what is measured is the agent.
    fn esp(disk: &Path, at: &Path) -> anyhow::Result<Self> {
        let table = Table::read(&Disk::open_file(disk)?)?;
        let part = table.part(ESP).context("the disk has no ESP")?;
        let (start, length) = (part.offset(), part.length());
        let place = format!("loop,offset={start},sizelimit={length}");
        if let Ok(mounted) = Self::mount(&["-t", "vfat", "-o", &place], disk, at) {
            return Ok(mounted);
        }
        eprintln!("this kernel mounts no FAT: the boot partition is ext4 with the same files");
        let image = at.with_extension("ext4");
        fs::File::create(&image)?.set_len(length)?;
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status().context("starting mkfs.ext4")?;
        if !made.success() {
            bail!("mkfs.ext4 failed ({made})");
        }
        let mounted = Self::mount(&["-t", "ext4", "-o", "loop"], &image, at)
            .context("neither FAT nor ext4 can be mounted: this needs loop devices")?;
        let esp = table.esp()?;
        fs::create_dir_all(at.join("EFI/Linux"))?;
        for file in esp.list("EFI/Linux")? {
            let content = esp.read(&format!("EFI/Linux/{}", file.name), file.size)?;
            fs::write(at.join("EFI/Linux").join(&file.name), content)?;
        }
        Ok(mounted)
    }

    fn mount(options: &[&str], device: &Path, at: &Path) -> anyhow::Result<Self> {
        let output = Command::new("mount").args(options).args([device, at]).output().context("starting mount")?;
        if !output.status.success() {
            bail!("mount: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whatever still has a file open there ends with us; the mount then goes with its last user.
        if let Err(error) = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}
