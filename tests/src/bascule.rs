//! What an operator needs around it on a fresh control plane: Bascule's manifests, a signed repository with two releases
//! that is valid now, its root of trust in the cluster, and the operator's own identity and arguments.

use crate::control_plane::{ControlPlane, ControlPlaneError, free_port};
use crate::https::HttpsServer;
use crate::vendor::Vendor;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;

/// The operator's user, as the API server's audit log names it.
pub const OPERATOR: &str = "system:serviceaccount:bascule-system:bascule-operator";

/// The manifests that an operator needs.
pub const MANIFESTS: &[&str] = &[
    "operator/namespace.yaml",
    "crds/updatepolicies.yaml",
    "crds/nodeupdates.yaml",
    "crds/freezes.yaml",
    "crds/rollbacks.yaml",
    "operator/rbac.yaml",
    "roles/agent.yaml",
    "roles/hooks.yaml",
    "admission/agent.yaml",
    "admission/operator.yaml",
    "admission/on-call.yaml",
    "admission/lease.yaml",
];

/// Applies manifests of the tree, given by their paths in `manifests/`.
///
/// # Errors
/// When the API server refuses one.
pub async fn install(control_plane: &ControlPlane, manifests: &[&str]) -> Result<(), ControlPlaneError> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let texts: Vec<String> =
        manifests.iter().map(|manifest| std::fs::read_to_string(folder.join(manifest)).unwrap()).collect();
    // Together, so that the definitions among them are waited for together.
    control_plane.apply(&texts.join("\n---\n")).await?;
    Ok(())
}

/// What the operator's Deployment tells its allocator, for whoever measures what it takes of memory.
///
/// # Panics
/// When the Deployment says nothing of it.
#[must_use]
pub fn allocator() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(crate::page::tree().join("manifests/operator/deployment.yaml")).unwrap();
    let said = text.lines().filter_map(|line| {
        let (name, value) = line.trim().strip_prefix("- {name: MALLOC_")?.split_once(", value: \"")?;
        Some((format!("MALLOC_{name}"), value.strip_suffix("\"}")?.to_owned()))
    });
    let said: Vec<_> = said.collect();
    assert!(!said.is_empty(), "the operator's Deployment tells its allocator nothing");
    said
}

/// Applies all of `manifests/`, for agents in pods and for those of hosts alike.
pub async fn install_all(control_plane: &ControlPlane) {
    let manifests = crate::page::tree().join("manifests");
    control_plane.apply_kustomization(&manifests).await.unwrap();
    let hosts = ["components/host-agent/rbac.yaml", "components/host-agent/flow-schema.yaml"];
    install(control_plane, &hosts).await.unwrap();
}

/// A vendor whose releases 1.0 and 1.1 are signed today, and the server of its repository.
pub async fn repository() -> (Vendor, HttpsServer) {
    repository_at((Ipv4Addr::LOCALHOST, 0).into()).await
}

/// As [`repository`], served at a loopback address of either family.
pub async fn repository_at(address: SocketAddr) -> (Vendor, HttpsServer) {
    let mut vendor = Vendor::empty();
    // The vendor's story begins on a fixed day; a cluster lives now, so everything is signed afresh.
    vendor.now = crate::clock::now();
    let keys = vendor.keys(&["root-1", "root-2", "targets", "snapshot", "timestamp"]);
    vendor.publisher().rotate(&BTreeMap::new(), vendor.signing(&keys)).unwrap();
    vendor.publish("1.0", None);
    vendor.publish("1.1", Some("1.0"));
    let server = HttpsServer::start_on(vendor.repository(), address).await.unwrap();
    (vendor, server)
}

/// Puts the vendor's root of trust where an operator looks for it.
pub async fn trust(client: &Client, vendor: &Vendor) {
    let root = String::from_utf8(vendor.trust_root()).unwrap();
    let map = serde_json::json!({"metadata": {"name": "bascule-trust-root"}, "data": {"root.json": root}});
    let map: ConfigMap = serde_json::from_value(map).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "bascule-system");
    maps.create(&PostParams::default(), &map).await.unwrap();
}

/// An address of this machine that the API server's pod proxy takes for a pod's: it refuses loopback and link-local ones
/// (`k8s.io/apimachinery/pkg/util/proxy`, `IsProxyableIP`).
///
/// A machine without any gets one of the benchmark network (RFC 2544), which needs root.
#[must_use]
pub fn pod_address() -> IpAddr {
    // Nothing is sent: connecting a datagram socket only asks which address would be used.
    let routed = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    match routed.map(|address| address.ip()) {
        Ok(address) if !address.is_loopback() && !address.is_unspecified() => address,
        _ => {
            let own = "198.18.0.1";
            // It may be there from an earlier test.
            let _ =
                std::process::Command::new("ip").args(["address", "add", &format!("{own}/32"), "dev", "lo"]).status();
            own.parse().unwrap()
        }
    }
}

/// The Pod of an operator that runs here as a process, so that the API server's proxy finds it: bound to no node, at an
/// address of this machine.
pub async fn operator_pod(client: &Client, name: &str, listen: &str) {
    let port: u16 = listen.rsplit(':').next().unwrap().parse().unwrap();
    let address = pod_address().to_string();
    let pod = serde_json::json!({
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "bascule-operator"}},
        "spec": {
            // No scheduler and no kubelet touches it.
            "schedulingGates": [{"name": "bascule.dev/runs-elsewhere"}],
            "serviceAccountName": "bascule-operator",
            // Its namespace enforces `restricted`.
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "operator",
                "image": "bascule-operator",
                "ports": [{"name": "http", "containerPort": port}],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "bascule-system");
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let status = serde_json::json!({"status": {"podIP": address, "podIPs": [{"ip": address}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
}

/// How an operator is started.
pub struct Launch {
    /// Its arguments, without the program's name.
    pub arguments: Vec<String>,
    /// Where it serves metrics and health.
    pub listen: String,
}

/// The arguments of an operator with the rights that the manifests give it. `proxy` is another way to the API server.
/// Files are written to `folder`.
pub async fn launch(
    control_plane: &ControlPlane,
    server: &HttpsServer,
    folder: &Path,
    identity: &str,
    proxy: Option<&str>,
) -> Launch {
    let kubeconfig = folder.join(format!("{identity}.kubeconfig"));
    let credentials = control_plane.service_account("bascule-system", "bascule-operator").await.unwrap();
    credentials.write_to(&kubeconfig).unwrap();
    if let Some(proxy) = proxy {
        let text = std::fs::read_to_string(&kubeconfig).unwrap();
        std::fs::write(&kubeconfig, text.replace(control_plane.server(), proxy)).unwrap();
    }
    let authority = folder.join("repository-ca.pem");
    std::fs::write(&authority, server.ca_pem()).unwrap();
    // On every address, as shipped: the API server's pod proxy refuses those of the loopback interface.
    let port = free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let arguments = vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--extra-ca={}", authority.display()),
        "--namespace=bascule-system".to_owned(),
        format!("--identity={identity}"),
        format!("--listen=0.0.0.0:{port}"),
    ];
    Launch { arguments, listen }
}
