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
use crate::machine::{BusState, Command, MachineConfig, RunningSystem};

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
    files: Files,
}

/// How long the machine may take to take a command.
const PATIENCE: Duration = Duration::from_secs(5);

impl MachineBus {
    /// Of the machine with these files.
    pub fn of(files: &Files) -> Self {
        Self { files: files.clone() }
    }

    /// What they say now.
    fn state(&self, service: &'static str) -> Result<BusState, BusError> {
        let state = read_json(&self.files.bus()).map(Option::unwrap_or_default);
        state.map_err(|error| BusError::Unreachable { service, source: error.into() })
    }

    fn send(&self, command: Command) -> Result<(), BusError> {
        let unreachable = |source: io::Error| BusError::Unreachable { service: "logind", source: source.into() };
        let mut line = serde_json::to_vec(&command).map_err(|error| unreachable(error.into()))?;
        line.push(b'\n');
        let mut stream = UnixStream::connect(self.files.socket()).map_err(unreachable)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(unreachable)?;
        stream.write_all(&line).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => BusError::Slow { service: "logind", seconds: PATIENCE.as_secs() },
            _ => unreachable(error),
        })
    }
}

impl SystemBus for MachineBus {
    fn inhibitors(&self) -> Result<Vec<Inhibitor>, BusError> {
        let backup = Inhibitor {
            what: "shutdown:sleep".to_owned(),
            who: "backup".to_owned(),
            why: "the nightly backup is not written yet".to_owned(),
            mode: "block".to_owned(),
        };
        Ok(self.state("logind")?.held_back.then_some(backup).into_iter().collect())
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
        let active = if self.state("systemd")?.units_fail { "failed" } else { "active" };
        let state = || UnitState { load: "loaded".into(), active: active.into() };
        Ok(units.iter().map(|unit| (unit.clone(), state())).collect())
    }

    fn run_unit(&self, _unit: &str, _limit: Duration) -> Result<UnitRun, BusError> {
        // The simulated OS image brings no hooks.
        Ok(UnitRun::Absent)
    }
}
