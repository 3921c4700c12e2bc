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
        // An image without a root of trust is broken as one without settings: nothing could ever be staged where it is committed.
        let why = settings.impediment.clone().or_else(|| linux::without_trust_root(&settings));
        if let Some(why) = &why {
            tracing::error!(why, "the agent only reports");
        }
        let ended = as_set(&settings, why.as_deref(), runtime, async {
            tokio::select! {
                () = told_to_end(&mut signals) => {}
                settings = another_than(why.as_deref(), sources), if why.is_some() => mended = Some(settings),
            }
        })
        .await;
        match mended {
            Some(mended) => settings = mended,
            None => return ended,
        }
        tracing::info!("what kept the agent from its work is fixed");
    }
}

/// Waits until the settings can be used and nothing, or something else, is in the way.
async fn another_than(why: Option<&str>, sources: &Sources) -> Settings {
    loop {
        tokio::time::sleep(READ_AGAIN).await;
        if let Ok(settings) = Settings::load(sources)
            && linux::without_trust_root(&settings).as_deref() != why
        {
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

/// Runs the agent with these settings until `shutdown` ends; where there is an `impediment`, it only reports.
async fn as_set(
    settings: &Settings,
    impediment: Option<&str>,
    runtime: &Handle,
    shutdown: impl Future<Output = ()>,
) -> Exit {
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
    if impediment.is_none()
        && let Some(missing) = linux::without_bus()
    {
        tracing::warn!(missing, "no release can be staged here until this is fixed");
    }
    let settings = &Settings { impediment: impediment.map(str::to_owned), ..settings.clone() };
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
    async fn settings_and_a_root_of_trust_that_are_mended_are_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let (file, trust_root) = (folder.path().join("agent.toml"), folder.path().join("root.json"));
        let write = |boot: &str| {
            let text = format!("[repository]\ntrust-root = \"{}\"\n[boot]\n{boot}\n", trust_root.display());
            std::fs::write(&file, text).unwrap();
        };
        write("colour = 1");
        let sources = Sources::usual(Some(file.clone()), Vec::new());
        let mut waiting = std::pin::pin!(another_than(Some("there is no setting 'boot.colour'"), &sources));
        assert!(tokio::time::timeout(READ_AGAIN * 3, &mut waiting).await.is_err());
        write("tries = 5");
        let settings = waiting.await;
        assert_eq!(settings.tries, 5);
        // Now that is in the way which was hidden before.
        let why = linux::without_trust_root(&settings);
        assert!(why.as_ref().is_some_and(|why| why.contains("root.json can't be read")), "{why:?}");
        let mut waiting = std::pin::pin!(another_than(why.as_deref(), &sources));
        assert!(tokio::time::timeout(READ_AGAIN * 3, &mut waiting).await.is_err());
        std::fs::write(&trust_root, "{}").unwrap();
        assert_eq!(linux::without_trust_root(&waiting.await), None);
    }
}
