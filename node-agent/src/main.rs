//! The agent's binary: the service, the guard, and what a person may do on a node without a cluster.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // First: whatever opens a TLS connection later finds the provider.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return cli::Exit::Internal.into();
    }
    let arguments = cli::Arguments::parse();
    cli::main(arguments)
}
