//! What stands in for a kubelet inside a machine of the boot tests, and the one thing that a test's network needs:
//! the host's loopback ports at the same place as on the host, so that every address means the same on both sides.
//!
//! In an image with a real kubelet only the ports are left to it, and pods reach them too: at the first address of the
//! service network, which the image gives to the machine.
//!
//! The machine's own facts are real: its boot id, its running release, its kernel. The fault that the running release
//! carries is its fault.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bascule_os_image::Fault;
use bascule_tests::kubelet::{Health, Kubelet, KubeletHost, NoContainers};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// Where the installer put what this machine is to know.
const FOLDER: &str = "/var/lib/bascule-test";
/// Where the host's loopback begins, seen from inside.
const RELAY: &str = "10.0.2.100";
/// Where an image has a kubelet of its own, which needs nobody to stand in for it.
const KUBELET: &str = "/usr/bin/kubelet";
/// Where the service `kubernetes` is reached.
const HTTPS: u16 = 443;
/// A kubelet under emulation beats slower than a bare one; the control plane's grace is 20 s.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What differs between machines.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Settings {
    node: String,
    zone: String,
    ports: Vec<u16>,
    /// The port that pods reach as the service `kubernetes`.
    #[serde(default)]
    api_server: Option<u16>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The unit sends standard error to the console.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("test guest: {error:#}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    bascule_tests::install_tls_provider();
    let settings: Settings = serde_json::from_str(&read("settings.json")?).context("reading settings.json")?;
    let has_pods = Path::new(KUBELET).exists();
    // Pods have a loopback interface of their own.
    let near = if has_pods { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
    let same = settings.ports.into_iter().map(|port| (port, port));
    for (port, far) in same.chain(settings.api_server.map(|port| (HTTPS, port))) {
        let listener = TcpListener::bind((near, port)).await.with_context(|| format!("listening on {port}"))?;
        tokio::spawn(forward(listener, far));
    }
    if has_pods {
        return std::future::pending().await;
    }
    let release = fs::read_to_string("/etc/os-release").context("reading os-release")?;
    let health = match Fault::from_os_release(&release) {
        Some(Fault::KubeletCrashLoop) => anyhow::bail!("this release carries a kubelet that fails"),
        Some(Fault::KubeletNeverReady) => Health::NeverReady,
        _ => Health::Good,
    };
    let kubeconfig = Kubeconfig::from_yaml(&read("kubeconfig")?).context("reading the kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config)?;
    let kernel =
        |name: &str| fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).context("reading the kernel's facts");
    let mut machine = KubeletHost::named(&settings.node, &settings.zone);
    machine.boot_id = kernel("random/boot_id")?.trim().to_owned();
    machine.kernel_version = kernel("osrelease")?.trim().to_owned();
    machine.os_image = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("os-release without PRETTY_NAME")?;
    machine.heartbeat = HEARTBEAT;
    let _kubelet = Kubelet::start(client, machine, health, Arc::new(NoContainers));
    std::future::pending().await
}

fn read(name: &str) -> anyhow::Result<String> {
    let path = Path::new(FOLDER).join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Leads each connection to the same port of the host.
async fn forward(listener: TcpListener, port: u16) {
    while let Ok((mut near, _)) = listener.accept().await {
        tokio::spawn(async move {
            if let Ok(mut far) = TcpStream::connect((RELAY, port)).await {
                // Either side may end as it likes; that is the other's to notice.
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}
