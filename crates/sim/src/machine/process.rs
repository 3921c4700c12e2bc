//! A machine as a process of its own, for the sandbox: it holds the disk image, plays firmware and kernel in real time,
//! runs agent and guard as children the way systemd would run their units, and answers on its socket.
//!
//! The children are `bascule-sim-node agent` and `bascule-sim-node guard`: the shipped code over simulated host traits.
//! They find their machine by the directory in `BASCULE_SIM_MACHINE`, and end when their standard input does, so that
//! none outlives a machine that was killed.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, ChildStdin};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use super::hardware::{Hardware, System};
use super::view::{Command, MachineConfig, MachineView, Power, RunningSystem, SlotView};
use crate::disk::Disk;
use crate::firmware::Variables;
use crate::firmware::boot_image::Fault;
use crate::host::clock::boot_time;
use crate::layout::{Slot, Table};

/// The environment variable that tells agent and guard which machine they run on.
pub const MACHINE_VARIABLE: &str = "BASCULE_SIM_MACHINE";
/// A service that ends is started again after this (systemd's RestartSec).
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// How long a service may take to end when the machine goes down in order (`TimeoutStopSec=` of the agent's unit).
const STOP: Duration = Duration::from_secs(30);
/// A release that loops lives this long after its services started.
const CRASH_AFTER: Duration = Duration::from_millis(1500);
/// The hardware's watchdog: a system that hangs is reset after this.
const WATCHDOG: Duration = Duration::from_secs(5);
/// How often the partition table is looked at for the view.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Files in a machine's directory.
#[derive(Clone, Debug)]
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// Of the machine in this directory.
    pub fn of(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The configuration, as the machine got it: children read it here.
    pub fn config(&self) -> PathBuf {
        self.directory.join("config.json")
    }

    /// EFI variables.
    pub fn variables(&self) -> PathBuf {
        self.directory.join("efi-variables.json")
    }

    /// What the system that runs is; removed while none runs.
    pub fn system(&self) -> PathBuf {
        self.directory.join("system.json")
    }

    /// What the machine itself remembers.
    pub fn memory(&self) -> PathBuf {
        self.directory.join("machine.json")
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("machine.sock")
    }

    /// The mounted state partition: survives every restart.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// `/run`: emptied at every start.
    pub fn run(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// Where a service writes its log.
    pub fn log(&self, service: &str) -> PathBuf {
        self.directory.join(format!("{service}.log"))
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Memory {
    starts: u64,
    identity: Uuid,
}

/// Reads a JSON file; `None` where there is none.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is broken", path.display()))?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Replaces a JSON file in one step.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let write = || {
        std::fs::write(&temporary, serde_json::to_vec_pretty(value)?)?;
        std::fs::rename(&temporary, path)?;
        Ok::<_, anyhow::Error>(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Why a running system ended.
#[derive(Debug)]
enum End {
    /// Off and on again, or a reset.
    Restart,
    /// Off until told otherwise.
    Off,
}

/// The machine.
#[derive(Debug)]
pub struct SandboxMachine {
    config: MachineConfig,
    files: Files,
    hardware: Hardware,
    identity: Uuid,
    view: watch::Sender<MachineView>,
    commands: mpsc::Receiver<Command>,
}

impl SandboxMachine {
    /// Opens disk and directory. Hand `view` and the sender of `commands` to [`super::socket::serve`].
    pub fn open(config: MachineConfig, commands: mpsc::Receiver<Command>) -> anyhow::Result<Self> {
        let files = Files::of(&config.directory);
        for directory in [files.state(), files.run()] {
            std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        write_json(&files.config(), &config)?;
        let disk = Disk::open_file(&config.disk).with_context(|| format!("cannot open {}", config.disk.display()))?;
        let memory =
            read_json::<Memory>(&files.memory())?.unwrap_or_else(|| Memory { starts: 0, identity: Uuid::new_v4() });
        let mut hardware = Hardware::new(disk, config.boot, memory.identity);
        hardware.starts = memory.starts;
        hardware.variables = read_json::<Variables>(&files.variables())?.unwrap_or_default();
        let view = MachineView {
            name: config.name.clone(),
            power: Power::Off,
            starts: memory.starts,
            system: None,
            slots: Vec::new(),
            agent: None,
            boot_log: Vec::new(),
        };
        let view = watch::Sender::new(view);
        Ok(Self { config, files, hardware, identity: memory.identity, view, commands })
    }

    /// The state as it changes.
    pub fn view(&self) -> watch::Receiver<MachineView> {
        self.view.subscribe()
    }

    /// Turns the machine on and runs it until nobody can send commands any more.
    pub async fn run(mut self) -> anyhow::Result<()> {
        loop {
            let end = match self.start().await? {
                Some(system) => self.live(system).await?,
                None => End::Off,
            };
            self.view.send_modify(|view| {
                view.system = None;
                view.agent = None;
            });
            remove(&self.files.system())?;
            if matches!(end, End::Off) {
                self.view.send_modify(|view| {
                    if view.power != Power::Dead {
                        view.power = Power::Off;
                    }
                });
                loop {
                    match self.commands.recv().await {
                        Some(Command::PowerOn | Command::PowerCut) => break,
                        Some(_) => {}
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    /// From power-on to a kernel that runs. `None`: nothing boots.
    async fn start(&mut self) -> anyhow::Result<Option<System>> {
        self.view.send_modify(|view| {
            view.power = Power::Firmware;
            view.boot_log.clear();
        });
        // More starts than all tries of two entries together: what did not boot by then never will.
        for _ in 0..24 {
            sleep(Duration::from_millis(self.config.firmware_ms)).await;
            let mut hardware = self.hardware.clone();
            let (hardware, started) = tokio::task::spawn_blocking(move || {
                let started = hardware.start();
                (hardware, started)
            })
            .await?;
            self.hardware = hardware;
            self.remember()?;
            let line = match &started {
                Ok(system) => format!("{} boots from slot {} ({})", system.version, system.slot, system.entry),
                Err(refusal) => refusal.to_string(),
            };
            info!(start = self.hardware.starts, "{line}");
            self.view.send_modify(|view| {
                view.starts = self.hardware.starts;
                view.boot_log.push(line);
            });
            if let Ok(system) = started {
                return Ok(Some(system));
            }
        }
        self.view.send_modify(|view| view.power = Power::Dead);
        Ok(None)
    }

    fn remember(&self) -> anyhow::Result<()> {
        write_json(&self.files.memory(), &Memory { starts: self.hardware.starts, identity: self.identity })?;
        write_json(&self.files.variables(), &self.hardware.variables)
    }

    /// From a kernel that runs to its end.
    async fn live(&mut self, system: System) -> anyhow::Result<End> {
        let has = |fault| system.faults.contains(&fault);
        let running = describe(&system, boot_time());
        self.view.send_modify(|view| {
            view.power = Power::Starting;
            view.slots = slots(&self.hardware.disk);
        });
        if let Some(end) = self.wait(Duration::from_millis(self.config.startup_ms)).await {
            return Ok(end);
        }
        if has(Fault::Hang) {
            let end = self.wait(WATCHDOG).await.unwrap_or(End::Restart);
            return Ok(end);
        }
        // `/run` is a tmpfs: nothing of the last start is left in it.
        remove_all(&self.files.run())?;
        std::fs::create_dir_all(self.files.run())?;
        write_json(&self.files.system(), &running)?;
        self.view.send_modify(|view| {
            view.power = Power::Up;
            view.system = Some(running);
        });

        let crash = has(Fault::CrashLoop).then(|| Instant::now() + CRASH_AFTER);
        let mut guard = Service::new("guard", &self.config, &self.files);
        let mut agent = Service::new("agent", &self.config, &self.files);
        agent.enabled = !has(Fault::HangBeforeAgent);
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                ended = guard.next() => ended?,
                ended = agent.next() => ended?,
                _ = look.tick() => self.look(agent.id()),
                () = sleep_until(crash.unwrap_or_else(Instant::now)), if crash.is_some() => {
                    self.view.send_modify(|view| view.boot_log.push("the system resets itself, as it is made to".into()));
                    return Ok(End::Restart);
                }
                command = self.commands.recv() => match command {
                    Some(Command::KillAgent) => agent.kill(),
                    Some(Command::Reboot) => return Ok(self.shut_down([&mut agent, &mut guard]).await),
                    Some(Command::PowerCut) => return Ok(End::Restart),
                    Some(Command::PowerOff) | None => return Ok(End::Off),
                    Some(Command::PowerOn) => {}
                },
            }
        }
    }

    /// Ends the services in order, unless the power goes meanwhile.
    async fn shut_down(&mut self, services: [&mut Service; 2]) -> End {
        let ended = async {
            let [agent, guard] = services;
            tokio::join!(agent.stop(), guard.stop());
        };
        let mut ended = std::pin::pin!(ended);
        loop {
            tokio::select! {
                () = &mut ended => return End::Restart,
                command = self.commands.recv() => match command {
                    Some(Command::PowerCut) => return End::Restart,
                    Some(Command::PowerOff) | None => return End::Off,
                    Some(Command::KillAgent | Command::PowerOn | Command::Reboot) => {}
                },
            }
        }
    }

    /// Waits, unless somebody turns the machine off meanwhile.
    async fn wait(&mut self, time: Duration) -> Option<End> {
        let until = Instant::now() + time;
        loop {
            tokio::select! {
                () = sleep_until(until) => return None,
                command = self.commands.recv() => match command {
                    Some(Command::Reboot | Command::PowerCut) => return Some(End::Restart),
                    Some(Command::PowerOff) | None => return Some(End::Off),
                    Some(Command::KillAgent | Command::PowerOn) => {}
                },
            }
        }
    }

    fn look(&self, agent: Option<u32>) {
        let slots = slots(&self.hardware.disk);
        self.view.send_if_modified(|view| {
            // A table that is just being written reads as nothing; the last one that was whole stays.
            let slots_changed = !slots.is_empty() && view.slots != slots;
            if slots_changed {
                view.slots.clone_from(&slots);
            }
            let agent_changed = view.agent != agent;
            view.agent = agent;
            slots_changed || agent_changed
        });
    }
}

fn describe(system: &System, since: Duration) -> RunningSystem {
    let has = |fault| system.faults.contains(&fault);
    RunningSystem {
        boot_id: system.boot_id.to_string(),
        since: since.as_secs_f64(),
        version: system.version.clone(),
        root_hash: system.root_hash.to_string(),
        slot: system.slot.to_string(),
        entry: system.entry.clone(),
        trial: system.trial,
        kubelet_starts: !has(Fault::KubeletFails),
        becomes_ready: !has(Fault::NeverReady) && !has(Fault::KubeletFails),
        command_line: system.command_line.clone(),
        os_release: system.os_release.clone(),
        faults: system.faults.clone(),
    }
}

fn slots(disk: &Disk) -> Vec<SlotView> {
    let Ok(table) = Table::read(disk) else { return Vec::new() };
    let view = |slot: Slot| SlotView {
        name: slot.to_string(),
        label: table.label(slot.data()),
        data_uuid: table.unique(slot.data()).to_string(),
        verity_uuid: table.unique(slot.verity()).to_string(),
    };
    Slot::BOTH.map(view).to_vec()
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_all(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot empty {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A unit with `Restart=always`: the guard with `Restart=on-failure`, as it ends when its work is done.
#[derive(Debug)]
struct Service {
    name: &'static str,
    config: MachineConfig,
    files: Files,
    enabled: bool,
    running: Option<(Child, ChildStdin)>,
    /// Not started again before.
    after: Instant,
}

impl Service {
    fn new(name: &'static str, config: &MachineConfig, files: &Files) -> Self {
        let (config, files) = (config.clone(), files.clone());
        Self { name, config, files, enabled: true, running: None, after: Instant::now() }
    }

    fn id(&self) -> Option<u32> {
        self.running.as_ref().and_then(|(child, _)| child.id())
    }

    fn kill(&mut self) {
        if let Some((child, _)) = &mut self.running {
            // It may have ended by itself just now, which is as good.
            let _ = child.start_kill();
        }
    }

    /// Ends the service as systemd does: SIGTERM, and after a while SIGKILL.
    async fn stop(&mut self) {
        self.enabled = false;
        let Some((mut child, stdin)) = self.running.take() else { return };
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself just now, which is as good.
            let _ = kill_process(pid, Signal::TERM);
        }
        match timeout(STOP, child.wait()).await {
            Ok(status) => info!(service = self.name, ?status, "ended with the system"),
            Err(_) => warn!(service = self.name, "does not end with the system and is killed"),
        }
        // Until now: it ends at once when its standard input does.
        drop(stdin);
    }

    /// Starts the service, or waits until it ends. Cancel safe.
    async fn next(&mut self) -> anyhow::Result<()> {
        if !self.enabled {
            return std::future::pending().await;
        }
        if let Some((child, _)) = &mut self.running {
            let status = child.wait().await.with_context(|| format!("cannot wait for the {}", self.name))?;
            self.ended(status);
            return Ok(());
        }
        sleep_until(self.after).await;
        self.running = Some(self.spawn()?);
        Ok(())
    }

    fn ended(&mut self, status: ExitStatus) {
        warn!(service = self.name, %status, "ended");
        self.running = None;
        self.after = Instant::now() + RESTART_AFTER;
        if self.name == "guard" && status.success() {
            self.enabled = false;
        }
    }

    fn spawn(&self) -> anyhow::Result<(Child, ChildStdin)> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.files.log(self.name))?;
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        command
            .arg(self.name)
            .env(MACHINE_VARIABLE, &self.config.directory)
            .envs(&self.config.environment)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start the {}", self.name))?;
        let stdin = child.stdin.take().context("the service has no standard input")?;
        info!(service = self.name, pid = child.id(), "started");
        Ok((child, stdin))
    }
}
