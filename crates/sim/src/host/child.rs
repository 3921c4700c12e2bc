//! The host traits of an agent that runs as a child of a machine process: what it sees of the machine comes from the
//! machine's directory, what it asks of logind goes to the machine's socket.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use bascule_agent::host::{BusError, Firmware, Inhibition, Inhibitor, SystemBus, UnitRun, UnitState};

use crate::firmware::Variables;
use crate::machine::process::{Files, MACHINE_VARIABLE, read_json};
use crate::machine::{Command, MachineConfig, RunningSystem};

/// What a child knows of its machine.
#[derive(Debug)]
pub struct Surroundings {
    /// Where everything lies.
    pub files: Files,
    /// The machine's configuration.
    pub config: MachineConfig,
    /// The system that runs.
    pub system: RunningSystem,
    /// EFI variables as the start left them.
    pub variables: Variables,
}

impl Surroundings {
    /// Reads them from the directory that the machine named. Errors: not started by a machine.
    pub fn read() -> anyhow::Result<Self> {
        let directory = std::env::var_os(MACHINE_VARIABLE)
            .with_context(|| format!("{MACHINE_VARIABLE} is not set: a machine starts this, not a person"))?;
        let files = Files::of(&PathBuf::from(directory));
        let config = read_json(&files.config())?.context("the machine has no configuration")?;
        let system = read_json(&files.system())?.context("no system runs on the machine")?;
        let variables = read_json(&files.variables())?.unwrap_or_default();
        Ok(Self { files, config, system, variables })
    }
}

/// EFI variables, read once: only the firmware changes them.
#[derive(Debug)]
pub struct StartedVariables(pub Variables);

impl Firmware for StartedVariables {
    fn variable_of(&self, vendor: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.bytes_of(vendor, name).map(<[u8]>::to_vec))
    }
}

/// The machine as logind and systemd.
#[derive(Debug)]
pub struct MachineBus {
    socket: PathBuf,
}

/// How long the machine may take to take a command.
const PATIENCE: Duration = Duration::from_secs(5);

impl MachineBus {
    /// Behind this socket.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    fn send(&self, command: Command) -> Result<(), BusError> {
        let unreachable = |source: io::Error| BusError::Unreachable { service: "logind", source: source.into() };
        let mut line = serde_json::to_vec(&command).map_err(|error| unreachable(error.into()))?;
        line.push(b'\n');
        let mut stream = UnixStream::connect(&self.socket).map_err(unreachable)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(unreachable)?;
        stream.write_all(&line).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => BusError::Slow { service: "logind", seconds: PATIENCE.as_secs() },
            _ => unreachable(error),
        })
    }
}

impl SystemBus for MachineBus {
    fn inhibitors(&self) -> Result<Vec<Inhibitor>, BusError> {
        Ok(Vec::new())
    }

    fn inhibit_shutdown(&self, _why: &str) -> Result<Box<dyn Inhibition>, BusError> {
        // Nobody but the agent reboots a simulated machine in an orderly way, so there is nothing to hold back.
        Ok(Box::new(()))
    }

    fn reboot(&self, message: &str) -> Result<(), BusError> {
        tracing::info!(wall = message, "the machine is asked to reboot");
        self.send(Command::Reboot)
    }

    fn unit_states(&self, units: &[String]) -> Result<BTreeMap<String, UnitState>, BusError> {
        let active = || UnitState { load: "loaded".into(), active: "active".into() };
        Ok(units.iter().map(|unit| (unit.clone(), active())).collect())
    }

    fn run_unit(&self, _unit: &str, _limit: Duration) -> Result<UnitRun, BusError> {
        // The simulated OS image brings no hooks.
        Ok(UnitRun::Absent)
    }
}
