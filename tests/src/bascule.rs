//! What an operator needs around it on a fresh control plane: Bascule's manifests, a signed repository with two releases
//! that is valid now, its root of trust in the cluster, and the operator's own identity and arguments.

use crate::control_plane::{ControlPlane, ControlPlaneError, free_port};
use crate::https::HttpsServer;
use crate::vendor::Vendor;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::path::Path;

/// The operator's user, as the API server's audit log names it.
pub const OPERATOR: &str = "system:serviceaccount:bascule-system:bascule-operator";

/// The manifests that an operator needs.
pub const MANIFESTS: &[&str] = &[
    "namespace.yaml",
    "crds/updatepolicies.yaml",
    "crds/nodeupdates.yaml",
    "crds/freezes.yaml",
    "crds/rollbacks.yaml",
    "rbac/operator.yaml",
    "admission/operator.yaml",
];

/// Applies manifests of the tree, given by their paths in `manifests/`.
///
/// # Errors
/// When the API server refuses one.
pub async fn install(control_plane: &ControlPlane, manifests: &[&str]) -> Result<(), ControlPlaneError> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    for manifest in manifests {
        control_plane.apply(&std::fs::read_to_string(folder.join(manifest)).unwrap()).await?;
    }
    Ok(())
}

/// A vendor whose releases 1.0 and 1.1 are signed today, and the server of its repository.
pub async fn repository() -> (Vendor, HttpsServer) {
    let mut vendor = Vendor::empty();
    // The vendor's story begins on a fixed day; a cluster lives now, so everything is signed afresh.
    vendor.now = crate::clock::now();
    let keys = vendor.keys(&["root-1", "root-2", "targets", "snapshot", "timestamp"]);
    vendor.publisher().rotate(&BTreeMap::new(), vendor.signing(&keys)).unwrap();
    vendor.publish("1.0", None);
    vendor.publish("1.1", Some("1.0"));
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
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
    let listen = format!("127.0.0.1:{}", free_port().unwrap());
    let arguments = vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--extra-ca={}", authority.display()),
        format!("--identity={identity}"),
        format!("--listen={listen}"),
    ];
    Launch { arguments, listen }
}
