//! One virtual machine: UEFI, one virtual CPU under software emulation, a drive with a volatile cache, a network that
//! reaches a few ports of the host's loopback and nothing else, a watchdog, two serial lines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bascule_tests::supervise::{Scratch, Supervised};

use crate::console::{Console, Line};
use crate::disk::{Disk, Loss, Server};
use crate::qmp::Qmp;
use crate::relay;

/// QEMU's name of the machine's network card.
pub(crate) const NETWORK: &str = "net0";
/// Firmware code, shared by all machines and never written.
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// The same with Secure Boot, which keeps its variables in system management mode.
const SECURE_FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
/// The firmware's variables before the first boot. No keys are enrolled: it is in setup mode.
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// Their copy for one machine.
const VARIABLES_FILE: &str = "variables.fd";
/// What a machine needs that runs the agent and no container.
pub const MEMORY_MIB: u32 = 640;
/// When the power button is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(20);
/// Said by each kernel when it starts.
const BOOT_MARK: &str = "Linux version ";
/// Said by the test's shell when it starts.
const READY_MARK: &str = "@@ready@@";

/// What a disk is to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// A virtio disk with sectors of 512 bytes.
    Virtio,
    /// An NVMe drive with sectors of 4096 bytes, logical and physical.
    Nvme,
}

impl Drive {
    /// Bytes of a logical sector.
    #[must_use]
    pub const fn sector(self) -> u64 {
        match self {
            Self::Virtio => 512,
            Self::Nvme => 4096,
        }
    }

    /// The device of QEMU's whose medium is the block device `disk0`.
    const fn device(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-blk-pci,drive=disk0,bootindex=0,write-cache=on",
            Self::Nvme => {
                "nvme,serial=bascule,drive=disk0,bootindex=0,write-cache=on,logical_block_size=4096,physical_block_size=4096"
            }
        }
    }
}

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Names the machine in messages, files, and as a node.
    pub name: String,
    /// The disk's medium. It is the machine's own from now on.
    pub disk: PathBuf,
    /// What it is to the machine.
    pub drive: Drive,
    /// The medium of a second disk, whose content nobody cares about afterwards.
    pub second_disk: Option<PathBuf>,
    /// Whether its firmware can check signatures; it does once keys are enrolled.
    pub secure_boot: bool,
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// Ports of the host's loopback that the machine reaches at the same port of the relay's address.
    pub ports: Vec<u16>,
    /// Where the console's log and the firmware's variables go.
    pub folder: PathBuf,
    /// The program that QEMU starts for each connection, called with `relay` and the port.
    pub relay: PathBuf,
}

/// A machine, on or off. Dropping it switches it off.
#[derive(Debug)]
pub struct VirtualMachine {
    parts: Parts,
    disk: Disk,
    console: Console,
    shell: Console,
    sockets: Scratch,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    qemu: Supervised,
    _lines: [Line; 2],
    _drive: Server,
}

impl VirtualMachine {
    /// A machine that is off.
    ///
    /// # Errors
    /// When its files can't be made.
    pub fn new(parts: Parts) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&parts.folder).with_context(|| format!("making {}", parts.folder.display()))?;
        let variables = parts.folder.join(VARIABLES_FILE);
        std::fs::copy(VARIABLES, &variables).with_context(|| format!("copying {VARIABLES}"))?;
        let disk = Disk::open(&parts.disk).with_context(|| format!("opening {}", parts.disk.display()))?;
        let sockets = Scratch::new("machine")?;
        Ok(Self { parts, disk, console: Console::default(), shell: Console::default(), sockets, running: None })
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.parts.name
    }

    /// Its drive.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Its first serial line, with kernel, initrd and the units that speak there.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// How many kernels have started since `from`.
    #[must_use]
    pub fn boots(&self, from: usize) -> usize {
        self.console.count(from, BOOT_MARK)
    }

    /// Switches it on.
    ///
    /// # Errors
    /// When it is on already, or QEMU can't be started.
    pub fn power_on(&mut self) -> anyhow::Result<()> {
        if self.running.is_some() {
            bail!("{} is on already", self.parts.name);
        }
        let socket = |name: &str| self.sockets.path().join(name);
        let lines = [
            self.console.listen(&socket("console"), &self.parts.folder.join("console.log"))?,
            self.shell.listen(&socket("shell"), &self.parts.folder.join("shell.log"))?,
        ];
        self.disk.power_on();
        let drive = Server::start(self.disk.clone(), &socket("disk"))?;
        let log = self.parts.folder.join("qemu.log");
        let qemu = Supervised::start(Path::new("qemu-system-x86_64"), self.arguments(), &[], &log)?;
        self.running = Some(Running { qemu, _lines: lines, _drive: drive });
        Ok(())
    }

    /// Takes its power away between two instructions.
    ///
    /// # Errors
    /// When it is off, or its disk can't be written.
    pub fn power_off(&mut self, loss: Loss) -> anyhow::Result<()> {
        let mut running = self.running.take().with_context(|| format!("{} is off already", self.parts.name))?;
        running.qemu.kill()?;
        self.disk.power_off(loss).context("writing what the drive's cache kept")
    }

    /// Shuts it down as its power button would, and waits until it is off. Nothing is lost then.
    ///
    /// # Errors
    /// When it does not go down within `patience`.
    pub async fn shut_down(&mut self, patience: Duration) -> anyhow::Result<()> {
        let mut button = Qmp::connect(&self.sockets.path().join("qmp")).await?;
        let running = self.running.as_mut().with_context(|| format!("{} is off already", self.parts.name))?;
        let ended = tokio::time::timeout(patience, async {
            let mut look = tokio::time::interval(Duration::from_millis(200));
            let mut press = tokio::time::interval(PRESS_AGAIN);
            while running.qemu.ended()?.is_none() {
                tokio::select! {
                    _ = look.tick() => {}
                    // Nobody hears the button before logind runs. A machine that has just gone can't be asked.
                    _ = press.tick() => drop(button.press_power_button().await),
                }
            }
            anyhow::Ok(())
        });
        ended.await.with_context(|| format!("{} does not shut down:\n{}", self.parts.name, self.console.tail()))??;
        self.running = None;
        self.disk.power_off(Loss::Nothing).context("writing what the drive's cache kept")
    }

    /// Throws away the disk of a machine whose scenario has passed; its logs stay.
    pub fn discard(self) {
        let Self { parts, .. } = self;
        for file in [parts.disk, parts.folder.join(VARIABLES_FILE)].into_iter().chain(parts.second_disk) {
            // It takes room and no more: the next run empties the folder.
            let _ = std::fs::remove_file(file);
        }
    }

    /// Pulls the network cable, or plugs it in.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub async fn plug_network(&self, plugged: bool) -> anyhow::Result<()> {
        Qmp::connect(&self.sockets.path().join("qmp")).await?.set_link(plugged).await
    }

    /// A place in what the second serial line said, for [`VirtualMachine::wait_until_up`].
    #[must_use]
    pub fn now(&self) -> usize {
        self.shell.now()
    }

    /// Waits until a system that started after `from` has started its units. Returns the place behind it.
    ///
    /// # Errors
    /// With the console's last lines when it does not within `patience`.
    pub async fn wait_until_up(&self, from: usize, patience: Duration) -> anyhow::Result<usize> {
        let up = self.shell.wait_for(from, READY_MARK, patience).await;
        up.with_context(|| {
            format!("{} did not come up; its console ended with:\n{}", self.parts.name, self.console.tail())
        })
    }

    /// Runs a command as root inside and returns what it wrote. Only images with the test's shell have one.
    ///
    /// # Errors
    /// When it does not end within `patience`, or not with success.
    pub async fn run(&self, command: &str, patience: Duration) -> anyhow::Result<String> {
        let from = self.shell.now();
        // In two pieces, so that an echo of the line is no answer.
        self.shell.type_in(&format!("( {command} ) 2>&1; printf '@@%s=%s@@\\n' end $?\n")).await?;
        let end = self.shell.wait_for(from, "@@end=", patience).await.with_context(|| format!("running {command}"))?;
        // The whole line, or its end would come before the answer to the next command.
        let end = self.shell.wait_for(end, "@@\n", patience).await?;
        let said = self.shell.since(from);
        let said = said.get(..end - from).unwrap_or(&said);
        let (output, status) = said.rsplit_once("@@end=").context("an answer without an end")?;
        let status = status.trim_end_matches(['@', '\n']);
        if status != "0" {
            bail!("{command} ended with {status} on {}:\n{output}", self.parts.name);
        }
        Ok(output.to_owned())
    }

    /// What somebody would look at first: the console's last lines and, if the machine still answers, what its units and
    /// its network are doing.
    pub async fn symptoms(&self) -> String {
        const LOOK: &str = "systemctl list-jobs --no-pager; systemctl --failed --no-pager --plain; ip -brief address; \
                            journalctl --boot --no-pager --lines 40 --output short-monotonic";
        let inside = match self.run(LOOK, Duration::from_secs(60)).await {
            Ok(said) => said,
            Err(_) => "it does not answer".to_owned(),
        };
        format!("the console of {} ended with:\n{}\ninside:\n{inside}", self.parts.name, self.console.tail())
    }

    fn arguments(&self) -> Vec<String> {
        let socket = |name: &str| self.sockets.path().join(name).display().to_string();
        let variables = self.parts.folder.join(VARIABLES_FILE);
        let mut network = format!("user,id=user0,restrict=on,hostname={}", self.parts.name);
        for port in &self.parts.ports {
            let relay = self.parts.relay.display();
            network.push_str(&format!(",guestfwd=tcp:{}:{port}-cmd:{relay} relay {port}", relay::ADDRESS));
        }
        // Emulated SHA instructions make dm-verity cheap; nested virtualisation would only load modules.
        let (kind, firmware) = if self.parts.secure_boot { ("q35,smm=on", SECURE_FIRMWARE) } else { ("q35", FIRMWARE) };
        let machine = ["-machine", kind, "-accel", "tcg", "-cpu", "max,svm=off,vmx=off", "-smp", "1"];
        let quiet = ["-nodefaults", "-display", "none", "-vga", "none", "-no-user-config"];
        let mut arguments: Vec<String> = machine.iter().chain(&quiet).map(|argument| (*argument).to_owned()).collect();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-m", self.parts.memory_mib.to_string());
        if self.parts.secure_boot {
            // Only the firmware itself may write its variables (OVMF README, "SMM_REQUIRE").
            add("-global", "driver=cfi.pflash01,property=secure,value=on".to_owned());
            add("-global", "ICH9-LPC.disable_s3=1".to_owned());
        }
        add("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={firmware}"));
        add("-drive", format!("if=pflash,format=raw,unit=1,file={}", variables.display()));
        add("-blockdev", format!("driver=nbd,node-name=disk0,server.type=unix,server.path={}", socket("disk")));
        add("-device", self.parts.drive.device().to_owned());
        if let Some(second) = &self.parts.second_disk {
            add("-blockdev", format!("driver=file,node-name=disk1,filename={}", second.display()));
            add("-device", "virtio-blk-pci,drive=disk1".to_owned());
        }
        add("-netdev", network);
        // No option ROM: the machine never boots from the network.
        add("-device", format!("virtio-net-pci,id={NETWORK},netdev=user0,romfile="));
        add("-device", "virtio-rng-pci".to_owned());
        add("-device", "i6300esb".to_owned());
        add("-action", "watchdog=reset".to_owned());
        for name in ["console", "shell"] {
            add("-chardev", format!("socket,id={name},path={}", socket(name)));
            add("-serial", format!("chardev:{name}"));
        }
        add("-qmp", format!("unix:{},server=on,wait=off", socket("qmp")));
        arguments
    }
}
