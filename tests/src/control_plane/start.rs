//! Starting the parts in their order and waiting until each can be used.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::runtime::wait::await_condition;
use tokio::time::{sleep, timeout_at};

use super::pki::{Authority, Pair, service_account_keys};
use super::{Binaries, ControlPlane, ControlPlaneError, Credentials, Options, audit, free_port};
use crate::supervise::{Scratch, Supervised};

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
        let folder = Scratch::new("bascule-control-plane")?;
        let place = folder.path();
        let port = || free_port().map_err(|source| ControlPlaneError::Folder { path: place.to_owned(), source });
        let (etcd_port, etcd_peer_port, server_port) = (port()?, port()?, port()?);
        let server = format!("https://127.0.0.1:{server_port}");
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");

        let authority = Authority::new()?;
        let credentials = |user: &str, groups: &[&str]| -> Result<Credentials, ControlPlaneError> {
            let pair = authority.client(user, groups)?;
            Ok(Credentials::with_certificate(&server, authority.certificate(), user, &pair))
        };
        let admin = credentials("bascule-admin", &["system:masters"])?;
        let controller_manager = credentials("system:kube-controller-manager", &[])?;
        let scheduler = credentials("system:kube-scheduler", &[])?;
        admin.write_to(&place.join("admin.kubeconfig"))?;
        controller_manager.write_to(&place.join("controller-manager.kubeconfig"))?;
        scheduler.write_to(&place.join("scheduler.kubeconfig"))?;
        write_files(place, &authority, &authority.server()?)?;

        let run = |part: &str, arguments: Vec<String>| -> Result<Supervised, ControlPlaneError> {
            Ok(Supervised::start(&binaries.path(part), arguments, &[], &place.join(format!("{part}.log")))?)
        };
        let mut etcd = run("etcd", etcd_arguments(place, &etcd_url, etcd_peer_port))?;
        wait_until_healthy(&mut etcd, &format!("{etcd_url}/readyz"), None, deadline, options).await?;
        let mut api_server = run("kube-apiserver", server_arguments(place, &etcd_url, server_port, options))?;
        let ready = format!("{server}/readyz");
        wait_until_healthy(&mut api_server, &ready, Some(authority.certificate()), deadline, options).await?;
        let controller_manager = run("kube-controller-manager", controller_arguments(place, options))?;
        let scheduler = run("kube-scheduler", scheduler_arguments(place))?;

        let (binaries, controller_manager) = (binaries.clone(), controller_manager);
        let mut started =
            Self { scheduler, controller_manager, api_server, etcd, binaries, authority, server, admin, folder };
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

fn write_files(place: &Path, authority: &Authority, server: &Pair) -> Result<(), ControlPlaneError> {
    let (signing_key, verifying_key) = service_account_keys()?;
    let files = [
        ("ca.crt", authority.certificate()),
        ("server.crt", &server.certificate),
        ("server.key", &server.key),
        ("service-accounts.key", &signing_key),
        ("service-accounts.pub", &verifying_key),
        ("audit-policy.json", audit::POLICY),
    ];
    for (name, content) in files {
        let path = place.join(name);
        fs::write(&path, content).map_err(|source| ControlPlaneError::Folder { path, source })?;
    }
    let path = place.join("audit");
    fs::create_dir(&path).map_err(|source| ControlPlaneError::Folder { path, source })
}

fn etcd_arguments(place: &Path, client_url: &str, peer_port: u16) -> Vec<String> {
    let peer_url = format!("http://127.0.0.1:{peer_port}");
    vec![
        "--name=test".to_owned(),
        format!("--data-dir={}", place.join("etcd").display()),
        format!("--listen-client-urls={client_url}"),
        format!("--advertise-client-urls={client_url}"),
        format!("--listen-peer-urls={peer_url}"),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster=test={peer_url}"),
        // The data lives as long as the test: it need not survive a power cut.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

fn server_arguments(place: &Path, etcd_url: &str, port: u16, options: &Options) -> Vec<String> {
    let file = |name: &str| place.join(name).display().to_string();
    let mut arguments = vec![
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        // There is no service network to publish the server in, and loopback addresses are refused there.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--secure-port={port}"),
        format!("--etcd-servers={etcd_url}"),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-signing-key-file={}", file("service-accounts.key")),
        format!("--service-account-key-file={}", file("service-accounts.pub")),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
    ];
    if let Some(plugin) = &options.disabled_admission {
        arguments.push(format!("--disable-admission-plugins={plugin}"));
    }
    if options.audit {
        arguments.push(format!("--audit-policy-file={}", file("audit-policy.json")));
        arguments.push(format!("--audit-log-path={}", place.join("audit/audit.log").display()));
    }
    arguments
}

/// Controllers hold themselves back to 20 requests a second, the scheduler to 50: too few for thousands of pods.
const BUSY: [&str; 2] = ["--kube-api-qps=200", "--kube-api-burst=400"];

fn controller_arguments(place: &Path, options: &Options) -> Vec<String> {
    let file = |name: &str| place.join(name).display().to_string();
    vec![
        format!("--kubeconfig={}", file("controller-manager.kubeconfig")),
        format!("--service-account-private-key-file={}", file("service-accounts.key")),
        format!("--root-ca-file={}", file("ca.crt")),
        // Each controller under its own name: the audit log then says which one asked.
        "--use-service-account-credentials=true".to_owned(),
        format!("--node-monitor-grace-period={}s", options.node_monitor_grace.as_secs()),
        "--node-monitor-period=2s".to_owned(),
        BUSY[0].to_owned(),
        BUSY[1].to_owned(),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

fn scheduler_arguments(place: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", place.join("scheduler.kubeconfig").display()),
        BUSY[0].to_owned(),
        BUSY[1].to_owned(),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        "--profiling=false".to_owned(),
    ]
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
