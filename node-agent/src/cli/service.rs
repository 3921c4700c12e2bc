//! `bascule-agent run`.

use bascule_agent::kubernetes::Credentials;
use bascule_agent::linux;
use bascule_agent::run::{self, RunError};
use bascule_agent::settings::Settings;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, complain, node_name};

pub(super) async fn run(settings: &Settings, runtime: &Handle) -> Exit {
    for (key, value, origin) in &settings.origins {
        tracing::debug!(key, value, %origin, "setting");
    }
    let host = match linux::open_for_service(settings, runtime) {
        Ok(host) => host,
        Err(error) => {
            complain(&error);
            return Exit::Host;
        }
    };
    let credentials = match &settings.kubeconfig {
        Some(path) => Credentials::Kubeconfig(path.clone()),
        None => Credentials::InCluster,
    };
    let signals = signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            complain(&error);
            return Exit::Internal;
        }
    };
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    match run::run(settings, node_name(settings), host, credentials, shutdown).await {
        Ok(()) => Exit::Done,
        Err(error) => {
            complain(&error);
            match error {
                RunError::Locked => Exit::Locked,
                RunError::Lock(_) => Exit::Host,
                RunError::Listen(_) => Exit::Settings,
                RunError::Worker | RunError::Timer(_) | RunError::Thread(_) => Exit::Internal,
            }
        }
    }
}
