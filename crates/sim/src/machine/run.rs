//! `bascule-sim-node machine`: a machine and its socket, until it is told to end.

use std::path::Path;

use anyhow::Context;
use tokio::sync::mpsc;

use super::process::{Files, SandboxMachine, read_json};
use super::{MachineConfig, socket};

/// Commands that wait to be taken; a machine that is in its firmware takes one at once.
const WAITING: usize = 16;

/// Runs the machine of a configuration file. Ends with an error only if the machine itself can't go on: a release that
/// does not boot is no error, it shows in the machine's state.
pub async fn run(config: &Path) -> anyhow::Result<()> {
    let config: MachineConfig =
        read_json(config)?.with_context(|| format!("there is no configuration at {}", config.display()))?;
    std::fs::create_dir_all(&config.directory)
        .with_context(|| format!("cannot make {}", config.directory.display()))?;
    let path = Files::of(&config.directory).socket();
    let (sender, commands) = mpsc::channel(WAITING);
    let machine = SandboxMachine::open(config, commands)?;
    let view = machine.view();
    tokio::select! {
        ended = machine.run() => ended,
        served = socket::serve(&path, view, sender) => served,
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for Ctrl-C"),
    }
}
