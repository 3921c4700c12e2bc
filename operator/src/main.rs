//! `bascule-operator`: reads its settings, then hands over to the library.

use bascule_operator::{
    clock::Clock,
    one_line,
    run::run,
    settings::{LogFormat, Settings},
};
use clap::Parser as _;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // The TLS library can be driven by more than one provider and refuses to guess. An error only says that one is
    // installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = Settings::parse();
    log(settings.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = one_line(&error), "cannot start");
            return ExitCode::from(70);
        }
    };
    match runtime.block_on(run(settings, Clock::system(), stopped())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = one_line(&error), "cannot go on");
            ExitCode::from(error.exit_code())
        }
    }
}

fn log(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client=warn,tower=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
}

/// SIGTERM from a kubelet, SIGINT from a terminal.
async fn stopped() {
    let (term, int) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    match (term, int) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        }
        // Without handlers the signals end the process anyway.
        _ => std::future::pending().await,
    }
}
