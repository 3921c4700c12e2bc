//! A simulated machine as processes: `machine` holds disk, firmware and power switch, and starts the other two as a
//! host's units: `agent` and `guard`, which are the shipped code over simulated host traits.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Plays a machine for sandbox and tests.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Turn a machine on and run it until interrupted.
    Machine {
        /// Its configuration (JSON).
        #[arg(long)]
        config: PathBuf,
    },
    /// Run the agent of the machine that starts this.
    Agent,
    /// Run the guard of the machine that starts this.
    Guard,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    // An error only says that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ended = match Arguments::parse().role {
        Role::Machine { config } => bascule_sim::machine::run::run(&config).await,
        Role::Agent => bascule_sim::host::services::agent().await,
        Role::Guard => tokio::task::spawn_blocking(bascule_sim::host::services::guard)
            .await
            .unwrap_or_else(|error| Err(error.into())),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
