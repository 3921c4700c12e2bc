//! `bascule-agent run`.

use std::time::Duration;

use bascule_agent::kubernetes::Credentials;
use bascule_agent::linux;
use bascule_agent::run::{self, RunError};
use bascule_agent::settings::{Settings, Sources};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, complain, node_name};

/// How often settings that can't be used are read again.
const READ_AGAIN: Duration = Duration::from_secs(30);

pub(super) async fn run(mut settings: Settings, sources: &Sources, runtime: &Handle) -> Exit {
    let signals = signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    let mut signals = match signals {
        Ok(signals) => signals,
        Err(error) => {
            complain(&error);
            return Exit::Internal;
        }
    };
    loop {
        let mut mended = None;
        if let Some(why) = &settings.impediment {
            tracing::error!(why, "the agent only reports");
        }
        let ended = as_set(&settings, runtime, async {
            let impeded = settings.impediment.is_some();
            tokio::select! {
                () = told_to_end(&mut signals) => {}
                settings = usable(sources), if impeded => mended = Some(settings),
            }
        })
        .await;
        match mended {
            Some(usable) => settings = usable,
            None => return ended,
        }
        tracing::info!("the settings can be used now");
    }
}

/// Waits until the settings can be used.
async fn usable(sources: &Sources) -> Settings {
    loop {
        tokio::time::sleep(READ_AGAIN).await;
        if let Ok(settings) = Settings::load(sources) {
            return settings;
        }
    }
}

async fn told_to_end((terminate, interrupt): &mut (Signal, Signal)) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Runs the agent with these settings until `shutdown` ends.
async fn as_set(settings: &Settings, runtime: &Handle, shutdown: impl Future<Output = ()>) -> Exit {
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
    if settings.impediment.is_none() {
        for missing in linux::needed_later(settings) {
            tracing::warn!(missing, "no release can be staged here until this is mended");
        }
    }
    let credentials = match &settings.kubeconfig {
        Some(path) => Credentials::Kubeconfig(path.clone()),
        None => Credentials::InCluster,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn settings_that_are_mended_are_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, "[boot]\ncolour = 1\n").unwrap();
        let sources = Sources::usual(Some(file.clone()), Vec::new());
        let waiting = usable(&sources);
        let mut waiting = std::pin::pin!(waiting);
        assert!(tokio::time::timeout(READ_AGAIN * 3, &mut waiting).await.is_err());
        std::fs::write(&file, "[boot]\ntries = 5\n").unwrap();
        assert_eq!(waiting.await.tries, 5);
    }
}
