//! Starting the parts in their order and waiting until each can be used.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::runtime::wait::await_condition;
use tokio::time::{sleep, timeout_at};

use super::arguments::{self, Election};
use super::{Binaries, ControlPlane, ControlPlaneError, Foundation, Options, free_port};
use crate::supervise::Supervised;

/// How often a port may turn out to be taken by another process between being chosen and being bound.
const ATTEMPTS: usize = 3;

/// How often readiness is asked for: the health endpoints can only be polled.
const POLL: Duration = Duration::from_millis(50);

impl ControlPlane {
    /// Starts a control plane and waits until it is ready: `/readyz` agrees, and the controllers have made the default
    /// service account, without which no pod is admitted. Builds the programs first if that was never done.
    ///
    /// # Errors
    /// When the programs can't be had, or a part does not come up in time; the message carries the end of its log.
    pub async fn start(options: Options) -> Result<Self, ControlPlaneError> {
        Self::start_telling(options, |sentence| tracing::info!("{sentence}")).await
    }

    /// As [`Self::start`]; `progress` hears one sentence before each long step.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_telling(
        options: Options,
        progress: impl Fn(&str) + Send + 'static,
    ) -> Result<Self, ControlPlaneError> {
        crate::install_tls_provider();
        let binaries = tokio::task::spawn_blocking(move || Binaries::locate(&progress)).await??;
        let mut attempt = 1;
        loop {
            match Self::attempt(&binaries, &options).await {
                Err(ControlPlaneError::Died { program, log, .. })
                    if attempt < ATTEMPTS && log.contains("address already in use") =>
                {
                    tracing::warn!(program, attempt, "a port was taken by another process, choosing others");
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    async fn attempt(binaries: &Binaries, options: &Options) -> Result<Self, ControlPlaneError> {
        let deadline = Instant::now() + options.start_timeout;
        let port = || free_port().map_err(|source| ControlPlaneError::Folder { path: "127.0.0.1".into(), source });
        let (etcd_port, etcd_peer_port, server_port) = (port()?, port()?, port()?);
        let server = format!("https://{}", SocketAddr::from((options.address, server_port)));
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let foundation = Foundation::lay(binaries.clone(), &server)?;
        let place = foundation.folder();
        foundation.equip(place, &server)?;

        let run = |part: &str, arguments: Vec<String>| -> Result<Supervised, ControlPlaneError> {
            Ok(Supervised::start(&binaries.path(part), arguments, &[], &place.join(format!("{part}.log")))?)
        };
        let cluster = [("test".to_owned(), format!("http://127.0.0.1:{etcd_peer_port}"))];
        let mut etcd = run("etcd", arguments::etcd(&place.join("etcd"), "test", &etcd_url, &cluster))?;
        wait_until_healthy(&mut etcd, &format!("{etcd_url}/readyz"), None, deadline, options).await?;
        let told = arguments::api_server(place, place, &etcd_url, server_port, options);
        let mut api_server = run("kube-apiserver", told)?;
        let ready = format!("{server}/readyz");
        wait_until_healthy(&mut api_server, &ready, Some(foundation.authority_certificate()), deadline, options)
            .await?;
        let told = arguments::controller_manager(place, place, options, Election::None);
        let controller_manager = run("kube-controller-manager", told)?;
        let scheduler = run("kube-scheduler", arguments::scheduler(place, Election::None))?;

        let mut started = Self { scheduler, controller_manager, api_server, etcd, foundation };
        started.wait_for_controllers(deadline, options).await?;
        Ok(started)
    }

    async fn wait_for_controllers(&mut self, deadline: Instant, options: &Options) -> Result<(), ControlPlaneError> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client().await?, "default");
        let made = await_condition(accounts, "default", |account: Option<&ServiceAccount>| account.is_some());
        let waited = timeout_at(deadline.into(), made).await;
        for part in [&mut self.controller_manager, &mut self.scheduler] {
            fail_if_ended(part)?;
        }
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(not_ready(&self.controller_manager, options)),
        }
    }
}

async fn wait_until_healthy(
    part: &mut Supervised,
    url: &str,
    authority: Option<&str>,
    deadline: Instant,
    options: &Options,
) -> Result<(), ControlPlaneError> {
    let mut builder = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5));
    if let Some(pem) = authority {
        builder = builder.tls_certs_only([reqwest::Certificate::from_pem(pem.as_bytes())?]);
    }
    let client = builder.build()?;
    loop {
        fail_if_ended(part)?;
        if client.get(url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(not_ready(part, options));
        }
        sleep(POLL).await;
    }
}

fn fail_if_ended(part: &mut Supervised) -> Result<(), ControlPlaneError> {
    match part.ended()? {
        None => Ok(()),
        Some(code) => Err(ControlPlaneError::Died { program: part.program().to_owned(), code, log: part.log_tail(15) }),
    }
}

fn not_ready(part: &Supervised, options: &Options) -> ControlPlaneError {
    ControlPlaneError::NotReady {
        program: part.program().to_owned(),
        waited: options.start_timeout,
        log: part.log_tail(15),
    }
}
