//! What the programs of a control plane are told.

use std::path::Path;

use super::Options;

/// A member of etcd. `cluster` has every member's name and peer URL, this one's too.
pub(super) fn etcd(data: &Path, name: &str, client_url: &str, cluster: &[(String, String)]) -> Vec<String> {
    let peer_url = cluster.iter().find(|(member, _)| member == name).map_or("", |(_, url)| url.as_str());
    let members: Vec<String> = cluster.iter().map(|(member, url)| format!("{member}={url}")).collect();
    let mut arguments = vec![
        format!("--name={name}"),
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls={client_url}"),
        format!("--advertise-client-urls={client_url}"),
        format!("--listen-peer-urls={peer_url}"),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster={}", members.join(",")),
        // The data lives as long as the test, and this computer as long as the test too: what a machine wrote before its
        // simulated reboot is in the page cache.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    if cluster.len() > 1 {
        // Twice Kubernetes' defaults: several members share the processors of one computer here, and a member that only
        // waited for its turn has not lost its leader (etcd's tuning guide).
        arguments.extend(["--heartbeat-interval=200".to_owned(), "--election-timeout=2000".to_owned()]);
    }
    arguments
}

/// An API server with the keys in `keys` and its audit log below `place`.
pub(super) fn api_server(keys: &Path, place: &Path, etcd_url: &str, port: u16, options: &Options) -> Vec<String> {
    let file = |name: &str| keys.join(name).display().to_string();
    let mut arguments = vec![
        format!("--bind-address={}", options.address),
        format!("--advertise-address={}", options.address),
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
        format!(
            "--service-cluster-ip-range={}",
            if options.address.is_ipv6() { "fd00:10:96::/112" } else { "10.96.0.0/16" }
        ),
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

/// What an API server with others beside it is told on top. On SIGTERM `/readyz` fails at once while everything is still answered,
/// so that a balancer moves on first; then watches are ended one after the other, and their clients begin again elsewhere.
pub(super) const ORDERLY_END: [&str; 2] =
    ["--shutdown-delay-duration=2s", "--shutdown-watch-termination-grace-period=1s"];

/// Controllers hold themselves back to 20 requests a second, the scheduler to 50: too few for thousands of pods.
const BUSY: [&str; 2] = ["--kube-api-qps=200", "--kube-api-burst=400"];

/// The controllers, with the keys in `keys` and the kubeconfig in `place`.
pub(super) fn controller_manager(keys: &Path, place: &Path, options: &Options, election: Election) -> Vec<String> {
    let file = |name: &str| keys.join(name).display().to_string();
    let mut arguments = vec![
        format!("--kubeconfig={}", place.join("controller-manager.kubeconfig").display()),
        format!("--service-account-private-key-file={}", file("service-accounts.key")),
        format!("--root-ca-file={}", file("ca.crt")),
        // Each controller under its own name: the audit log then says which one asked.
        "--use-service-account-credentials=true".to_owned(),
        format!("--node-monitor-grace-period={}s", options.node_monitor_grace.as_secs()),
        "--node-monitor-period=2s".to_owned(),
    ];
    arguments.extend(behind_the_api(election));
    arguments
}

/// The scheduler, with the kubeconfig in `place`.
pub(super) fn scheduler(place: &Path, election: Election) -> Vec<String> {
    let mut arguments = vec![format!("--kubeconfig={}", place.join("scheduler.kubeconfig").display())];
    arguments.extend(behind_the_api(election));
    arguments
}

/// What all have that are only clients of the API.
fn behind_the_api(election: Election) -> impl Iterator<Item = String> {
    let all = [BUSY[0], BUSY[1], "--secure-port=0", "--profiling=false"].map(str::to_owned);
    all.into_iter().chain(election.arguments())
}

/// Whether controllers and schedulers of several machines take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Election {
    /// There is only one.
    None,
    /// One of them leads, by a Lease. Its times are shorter than Kubernetes' own (15 s, 10 s, 2 s), as fits machines that
    /// reboot within seconds.
    Lease,
}

impl Election {
    fn arguments(self) -> Vec<String> {
        let arguments: &[&str] = match self {
            Self::None => &["--leader-elect=false"],
            Self::Lease => &[
                "--leader-elect=true",
                "--leader-elect-lease-duration=8s",
                "--leader-elect-renew-deadline=5s",
                "--leader-elect-retry-period=1s",
            ],
        };
        arguments.iter().map(|&argument| argument.to_owned()).collect()
    }
}
