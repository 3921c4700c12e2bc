//! `bascule`: what an on-call engineer and an OS vendor type. Also found by kubectl as a plugin when it is called
//! `kubectl-bascule`.
//!
//! Each subcommand lives in its own folder; this file only starts the process: TLS provider, arguments, logging, runtime,
//! and the exit code.

mod args;
mod clock;
mod cluster;
mod completion;
mod disk;
#[cfg(test)]
mod documented;
mod exit;
mod output;
mod plain;
mod release;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use exit::Exit;

fn main() -> ExitCode {
    // tough brings a second provider along, so none is chosen by itself. Fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match completion::answered() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => return exit::report(&error),
    }
    let arguments = args::Arguments::parse().checked().unwrap_or_else(|error| error.exit());
    start_logging(arguments.verbose);
    if let Some(time) = arguments.at {
        clock::live_at(time);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&anyhow::Error::new(error).context("can't start the runtime")),
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(arguments) => outcome,
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
        }
    });
    // A blocking reader may wait for the network; there is nothing left to wait for.
    runtime.shutdown_background();
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => exit::report(&error),
    }
}

async fn run(arguments: args::Arguments) -> anyhow::Result<Exit> {
    let connection = &arguments.connection;
    match arguments.command {
        args::Command::Status(command) => command.run(connection).await,
        args::Command::Explain(command) => command.run(connection).await,
        args::Command::Forecast(command) => command.run(connection).await,
        args::Command::Freeze(command) => command.run(connection).await,
        args::Command::Unfreeze(command) => command.run(connection).await,
        args::Command::Rollback(command) => command.run(connection).await,
        args::Command::History(command) => command.run(connection).await,
        args::Command::Plan(command) => command.run(connection).await,
        args::Command::Pause(command) => command.run(connection).await,
        args::Command::Resume(command) => command.run(connection).await,
        args::Command::Hold(command) => command.run(connection).await,
        args::Command::Abort(command) => command.run(connection).await,
        args::Command::Unblock(command) => command.run(connection).await,
        args::Command::Retry(command) => command.run(connection).await,
        args::Command::Wait(command) => command.run(connection).await,
        args::Command::Dashboard(command) => command.run(connection).await,
        args::Command::Doctor(command) => command.run(connection).await,
        args::Command::Version(command) => command.run(connection).await,
        args::Command::Completion(command) => command.run(),
        args::Command::Disk(command) => command.run().await,
        args::Command::Install(command) => command.run().await,
        args::Command::Release(command) => release::run(command).await,
    }
}

/// Warnings by default, more with `-v` and `-vv`, anything by `BASCULE_LOG`.
fn start_logging(verbose: u8) {
    let level = match verbose {
        // A certificate that is refused, or a server that does not answer, is reported by the command itself.
        0 => "warn,rustls_platform_verifier=off,kube_client::client::builder=off",
        1 => "info,bascule=debug",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("BASCULE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .without_time()
        .init();
}
